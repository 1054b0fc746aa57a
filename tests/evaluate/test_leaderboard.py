"""The leaderboard of a small run, which an arm from outside joins by one preset; and its page."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from matches import soft
from saematch import Arm, Optimal, Parts, Synchronise
from saematch.core.errors import InputError
from saematch.core.match import Match
from saematch.core.results import Results
from saematch.core.tables import rows_of
from saematch.evaluate.effects import ranked_partners
from saematch.evaluate.leaderboard import matcher_of, recall_among
from saematch.report.leaderboard_page import write_page
from saematch.sae.sources.source import ZooSaes

MINE = """\
mine:
  _target_: saematch.matching.arm.Arm
  fold: none
  objective: {_target_: saematch.matching.objectives.decoder_cosine.DecoderCosine}
  matcher: {_target_: saematch.matching.matchers.TopK, k: 5}
"""
SMALL = ("dataset.n_texts=6", "dataset.max_tokens=16", "logger=none", "trainer.accelerator=cpu",
         "calibration.share=0.5", "evaluations.verify.floor=1", "layers=[3,4,5]",
         "pairing.distances=[1,2]")  # fmt: skip
KEY = ["suites", "by", "part", "metric", "strategy", "k", "partners"]


@pytest.fixture
def results(cli, tmp_path):
    (tmp_path / "presets/arms").mkdir(parents=True)
    (tmp_path / "presets/arms/mine.yaml").write_text(MINE)
    arms = "arms=[cosine,folded,random,mine]"
    message, _ = cli("--config-dir", "presets", "+experiment=leaderboard", arms, *SMALL,
                     "run_id=chain", base=[])  # fmt: skip
    assert message is None
    return Results.load(Path("outputs/leaderboard/chain/results.json"))


def test_a_run_ranks_all_arms_and_an_arm_from_outside(results, tmp_path):
    tables = results.tables
    board = tables["leaderboard"]
    assert not board.duplicated([*KEY, "arm"]).any()
    assert set(board["arm"]) == {"cosine", "folded", "random", "mine"}
    check_means(tables, board)
    check_winners(tables, board)
    check_recall(board)
    costs = {row["arm"]: row for row in tables.rows("leaderboard_arms")}
    assert costs["mine"]["reads"] == "weights"
    assert costs["mine"]["matcher"] == "TopK(k=5)"
    of_mine = [row["seconds"] for row in tables.rows("match_costs") if row["arm"] == "mine"]
    assert costs["mine"]["seconds"] == pytest.approx(sum(of_mine) / 3)
    check_page(results, tmp_path)


def rows(board, **key):
    chosen = board
    for name, value in key.items():
        chosen = chosen[chosen[name].isna() if value is None else chosen[name] == value]
    return chosen


def check_means(tables, board):
    """Each value is the mean over the pairs of the part in the evaluations' own tables."""
    verify = tables["verify"]
    for k in (1, 5, 20):
        for arm in ("cosine", "mine") if k < 20 else ("cosine",):
            of_arm = verify[(verify["arm"] == arm) & (verify["k"] == k)]
            distance = of_arm["target_layer"] - of_arm["source_layer"]
            for by, part, chosen in (("all", "all", distance > 0), ("distance", "1", distance == 1),
                                     ("distance", "2", distance == 2)):  # fmt: skip
                for metric in ("off_rate", "effect", "mass"):
                    name = f"{metric}_over_random"
                    (row,) = rows(board, by=by, part=part, metric=name, k=k, arm=arm).to_dict(
                        "records"
                    )
                    assert row["value"] == pytest.approx(of_arm[chosen][name].mean())
    assert rows(board, metric="off_rate_over_random", k=20)["arm"].unique().tolist() == ["cosine"]
    strategies = tables["strategies"]
    for strategy in ("permute", "permute_raw", "increment"):
        of_cell = rows(strategies, arm="folded", strategy=strategy)
        (value,) = rows(board, by="all", metric="delta_loss", strategy=strategy, arm="folded")[
            "value"
        ]
        assert value == pytest.approx(of_cell["delta_loss"].mean())
    scores = tables["matches"]
    for arm, partners in (("folded", "one"), ("mine", "several")):
        (row,) = rows(board, by="all", metric="jaccard", arm=arm).to_dict("records")
        assert row["value"] == pytest.approx(scores[scores["arm"] == arm]["jaccard"].mean())
        assert row["partners"] == partners
    parts = board.groupby("by")["part"].unique().map(set).to_dict()
    assert parts == {
        "all": {"all"}, "distance": {"1", "2"}, "depth": {"early", "middle"},
        "pair": {"3→4", "4→5", "3→5"}, "stratum": {"1", "2", "3", "4"},
    }  # fmt: skip


