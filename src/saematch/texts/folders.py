"""The files of texts that a path, a folder or a pattern means."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from saematch.core.errors import FileError, InputError
from saematch.core.files import parse_json, reading
from saematch.texts.reading import SUFFIXES

log = logging.getLogger(__name__)

PACKED = (".gz", ".zst", ".bz2", ".xz", ".lz4")
"""Endings of compressed files, which are not read."""
FACTS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files of the ``datasets`` library that hold no texts."""
SPLITS = ("train", "training", "validation", "valid", "dev", "val", "test", "eval")
"""Names of a data set's splits; the number of a shard may follow in the name of a file."""
_SHARD = re.compile(r"[-_.]\d+(-of-\d+)?(-\w+)?$")


def find_files(entry: str) -> tuple[str, list[Path]]:
    """Return a name for the texts at a path, a folder or a pattern, and their files.

    A pattern with ``*``, ``?`` or ``[...]`` is named by what comes before these, or by its folder.
    A folder means the files in it or, if it has none, those in its only folder that has some: the
    layouts of ``save_to_disk`` and of a snapshot of the Hugging Face hub. Of several splits,
    ``train`` is taken. Raises ``InputError`` if there is no file, or a choice to make.
    """
    path = Path(entry)
    if path.is_dir():
        return _name(path.resolve()), _in_folder(path)
    if path.is_file():
        return path.stem, [path]
    if not glob.has_magic(entry):
        raise InputError(f"cannot read the texts in {entry}: there is no such file or folder")
    found = sorted(p for p in map(Path, glob.glob(entry, recursive=True)) if p.is_file())
    if not found:
        raise InputError(f"no file is called like {entry}")
    before = re.split(r"[*?\[]", path.name)[0].strip("-_. ")
    return before or found[0].resolve().parent.name, found


def _name(folder: Path) -> str:
    """Return the folder's name; for a snapshot in the hub's cache, the data set's."""
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("datasets--"):
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def _in_folder(folder: Path) -> list[Path]:
    """Return the files of texts in a folder or, if it has none, in one of its folders."""
    own = _texts(folder)
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    below = {path.name: files for path in folders if (files := _texts(path))}
    if own and "data" in below:
        raise InputError(
            f"{folder} has files of texts ({own[0].name}) and so has its folder data: set "
            f"dataset.paths to '{folder}/data', or to a pattern as '{folder}/*{own[0].suffix}'"
        )
    if not own and not below:
        raise InputError(
            f"the folder {folder} holds no file ending in {', '.join(SUFFIXES)}; unpack compressed "
            "files"
        )
    if not own:
        own = _train(folder, below) if len(below) > 1 else next(iter(below.values()))
    splits: dict[str, list[Path]] = {}
    for path in own:
        splits.setdefault(_SHARD.sub("", path.stem), []).append(path)
    others = [name for name in splits if name not in SPLITS]
    if len(splits) - len(others) < 2:
        return own
    if others:
        raise InputError(
            f"{folder} has files of several splits and {splits[others[0]][0].name}, which belongs "
            f"to none: set dataset.paths to the files, as in '{folder}/train*'"
        )
    return _train(folder, splits)


def _texts(folder: Path) -> list[Path]:
    """Return the files of texts that lie in a folder."""
    if (folder / "state.json").exists():
        return _saved(folder)
    there = sorted(path for path in folder.iterdir() if path.is_file())
    for path in there:
        if path.suffix in PACKED and Path(path.stem).suffix in SUFFIXES:
            raise InputError(f"{path} is compressed: unpack it, or move it to another folder")
    return [path for path in there if path.suffix.lower() in SUFFIXES and path.name not in FACTS]


def _saved(folder: Path) -> list[Path]:
    """Return the files that ``save_to_disk`` wrote; the library's caches may lie beside them."""
    path = folder / "state.json"
    try:
        with reading(path):
            state = parse_json(path.read_bytes())
        files = [folder / file["filename"] for file in state["_data_files"]]
    except FileError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not as the datasets library writes it ({error})") from error
    if state.get("_indices_data_files"):
        raise InputError(f"{folder} holds a selection of rows: save it with a newer datasets")
    return files


def _train(folder: Path, parts: Mapping[str, Sequence[Path]]) -> list[Path]:
    """Return the files of ``train``; ``InputError`` if the parts are no splits or lack it."""
    first = next(iter(parts.values()))[0]
    if "train" not in parts or not set(parts) <= set(SPLITS):
        name = next(iter(parts))
        example = first.parent if first.parent.name == name else f"{first.parent}/{name}*"
        raise InputError(
            f"{folder} holds several sets of texts ({', '.join(parts)}): choose, as in "
            f"dataset.paths=['{example}']"
        )
    others = ", ".join(name for name in parts if name != "train")
    log.warning("%s: taking the split train; dataset.paths can name the others: %s", folder, others)
    return list(parts["train"])
