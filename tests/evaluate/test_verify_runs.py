"""Runs with ``verify``: what they split and record, and how they refuse bad input."""

import json

import pandas as pd
import pytest

from conftest import TEXTS, random_sae, write_sae

WORDS = sorted({word for text in TEXTS for word in text.split()})
VERIFY = ("evaluations=[verify]", "evaluations.verify.floor=1", "logger=none", "run_id=a")


@pytest.fixture
def texts(tmp_path):
    """Settings of 12 different texts."""
    lines = [" ".join(WORDS[n : n + 9] + WORDS[2 * n : 2 * n + 4]) for n in range(12)]
    path = tmp_path / "words.jsonl"
    path.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    return f"dataset.paths=[{path}]", "dataset.n_texts=12"


def test_a_run_splits_its_texts_and_fills_the_tables(cli, tmp_path, texts):
    settings = (
        "layers=[0,1]",
        "evaluations.verify.features=[3,7,23]",
        "evaluations.verify.n_events=9",
    )
    message, _ = cli(*texts, *VERIFY, "arms=[folded,written_share]", *settings)
    assert message is None
    (folder,) = (path.parent for path in tmp_path.rglob("results.json"))
    results = json.loads((folder / "results.json").read_text())
    (facts,) = results["provenance"]["texts"].values()
    assert (facts["n_calibration"], facts["n_evaluation"]) == (6, 6)
    tables = results["tables"]
    arms = {row["arm"] for row in tables["verify"]}
    assert {"folded", "written_share", "near miss", "learned", "best in hindsight"} <= arms
    assert {row["feature"] for row in tables["verify_features"]} == {3, 7, 23}
    assert {row["n_texts"] for row in tables["verify_counts"]} == {6}
    assert all(row["effect"] is not None for row in tables["matches"])
    frame = pd.read_parquet(next((folder / "evaluations/verify").glob("0-1*.parquet")))
    assert {"arm", "feature", "partner", "effect", "finding"} <= set(frame.columns)


def test_a_run_that_fits_nothing_reads_all_texts(cli, tmp_path, texts):
    message, _ = cli(*texts, "evaluations=[co_activation]", "logger=none", "layers=[0,1]")
    assert message is None
    (path,) = tmp_path.rglob("results.json")
    (facts,) = json.loads(path.read_text())["provenance"]["texts"].values()
    assert "n_calibration" not in facts
    rows = json.loads(path.read_text())["tables"]["matches"]
    assert all(row["matching_score"] is not None for row in rows)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("pairing=listed", "pairing.pairs=[2:1]", "arms=[folded]"), "layer 1 comes before"),
        (
            ("dataset.n_texts=1",),
            "has only 1 text (equal texts count once), and this run needs at least 2",
        ),
        (("evaluations.verify.partners=[30]", "arms=[folded]"), "more than 1 partners"),
        (("evaluations.verify.partners=[50]",), "partners=[50]: no match of this run gives"),
        (("evaluations.verify.features=[3,24]",), "holds 24, but the SAE of layer 0 has only"),
        (
            ("evaluations.verify.features=[0]", "evaluations.verify.n_events=1", "layers=[0,1]"),
            "in only 1 events",
        ),
        (
            ("evaluations.verify.floor=5000", "layers=[0,1]"),
            "in only 0 events on the evaluation texts, and at",
        ),
        (("calibration.share=1",), "calibration.share=1"),
        (("arms=[folded]", "objective=written_share", "matcher=scipy"), "matcher Scipy"),
    ],
)
def test_bad_input_is_refused_in_one_line(cli, texts, settings, words):
    message, _ = cli(*texts, *VERIFY, "arms=[written_share]", *settings)
    assert message is not None
    assert words in message
    assert "\n" not in message


def test_pairs_of_one_layer_of_two_suites_are_refused(cli, tiny, texts):
    wide = ("+sae@suites.wide=disk", f'suites.wide.path="{tiny}/saes/layer_{{layer}}"')
    message, _ = cli(*texts, *VERIFY, *wide, "pairing=same_layer", "pairing.target=wide")
    assert "so no block lies between them" in message
    assert "\n" not in message


@pytest.mark.parametrize("settings", [VERIFY, ("evaluations=[]", "arms=[written_share]")])
def test_another_site_is_refused(cli, tmp_path, texts, settings):
    for layer in (0, 1):
        folder = tmp_path / f"mlp/layer_{layer}"
        write_sae(folder, random_sae(layer, layer=layer), layer=layer)
        config = json.loads((folder / "cfg.json").read_text())
        config["metadata"]["hook_name"] = f"blocks.{layer}.hook_mlp_out"
        (folder / "cfg.json").write_text(json.dumps(config))
    message, _ = cli(*texts, *settings, f'sae.path="{tmp_path}/mlp/layer_{{layer}}"')
    assert "mlp_out" in message
    assert "\n" not in message


def test_two_language_models_are_refused(cli, tiny, texts):
    wide = ("+sae@suites.wide=disk", f'suites.wide.path="{tiny}/saes/layer_{{layer}}"')
    other = ("+model@models.wide=local", f"models.wide.path={tiny / 'lm'}", "models.wide.name=b")
    pairs = ("pairing=listed", "pairing.pairs=[default/0:wide/1]")
    message, _ = cli(*texts, *VERIFY, *wide, *other, *pairs)
    assert "two language models" in message
    assert "\n" not in message


def test_activity_of_two_language_models_is_refused(cli, tiny, tmp_path, texts):
    """Also if the SAEs do not name their models."""
    for layer in (0, 1):
        write_sae(tmp_path / f"saes/layer_{layer}", random_sae(layer, layer=layer), "", layer)
    path = f'"{tmp_path}/saes/layer_{{layer}}"'
    saes = (f"sae.path={path}", "+sae@suites.wide=disk", f"suites.wide.path={path}")
    other = ("+model@models.wide=local", f"models.wide.path={tiny / 'lm'}", "models.wide.name=b")
    pairs = ("pairing=listed", "pairing.pairs=[default/0:wide/1]")
    settings = ("evaluations=[]", "arms=[folded,written_share]", "logger=none")
    message, _ = cli(*texts, *settings, *saes, *other, *pairs)
    assert message.startswith("saematch: arms.written_share compares layer 0 and")
    assert "two language models" in message
    assert "\n" not in message
