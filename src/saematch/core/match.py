"""``Match``: which features of the source are which features of the target.

The direction, once and for all: the entry ``(i, j)`` says that feature ``i`` of the source
is feature ``j`` of the target. Example with three features, ``columns = [2, 0, 1]``: feature 0
of the source is feature 2 of the target, so activations ``[a, b, c]`` of the source
layer become ``[b, c, a]`` in the target's order (``matching.transport``).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from safetensors.torch import load_file
from scipy.sparse import csr_array
from torch import Tensor

from saematch.core.errors import InputError
from saematch.core.store import DamagedError, read_facts, write


@dataclass(frozen=True)
class Certificate:
    """What is known about the quality of a match; None where it is not known or not defined."""

    value: float
    """Sum of the similarities of the matched pairs; in a partial match, also what staying unmatched
    is worth to each feature that does."""
    bound: float | None
    """Upper bound on the value of any match, proven by a solver."""
    chance: float | None = None
    """Expected value of a match that is drawn at random, ``(Σ x_i) · (Σ y_j) / max(n_a, n_b)``;
    None if features may stay unmatched."""
    gap_over_chance: float | None = None
    """``(bound - value) / (bound - chance)``: the share that is missing, at most, of what a match
    can win over a random one. Adding one vector to all features of layers of one width does not
    change it, unlike ``gap``. 0 if the bound is the chance value."""
    n_90: int | None = None
    """Least number of matched pairs that together carry 90 % of ``value - chance``. A pair carries
    the product of its two vectors, each less the mean of its side; if widths differ, its similarity
    less the mean similarity of its feature of the narrower layer."""
    certain: float | None = None
    """Lower bound on the share of the matched pairs that every optimal match contains."""

    @property
    def gap(self) -> float | None:
        """``(bound - value) / |bound|``, at least 0; 0 when both are 0; None without a bound."""
        if self.bound is None:
            return None
        return max(0.0, self.bound - self.value) / (abs(self.bound) or 1.0)

    @property
    def optimal_to(self) -> float | None:
        """The gap that a solver's tolerance limits: over chance, or relative if there is none."""
        return self.gap if self.gap_over_chance is None else self.gap_over_chance


class InvalidMatch(InputError):
    """The entries of a match break its rules."""


