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
"""Largest number of live features whose products are stored as a matrix, of 0.5 GiB."""
TOLERANCE = 1e-9
"""Norm of the residual, relative to the right-hand side, at which conjugate gradients stop."""
MOST_STEPS = 2000
ROWS = 1024
"""Number of rows of the matrix of products that change at a time."""

Solution = Float64[np.ndarray, "n_live n_outputs"]


class _Moments(NamedTuple):
    """Sums over the calibration tokens."""

    right: Solution
    """Right-hand side of the normal equations."""
    diagonal: Float64[np.ndarray, " n_live"]
    """Diagonal of the matrix of the normal equations, without the penalty."""
    penalty: float


@dataclass(frozen=True)
class Regression:
    """Ridge regression with one gain for each feature, or with one free vector.

    With directions ``v_i``, gains ``g`` minimise ``|Y - sum_i g_i f_i v_i|^2 + penalty |g|^2`` over
    all tokens. Without directions, vectors ``V`` minimise ``|Y - F V|^2 + penalty |V|^2``. ``F``
    has the activations of the live features and ``Y`` the changes. The penalty is ``ridge`` times
    the mean over live features of the sum of ``f_i^2``.
    """

    changes: Changes
    directions: Float64[np.ndarray, "n_live d_model"] | None
    """Direction of each live feature, to fit gains; None to fit free vectors."""
    ridge: float

    def solve(self) -> Solution:
        """Return the gains ``[n_live, 1]`` or the free vectors ``[n_live, d_model]``.

        Up to ``DENSE`` live features, the solution is exact. Beyond that, conjugate gradients read
        the recording once for each step and store no matrix of products.
        """
        if not len(self.changes.live):
            d_model = next(self.changes.batches()).change.shape[1]
            return np.zeros((0, d_model if self.directions is None else 1))
        moments = self._moments()
        if len(self.changes.live) <= DENSE:
            return self._by_cholesky(moments)
        return self._by_conjugate_gradients(moments)

    def _moments(self) -> _Moments:
        n_live, directions = len(self.changes.live), self.directions
        right, energy = np.zeros((n_live, 1)), np.zeros(n_live)
        for activations, change in self.changes.batches():
            right = right + self._adjoint(activations, change)
            energy += np.asarray(activations.power(2).sum(axis=0)).ravel()
        squares = 1.0 if directions is None else np.vecdot(directions, directions)
        return _Moments(right, energy * squares, self.ridge * float(energy.mean()))

    def _predict(self, activations: csr_array, solution: Solution) -> np.ndarray:
        """Return the predicted changes of a batch, ``[n_tokens, d_model]``."""
        return activations @ (solution if self.directions is None else solution * self.directions)

    def _adjoint(self, activations: csr_array, change: np.ndarray) -> Solution:
        """Return the transposed map of ``_predict``, applied to changes."""
        product = activations.T @ change
        if self.directions is None:
            return product
        return np.vecdot(product, self.directions)[:, None]

    def _by_cholesky(self, moments: _Moments) -> Solution:
        n_live = len(moments.right)
        matrix = np.zeros((n_live, n_live))
        for activations in self.changes.activations():
            product = (activations.T @ activations).tocoo()
            matrix[product.row, product.col] += product.data
        if self.directions is not None:
            for start in range(0, n_live, ROWS):
                rows = slice(start, start + ROWS)
                matrix[rows] *= self.directions[rows] @ self.directions.T
        matrix[np.diag_indices(n_live)] += moments.penalty
        # The matrix is symmetric; its transpose has the order of LAPACK, which needs no copy then
        return cho_solve(cho_factor(matrix.T, lower=True, overwrite_a=True), moments.right)

    def _by_conjugate_gradients(self, moments: _Moments) -> Solution:
        """Solve each column by conjugate gradients, preconditioned by the diagonal."""
        inverse = 1 / (moments.diagonal + moments.penalty)[:, None]
        solution, residual = np.zeros_like(moments.right), moments.right.copy()
        step = inverse * residual
        size = (residual * step).sum(axis=0)
        goal = TOLERANCE * np.linalg.norm(moments.right, axis=0)
        for _ in range(MOST_STEPS):
            if (np.linalg.norm(residual, axis=0) <= goal).all():
                return solution
            image = moments.penalty * step
            for activations in self.changes.activations():
                image += self._adjoint(activations, self._predict(activations, step))
            length = _ratio(size, (step * image).sum(axis=0))
            solution += length * step
            residual -= length * image
            scaled = inverse * residual
            size, previous = (residual * scaled).sum(axis=0), size
            step = scaled + _ratio(size, previous) * step
        left = np.linalg.norm(residual) / np.linalg.norm(moments.right)
        log.warning(
            "increment: the fit stopped after %d steps with a relative residual of %.1e: raise "
            "evaluations.skipping.ridge",
            MOST_STEPS, left,
        )  # fmt: skip
        return solution


def _ratio(sizes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the ratio of each two sizes, 0 for a column that is solved exactly."""
    return np.divide(sizes, others, out=np.zeros_like(sizes), where=others > 0)
