"""Non-negative least squares of many vectors, each on a few vectors of its own."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from saematch.matching.blocks import Largest

NUMBERS_AT_ONCE = 1 << 21
"""Numbers in the atoms of one chunk of rows, which fit into the caches."""
TOLERANCE = 1e-6
"""Gradient, as a share of a row's largest one at the start, that float32 cannot tell from 0."""
RIDGE = 1e-12
"""Addition to the diagonal of normal equations, as a share of it: equal atoms have a solution."""


def fit_largest(
    vectors: Float[Tensor, "n size"], parts: Float[Tensor, "m size"], largest: Largest, most: int
) -> Float64[Tensor, "n k"]:
    """Return the coefficients of each vector on its most similar parts, by ``nonnegative_fit``.

    ``largest`` has the similarities of vectors and parts. A part whose similarity is not positive
    gets 0. The time of ``n k^2 size`` multiplications limits ``k``. The result is on the CPU.
    """
    n, k = largest.columns.shape
    out = torch.empty(n, k, dtype=torch.float64)
    size = max(1, NUMBERS_AT_ONCE // (k * parts.shape[1]))
    for start in range(0, n, size):
        rows = slice(start, start + size)
        values, columns = (part[rows].to(parts.device) for part in largest)
        atoms = parts[columns].float()
        correlation = torch.where(values > 0, values, -math.inf)
        out[rows] = nonnegative_fit(atoms @ atoms.mT, correlation, min(most, k)).cpu()
    return out


def nonnegative_fit(
    gram: Float[Tensor, "n n_atoms n_atoms"], correlation: Float[Tensor, "n n_atoms"], most: int
) -> Float64[Tensor, "n n_atoms"]:
    """Return non-negative coefficients of atoms whose sum is near each of ``n`` vectors.

    ``gram`` has the inner products of the atoms of each vector, and ``correlation`` those with the
    vector. The algorithm is the active-set method of Lawson and Hanson (Solving Least Squares
    Problems, 1974, chapter 23), for all vectors together. It adds the atom of largest inner product
    with the residual, and fits the coefficients of the chosen atoms again. At most ``most`` atoms
    of a row have a positive coefficient. If ``most`` is the number of atoms, the result is the
    non-negative least-squares solution. With fewer atoms of length 1 it is a non-negative
    orthogonal matching pursuit (Nguyen et al., IEEE TSP 2019), and the coefficients are the
    non-negative least-squares solution for the chosen atoms.
    """
    fit = _Fit(gram.double(), correlation.double(), most)
    for _ in range(3 * most):
        rows = fit.add_atoms()
        if not len(rows):
            break
        while len(rows):
            rows = fit.refit(rows)
    return torch.zeros_like(fit.correlation).scatter_add_(1, fit.chosen, fit.coefficients)


class _Fit:
    """Chosen atoms and coefficients of all rows; a row has ``most`` places for atoms."""

    chosen: Int64[Tensor, "n most"]
    """Atom at each place; any atom where the place is free."""
    taken: Bool[Tensor, "n most"]
    coefficients: Float64[Tensor, "n most"]
    """Coefficient of the atom at each place; 0 where the place is free."""
    products: Float64[Tensor, "n n_atoms most"]
    """Inner product of each atom with the atom at each place."""

    def __init__(
        self,
        gram: Float64[Tensor, "n n_atoms n_atoms"],
        correlation: Float64[Tensor, "n n_atoms"],
        most: int,
    ) -> None:
        self.gram, self.correlation = gram, correlation
        self.least = TOLERANCE * correlation.amax(1).clamp(min=0)
        n, n_atoms = correlation.shape
        self.chosen = torch.zeros(n, most, dtype=torch.int64, device=gram.device)
        self.taken = torch.zeros(n, most, dtype=torch.bool, device=gram.device)
        self.coefficients = gram.new_zeros(n, most)
        self.products = gram.new_zeros(n, n_atoms, most)

    def add_atoms(self) -> Int64[Tensor, " k"]:
        """Give each row with a free place its next atom; return the rows that got one."""
        explained = torch.einsum("nap,np->na", self.products, self.coefficients)
        gradient, atom = (self.correlation - explained).max(1)
        rows = torch.nonzero((gradient > self.least) & ~self.taken.all(1)).flatten()
        atom = atom[rows]
        place = (~self.taken[rows]).int().argmax(1)
        self.chosen[rows, place] = atom
        self.taken[rows, place] = True
        self.products[rows, :, place] = self.gram[rows, :, atom]
        return rows

    def refit(self, rows: Int64[Tensor, " k"]) -> Int64[Tensor, " left"]:
        """Fit the coefficients of some rows; return the rows that lost atoms and need another fit.

        A row goes from its coefficients towards the least-squares solution until a coefficient is
        0. The atoms of that coefficient leave the row.
        """
        taken, before = self.taken[rows], self.coefficients[rows]
        solution = self._least_squares(rows, taken)
        blocked = taken & (solution <= 0)
        steps = (before - solution).clamp(min=torch.finfo(torch.float64).tiny)
        share = torch.where(blocked, before / steps, 1.0)
        first = share.amin(1, keepdim=True)
        lost = blocked & (share == first)
        after = torch.lerp(before, solution, first).clamp(min=0).masked_fill(lost | ~taken, 0.0)
        self.coefficients[rows] = after
        self.taken[rows] = taken & ~lost
        return rows[blocked.any(1)]

    def _least_squares(
        self, rows: Int64[Tensor, " k"], taken: Bool[Tensor, "k most"]
    ) -> Float64[Tensor, "k most"]:
        """Return the least-squares coefficients of the chosen atoms, 0 at free places."""
        chosen = self.chosen[rows]
        index = chosen[:, :, None].expand(-1, -1, chosen.shape[1])
        gram = self.products[rows].gather(1, index)
        gram = torch.where(taken[:, :, None] & taken[:, None, :], gram, 0.0)
        diagonal = gram.diagonal(dim1=1, dim2=2)
        diagonal.copy_(torch.where(taken, diagonal * (1 + RIDGE), 1.0))
        target = torch.where(taken, self.correlation[rows].gather(1, chosen), 0.0)
        return torch.linalg.solve(gram, target)
