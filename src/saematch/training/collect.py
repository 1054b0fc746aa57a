"""Collect hidden states on disk for the training of SAEs: ``resid_post`` of many tokens."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection as Names
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from saematch.core.code import code_of
from saematch.core.errors import InputError
from saematch.core.files import expand_home, hashed, make_folder, readable_size
from saematch.core.progress import progress
from saematch.core.specs import AtLeast1, Seed, spec
from saematch.core.store import (
    DamagedError,
    missing,
    read,
    read_facts,
    read_note,
    write,
    write_note,
)
from saematch.lm.hooks import LanguageModel
from saematch.lm.source import LmSource
from saematch.lm.states import HiddenStates, states_name
from saematch.texts.batch_work import Kept
from saematch.texts.sources import TextSource, warn_of_fewer
from saematch.texts.text_pass import run_batches
from saematch.texts.tokens import TokenBatch, whole_windows
from saematch.texts.trainer import TrainerSpec
from saematch.texts.windows import windows

log = logging.getLogger(__name__)

DTYPES = ("bfloat16", "float32", "float16")


@spec("collection")
class Collection:
    """Spec of the hidden states to store."""

    n_tokens: AtLeast1
    """Number of positions in the windows drawn from the texts, BOS included."""
    context: AtLeast1
    """Number of tokens of a window."""
    dtype: str = "bfloat16"
    """Type in which hidden states are stored: ``bfloat16``, ``float32`` or ``float16``."""
    folder: str = "outputs/activations"
    """Folder that has a subfolder for each combination of model, texts and layers."""
    seed: Seed = 0
    """Seed of the choice and the order of the windows."""
    held_out: int = 32_768
    """Number of tokens at the end on which no SAE is trained."""
    max_norm: float = 10.0
    """Maximum norm, as a multiple of the median norm. Hidden states with larger norms are stored,
    but excluded when SAEs are trained and evaluated."""

    def __post_init__(self) -> None:
        expand_home(self, "folder")
        if self.held_out < 1 or self.max_norm <= 1:
            raise InputError(
                f"collection.held_out={self.held_out} must be at least 1, and "
                f"collection.max_norm={self.max_norm} more than 1"
            )
        if self.dtype not in DTYPES:
            raise InputError(f"collection.dtype={self.dtype!r} is not one of {', '.join(DTYPES)}")


@dataclass(frozen=True)
class Store:
    """Hidden states of some layers on disk, one safetensors file for each batch of windows."""

    folder: Path
    files: tuple[Path, ...]
    facts: dict[str, Any]
    """Model, texts, layers, dtype, and the numbers of stored and of excluded tokens."""

    def layer(self, layer: int) -> HiddenStates:
        """Return one layer's hidden states, mapped from disk; special tokens are excluded."""
        return HiddenStates.open(self.files, layer)


@dataclass(frozen=True)
class KeepStates:
    """Work that keeps the hidden states of the positions that count, and their tokens."""

    layers: tuple[int, ...]
    dtype: str

    def to(self, device: torch.device) -> KeepStates:
        """Return the work itself, which has no tensors."""
        return self

    @torch.inference_mode()
    def __call__(
        self, lm: LanguageModel, batch: TokenBatch, recorders: Names[str]
    ) -> dict[str, Kept]:
        """Return the tensors ``resid_post|<layer>`` ``[n, d_model]`` and ``ids`` ``[n]``."""
        hidden = lm.states(batch.ids, self.layers)
        dtype = getattr(torch, self.dtype)
        kept = {states_name(n): x[batch.counts].to(dtype) for n, x in hidden.items()}
        return dict.fromkeys(recorders, kept | {"ids": batch.ids[batch.counts].int()})

    def join(self, recorder: str, first: Kept, second: Kept, n_texts: int) -> Kept:
        """Return the rows of two halves, one after the other."""
        return {name: torch.cat([rows, second[name]]) for name, rows in first.items()}


