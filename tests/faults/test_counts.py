"""Features without a partner do not count as dead partners; recall over features that fired."""

import logging

import pytest
import torch

from conftest import TEXTS
from evaluations import recorded, subject_of, tables_of
from matches import partners, permutation
from saematch.core.columns import Column
from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey
from saematch.core.results import Results
from saematch.core.tables import Tables
from saematch.evaluate.co_activation import CoActivation, co_activation, live_part
from saematch.evaluate.counts import PairCounts
from saematch.evaluate.intervals import Intervals
from saematch.lm.source import LmSource
from saematch.matching.matches import MatchSet
from saematch.report.figures import FIGURES, NEEDS, OF_TRAINING, draw_figures
from saematch.sae.sources.disk import SaeFolders
from saematch.texts.sources import TextSet
from saematch.texts.tokens import tokenise

ONCE = torch.ones(1, 1, dtype=torch.float64)


def test_A14_three_counts_and_three_scores_by_hand():
    # feature 0: 4 tokens, partner on 2, together 1; 1: 1 token, partner on 3, together 1;
    # 2: never fires; 3: 5 tokens, its partner never fires; 4: 10 tokens, it has no partner
    both, own, partner = [[1, 1, 0, 0, 0]], [[4, 1, 0, 5, 10]], [[2, 3, 9, 0, 0]]
    n_partners = torch.tensor([1, 1, 1, 1, 0])
    counts = PairCounts(*map(torch.tensor, (both, own, partner, [2])))
    score = co_activation(ONCE, counts, n_partners)
    assert score.matching_score.tolist() == pytest.approx([2 / 20])
    assert score.matching_score_live.tolist() == pytest.approx([2 / 15]), "without feature 3"
    assert score.matching_score_matched.tolist() == pytest.approx([2 / 10]), "without feature 4"
    assert score.matching_score_macro.tolist() == pytest.approx([(1 / 4 + 1 + 0 + 0) / 4])
    assert score.jaccard.tolist() == pytest.approx([(1 / 5 + 1 / 3 + 0 + 0) / 4])
    assert (score.n_live, score.n_dead) == (4, 1)
    assert (score.n_unmatched, score.n_dead_partners, score.n_both_live) == (1, 1, 2)


def test_A14_without_any_partner_there_is_no_score_of_partners():
    none = torch.zeros(3, dtype=torch.int64)
    counts = [torch.tensor([row]) for row in ([0, 0, 0], [2, 1, 0], [0, 0, 0], 0)]
    score = co_activation(ONCE, PairCounts(*counts), none)
    metric = Column("m", "m")
    assert Intervals().replicates([1]).interval(metric, score.matching_score_matched)[0] is None
    assert (score.n_unmatched, score.n_dead_partners, score.n_both_live) == (2, 0, 0)
    assert score.matching_score_live.item() == 0


def test_A14_a_partial_match_counts_its_unmatched_features(cli, tmp_path):
    message, _ = cli("evaluations=[co_activation]", "arms=[mutual_nearest,random]", "logger=none",
                     "run_id=a", "layers=[0,1]")  # fmt: skip
    assert message is None
    folder = tmp_path / "outputs/match/a"
    tables = Results.load(folder / "results.json").tables
    for row in tables.rows("activations"):
        match, _ = Match.load(folder / f"matches/{row['arm']}/0-1.safetensors")
        parts = row["n_unmatched"] + row["n_dead_partners"] + row["n_both_live"]
        assert parts == row["n_live"]
        assert row["n_live"] + row["n_dead"] == match.n_source
        n_without = int((partners(match) < 0).sum())
        assert row["n_unmatched"] <= n_without
        assert n_without - row["n_unmatched"] <= row["n_dead"]
    partial, whole = ([r for r in tables.rows("activations") if r["arm"] == arm]
                      for arm in ("mutual_nearest", "random"))  # fmt: skip
    assert all(row["n_unmatched"] > 0 for row in partial)
    assert all(row["n_unmatched"] == 0 for row in whole)
    for row in whole:
        assert row["matching_score_matched"] == row["matching_score"]


def test_A14_recall_over_live_features_by_hand():
    truth = Match.from_columns(torch.tensor([0, 1, 2, -1, 4]), 5)
    match = Match.from_columns(torch.tensor([0, 2, 1, 3, 4]), 5)  # 0 and 4 are right
    fired = torch.tensor([3, 1, 0, 7, 2])  # live are 0, 1, 3 and 4; 3 has no true partner
    assert match.agreement(truth) == 2 / 4
    assert match.agreement(live_part(truth, fired)) == 2 / 3
    assert live_part(None, fired) is None
    assert live_part(truth, 0 * fired) is None


