"""``profile`` agrees with dense activations in float64, one text at a time."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array

from evaluations import CPU, recorded, subject_of, tables_of
from interventions import SPECIAL, fitting_sae, lively, texts_of
from matches import of_dense, permutation, soft
from saematch.core.errors import InputError
from saematch.core.pairs import Pair, SaeKey
from saematch.evaluate.activity import ReadTexts, activity_of
from saematch.evaluate.contexts import Contexts, Window
from saematch.evaluate.effects import ranked_partners
from saematch.evaluate.profile import Profile
from saematch.matching.arm import Arm
from saematch.matching.matchers import Optimal, Random
from saematch.matching.matches import MatchSet
from saematch.matching.objectives.parts import Parts
from saematch.sae.passes import TextPass
from saematch.sae.recorders import Models
from saematch.sae.suites import SaeShelf
from saematch.texts.readers import Reader

N, DEAD = 12, 3
A, B, TWIN = SaeKey("default", 0), SaeKey("default", 2), SaeKey("again", 0)
PAIRS = (Pair(A, B), Pair(B, A), Pair(TWIN, B))
SPEC = Profile(n_features=5, features=(0, DEAD), n_contexts=3, before=4, after=2, partners=2)


class Words:
    """A tokenizer in which two tokens differ only in a space."""

    def decode(self, ids, **_):
        (token,) = ids
        return {7: " w8", 1: "\n"}.get(token, f"w{token}")

    def convert_ids_to_tokens(self, token):
        return self.decode([token])


def saes_of(lm):
    saes = {A: fitting_sae(lm, 0, "jumprelu", N, 0), B: fitting_sae(lm, 2, "relu", N, 1)}
    saes[A].threshold[DEAD] = 1e9
    return {**saes, TWIN: saes[A]}


class Case(NamedTuple):
    subject: object
    table: pd.DataFrame
    activations: dict
    """Activations of each SAE by text, ``[n_tokens, n_features]``; 0 on tokens left out."""
    texts: list
    datasets: list


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    lm = lively("Llama")
    lm.tokenizer = Words()
    saes = saes_of(lm)
    matches = {
        "soft": dict(zip(PAIRS, (soft(1, N, N), soft(2, N, N), soft(3, N, N)), strict=True)),
        "one": {PAIRS[0]: permutation(4, N)},
        "chance": {pair: permutation(5, N) for pair in PAIRS},
    }
    arms = {name: Arm("none", Parts(), Optimal()) for name in ("soft", "one")}
    arms["chance"] = Arm("none", Parts(), Random())
    folder = tmp_path_factory.mktemp("profile")
    subject = subject_of(saes, MatchSet(PAIRS, matches), arms, folder / "sums")
    tokens = {"prose": texts_of(7, 1).batches(3), "code": texts_of(4, 2).batches(3)}
    reader = Reader(lm, tokens)
    subject = recorded(subject, [SPEC], lm, tokens)
    subject = replace(
        subject, texts=TextPass({"": reader}, Models(), CPU), output=folder / "evaluations"
    )
    table = tables_of(subject, SPEC)["profile"]
    oracle, ids = lively("Llama").double(), [text.tolist() for text in reader.texts]
    activations = {key: [] for key in saes}
    for text in ids:
        states = oracle.states(torch.tensor([text]), (0, 2))
        counts = ~np.isin(text, SPECIAL)
        counts[0] = False
        for key, sae in saes.items():
            f = sae.to("cpu", torch.float64).encode(states[key.layer][0]).numpy()
            activations[key].append(f * counts[:, None])
    return Case(subject, table, activations, ids, ["prose"] * 7 + ["code"] * 4)


def read(case, key, folder=""):
    return pd.read_parquet(case.subject.output / "profile" / folder / f"{key.label}.parquet")


def counted(case):
    return [sum(token not in SPECIAL for token in text[1:]) for text in case.texts]


@pytest.mark.parametrize("key", [A, B, TWIN])
def test_activity_of_every_feature(case, key):
    frame, of_texts = read(case, key), case.activations[key]
    f, n_tokens = np.concatenate(of_texts), sum(counted(case))
    active = f > 0
    assert frame["feature"].tolist() == list(range(N))
    assert frame["n_active"].tolist() == active.sum(axis=0).tolist()
    np.testing.assert_allclose(frame["density"], active.sum(axis=0) / n_tokens)
    for name, texts in {"prose": slice(7), "code": slice(7, 11)}.items():
        share = (np.concatenate(of_texts[texts]) > 0).sum(axis=0) / sum(counted(case)[texts])
        np.testing.assert_allclose(frame[f"density_{name}"], share)
    np.testing.assert_allclose(frame["max_activation"], f.max(axis=0), rtol=1e-5)
    for feature in range(N):
        values = f[active[:, feature], feature]
        if not len(values):
            assert np.isnan(frame["mean_activation"][feature])
            continue
        assert frame["mean_activation"][feature] == pytest.approx(values.mean(), rel=1e-5)
        counts, _ = np.histogram(values, 20, (0, values.max()))
        assert frame["histogram"][feature].tolist() == counts.tolist()
    if key != B:
        assert frame["n_active"][DEAD] == 0
        assert not frame["histogram"][DEAD].any()


@pytest.mark.parametrize("key", [A, B])
def test_top_tokens_by_share_of_the_summed_activation(case, key):
    frame, tokens = read(case, key), np.concatenate(case.texts)
    f = np.concatenate(case.activations[key])
    for feature in range(N):
        mass = {}
        for token, value in zip(tokens, f[:, feature], strict=True):
            word = Words().decode([token]).strip() or r"\n"
            mass[word] = mass.get(word, 0) + value
        total = sum(mass.values())
        if not total:
            assert pd.isna(frame["top_tokens"][feature])
            continue
        best = sorted(mass, key=lambda word: -mass[word])[:8]
        shown = [f'"{word}" ({mass[word] / total:.0%})' for word in best if mass[word] > 0]
        assert frame["top_tokens"][feature] == ", ".join(shown)


def expected_contexts(case, key):
    """Return rows of feature, rank, text, start, end for the features that should have contexts."""
    of_texts = case.activations[key]
    n_active = (np.concatenate(of_texts) > 0).sum(axis=0)
    chosen = set(np.argsort(-n_active, kind="stable")[:5].tolist()) | {0, DEAD}
    rows = []
    for feature in sorted(chosen):
        peaks = [(-f[:, feature].max(), text) for text, f in enumerate(of_texts)]
        for rank, (value, text) in enumerate(sorted(peaks)[:3]):
            if value < 0:
                peak = int(of_texts[text][:, feature].argmax())
                window = max(0, peak - 4), min(len(case.texts[text]), peak + 3)
                rows.append((feature, rank, text, *window))
    return rows


@pytest.mark.parametrize("key", [A, B, TWIN])
def test_contexts_of_the_features_that_fired_most_and_those_asked_for(case, key):
    frame, expected = read(case, key, "contexts"), expected_contexts(case, key)
    columns = ["feature", "rank", "text", "start"]
    assert frame[columns].to_numpy().tolist() == [list(row[:4]) for row in expected]
    starts_and_ends = {"start": 0, "end": 0}
    for row, (feature, _, text, start, end) in zip(frame.itertuples(), expected, strict=True):
        assert row.dataset == case.datasets[text]
        assert list(row.tokens) == [Words().decode([t]) for t in case.texts[text][start:end]]
        values = case.activations[key][text][start:end, feature]
        np.testing.assert_allclose(row.values, values, rtol=1e-4, atol=1e-5)
        starts_and_ends["start"] += start == 0
        starts_and_ends["end"] += end == len(case.texts[text])
    assert all(starts_and_ends.values())


def expected_partners(case, key):
    """Return the activations of partners by feature, rank, SAE and partner."""
    links = set()
    for pair in PAIRS:
        for arm in ("soft", "one"):
            match = case.subject.matches.of(pair).get(arm)
            if match is None or key not in pair:
                continue
            if key == pair.source:
                ranked = ranked_partners(match)[:, :2]
                links |= {(f, pair.target, p) for f in range(N) for p in ranked[f].tolist()}
            if key == pair.target:
                ranked = ranked_partners(match.inverse())[:, :2]
                links |= {(f, pair.source, p) for f in range(N) for p in ranked[f].tolist()}
    shared = {}
    for feature, rank, text, start, end in expected_contexts(case, key):
        for of_feature, other, partner in links:
            if of_feature == feature and partner >= 0:
                values = case.activations[other][text][start:end, partner]
                if values.any():
                    shared[feature, rank, *other, partner] = values
    return shared


@pytest.mark.parametrize("key", [A, B, TWIN])
def test_partners_are_those_that_are_active_in_the_contexts(case, key):
    frame, expected = read(case, key, "partners"), expected_partners(case, key)
    keys = ["feature", "rank", "partner_suite", "partner_layer", "partner"]
    by_place = {tuple(row[:5]): row[5] for row in frame[[*keys, "values"]].itertuples(index=False)}
    assert len(by_place) == len(frame)
    assert by_place.keys() == expected.keys()
    for place, values in expected.items():
        np.testing.assert_allclose(by_place[place], values, rtol=1e-4, atol=1e-5)
    assert frame[["feature", "rank"]].apply(tuple, axis=1).is_monotonic_increasing
    assert set(frame["partner_suite"]) == ({"default", "again"} if key == B else {"default"})


def test_the_table_has_a_row_for_each_sae(case):
    rows = {SaeKey(row["suite"], row["layer"]): row for row in case.table.to_dict("records")}
    assert rows.keys() == {A, B, TWIN}
    for key, row in rows.items():
        density = (np.concatenate(case.activations[key]) > 0).sum(axis=0) / sum(counted(case))
        assert row["n_tokens"] == sum(counted(case))
        assert (row["n_live"], row["n_dead"]) == ((density > 0).sum(), (density == 0).sum())
        assert row["median_density"] == pytest.approx(np.median(density[density > 0]))
        assert row["n_with_contexts"] == len({c[0] for c in expected_contexts(case, key)})


def test_saes_that_suites_share_are_recorded_once(case):
    assert SPEC.recorder(case.subject).keys == (A, B)


def test_partners_of_another_language_model_are_left_out(case, tmp_path):
    models = Models({"again": "other"})
    subject = replace(case.subject, models=models, output=tmp_path, folder=tmp_path / "sums")
    text_pass = replace(subject.texts, models=models)
    text_pass = replace(text_pass, readers=dict.fromkeys(["", "other"], text_pass.readers[""]))
    recorder = SPEC.recorder(subject)
    assert recorder.keys == (A, B, TWIN)
    recording = text_pass.record(subject.saes, {"p": recorder}, "p")["p"]
    assert len(SPEC.tables(replace(subject, texts=text_pass), recording)["profile"]) == 3
    partners = {
        key: set(pd.read_parquet(tmp_path / f"profile/partners/{key.label}.parquet").partner_suite)
        for key in (A, B, TWIN)
    }
    assert partners == {A: {"default"}, B: {"default"}, TWIN: set()}


WORDS = ["<bos>", "a", " a", "\n", "b"]
TWO_TEXTS = ReadTexts(
    WORDS, np.array([0, 1, 2, 0, 3, 4, 4]), np.array([0, 3, 7]),
    np.array([-1, 0, 1, -1, 2, 3, 4]), np.array([1, 2, 4, 5, 6]), np.array([0, 0, 1, 1, 1]),
    {"t": 2},
)  # fmt: skip
"""The texts ``<bos> a a`` and ``<bos> \\n b b``."""


def by_hand():
    """Return activations of three features on the five tokens; the last is never active."""
    f = [[4, 0, 0], [4, 1, 0], [2, 0, 0], [1, 0, 0], [4, 0, 0]]
    return csr_array(np.array(f, np.float32))


def test_activity_by_hand():
    frame = activity_of(by_hand(), by_hand().tocsc(), TWO_TEXTS)
    assert frame["n_active"].tolist() == [5, 1, 0]
    assert frame["density_t"].tolist() == [1.0, 0.2, 0.0]
    assert frame["mean_activation"].tolist()[:2] == [3.0, 1.0]
    assert frame["max_activation"].tolist() == [4.0, 1.0, 0.0]
    tokens = frame["top_tokens"].tolist()
    assert tokens[:2] == [r'"a" (53%), "b" (33%), "\n" (13%)', '"a" (100%)']
    assert pd.isna(tokens[2])
    bins = np.zeros(20, int)
    bins[[5, 10, 19]] = 1, 1, 3
    assert frame["histogram"][0].tolist() == bins.tolist()


def test_equal_activations_go_to_the_earlier_token_and_the_earlier_text():
    codes = by_hand().tocsc()
    contexts = Contexts.of(codes, np.array([0, 1, 2]), 2, TWO_TEXTS, Window(1, 1))
    frame = contexts.frame(codes, TWO_TEXTS)
    places = frame[["feature", "rank", "text", "start"]].to_numpy().tolist()
    assert places == [[0, 0, 0, 0], [0, 1, 1, 2], [1, 0, 0, 1]]
    assert [list(tokens) for tokens in frame["tokens"]] == [
        ["<bos>", "a", " a"], ["b", "b"], ["a", " a"]
    ]  # fmt: skip
    assert [values.tolist() for values in frame["values"]] == [[0, 4, 4], [1, 4], [0, 1]]
    first = Contexts.of(codes, np.array([0]), 1, TWO_TEXTS, Window(0, 0))
    assert first.frame(codes, TWO_TEXTS)["text"].tolist() == [0]


def test_no_feature_with_contexts():
    codes = by_hand().tocsc()
    for features in ([], [2]):
        contexts = Contexts.of(codes, np.array(features, np.int64), 2, TWO_TEXTS, Window(1, 1))
        assert contexts.frame(codes, TWO_TEXTS).empty
        links = np.array([[2, 0]])
        assert contexts.partners(A, links, by_hand()).empty


def test_ranked_partners_at_most():
    match = of_dense(torch.tensor([[0.1, -0.5, 0.5], [0.0, 0.0, 0.0], [1.0, 2.0, 0.0]]))
    assert ranked_partners(match, 2).tolist() == [[1, 2], [-1, -1], [1, 0]]
    assert ranked_partners(match).tolist() == [[1, 2, 0], [-1, -1, -1], [1, 0, -1]]


def test_features_beyond_the_width_are_refused_before_any_work(cli):
    message, _ = cli("evaluations=[profile]", "evaluations.profile.features=[2,24]")
    assert "evaluations.profile.features holds 24, but the SAE of layer 0 has only" in message
    assert "features 0 to 23" in message


def test_a_suite_with_the_name_of_a_folder_of_profile_is_refused(case):
    shelf = SaeShelf.of({SaeKey("contexts", 0): case.subject.saes[A]})
    with pytest.raises(InputError, match="the evaluation profile writes a folder of this name"):
        Profile().check_saes(shelf)


def test_runs_with_other_arms_record_activations_once(cli, tmp_path):
    def recorded_files():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("sums/*")}

    settings = "evaluations=[profile]", "cache=cache", "logger=none", "layers=[0,1]"
    assert cli(*settings, "arms=[folded]", "run_id=a")[0] is None
    before = recorded_files()
    assert before
    assert cli(*settings, "arms=[cosine,random]", "run_id=b")[0] is None
    assert recorded_files() == before
    for run in ("a", "b"):
        assert (tmp_path / f"outputs/match/{run}/evaluations/profile/1.parquet").exists()


def test_the_texts_of_a_reader(tiny):
    lm = lively("Llama")
    lm.tokenizer = Words()
    reader = Reader(lm, {"x": texts_of(3, 5).batches(2), "y": texts_of(2, 6).batches(2)})
    texts = ReadTexts.of(reader)
    ids = torch.cat(reader.texts)
    assert [texts.words[n] for n in texts.word] == [Words().decode([i]) for i in ids.tolist()]
    assert texts.dataset == ["x", "x", "x", "y", "y"]
    sets = texts.tokens_of_sets()
    assert sets["x"].stop == sets["y"].start
    assert sets["y"].stop == len(texts.places) == len(texts.text)
