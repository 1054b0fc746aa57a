"""A flipped byte in a kept file causes a warning that names the file, and the right result."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from conftest import TEXTS
from evaluations import recorded, subject_of, sums_of
from saematch.core.errors import InputError
from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey
from saematch.core.store import read_facts, write
from saematch.evaluate.co_activation import CoActivation
from saematch.evaluate.skipping import Skipping
from saematch.explain.contexts import ContextStore
from saematch.lm.source import LmSource
from saematch.matching.arm import Arm
from saematch.matching.matchers import Optimal
from saematch.matching.matches import match_pairs
from saematch.matching.objectives.parts import Parts
from saematch.matching.store import MatchStore
from saematch.sae.passes import TextPass
from saematch.sae.recorders import Models
from saematch.sae.sources.disk import SaeFolders
from saematch.sae.sources.source import ZooSaes
from saematch.sae.stand_in import ActivationQuantile, by_activation
from saematch.sae.suites import SaeShelf
from saematch.texts import lightning_runner
from saematch.texts.hub import HubSet
from saematch.texts.readers import Reader
from saematch.texts.sources import LocalTexts, TextSet
from saematch.texts.token_cache import load_texts, resolve_texts
from saematch.texts.tokens import tokenise
from saematch.texts.trainer import TrainerSpec
from saematch.training.collect import Collection, collect, open_store

CPU = TrainerSpec(accelerator="cpu", batch_size=2)
KEYS = (SaeKey("default", 1), SaeKey("default", 2))
PAIR = Pair(*KEYS)
ARM = Arm("threshold", Parts(), Optimal())


class World(NamedTuple):
    lm: Any
    saes: dict
    batches: tuple
    texts: LocalTexts


@pytest.fixture(scope="module")
def world(tiny):
    lm = LmSource(str(tiny / "lm"), "tiny").load()
    source = SaeFolders(str(tiny / "saes/layer_{layer}"))
    batches = tuple(tokenise(TextSet("t", tuple(TEXTS)), lm, 10).batches(2))
    texts = LocalTexts([str(tiny / "texts.jsonl")], None, 10)
    return World(lm, {key: source.load(key.layer) for key in KEYS}, batches, texts)


def listed(value: Any) -> Any:
    """Return a value that ``==`` can compare."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {str(name): listed(inner) for name, inner in value.items()}
    fields = getattr(value, "__dict__", None)
    return listed(fields) if fields else value


def matches(world: World, folder: Path) -> Any:
    return MatchStore(folder / "matches").match(SaeShelf.of(world.saes), *KEYS, ARM).hash


def run_matches(world: World, folder: Path) -> Any:
    """The matches in a run's folder; those of the store are new each time."""
    store = MatchStore(folder.with_name(f"other {folder.name}"))
    result = match_pairs(world.saes, (PAIR,), {"a": ARM}, store, folder)
    (path,) = folder.rglob("*.safetensors")
    assert Match.load(path)[0].hash == result.hashes["a"][PAIR]
    return result.hashes["a"][PAIR]


def sums(world: World, folder: Path) -> Any:
    store = MatchStore(folder.with_name(f"other {folder.name}"))
    of_pairs = match_pairs(
        world.saes, (PAIR,), {"a": ARM}, store, folder.with_name(f"m {folder.name}")
    )
    evaluations = [CoActivation(), Skipping(("drop",))]
    subject = subject_of(world.saes, of_pairs, {"a": ARM}, folder)
    subject = recorded(subject, evaluations, world.lm, {"t": world.batches}, CPU)
    return {
        name: {tensor: values.tolist() for tensor, values in sums_of(recording).items()}
        for name, recording in subject.recordings.items()
    }


def tokens(world: World, folder: Path) -> Any:
    return listed(load_texts(resolve_texts(world.texts, folder), world.lm).tokens)


def text_pass(world: World) -> TextPass:
    return TextPass({"": Reader(world.lm, {"t": world.batches})}, Models(), CPU)


def contexts(world: World, folder: Path) -> Any:
    store = ContextStore(SaeShelf.of(world.saes), text_pass(world), folder, 2, 1)
    recorder, recording = store.recorder(folder.with_name(f"left {folder.name}")), None
    if recorder is not None:
        recording = store.texts.record(store.saes, {"r": recorder}, "contexts")["r"]
    return listed(store.contexts(recording))


def scales(world: World, folder: Path) -> Any:
    relu = {k: replace(sae, threshold=None, activation="relu") for k, sae in world.saes.items()}
    spec = ActivationQuantile(quantile=0.5, n_tokens=10_000)
    shelf = by_activation(spec, SaeShelf.of(relu), text_pass(world), folder)
    return [shelf[key].stand_in.tolist() for key in KEYS]


def collection(world: World, folder: Path) -> Any:
    spec = Collection(40, 10, "float32", str(folder))
    result = collect(world.lm, world.texts, (1, 3), spec, CPU, folder)
    opened = open_store(result.folder)
    assert opened.facts == result.facts
    assert opened.files == result.files
    return [result.layer(n).rows(torch.arange(len(result.layer(n)))).tolist() for n in (1, 3)]


KINDS: dict[str, Callable[[World, Path], Any]] = {
    f.__name__: f for f in (matches, run_matches, sums, tokens, contexts, scales, collection)
}