def test_A14_recall_is_over_features_of_the_source_that_fired(tiny, tmp_path, monkeypatch):
    lm = LmSource(str(tiny / "lm"), "tiny").load()
    source = SaeFolders(f"{tiny}/saes/layer_{{layer}}")
    saes = {SaeKey("default", layer): source.load(layer) for layer in (1, 2)}
    pair = Pair.of_layers(1, 2)
    match, truth = permutation(0), permutation(1)
    columns = torch.where(torch.arange(24) % 2 == 0, match.columns, truth.columns)
    truth = Match(torch.arange(24), columns, torch.ones(24).double(), 24, 24)  # half is found
    batches = tokenise(TextSet("t", tuple(TEXTS[2:3])), lm, 4).batches(1)
    matches = MatchSet((pair,), {"a": {pair: match}})
    subject = recorded(subject_of(saes, matches, folder=tmp_path), [CoActivation()], lm,
                       {"t": batches})  # fmt: skip
    (row,) = tables_of(subject, CoActivation()).rows("matches")
    assert row["recall_live"] is None
    with monkeypatch.context() as patch:
        patch.setattr(SaeFolders, "truth", lambda source, first, last: truth)
        (row,) = tables_of(subject, CoActivation()).rows("matches")
    live = subject.counts.fired(pair.source) > 0
    assert 0 < live.sum() < 24
    assert not torch.equal(live, subject.counts.fired(pair.target) > 0)
    right = match.columns == columns
    assert row["recall_live"] == pytest.approx((right & live).sum().item() / live.sum().item())


def test_A14_recall_over_live_features_is_in_a_run(cli, tmp_path):
    message, output = cli("evaluations=[co_activation]", "arms=[folded,random]", "layers=[3,4]",
                          "dataset.n_texts=2", "dataset.max_tokens=8", "logger=none", "run_id=a",
                          "trainer.accelerator=cpu", "figures=[]", base=[])  # fmt: skip
    assert message is None
    results = Results.load(tmp_path / "outputs/match/a/results.json")
    rows = {row["arm"]: row for row in results.tables.rows("matches")}
    assert rows["folded"]["n_live"] < 1024, "so that recall over live features is another number"
    assert 0.9 < rows["folded"]["recall_live"] <= 1
    share = rows["folded"]["recall_live"] * rows["folded"]["n_live"]
    assert share == pytest.approx(round(share)), "a share of the live features"
    assert results.metrics["recall_live/folded"] == rows["folded"]["recall_live"]
    means = {(r["metric"], r["arm"]): r["value"] for r in results.tables.rows("means")}
    assert means["recall_live", "random"] == rows["random"]["recall_live"]
    assert f"fired, mean over pairs: folded {rows['folded']['recall_live']:.3f}" in output.out


def test_B23_a_run_of_one_pair_draws_points_with_intervals(cli, tmp_path):
    message, _ = cli("layers=[1,2]", "logger=none", "run_id=a", "figures=null")
    assert message is None
    folder = tmp_path / "outputs/match/a/figures"
    names = {path.stem for path in folder.glob("*.svg")}
    assert names == {"norms", "mse", "matching", "explained_variance", "delta_loss"}
    tables = Results.load(folder.parent / "results.json").tables
    axis = FIGURES["explained_variance"](tables).axes[0]
    rows = tables.rows("strategies")
    points = [line.get_ydata()[0] for line in axis.lines if line.get_marker() not in ("None", "")]
    assert points == [row["explained_variance"] for row in rows]
    ends = [bar.get_segments()[0][:, 1].tolist() for bar in axis.collections]
    expected = [[row[f"explained_variance_{end}"] for end in ("low", "high")] for row in rows]
    assert ends == [pytest.approx(pair) for pair in expected]
    pairs = [line.get_xdata()[0] for line in axis.lines if line.get_marker() not in ("None", "")]
    assert len(set(pairs)) == len(rows), "side by side"


def test_B23_the_message_for_an_omitted_figure_names_its_needs(tmp_path, caplog):
    assert set(NEEDS) == set(FIGURES) | set(OF_TRAINING)
    pairs = (Pair.of_layers(0, 1, suite) for suite in ("x", "y"))
    matches = [{**pair.columns(), "arm": "folded", "value": 1.0} for pair in pairs]
    tables = Tables.of({"matches": matches, "layers": []})
    with caplog.at_level(logging.WARNING):
        assert draw_figures(tables, ["persistence"], tmp_path) == {}
    assert caplog.messages == [
        "figure persistence was not drawn: it needs source layers with several target layers "
        "(pairing=starts)"
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert draw_figures(tables, None, tmp_path) == {}
    assert caplog.messages[0].startswith("no figure was drawn: norms needs at least two layers")
