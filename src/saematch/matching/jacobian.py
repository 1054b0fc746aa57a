"""Mean Jacobians of the blocks between layers, from single tokens of the calibration texts.

``J`` of a gap between two neighbouring layers of a run is the mean over tokens of
``d resid_post[target, t] / d resid_post[source, t]`` (``saematch.lm.jacobian``), at tokens that
count from position 2 on. The Jacobian of a larger distance is the product of those of its gaps. A
product of means is not the mean of the products, but it is composable, and each block runs once.

A small sample of tokens gives the relative variance ``E||J_t - J||_F^2 / ||J||_F^2``. From it
follows the number of tokens for the wanted standard error. Tokens are sampled at random from some
batches, since a file of a batch and gap has ``d_model^2`` numbers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from saematch.core.errors import InputError
from saematch.core.pairs import Pair, SaeKey
from saematch.matching.arm import Arm
from saematch.matching.jacobian_recorder import UNSAMPLED, JacobianRecorder, priorities, probes
from saematch.sae.passes import TextPass
from saematch.sae.recorders import Models, Recording
from saematch.texts.readers import Reader
from saematch.texts.tokens import TokenBatch

log = logging.getLogger(__name__)

PILOT = 64
"""Number of tokens that give the relative variance."""
MARGIN = 1.2
"""Factor on the number of tokens, since the variance of the pilot is an estimate."""
AT_HAND = 8192
"""Number of tokens from which tokens are sampled; whole batches, at least ``BATCHES``. A gap that
needs more tokens takes them from a larger sample."""
BATCHES = 4


class Gap(NamedTuple):
    """Two neighbouring layers of a run."""

    model: str
    """Label of the language model."""
    source: int
    target: int


@dataclass(frozen=True)
class MeanJacobian:
    """The mean Jacobian of a gap."""

    J: Float64[Tensor, "d_model d_model"]
    n_tokens: int
    relative_variance: float
    """``E||J_t - J||_F^2 / ||J||_F^2``."""
    files: tuple[Path, ...]
    """Files that ``J`` comes from."""

    @classmethod
    def of(cls, *recordings: Recording) -> MeanJacobian:
        """Return the mean over the tokens of all recordings; its variance is NaN for one token."""
        total, squares, n = torch.zeros((), dtype=torch.float64), 0.0, 0
        for recording in recordings:
            for J_sum, of_batch, n_tokens in recording.batches(("J", "squares", "n")):
                total = total + J_sum.double()
                squares += float(of_batch)
                n += int(n_tokens)
        J = total / n
        norm = float(J.square().sum())
        variance = max(squares / n - norm, 0.0) * n / (n - 1) if n > 1 else math.nan
        files = [paths for r in recordings for parts in r.files.values() for paths in parts]
        relative = variance / norm if norm else math.inf
        return cls(J, n, relative, tuple(path for paths in files for path in paths))

    @property
    def error(self) -> float:
        """Standard error of ``J`` relative to its norm, for independent tokens."""
        return math.sqrt(self.relative_variance / self.n_tokens)


@dataclass(frozen=True)
class Jacobians:
    """The mean Jacobians of a run."""

    means: Mapping[Gap, MeanJacobian] = field(default_factory=dict)
    models: Models = field(default_factory=Models)

    def gaps(self, pair: Pair) -> list[Gap]:
        """Return the gaps from the source to the target of a pair, in order."""
        model, ends = self.models.of(pair.source), (pair.source.layer, pair.target.layer)
        return sorted(
            gap for gap in self.means
            if gap.model == model and ends[0] <= gap.source and gap.target <= ends[1]
        )  # fmt: skip

    def between(self, pair: Pair) -> Float64[Tensor, "d_model d_model"]:
        """Return the product of the mean Jacobians from the source to the target."""
        return reduce(lambda J, after: after @ J, (self.means[gap].J for gap in self.gaps(pair)))

    def identity(self, pair: Pair) -> list[str]:
        """Return the names of the files that the pair's Jacobian comes from, which are hashes."""
        return [path.stem for gap in self.gaps(pair) for path in self.means[gap].files]

    def facts(self) -> list[dict[str, Any]]:
        """Return layers, number of tokens and relative standard error of each gap.

        The error is None if it is unknown or infinite.
        """
        return [
            {
                **gap._asdict(),
                "n_tokens": mean.n_tokens,
                "relative_error": mean.error if math.isfinite(mean.error) else None,
            }
            for gap, mean in self.means.items()
        ]


