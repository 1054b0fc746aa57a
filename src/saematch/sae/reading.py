"""Files of tensors and of settings, and what other libraries call what is in them."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a ``.npz``, ``.pt`` or ``.safetensors`` file by name.

    Raises ``ValueError`` for a damaged file, and for a ``.pt`` file of more than tensors and plain
    values: it could run code when opened, so it is not.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            with path.open("rb") as file, np.load(file) as arrays:  # numpy leaves a bad one open
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        held = torch.load(path, map_location="cpu", weights_only=True)
        return {str(name): torch.as_tensor(value) for name, value in held.items()}
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is damaged, or holds more than tensors and is not opened, since that could "
            "run code; save the SAE's state_dict alone"
        ) from error
    except _DAMAGED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is damaged or incomplete ({reason}); fetch or train the SAE again"
        ) from error


def read_config(path: Path, needed: Sequence[str] = ()) -> dict[str, Any]:
    """Return the settings in a JSON file; empty if there is no file and nothing is needed of it."""
    if not path.exists() and not needed:
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); fetch the SAE again") from error
    missing = [name for name in needed if not isinstance(config, dict) or name not in config]
    if missing or not isinstance(config, dict):
        raise ValueError(f"{path} does not hold the settings of an SAE: it lacks {missing}")
    return config


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return tensors under our names; the weight of a linear layer is turned round."""
    return {
        names.get(name, name): t.T if name.endswith(".weight") and t.ndim == 2 else t
        for name, t in tensors.items()
    }


def check_size(where: str, tensors: Mapping[str, Tensor], d_model: int, n_features: int) -> None:
    """Raise ``ValueError`` if ``W_enc`` is not of the size that the settings state."""
    if "W_enc" in tensors and tensors["W_enc"].ndim == 2:
        held = tuple(tensors["W_enc"].shape)
        if held != (d_model, n_features):
            raise ValueError(
                f"{where}: W_enc has shape {held}, but its settings state {n_features} features "
                f"of {d_model} numbers; the file is damaged or in another layout"
            )


def present(*paths: Path) -> list[Path]:
    """Return those paths that exist."""
    return [path for path in paths if path.exists()]


def short_name(model: str | None) -> str:
    """Return a model's name without its owner."""
    return (model or "").rpartition("/")[2]


def told(folder: Path, l0: float | None) -> float:
    """Return the stated mean L0, ``ValueError`` if none is."""
    if l0 is None:
        raise ValueError(f"{folder} does not tell the SAE's mean L0")
    return l0
