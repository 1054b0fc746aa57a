"""Whole runs with a judge and each source of explanations: what they write and never write."""

import json
from pathlib import Path

import pytest

from chat.judge_server import KEY, JudgeServer
from conftest import N_FEATURES, N_LAYERS
from explain.neuronpedia_server import NeuronpediaServer, row
from saematch.core.results import Results
from saematch.explain import neuronpedia_web
from wandb_reader import history

MATCH = ["evaluations=[]", "arms=[folded,random]", "intervals.n_replicates=20"]
SMALL = ["judging.n_paths=6", "judging.random=4", "judging.identity=3", "judging.ceiling=2"]


@pytest.fixture
def server():
    server = JudgeServer(key=KEY)
    yield server
    server.close()


@pytest.fixture
def judged(cli, server, monkeypatch):
    """Run the tiny model with a judge that requires a key."""
    monkeypatch.setenv("JUDGE_KEY", KEY)

    def run(*arguments, logger="none"):
        options = ["judge=local", f"judge.base_url={server.url}", "judge.key_variable=JUDGE_KEY"]
        return cli(*MATCH, *SMALL, *options, f"logger={logger}", "run_id=a", *arguments)

    return run


@pytest.fixture
def labels(tmp_path):
    """Write explanations of all layers; feature 5 of layer 2 has none."""
    path = tmp_path / "labels.jsonl"
    lines = [
        {"layer": layer, "feature": feature, "text": f"word{feature % 5} of {layer}"}
        for layer in range(N_LAYERS)
        for feature in range(N_FEATURES)
        if (layer, feature) != (2, 5)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return f"explain=jsonl explain.path={path}".split()


def loaded(tmp_path):
    return Results.load(tmp_path / "outputs/match/a/results.json")


def test_any_run_can_have_a_judge_and_its_scores_reach_wandb_and_its_key_no_file(
    judged, labels, tmp_path
):
    message, output = judged(*labels, "figures=null", logger="wandb")
    assert message is None
    assert "questions to judge-1; " in (tmp_path / "outputs/match/a/saematch.log").read_text()
    assert "Judge score: 1 different to 3 the same; SAME: its share" in output.out
    results = loaded(tmp_path)
    assert results.status == "finished"
    rows = results.tables.rows("matches")
    assert all(1 <= row["judge_score_low"] <= row["judge_score_high"] <= 3 for row in rows)
    (judge,) = results.provenance["judges"]
    assert judge["served_by"] == {"judge-1-0613": judge["requests"]}
    assert judge["tokens_in"] == 700 * judge["requests"]
    assert "judge_score/folded" in results.metrics
    assert "judge_agreement/swapped" in results.metrics
    logged = history(tmp_path / "outputs/match/a/wandb")
    names = {name for row in logged for name in row}
    assert {"judge_score/folded", "judge_score/random", "judge_control/random"} <= names
    assert {"tables/judgements.path", "tables/judge_scores.path"} <= names
    unexplained = [r for r in results.tables.rows("judgements") if r["label"] == "UNEXPLAINED"]
    assert all(5 in (r["source_feature"], r["target_feature"]) for r in unexplained)
    pairs = [
        r for r in results.tables.rows("judgements") if r["role"] == "pair" and r["judge_score"]
    ]
    assert {pair["label"] for pair in pairs} == {"MAYBE"}, "all texts share the word 'of'"
    for pair in pairs:
        texts = [pair[f"{end}_explanation"] for end in ("source", "target")]
        same = pair["source_feature"] % 5 == pair["target_feature"] % 5
        assert same == (texts[0].split()[0] == texts[1].split()[0])
    files = [path for path in (tmp_path / "outputs").rglob("*") if path.is_file()]
    assert any(path.suffix == ".sqlite" for path in files)
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path


def test_a_capped_run_continues_with_a_higher_cap(judged, labels, server, tmp_path):
    message, _ = judged(*labels, "judge.limits.max_requests=10")
    assert "judge.limits.max_requests=10 is used up" in message
    assert "the same command continues" in message
    assert loaded(tmp_path).status == "failed"
    assert len(server.bodies) == 10
    assert judged(*labels)[0] is None
    assert loaded(tmp_path).status == "finished"
    assert max(server.delivered.values()) <= 2, "repeats are asked twice, nothing else"
    n_asked = len(server.bodies)
    assert judged(*labels, "judge.limits.max_requests=1")[0] is None
    assert len(server.bodies) == n_asked


def test_cached_answers_need_no_server_and_give_the_same_numbers(
    judged, cli, labels, server, tmp_path
):
    assert judged(*labels)[0] is None
    first = loaded(tmp_path)
    server.close()
    options = ["judge=local", "judge.model=judge-1", "judge.cached_only=true", "run_id=b"]
    assert cli(*MATCH, *SMALL, *options, "logger=none", *labels)[0] is None
    again = Results.load(tmp_path / "outputs/match/b/results.json")
    assert again.tables.keys() == first.tables.keys()
    assert all(again.tables.rows(name) == first.tables.rows(name) for name in first.tables)


def test_explanations_from_neuronpedia_join_the_saes_that_they_are_of(
    judged, tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(neuronpedia_web, "BACKOFF_S", 0.01)
    server = NeuronpediaServer()
    for layer in range(N_LAYERS):
        source = f"tiny/{layer}-res"
        folder = tmp_path / f"saes/layer_{layer}"
        folder.mkdir(parents=True)
        for path in (tiny / f"saes/layer_{layer}").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        config = json.loads((folder / "cfg.json").read_text())
        config["metadata"]["neuronpedia_id"] = source
        (folder / "cfg.json").write_text(json.dumps(config))
        explainers = ("gpt-4o-mini", "gemini") if layer % 2 else ("gpt-4o-mini",)
        rows = [row(source, n, f"word{n % 5}", who) for n in range(20) for who in explainers]
        server.export(source, rows, 8)
    options = ["explain=neuronpedia", f"explain.exports={server.address}", "explain.single=0"]
    options += [f"explain.api={server.address}", f'sae.path="{tmp_path}/saes/layer_{{layer}}"']
    message, _ = judged(*options, "figures=null")
    server.close()
    assert message is None
    tables = loaded(tmp_path).tables
    roles = {row["role"] for row in tables.rows("judgements")}
    assert "paraphrase" in roles
    assert "ceiling" not in roles, "the two explainers say the same here"
    pairs = {
        (r["source_explainer"], r["target_explainer"]) for r in tables.rows("judge_explainers")
    }
    assert ("gpt-4o-mini", "gemini") in pairs, "equal coverage: the first by name is used"
    for judgement in tables.rows("judgements"):
        if judgement["role"] == "pair":
            explained = judgement["source_feature"] < 20 and judgement["target_feature"] < 20
            assert (judgement["label"] == "UNEXPLAINED") != explained


def test_paths_and_examples_have_explanations_and_labels(judged, labels, tmp_path):
    drawn = "figures=[explained_pairs,explained_paths]"
    assert judged(*labels, "evaluations=[features,paths,explain]", drawn)[0] is None
    tables = loaded(tmp_path).tables
    for name in ("features", "paths"):
        for shown in tables.rows(name):
            for end, layer in (
                ("source", shown["source_layer"]),
                ("target", shown["target_layer"]),
            ):
                feature = shown[f"{end}_feature"]
                expected = None if (layer, feature) == (2, 5) else f"word{feature % 5} of {layer}"
                assert shown[f"{end}_explanation"] == expected
            assert shown["label"] in ("SAME", "MAYBE", "DIFFERENT", "UNEXPLAINED")
    judged_steps = [r for r in tables.rows("judgements") if r["role"] == "pair"]
    assert len(judged_steps) == len(tables.rows("paths"))


def test_explanations_without_a_judge(cli, labels, tmp_path):
    options = ["evaluations=[features,explain]", "logger=none", "run_id=a"]
    options += ["figures=[explained_pairs]"]
    assert cli(*MATCH, *options, *labels)[0] is None
    tables = loaded(tmp_path).tables
    assert "judgements" not in tables
    assert "label" not in tables.rows("features")[0]
    assert tables.rows("features")[0]["source_explanation"].startswith("word")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["judge.key_variable=NO_KEY"], "the environment variable NO_KEY is not set"),
        (["judge.base_url=http://127.0.0.1:9/v1"], "cannot reach the judge at http://127.0.0.1:9"),
        (["judge.model=judge-9"], "has no model 'judge-9', but judge-1"),
        (["judge.limits.max_cost=0.0"], "max_cost=0.0 allows no judgement"),
        (["judging.arms=[greedy]"], "judging.arms holds 'greedy'"),
        (["second_judge=gpt_4o"], "second_judge=gpt_4o: write judge@second_judge=gpt_4o"),
        (["explain=jsonl", "explain.path=nowhere.jsonl"], "nowhere.jsonl"),
        (["explain=neuronpedia"], "Neuronpedia has no explanations of the SAE of layer 0"),
    ],
)  # fmt: skip
def test_bad_input_ends_in_one_line_before_any_work(judged, tmp_path, arguments, words):
    message, _ = judged(*arguments)
    assert words in message
    assert "\n" not in message
    assert KEY not in message
    assert not (tmp_path / "outputs/cache/matches").exists(), "nothing was matched"


