"""Language models from Hugging Face transformers. The only file that knows ``transformers``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError

from saematch.lm.hooks import LanguageModel

ZOO = Path(__file__).parent.parent / "zoo"


@dataclass(frozen=True)
class LmSource:
    """Spec of a decoder-only language model: a hub name or a folder."""

    path: str
    """Hub name or folder; ``zoo`` is the embedded model."""
    name: str
    """The name by which SAEs say what they were trained on."""
    revision: str | None = None
    dtype: str = "float32"
    """``float32``, ``bfloat16`` or ``float16``."""
    device_map: str | Mapping[str, int | str] | None = None
    """For a model too large for one device: ``auto`` spreads its blocks over all GPUs and what is
    left over the CPU's memory; or the device of each module by name. None leaves the whole model
    to the trainer's device."""

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype {self.dtype!r} is not float32, bfloat16 or float16")

    def load(self) -> LanguageModel:
        """Load weights and tokenizer; ``ValueError`` if there is no such model."""
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        if self.device_map is not None and find_spec("accelerate") is None:
            raise ValueError("model.device_map needs a package: pip install accelerate")
        where = str(ZOO / "lm") if self.path == "zoo" else self.path
        try:
            tokenizer = AutoTokenizer.from_pretrained(where, revision=self.revision)
            model = AutoModelForCausalLM.from_pretrained(
                where,
                revision=self.revision,
                dtype=getattr(torch, self.dtype),
                device_map=self.device_map,
            )
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(
                f"cannot load the language model {self.path!r}: {str(error).splitlines()[0]}"
            ) from error
        revision = getattr(model.config, "_commit_hash", None) or _digest(Path(where))
        return LanguageModel(model.eval().requires_grad_(False), tokenizer, self.name, revision)


def _digest(folder: Path) -> str:
    """Return a hash of a folder's configuration and weights."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.name == "config.json" or path.suffix in (".safetensors", ".bin"):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()[:16]}"
