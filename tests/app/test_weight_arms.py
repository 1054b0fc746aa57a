"""Runs with the arms whose objectives read weights, or whose matchers take candidates."""

import pytest

from saematch.core.results import Results

ARMS = (
    "encoder_decoder_cosine", "read_write", "sparse_map", "sparse_map_reverse", "cosine_nnls",
    "optimal_written_share",
)  # fmt: skip


@pytest.mark.slow
def test_every_arm_runs_in_every_evaluation(cli, tmp_path):
    evaluations = "evaluations=[skipping,co_activation,verify,paths]"
    message, _ = cli(f"arms=[{','.join(ARMS)}]", evaluations, "logger=none", "run_id=a")
    assert message is None
    tables = Results.load(tmp_path / "outputs/match/a/results.json").tables
    for name in ("matches", "strategies", "verify", "paths"):
        assert set(ARMS) <= {row["arm"] for row in tables.rows(name)}, name
    for row in tables.rows("matches"):
        assert row["arm"] != "optimal_written_share" or row["value"] == row["bound"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["matcher=top_k", "matcher.k=25"],
         "arms.folded: matcher.k=25 is more than the 24 features of the target SAE"),
        (["objective=sparse_map", "matcher=partial"], "set matcher.unmatched to a number"),
        (["objective=sparse_map", "matcher=top_k", "matcher.weights=nnls"],
         "set matcher.weights=score"),
        (["objective=sparse_map", "objective.entries=65"], "objective.entries=65 vectors"),
        (["objective=sparse_map", "matcher=scipy"], "choose a matcher that takes candidates"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused_before_work_begins(cli, tmp_path, settings, words):
    message, _ = cli("arms=[folded]", "evaluations=[]", "logger=none", "run_id=a", *settings)
    assert words in message and "\n" not in message
    assert not (tmp_path / "outputs/match/a").exists()
