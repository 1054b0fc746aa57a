"""Runs with a matcher of several partners that a package outside this one brings."""

from collections import Counter

import pytest

from conftest import N_FEATURES, N_LAYERS
from matches import dense
from saematch.core.match import Match
from saematch.core.results import Results

PACKAGE = '''
from dataclasses import dataclass
from typing import ClassVar

import torch

from saematch.core.match import Match


@dataclass(frozen=True)
class TopK:
    """Each feature's k most similar ones, weighted by a softmax."""

    one_partner: ClassVar[bool] = False
    k: int = 3

    def __call__(self, factors):
        similarity, columns = (factors.X_A @ factors.X_B.T).topk(self.k, dim=1)
        columns, order = columns.sort(dim=1)
        weights = similarity.double().softmax(dim=1).gather(1, order)
        rows = torch.arange(len(columns)).repeat_interleave(self.k)
        sizes = len(factors.X_A), len(factors.X_B)
        return Match(rows, columns.flatten(), weights.flatten(), *sizes)


class Unsure(TopK):
    def __call__(self, factors):
        match = super().__call__(factors)
        weights = match.weights * torch.nan
        return Match(match.rows, match.columns, weights, match.n_source, match.n_target)


class Narrow(TopK):
    def __call__(self, factors):
        from saematch.matching.objectives.factors import Factors

        return super().__call__(Factors(factors.X_A, factors.X_B[1:]))


class Undeclared(TopK):
    one_partner: ClassVar[bool] = True
'''
ARM = """
{name}:
  _target_: saematch.matching.arm.Arm
  fold: threshold
  objective: ${{objective}}
  matcher: {{_target_: top_three.{matcher}}}
  compose: {compose}
  composed_entries: 4
  decode: [permute, permute_raw]
  quantiles: [0.5]
"""
PRESETS = ("--config-dir", "presets")


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """Write the package and one preset for each of its matchers."""
    (tmp_path / "top_three").mkdir()
    (tmp_path / "top_three/__init__.py").write_text(PACKAGE)
    (tmp_path / "presets/arms").mkdir(parents=True)
    for name, matcher, compose in (
        ("soft", "TopK", False),
        ("soft_composed", "TopK", True),
        ("unsure", "Unsure", False),
        ("narrow", "Narrow", False),
        ("undeclared", "Undeclared", False),
    ):
        text = ARM.format(name=name, matcher=matcher, compose=str(compose).lower())
        (tmp_path / f"presets/arms/{name}.yaml").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_matcher_of_several_partners_goes_through_a_whole_run(cli, outside, tmp_path):
    message, _ = cli(
        "arms=[soft,soft_composed,folded]", "pairing=starts",
        "pairing.starts=[0]", "evaluations=[co_activation,skipping,explain]",
        "explain=own", "judge=overlap",
        "judging.n_paths=5", "logger=csv", "run_id=a", "figures=null", *PRESETS,
    )  # fmt: skip
    assert message is None
    folder = tmp_path / "outputs/match/a"
    results = Results.load(folder / "results.json")
    tables = results.tables
    far = N_LAYERS - 1
    matches = {(r["target_layer"], r["arm"]): r for r in tables.rows("matches")}
    for (layer, arm), row in matches.items():
        match, _ = Match.load(folder / f"matches/{arm}/0-{layer}.safetensors")
        assert (row["n_matched"], row["n_entries"]) == (N_FEATURES, len(match.rows))
        n_entries = {"folded": 1, "soft": 3, "soft_composed": 3 if layer == 1 else 4}[arm]
        assert row["n_entries"] == n_entries * N_FEATURES
        assert row["dropped_mass"] == match.dropped
        assert (row["dropped_mass"] > 0) == (arm == "soft_composed" and layer > 1)
        assert row["matching_score_entries"] <= row["matching_score"]
        if arm == "soft":
            weights = dense(match).sum(dim=1).tolist()
            assert weights == pytest.approx([1.0] * N_FEATURES)
    assert matches[far, "soft_composed"]["agreement"] is not None
    assert all(0 <= results.metrics[f"matching_score_entries/{arm}"] <= 1 for arm in
               ("soft", "soft_composed", "folded"))  # fmt: skip
    cells = Counter(r["arm"] for r in tables.rows("strategies"))
    assert cells["soft"] == far * 2 * 2, "two strategies, whole and half"
    judged = Counter((r["arm"], r["target_layer"]) for r in tables.rows("judgements")
                     if r["role"] == "pair")  # fmt: skip
    assert judged["folded", far] * 3 == judged["soft", far] > 0


def test_paths_of_several_partners_are_followed_judged_and_drawn(
    cli, outside, tmp_path, real_figures
):
    real_figures()
    message, _ = cli(
        "arms=[soft,folded]", "evaluations=[co_activation,paths,explain]",
        "evaluations.paths.n_paths=3", "evaluations.paths.breadth=2",
        "explain=own", "judge=overlap", "logger=none",
        "run_id=a", "figures=[paths,explained_paths]", *PRESETS,
    )  # fmt: skip
    assert message is None
    folder = tmp_path / "outputs/match/a"
    tables = Results.load(folder / "results.json").tables
    n_rows = Counter((r["arm"], r["step"]) for r in tables.rows("paths"))
    assert [n_rows["folded", step] for step in range(3)] == [3, 3, 3]
    assert [n_rows["soft", step] for step in range(3)] == [9, 18, 18]
    for row in tables.rows("paths"):
        assert row["jaccard_low"] <= row["jaccard"] <= row["jaccard_high"]
        assert row["label"]
    judged = [r for r in tables.rows("judgements") if r["role"] == "pair"]
    assert len(judged) == len(tables.rows("paths"))
    assert (folder / "figures/paths.png").stat().st_size > 2000


def test_what_needs_one_partner_is_refused_before_work_begins(cli, outside, tmp_path):
    message, _ = cli("arms=[folded,soft]", "evaluations=[features]",
                     "logger=none", "run_id=a", *PRESETS)  # fmt: skip
    assert message == (
        "saematch: evaluations holds features, which gives each feature one error, but "
        "arms.soft.matcher, TopK, may give a feature several partners: leave features out, or "
        "choose another matcher for this arm"
    )
    assert not (tmp_path / "outputs/match/a").exists()


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ("unsure", "the matcher top_three.Unsure made no valid match: 72 weights"),
        ("narrow", "the matcher top_three.Narrow returned a match of 24 to 23 features for SAEs"),
        ("undeclared", "the matcher top_three.Undeclared gave some features several partners"),
    ],
)
def test_a_matcher_that_breaks_its_contract_is_named(cli, outside, arm, words):
    message, _ = cli(f"arms=[{arm}]", "logger=none", "run_id=a", *PRESETS)
    assert words in message
    assert "\n" not in message
