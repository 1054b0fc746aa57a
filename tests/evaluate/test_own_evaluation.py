"""An evaluation from outside the package: its metric is defined once and used everywhere."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from conftest import TEXTS
from evaluations import recorded, subject_of, tables_of
from matches import permutation
from saematch.app.configuration import build
from saematch.core.columns import Column
from saematch.core.errors import InputError
from saematch.core.pairs import Pair, SaeKey
from saematch.core.results import Results
from saematch.core.specs import spec
from saematch.core.tables import Tables
from saematch.evaluate.evaluation import Evaluation
from saematch.evaluate.measures import Cell
from saematch.evaluate.metrics import mean
from saematch.lm.source import LmSource
from saematch.matching.matches import MatchSet
from saematch.report.summary import history_by_layer
from saematch.runs.run import run
from saematch.sae.sources.disk import SaeFolders
from saematch.texts.sources import TextSet
from saematch.texts.tokens import tokenise

NORM_RATIO = Column(
    "norm_ratio", "ratio of norms", "lower", least=0.0, interval=True, logged=("matches",),
    meaning="mean over tokens of the norm of the target's hidden state over that of the source",
)  # fmt: skip


@dataclass(frozen=True)
class NormRecorder:
    """Records, by text, how the norm of the hidden state grows between the layers of pairs."""

    folder: Path
    pairs: tuple[Pair, ...]
    runs_model: ClassVar[bool] = False

    def needs(self):
        return {pair: frozenset(pair) for pair in self.pairs}

    def only(self, items):
        return NormRecorder(self.folder, tuple(pair for pair in self.pairs if pair in items))

    def facts(self):
        return [list(self.pairs)]

    def record(self, forward):
        n_texts = len(forward.batch.ids)
        sums = {"n_tokens": torch.bincount(forward.text, minlength=n_texts)}
        for pair in self.pairs:
            source, target = (forward.x(key).double().norm(dim=1) for key in pair)
            total = torch.zeros(n_texts, dtype=torch.float64)
            sums[pair.label] = total.index_add(0, forward.text, target / source)
        return sums

    def join(self, first, second, n_texts):
        return {name: torch.cat([value, second[name]]) for name, value in first.items()}


@spec("evaluations.norms")
class Norms(Evaluation):
    """How the norm of the hidden state grows from the source to the target."""

    columns: ClassVar[tuple[Column, ...]] = (NORM_RATIO,)
    reads_texts: ClassVar[bool] = True

    def refusal(self, facts):
        return "it begins at layer 1" if facts.pair.source.layer == 1 else None

    def recorder(self, subject):
        return NormRecorder(subject.folder, subject.matches.pairs)

    def tables(self, subject, recording):
        sums, rows = recording.sums(), []
        n_tokens = torch.cat([of_set["n_tokens"] for of_set in sums.values()])
        for pair in subject.matches.pairs:
            total = torch.cat([of_set[pair.label] for of_set in sums.values()])
            values = mean(subject.measures.weights_of("all"), total, n_tokens)
            for arm in subject.matches.of(pair):
                row = subject.measures.row(Cell(pair, arm, "all"), {NORM_RATIO: values})
                rows.append({name: value for name, value in row.items() if name != "dataset"})
        return Tables.of({"matches": rows})


class Alone(Norms):
    """Leaves out every pair."""

    def refusal(self, facts):
        return "it takes none"


class Unread(Norms):
    """Has a recorder, and does not say that it reads texts."""

    reads_texts = False


class Clashing(Evaluation):
    """Adds a column that the run's own table has."""

    def tables(self, subject, recording):
        rows = [{**pair.columns(), "mse_W_dec": 0.0} for pair in subject.matches.pairs]
        return Tables.of({"matches": rows})


class Repeating(Evaluation):
    """Adds two rows for each row of the run's own table."""

    def tables(self, subject, recording):
        rows = [{**pair.columns(), "x": 0.0} for pair in subject.matches.pairs]
        return Tables.of({"matches": [*rows, *rows]})


@pytest.fixture
def built(tiny, tmp_path, monkeypatch):
    """Build a run that co-activation and an evaluation of this file are asked in."""
    from conftest import tiny_overrides

    monkeypatch.chdir(tmp_path)

    def build_run(cls, *more):
        overrides = [*tiny_overrides(tiny), "evaluations=[co_activation]", "arms=[folded]"]
        overrides += [f"+evaluations.own._target_={__name__}.{cls}", *more]
        return build([*overrides, "layers=[0,1,2]", "logger=none", "figures=[]"])

    return build_run


def test_an_evaluation_that_leaves_out_every_pair_of_a_run_has_no_tables(built, tmp_path):
    results = run(*built("Alone"), tmp_path / "run")
    assert "norm_ratio" not in results.tables["matches"]
    assert {row["evaluation"] for row in results.tables.rows("refused")} == {"own"}


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        ("Unread", "evaluations.own has a recorder, so Unread must set reads_texts = True"),
        (
            "Clashing",
            "evaluation own: the new columns .* the table has mse_W_dec already",
        ),
        ("Repeating", "evaluation own: .* several rows have source_suite default, source_layer 0"),
    ],
)
def test_a_mistake_in_an_evaluation_is_named(built, tmp_path, cls, reason):
    with pytest.raises(InputError, match=reason):
        run(*built(cls), tmp_path / "run")


