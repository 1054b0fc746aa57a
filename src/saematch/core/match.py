"""``Match``: which feature of the earlier layer is which feature of the later one.

The direction, once and for all: the entry ``(i, j)`` says that feature ``i`` of the earlier layer
is feature ``j`` of the later one. Example with three features, ``columns = [2, 0, 1]``: feature 0
of the earlier layer is feature 2 of the later one, so activations ``[a, b, c]`` of the earlier
layer become ``[b, c, a]`` in the later layer's order.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.sparse import csr_array
from torch import Tensor

from saematch.core.files import parse_json, replacing


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


@dataclass(frozen=True)
class Match:
    """A sparse ``[n_from, n_to]`` matrix; a permutation has one entry in each row and column.

    Entries are sorted by row, then column, and no place has two. Raises ``ValueError`` otherwise.
    """

    rows: Int64[Tensor, " n"]
    """Feature of the earlier layer, of each entry."""
    columns: Int64[Tensor, " n"]
    """Feature of the later layer, of each entry."""
    weights: Float[Tensor, " n"]
    """What an activation is multiplied by on its way; 1 in a permutation. float64."""
    n_from: int
    n_to: int
    certificate: Certificate | None = None

    def __post_init__(self) -> None:
        if not len(self.rows) == len(self.columns) == len(self.weights):
            raise ValueError("a match needs one row, column and weight for each entry")
        for name, index, size in (
            ("rows", self.rows, self.n_from),
            ("columns", self.columns, self.n_to),
        ):
            if len(index) and (int(index.min()) < 0 or int(index.max()) >= size):
                raise ValueError(
                    f"{name} of a match go from {int(index.min())} to {int(index.max())}, but "
                    f"must lie between 0 and {size - 1}"
                )
        keys = self.rows * self.n_to + self.columns
        if (keys[1:] <= keys[:-1]).any():
            raise ValueError("entries of a match must be sorted by row and column, none twice")

    @classmethod
    def from_columns(
        cls, columns: Int64[Tensor, " n_from"], n_to: int, certificate: Certificate | None = None
    ) -> Match:
        """Build a match from each feature's partner, -1 for a feature that has none."""
        rows = torch.nonzero(columns >= 0).flatten()
        weights = torch.ones(len(rows), dtype=torch.float64)
        return cls(rows, columns[rows], weights, len(columns), n_to, certificate)

    @property
    def is_permutation(self) -> bool:
        """Whether every feature of both layers has exactly one partner, with weight 1."""
        if not self.n_from == self.n_to == len(self.rows) or not (self.weights == 1).all():
            return False
        every = torch.arange(self.n_from)
        return torch.equal(self.rows, every) and torch.equal(self.columns.sort().values, every)

    def partners(self) -> Int64[Tensor, " n_from"]:
        """Return each feature's partner in the later layer, -1 where it has none.

        Raises ``ValueError`` if a feature has more than one.
        """
        if (self.rows[1:] == self.rows[:-1]).any():
            raise ValueError("this match gives some features several partners")
        partners = torch.full((self.n_from,), -1, dtype=torch.int64)
        partners[self.rows] = self.columns
        return partners

    def apply(self, features: Float[Tensor, "*batch n_from"]) -> Float[Tensor, "*batch n_to"]:
        """Return activations of the earlier layer in the order of the later one.

        A later feature receives the weighted sum of its partners, 0 if it has none.
        """
        moved = features[..., self.rows] * self.weights.to(features.dtype)
        out = features.new_zeros(*features.shape[:-1], self.n_to)
        return out.index_add(-1, self.columns.to(features.device), moved)

    def inverse(self) -> Match:
        """Return the match from the later layer to the earlier one (the transpose)."""
        order = torch.argsort(self.columns * self.n_from + self.rows)
        return replace(
            self,
            rows=self.columns[order],
            columns=self.rows[order],
            weights=self.weights[order],
            n_from=self.n_to,
            n_to=self.n_from,
        )

    def compose(self, later: Match) -> Match:
        """Return the match from this match's earlier layer to ``later``'s later one.

        The sparse product, ``P(A->C) = P(B->C) o P(A->B)`` (paper, section 3.2); it carries no
        certificate.
        """
        if self.n_to != later.n_from:
            raise ValueError(
                f"cannot compose: the first match ends in {self.n_to} features, the second "
                f"begins with {later.n_from}"
            )
        product = (self._sparse() @ later._sparse()).tocoo()
        order = np.lexsort((product.col, product.row))
        rows, columns, weights = (
            torch.from_numpy(part[order]) for part in (product.row, product.col, product.data)
        )
        return Match(rows.long(), columns.long(), weights, self.n_from, later.n_to)

    def _sparse(self) -> csr_array:
        entries = self.weights.numpy(), (self.rows.numpy(), self.columns.numpy())
        return csr_array(entries, shape=(self.n_from, self.n_to))

    def agreement(self, other: Match) -> float:
        """Return the share of ``other``'s entries that this match has too; 1 if ``other`` is empty.

        With the truth as ``other`` this is recall.
        """
        if (self.n_from, self.n_to) != (other.n_from, other.n_to):
            raise ValueError(
                f"cannot compare a match of {self.n_from} to {self.n_to} features with one of "
                f"{other.n_from} to {other.n_to}"
            )
        if not len(other.rows):
            return 1.0
        mine = self.rows * self.n_to + self.columns
        theirs = other.rows * self.n_to + other.columns
        return torch.isin(theirs, mine).double().mean().item()

    @property
    def hash(self) -> str:
        """A hash of the entries and sizes: equal matches have equal ones, however found."""
        digest = hashlib.sha256(f"{self.n_from} {self.n_to} ".encode())
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

    def save(self, path: Path, about: dict[str, object] | None = None) -> None:
        """Write one safetensors file; its header holds sizes, certificate and ``about`` as JSON."""
        header: dict[str, object] = {"n_from": self.n_from, "n_to": self.n_to}
        if self.certificate is not None:
            header |= asdict(self.certificate)
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        metadata = {"match": json.dumps(header), "about": json.dumps(about or {})}
        with replacing(path) as part:
            save_file(tensors, part, metadata)

    @classmethod
    def load(cls, path: Path) -> tuple[Match, dict[str, object]]:
        """Read a match and what was said about it; ``ValueError`` for a damaged file."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                header = parse_json(metadata["match"])
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
        except (SafetensorError, KeyError) as error:
            raise ValueError(
                f"{path} is not a whole match file ({error}); delete it and match again"
            ) from error
        certificate = None
        if "bound" in header:
            known = [field.name for field in fields(Certificate) if field.name in header]
            certificate = Certificate(**{name: header[name] for name in known})
        about = parse_json(metadata["about"])
        return cls(**tensors, n_from=header["n_from"], n_to=header["n_to"],
                   certificate=certificate), about  # fmt: skip


_TENSORS = ("rows", "columns", "weights")
