"""Spec of a language model, and the steps in which it is loaded."""

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

from saematch.core.downloads import hub_model
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
from saematch.lm.self_test import added_tokens, self_test

log = logging.getLogger(__name__)

ZOO = PACKAGE / "zoo"
LESS_MEMORY = (
    "set model.dtype=bfloat16, spread the model with trainer=large, or take a smaller model"
)
NO_BOS, OWN_BOS = "none", "tokenizer"
CONTENT = (".json", ".txt", ".jinja", ".model", ".safetensors", ".bin")
"""Files that make up a model and its tokenizer in a folder."""


@spec("model")
class LmSource:
    """Spec of a decoder-only language model: a hub name or a folder.

    Texts are taken as they are: no chat template is applied to them, and no special token is put
    anywhere but BOS in front. The name of a special token in a text is read as that token.
    """

    path: Text
    """Hub name or folder; ``zoo`` is the embedded model."""
    name: Text
    """The name by which SAEs say what they were trained on."""
    revision: str | None = None
    """Commit, tag or branch of the hub; None for the newest commit."""
    dtype: str = "float32"
    """``float32``, ``bfloat16`` or ``float16``."""
    bos: str = OWN_BOS
    """What every text begins with: ``tokenizer`` (the tokenizer's own BOS), the text of a token,
    such as ``<|endoftext|>``, or ``none``: the text's own first token, which metrics leave out
    as they do BOS, since attention rests on whatever stands there."""
    made_by: str | None = None
    """The command that makes the folder, if it is not on the hub."""
    device_map: str | Mapping[str, int | str] | None = None
    """For a model too large for one device: ``auto`` spreads its blocks over all GPUs and what is
    left over the CPU's memory; or the device of each module by name. None leaves the whole model
    to the trainer's device."""

    def __post_init__(self) -> None:
        expand_home(self, "path")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise InputError(f"dtype {self.dtype!r} is not float32, bfloat16 or float16")
        if not self.bos:
            raise InputError(
                "model.bos is empty: it is tokenizer, none, or the text of a token, such as "
                "'<|endoftext|>'"
            )

    def is_called(self, name: str) -> bool:
        """Whether ``name`` is this model's.

        Releases of SAEs write one model in several ways (``gpt2-small`` and
        ``openai-community/gpt2``; with and without the owner): name and path both count, in
        small letters and without what stands before the last slash.
        """
        return _bare(name) in (_bare(self.name), _bare(self.path))

    def open(self) -> OpenedModel:
        """Read configuration and tokenizer, and log how much is still to be fetched.

        Raises ``InputError`` if there is no such model or no such BOS, if a licence has not been
        accepted, if the model needs code of its own, and if its weights are pickled.
        """
        if self.device_map is not None and find_spec("accelerate") is None:
            raise InputError("model.device_map needs a package: pip install accelerate")
        where = str(ZOO / "lm") if self.path == "zoo" else self.path
        self._refuse_no_folder(where)
        files = hub_model(where, self.revision)
        with self._readable(where):
            refuse_files(where, files)
            parts = read_parts(where, self.revision)
        if files is not None:
            download = files.to_fetch(weight_files(files).__contains__)
            if download.n_files:
                log.info("Language model %s: %s to fetch", self.path, download)
        return OpenedModel(self, where, parts, self._bos_id(parts.tokenizer))

    def load(self) -> LanguageModel:
        """Load tokenizer and weights; raises what ``open`` and ``OpenedModel.load`` raise."""
        return self.open().load()

    @contextmanager
    def _readable(self, where: str) -> Iterator[None]:
        """Say in one line what is wrong with a model that cannot be read."""
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
        """Return the token that every text begins with."""
        if self.bos == NO_BOS:
            return None
        if self.bos == OWN_BOS:
            if tokenizer.bos_token_id is None:
                raise InputError(
                    f"the tokenizer of {self.path!r} has no BOS token: set model.bos to the token "
                    "that parted documents in the model's training, such as "
                    "model.bos='<|endoftext|>', or model.bos=none if nothing stood before a text"
                )
            return int(tokenizer.bos_token_id)
        ids = tokenizer(self.bos, add_special_tokens=False).input_ids
        if len(ids) != 1:
            raise InputError(
                f"model.bos={self.bos!r} is {len(ids)} tokens of {self.path!r}, not one: take the "
                "text of a token of its vocabulary, or tokenizer, or none"
            )
        return int(ids[0])

    def _refuse_no_folder(self, where: str) -> None:
        """Say of a path that no hub can have that there is no such folder."""
        on_hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", where) and not self.made_by
        if on_hub or Path(where).is_dir():
            return
        how = f"run {self.made_by}, which makes it" if self.made_by else "set model.path"
        raise InputError(
            f"cannot load the language model {where!r}: there is no such folder; {how}"
        )

    def _advice(self, where: str, error: str) -> str:
        if Path(where).is_dir():
            return "The folder must be as transformers' save_pretrained writes it, tokenizer too"
        local = "take a copy on disk with model=local model.path=FOLDER"
        if any(sign in error for sign in ("gated", "401 Client", "403 Client")):
            page = "its page of the Hugging Face hub"
            return f"Accept its licence on {page} and set HF_TOKEN, or {local}"
        return f"Check name and connection, or {local}"


@dataclass(frozen=True)
class OpenedModel:
    """A model of which configuration and tokenizer are read, and no weights yet."""

    source: LmSource
    where: str
    parts: Parts
    bos_id: int | None

    @memory_shortage("loading the language model", LESS_MEMORY)
    def load(self) -> LanguageModel:
        """Load the weights and test the model.

        Raises ``InputError`` if a weight is missing, unexpected or of another shape, if the model
        fails its self-test, and if it does not fit into memory.
        """
        source, tokenizer = self.source, self.parts.tokenizer
        with source._readable(self.where):
            dtype = getattr(torch, source.dtype)
            model = read_weights(self.where, self.parts, dtype, source.device_map)
            revision = self.parts.revision or _digest(Path(self.where))
            model = model.eval().requires_grad_(False)
            special = _special_ids(tokenizer, self.bos_id)
            lm = LanguageModel(model, tokenizer, source.name, revision, self.bos_id, special)
        self_test(lm)
        return lm


def _special_ids(tokenizer: Any, bos_id: int | None) -> frozenset[int]:
    """Return BOS and every token that the tokenizer marks as special, ``<unk>`` included."""
    marked = {number for number, token in added_tokens(tokenizer).items() if token.special}
    return frozenset({*marked, *tokenizer.all_special_ids, bos_id} - {None})


def _reason(error: BaseException) -> str:
    """Return what an error says in one line; a line that ends in a colon takes the next one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1]).rstrip(".")
    if isinstance(error, OSError | ValueError) and reason:
        return reason
    return f"{type(error).__name__}: {reason}"


def _bare(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()


def _digest(folder: Path) -> str:
    """Return a hash of a folder's configuration, weights and tokenizer."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix in CONTENT:
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()[:16]}"
