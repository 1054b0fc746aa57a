"""The evaluation ``skipping``: skip layers, and replace their output through a match."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import ClassVar, NamedTuple

from torch import Tensor

from saematch.core.columns import EXPLAINED_VARIANCE, Column
from saematch.core.errors import InputError
from saematch.core.match import Match
from saematch.core.pairs import NO_ARM, Pair, SaeKey
from saematch.core.specs import Positive, Unique, spec
from saematch.core.tables import Row, Tables
from saematch.evaluate.counting import labelled
from saematch.evaluate.evaluation import Evaluation, PairFacts, Subject, forward_refusal
from saematch.evaluate.increment import Increments
from saematch.evaluate.intervals import Replicates, Values, Weights
from saematch.evaluate.measures import Cell, Measures
from saematch.evaluate.metrics import explained_variance, mean
from saematch.evaluate.splice import INCREMENT_FREE, MATCHLESS, Job, Splice, SpliceRecorder
from saematch.evaluate.weights import FoldedPair, of_least_error, row_errors
from saematch.matching.arm import DECODINGS, INCREMENT, Arm, check_decode
from saematch.sae.recorders import Recording
from saematch.texts.sums import TextSums

DELTA_LOSS = Column(
    "delta_loss", "change in loss", "lower", "nats", interval=True, logged=("strategies",),
    meaning="mean loss on the next token with the layer replaced, minus the original loss",
)  # fmt: skip
LOSS = Column(
    "loss", "loss", "lower", "nats", least=0.0, interval=True,
    meaning="mean loss on the next token with the layer replaced",
)  # fmt: skip


FITTED = (INCREMENT, INCREMENT_FREE)
"""Strategies that are fitted to calibration texts."""
LEAST_RIDGE = 1e-9
"""Smallest penalty with which rounding leaves the normal equations positive definite."""


class SkippedCell(NamedTuple):
    """Row of the table ``strategies``, without the text set."""

    arm: str
    splice: Splice
    """Splice of the row."""
    evaluated: Splice
    """Canonical form of the splice, which several cells may share."""


@spec("evaluations.skipping")
class Skipping(Evaluation):
    """Spec of the evaluation ``skipping``: tables ``strategies`` and ``contrasts``."""

    columns: ClassVar[tuple[Column, ...]] = (EXPLAINED_VARIANCE, DELTA_LOSS, LOSS)
    reads_texts: ClassVar[bool] = True

    strategies: Unique[str] = ("reconstruct_current", "drop")
    """Strategies without a match: ``reconstruct_previous``, ``reconstruct_current``, ``drop``,
    ``increment_free``. Each arm's ``decode`` sets the strategies with a match."""
    ridge: Positive = 0.03
    """Ridge penalty of the fits of ``increment`` and ``increment_free``, relative to the mean over
    source features of their summed squared activations on the calibration texts."""

    decode: Unique[str] | None = None
    """Strategies with a match, for all arms; None for those of each arm's ``decode``."""
    contrasts: bool = True
    """Whether to compare every two arms, and every two strategies of an arm."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.strategies if name not in MATCHLESS]
        if unknown:
            raise InputError(
                f"evaluations.skipping.strategies: unknown strategy {unknown[0]!r}: choose among "
                f"{', '.join(MATCHLESS)}; decode sets the strategies with a match"
            )
        check_decode(self.decode or (), "evaluations.skipping.decode")
        if self.ridge < LEAST_RIDGE:
            raise InputError(
                f"evaluations.skipping.ridge={self.ridge} must be at least {LEAST_RIDGE}: the fit "
                "needs a penalty if features are always active together"
            )

    def calibrates(self, arms: Mapping[str, Arm]) -> bool:
        """Return whether a strategy is fitted to calibration texts."""
        return INCREMENT_FREE in self.strategies or any(
            INCREMENT in self._decode(arm) for arm in arms.values()
        )

    def _decode(self, arm: Arm) -> Sequence[str]:
        """Return the strategies with a match that are evaluated for an arm."""
        return arm.decode if self.decode is None else self.decode

    def refusal(self, facts: PairFacts) -> str | None:
        """Refuse pairs between which no layer can be skipped."""
        return forward_refusal(facts)

    def recorder(self, subject: Subject) -> SpliceRecorder:
        """Return the recorder of all splices; it records equal splices of arms and suites once."""
        splices: dict[Splice, Job] = {}
        increments = self._increments(subject)
        for pair in subject.matches.pairs:
            errors = _row_errors(subject, pair)
            for cell in self._cells(subject, pair):
                if cell.evaluated not in splices:
                    splices[cell.evaluated] = _job(subject, cell, errors, increments)
        return SpliceRecorder(subject.folder, splices, subject.models)

    def _increments(self, subject: Subject) -> Increments:
        """Return the fits of all pairs with a fitted strategy."""
        cells = [cell for pair in subject.matches.pairs for cell in self._cells(subject, pair)]
        fitted = (c.splice.pair for c in cells if c.splice.strategy in FITTED)
        pairs = tuple(dict.fromkeys(map(subject.twin, fitted)))
        return Increments(subject.saes, subject.folder, subject.calibration, pairs, self.ridge)

    def _cells(self, subject: Subject, pair: Pair) -> list[SkippedCell]:
        """Return the cells of a pair: those of each arm, then those without a match."""
        matches = subject.matches.of(pair)
        cells = [
            (name, Splice(strategy, pair, match.hash, quantile))
            for name, match in matches.items()
            for strategy in self._decode(subject.arms[name])
            for quantile in (None, *_quantiles(subject.arms[name], strategy))
        ]
        cells += [(NO_ARM, Splice(strategy, pair)) for strategy in self.strategies]
        return [
            SkippedCell(arm, splice, canonical(subject, splice, matches.get(arm)))
            for arm, splice in cells
        ]

    def tables(self, subject: Subject, recording: Recording | None) -> Tables:
        """Return ``strategies`` and ``contrasts``.

        ``strategies`` has a row for each pair, text set, arm, strategy and quantile. ``contrasts``
        has the differences between an arm and each later arm under the same strategy, between two
        strategies of an arm, and between an arm and each strategy without a match. Without a pair
        there are no tables.
        """
        assert recording is not None and subject.measures is not None
        sums, measures = recording.sums(), subject.measures
        rows: list[Row] = []
        contrasts: list[Row] = []
        for pair in subject.matches.pairs:
            cells = self._cells(subject, pair)
            label = subject.models.of(pair.target)
            for dataset, of_set in sums.items():
                weights = measures.weights_of(dataset)
                values = [_values(cell, of_set, weights, label) for cell in cells]
                rows += [
                    _row(measures, cell, dataset, of_cell) | _sizes(of_set, label)
                    for cell, of_cell in zip(cells, values, strict=True)
                ]
                if self.contrasts:
                    contrasts += strategy_contrasts(cells, values, dataset, measures.replicates)
        if not rows:
            return Tables()
        compared = {"contrasts": contrasts} if self.contrasts else {}
        return Tables.of({"strategies": rows, **compared})


def _quantiles(arm: Arm, strategy: str) -> tuple[float, ...]:
    """Return the quantiles of an arm; ``increment`` has none, since it fits the whole match."""
    return tuple(map(float, arm.quantiles)) if strategy in DECODINGS else ()


def _row_errors(subject: Subject, pair: Pair) -> dict[str, Tensor]:
    """Return the row errors of the matches whose arms have quantiles, by the match's hash."""
    ranked = {
        match.hash: match
        for name, match in subject.matches.of(pair).items()
        if subject.arms[name].quantiles
    }
    if not ranked:
        return {}
    folded = FoldedPair(subject.saes[pair.source], subject.saes[pair.target])
    return {key: row_errors(folded, match) for key, match in ranked.items()}