def record_jacobians(
    paths: Mapping[str, Sequence[Sequence[SaeKey]]],
    arms: Mapping[str, Arm],
    texts: TextPass,
    folder: Path,
) -> Jacobians:
    """Record the mean Jacobians that the transported arms need; each gap once.

    ``paths`` has for each arm the SAEs from source to target of each pair. ``texts`` reads the
    calibration texts. Sampling stops where the relative standard error of each mean is below the
    smallest tolerance of these arms; if the texts have too few tokens, one warning is logged.
    """
    names = [name for name in paths if arms[name].transported and paths[name]]
    steps = [Pair(*step) for name in names for path in paths[name] for step in pairwise(path)]
    tolerance = min((arms[name].jacobian_tolerance for name in names), default=math.inf)
    means: dict[Gap, MeanJacobian] = {}
    for model, gaps in gaps_of(steps, texts.models).items():
        sample = _Sample.of(texts, model, AT_HAND)
        pilot = sample.record(folder, dict.fromkeys(gaps, (0, PILOT)))
        means |= {gap: MeanJacobian.of(recording) for gap, recording in pilot.items()}
        n_needed = {
            gap: MARGIN * means[gap].relative_variance / tolerance / tolerance for gap in gaps
        }
        for is_many in (False, True):
            needs = {
                gap: math.ceil(n) for gap, n in n_needed.items()
                if PILOT < n < math.inf and (n > len(sample.priorities)) == is_many
            }  # fmt: skip
            if needs:
                larger = _Sample.of(texts, model, max(needs.values())) if is_many else sample
                start = larger.rank_after(sample.priorities[:PILOT])
                rest = larger.record(
                    folder, {gap: (start, start + n - PILOT) for gap, n in needs.items()}
                )
                means |= {gap: MeanJacobian.of(pilot[gap], rest[gap]) for gap in rest}
    _warn(means, tolerance)
    return Jacobians(means, texts.models)


def gaps_of(steps: Sequence[Pair], models: Models) -> dict[str, list[Gap]]:
    """Return by language model the gaps between neighbouring ends of steps that a step spans."""
    by_model: dict[str, list[tuple[int, int]]] = {}
    for step in steps:
        ends = step.source.layer, step.target.layer
        by_model.setdefault(models.of(step.source), []).append(ends)
    return {
        model: [
            Gap(model, *gap)
            for gap in pairwise(sorted({layer for ends in spans for layer in ends}))
            if any(source <= gap[0] and gap[1] <= target for source, target in spans)
        ]
        for model, spans in by_model.items()
    }


@dataclass(frozen=True)
class _Sample:
    """Random batches of the calibration texts of one language model."""

    texts: TextPass
    """Pass over the batches; the model has the label ``""``."""
    priorities: Int64[Tensor, " n"]
    """Priorities of the tokens, in order; equal texts have equal priorities."""

    @classmethod
    def of(cls, texts: TextPass, model: str, n_tokens: int) -> _Sample:
        """Return random batches with ``n_tokens``, or all; ``InputError`` if there is no token.

        A larger sample has the batches of a smaller one.
        """
        reader = texts.readers[model]
        batches = [(name, batch) for name, of_set in reader.tokens.items() for batch in of_set]
        order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(0)).tolist()
        tokens: dict[str, list[TokenBatch]] = {}
        of_batches: list[Tensor] = []
        for number in order:
            if len(of_batches) >= BATCHES and sum(map(len, of_batches)) >= n_tokens:
                break
            name, batch = batches[number]
            tokens.setdefault(name, []).append(batch)
            of_batch = priorities(batch)
            of_batches.append(of_batch[of_batch < UNSAMPLED])
        sampled = torch.cat(of_batches).unique()
        if not len(sampled):
            raise InputError(
                "arms: transported vectors need calibration texts with a token at position 2 or "
                "later that counts: raise dataset.max_tokens"
            )
        chosen = Reader(reader.lm, {name: tuple(of_set) for name, of_set in tokens.items()})
        return cls(replace(texts, readers={"": chosen}, models=Models()), sampled)

    def rank_after(self, first: Int64[Tensor, " n"]) -> int:
        """Return the rank of the first token after those of these priorities."""
        return int(torch.searchsorted(self.priorities, first[-1], right=True))

    def record(self, folder: Path, ranks: Mapping[Gap, tuple[int, int]]) -> dict[Gap, Recording]:
        """Record gaps at the tokens whose ranks by priority are in the gap's range.

        The second end of a range is not part of it. A gap without such tokens is left out.
        """
        ends = torch.cat([self.priorities, torch.tensor([UNSAMPLED])]).tolist()
        recorders = {
            gap: JacobianRecorder(
                folder, gap.source, gap.target, *(ends[min(r, len(ends) - 1)] for r in of_gap)
            )
            for gap, of_gap in ranks.items()
            if of_gap[0] < len(self.priorities)
        }
        layers = sorted({gap.source for gap in recorders})
        recordings = self.texts.record(
            probes(layers, self.texts.readers[""].lm.d_model),
            {f"{gap.source}|{gap.target}": recorder for gap, recorder in recorders.items()},
            "jacobians",
        )
        return dict(zip(recorders, recordings.values(), strict=True))


def _warn(means: Mapping[Gap, MeanJacobian], tolerance: float) -> None:
    """Log one warning if some standard error exceeds the tolerance."""
    above = {gap: mean for gap, mean in means.items() if not mean.error <= tolerance}
    if above:
        gap, worst = max(above.items(), key=lambda item: item[1].error)
        log.warning(
            "matching: %d of %d mean Jacobians have a relative standard error above the tolerance "
            "%g; the largest is %.3g, from layer %d to %d, on %d tokens: raise dataset.n_texts",
            len(above), len(means), tolerance, worst.error, gap.source, gap.target, worst.n_tokens,
        )  # fmt: skip
