"""Files of tensors, and what other libraries call the tensors in them."""

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
"""What the three libraries raise on a file that is cut off or not theirs."""


class Held(NamedTuple):
    """What a file of weights holds."""

    tensors: dict[str, Tensor]
    """By name; single numbers too."""
    beside: dict[str, Any]
    """Entries that are no tensors, such as texts; objects that numpy would have to unpickle are
    left out."""


def read_tensors(path: Path) -> Held:
    """Return what a ``.npz``, ``.pt`` or ``.safetensors`` file holds.

    Raises ``InputError`` for a damaged file, for a git-lfs pointer, and for a ``.pt`` file of more
    than tensors and plain values: it could run code when opened, so it is not.
    """
    refuse_pointer(path)
    try:
        held = dict(_entries(path))
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is damaged, or holds more than tensors and is not opened, since that could "
            "run code; save the SAE's state_dict alone"
        ) from error
    except _DAMAGED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} is damaged or incomplete ({reason}); fetch or train the SAE again"
        ) from error
    tensors = {name: value for name, value in held.items() if isinstance(value, Tensor)}
    beside = {name: value for name, value in held.items() if name not in tensors}
    if beside:
        log.info("%s: ignoring entries that are no tensors: %s", path, ", ".join(beside))
    return Held(tensors, beside)


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".safetensors":
        yield from load_file(path).items()
    elif path.suffix == ".npz":
        with path.open("rb") as file, np.load(file) as arrays:  # numpy leaves a bad one open
            for name in arrays.files:
                yield name, _from_numpy(arrays, name)
    else:
        held = torch.load(path, map_location="cpu", weights_only=True)
        for name, value in held.items():
            plain = isinstance(value, (bool, int, float, complex))
            yield str(name), torch.as_tensor(value) if plain else value


def _from_numpy(arrays: Any, name: str) -> Any:
    """Return an array as a tensor, as text if it is text, and None if it has to be unpickled."""
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
    """Raise ``InputError`` if a file is a git-lfs pointer, which stands for the real file."""
    with reading(path), path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise InputError(
                f"{path} is a git-lfs pointer, not the file itself: run 'git lfs pull' in its "
                "repository"
            )


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return tensors under our names; the weight of a linear layer is turned round."""
    return {
        names.get(name, name): t.T if name.endswith(".weight") and t.ndim == 2 else t
        for name, t in tensors.items()
    }


def check_size(
    where: str, tensors: Mapping[str, Tensor], d_model: int | None, n_features: int | None
) -> None:
    """Raise ``InputError`` if ``W_enc`` is not of the size that the settings state.

    None stands for a size that they do not state.
    """
    if "W_enc" not in tensors or tensors["W_enc"].ndim != 2:
        return
    held = tuple(tensors["W_enc"].shape)
    stated = held[0] if d_model is None else d_model, held[1] if n_features is None else n_features
    if held != stated:
        raise InputError(
            f"{where}: W_enc has shape {held}, but its settings state {stated[1]} features "
            f"of {stated[0]} numbers; the file is damaged or in another layout"
        )


def present(*paths: Path) -> list[Path]:
    """Return those paths that exist."""
    return [path for path in paths if path.exists()]


def short_name(model: str | None) -> str:
    """Return a model's name without its owner."""
    return (model or "").rpartition("/")[2]


def told(folder: Path, l0: float | None) -> float:
    """Return the stated mean L0, ``InputError`` if none is."""
    if l0 is None:
        raise InputError(f"{folder} does not tell the SAE's mean L0")
    return l0