def collect(
    lm: LanguageModel,
    texts: TextSource,
    layers: Sequence[int],
    spec: Collection,
    trainer: TrainerSpec,
    cache: Path,
) -> Store:
    """Draw windows from the texts and store the hidden states of the layers.

    Files of an earlier collection with the same settings are not made again. Versions of data sets
    are noted in ``cache``. Raises ``InputError`` if windows are too long for the model or there are
    too few texts, and before the collection starts if the disk is too full.
    """
    if lm.max_positions is not None and spec.context > lm.max_positions:
        raise InputError(
            f"collection.context={spec.context}, but {lm.name} takes at most {lm.max_positions} "
            f"tokens: set collection.context={lm.max_positions} at most"
        )
    texts = texts.resolve(cache / "tokens" / "revisions")
    facts: dict[str, Any] = {
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "model": lm.name,
        "revision": lm.revision,
        "model_dtype": str(next(lm.parameters()).dtype).removeprefix("torch."),
        "precision": trainer.precision,
        "bos_id": lm.bos_id,
        "texts": texts.described(),
        "layers": list(layers),
        "dtype": spec.dtype,
        "d_model": lm.d_model,
        "n_tokens": spec.n_tokens,
        "context": spec.context,
        "seed": spec.seed,
    }
    code = code_of(collect, texts, LmSource)
    key = hashed([code, facts, trainer.batch_size, sorted(lm.special_ids)])
    folder = Path(spec.folder) / key
    ids = _windows(folder / "windows.safetensors", texts, lm, spec)
    lm.refuse_ids(int(ids.max()), "the collection's texts")
    batches = [whole_windows(rows, lm.special_ids) for rows in ids.split(trainer.batch_size)]
    tokens = sum(int(batch.counts.sum()) for batch in batches)
    facts |= {"tokens": tokens, "left_out": ids.numel() - tokens}
    special = torch.cat([batch.n_special for batch in batches])
    for number, name in enumerate(facts["texts"]):
        facts["texts"][name]["n_special"] = int(special[number :: len(facts["texts"])].sum())
    log.info("%d special tokens of the windows are excluded", int(special.sum()))
    return keep_states(lm, batches, facts, folder, trainer)


def _windows(
    path: Path, texts: TextSource, lm: LanguageModel, spec: Collection
) -> Int64[Tensor, "n context"]:
    """Return the windows stored at ``path``, or draw them from the texts and store them."""
    kept = read(path)
    if kept is not None:
        return kept["ids"].long()
    sets = texts.load()
    for text_set in sets:
        warn_of_fewer(text_set.name, len(text_set.texts), texts.n_texts)
    ids = windows(sets, lm, spec.context, spec.n_tokens, spec.seed)
    write(path, {"ids": ids.int()})
    return ids.long()


def keep_states(
    lm: LanguageModel,
    batches: Sequence[TokenBatch],
    facts: Mapping[str, Any],
    folder: Path,
    trainer: TrainerSpec,
) -> Store:
    """Store the hidden states of ``facts["layers"]`` on batches in ``folder``."""
    paths = tuple(folder / f"{number:05d}.safetensors" for number in range(len(batches)))
    _check_space(paths, batches, facts, folder)
    work = KeepStates(tuple(facts["layers"]), facts["dtype"])
    with progress("collect hidden states", len(batches), "batch") as bar:
        run_batches(trainer, work, lm, batches, bar, {"states": paths})
    write_note(folder / "store.json", facts)
    return Store(folder, paths, dict(facts))


def _check_space(
    paths: Sequence[Path], batches: Sequence[TokenBatch], facts: Mapping[str, Any], folder: Path
) -> None:
    """Log the size of the files to write; ``InputError`` if the disk has too little space."""
    width = facts["d_model"] * getattr(torch, facts["dtype"]).itemsize
    todo = [batches[number] for number in missing(paths)]
    tokens = sum(int(batch.counts.sum()) for batch in todo)
    needed = tokens * (len(facts["layers"]) * width + 4)
    if not todo:
        log.info("%s already has the hidden states", folder)
        return
    make_folder(folder)
    (folder / "store.json").unlink(missing_ok=True)  # until all files are there
    free = shutil.disk_usage(folder).free
    size = f"{readable_size(needed)} of hidden states ({tokens:,} tokens)"
    if needed > 0.95 * free:
        raise InputError(
            f"{folder} needs {size}, but its disk has {readable_size(free)} free: choose fewer "
            "layers or a smaller collection.n_tokens, or set collection.folder"
        )
    log.info("collect %s into %s", size, folder)


def open_store(folder: Path) -> Store:
    """Open a store; ``InputError`` if it is incomplete or damaged."""
    facts = read_note(folder / "store.json")
    if facts is None:
        raise InputError(f"{folder} has no complete set of hidden states: collect them again")
    files = tuple(sorted(folder.glob("[0-9]*.safetensors")))
    for path in files:
        try:
            read_facts(path)
        except DamagedError as error:
            raise InputError(
                f"{path} is damaged ({error}): collect the hidden states again"
            ) from error
    return Store(folder, files, facts)