@dataclass(frozen=True)
class Match:
    """A sparse, weighted ``[n_source, n_target]`` matrix with any number of entries in a row.

    A permutation has one entry in each row and column, of weight 1. Entries are sorted by row, then
    column, no place has two, weights are finite, and all is on the CPU. Raises ``InvalidMatch``
    otherwise.
    """

    rows: Int64[Tensor, " n"]
    """Feature of the source, of each entry."""
    columns: Int64[Tensor, " n"]
    """Feature of the target, of each entry."""
    weights: Float[Tensor, " n"]
    """What an activation is multiplied by on its way; 1 in a permutation. float64."""
    n_source: int
    n_target: int
    certificate: Certificate | None = None
    dropped: float = 0.0
    """Share of the mass (sum of absolute weights) that composition dropped, from 0 to 1."""

    def __post_init__(self) -> None:
        if not len(self.rows) == len(self.columns) == len(self.weights):
            raise InvalidMatch("a match needs one row, column and weight for each entry")
        parts = (self.rows, self.columns, self.weights)
        if [(p.dtype, p.device.type) for p in parts] != _KINDS:
            raise InvalidMatch(
                "rows and columns of a match must be int64, its weights float64, all on the CPU; "
                f"they are {', '.join(f'{p.dtype} on {p.device}' for p in parts)}"
            )
        for name, index, size in (
            ("rows", self.rows, self.n_source),
            ("columns", self.columns, self.n_target),
        ):
            if len(index) and (int(index.min()) < 0 or int(index.max()) >= size):
                raise InvalidMatch(
                    f"{name} of a match go from {int(index.min())} to {int(index.max())}, but "
                    f"must lie between 0 and {size - 1}"
                )
        keys = self.rows * self.n_target + self.columns
        if (keys[1:] <= keys[:-1]).any():
            raise InvalidMatch("entries of a match must be sorted by row and column, none twice")
        if not self.weights.isfinite().all():
            n_bad = int((~self.weights.isfinite()).sum())
            raise InvalidMatch(f"{n_bad} weights of a match are NaN or infinite")

    @classmethod
    def from_columns(
        cls,
        columns: Int64[Tensor, " n_source"],
        n_target: int,
        certificate: Certificate | None = None,
    ) -> Match:
        """Build a match from each feature's partner, -1 for a feature that has none."""
        rows = torch.nonzero(columns >= 0).flatten()
        weights = torch.ones(len(rows), dtype=torch.float64)
        return cls(rows, columns[rows], weights, len(columns), n_target, certificate)

    @property
    def is_permutation(self) -> bool:
        """Whether every feature of both layers has exactly one partner, with weight 1."""
        if not self.n_source == self.n_target == len(self.rows) or not (self.weights == 1).all():
            return False
        every = torch.arange(self.n_source)
        return torch.equal(self.rows, every) and torch.equal(self.columns.sort().values, every)

    @property
    def matched(self) -> Int64[Tensor, " n_matched"]:
        """The source features that have an entry, in order."""
        return self.rows.unique_consecutive()

    @property
    def one_partner(self) -> bool:
        """Whether no source feature has several entries."""
        return not (self.rows[1:] == self.rows[:-1]).any()

    def inverse(self) -> Match:
        """Return the match from the target to the source (the transpose)."""
        order = torch.argsort(self.columns * self.n_source + self.rows)
        return replace(
            self,
            rows=self.columns[order],
            columns=self.rows[order],
            weights=self.weights[order],
            n_source=self.n_target,
            n_target=self.n_source,
        )

    def compose(self, second: Match, most: int | None = None) -> Match:
        """Return the match from this match's source to ``second``'s target.

        The sparse product, ``P(A->C) = P(B->C) o P(A->B)`` (paper, section 3.2); it carries no
        certificate. It keeps the ``most`` entries of largest absolute weight in a row (of equal
        ones the first columns), all without ``most``. ``dropped`` is 1 - the product of the shares
        of mass that both matches and this product kept.
        """
        if self.n_target != second.n_source:
            raise InputError(
                f"cannot compose: the first match ends in {self.n_target} features, the second "
                f"begins with {second.n_source}"
            )
        product = self._sparse() @ second._sparse()
        product.eliminate_zeros()  # weights that cancel
        rows, columns = (index.astype(np.int64) for index in product.tocoo().coords)
        order = np.lexsort((columns, rows))
        rows, columns, weights = rows[order], columns[order], product.data[order]
        kept = np.ones(len(rows), bool) if most is None else _largest(rows, weights, most)
        mass = np.abs(weights)
        lost = mass[~kept].sum() / mass.sum() if len(mass) else 0.0
        return Match(
            rows=torch.from_numpy(rows[kept]),
            columns=torch.from_numpy(columns[kept]),
            weights=torch.from_numpy(weights[kept]),
            n_source=self.n_source,
            n_target=second.n_target,
            dropped=1 - (1 - self.dropped) * (1 - second.dropped) * (1 - float(lost)),
        )

    def _sparse(self) -> csr_array:
        entries = self.weights.numpy(), (self.rows.numpy(), self.columns.numpy())
        return csr_array(entries, shape=(self.n_source, self.n_target))

    def agreement(self, other: Match) -> float:
        """Return the share of ``other``'s entries that this match has too; 1 if ``other`` is empty.

        With the truth as ``other`` this is recall.
        """
        if (self.n_source, self.n_target) != (other.n_source, other.n_target):
            raise InputError(
                f"cannot compare a match of {self.n_source} to {self.n_target} features with one "
                f"of {other.n_source} to {other.n_target}"
            )
        if not len(other.rows):
            return 1.0
        mine = self.rows * self.n_target + self.columns
        theirs = other.rows * self.n_target + other.columns
        return torch.isin(theirs, mine).double().mean().item()

    @property
    def hash(self) -> str:
        """A hash of the entries and sizes: equal matches have equal ones, however found."""
        digest = hashlib.sha256(f"{self.n_source} {self.n_target} ".encode())
        for part in (self.rows, self.columns, self.weights):
            digest.update(part.contiguous().numpy().tobytes())
        return digest.hexdigest()[:24]

    def keep(self, chosen: Bool[Tensor, " n"]) -> Match:
        """Return the match with the chosen entries alone; it carries no certificate."""
        return replace(
            self,
            rows=self.rows[chosen],
            columns=self.columns[chosen],
            weights=self.weights[chosen],
            certificate=None,
        )

    def save(self, path: Path, about: dict[str, object] | None = None, keep: bool = False) -> None:
        """Write one safetensors file; its header holds sizes, certificate and ``about`` as JSON.

        With ``keep``, a file that is there stays (``saematch.core.store``).
        """
        header: dict[str, object] = {name: getattr(self, name) for name in _SIZES}
        if self.certificate is not None:
            header |= asdict(self.certificate)
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        metadata = {"match": json.dumps(header), "about": json.dumps(about or {})}
        write(path, tensors, metadata, keep)

    @classmethod
    def load(cls, path: Path) -> tuple[Match, dict[str, object]]:
        """Read a match and its ``about``; ``InputError`` for a damaged file or another kind."""
        try:
            metadata = read_facts(path)
            header = json.loads(metadata["match"])
            sizes: dict[str, Any] = {name: header[name] for name in _SIZES}
        except (DamagedError, KeyError) as error:
            raise InputError(
                f"{path} is not a whole match file ({error}); delete it and match again"
            ) from error
        tensors: dict[str, Any] = load_file(path)
        certificate = None
        if "bound" in header:
            known = [field.name for field in fields(Certificate) if field.name in header]
            certificate = Certificate(**{name: header[name] for name in known})
        about = json.loads(metadata["about"])
        return cls(**tensors, **sizes, certificate=certificate), about


_TENSORS = ("rows", "columns", "weights")
_KINDS = [(dtype, "cpu") for dtype in (torch.int64, torch.int64, torch.float64)]
_SIZES = ("n_source", "n_target", "dropped")


def _largest(
    rows: Int64[np.ndarray, " n"], weights: Float[np.ndarray, " n"], most: int
) -> Bool[np.ndarray, " n"]:
    """Return which entries are among the ``most`` of largest absolute weight of their row.

    ``rows`` are sorted; of equal weights the first count.
    """
    order = np.lexsort((-np.abs(weights), rows))
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    chosen = np.empty(len(rows), bool)
    chosen[order] = rank < most
    return chosen