def _job(
    subject: Subject, cell: SkippedCell, errors: Mapping[str, Tensor], increments: Increments
) -> Job:
    """Return the job of a splice; ``errors`` has row errors by the match's hash."""
    splice, ends = cell.splice, _ends(cell.splice, subject)
    if splice.strategy == INCREMENT_FREE:
        return Job(ends, None, increments.free_vectors(ends))
    if cell.arm == NO_ARM:
        return Job(ends, None)
    match = subject.matches.by_arm[cell.arm][splice.pair]
    if splice.strategy == INCREMENT:
        return Job(ends, increments.with_gains(ends, match))
    if splice.quantile is None:
        return Job(ends, match)
    return Job(ends, of_least_error(match, errors[match.hash], splice.quantile))


def _ends(splice: Splice, subject: Subject) -> Pair:
    """Return the SAEs that a splice needs: only the target for ``reconstruct_current``."""
    ends = subject.twin(splice.pair)
    return Pair(ends.target, ends.target) if splice.strategy == "reconstruct_current" else ends


def canonical(subject: Subject, splice: Splice, match: Match | None) -> Splice:
    """Return the canonical form of a splice, which is equal for splices with the same effect."""
    pair = splice.pair
    if splice.strategy == "drop":
        nobody = labelled("", subject.models.of(pair.target))
        return Splice("drop", Pair(*(SaeKey(nobody, key.layer) for key in pair)))
    if splice.strategy.startswith("reconstruct"):
        return Splice("reconstruct", _ends(splice, subject))
    splice = splice._replace(pair=subject.twin(pair))
    if match is None:
        return splice
    if splice.quantile == 0:
        return splice._replace(strategy="permute", match="")
    if splice.quantile == 1 and len(match.matched) == match.n_source:
        return splice._replace(quantile=None)
    return splice


