"""Whole runs that match by explanations, from each source, and what they refuse before work."""

import json
from pathlib import Path

import pytest

from chat.embedding_server import EmbeddingServer
from chat.judge_server import JudgeServer
from conftest import N_FEATURES, N_LAYERS, random_sae, write_sae
from saematch.core.results import Results
from saematch.runs.resuming import settings_of

QUIET = ["logger=none", "intervals.n_replicates=20", "layers=[1,2]"]


@pytest.fixture
def labels(tmp_path):
    """Write explanations: those of layer 1 by one explainer, of layer 2 by two; some have none."""
    path = tmp_path / "labels.jsonl"
    lines = [
        {"layer": layer, "feature": feature, "text": f"word{'a' * (feature % 7)} kind{feature % 3}",
         "explainer": "first" if layer < 2 or feature % 2 else "second"}
        for layer in range(N_LAYERS)
        for feature in range(N_FEATURES)
        if feature != 5
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)))
    return f"explain=jsonl explain.path={path}".split()


@pytest.fixture
def server():
    server = EmbeddingServer()
    yield server
    server.close()


def endpoint(url, *settings):
    """Return the settings of an arm whose embeddings a server makes."""
    arm = "+arms.mine={_target_: saematch.matching.arm.Arm, fold: decoder_norm, objective: "
    objective = "{_target_: saematch.matching.objectives.explanation_cosine.ExplanationCosine, "
    embedding = "embedding: {_target_: saematch.chat.embeddings.EmbeddingEndpoint, model: m, "
    of_server = f"base_url: '{url}', retries: 0" + "}}, "
    matcher = "matcher: {_target_: saematch.matching.matchers.TopK, k: 2}}"
    return [arm + objective + embedding + of_server + matcher, *settings]


def results_of(run_id="a"):
    return Results.load(Path(f"outputs/match/{run_id}/results.json"))


def test_a_run_matches_by_files_and_measures_the_likeness_of_every_arm(cli, labels):
    arms = "arms=[explanations,cosine,random]"
    message, output = cli(*QUIET, *labels, arms, "evaluations=[likeness]", "run_id=a")
    assert message is None
    assert "Likeness of the explanations of matched features (of random pairs)" in output.out
    assert "2 explainers" in output.out
    results = results_of()
    rows = {(row["arm"], row["explainers"]): row for row in results.tables.rows("likeness")}
    assert set(rows) == {(arm, kind) for arm in ("explanations", "cosine", "random")
                         for kind in ("same", "different")}  # fmt: skip
    for kind in ("same", "different"):
        best, random = rows["explanations", kind], rows["random", kind]
        assert best["likeness"] > best["likeness_random"]
        assert best["likeness"] > random["likeness"]
    n_entries = [rows["random", kind]["n_entries"] for kind in ("same", "different")]
    assert N_FEATURES - 2 <= sum(n_entries) <= N_FEATURES - 1, "features 5 have no explanation"
    assert {"likeness", "likeness_random"} <= set(results.tables.columns)
    matched = {row["arm"]: row["n_matched"] for row in results.tables.rows("matches")}
    assert matched["explanations"] == N_FEATURES - 1
    settings = results.provenance["part_weights"]["explanations"]
    assert settings == {"embedding": {}, "n_candidates": 256}
    cli(*QUIET, *labels, arms, "evaluations=[]", "run_id=b")
    assert results_of("b").provenance["matches"] == {"read": 3}


def test_explanations_from_the_runs_texts_are_those_of_calibration_texts(cli):
    """Every evaluation takes the match, and likeness reads explanations from the other texts."""
    settings = [*QUIET, "arms=[explanations,cosine]"]
    several = "evaluations=[likeness,skipping,paths,co_activation,verify]"
    message, _ = cli(*settings, several, "evaluations.verify.floor=1", "run_id=a")
    assert message is None
    results = results_of()
    texts = next(iter(results.provenance["texts"].values()))
    assert texts["n_calibration"] > 0 and texts["n_evaluation"] > 0
    arms = {row["arm"] for row in results.tables.rows("likeness")}
    assert arms == {"explanations", "cosine"}
    for name in ("strategies", "paths", "activations", "verify"):
        assert "explanations" in {row["arm"] for row in results.tables.rows(name)}, name
    assert not list(Path("outputs/match/a").glob("*contexts*"))
    kept = list(Path("outputs/cache/contexts").glob("*.safetensors"))
    assert len(kept) == 4, "two SAEs, each on both halves of the texts"
    other = [*settings, "arms.explanations.matcher.k=2", "evaluations=[co_activation]", "run_id=b"]
    assert cli(*other)[0] is None
    message, output = cli("compare", "outputs/match/a", "outputs/match/b", base=[])
    assert message is None
    assert "explanations" in output.out


