"""Runs with arms that compare transported vectors."""

import json

from conftest import random_sae, write_sae

ARMS = ("arms=[cosine,transported_cosine]", "evaluations=[co_activation]", "logger=none")


def results_of(tmp_path, name):
    (path,) = (tmp_path / "outputs").rglob(f"*{name}*/results.json")
    return json.loads(path.read_text())


def test_a_run_splits_its_texts_and_reports_the_reached_error(cli, tmp_path):
    message, output = cli(*ARMS, "run_id=a")
    assert message is None
    results = results_of(tmp_path, "a")
    (facts,) = results["provenance"]["texts"].values()
    assert facts["n_calibration"] + facts["n_evaluation"] == 5
    gaps = results["provenance"]["jacobians"]
    layers = sorted(
        {(row["source_layer"], row["target_layer"]) for row in results["tables"]["matches"]}
    )
    assert [(gap["source"], gap["target"]) for gap in gaps] == layers
    assert all(gap["n_tokens"] > 2 and gap["relative_error"] > 0 for gap in gaps)
    assert "mean Jacobians have a relative standard error above" in output.out + output.err
    arms = {row["arm"] for row in results["tables"]["matches"]}
    assert arms == {"cosine", "transported_cosine"}
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "outputs/cache/jacobians").iterdir()}
    assert cli(*ARMS, "run_id=b")[0] is None
    assert results_of(tmp_path, "b")["provenance"]["jacobians"] == gaps
    assert files == {
        p: p.stat().st_mtime_ns for p in (tmp_path / "outputs/cache/jacobians").iterdir()
    }


def test_a_run_without_a_forward_path_is_refused_in_one_line(cli, tiny):
    message, _ = cli(
        "arms=[transported_cosine]", "evaluations=[]", "logger=none",
        "pairing=listed", "pairing.pairs=[2:1]",
    )  # fmt: skip
    assert "no block leads from layer 2 to layer 1" in message
    assert "\n" not in message


def test_two_language_models_are_refused_in_one_line(cli, tiny, tmp_path):
    """Also if the SAEs do not name their models."""
    for layer in (0, 1):
        write_sae(tmp_path / f"saes/layer_{layer}", random_sae(layer, layer=layer), "", layer)
    path = f'"{tmp_path}/saes/layer_{{layer}}"'
    saes = (f"sae.path={path}", "+sae@suites.wide=disk", f"suites.wide.path={path}")
    other = ("+model@models.wide=local", f"models.wide.path={tiny / 'lm'}", "models.wide.name=b")
    pairs = ("pairing=listed", "pairing.pairs=[default/0:wide/1]")
    message, _ = cli(*saes, *other, *pairs, "arms=[folded,transported_cosine]", "logger=none")
    assert message.startswith("saematch: arms.transported_cosine compares layer 0 and")
    assert "two language models" in message
    assert "\n" not in message


def test_a_tolerance_that_no_sample_reaches_is_refused(cli):
    message, _ = cli("arms=[transported]", "arms.transported.jacobian_tolerance=0", "logger=none")
    assert "jacobian_tolerance=0" in message
    assert "\n" not in message
