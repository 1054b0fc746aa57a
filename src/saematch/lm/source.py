"""Spec of a language model, and the steps to load it."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from saematch.core.downloads import hub_model, is_cached, no_answer
from saematch.core.errors import InputError
from saematch.core.files import PACKAGE, expand_home
from saematch.core.memory import is_out_of_memory, memory_shortage
from saematch.core.specs import Text, spec
from saematch.lm.checkpoint import (
    MODEL_ERRORS,
    Parts,
    UnusableModelError,
    read_parts,
    read_weights,
    refuse_files,
    weight_files,
)
from saematch.lm.hooks import LanguageModel
from saematch.lm.names import bare
from saematch.lm.self_test import added_tokens, self_test

log = logging.getLogger(__name__)

ZOO = PACKAGE / "zoo"
ZOO_PATH = "zoo"
"""``model.path`` of the embedded model."""
LESS_MEMORY = (
    "set model.dtype=bfloat16, spread the model with trainer=large, or choose a smaller model"
)
NO_BOS, OWN_BOS = "none", "tokenizer"
AUTO = "auto"
CONTENT = (".json", ".txt", ".jinja", ".model", ".safetensors", ".bin")
"""Suffixes of the files of a model and its tokenizer."""


@spec("model")
class LmSource:
    """Spec of a decoder-only language model: a hub name or a folder.

    Texts are read without a chat template. BOS in front is the only special token that is added.
    The name of a special token in a text is read as that token.
    """

    path: Text
    """Hub name or folder; ``zoo`` is the embedded model."""
    name: Text
    """Name by which SAEs identify the model that they were trained on."""
    revision: str | None = None
    """Commit, tag or branch on the hub; None for the newest commit."""
    dtype: str = "float32"
    """``float32``, ``bfloat16``, ``float16``, or ``auto``; see ``dtype_on``."""
    bos: str = OWN_BOS
    """First token of every text: ``tokenizer`` (the tokenizer's own BOS), the text of a token, such
    as ``<|endoftext|>``, or ``none``: the first token of the text itself. Metrics exclude that
    token as they exclude BOS, since any first token attracts much of the attention."""
    made_by: str | None = None
    """Command that creates the folder, if the model is not on the hub."""
    device_map: str | Mapping[str, int | str] | None = None
    """Devices of a model that is too large for one. ``auto`` spreads its blocks over all GPUs and
    puts the rest into CPU memory; a mapping gives the device of each module by name. None puts the
    whole model on the trainer's device."""

    def __post_init__(self) -> None:
        expand_home(self, "path")
        if self.dtype not in (AUTO, "float32", "bfloat16", "float16"):
            raise InputError(
                f"model.dtype={self.dtype!r} is not auto, float32, bfloat16 or float16"
            )
        if not self.bos:
            raise InputError(
                "model.bos is empty: it is tokenizer, none, or the text of a token, such as "
                "'<|endoftext|>'"
            )

    def is_called(self, name: str) -> bool:
        """Return whether ``name`` is a name of this model.

        Releases of SAEs write the same model in several ways (``gpt2-small`` and
        ``openai-community/gpt2``, with and without the owner). Name and path are both compared, in
        lower case and without the part before the last slash.
        """
        return bare(name) in (bare(self.name), bare(self.path))

    def open(self, device_type: str) -> OpenedModel:
        """Read configuration and tokenizer, and log the size of the download.

        ``device_type`` is the type of the model's device (``TrainerSpec.device_type``). Raises
        ``InputError`` if the model or the BOS token does not exist, if its licence has not been
        accepted, if it needs code of its own, or if its weights are pickled.
        """
        if self.device_map is not None and find_spec("accelerate") is None:
            raise InputError("model.device_map needs a package: pip install accelerate")
        where = str(ZOO / "lm") if self.path == ZOO_PATH else self.path
        self._refuse_no_folder(where)
        files = hub_model(where, self.revision)
        if files is None:
            self._refuse_no_copy(where)
        with self._readable(where):
            refuse_files(where, files)
            parts = read_parts(where, self.revision)
        if files is not None:
            download = files.to_fetch(weight_files(files).__contains__)
            if download.n_files:
                log.info("Language model %s: %s to fetch", self.path, download)
        dtype = self.dtype if self.dtype != AUTO else dtype_on(device_type)
        return OpenedModel(self, where, parts, self._bos_id(parts.tokenizer), dtype)

    def load(self, device_type: str = "cpu") -> LanguageModel:
        """Load tokenizer and weights; raises the errors of ``open`` and ``OpenedModel.load``."""
        return self.open(device_type).load()

    @contextmanager
    def _readable(self, where: str) -> Iterator[None]:
        """Raise ``InputError`` with the reason if the model cannot be read."""
        try:
            yield
        except UnusableModelError as error:
            raise InputError(f"cannot load the language model {self.path!r}: {error}") from error
        except MODEL_ERRORS as error:
            if is_out_of_memory(error):
                raise
            raise InputError(
                f"cannot load the language model {self.path!r}: {_reason(error)}. "
                f"{self._advice(where, str(error))}"
            ) from error

    def _bos_id(self, tokenizer: Any) -> int | None:
        """Return the id of the first token of every text; None for ``none``."""
        if self.bos == NO_BOS:
            return None
        if self.bos == OWN_BOS:
            if tokenizer.bos_token_id is None:
                raise InputError(
                    f"the tokenizer of {self.path!r} has no BOS token: set model.bos to the token "
                    "that separated documents in the model's training, such as "
                    "model.bos='<|endoftext|>', or model.bos=none if there was none"
                )
            return int(tokenizer.bos_token_id)
        ids = tokenizer(self.bos, add_special_tokens=False).input_ids
        if len(ids) != 1:
            raise InputError(
                f"model.bos={self.bos!r} is {len(ids)} tokens of {self.path!r}, not one: use the "
                "text of a token in its vocabulary, or tokenizer, or none"
            )
        return int(ids[0])

    def _refuse_no_folder(self, where: str) -> None:
        """Raise ``InputError`` if the folder is missing and the path cannot be a hub name."""
        on_hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", where) and not self.made_by
        if on_hub or Path(where).is_dir():
            return
        advice = f"run {self.made_by}, which creates it" if self.made_by else "set model.path"
        raise InputError(
            f"cannot load the language model {where!r}: there is no such folder; {advice}"
        )

    def _refuse_no_copy(self, where: str) -> None:
        """Raise ``InputError`` if neither a folder nor the cache has the model."""
        needed = ("config.json", "*.safetensors")
        if all(is_cached(where, pattern, self.revision) for pattern in needed):
            return
        raise InputError(
            f"cannot load the language model {self.path!r}: there is no such folder, it is not in "
            f"the cache, and {no_answer()}: check name and connection, or use a copy on disk with "
            "model=local model.path=FOLDER"
        )

    def _advice(self, where: str, error: str) -> str:
        if Path(where).is_dir():
            return "The folder must hold the model and tokenizer as saved by save_pretrained"
        local = "use a copy on disk with model=local model.path=FOLDER"
        if any(sign in error for sign in ("gated", "401 Client", "403 Client")):
            page = "its page of the Hugging Face hub"
            return f"Accept its licence on {page} and set HF_TOKEN, or {local}"
        return f"Check name and connection, or {local}"


@dataclass(frozen=True)
class OpenedModel:
    """A model whose configuration and tokenizer have been read, but not its weights."""

    source: LmSource
    where: str
    parts: Parts
    bos_id: int | None
    dtype: str
    """Name of the dtype of the weights in PyTorch."""

    @memory_shortage("loading the language model", LESS_MEMORY)
    def load(self) -> LanguageModel:
        """Load the weights and test the model.

        Raises ``InputError`` if a weight is missing, unexpected or has another shape, if the model
        fails its self-test, or if it does not fit into memory.
        """
        source, tokenizer = self.source, self.parts.tokenizer
        with source._readable(self.where):
            dtype = getattr(torch, self.dtype)
            model = read_weights(self.where, self.parts, dtype, source.device_map)
            revision = self.parts.revision or _digest(Path(self.where))
            model = model.eval().requires_grad_(False)
            special = _special_ids(tokenizer, self.bos_id)
            lm = LanguageModel(model, tokenizer, source.name, revision, self.bos_id, special)
        self_test(lm)
        return lm


_CPU = Path("/proc/cpuinfo")
_BFLOAT16 = re.compile(r"\b(avx512_bf16|amx_bf16|bf16)\b")
"""Flags of processors that multiply bfloat16 numbers: two of x86, one of ARM."""


def dtype_on(device_type: str) -> str:
    """Return the dtype of ``model.dtype=auto``, ``bfloat16`` or ``float32``.

    It is bfloat16 except on a CPU that has no instructions for it, or whose flags cannot be read:
    such a CPU takes twice as long in bfloat16 as in float32.
    """
    has_flag = _CPU.is_file() and _BFLOAT16.search(_CPU.read_text(encoding="utf-8"))
    return "float32" if device_type == "cpu" and not has_flag else "bfloat16"


def _special_ids(tokenizer: Any, bos_id: int | None) -> frozenset[int]:
    """Return BOS and all tokens that the tokenizer marks as special, including ``<unk>``."""
    marked = {number for number, token in added_tokens(tokenizer).items() if token.special}
    return frozenset({*marked, *tokenizer.all_special_ids, bos_id} - {None})


def _reason(error: BaseException) -> str:
    """Return the first line of an error, joined with the second if it ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1]).rstrip(".")
    if isinstance(error, OSError | ValueError) and reason:
        return reason
    return f"{type(error).__name__}: {reason}"


def _digest(folder: Path) -> str:
    """Return a hash of a folder's configuration, weights and tokenizer."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix in CONTENT:
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()[:16]}"