def test_two_evaluations_of_one_class_are_refused(built):
    second = f"+evaluations.again._target_={__name__}.Norms"
    with pytest.raises(
        InputError, match=r"evaluations.own and evaluations.again are both of class Norms"
    ):
        built("Norms", second)


@pytest.fixture
def ratios(tiny):
    """Mean ratio of each pair of neighbours, by a plain forward of each text."""
    lm = LmSource(str(tiny / "lm"), "tiny").load()
    ratios = {pair: [] for pair in (Pair.of_layers(0, 1), Pair.of_layers(1, 2))}
    for text in TEXTS:
        ids = lm.tokenizer(text, add_special_tokens=False).input_ids
        states, _ = lm.capture(torch.tensor([[lm.tokenizer.bos_token_id, *ids]]), (0, 1, 2))
        for pair, of_pair in ratios.items():
            source, target = (states[key.layer][0, 1:].norm(dim=1) for key in pair)
            of_pair.append(target / source)
    return {pair: torch.cat(of_pair).mean().item() for pair, of_pair in ratios.items()}


def test_its_tables_and_means(tiny, tmp_path, ratios):
    lm = LmSource(str(tiny / "lm"), "tiny").load()
    source = SaeFolders(f"{tiny}/saes/layer_{{layer}}")
    saes = {SaeKey("default", layer): source.load(layer) for layer in (0, 1, 2)}
    matches = MatchSet(tuple(ratios), {"a": dict.fromkeys(ratios, permutation(0))})
    tokens = {"t": tokenise(TextSet("t", tuple(TEXTS)), lm, 60).batches(2)}
    subject = recorded(subject_of(saes, matches, folder=tmp_path), [Norms()], lm, tokens)
    rows = tables_of(subject, Norms()).rows("matches")
    assert [row["norm_ratio"] for row in rows] == pytest.approx(list(ratios.values()), rel=1e-5)
    (mean_row,) = subject.measures.mean_rows()
    assert mean_row["value"] == pytest.approx(sum(ratios.values()) / 2, rel=1e-5)
    assert 0 < mean_row["low"] < mean_row["value"] < mean_row["high"]


def test_a_run_has_its_metric_everywhere(tiny, tmp_path, monkeypatch, ratios):
    monkeypatch.chdir(tmp_path)
    from conftest import tiny_overrides

    overrides = [*tiny_overrides(tiny), "evaluations=[co_activation]", "arms=[folded,random]"]
    target = f"+evaluations.norms._target_={__name__}.Norms"
    experiment, config = build([*overrides, target, "layers=[0,1,2]", "logger=none", "figures=[]"])
    assert experiment.evaluations["norms"] == Norms()
    run(experiment, config, tmp_path / "run")
    results = Results.load(tmp_path / "run/results.json")
    tables = results.tables
    assert tables.column("norm_ratio") == NORM_RATIO
    rows = tables.rows("matches")
    first, second = ratios
    for row in rows:
        if row["source_layer"] == 0:
            assert row["norm_ratio"] == pytest.approx(ratios[first], rel=1e-5)
            assert row["norm_ratio_low"] < row["norm_ratio"] < row["norm_ratio_high"]
        else:
            assert row["norm_ratio"] is None, "the evaluation leaves the pair out"
        assert row["matching_score"] is not None
        assert row["mse_W_dec"] is not None
    assert [row["arm"] for row in rows] == ["folded", "random"] * 2
    (refusal,) = tables.rows("refused")
    assert (refusal["evaluation"], refusal["source_layer"]) == ("norms", second.source.layer)
    means = [row for row in tables.rows("means") if row["metric"] == "norm_ratio"]
    assert [(row["arm"], row["dataset"], row["n_pairs"]) for row in means] == [
        ("folded", "all", 1),
        ("random", "all", 1),
    ]
    assert means[0]["value"] == rows[0]["norm_ratio"]
    assert means[0]["low"] == pytest.approx(rows[0]["norm_ratio_low"], rel=1e-12)
    history = history_by_layer(tables)
    assert history[1]["norm_ratio/folded"] == rows[0]["norm_ratio"]
    assert "norm_ratio/folded" not in history[2]
    assert results.metrics["norm_ratio/random"] == rows[1]["norm_ratio"]


@spec("evaluations.other_recall")
class OtherRecall(Evaluation):
    """An evaluation whose metric has the name of one of saematch."""

    columns: ClassVar[tuple[Column, ...]] = (Column("recall", "recall of mine"),)


def test_a_metric_with_two_definitions_is_refused(tiny):
    from conftest import tiny_overrides

    target = f"+evaluations.other_recall._target_={__name__}.OtherRecall"
    with pytest.raises(InputError, match="other_recall defines the metric recall, which saematch"):
        build([*tiny_overrides(tiny), target])