def _values(
    cell: SkippedCell, sums: TextSums, weights: Weights, label: str
) -> dict[Column, Values]:
    name, layer = cell.evaluated.name, cell.splice.pair.target.layer
    n_targets = sums[labelled("n_targets", label)]
    loss = mean(weights, sums[f"loss|{name}"], n_targets)
    variance = explained_variance(
        weights,
        sums[f"error_sum|{name}"],
        sums[f"error_square|{name}"],
        sums[labelled(f"x_sum|{layer}", label)],
        sums[labelled(f"x_square|{layer}", label)],
        sums[labelled("n_tokens", label)],
    )
    original = mean(weights, sums[labelled("loss_original", label)], n_targets)
    return {EXPLAINED_VARIANCE: variance, DELTA_LOSS: loss - original, LOSS: loss}


def _row(
    measures: Measures, cell: SkippedCell, dataset: str, values: Mapping[Column, Values]
) -> Row:
    splice = cell.splice
    return measures.row(
        Cell(splice.pair, cell.arm, dataset, splice.strategy, splice.quantile), values
    )


def _sizes(sums: TextSums, label: str) -> Row:
    """Return the numbers of texts and tokens, and the loss of the unchanged model."""
    n_tokens, n_special, n_targets, loss = (
        sums[labelled(name, label)]
        for name in ("n_tokens", "n_special", "n_targets", "loss_original")
    )
    return {
        "loss_original": loss.sum().item() / int(n_targets.sum()),
        "n_texts": len(n_tokens),
        "n_tokens": int(n_tokens.sum()),
        "n_special": int(n_special.sum()),
        "n_targets": int(n_targets.sum()),
    }


def strategy_contrasts(
    cells: Sequence[SkippedCell],
    values: Sequence[Mapping[Column, Values]],
    dataset: str,
    replicates: Replicates,
) -> Iterator[Row]:
    """Yield the rows of ``contrasts`` for the cells of one pair and text set.

    Each row has the metrics of one cell minus those of another cell. The two differ in the arm
    alone or in the strategy alone, or the second cell has a strategy without a match.
    """
    for (cell, of_cell), (other, of_other) in combinations(zip(cells, values, strict=True), 2):
        if not _comparable(cell, other):
            continue
        row: Row = {**cell.splice.pair.columns(), "dataset": dataset}
        row |= {"arm": cell.arm, "strategy": cell.splice.strategy}
        row |= {"against_arm": other.arm, "against_strategy": other.splice.strategy}
        row |= {"quantile": cell.splice.quantile}
        for column in (EXPLAINED_VARIANCE, DELTA_LOSS):
            row |= replicates.row(column.difference, of_cell[column] - of_other[column])
        yield row


def _comparable(cell: SkippedCell, other: SkippedCell) -> bool:
    if cell.arm == NO_ARM or other.arm == NO_ARM:
        return cell.arm != other.arm
    same_strategy = cell.splice.strategy == other.splice.strategy
    same_quantile = cell.splice.quantile == other.splice.quantile
    return same_quantile and (cell.arm == other.arm) != same_strategy