def places(path: Path) -> list[int]:
    """Return where bytes are flipped: length, names, facts, digest, first and last tensor."""
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    named = [content.index(part) + 3 for part in (b"dtype", b"__metadata__", b'"key"', b"digest")]
    return [0, 6, 9, *named, header, (header + len(content)) // 2, len(content) - 1]


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    part = path.with_name("flipped")
    part.write_bytes(content)
    part.replace(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_is_noticed_and_the_file_made_again(world, tmp_path, kind, caplog):
    folder = tmp_path / "kept"
    expected = KINDS[kind](world, folder)
    files = sorted(folder.rglob("*.safetensors"))
    assert len(files) >= 1
    for number in range(len(places(files[0]))):
        path = files[number % len(files)]
        flip(path, places(path)[number])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert KINDS[kind](world, folder) == expected
        warnings = [r.getMessage() for r in caplog.records if "damaged" in r.getMessage()]
        assert len(warnings) == 1
        assert warnings[0].startswith(f"{path} is damaged (")
        assert sorted(folder.rglob("*.safetensors")) == files
    caplog.clear()
    assert KINDS[kind](world, folder) == expected
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_key_is_made_again(world, tmp_path, kind, caplog):
    folder = tmp_path / "kept"
    expected = KINDS[kind](world, folder)
    path = max(folder.rglob("*.safetensors"))
    other = tmp_path / "other" / path.name
    write(other, load_file(path), {n: str(fact) for n, fact in read_facts(path).items()})
    other.replace(path)
    assert KINDS[kind](world, folder) == expected
    assert f"{path} is damaged (it is a copy of other/{path.stem})" in caplog.text


def test_batches_of_contexts_that_a_killed_pass_left(world, tmp_path, monkeypatch, caplog):
    expected = contexts(world, tmp_path / "whole")
    real, done = lightning_runner.write_sums, []

    def breaking(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(lightning_runner, "write_sums", breaking)
        with pytest.raises(KeyboardInterrupt):
            contexts(world, tmp_path / "kept")
    path, _ = (tmp_path / "left kept").iterdir()
    flip(path, path.stat().st_size - 1)
    assert contexts(world, tmp_path / "kept") == expected
    assert f"{path} is damaged (" in caplog.text


def test_notes_of_collections_and_what_nobody_makes_again(world, tmp_path, caplog):
    expected = collection(world, tmp_path)
    (note,) = tmp_path.rglob("store.json")
    flip(note, 100)
    assert collection(world, tmp_path) == expected
    path = max(tmp_path.rglob("0*.safetensors"))
    flip(path, path.stat().st_size - 1)
    with pytest.raises(InputError, match=r"000\d+.safetensors is damaged .*: collect the hidden"):
        open_store(note.parent)
    assert path.exists(), "it is still told that the store is not whole"
    assert collection(world, tmp_path) == expected
    flip(note, 100)
    with pytest.raises(InputError, match="has no complete set of hidden states"):
        open_store(note.parent)


def test_a_collection_that_is_being_made_again_is_not_complete(world, tmp_path, monkeypatch):
    collection(world, tmp_path)
    (note,) = tmp_path.rglob("store.json")
    path = max(tmp_path.rglob("0*.safetensors"))
    path.unlink()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(lightning_runner, "write_sums", interrupted)
        with pytest.raises(KeyboardInterrupt):
            collection(world, tmp_path)
    with pytest.raises(InputError, match="has no complete set of hidden states"):
        open_store(note.parent)


def test_a_damaged_revision_note_is_ignored(tmp_path, monkeypatch, caplog):
    answers = [SimpleNamespace(sha="c" * 40)]

    def dataset_info(*_, **__):
        if not answers:
            raise OSError("no answer")
        return answers[0]

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    hub_set = HubSet("some/web")
    assert hub_set.resolve(tmp_path).revision == "c" * 40
    (note,) = tmp_path.iterdir()
    size = note.stat().st_size
    online, offline = list(answers), []
    for position in (0, 20, size // 2, size - 30, size - 1):
        answers[:] = offline
        assert hub_set.resolve(tmp_path).revision == "c" * 40
        flip(note, position)
        with pytest.raises(InputError, match="cannot read the data set 'some/web'"):
            hub_set.resolve(tmp_path)
        assert f"{note} is damaged (" in caplog.text
        caplog.clear()
        answers[:] = online
        assert hub_set.resolve(tmp_path).revision == "c" * 40
    assert json.loads(note.read_text())["commit"] == "c" * 40


def test_files_of_the_zoo_are_whole_too(tmp_path, monkeypatch):
    assert ZooSaes("chain", 1024, 20).truth(0, 1).is_permutation
    match = Match.from_columns(torch.tensor([1, 0]), 2)
    path = tmp_path / "0-1.safetensors"
    match.save(path)
    for position in places(path):
        flip(path, position)
        with pytest.raises(InputError, match=f"{path} is not a whole match file"):
            Match.load(path)
        match.save(path)


def test_almost_equal_quantiles_have_different_kept_scales(world, tmp_path):
    relu = {k: replace(sae, threshold=None, activation="relu") for k, sae in world.saes.items()}
    identities = set()
    for quantile in (0.1234567, 0.1234568):
        spec = ActivationQuantile(quantile=quantile, n_tokens=10_000)
        shelf = by_activation(spec, SaeShelf.of(relu), text_pass(world), tmp_path)
        identities.add(shelf.facts[KEYS[0]].identity)
    assert len(identities) == 2
