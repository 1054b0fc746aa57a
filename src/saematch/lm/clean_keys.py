"""Attention of edited tokens to the keys and values of the unedited texts."""

from __future__ import annotations

import math
from copy import copy
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from saematch.lm.hooks import LanguageModel


class CleanKeys:
    """Keys and values of the unedited texts of a batch.

    Edits of one text run as the tokens of one sequence. Each attends to the unedited tokens before
    it and to itself, and not to the other edits.
    """

    def __init__(
        self,
        lm: LanguageModel,
        ids: Int64[Tensor, "batch seq"],
        hidden: dict[int, Float[Tensor, "batch seq d_model"]],
    ) -> None:
        """Store the texts and their hidden states by layer."""
        self.lm = lm
        self.ids = ids
        self.hidden = hidden
        self._layers: dict[int, Any] = {}
        self._windows = attention_windows(lm)
        if not exceeds_windows(lm, ids.shape[1]):
            self._windows = {"any": math.inf}

    @torch.no_grad()
    def fill(self, source: int, target: int) -> None:
        """Compute the keys and values of the blocks from ``source + 1`` to ``target``."""
        from transformers import DynamicCache

        blocks = range(source + 1, target + 1)
        if self._layers.keys() >= set(blocks):
            return
        cache = DynamicCache()  # without a configuration, it keeps keys outside sliding windows
        self.lm.continue_to(
            source, target, self.hidden[source], self.ids, past_key_values=cache, use_cache=True
        )
        for block in blocks:
            if cache.layers[block].keys.shape[-2] != self.ids.shape[1]:
                raise ValueError(f"block {block} does not keep the keys of all tokens")
            self._layers[block] = cache.layers[block]

    def run(
        self,
        source: int,
        target: int,
        texts: Int64[Tensor, " rows"],
        positions: Int64[Tensor, "rows queries"],
        states: Float[Tensor, "rows queries d_model"],
    ) -> Float[Tensor, "rows queries d_model"]:
        """Return ``resid_post`` of layer ``target`` after the edits of these texts.

        Each row has edits of one text. ``fill`` must have been called for these layers.
        """
        length = int(positions.max())
        settings = {
            "position_ids": positions,
            "attention_mask": self._masks(positions, length, states.dtype),
            "past_key_values": self._cache(source, target, texts, length),
            "use_cache": True,
        }
        ids = self.ids[texts[:, None], positions]
        return self.lm.continue_to(source, target, states, ids, **settings)

    def _cache(self, source: int, target: int, texts: Tensor, length: int) -> Any:
        """Return a new cache of the first ``length`` tokens of these texts, one row each."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for block in range(target + 1):
            # Blocks up to `source` do not run, but models read the length from block 0.
            layer = copy(self._layers[max(block, source + 1)])
            layer.keys = layer.keys[:, :, :length]
            layer.values = layer.values[:, :, :length]
            if block > source:
                layer.keys, layer.values = layer.keys[texts], layer.values[texts]
            cache.layers.append(layer)
        return cache

    def _masks(
        self, positions: Int64[Tensor, "rows queries"], length: int, dtype: torch.dtype
    ) -> Any:
        """Return the mask of all blocks, or the masks by type of block."""
        masks = {
            kind: attention_mask(positions, length, window, dtype)
            for kind, window in self._windows.items()
        }
        return masks if len(masks) > 1 else next(iter(masks.values()))


def exceeds_windows(lm: LanguageModel, length: int) -> bool:
    """Return whether some block does not attend to all tokens of a text of this length."""
    return min(attention_windows(lm).values()) < length


def attention_windows(lm: LanguageModel) -> dict[str, float]:
    """Return the number of tokens that the blocks attend to, by their type in the configuration."""
    config = lm.model.config.get_text_config()
    window = float(getattr(config, "sliding_window", None) or math.inf)
    chunk = float(getattr(config, "attention_chunk_size", None) or math.inf)
    sizes = {"sliding_attention": window, "chunked_attention": chunk}
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    return {kind: sizes.get(kind, math.inf) for kind in kinds}


def attention_mask(
    positions: Int64[Tensor, "rows queries"], length: int, window: float, dtype: torch.dtype
) -> Float[Tensor, "rows 1 queries keys"]:
    """Return a mask that is added to attention scores: 0 where a key is visible.

    The keys are those of the first ``length`` tokens of the text, then those of the queries. A
    query at position ``p`` sees itself and the tokens at ``p - window + 1`` to ``p - 1``.
    """
    rows, queries = positions.shape
    shape, device = (rows, 1, queries, length + queries), positions.device
    mask = torch.full(shape, torch.finfo(dtype).min, dtype=dtype, device=device)
    keys = torch.arange(length, device=device)
    last = positions[:, None, :, None]
    mask[..., :length].masked_fill_((keys < last) & (keys > last - window), 0)
    mask[..., length:].diagonal(dim1=-2, dim2=-1).zero_()
    return mask