def check_winners(tables, board):
    best = {}
    for row in rows_of(board):
        if row["rank"] == 1:
            best.setdefault(tuple(row[name] for name in KEY), []).append(row["arm"])
    winners = tables.rows("leaderboard_winners")
    assert {tuple(row[name] for name in KEY): row["arms"].split(", ") for row in winners} == best
    first = rows(board, by="all", metric="off_rate_over_random", k=1)
    assert set(first["against"]) == {"cosine"}
    assert first[first["arm"] == "random"]["rank"].item() == 4
    assert first[first["arm"] == "random"]["difference_high"].item() < 0


def check_recall(board):
    """Recall at k of the matches in the run's folder, one true pair after the other."""
    truths = ZooSaes("chain", 1024, 20)
    for arm, k in (("cosine", 1), ("cosine", 5), ("cosine", 20), ("mine", 5), ("folded", 1)):
        shares = []
        for source, target in ((3, 4), (4, 5), (3, 5)):
            file = f"outputs/leaderboard/chain/matches/{arm}/{source}-{target}.safetensors"
            partners = ranked_partners(Match.load(Path(file))[0])[:, :k]
            truth = truths.truth(source, target)
            pairs = zip(truth.rows.tolist(), truth.columns.tolist(), strict=True)
            hits = [target in partners[source].tolist() for source, target in pairs]
            shares.append(sum(hits) / len(hits))
        (row,) = rows(board, by="all", metric="recall_at", k=k, arm=arm).to_dict("records")
        assert row["value"] == pytest.approx(sum(shares) / 3)
        assert row["low"] is None or math.isnan(row["low"])


def check_page(results, tmp_path):
    run, page = Path("outputs/leaderboard/chain"), tmp_path / "matchers.md"
    write_page(page, [run])
    text = page.read_text()
    (row,) = rows(results.tables["leaderboard"], by="all", metric="off_rate_over_random", k=5,
                  arm="mine").to_dict("records")  # fmt: skip
    shown = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}] ({row['rank']})"
    assert shown in (tmp_path / "leaderboards.md").read_text()
    assert "| `mine` | DecoderCosine | TopK(k=5) | none | weights |" in text
    assert "\n- `TopK`: " in text
    described = text.partition("### Objectives")[2].partition("## How arms are ranked")[0]
    assert max(map(len, described.splitlines())) <= 110
    assert "no arm is better than `cosine` at one partner by its paired interval" in text
    assert "matchers_figures/chain.png" in text
    assert (tmp_path / "matchers_figures/chain.png").exists()
    write_page(page.with_suffix(".html"), [run])
    assert "<strong>" in page.with_suffix(".html").read_text()


def test_recall_at_k_of_a_match_with_several_partners():
    match = soft(0, 24, 24, k=3)
    truth = Match.from_columns(torch.arange(24).flip(0), 24)
    for k in (1, 3):
        partners = torch.from_numpy(ranked_partners(match))[:, :k]
        expected = [23 - row in partners[row].tolist() for row in range(24)]
        assert recall_among(partners[truth.rows], truth).item() == sum(expected) / 24


def test_the_page_tells_arms_with_the_same_classes_apart():
    arm = Arm("threshold", Parts(), Optimal())
    assert matcher_of(arm) == "Optimal"
    assert matcher_of(replace(arm, compose=True)) == "Optimal, composed"
    synchronised = replace(arm, synchronise=Synchronise(decay=0.25))
    assert matcher_of(synchronised) == "Optimal, Synchronise(decay=0.25)"


def test_a_run_without_the_evaluation_is_refused(tmp_path):
    Results("verify", {}, {}).save(tmp_path / "results.json")
    with pytest.raises(InputError, match="no results of the evaluation leaderboard"):
        write_page(tmp_path / "page.md", [tmp_path])
