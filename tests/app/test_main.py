"""The command line on the tiny model: what it writes, and how it refuses."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import N_FEATURES, N_LAYERS, random_sae, write_sae
from saematch.core.match import Match
from saematch.core.results import Results


def whole_files_only(folder):
    return not [p for p in folder.rglob("*") if p.name.endswith(".part")]


def test_a_run_writes_what_it_promises(cli, tmp_path, real_figures):
    real_figures()
    message, output = cli("+experiment=skip_layers", "dataset.n_texts=5", "run_id=a", "logger=csv",
                          "figures=null")  # fmt: skip
    assert message is None
    folder = tmp_path / "outputs/skip_layers/a"
    results = json.loads((folder / "results.json").read_text())
    assert {"status", "name", "metrics", "tables", "config", "provenance"} <= results.keys()
    assert results["status"] == "finished"
    pairs = N_LAYERS - 1
    arms = ["folded", "unfolded", "identity", "random"]
    rows = results["tables"]["matches"]
    assert [r["arm"] for r in rows] == arms * pairs
    columns = {"source_layer", "target_layer", "arm", "mse_W_enc", "mse_b_enc", "mse_W_dec",
              "recall", "matching_score", "value", "bound", "chance", "gap",
              "gap_over_chance"}  # fmt: skip
    assert all(columns <= row.keys() for row in rows)
    solved = [row for row in rows if row["arm"] in ("folded", "unfolded")]
    assert all(0 <= row["gap_over_chance"] <= 1e-6 for row in solved)
    strategies = results["tables"]["strategies"]
    assert len(strategies) == pairs * (4 + 2 + 3), "permute in 4 arms, raw in 2, 3 without a match"
    assert {"arm", "dataset", "strategy", "explained_variance", "delta_loss"} <= strategies[
        0
    ].keys()
    mean, largest = (results["metrics"][f"{m}/folded"] for m in ("gap_over_chance", "optimal_to"))
    assert mean <= largest <= 1e-6
    assert "optimal_to/random" not in results["metrics"]
    assert results["provenance"]["saes"]["0"]["revision"].startswith("sha256:")
    assert results["provenance"]["part_weights"]["folded"] == {
        "W_dec": 1.0,
        "W_enc": 1.0,
        "b_enc": 1.0,
    }
    assert results["provenance"]["model"]["revision"].startswith("sha256:")
    assert results["provenance"]["model"]["dtype"] == "float32"
    assert results["provenance"]["texts"]["texts"]["sha256"].startswith("sha256:")
    assert all(row["value"] is not None for row in rows)
    for name in ("mse", "matching", "explained_variance", "delta_loss"):
        for suffix in ("png", "svg"):
            assert (folder / "figures" / f"{name}.{suffix}").stat().st_size > 2000
    assert len(list((folder / "matches").rglob("*.safetensors"))) == 4 * pairs
    assert (folder / "csv" / "metrics.csv").exists()
    assert (folder / "csv" / "matches.csv").exists()
    assert (folder / "saematch.log").exists()
    assert str(folder.relative_to(tmp_path) / "results.json") in output.out
    assert whole_files_only(folder)


def rows_by_table(results):
    return {name: results.tables.rows(name) for name in results.tables}


def test_the_same_seed_gives_the_same_numbers_and_a_rerun_solves_nothing(cli, tmp_path):
    cli("run_id=a", "logger=none")
    cli("run_id=b", "logger=none")
    first, second = (
        Results.load(tmp_path / f"outputs/match/{run}/results.json") for run in ("a", "b")
    )
    assert rows_by_table(first) == rows_by_table(second)
    matches = sorted((tmp_path / "outputs/match/a/matches").rglob("*.safetensors"))
    times = [path.stat().st_mtime_ns for path in matches]
    message, output = cli("run_id=a", "logger=none")
    assert message is None
    assert [path.stat().st_mtime_ns for path in matches] == times
    assert "9 matches: 0 solved, 9 found in outputs/cache/matches" in output.err
    again = Results.load(tmp_path / "outputs/match/a/results.json")
    assert rows_by_table(again) == rows_by_table(first)


def test_settings_reach_the_run(cli, tmp_path):
    message, _ = cli(
        "run_id=a",
        "logger=none",
        "layers=[0,2,3]",
        "objective=decoder",
        "arms=[unfolded]",
        "evaluations=[]",
        "seed=7",
    )
    assert message is None
    results = Results.load(tmp_path / "outputs/match/a/results.json")
    pairs = [(row["source_layer"], row["target_layer"]) for row in results.tables.rows("matches")]
    assert pairs == [(0, 2), (2, 3)]
    assert results.provenance["seed"] == 7
    assert results.provenance["part_weights"]["unfolded"]["W_enc"] == 0.0
    assert "strategies" not in results.tables


@pytest.mark.parametrize(
    ("chosen", "spins"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_without_work_wait_briefly_unless_the_user_chose(cli, monkeypatch, chosen, spins):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # restored at the end
        monkeypatch.delenv(name)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    cli("--version", base=[])
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_a_folder_of_another_run_is_refused(cli, tmp_path):
    cli("run_id=a", "logger=none", "evaluations=[]")
    message, _ = cli("run_id=a", "logger=none", "evaluations=[]", "objective=decoder")
    assert "contains a run with other settings (objective.W_enc: 1.0 -> 0.0" in message
    results = Results.load(tmp_path / "outputs/match/a/results.json")
    assert results.status == "finished", "what was there is kept"
    assert results.tables.rows("matches")


def damage(tmp_path, tiny, change):
    """Copy the tiny SAEs, spoil layer 1, return the setting that uses the copy."""
    shutil.copytree(tiny / "saes", tmp_path / "saes")
    path = tmp_path / "saes/layer_1/sae_weights.safetensors"
    change(path)
    return f'sae.path="{tmp_path}/saes/layer_{{layer}}"'


def with_tensor(name, index, value):
    def change(path):
        tensors = load_file(path)
        tensors[name].view(-1)[index] = value
        save_file(tensors, path)

    return change


def truncate(path):
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_tensor("W_dec", 5, float("nan")), "W_dec holds 1 values"),
        (with_tensor("threshold", 4, 0.0), "1 of 24 thresholds are zero or negative (features 4)"),
        (truncate, "is damaged or incomplete"),
    ],
)
def test_spoilt_saes_are_refused(cli, tiny, tmp_path, change, words):
    message, _ = cli(damage(tmp_path, tiny, change), "logger=none", "run_id=a")
    assert words in message
    assert "\n" not in message
    assert not (tmp_path / "outputs/match/a").exists(), "the run did no work"
    assert whole_files_only(tmp_path)


def test_saes_of_another_size_or_model_are_refused(cli, tiny, tmp_path):
    shutil.copytree(tiny / "saes", tmp_path / "saes")
    path = f'sae.path="{tmp_path}/saes/layer_{{layer}}"'
    write_sae(tmp_path / "saes/layer_1", random_sae(1, d_model=8), layer=1)
    message, _ = cli(path, "logger=none", "run_id=a")
    assert "the SAE of layer 1 has d_model 8, but the language model tiny has 16" in message
    for layer in range(N_LAYERS):
        write_sae(tmp_path / f"saes/layer_{layer}", random_sae(layer), "gpt2", layer)
    message, _ = cli(path, "logger=none", "run_id=b")
    assert "trained on gpt2, but the language model is tiny" in message
    for layer in range(N_LAYERS):
        write_sae(tmp_path / f"saes/layer_{layer}", random_sae(layer, d_model=8), layer=layer)
    message, _ = cli(path, "logger=none", "run_id=c")
    assert "the SAE of layer 0 has d_model 8, but the language model tiny has 16" in message


def test_saes_that_do_not_fit_are_refused_before_the_weights_of_the_model_are_read(
    cli, tiny, tmp_path
):
    shutil.copytree(tiny / "lm", tmp_path / "lm")
    (tmp_path / "lm/model.safetensors").unlink()
    for layer in range(N_LAYERS):
        write_sae(tmp_path / f"saes/layer_{layer}", random_sae(layer, d_model=8), layer=layer)
    path = f'sae.path="{tmp_path}/saes/layer_{{layer}}"'
    message, _ = cli(path, f"model.path={tmp_path / 'lm'}", "model.name=tiny", "logger=none")
    assert "the SAE of layer 0 has d_model 8, but the language model tiny has 16" in message


def test_released_saes_are_not_fetched_for_the_embedded_model(cli):
    message, _ = cli("logger=none", base=["sae=gemma_scope_2b", "evaluations=[skipping]"])
    assert "trained on gemma-2-2b, but the language model is the embedded one" in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["layers=[0,9]"], "no SAE for layer 9"),
        (["layers=[2]"], "at least two layers"),
        (["+foo=1"], "there is no setting 'foo'"),
        (["trainer.precision=bf16-true"], "set model.dtype=bfloat16"),
        (["trainer.devices=2"], "needs trainer.strategy=ddp_spawn"),
        (["sae.path=x/{layer}"], "a value with other characters needs quotes"),
        (["dataset.paths=[a/x.jsonl,b/x.jsonl]"], "cannot read the texts in a/x.jsonl"),
        (["lay=[0]"], "there is no setting 'lay'; did you mean layers?"),
        (["sae.widht=3"], "there is no setting 'sae.widht'"),
        (
            ["objective=everything"],
            "there is no objective=everything: choose one of both, cosine, decoder, encoder",
        ),
        (["arms=[foldd]"], "there is no arms=foldd; did you mean folded? Choose among "),
        (["matcher=optimall"], "there is no matcher=optimall; did you mean optimal? Choose one"),
        (["layers=[0,1"], "cannot parse layers=[0,1: check its brackets"),
        (["evaluations=[nothing]"], "there is no evaluations=nothing: choose among co_activation"),
        (["evaluations.paths.n_paths=3"], "n_paths: the evaluation paths is not chosen"),
        (["evaluations.skipping.strategies=[skip]"], "unknown strategy 'skip'"),
        (["dataset.max_tokens=2"], "at least 3"),
        (["dataset.paths=[none.jsonl]"], "cannot read the texts in none.jsonl"),
        (["model.path=/nowhere"], "cannot load the language model '/nowhere'"),
        (["objective.W_dec=-1.0"], "must be finite, not negative"),
        (["arms.folded.fold=theta"], "unknown fold 'theta'"),
        (["trainer.batch_size=0"], "batch_size=0"),
        (['sae.path="/nowhere/layer_{layer}"'], "matches no SAE: the folder / contains"),
        (["sae.path=/nowhere"], "must contain {layer} once"),
    ],
)
def test_bad_settings_end_in_one_line(cli, tmp_path, settings, words):
    message, output = cli(*settings, "logger=none", "run_id=a")
    assert message is not None
    assert words in message
    assert "\n" not in message
    assert "Error executing job" not in output.err
    assert whole_files_only(tmp_path)


def test_a_zoo_width_that_is_not_there_lists_those_that_are(cli):
    message, _ = cli("sae.width=512", "logger=none", base=["sae=chain"])
    assert "sae=chain sae.width=1024 sae.sparsity=20" in message
    message, _ = cli("sae.sparsity=7", "logger=none", base=["sae=independent"])
    assert "sae=independent sae.width=1024 sae.sparsity=40" in message


def test_texts_that_are_empty_or_too_short_are_refused(cli, tmp_path):
    (tmp_path / "short.jsonl").write_text('{"text": "x"}\n')
    message, _ = cli("dataset.paths=[short.jsonl]", "dataset.n_texts=1", "logger=none")
    assert "short.jsonl, line 1: 'x' has 2 tokens, of which 1 count" in message
    (tmp_path / "empty.jsonl").write_text("")
    message, _ = cli("dataset.paths=[empty.jsonl]", "dataset.n_texts=1", "logger=none")
    assert "'empty' is empty" in message


def test_an_output_folder_that_cannot_be_written(cli, tmp_path):
    (tmp_path / "outputs").write_text("a file is in the way")
    message, _ = cli("logger=none")
    assert "outputs" in message
    assert "\n" not in message


def test_a_match_file_that_was_cut_off_is_made_again(cli, tmp_path):
    cli("run_id=a", "logger=none", "evaluations=[]")
    path = tmp_path / "outputs/match/a/matches/folded/0-1.safetensors"
    shared = next((tmp_path / "outputs/cache/matches").glob("*.safetensors"))
    for damaged in (path, shared):
        whole = Match.load(damaged)[0].hash
        damaged.write_bytes(damaged.read_bytes()[:-10])
        message, output = cli("run_id=a", "logger=none", "evaluations=[]")
        assert message is None
        assert output.err.count(" is damaged (") == 1
        assert f"{damaged.relative_to(tmp_path)} is damaged (it" in output.err
        assert Match.load(damaged)[0].hash == whole


def test_matching_depends_on_nothing_but_its_inputs():
    """Random numbers drawn elsewhere do not reach the random baseline."""
    from saematch.matching.matchers import Random
    from saematch.matching.objectives.parts import Parts

    factors = Parts().factors(random_sae(0), random_sae(1))
    match = Random(3)(factors)
    torch.rand(10)
    assert torch.equal(match.columns, Random(3)(factors).columns)


def test_two_text_files_of_one_name_are_refused(cli, tmp_path, tiny):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(tiny / "texts.jsonl", tmp_path / folder)
    message, _ = cli("dataset.paths=[a/texts.jsonl,b/texts.jsonl]", "logger=none", "run_id=a")
    assert "two text sets have the same name" in message


def test_texts_longer_than_the_model_takes_are_cut_with_a_warning(cli, tmp_path):
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": "the model " * 60}))
    settings = ("dataset.paths=[long.jsonl]", "dataset.n_texts=1", "logger=none", "run_id=a")
    message, output = cli(*settings)
    assert message is None
    assert "texts are cut at 64 tokens, the most that tiny takes, instead of" in output.err
    texts = Results.load(tmp_path / "outputs/match/a/results.json").provenance["texts"]
    assert texts["long"]["max_tokens"] == 64


def test_a_truncated_language_model_is_refused(cli, tiny, tmp_path):
    shutil.copytree(tiny / "lm", tmp_path / "lm")
    truncate(tmp_path / "lm/model.safetensors")
    message, _ = cli(f"model.path={tmp_path / 'lm'}", "logger=none", "run_id=a")
    assert "cannot load the language model" in message


def test_half_precision_gives_nearly_the_same(cli, tmp_path):
    """Sums stay in float64: only the language model's own rounding is left."""
    runs = {
        "full": [],
        "dtype": ["model.dtype=bfloat16"],
        "mixed": ["trainer.precision=bf16-mixed"],
    }
    tables = {}
    for name, settings in runs.items():
        cli(f"run_id={name}", "logger=none", "arms=[folded]", *settings)
        tables[name] = Results.load(tmp_path / f"outputs/match/{name}/results.json").tables
    full = tables["full"]
    for half in (tables["dtype"], tables["mixed"]):
        for row, exact in zip(half.rows("strategies"), full.rows("strategies"), strict=True):
            assert row["loss"] == pytest.approx(exact["loss"], rel=0.03)
            assert row["n_tokens"] == exact["n_tokens"]
        for row, exact in zip(half.rows("layers"), full.rows("layers"), strict=True):
            assert row["mean_norm"] == pytest.approx(exact["mean_norm"], rel=0.01)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_any_work(cli, tmp_path):
    message, output = cli("trainer=gpu", "logger=none", "run_id=a", "trainer.accelerator=gpu")
    assert message.startswith("saematch: trainer.accelerator=gpu, trainer.devices=1: ")
    assert "load SAEs" not in output.err and "device: gpu" not in output.err
    assert not (tmp_path / "outputs/match/a").exists()


