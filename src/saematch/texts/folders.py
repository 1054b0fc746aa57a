"""Find the text files at a path, in a folder or by a pattern."""

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
"""Suffixes of compressed files, which are not read."""
FACTS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files of the ``datasets`` library that hold no texts."""
SPLITS = ("train", "training", "validation", "valid", "dev", "val", "test", "eval")
"""Names of a data set's splits. In a file's name, the number of a shard may follow."""
_SHARD = re.compile(r"[-_.]\d+(-of-\d+)?(-\w+)?$")


def find_files(entry: str) -> tuple[str, list[Path]]:
    """Return a name for the texts at a path, a folder or a pattern, and their files.

    The name of a pattern is the text before its first ``*``, ``?`` or ``[...]``, or the name of the
    folder. For a folder, the files are those in it. If it has none, they are those in its only
    subfolder with text files, as in the layouts of ``save_to_disk`` and of a snapshot of the
    Hugging Face hub. If there are several splits, the files of ``train`` are returned. Raises
    ``InputError`` if there is no file, or if the choice is ambiguous.
    """
    path = Path(entry)
    if path.is_dir():
        return _name(path.resolve()), _in_folder(path)
    if path.is_file():
        return path.stem, [path]
    if not glob.has_magic(entry):
        raise InputError(f"cannot read the texts in {entry}: there is no such file or folder")
    files = sorted(p for p in map(Path, glob.glob(entry, recursive=True)) if p.is_file())
    if not files:
        raise InputError(f"no file matches {entry}")
    before = re.split(r"[*?\[]", path.name)[0].strip("-_. ")
    return before or files[0].resolve().parent.name, files


def _name(folder: Path) -> str:
    """Return the folder's name; for a snapshot in the hub's cache, the data set's name."""
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("datasets--"):
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def _in_folder(folder: Path) -> list[Path]:
    """Return the text files in a folder or, if it has none, in one of its subfolders."""
    files = _texts(folder)
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    below = {path.name: texts for path in folders if (texts := _texts(path))}
    if files and "data" in below:
        raise InputError(
            f"{folder} has text files ({files[0].name}), and its subfolder data has some too: set "
            f"dataset.paths to '{folder}/data', or to a pattern like '{folder}/*{files[0].suffix}'"
        )
    if not files and not below:
        raise InputError(
            f"the folder {folder} holds no file ending in {', '.join(SUFFIXES)}; unpack compressed "
            "files"
        )
    if not files:
        files = _train(folder, below) if len(below) > 1 else next(iter(below.values()))
    splits: dict[str, list[Path]] = {}
    for path in files:
        splits.setdefault(_SHARD.sub("", path.stem), []).append(path)
    others = [name for name in splits if name not in SPLITS]
    if len(splits) - len(others) < 2:
        return files
    if others:
        raise InputError(
            f"{folder} has files of several splits, and {splits[others[0]][0].name} belongs to "
            f"none of them: set dataset.paths to the files, as in '{folder}/train*'"
        )
    return _train(folder, splits)


def _texts(folder: Path) -> list[Path]:
    """Return the text files that are directly in a folder."""
    if (folder / "state.json").exists():
        return _saved(folder)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        if path.suffix in PACKED and Path(path.stem).suffix in SUFFIXES:
            raise InputError(f"{path} is compressed: unpack it, or move it to another folder")
    return [path for path in files if path.suffix.lower() in SUFFIXES and path.name not in FACTS]


def _saved(folder: Path) -> list[Path]:
    """Return the files that ``save_to_disk`` wrote, without the library's caches next to them."""
    path = folder / "state.json"
    try:
        with reading(path):
            state = parse_json(path.read_bytes())
        files = [folder / file["filename"] for file in state["_data_files"]]
    except FileError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a valid file of the datasets library: {error}") from error
    if state.get("_indices_data_files"):
        raise InputError(
            f"{folder} holds a selection of rows: save it with a newer version of datasets"
        )
    return files


def _train(folder: Path, parts: Mapping[str, Sequence[Path]]) -> list[Path]:
    """Return the files of ``train``; ``InputError`` if it is missing or a part is not a split."""
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
