"""Sinkhorn: entropic optimal transport between the features of two layers."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import field
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from saematch.core.match import Match, largest_in_rows
from saematch.core.specs import AtLeast1, Positive, Share, spec
from saematch.matching.matchers.matcher import k_refusal, refuse_width
from saematch.matching.objectives.candidates import Candidates
from saematch.matching.objectives.factors import Factors
from saematch.matching.solver.products import CPU, Products, plan

log = logging.getLogger(__name__)

LEAST_MASS = 1e-30
"""Mass of a column below which float32 is too coarse; it is then computed in the log domain."""

Potential = Callable[[Float64[Tensor, " k"]], Float64[Tensor, " k"]]
"""Function from the log-sum-exp of each row or column to its potential."""


class Best(NamedTuple):
    """The largest entries of each row of a plan."""

    rows: Int64[Tensor, " entries"]
    columns: Int64[Tensor, " entries"]
    scores: Float64[Tensor, " entries"]
    """Similarity of each entry."""
    log_sums: Float64[Tensor, " n"]
    """Log-sum-exp of each row."""


@runtime_checkable
class Kernel(Protocol):
    """The matrix ``K = S / epsilon + offset``; a plan is ``P_ij = exp(u_i + v_j + K_ij)``."""

    n: int
    """Number of rows."""
    m: int
    """Number of columns."""

    def sweep(
        self, v: Float64[Tensor, " m"], potential: Potential
    ) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " m"]]:
        """Return the new ``u``, and ``log sum_i exp(u_i + K_ij)`` of each column with it.

        ``potential`` turns the rows' ``log sum_j exp(v_j + K_ij)`` into ``u``.
        """
        ...

    def best(self, v: Float64[Tensor, " m"], k: int) -> Best:
        """Return the ``k`` largest entries of each row."""
        ...


@spec("matcher")
class Sinkhorn:
    """The entropic transport of source to target features, with ``k`` partners for each feature.

    The plan ``P`` minimises ``<P, M> + epsilon KL(P | a b')``. ``M`` is a cost that falls with the
    similarity, ``a = 1 / F_A`` and ``b = 1 / F_B`` (Cuturi 2013). The weight of an entry is the
    share of its source feature's mass, ``F_A P_ij``; its score is the similarity. Entries after the
    ``k`` largest of a row are cut, and ``Match.dropped`` is their share of the mass.

    A balanced plan (no ``rho``) has rows that add up to ``a`` and columns that add up to ``b``.
    Each feature has partners, also a newborn one, and no target feature takes more than its share:
    the plan is a soft permutation.

    In an unbalanced plan (``rho``) the sums may differ at the cost
    ``rho (KL(P 1 | a) + KL(P' 1 | b))`` (Chizat et al. 2018). ``M_ij`` is then
    ``1 - S_ij - epsilon log max(F_A, F_B)``, so that a pair without competitors keeps the mass
    ``exp(-(1 - S_ij) / (2 rho + epsilon))``: all of it at the similarity 1. The sum of a row's
    weights is thus a score of continuation, and a source feature with less than ``least_mass``
    stays unmatched.

    ``epsilon`` and ``rho`` are in units of the similarity, and the defaults suit cosines. On the
    embedded family `mixed` (width 1,024, layers 2 to 3 and 4 to 5), balanced, the heaviest entry is
    the true one for .90 and .87 of the persisting features with ``epsilon=0.05``; the optimal
    permutation has .88 and .86, the nearest neighbour .90 and .88. A larger ``epsilon`` spreads the
    mass beyond 20 partners (.41 of it is cut at 0.1, .07 at 0.05); a smaller one needs more
    iterations. Unbalanced with ``rho=0.2`` and ``least_mass=0.4``, .84 of the persisting and .43 of
    the newborn features get partners there: newborn features of `mixed` resemble older ones.

    Sums are computed in the log domain from float32 products. An iteration takes one product, or
    one pass over the similarities if they fit into memory. Scores of candidate pairs are float64.
    Pairs that are no candidates have no mass, and only features with candidates take part.
    """

    one_partner: ClassVar[bool] = False

    epsilon: Positive = 0.05
    """Weight of the entropy, in units of the similarity; small values give sharp plans."""
    rho: Positive | None = None
    """Weight of the margins, in units of the similarity; None is balanced transport."""
    least_mass: Share = 0.0
    """Smallest sum of a row's weights; source features with less stay unmatched."""
    k: AtLeast1 = 20
    """Largest number of entries in a row."""
    tolerance: Positive = 1e-3
    """Share of the mass that an iteration may move at the end; balanced, this is the error of the
    column sums."""
    max_iterations: AtLeast1 = 200
    """Number of iterations after which the plan is returned with a warning."""
    memory_gib: Positive | None = field(default=None, repr=False)
    """Memory to use in addition to the vectors; None is half of the free memory."""

    def __call__(self, factors: Factors) -> Match:
        """Return the match by the similarities of all pairs of features."""
        n, m = len(factors.X_A), len(factors.X_B)
        refuse_width(self, m)
        products = Products(factors.X_A, factors.X_B, plan(n, m, self.memory_gib, CPU, None))
        return self._match(DenseKernel(products, self.epsilon, self._offset(n, m)))

    def of_candidates(self, candidates: Candidates) -> Match:
        """Return the match by the scores of candidate pairs."""
        n, m = candidates.n_source, candidates.n_target
        refuse_width(self, m)
        sources, rows = candidates.rows.unique(return_inverse=True)
        targets, columns = candidates.columns.unique(return_inverse=True)
        offset = self._offset(len(sources), len(targets))
        kernel = SparseKernel(rows, columns, candidates.scores, self.epsilon, offset)
        if not kernel.n:
            return Match.from_columns(torch.full((n,), -1), m)
        match = self._match(kernel)
        return Match(
            sources[match.rows], targets[match.columns], match.weights, n, m,
            dropped=match.dropped, scores=match.scores,
        )  # fmt: skip

    def width_refusal(self, n_target: int) -> str | None:
        """Return a reason for a target with fewer than ``k`` features, else None."""
        return k_refusal(self.k, n_target)

    def _offset(self, n: int, m: int) -> float:
        """Return the part of the negative cost over epsilon that is no similarity."""
        return 0.0 if self.rho is None else math.log(max(n, m, 1)) - 1 / self.epsilon

    def _match(self, kernel: Kernel) -> Match:
        n, m = kernel.n, kernel.m
        damping = 1.0 if self.rho is None else self.rho / (self.rho + self.epsilon)
        v = self._column_potentials(kernel, damping)
        rows, columns, scores, log_sums = kernel.best(v, self.k)
        masses = ((1 - damping) * log_sums).exp()
        logits = v[columns] + scores / self.epsilon + self._offset(n, m)
        weights = (logits - damping * log_sums[rows]).exp()
        matched = masses[rows] >= self.least_mass
        rows, columns, weights, scores = (
            part[matched] for part in (rows, columns, weights, scores)
        )
        total = float(masses[masses >= self.least_mass].sum())
        dropped = max(0.0, 1 - float(weights.sum()) / total) if total else 0.0
        return Match(rows, columns, weights, n, m, dropped=dropped, scores=scores)

    def _column_potentials(self, kernel: Kernel, damping: float) -> Float64[Tensor, " m"]:
        """Return the potentials of the columns after the last iteration."""
        log_a, log_b = -math.log(kernel.n), -math.log(kernel.m)
        v = torch.full((kernel.m,), log_b, dtype=torch.float64)
        moved = math.inf
        for _ in range(self.max_iterations):
            u, log_sums = kernel.sweep(v, lambda of_rows: log_a - damping * of_rows)
            new = log_b - damping * log_sums
            before, after = (v + log_sums).exp(), (new + log_sums).exp()
            moved = float((after - before).abs().sum() / before.sum())
            v = new
            if moved <= self.tolerance:
                return v
            if self.rho is not None:
                v = v - self._translation(u - log_a, v - log_b)
        log.warning(
            "sinkhorn: iteration %d moved %.1e of the mass, more than tolerance=%g; for an exact "
            "plan increase max_iterations or epsilon", self.max_iterations, moved, self.tolerance,
        )  # fmt: skip
        return v

    def _translation(self, f: Float64[Tensor, " n"], g: Float64[Tensor, " m"]) -> float:
        """Return the best constant to move from the columns' potentials to the rows'.

        All are in units of epsilon. Without this step of Séjourné et al. (2022), the constant would
        converge more slowly the larger ``rho`` is.
        """
        assert self.rho is not None
        scale = self.rho / self.epsilon
        of_rows, of_columns = (
            float(torch.logsumexp(-side / scale, 0)) - math.log(len(side)) for side in (f, g)
        )
        return scale / 2 * (of_rows - of_columns)


class DenseKernel:
    """Similarities of all pairs, from products."""

    def __init__(self, products: Products, epsilon: float, offset: float) -> None:
        self.products, self.epsilon, self.offset = products, epsilon, offset
        self.n, self.m = products.n, products.m

    def sweep(
        self, v: Float64[Tensor, " m"], potential: Potential
    ) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " m"]]:
        """Compute each block once; its plan with the new ``u`` is added to the column sums."""
        base = (v + self.offset).float()
        u = torch.empty(self.n, dtype=torch.float64)
        masses = torch.zeros(self.m, dtype=torch.float64)
        for block, similarity in self.products.blocks("sinkhorn"):
            plan = torch.add(base, similarity, alpha=1 / self.epsilon)
            top = plan.amax(1)
            sums = plan.sub_(top[:, None]).exp_().sum(1)
            top = top.double()
            u[block] = potential(top + sums.double().log())
            masses += ((u[block] + top).exp().float() @ plan).double()
        log_sums = masses.log() - base.double() + self.offset
        lost = torch.nonzero(masses < LEAST_MASS).flatten()
        for columns in lost.split(self.products.rows_at_once):
            logits = self.products.y[columns] @ self.products.x.T / self.epsilon
            log_sums[columns] = torch.logsumexp(u + logits, 1) + self.offset
        return u, log_sums

    def best(self, v: Float64[Tensor, " m"], k: int) -> Best:
        """Choose by float32 products; scores are float64."""
        base = (v + self.offset).float()
        log_sums = torch.empty(self.n, dtype=torch.float64)
        chosen = torch.empty(self.n, k, dtype=torch.int64)
        for block, similarity in self.products.blocks("sinkhorn"):
            logits = torch.add(base, similarity, alpha=1 / self.epsilon)
            log_sums[block] = logits.logsumexp(1).double()
            chosen[block] = logits.topk(k, 1).indices
        columns = chosen.sort(1).values.flatten()
        rows = torch.arange(self.n).repeat_interleave(k)
        scores = torch.from_numpy(self.products.exact(rows.numpy(), columns.numpy()))
        return Best(rows, columns, scores, log_sums)


class SparseKernel:
    """Scores of some pairs, sorted by row; each row and column has at least one."""

    def __init__(
        self,
        rows: Int64[Tensor, " entries"],
        columns: Int64[Tensor, " entries"],
        scores: Float64[Tensor, " entries"],
        epsilon: float,
        offset: float,
    ) -> None:
        self.rows, self.columns, self.scores = rows, columns, scores
        self.logits = scores / epsilon + offset
        self.n, self.m = (int(side.max()) + 1 if len(side) else 0 for side in (rows, columns))

    def sweep(
        self, v: Float64[Tensor, " m"], potential: Potential
    ) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " m"]]:
        """Compute rows, then columns."""
        u = potential(_log_sums(self.rows, v[self.columns] + self.logits, self.n))
        return u, _log_sums(self.columns, u[self.rows] + self.logits, self.m)

    def best(self, v: Float64[Tensor, " m"], k: int) -> Best:
        """Choose among the candidates of each row."""
        logits = v[self.columns] + self.logits
        kept = torch.from_numpy(largest_in_rows(self.rows.numpy(), logits.numpy(), k))
        sums = _log_sums(self.rows, logits, self.n)
        return Best(self.rows[kept], self.columns[kept], self.scores[kept], sums)


def _log_sums(
    index: Int64[Tensor, " entries"], logits: Float[Tensor, " entries"], size: int
) -> Float64[Tensor, " size"]:
    """Return the log-sum-exp of the logits of each index; each index occurs."""
    top = torch.full((size,), -math.inf, dtype=torch.float64)
    top = top.scatter_reduce(0, index, logits, "amax")
    sums = torch.zeros(size, dtype=torch.float64)
    return top + sums.index_add_(0, index, (logits - top[index]).exp()).log()
