"""Language models from Hugging Face transformers. The only file that knows ``transformers``."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from saematch.files import expand_home
from saematch.lm.hooks import LanguageModel

ZOO = Path(__file__).parent.parent / "zoo"
NO_BOS, OWN_BOS = "none", "tokenizer"
CONTENT = (".json", ".txt", ".jinja", ".model", ".safetensors", ".bin")
"""Files that make up a model and its tokenizer in a folder."""


@dataclass(frozen=True)
class LmSource:
    """Spec of a decoder-only language model: a hub name or a folder.

    Texts are taken as they are: no chat template is applied to them, and no special token is put
    anywhere but BOS in front. The name of a special token in a text is read as that token.
    """

    path: str
    """Hub name or folder; ``zoo`` is the embedded model."""
    name: str
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
            raise ValueError(f"dtype {self.dtype!r} is not float32, bfloat16 or float16")
        if not self.bos:
            raise ValueError(
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

    def load(self) -> LanguageModel:
        """Load weights and tokenizer; ``ValueError`` if there is no such model or no such BOS."""
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        if self.device_map is not None and find_spec("accelerate") is None:
            raise ValueError("model.device_map needs a package: pip install accelerate")
        where = str(ZOO / "lm") if self.path == "zoo" else self.path
        self._refuse_no_folder(where)
        try:
            tokenizer = AutoTokenizer.from_pretrained(where, revision=self.revision)
            model = AutoModelForCausalLM.from_pretrained(
                where,
                revision=self.revision,
                dtype=getattr(torch, self.dtype),
                device_map=self.device_map,
            )
        except (OSError, SafetensorError, ValueError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            advice = self._advice(where, str(error))
            raise ValueError(
                f"cannot load the language model {self.path!r}: {reason.rstrip('.')}. {advice}"
            ) from error
        bos_id = self._bos_id(tokenizer)
        revision = getattr(model.config, "_commit_hash", None) or _digest(Path(where))
        model = model.eval().requires_grad_(False)
        special = _special_ids(tokenizer, bos_id)
        return LanguageModel(model, tokenizer, self.name, revision, bos_id, special)

    def _bos_id(self, tokenizer: Any) -> int | None:
        """Return the token that every text begins with."""
        if self.bos == NO_BOS:
            return None
        if self.bos == OWN_BOS:
            if tokenizer.bos_token_id is None:
                raise ValueError(
                    f"the tokenizer of {self.path!r} has no BOS token: set model.bos to the token "
                    "that parted documents in the model's training, such as "
                    "model.bos='<|endoftext|>', or model.bos=none if nothing stood before a text"
                )
            return int(tokenizer.bos_token_id)
        ids = tokenizer(self.bos, add_special_tokens=False).input_ids
        if len(ids) != 1:
            raise ValueError(
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
        raise ValueError(
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


def _special_ids(tokenizer: Any, bos_id: int | None) -> frozenset[int]:
    """Return BOS and every token that the tokenizer marks as special, ``<unk>`` included."""
    added = tokenizer.added_tokens_decoder.items()
    marked = {number for number, token in added if token.special}
    return frozenset({*marked, *tokenizer.all_special_ids, bos_id} - {None})


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
