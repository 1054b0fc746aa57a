"""Readers of weights files, and helpers for other libraries' names of tensors."""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from saematch.core.errors import InputError
from saematch.core.files import reading

log = logging.getLogger(__name__)
_POINTER = b"version https://git-lfs.github.com/spec/v1"
_DAMAGED = (
    AttributeError,
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)
"""Errors of the three libraries for a file that is truncated or in another format."""


class Content(NamedTuple):
    """Content of a weights file."""

    tensors: dict[str, Tensor]
    """Tensors and single numbers, by name."""
    other: dict[str, Any]
    """Other entries, such as texts; None for objects that NumPy would have to unpickle."""


def read_tensors(path: Path) -> Content:
    """Return the content of a ``.npz``, ``.pt`` or ``.safetensors`` file.

    Raises ``InputError`` for a damaged file, for a git-lfs pointer, and for a ``.pt`` file with
    more than tensors and plain values, since opening it could run code.
    """
    refuse_pointer(path)
    try:
        entries = dict(_entries(path))
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is damaged, or contains more than tensors; such files are not opened, since "
            "that could run code; save only the SAE's state_dict"
        ) from error
    except _DAMAGED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} is damaged or incomplete ({reason}); download or train the SAE again"
        ) from error
    tensors = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    other = {name: value for name, value in entries.items() if name not in tensors}
    if other:
        log.info("%s: ignoring entries that are not tensors: %s", path, ", ".join(other))
    return Content(tensors, other)


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".safetensors":
        yield from load_file(path).items()
    elif path.suffix == ".npz":
        with path.open("rb") as file, np.load(file) as arrays:  # NumPy leaves a damaged file open
            for name in arrays.files:
                yield name, _from_numpy(arrays, name)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, value in state.items():
            plain = isinstance(value, (bool, int, float, complex))
            yield str(name), torch.as_tensor(value) if plain else value


def _from_numpy(arrays: Any, name: str) -> Any:
    """Return an array as a tensor, a text array as text, and None for a pickled one."""
    try:
        array = arrays[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        return None
    if array.dtype.kind not in "biufc":
        return array.tolist()
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def refuse_pointer(path: Path) -> None:
    """Raise ``InputError`` if a file is a git-lfs pointer instead of the real file."""
    with reading(path), path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise InputError(
                f"{path} is a git-lfs pointer, not the file itself: run 'git lfs pull' in its "
                "repository"
            )


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return tensors under new names, with the weights of linear layers transposed."""
    return {
        names.get(name, name): t.T if name.endswith(".weight") and t.ndim == 2 else t
        for name, t in tensors.items()
    }


def check_size(
    where: str, tensors: Mapping[str, Tensor], d_model: int | None, n_features: int | None
) -> None:
    """Raise ``InputError`` if the shape of ``W_enc`` differs from the sizes in the settings.

    A size of None is not checked.
    """
    if "W_enc" not in tensors or tensors["W_enc"].ndim != 2:
        return
    d, n = tensors["W_enc"].shape
    stated = d if d_model is None else d_model, n if n_features is None else n_features
    if (d, n) != stated:
        raise InputError(
            f"{where}: W_enc has shape {(d, n)}, but its settings state {stated[1]} features "
            f"of {stated[0]} numbers; the file is damaged or has another layout"
        )


def present(*paths: Path) -> list[Path]:
    """Return the paths that exist."""
    return [path for path in paths if path.exists()]


def short_name(model: str | None) -> str:
    """Return a model's name without the organisation in front."""
    return (model or "").rpartition("/")[2]


def required_l0(folder: Path, l0: float | None) -> float:
    """Return the mean L0; ``InputError`` if the folder states none."""
    if l0 is None:
        raise InputError(f"{folder} does not state the SAE's mean L0")
    return l0
