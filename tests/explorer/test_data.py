"""The data files of a run, read by an independent reader and compared with the run's folder."""

import hashlib
import shutil
from itertools import chain

import numpy as np
import pandas as pd
import pytest
import torch

import data_files
from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey
from saematch.core.results import Results
from saematch.core.tables import Tables
from saematch.evaluate.effects import NONE
from saematch.explorer import contexts, data
from saematch.explorer.blob import MAX_BYTES, decimals
from saematch.explorer.links import partners, sources
from saematch.explorer.run_data import RunData
from synthetic_run import write_run

N_FEATURES, BLOCK, TOO_LARGE = 72, 32, 2**16


def rounded(values):
    mantissas, exponents = decimals(np.asarray(values, float))
    return [
        np.nan if m == -32768 else float(f"{m}e{e}")
        for m, e in zip(mantissas, exponents, strict=True)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), 3, N_FEATURES, 40)


@pytest.fixture
def written(folder, tmp_path, monkeypatch):
    """A run and its data files with small blocks and chunks."""
    monkeypatch.setattr(data, "BLOCK", BLOCK)
    monkeypatch.setattr(contexts, "CHUNK_BYTES", 4000)
    run = RunData.open(folder)
    data.write_data(run, tmp_path / "data", {"name": "a"})
    return run, tmp_path / "data"


def test_two_writes_give_equal_bytes(folder, tmp_path):
    def digests(place):
        data.write_data(RunData.open(folder), place, {})
        files = sorted(place.rglob("*.js"))
        return {
            path.relative_to(place): hashlib.sha256(path.read_bytes()).digest() for path in files
        }

    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_features(written):
    run, place = written
    for number, key in enumerate(run.saes):
        frame = run.features(key)
        blocks = [data_files.read(place, f"features/{number}/{block}") for block in range(3)]
        sae = data_files.read(place, "run")["saes"][number]
        assert sae["columns"] == [c for c in frame if frame[c].dtype.kind in "if"]
        assert [len(block["explanation"]) for block in blocks] == [32, 32, 8]
        for column in sae["columns"]:
            values = np.concatenate([block[column] for block in blocks])
            is_count = frame[column].dtype.kind == "i"  # counts are exact
            expected = frame[column] if is_count else rounded(frame[column])
            np.testing.assert_array_equal(values, expected)
        for column in ("explanation", "explainer", "top_tokens"):
            assert [*chain(*(block[column] for block in blocks))] == frame[column].tolist()


@pytest.mark.parametrize("kind", ["links", "sources"])
def test_links(written, kind):
    run, place = written
    for number, pair in enumerate(run.pairs):
        for arm in run.arms:
            links = (partners if kind == "links" else sources)(run.match(arm, pair))
            best = data_files.read(place, f"best/{arm}/{number}")
            best = best["partner" if kind == "links" else "source"]
            for feature in range(N_FEATURES):
                block = data_files.read(place, f"{kind}/{arm}/{number}/{feature // BLOCK}")
                start, stop = block["starts"][feature % BLOCK :][:2]
                entries = slice(*links.starts[feature : feature + 2])
                assert block["others"][start:stop].tolist() == links.others[entries].tolist()
                assert block["weights"][start:stop].tolist() == rounded(links.weights[entries])
                assert block["scores"][start:stop].tolist() == rounded(links.scores[entries])
                none = np.iinfo(best.dtype).max if links.best[feature] == NONE else None
                assert best[feature] == (none or links.best[feature])