def test_an_empty_explanation_is_refused_with_its_line(judged, labels, tmp_path):
    path = Path(labels[1].partition("=")[2])
    path.write_text(path.read_text() + '\n{"layer": 1, "feature": 0, "text": " "}')
    message, _ = judged(*labels)
    assert "labels.jsonl" in message
    assert str(N_LAYERS * N_FEATURES) in message


@pytest.mark.parametrize(
    "argument",
    ["judge.api_key=sk-1", "+judge.key=sk-1", "judge.key_variable=sk-1-2", "judge={api_key: sk-1}",
     "judge.base_url=https://me:secret@host/v1", f"judge.model={KEY}"],
)  # fmt: skip
def test_a_key_on_the_command_line_is_refused_and_not_written(cli, tmp_path, argument):
    message, _ = cli(argument)
    assert message.startswith("saematch: the command line accepts no key or password")
    assert not (tmp_path / "outputs").exists()


def test_judges_that_cannot_be(judged, cli, server):
    message, _ = judged("judge@second_judge=local", f"second_judge.base_url={server.url}",
                        "second_judge.key_variable=JUDGE_KEY",
        "second_judge.price_input=1.0")  # fmt: skip
    assert "both judges are called judge-1" in message
    message, _ = cli(*MATCH, "explain=own_llm", "evaluations=[explain]")
    assert "set judge to an LLM, or set explain=own" in message


def test_a_second_judge(judged, labels, tmp_path):
    other = JudgeServer(answer=lambda body: '{"evaluation": "", "label": 3}', models=("judge-2",))
    message, _ = judged(*labels, "judge@second_judge=local", f"second_judge.base_url={other.url}",
                        "figures=[judge_controls]")  # fmt: skip
    other.close()
    assert message is None
    results = loaded(tmp_path)
    assert [judge["model"] for judge in results.provenance["judges"]] == ["judge-1", "judge-2"]
    rows = {row["compared"]: row for row in results.tables.rows("judge_agreement")}
    assert rows["second"]["agreement"] == 0, "one says MAYBE throughout, the other SAME"
