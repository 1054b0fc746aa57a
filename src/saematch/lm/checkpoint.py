"""Configuration, tokenizer and weights of a model. The only file that knows ``transformers``.

It runs no code of a model folder, asks nothing on the terminal and reads no pickled file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn

from saematch.core.downloads import HubModel, cached_commit
from saematch.core.errors import InputError

MODEL_ERRORS = (OSError, ValueError, SafetensorError, ImportError, RuntimeError, TypeError,
                LookupError, AttributeError, ArithmeticError, AssertionError)  # fmt: skip
"""Errors that transformers raises for folders that it cannot use."""
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
PICKLED = "pytorch_model"
"""Prefix of the names of pickled weights."""
CONSTANTS = re.compile(r"\.(attn|attention)\.(masked_)?bias$|rotary_emb\.\w+$|position_ids$")
"""Masks and position tables that older versions of transformers saved with the weights."""
CONVERT = (
    f"the only weights are pickled ({PICKLED}*.bin), and reading such a file can run any code in "
    "it: if you trust its author, convert it with AutoModelForCausalLM.from_pretrained(...)."
    "save_pretrained(FOLDER), which writes model.safetensors, and set model.path=FOLDER. On the "
    "hub, a pull request may have that file: model.revision=refs/pr/NUMBER"
)
OWN_CODE = (
    "it has its own code (auto_map in its configuration), which saematch does not run: choose a "
    "model of a type that transformers includes"
)


class UnusableModelError(InputError):
    """A readable model that is refused; the message has the reason and what to do."""


class Parts(NamedTuple):
    """Configuration, tokenizer and revision of a model."""

    config: Any
    tokenizer: Any
    revision: str | None
    """Commit on the hub; None for a folder."""


def read_parts(where: str, revision: str | None) -> Parts:
    """Return configuration and tokenizer; raises ``MODEL_ERRORS``."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=False)
        commit = cached_commit(where, revision) or revision
        tokenizer = AutoTokenizer.from_pretrained(where, revision=commit, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise UnusableModelError(OWN_CODE) from error
        raise
    except StrictDataclassError as error:  # not a ValueError, although it is about values
        raise InputError(str(error)) from error
    return Parts(config, tokenizer, commit)


def refuse_files(where: str, files: HubModel | None) -> None:
    """Raise ``UnusableModelError`` for adapters and if all weights are pickled.

    ``files`` are the files of a repository; if None, the files of the folder are checked.
    """
    names: Collection[str] = [path.name for path in Path(where).glob("*")]
    names = names if files is None else files.sizes
    if "adapter_config.json" in names:
        raise UnusableModelError(
            "it has an adapter (adapter_config.json): merge it into the model with peft's "
            "merge_and_unload, and save that with save_pretrained"
        )
    pickled = any(name.startswith(PICKLED) for name in names)
    if pickled and not any(name.endswith(".safetensors") for name in names):
        raise UnusableModelError(CONVERT)


def weight_files(files: HubModel) -> set[str]:
    """Return the files of a repository that ``read_weights`` reads."""
    names = {name for name in files.sizes if WEIGHTS.fullmatch(name)}
    whole = {"model.safetensors"}
    return whole if whole <= names else names


def read_weights(
    where: str, parts: Parts, dtype: torch.dtype, device_map: str | Mapping[str, int | str] | None
) -> nn.Module:
    """Return the causal language model with all of its weights.

    Raises ``UnusableModelError`` with the names of weights that are missing, unexpected or have
    another shape, and ``MODEL_ERRORS``.
    """
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            where,
            revision=parts.revision,
            dtype=dtype,
            device_map=device_map,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are refused below, with their names and shapes
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        for sign, reason in (("trust_remote_code", OWN_CODE), ("use_safetensors", CONVERT)):
            if sign in str(error):
                raise UnusableModelError(reason) from error
        raise
    _refuse_wrong_weights(model, parts.config, report)
    return model


def _refuse_wrong_weights(model: nn.Module, config: Any, report: Mapping[str, Collection]) -> None:
    missing = sorted(report["missing_keys"])
    unexpected = sorted(
        key
        for key in report["unexpected_keys"]
        if not CONSTANTS.search(key) and not _of_other_part(key, config)
    )
    shapes = [
        f"{key} is {list(stored)} in the file and {list(expected)} by config.json"
        for key, stored, expected in sorted(report["mismatched_keys"])
    ]
    kinds = {
        "missing from the file": missing,
        "in the file that the model does not have": unexpected,
        "of another shape": shapes,
    }
    faults = [
        f"{len(keys)} weights {kind} ({_shortened(keys)})" for kind, keys in kinds.items() if keys
    ]
    if faults:
        raise UnusableModelError(
            f"the weights do not fit {type(model).__name__} as its config.json describes it: "
            f"{'; '.join(faults)}. {_cause(missing, unexpected)}"
        )


def _of_other_part(key: str, config: Any) -> bool:
    """Return whether a weight belongs to a part that does not process text, such as a vision tower.

    The class for causal language modelling may load only the text part of such a model.
    """
    text = config.get_text_config()
    if text is config:
        return False
    parts = [name.removesuffix("_config") for name in config.sub_configs]
    others = [part for part in parts if getattr(config, f"{part}_config", None) is not text]
    return any(
        word.startswith((*others, "visual")) or word.endswith("projector")
        for word in key.split(".")
    )


def _shortened(keys: list[str], most: int = 3) -> str:
    return ", ".join(keys[:most]) + (", ..." if len(keys) > most else "")


def _cause(missing: list[str], unexpected: list[str]) -> str:
    """Return the probable mistake when the model was saved, and what to do."""
    prefixes = {
        key.removesuffix(name) for key in unexpected for name in missing if key.endswith(name)
    }
    shortest = min(prefixes, key=len, default="")
    if shortest and all(key.startswith(shortest) for key in unexpected):
        return (
            f"Every unexpected name begins with {shortest!r}: save the model itself with "
            "save_pretrained, not the wrapper around it"
        )
    return "Use the config.json that belongs to the weights, or save the model again"
