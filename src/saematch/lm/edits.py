"""Effect of edited hidden states on a later layer.

An edit replaces ``resid_post`` of the source layer at one token. Only the blocks between the source
and the target layer run. Where the model allows it, all edits of a text run as the tokens of one
sequence and attend to the keys and values of the unedited text, so an edit costs one token-row for
each block. Otherwise, each edit runs as a copy of its text up to the edited token.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from saematch.core.memory import is_out_of_memory
from saematch.lm.clean_keys import CleanKeys, exceeds_windows
from saematch.lm.hooks import LanguageModel
from saematch.lm.self_test import MODEL_ERRORS

log = logging.getLogger(__name__)

MAX_QUERIES = 128
"""Largest number of edits in a row."""
MAX_SCORES = {"cpu": 2**20}
"""Largest number of attention scores of a head in one call, by device; 2**22 on other devices.
Fewer than ``MIN_KEYS`` keys count as that many, which bounds the number of tokens."""
MIN_KEYS = 256
MAX_PADDING = 64
"""Largest number of tokens in a call that only make its rows equally long."""
TESTED_BLOCKS = 8
"""Largest number of blocks in the middle of the model that the test of a model runs."""


@dataclass(frozen=True)
class Edits:
    """Changes of ``resid_post`` of one layer, each at one token; edits do not see each other."""

    texts: Int64[Tensor, " n"]
    """Row of the text in the batch."""
    positions: Int64[Tensor, " n"]
    """Position of the token in the text."""
    states: Float[Tensor, "n d_model"]
    """``resid_post`` at the token after the edit."""

    def __len__(self) -> int:
        return len(self.texts)


class EditRunner:
    """Computes the effects of edits in one batch of texts.

    It keeps the keys and values of the unedited texts between calls.
    """

    def __init__(
        self,
        lm: LanguageModel,
        ids: Int64[Tensor, "batch seq"],
        hidden: Mapping[int, Float[Tensor, "batch seq d_model"]],
    ) -> None:
        """Store the texts, padded on the right, and their ``resid_post`` by layer.

        ``hidden`` has at least the source layers of the edits, from ``LanguageModel.capture``.
        """
        self.lm = lm
        self.ids = ids
        self.hidden = dict(hidden)
        self._keys = CleanKeys(lm, ids, self.hidden)

    def run(self, source: int, target: int, edits: Edits) -> Float[Tensor, "n d_model"]:
        """Return ``resid_post`` of layer ``target`` at the tokens of the edits, one row an edit.

        Each row is computed as if ``resid_post`` of layer ``source`` were ``edits.states`` at this
        token and unchanged at all others. ``target`` is after ``source``. The model's test, on the
        first call for texts of this length, takes a few forward passes of two texts.
        """
        with torch.no_grad():
            return self.differentiable(source, target, edits)

    def differentiable(self, source: int, target: int, edits: Edits) -> Float[Tensor, "n d_model"]:
        """Return the result of ``run`` as a function of ``edits.states`` that autograd can follow.

        Autograd needs tensors that were not created in inference mode, here and in ``__init__``.
        """
        if not source < target < self.lm.n_layers:
            raise ValueError(f"no blocks run from layer {source} to layer {target}")
        if not len(edits):
            return torch.empty_like(edits.states, dtype=self.hidden[source].dtype)
        run = self.run_joined if self._joins else self.run_copies
        return run(source, target, edits)

    @cached_property
    def _joins(self) -> bool:
        """Whether the edits of a text run as one sequence."""
        length = self.ids.shape[1]
        key = length.bit_length(), exceeds_windows(self.lm, length)
        decisions = self.lm.joins_edits
        if key not in decisions:
            with torch.no_grad():
                reason = reason_against_joining(self.lm, self.ids)
            if reason and all(decisions.values()):
                log.warning(
                    "%s: each edit runs as a copy of its text, which is slower: %s",
                    self.lm.name,
                    reason,
                )
            decisions[key] = not reason
        return decisions[key]

    def run_joined(self, source: int, target: int, edits: Edits) -> Float[Tensor, "n d_model"]:
        """Return the result of ``run``; the edits of a text are the tokens of one sequence."""
        self._keys.fill(source, target)
        states = edits.states.to(self.hidden[source].dtype)
        result = torch.empty_like(states)
        for numbers, is_edit in _rows(edits):
            texts, positions = edits.texts[numbers[:, 0]], edits.positions[numbers]
            output = self._keys.run(source, target, texts, positions, states[numbers])
            result[numbers[is_edit]] = output[is_edit].to(result.dtype)
        return result

    def run_copies(self, source: int, target: int, edits: Edits) -> Float[Tensor, "n d_model"]:
        """Return the result of ``run``; each edit is a copy of its text up to the edited token."""
        clean = self.hidden[source]
        result = torch.empty_like(edits.states, dtype=clean.dtype)
        order = edits.positions.argsort(stable=True)
        lengths = (edits.positions[order] + 1).tolist()
        for call in _calls(lengths, lengths, self.ids.device):
            numbers, length = order[call], lengths[call][-1]
            texts, positions = edits.texts[numbers], edits.positions[numbers]
            states = clean[texts, :length]
            rows = torch.arange(len(numbers), device=states.device)
            states[rows, positions] = edits.states[numbers].to(states.dtype)
            output = self.lm.continue_to(source, target, states, self.ids[texts, :length])
            result[numbers] = output[rows, positions].to(result.dtype)
        return result


def _rows(
    edits: Edits,
) -> Iterator[tuple[Int64[Tensor, "rows queries"], Bool[Tensor, "rows queries"]]]:
    """Return the numbers of the edits of each call, one row for at most ``MAX_QUERIES`` of a text.

    Edits of a row have increasing positions. Short rows are padded with their first edit; the
    second tensor is False there. Rows of similar length and position share a call.
    """
    reach = int(edits.positions.max()) + 1
    order = (edits.texts * reach + edits.positions).argsort(stable=True)
    texts = edits.texts[order]
    first_of_text = torch.searchsorted(texts, texts)
    rank = torch.arange(len(order), device=order.device) - first_of_text
    starts = (rank % MAX_QUERIES == 0).nonzero()[:, 0]
    sizes = starts.diff(append=starts.new_tensor([len(order)]))
    lasts = edits.positions[order[starts + sizes - 1]]
    by_size = (sizes * reach + lasts).argsort(stable=True)
    starts, sizes, lasts = starts[by_size], sizes[by_size], lasts[by_size]
    for call in _calls(sizes.tolist(), (lasts + sizes).tolist(), order.device):
        columns = torch.arange(int(sizes[call][-1]), device=order.device)
        is_edit = columns < sizes[call, None]
        yield order[starts[call, None] + columns * is_edit], is_edit


def _calls(queries: Sequence[int], keys: Sequence[int], device: torch.device) -> Iterator[slice]:
    """Return the rows of each call, such that the number of attention scores is bounded.

    ``queries`` and ``keys`` are the numbers of a row; rows of a call are padded to the largest.
    ``queries`` increase.
    """
    limit = MAX_SCORES.get(device.type, 2**22)
    start, total, longest = 0, 0, MIN_KEYS
    for row, (widest, n_keys) in enumerate(zip(queries, keys, strict=True)):
        total, longest = total + widest, max(longest, n_keys)
        padded = (row + 1 - start) * widest
        if row > start and (padded * longest > limit or padded - total > MAX_PADDING):
            yield slice(start, row)
            start, total, longest = row, widest, max(MIN_KEYS, n_keys)
    yield slice(start, len(queries))


def reason_against_joining(lm: LanguageModel, ids: Int64[Tensor, "batch seq"]) -> str:
    """Return why the edits of a text cannot run as one sequence; empty if they can.

    A few edits of the first and the last text must have the same result on both paths.
    """
    if lm.is_dispatched:
        return "a device map assigns its blocks to devices"
    if lm.runs_earlier_blocks:
        return "its later blocks read more of the earlier blocks than the hidden state"
    source = max(0, (lm.n_layers - 1 - TESTED_BLOCKS) // 2)
    target = min(lm.n_layers - 1, source + TESTED_BLOCKS)
    texts = ids[[0, -1]]
    clean = lm.states(texts, (source,))
    runner, edits = EditRunner(lm, texts, clean), _test_edits(clean[source])
    expected = runner.run_copies(source, target, edits).double()
    try:
        joined = runner.run_joined(source, target, edits).double()
    except MODEL_ERRORS as error:
        if is_out_of_memory(error):
            raise
        reason = next(iter(str(error).strip().splitlines()), "no reason given")
        return f"{type(error).__name__}: {reason}"
    eps = torch.finfo(_precision(lm, ids.device)).eps
    norm = torch.linalg.vector_norm
    update = norm(expected - edits.states.double(), dim=1)
    bound = (1e-3 + 12 * eps) * update + 4 * eps * norm(expected, dim=1)
    if not (norm(joined - expected, dim=1) <= bound).all():  # also for NaN
        return "as one sequence, its edits have other effects"
    return ""


def _test_edits(clean: Float[Tensor, "two seq d_model"]) -> Edits:
    """Return large random edits of early, middle and last tokens, some of them at one token."""
    length = clean.shape[1]
    positions = [0, 1, 1, 2, length // 2, length - 1]
    numbers = torch.tensor(positions + positions[2:]).clamp(max=length - 1).to(clean.device)
    texts = torch.tensor([0] * 6 + [1] * 4, device=clean.device)
    states = clean[texts, numbers]
    noise = torch.randn(states.shape, generator=torch.Generator().manual_seed(0)).to(states)
    return Edits(texts, numbers, states + noise * states.std(dim=1, keepdim=True))


def _precision(lm: LanguageModel, device: torch.device) -> torch.dtype:
    """Return the lowest precision of the model's products."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return lm.model.dtype
