"""``Match``: which features of the source are which features of the target.

Direction: the entry ``(i, j)`` says that feature ``i`` of the source is feature ``j`` of the
target. Example with three features, ``columns = [2, 0, 1]``: feature 0
of the source is feature 2 of the target, so activations ``[a, b, c]`` of the source
layer become ``[b, c, a]`` in the target's order (``matching.transport``).
"""

from __future__ import annotations

import hashlib
import html
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64
from safetensors.torch import load_file
from scipy.sparse import csr_array
from torch import Tensor

from saematch.core.errors import InputError
from saematch.core.store import DamagedError, read_facts, write


@dataclass(frozen=True)
class Certificate:
    """Proven quality of a match; None where a value is unknown or undefined."""

    value: float
    """Sum of the similarities of the matched pairs; in a partial match, plus the value of staying
    unmatched for each unmatched feature."""
    bound: float | None
    """Upper bound on the value of any match, proven by a solver."""
    chance: float | None = None
    """Expected value of a random match, ``(Σ x_i) · (Σ y_j) / max(n_a, n_b)``;
    None if features may stay unmatched."""
    gap_over_chance: float | None = None
    """``(bound - value) / (bound - chance)``: the largest possible share of the gain over a random
    match that this match misses. Unlike ``gap``, it does not change when one vector is added to all
    features, if both layers have the same width. 0 if the bound is the chance value."""
    n_90: int | None = None
    """Smallest number of matched pairs that together make up 90 % of ``value - chance``. A pair
    contributes the inner product of its vectors after the mean of each side is subtracted. If
    widths differ, it contributes its similarity minus the mean similarity of its feature of the
    narrower layer."""
    certain: float | None = None
    """Lower bound on the share of matched pairs that are in every optimal match."""

    @property
    def gap(self) -> float | None:
        """``(bound - value) / |bound|``, at least 0; 0 if both are 0; None without a bound."""
        if self.bound is None:
            return None
        return max(0.0, self.bound - self.value) / (abs(self.bound) or 1.0)

    @property
    def optimal_to(self) -> float | None:
        """Gap that a solver's tolerance limits: the gap over chance, or ``gap`` if that is None."""
        return self.gap if self.gap_over_chance is None else self.gap_over_chance

    def _repr_html_(self) -> str:
        """Return the values that are known, for notebooks."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        return pd.DataFrame({"certificate": {n: f"{v:.6g}" for n, v in values.items()}}).to_html()


class InvalidMatch(InputError):
    """A match whose entries break the rules of ``Match``."""


@dataclass(frozen=True, eq=False, repr=False)
class Match:
    """A sparse, weighted ``[n_source, n_target]`` matrix with any number of entries in a row.

    A permutation has one entry of weight 1 in each row and column. Entries are unique and sorted by
    row, then column; weights are finite; all tensors are on the CPU. Raises ``InvalidMatch``
    otherwise. The length of a match is its number of entries; two matches are equal if they have
    the same sizes, entries and weights.
    """

    rows: Int64[Tensor, " n"]
    """Source feature of each entry."""
    columns: Int64[Tensor, " n"]
    """Target feature of each entry."""
    weights: Float[Tensor, " n"]
    """Factor by which an entry multiplies an activation; 1 in a permutation. float64."""
    n_source: int
    n_target: int
    certificate: Certificate | None = None
    dropped: float = 0.0
    """Share of the mass (sum of absolute weights) that composition or the matcher dropped, from 0
    to 1."""
    scores: Float[Tensor, " n"] | None = None
    """Score of each entry, which the matcher read from the similarity, in float64; None if unknown.
    Nothing is computed from scores, and they are not part of the hash."""

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
                    f"{name} of a match range from {int(index.min())} to {int(index.max())}, but "
                    f"must be between 0 and {size - 1}"
                )
        keys = self.rows * self.n_target + self.columns
        if (keys[1:] <= keys[:-1]).any():
            raise InvalidMatch("entries of a match must be unique and sorted by row and column")
        if not self.weights.isfinite().all():
            n_bad = int((~self.weights.isfinite()).sum())
            raise InvalidMatch(f"{n_bad} weights of a match are NaN or infinite")
        if self.scores is not None and (
            self.scores.shape != self.weights.shape or self.scores.dtype != torch.float64
        ):
            raise InvalidMatch("a match needs one float64 score for each entry, or no scores")

    def __len__(self) -> int:
        return len(self.rows)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Match):
            return NotImplemented
        sizes = (self.n_source, self.n_target) == (other.n_source, other.n_target)
        return sizes and all(
            torch.equal(getattr(self, name), getattr(other, name)) for name in _TENSORS
        )

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        partners = "one partner" if self.one_partner else f"{len(self)} entries"
        share = f"{len(self.matched)} of {self.n_source} features matched, {partners}"
        gap = None if self.certificate is None else self.certificate.optimal_to
        proof = "" if gap is None else ", proven optimal" + (f" to {gap:.1e}" if gap else "")
        return f"Match({self.n_source} → {self.n_target} features: {share}{proof})"

    def _repr_html_(self) -> str:
        """Return the summary and the first entries, for notebooks."""
        return f"<p>{html.escape(repr(self))}</p>" + self.to_pandas().to_html(
            max_rows=10, index=False
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return a row for each entry: ``source_feature``, ``target_feature``, ``weight``, and
        ``score`` if the match has scores."""
        frame = pd.DataFrame({
            "source_feature": self.rows.numpy(),
            "target_feature": self.columns.numpy(),
            "weight": self.weights.numpy(),
        })  # fmt: skip
        return frame if self.scores is None else frame.assign(score=self.scores.numpy())

    @classmethod
    def from_columns(
        cls,
        columns: Int64[Tensor, " n_source"],
        n_target: int,
        certificate: Certificate | None = None,
    ) -> Match:
        """Return the match of each feature with its partner; -1 means that it has none."""
        rows = torch.nonzero(columns >= 0).flatten()
        weights = torch.ones(len(rows), dtype=torch.float64)
        return cls(rows, columns[rows], weights, len(columns), n_target, certificate)

    @property
    def is_permutation(self) -> bool:
        """Whether every feature of both layers has exactly one partner, with weight 1."""
        if not self.n_source == self.n_target == len(self.rows) or not (self.weights == 1).all():
            return False
        features = torch.arange(self.n_source)
        columns = self.columns.sort().values
        return torch.equal(self.rows, features) and torch.equal(columns, features)

    @property
    def matched(self) -> Int64[Tensor, " n_matched"]:
        """Source features that have an entry, in order."""
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
            scores=None if self.scores is None else self.scores[order],
            n_source=self.n_target,
            n_target=self.n_source,
        )

    def compose(self, second: Match, most: int | None = None) -> Match:
        """Return the match from this match's source to ``second``'s target.

        This is the sparse product ``P(A->C) = P(B->C) o P(A->B)`` (paper, section 3.2), without a
        certificate. With ``most``, each row keeps only that many entries of largest absolute
        weight; ties go to the first columns. ``dropped`` is 1 minus the product of the shares of
        mass that the two matches and this product kept.
        """
        _check_match(second)
        if self.n_target != second.n_source:
            raise InputError(
                f"cannot compose: the target of the first match has {self.n_target} features, the "
                f"source of the second has {second.n_source}"
            )
        product = self._sparse() @ second._sparse()
        product.eliminate_zeros()  # entries whose weights cancel
        rows, columns = (index.astype(np.int64) for index in product.tocoo().coords)
        order = np.lexsort((columns, rows))
        rows, columns, weights = rows[order], columns[order], product.data[order]
        mass = np.abs(weights)
        kept = np.ones(len(rows), bool) if most is None else largest_in_rows(rows, mass, most)
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
        """Return the share of the entries of ``other`` that are in this match; 1 if there are none.

        If ``other`` is the true match, this is recall.
        """
        _check_match(other)
        if (self.n_source, self.n_target) != (other.n_source, other.n_target):
            raise InputError(
                f"cannot compare a match of {self.n_source} to {self.n_target} features with one "
                f"of {other.n_source} to {other.n_target}"
            )
        if not len(other.rows):
            return 1.0
        entries = self.rows * self.n_target + self.columns
        other_entries = other.rows * self.n_target + other.columns
        return torch.isin(other_entries, entries).double().mean().item()

    @property
    def hash(self) -> str:
        """Hash of the entries and sizes; it does not depend on how the match was found."""
        digest = hashlib.sha256(f"{self.n_source} {self.n_target} ".encode())
        for part in (self.rows, self.columns, self.weights):
            digest.update(part.contiguous().numpy().tobytes())
        return digest.hexdigest()[:24]

    def keep(self, chosen: Bool[Tensor, " n"]) -> Match:
        """Return the match with only the chosen entries and without a certificate."""
        return replace(
            self,
            rows=self.rows[chosen],
            columns=self.columns[chosen],
            weights=self.weights[chosen],
            scores=None if self.scores is None else self.scores[chosen],
            certificate=None,
        )

    def save(
        self, path: str | Path, facts: dict[str, object] | None = None, keep: bool = False
    ) -> None:
        """Write a safetensors file; its header has sizes, certificate and ``facts`` as JSON.

        With ``keep``, an existing undamaged file stays (``saematch.core.store``).
        """
        header: dict[str, object] = {name: getattr(self, name) for name in _SIZES}
        if self.certificate is not None:
            header |= asdict(self.certificate)
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        if self.scores is not None:
            tensors["scores"] = self.scores.contiguous()
        metadata = {"match": json.dumps(header), "about": json.dumps(facts or {})}
        write(Path(path), tensors, metadata, keep)

    @classmethod
    def load(cls, path: str | Path) -> tuple[Match, dict[str, object]]:
        """Read a match and its facts; raises ``InputError`` if the file is not a whole match."""
        path = Path(path)
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
            names = [field.name for field in fields(Certificate) if field.name in header]
            certificate = Certificate(**{name: header[name] for name in names})
        match = cls(**tensors, **sizes, certificate=certificate)
        return match, json.loads(metadata["about"])


_TENSORS = ("rows", "columns", "weights")
_KINDS = [(dtype, "cpu") for dtype in (torch.int64, torch.int64, torch.float64)]
_SIZES = ("n_source", "n_target", "dropped")


def _check_match(value: object) -> None:
    if not isinstance(value, Match):
        raise InputError(f"expected a Match, not a value of class {type(value).__name__}")


def largest_in_rows(
    rows: Int64[np.ndarray, " n"], values: Float[np.ndarray, " n"], most: int
) -> Bool[np.ndarray, " n"]:
    """Return a mask of the ``most`` entries of largest value in each row.

    ``rows`` must be sorted and not negative. Ties go to the first entry.
    """
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    ends = np.append(starts[1:], len(rows))
    chosen = np.ones(len(rows), bool)
    for start, end in zip(
        *(places[ends - starts > most] for places in (starts, ends)), strict=True
    ):
        of_row = values[start:end]
        level = np.partition(of_row, -most)[-most]
        above = of_row > level
        above[np.flatnonzero(of_row == level)[: most - above.sum()]] = True
        chosen[start:end] = above
    return chosen