def test_verify(written):
    run, place = written
    frame = run.verified(run.pairs[0])
    for arm in run.arms:
        rows = frame[frame["arm"] == arm]
        for block in range(3):
            file = data_files.read(place, f"verify/{arm}/0/{block}")
            of_block = rows[rows["feature"] // BLOCK == block]
            assert len(of_block)
            assert file["feature"].tolist() == of_block["feature"].tolist()
            assert file["finding"] == of_block["finding"].tolist()
            assert file["effect"].tolist() == rounded(of_block["effect"])


def test_contexts(written):
    run, place = written
    for number, key in enumerate(run.saes):
        firsts = data_files.read(place, "run")["saes"][number]["chunks"]
        assert len(firsts) > 1
        frame, shared = run.contexts(key), run.partners(key)
        rows = iter(frame.sort_values(["feature", "rank"]).itertuples())
        histograms = run.features(key)["histogram"]
        for chunk, first in enumerate(firsts):
            file = data_files.read(place, f"contexts/{number}/{chunk}")
            assert file["features"][0] == first
            counts = file["histogram"].reshape(len(file["features"]), -1)
            for feature, count in zip(file["features"], counts, strict=True):
                assert count.tolist() == histograms[feature].tolist()
            features = np.repeat(file["features"], file["n_contexts"])
            check_contexts(file, [(feature, next(rows)) for feature in features], shared, run)
        assert next(rows, None) is None


def check_contexts(file, rows, shared, run):
    """Compare the contexts of a file with the rows of the run's tables."""
    token, partner, value = 0, 0, 0
    for i, (feature, row) in enumerate(rows):
        n = len(row.tokens)
        assert row.feature == feature
        assert file["datasets"][file["dataset"][i]] == row.dataset
        assert (file["text"][i], file["start"][i], file["n_tokens"][i]) == (row.text, row.start, n)
        words = [file["vocabulary"][t] for t in file["tokens"][token : token + n]]
        assert words == row.tokens.tolist()
        check_shades(file["values"][token : token + n], file["largest"][i], row.values)
        token += n
        of_context = shared[(shared["feature"] == feature) & (shared["rank"] == row.rank)]
        assert file["n_partners"][i] == len(of_context)
        for other in of_context.itertuples():
            key = SaeKey(other.partner_suite, other.partner_layer)
            assert list(run.saes)[file["partner_sae"][partner]] == key
            assert file["partner"][partner] == other.partner
            shades = file["partner_values"][value : value + n]
            check_shades(shades, file["partner_largest"][partner], other.values)
            partner, value = partner + 1, value + n


def check_shades(shades, largest, exact):
    assert largest == rounded([max(exact)])[0]
    np.testing.assert_allclose(shades * (max(exact) / 255), exact, rtol=0, atol=max(exact) / 509)
    assert ((shades > 0) == (exact > 0)).all()


def test_shades_of_weak_and_negative_activations():
    largest, shades = contexts.shades(pd.Series([[0.001, 5.0, -1.0], [0.0, 0.0]]))
    assert largest.tolist() == [5, 0]
    assert shades.tolist() == [1, 255, 0, 0, 0]


def test_bytes_of_a_link_and_of_a_feature(tmp_path):
    """The sizes of docs/explorer.md follow from these numbers, which depend on no clock."""
    run = RunData.open(write_run(tmp_path / "run", 3, 2048, 8))
    data.write_data(run, tmp_path / "data", {})

    def n_bytes(kind):
        return sum(path.stat().st_size for path in (tmp_path / "data" / kind).rglob("*.js"))

    n_links = sum(len(run.match(arm, pair).rows) for arm in run.arms for pair in run.pairs)
    assert n_bytes("links") / n_links < 6
    assert n_bytes("features") / (3 * 2048) < 56
    assert n_bytes("sources") / (4 * 2048) < 10
    assert n_bytes("best") / (4 * 2048) < 5


def test_parts_of_a_table_are_limited(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "TABLE_BYTES", 1000)
    frame = pd.DataFrame({"a": range(500), "b": ["é" * 5] * 500, "c": [np.nan, 0.25] * 250})
    table = data.save_rows(tmp_path, "t", frame)
    parts = [data_files.read(tmp_path, f"tables/t/{i}")["columns"] for i in range(table["n_parts"])]
    assert table["n_rows"] == 500
    assert table["n_parts"] > 20
    assert [*chain(*(part["a"] for part in parts))] == [*range(500)]
    assert [*chain(*(part["c"] for part in parts))] == [None, 0.25] * 250


def test_long_texts_are_cut(folder, tmp_path):
    run_folder = tmp_path / "run"
    shutil.copytree(folder, run_folder)
    path = run_folder / "features/0.parquet"
    frame = pd.read_parquet(path)
    noise = np.random.default_rng(0).integers(32, 126, (N_FEATURES, 10**5)).astype(np.uint8)
    frame["explanation"] = [row.tobytes().decode() for row in noise]
    frame.to_parquet(path)
    path = run_folder / "evaluations/profile/contexts/0.parquet"
    of_contexts = pd.read_parquet(path)
    of_contexts["tokens"] = [["x" * 10**5 + str(i)] * 16 for i in range(len(of_contexts))]
    of_contexts.to_parquet(path)
    data.write_data(RunData.open(run_folder), tmp_path / "data", {})
    texts = data_files.read(tmp_path / "data", "features/0/0")["explanation"]
    assert texts[3] == frame["explanation"][3][:999] + "…"
    assert max(f.stat().st_size for f in (tmp_path / "data").rglob("*.js")) < MAX_BYTES


def write_bare(folder, arms, keys):
    """Write a run of the SAEs in ``keys`` (key: width) without files of features."""
    rows = []
    for arm, pair, match in arms:
        match.save(folder / "matches" / arm / f"{pair.label}.safetensors")
        rows.append({**pair.columns(), "arm": arm})
    layers = [{**key._asdict(), "n_features": n} for key, n in keys.items()]
    tables = Tables.of({"layers": layers, "matches": rows, "empty": []})
    Results("bare", {}, {}, "finished", tables=tables).save(folder / "results.json")
    return folder


def test_widths_suites_and_arms_without_a_pair(tmp_path):
    """Widths differ, one is beyond 16 bits; an arm skips a pair; no arm has scores; no files."""
    small, large = SaeKey("default", 1), SaeKey("a.b-c_9", 1)
    pair, back = Pair(small, large), Pair(large, small)
    last = TOO_LARGE - 1  # the number that 16 bits use for a missing feature
    match = Match(
        torch.tensor([0, 1]),
        torch.tensor([last, TOO_LARGE]),
        torch.ones(2).double(),
        3,
        TOO_LARGE + 1,
    )
    arms = [("x", pair, match), ("Odd.name-1", back, match.inverse()), ("x", back, match.inverse())]
    run = RunData.open(write_bare(tmp_path / "run", arms, {small: 3, large: TOO_LARGE + 1}))
    place = tmp_path / "data"
    data.write_data(run, place, {})
    facts = data_files.read(place, "run")
    assert [sorted(of_pair["arms"]) for of_pair in facts["pairs"]] == [["x"], ["Odd.name-1", "x"]]
    assert facts["pairs"][0] == {
        "source": 0, "target": 1,
        "arms": {"x": {"n_entries": 2, "scored": False, "verified": False}},
    }  # fmt: skip
    assert [sae["columns"] for sae in facts["saes"]] == [[], []]
    assert [sae["chunks"] for sae in facts["saes"]] == [[], []]
    best = data_files.read(place, "best/x/0")
    assert best["partner"].tolist() == [last, TOO_LARGE, 2**32 - 1]
    assert best["source"][[0, last, TOO_LARGE]].tolist() == [2**16 - 1, 0, 1]
    assert data_files.read(place, "links/x/0/0")["others"].tolist() == [last, TOO_LARGE]
    assert data_files.read(place, f"sources/x/0/{TOO_LARGE // 1024}")["others"].tolist() == [1]
    assert data_files.read(place, "sources/x/0/5")["starts"].tolist() == [0] * 1025
    assert "scores" not in data_files.read(place, "links/x/0/0")
    assert data_files.read(place, "features/0/0") == {}
    assert {"name": "empty", "n_rows": 0, "n_parts": 0} in facts["tables"]


def test_values_that_are_missing(folder, tmp_path):
    run_folder = tmp_path / "run"
    shutil.copytree(folder, run_folder)
    path = run_folder / "features/0.parquet"
    frame = pd.read_parquet(path)
    frame.loc[0, ["threshold", "explanation", "explainer"]] = [np.nan, None, None]
    frame.loc[1, "threshold"] = np.inf
    frame.to_parquet(path)
    data.write_data(RunData.open(run_folder), tmp_path / "data", {})
    block = data_files.read(tmp_path / "data", "features/0/0")
    np.testing.assert_array_equal(block["threshold"][:2], [np.nan, np.inf])
    assert block["explanation"][0] is None


@pytest.mark.slow
def test_sizes_of_26_layers(tmp_path):
    """26 layers x 16,384 features, 8 links each: index and links at most 60 MB, files 4 MiB."""
    run = RunData.open(write_run(tmp_path / "run", 26, 16384, 2048))
    data.write_data(run, tmp_path / "data", {})
    files = {path: path.stat().st_size for path in (tmp_path / "data").rglob("*.js")}
    index = sum(size for path, size in files.items() if path.parts[-3] != "contexts")
    assert index < 60e6
    assert sum(files.values()) - index < 40e6
    assert max(files.values()) < MAX_BYTES
