"""Ridge regression of changes of the hidden state on the activations of source features."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_array

from saematch.evaluate.changes import Changes

log = logging.getLogger(__name__)

DENSE = 8192
"""Largest number of live features whose products are stored as a matrix, of 0.5 GiB; a fit takes a
copy."""
TOLERANCE = 1e-9
"""Norm of the residual, relative to the right-hand side, at which conjugate gradients stop."""
MOST_STEPS = 2000
ROWS = 1024
"""Number of rows of the matrix of products that change at a time."""

Solution = Float64[np.ndarray, "n_live n_outputs"]


class Moments(NamedTuple):
    """Sums over the calibration tokens, which the fits of all matches of a pair share."""

    cross: Float64[np.ndarray, "n_live d_model"]
    """``F' Y``."""
    energy: Float64[np.ndarray, " n_live"]
    """Sum of ``f_i^2`` of each live feature."""
    products: Float64[np.ndarray, "n_live n_live"] | None
    """``F' F``; None for more than ``DENSE`` live features."""

    @classmethod
    def of(cls, changes: Changes) -> Moments:
        """Read the sums from a recording."""
        n_live = len(changes.live)
        cross, energy = np.zeros((n_live, 1)), np.zeros(n_live)
        products = np.zeros((n_live, n_live)) if n_live <= DENSE else None
        for activations, change in changes.batches():
            cross = cross + activations.T @ change
            energy += np.asarray(activations.power(2).sum(axis=0)).ravel()
            if products is not None:
                of_batch = (activations.T @ activations).tocoo()
                products[of_batch.row, of_batch.col] += of_batch.data
        return cls(cross, energy, products)


@dataclass(frozen=True)
class Regression:
    """Ridge regression with one gain for each feature, or with one free vector.

    With directions ``v_i``, gains ``g`` minimise ``|Y - sum_i g_i f_i v_i|^2 + penalty |g|^2`` over
    all tokens. Without directions, vectors ``V`` minimise ``|Y - F V|^2 + penalty |V|^2``. ``F``
    has the activations of the live features and ``Y`` the changes. The penalty is ``ridge`` times
    the mean over live features of the sum of ``f_i^2``.
    """

    changes: Changes
    moments: Moments
    """Sums over the tokens of ``changes``."""
    directions: Float64[np.ndarray, "n_live d_model"] | None
    """Direction of each live feature, to fit gains; None to fit free vectors."""
    ridge: float

    def solve(self) -> Solution:
        """Return the gains ``[n_live, 1]`` or the free vectors ``[n_live, d_model]``.

        Up to ``DENSE`` live features, the solution is exact. Beyond that, conjugate gradients read
        the recording once for each step and store no matrix of products.
        """
        cross, energy, products = self.moments
        right = self._projected(cross)
        if not len(energy):
            return right
        penalty = self.ridge * float(energy.mean())
        if products is not None:
            return self._by_cholesky(products, right, penalty)
        return self._by_conjugate_gradients(right, penalty)

    def _projected(self, sums: Float64[np.ndarray, "n_live d_model"]) -> Solution:
        """Return the inner products with the directions, or the sums as they are without them."""
        if self.directions is None:
            return sums
        return np.vecdot(sums, self.directions)[:, None]

    def _predict(self, activations: csr_array, solution: Solution) -> np.ndarray:
        """Return the predicted changes of a batch, ``[n_tokens, d_model]``."""
        return activations @ (solution if self.directions is None else solution * self.directions)

    def _by_cholesky(
        self, products: Float64[np.ndarray, "n_live n_live"], right: Solution, penalty: float
    ) -> Solution:
        matrix = products.copy()
        if self.directions is not None:
            for start in range(0, len(matrix), ROWS):
                rows = slice(start, start + ROWS)
                matrix[rows] *= self.directions[rows] @ self.directions.T
        matrix[np.diag_indices(len(matrix))] += penalty
        # The matrix is symmetric; its transpose has the order of LAPACK, which needs no copy then
        return cho_solve(cho_factor(matrix.T, lower=True, overwrite_a=True), right)

    def _by_conjugate_gradients(self, right: Solution, penalty: float) -> Solution:
        """Solve each column by conjugate gradients, preconditioned by the diagonal."""
        squares = 1.0 if self.directions is None else np.vecdot(self.directions, self.directions)
        inverse = 1 / (self.moments.energy * squares + penalty)[:, None]
        solution, residual = np.zeros_like(right), right.copy()
        step = inverse * residual
        size = (residual * step).sum(axis=0)
        goal = TOLERANCE * np.linalg.norm(right, axis=0)
        for _ in range(MOST_STEPS):
            if (np.linalg.norm(residual, axis=0) <= goal).all():
                return solution
            image = penalty * step
            for activations in self.changes.activations():
                image += self._projected(activations.T @ self._predict(activations, step))
            length = _ratio(size, (step * image).sum(axis=0))
            solution += length * step
            residual -= length * image
            scaled = inverse * residual
            size, previous = (residual * scaled).sum(axis=0), size
            step = scaled + _ratio(size, previous) * step
        left = np.linalg.norm(residual) / np.linalg.norm(right)
        log.warning(
            "increment: the fit stopped after %d steps with a relative residual of %.1e: raise "
            "evaluations.skipping.ridge",
            MOST_STEPS, left,
        )  # fmt: skip
        return solution


def _ratio(sizes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the ratio of each two sizes, 0 for a column that is solved exactly."""
    return np.divide(sizes, others, out=np.zeros_like(sizes), where=others > 0)
