"""A kept file has the content that was written under its name, or is computed again."""

import json
import logging
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from safetensors.torch import load_file, save_file

from saematch.core import store
from saematch.core.errors import FileError
from saematch.core.store import is_kept, missing, read, read_note, write, write_note

TENSORS = {"a": torch.arange(5), "b": torch.tensor([[0.5, -1.0]]), "none": torch.zeros(0, 3)}


def change(path: Path, content: bytes) -> None:
    """Replace a file as another process does."""
    part = path.with_name("changed")
    part.write_bytes(content)
    part.replace(path)


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "sums" / "k.safetensors"
    assert read(path) is None
    write(path, TENSORS, {"about": "x"})
    tensors = read(path)
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    facts = store.read_facts(path)
    assert (facts["about"], facts["key"]) == ("x", "sums/k")
    assert load_file(path).keys() == TENSORS.keys(), "other programs can read it too"
    write_note(tmp_path / "n.json", {"commit": "c", "digest_of": ["ü"]})
    assert read_note(tmp_path / "n.json") == {"commit": "c", "digest_of": ["ü"]}
    write_note(tmp_path / "n.json", {"commit": "d"})
    assert read_note(tmp_path / "n.json") == {"commit": "d"}


@pytest.mark.parametrize("name", ["k.safetensors", "k.json"])
def test_any_flipped_byte_is_noticed(tmp_path, caplog, name):
    path = tmp_path / name
    if path.suffix == ".json":
        write_note(path, {"commit": "c"})
    else:
        write(path, TENSORS, {"about": "x"})
    whole = path.read_bytes()
    assert is_kept(path)
    for position in range(len(whole)):
        change(path, flipped(whole, position))
        with caplog.at_level(logging.WARNING):
            assert not is_kept(path), position
            assert not is_kept(path), position
        (record,) = caplog.records  # one warning
        assert record.getMessage().startswith(f"{path} is damaged (")
        caplog.clear()
    for size in range(len(whole)):
        change(path, whole[:size])
        assert not is_kept(path), size
    change(path, whole + b"\0")
    assert not is_kept(path)
    change(path, whole)
    assert is_kept(path)


def test_a_copy_under_another_name_or_in_another_folder_is_noticed(tmp_path, caplog):
    write(tmp_path / "sums" / "k.safetensors", TENSORS)
    write_note(tmp_path / "sums" / "k.json", {"commit": "c"})
    for name in ("k.safetensors", "k.json"):
        for copy in (tmp_path / "sums" / f"other-{name}", tmp_path / "matches" / name):
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes((tmp_path / "sums" / name).read_bytes())
            assert not is_kept(copy)
            assert f"{copy} is damaged (it is a copy of sums/k)" in caplog.text


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, b"null", b'{"key": "x"}'])
def test_other_files_are_made_again(tmp_path, content):
    for name in ("k.safetensors", "k.json"):
        (tmp_path / name).write_bytes(content)
        assert not is_kept(tmp_path / name)
    save_file(TENSORS, tmp_path / "k.safetensors", {"key": f"{tmp_path.name}/k"})
    assert missing([tmp_path / "k.safetensors"]) == [0]


def test_a_file_is_looked_at_once_unless_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "k.safetensors"
    write(path, TENSORS)
    changed = flipped(path.read_bytes(), 9)
    opened, real = [], Path.open
    monkeypatch.setattr(Path, "open", lambda *a, **k: opened.append(a[1:]) or real(*a, **k))
    assert missing([path] * 3) == []
    assert opened == [("rb",)]
    change(path, changed)
    opened.clear()
    assert missing([path]) == [0]
    assert opened == [("rb",)]


def test_a_good_file_stays_and_a_bad_one_is_replaced(tmp_path):
    path = tmp_path / "k.safetensors"
    write(path, {"x": torch.ones(1)})
    write(path, {"x": torch.zeros(1)})
    assert read(path)["x"] == 1, "another run has written the same"
    write(path, {"x": torch.zeros(1)}, keep=False)
    assert read(path)["x"] == 0
    change(path, b"bad")
    assert read(path) is None
    write(path, {"x": torch.ones(1)})
    assert read(path)["x"] == 1


def test_what_another_run_made_again_meanwhile_stays(tmp_path):
    path = tmp_path / "k.safetensors"
    path.write_bytes(b"bad")
    with store.replacing(path, is_kept) as part:
        write(path, TENSORS)
        part.write_bytes(b"late")
    assert read(path).keys() == TENSORS.keys()


N = 6


PATHS = [f"{number}.safetensors" for number in range(30)]


def _make(folder, both) -> None:
    for name in PATHS:
        both.wait()
        if read(folder / name) is None:
            write(folder / name, {"x": torch.full((1000,), 7)})
        assert (read(folder / name)["x"] == 7).all()


def test_two_processes_that_make_damaged_files_again_at_once(tmp_path):
    for name in PATHS:
        (tmp_path / name).write_bytes(b"bad")
    context = multiprocessing.get_context("fork")
    both = context.Barrier(2)
    processes = [context.Process(target=_make, args=(tmp_path, both)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert missing([tmp_path / name for name in PATHS]) == []
    assert len(list(tmp_path.iterdir())) == len(PATHS)


def test_threads_that_write_at_once(tmp_path):
    path, both = tmp_path / "k.safetensors", Barrier(N)

    def make(number):
        both.wait()
        write(path, {"x": torch.tensor(number)})

    with ThreadPoolExecutor(N) as pool:
        list(pool.map(make, range(N)))
    assert is_kept(path)
    assert list(tmp_path.iterdir()) == [path]


def test_the_digest_is_the_sha_256_with_zeros_in_its_place(tmp_path):
    import hashlib

    path = tmp_path / "n.json"
    write_note(path, {"commit": "c"})
    text = path.read_text()
    digest = json.loads(text)["digest"]
    assert hashlib.sha256(text.replace(digest, "0" * 64).encode()).hexdigest() == digest


def test_a_note_that_holds_the_same_is_not_written_again(tmp_path):
    path = tmp_path / "revisions" / "a.json"
    write_note(path, {"commit": "1", "layers": (0, 1)})
    before = path.stat()
    write_note(path, {"commit": "1", "layers": (0, 1)})
    assert path.stat().st_ino == before.st_ino, "the folder may be read-only"
    write_note(path, {"commit": "2", "layers": (0, 1)})
    assert read_note(path) == {"commit": "2", "layers": [0, 1]}


def test_a_kept_file_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "sums" / "k.safetensors"
    path.mkdir(parents=True)
    with pytest.raises(FileError, match=f"cannot read {path}: Is a directory"):
        is_kept(path)
    beyond = tmp_path / "file" / "sums" / "k.safetensors"
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=f"cannot read {beyond}: Not a directory"):
        is_kept(beyond)