def test_partial_greedy_and_mutual_matches_are_evaluated_like_any_other(cli, tmp_path):
    message, _ = cli(
        "run_id=a", "logger=none", "matcher=partial", "arms=[folded,greedy,mutual_nearest]",
        "+matcher.time_limit=60.0", "figures=null",
    )  # fmt: skip
    assert message is None
    results = json.loads((tmp_path / "outputs/match/a/results.json").read_text())
    rows = results["tables"]["matches"]
    matched = {arm: [r["n_matched"] for r in rows if r["arm"] == arm] for arm in ARMS_OF_PARTS}
    assert all(n == N_FEATURES for n in matched["greedy"])
    assert all(0 < n < N_FEATURES for n in matched["mutual_nearest"])
    assert any(n < N_FEATURES for n in matched["folded"])
    assert all(r["bound"] is None for r in rows if r["arm"] != "folded")
    assert results["metrics"]["optimal_to/folded"] <= 1e-6
    strategies = results["tables"]["strategies"]
    assert {r["arm"] for r in strategies} > set(ARMS_OF_PARTS)
    assert all(r["explained_variance"] is not None for r in strategies)


ARMS_OF_PARTS = ("folded", "greedy", "mutual_nearest")


def test_tolerance_0_is_a_setting_of_the_command_line(cli, tmp_path):
    message, output = cli(
        "run_id=a", "logger=none", "evaluations=[]", "arms=[folded]", "matcher.tolerance=0.0"
    )
    assert message is None
    results = json.loads((tmp_path / "outputs/match/a/results.json").read_text())
    assert results["metrics"]["optimal_to/folded"] < 1e-14
    assert "every match of folded is proven optimal" in output.out


def test_layers_of_different_widths(cli, tiny, tmp_path):
    """Each feature of the narrower layer gets a partner; the baselines too."""
    shutil.copytree(tiny / "saes", tmp_path / "saes")
    shutil.rmtree(tmp_path / "saes/layer_1")
    write_sae(tmp_path / "saes/layer_1", random_sae(1, n_features=40), layer=1)
    message, _ = cli(
        "run_id=a",
        "logger=none",
        f'sae.path="{tmp_path}/saes/layer_{{layer}}"',
        "arms=[folded,random,greedy]",
    )
    assert message is None
    results = json.loads((tmp_path / "outputs/match/a/results.json").read_text())
    assert all(row["n_matched"] == N_FEATURES for row in results["tables"]["matches"])
    assert results["metrics"]["optimal_to/folded"] <= 1e-6