def test_saes_of_two_sizes_match_by_explanations_alone(cli, tmp_path):
    for suite, n_features, d_model in (("default", 24, None), ("small", 10, 8)):
        lines = [{"feature": n, "text": f"word{n}", "layer": 0} for n in range(n_features)]
        (tmp_path / f"{suite}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        if d_model is not None:
            sae = random_sae(9, d_model=d_model, n_features=n_features)
            write_sae(tmp_path / "small/layer_0", sae, layer=0)
    suite = ["+sae@suites.small=disk", f'suites.small.path="{tmp_path}/small/layer_{{layer}}"']
    labels = ["explain=jsonl", f'explain.path="{tmp_path}/{{suite}}.jsonl"']
    pairs = ["pairing=listed", "pairing.pairs=[0:small/0]", "arms=[explanations,cosine]"]
    settings = [*QUIET[:2], "layers=[0]", *suite, *labels, *pairs, "evaluations=[likeness]"]
    message, _ = cli(*settings, "run_id=a")
    assert "matcher.k=20 is more than the 10 features" in message
    assert cli(*settings, "arms.explanations.matcher.k=10", "run_id=a")[0] is None
    tables = results_of().tables
    (row,) = tables.rows("matches")
    assert (row["arm"], row["n_matched"], row["n_entries"]) == ("explanations", 10, 10)
    (row,) = tables.rows("likeness")
    assert row["likeness"] == pytest.approx(1.0)
    (refusal,) = tables.rows("refused")
    assert refusal["arm"] == "cosine"


def test_an_llm_explains_features_before_they_are_matched(cli):
    server = JudgeServer()
    judge = ["judge=local", f"judge.base_url={server.url}", "explain=own_llm"]
    few = [f"judging.{name}=0" for name in ("random", "identity", "ceiling", "swapped", "repeated")]
    settings = [*QUIET, *judge, *few, "judging.n_paths=1", "arms=[explanations]", "evaluations=[]"]
    message, _ = cli(*settings, "run_id=a")
    server.close()
    assert message is None
    requested = [body["messages"][-1]["content"] for body in server.bodies]
    assert requested[0].startswith("<excerpts>")
    (row,) = results_of().tables.rows("matches")
    assert 0 < row["n_matched"] <= N_FEATURES
    assert len(set(requested)) > 2 * 2, "more than the features of one path"


def test_vectors_of_a_server_are_asked_once(cli, labels, server):
    arms = endpoint(server.url, "arms=[]")
    assert cli(*QUIET, *labels, *arms, "run_id=a")[0] is None
    requested = [text for batch in server.batches for text in batch]
    assert len(requested) == len(set(requested)) == 1 + 20, "a probe, and each text once"
    assert cli(*QUIET, *labels, *arms, "run_id=b")[0] is None
    assert sum(map(len, server.batches)) == len(requested)
    assert results_of("b").provenance["matches"] == {"read": 1}
    settings = {"arms": {"mine": {"objective": {"embedding": {"model": "m", "base_url": "x"}}}}}
    assert settings_of(settings) == {"arms.mine.objective.embedding.model": "m"}
    server.close()
    assert cli(*QUIET, *labels, *arms, "cache=null", "run_id=c")[0] is not None


def test_a_server_that_is_away_ends_in_one_line_before_work(cli, labels):
    arms = endpoint("http://127.0.0.1:9/v1", "arms=[]")
    message, output = cli(*QUIET, *labels, *arms, "run_id=a")
    assert message.startswith("saematch: arm mine: cannot reach http://127.0.0.1:9/v1: ")
    assert "\n" not in message
    assert "load SAEs" not in output.err
    setting = "evaluations.likeness.embedding"
    away = [f"{setting}.base_url=http://127.0.0.1:9/v1", f"+{setting}.retries=0"]
    chosen = [*labels, "evaluations=[likeness_endpoint]", *away]
    message, _ = cli(*QUIET, *chosen, f"{setting}.key_variable=null")
    assert message.startswith("saematch: evaluation likeness: cannot reach http://127.0.0.1:9/v1")
    message, _ = cli(*QUIET, *chosen, f"{setting}.key_variable=NO_SUCH_KEY")
    assert "the environment variable NO_SUCH_KEY is not set" in message


def test_explanations_that_a_run_does_not_have_end_in_one_line_before_work(cli, tmp_path):
    arms = [*QUIET, "arms=[explanations]"]
    message, _ = cli(*arms, "explain=own_llm")
    assert message.startswith("saematch: an LLM writes these explanations, and judge=none")
    message, _ = cli(*arms, "explain=neuronpedia")
    assert "Neuronpedia has no explanations of the SAE of layer 1" in message
    message, _ = cli(*arms, "explain=jsonl", f"explain.path={tmp_path}/none.jsonl")
    assert "none.jsonl" in message
    message, _ = cli(*arms, "matcher=scipy", "objective=explanations", "arms=[folded]")
    assert "scores only candidate pairs" in message
