"""Cache tokens, so that texts are read, or downloaded from the hub, only once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saematch.core.code import code_of
from saematch.core.files import hashed
from saematch.core.store import read, write
from saematch.lm.hooks import LanguageModel
from saematch.lm.source import LmSource
from saematch.texts.sources import TextSource, warn_of_fewer
from saematch.texts.tokens import TokenisedTexts, tokenise

log = logging.getLogger(__name__)


class LoadedTexts(NamedTuple):
    """Tokens of every text set, and a description of the texts."""

    tokens: dict[str, TokenisedTexts]
    described: dict[str, dict[str, Any]]
    """Everything that determines the texts of each set, and the numbers of texts and of special
    tokens."""


class ResolvedTexts(NamedTuple):
    """A source of texts at one exact version, before the texts are read."""

    source: TextSource
    described: dict[str, dict[str, Any]]
    """Everything that determines the texts of each set."""
    folder: Path
    """Folder that stores the tokens."""


def resolve_texts(source: TextSource, folder: Path) -> ResolvedTexts:
    """Find the files or data sets of a source; ``InputError`` if one is missing."""
    resolved = source.resolve(folder / "revisions")
    return ResolvedTexts(resolved, resolved.described(), folder)


def load_texts(texts: ResolvedTexts, lm: LanguageModel) -> LoadedTexts:
    """Return the tokens of every set, from the folder of ``texts`` if it has them.

    Texts are cut at ``max_tokens`` of their source, or at the most tokens that the model takes if
    that is less. The name of their file is a hash of everything that determines them: texts,
    tokenizer, BOS, special tokens, maximum length and code. Raises ``InputError`` if the texts
    cannot be read.
    """
    source, folder = texts.source, texts.folder
    described = {name: dict(facts) for name, facts in texts.described.items()}
    code = code_of(load_texts, source, LmSource)
    max_tokens = min(source.max_tokens, lm.max_positions or source.max_tokens)
    key = [code, described, max_tokens, lm.name, lm.revision, lm.bos_id]
    path = folder / f"{hashed([*key, sorted(lm.special_ids)])}.safetensors"
    stored = read(path)
    kept = None if stored is None else _tokens(stored, list(described))
    if kept is None:
        kept = {each.name: tokenise(each, lm, max_tokens) for each in source.load()}
        _write(path, kept)
    for name, tokens in kept.items():
        described[name] |= {"n_texts": len(tokens.lengths), "n_special": tokens.n_special}
        warn_of_fewer(name, len(tokens.lengths), source.n_texts)
    longest = max(int(tokens.lengths.max()) for tokens in kept.values())
    if longest == max_tokens < source.max_tokens:
        log.warning("texts are cut at %d tokens, the most that %s takes, instead of "
                    "dataset.max_tokens=%d", max_tokens, lm.name, source.max_tokens)  # fmt: skip
        described = {name: facts | {"max_tokens": max_tokens} for name, facts in described.items()}
    _log_sizes(kept)
    return LoadedTexts(kept, described)


def _log_sizes(kept: dict[str, TokenisedTexts]) -> None:
    n_tokens = sum(int(tokens.counts.sum()) for tokens in kept.values())
    n_special = sum(tokens.n_special for tokens in kept.values())
    texts = ", ".join(f"{len(tokens.lengths):,} {name}" for name, tokens in kept.items())
    special = f"; metrics exclude {n_special:,} special tokens" if n_special else ""
    log.info("texts: %s; %s tokens%s", texts, f"{n_tokens:,}", special)


def _write(path: Path, tokens: dict[str, TokenisedTexts]) -> None:
    tensors: dict[str, Tensor] = {}
    for name, kept in tokens.items():
        parts = {"ids": kept.ids.int(), "counts": kept.counts, "lengths": kept.lengths}
        tensors |= {f"{name}|{part}": tensor for part, tensor in parts.items()}
    write(path, tensors)


def _tokens(stored: dict[str, torch.Tensor], names: list[str]) -> dict[str, TokenisedTexts]:
    return {
        name: TokenisedTexts(
            stored[f"{name}|ids"].to(torch.int64),
            stored[f"{name}|counts"],
            stored[f"{name}|lengths"],
        )
        for name in names
    }
