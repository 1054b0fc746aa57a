"""The files of single features: numbers of weights, and explanations without asking an LLM."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from chat.judge_server import JudgeServer
from conftest import N_FEATURES, random_sae
from saematch.core.pairs import Pair, SaeKey
from saematch.core.results import Results
from saematch.core.tables import Tables
from saematch.runs.features import explained_in, from_weights

QUIET = ["logger=none", "evaluations=[]", "arms=[folded]", "layers=[0,1]", "run_id=a"]
JUDGING = [f"judging.{name}=0" for name in ("random", "identity", "swapped", "repeated")]


def read(tmp_path, layer):
    return pd.read_parquet(tmp_path / f"outputs/match/a/features/{layer}.parquet")


def test_numbers_are_those_of_the_weights():
    sae = random_sae(3)
    frame = from_weights(sae)
    W_enc, W_dec = sae.W_enc.double().numpy(), sae.W_dec.double().numpy()
    assert frame["feature"].tolist() == list(range(N_FEATURES))
    np.testing.assert_allclose(frame["norm_W_enc"], np.sqrt((W_enc**2).sum(axis=0)), rtol=1e-6)
    np.testing.assert_allclose(frame["norm_W_dec"], np.sqrt((W_dec**2).sum(axis=1)), rtol=1e-6)
    np.testing.assert_array_equal(frame["b_enc"], sae.b_enc.numpy())
    np.testing.assert_array_equal(frame["threshold"], sae.threshold.numpy())


def test_an_sae_without_thresholds_has_no_such_column_even_with_a_stand_in():
    origin = replace(random_sae(3).origin, stand_in_name="ones")
    sae = replace(
        random_sae(3), threshold=None, activation="relu", origin=origin,
        stand_in=torch.ones(N_FEATURES),
    )  # fmt: skip
    assert list(from_weights(sae)) == ["feature", "norm_W_enc", "norm_W_dec", "b_enc"]


def test_a_run_without_explanations_has_empty_columns(cli, tmp_path):
    assert cli(*QUIET)[0] is None
    frame = read(tmp_path, 1)
    assert len(frame) == N_FEATURES
    assert frame["explanation"].isna().all()
    assert frame["explainer"].isna().all()


def test_given_explanations_of_all_features_are_kept(cli, tmp_path):
    lines = [{"layer": layer, "feature": n, "text": f"w{n} of {layer}"}
             for layer in (0, 1) for n in range(0, N_FEATURES, 2)]  # fmt: skip
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, lines)))
    explained = [
        "explain=jsonl",
        f"explain.path={tmp_path}/l.jsonl",
        "evaluations=[profile,explain]",
    ]
    assert cli(*QUIET, *explained)[0] is None
    frame = read(tmp_path, 1)
    assert frame["explanation"][::2].tolist() == [f"w{n} of 1" for n in range(0, N_FEATURES, 2)]
    assert frame["explanation"][1::2].isna().all()


@pytest.fixture
def server():
    server = JudgeServer()
    yield server
    server.close()


def test_an_llm_is_not_asked_for_more_explanations(cli, server, tmp_path):
    judge = ["judge=local", f"judge.base_url={server.url}", "explain=own_llm"]
    few = ["judging.n_paths=3", "judging.ceiling=2"]
    assert cli(*QUIET, *judge, *JUDGING, *few)[0] is None
    judgements = Results.load(tmp_path / "outputs/match/a/results.json").tables["judgements"]
    pairs = judgements[judgements["role"] == "pair"]
    assert len(pairs) == 3
    for layer, end in enumerate(("source", "target")):
        explained = read(tmp_path, layer).set_index("feature")["explanation"].dropna()
        for feature, text in zip(pairs[f"{end}_feature"], pairs[f"{end}_explanation"], strict=True):
            assert explained[feature] == text
        assert len(explained) < N_FEATURES
    excerpts = [body for body in server.bodies if "<excerpts>" in json.dumps(body)]
    assert len(excerpts) <= 3 + 3 + 2 * 2 * 2


def test_explanations_in_tables_come_from_both_ends_without_second_explanations():
    key = Pair.of_layers(0, 1).columns()

    def judged(role, source, target, texts):
        ends = {f"{end}_explainer": "m" for end in ("source", "target")}
        texts = dict(zip(("source_explanation", "target_explanation"), texts, strict=True))
        return {**key, "role": role, "source_feature": source, "target_feature": target,
                **ends, **texts}  # fmt: skip

    rows = [judged("ceiling", 0, 0, ("a", "b")), judged("pair", 1, 2, ("c", "d")),
            judged("pair", 1, 3, ("c", None))]  # fmt: skip
    path = judged(None, 4, 5, ("e", "f"))
    tables = Tables.of({"judgements": rows, "paths": [path], "features": [{**key, "rank": 1}]})
    explained = {
        layer: explained_in(tables, SaeKey("default", layer))["explanation"].to_dict()
        for layer in (0, 1)
    }
    assert explained == {0: {0: "a", 1: "c", 4: "e"}, 1: {2: "d", 5: "f"}}
