"""The written share: the part of a target feature's activation that a source feature writes.

``score(i, j)`` is the mean over the calibration tokens on which ``i`` is active of
``f_i (d_i . w_enc_j) / z_j`` where ``j`` is active, and 0 elsewhere. ``f`` and ``z`` are the
activations of source and target, ``d_i`` is a decoder vector and ``w_enc_j`` an encoder vector.
This definition is our own. The score is the same in every fold.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from saematch.core.pairs import Pair, SaeKey
from saematch.core.specs import AtLeast1, spec
from saematch.matching.objectives.candidates import Candidates, PairSums
from saematch.matching.objectives.parts import different_sizes
from saematch.sae.activations import SparseFeatures
from saematch.sae.params import SaeParams
from saematch.sae.recorders import Forward, Recorder, Recording, pair_tensor_name
from saematch.sae.suites import SaeFacts
from saematch.texts.batch_work import Kept

NUMBERS_AT_ONCE = 1 << 23
"""Numbers of a chunk of tokens in memory: decoder and encoder vectors of active features."""


@spec("objective")
class WrittenShare:
    """Spec of the objective; ``n_candidates`` bounds its memory.

    For each source feature, a batch of texts keeps the ``n_candidates`` targets with the largest
    sums of shares, and so does the sum over batches. A target loses its shares in batches that do
    not keep it.
    """

    n_candidates: AtLeast1 = 256

    def recorder(self, folder: Path, pairs: Sequence[Pair]) -> Recorder:
        """Return the recorder of the sums of all pairs."""
        return WrittenShareRecorder(folder, tuple(pairs), self.n_candidates)

    def candidates(
        self, pair: Pair, recording: Recording, source: SaeParams, target: SaeParams
    ) -> Candidates:
        """Return the scores; source features that were never active have no entries."""
        names = [pair_tensor_name(pair, part) for part in ("keys", "sums", "n_active", "n_target")]
        total: PairSums | None = None
        counts: Tensor | None = None
        for keys, sums, n_active, n_target in recording.batches(names):
            batch = PairSums(keys, sums.double(), int(n_target))
            total = batch if total is None else total.plus(batch).largest(2 * self.n_candidates)
            counts = n_active if counts is None else counts + n_active
        assert total is not None and counts is not None
        total = total.largest(self.n_candidates)
        rows, columns = total.keys // total.n_target, total.keys % total.n_target
        scores = total.sums / counts[rows]
        return Candidates(rows, columns, scores, len(counts), total.n_target)

    def refusal(self, source: SaeFacts, target: SaeFacts) -> str | None:
        """Refuse SAEs of different sizes or language models, and targets before their source."""
        names = source.origin.model_name, target.origin.model_name
        if all(names) and names[0] != names[1]:
            return (
                f"the written share needs SAEs of one language model, not of {' and '.join(names)}"
            )
        if target.origin.layer < source.origin.layer:
            return (
                f"layer {source.origin.layer} writes nothing to layer {target.origin.layer}, which "
                "comes before it, so there is no written share"
            )
        return different_sizes(source, target)


@dataclass(frozen=True)
class WrittenShareRecorder:
    """Records for each pair of SAEs the sums of written shares, and counts of active tokens."""

    folder: Path
    pairs: tuple[Pair, ...]
    n_candidates: int
    runs_model: ClassVar[bool] = False

    def needs(self) -> dict[Pair, frozenset[SaeKey]]:
        """Return both SAEs of each pair."""
        return {pair: frozenset(pair) for pair in self.pairs}

    def only(self, items: Collection[Pair]) -> WrittenShareRecorder:
        """Return a recorder of some of the pairs."""
        return replace(self, pairs=tuple(pair for pair in self.pairs if pair in items))

    def facts(self) -> list[Any]:
        """Return the pairs and the number of candidates."""
        return [list(self.pairs), self.n_candidates]

    def record(self, forward: Forward) -> Kept:
        """Record one batch."""
        kept: Kept = {}
        for pair in self.pairs:
            source, target = (forward.active(key) for key in pair)
            W_dec = forward.saes[pair.source].W_dec.float()
            W_enc = forward.saes[pair.target].W_enc.float().T
            sums = PairSums.of(torch.zeros(0, dtype=torch.int64), torch.zeros(0), target.n_features)
            for keys, shares in _shares(source, target, W_dec, W_enc):
                chunk = PairSums.of(keys, shares, target.n_features)
                sums = sums.plus(PairSums(chunk.keys.cpu(), chunk.sums.cpu(), chunk.n_target))
                if len(sums.keys) > 4 * self.n_candidates * source.n_features:
                    sums = sums.largest(2 * self.n_candidates)
            kept |= self._stored(pair, sums)
            n_active = torch.bincount(source.features, minlength=source.n_features)
            kept[pair_tensor_name(pair, "n_active")] = n_active.cpu()
        return kept

    def join(self, first: Kept, second: Kept, n_texts: int) -> Kept:
        """Add the sums of both halves of a batch."""
        kept: Kept = {}
        for pair in self.pairs:
            sums = [
                PairSums(
                    half[pair_tensor_name(pair, "keys")],
                    half[pair_tensor_name(pair, "sums")].double(),
                    int(half[pair_tensor_name(pair, "n_target")]),
                )
                for half in (first, second)
            ]
            kept |= self._stored(pair, sums[0].plus(sums[1]))
            name = pair_tensor_name(pair, "n_active")
            kept[name] = first[name] + second[name]
        return kept

    def _stored(self, pair: Pair, sums: PairSums) -> Kept:
        largest = sums.largest(self.n_candidates)
        return {
            pair_tensor_name(pair, "keys"): largest.keys,
            pair_tensor_name(pair, "sums"): largest.sums.float(),
            pair_tensor_name(pair, "n_target"): torch.tensor(sums.n_target),
        }


def _shares(
    source: SparseFeatures,
    target: SparseFeatures,
    W_dec: Float[Tensor, "n_source d_model"],
    W_enc: Float[Tensor, "n_target d_model"],
) -> Iterator[tuple[Int64[Tensor, " n"], Float[Tensor, " n"]]]:
    """Yield, for chunks of tokens, the key and written share of each two active features."""
    most = max(int(active.counts().max()) for active in (source, target)) if source.n_tokens else 0
    size = max(1, NUMBERS_AT_ONCE // max(2 * most * W_dec.shape[1], 1))
    for start in range(0, source.n_tokens, size):
        tokens = torch.arange(start, min(start + size, source.n_tokens), device=W_dec.device)
        of_source, of_target = source.padded(tokens), target.padded(tokens)
        written = torch.einsum("tad,tbd->tab", W_dec[of_source.features], W_enc[of_target.features])
        both = of_source.is_active[:, :, None] & of_target.is_active[:, None, :]
        shares = of_source.values[:, :, None] * written / of_target.values[:, None, :]
        keys = of_source.features[:, :, None] * target.n_features + of_target.features[:, None, :]
        yield keys[both], shares[both]
