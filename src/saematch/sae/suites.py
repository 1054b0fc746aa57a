"""The SAEs of a run. Memory holds only a few of them at a time."""

from __future__ import annotations

import math
import uuid
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from saematch.core.code import code_of, codes_of, has_address, settings_text
from saematch.core.errors import InputError
from saematch.core.files import hashed
from saematch.core.pairs import SaeKey
from saematch.core.progress import progress
from saematch.sae.folding import FOLDS, fold_scale
from saematch.sae.params import SaeOrigin, SaeParams
from saematch.sae.sources.source import SaeSource
from saematch.sae.thresholds import threshold_summary

GIB = 2**30


@dataclass(frozen=True)
class SaeFacts:
    """Facts about an SAE that need no weights."""

    origin: SaeOrigin
    d_model: int
    n_features: int
    n_bytes: int
    """Size of its tensors."""
    thresholds: Mapping[str, str | float | None]
    """Kind, mean and spread of the thresholds, share of the biases: see ``threshold_summary``."""
    unfoldable: Mapping[str, str]
    """Reason why the SAE cannot be folded, by fold; only for folds that fail."""
    code: str = ""
    """Hash of the code that loads and changes the SAE; empty for an SAE given in memory."""

    @property
    def identity(self) -> str:
        """Return the text that identifies the weights in the keys of stored results."""
        return f"{self.origin!r} {self.code}"

    @classmethod
    def of(cls, sae: SaeParams) -> SaeFacts:
        """Return the facts of an SAE that is in memory."""
        unfoldable = {}
        for by in FOLDS:
            try:
                fold_scale(sae, by)
            except InputError as error:
                unfoldable[by] = str(error)
        summary = threshold_summary(sae)
        return cls(sae.origin, sae.d_model, sae.n_features, _size(sae), summary, unfoldable)


class SaeShelf(Mapping):  # with types in brackets, a checked call would load an SAE
    """SAEs by key. Each is loaded when it is needed, with the errors of its source.

    The shelf keeps as many SAEs as fit into its memory, but at least two, and drops the least
    recently used first. It keeps only one copy of SAEs of one origin. Process pairs in order, since
    neighbouring pairs share an SAE. Delete references to a pair's SAEs before loading the next
    pair's, or memory holds both.
    """

    def __init__(self, facts: Mapping[SaeKey, SaeFacts], cache: _Cache) -> None:
        self.facts = facts
        self._cache = cache

    @classmethod
    def load(
        cls, keys: Sequence[SaeKey], suites: Mapping[str, SaeSource], memory: float
    ) -> SaeShelf:
        """Load each SAE once to compute its facts; ``memory`` is in GiB.

        Raises ``InputError`` if two suites have different SAEs with the same origin.
        """
        facts: dict[SaeKey, SaeFacts] = {}
        by_origin: dict[SaeOrigin, SaeFacts] = {}  # suites may share SAEs
        cache = _Cache(memory * GIB)
        codes = {name: _code(source) for name, source in suites.items()}
        with progress("load SAEs", len(keys), "SAE") as bar:
            for key in keys:
                cache.make_room(max((loaded.n_bytes for loaded in by_origin.values()), default=0))
                source = partial(suites[key.suite].load, key.layer)
                sae = source()
                if sae.origin not in by_origin:
                    by_origin[sae.origin] = replace(SaeFacts.of(sae), code=codes[key.suite])
                    cache.add(sae, source)
                elif SaeFacts.of(sae) != replace(by_origin[sae.origin], code=""):
                    raise InputError(
                        f"the SAE of {key.name} has the origin of another SAE "
                        f"({sae.origin.where}) but other weights: its source must give it an "
                        "origin of its own"
                    )
                facts[key] = by_origin[sae.origin]
                bar.advance()
        return cls(facts, cache)

    def dressed(
        self, change: Callable[[SaeParams], SaeParams], keys: Container[SaeKey] | None = None
    ) -> SaeShelf:
        """Return a shelf that changes each SAE when it loads it, and empty this shelf.

        ``keys`` are the SAEs to change; None means all.
        """
        cache = _Cache(self._cache.limit)
        self._cache.clear()
        facts: dict[SaeKey, SaeFacts] = {}
        loaded: dict[tuple[SaeOrigin, bool], SaeFacts] = {}
        for key, before in self.facts.items():
            changes = keys is None or key in keys
            source = partial(self._changed, before.origin, change if changes else None)
            if (before.origin, changes) not in loaded:
                cache.make_room(before.n_bytes)
                sae = source()
                code = hashed([before.code, code_of(change)]) if changes else before.code
                loaded[before.origin, changes] = replace(SaeFacts.of(sae), code=code)
                cache.add(sae, source)
            facts[key] = loaded[before.origin, changes]
        return SaeShelf(facts, cache)

    def _changed(
        self, origin: SaeOrigin, change: Callable[[SaeParams], SaeParams] | None
    ) -> SaeParams:
        sae = self._cache.load(origin)
        return sae if change is None else change(sae)

    @classmethod
    def of(cls, saes: Saes) -> SaeShelf:
        """Wrap SAEs in a shelf; return an existing shelf unchanged."""
        if isinstance(saes, SaeShelf):
            return saes
        cache = _Cache(math.inf)
        for sae in saes.values():
            cache.add(sae, partial(_unchanged, sae))
        return cls({key: SaeFacts.of(sae) for key, sae in saes.items()}, cache)

    def __getitem__(self, key: SaeKey) -> SaeParams:
        return self._cache.get(self.facts[key])

    def __contains__(self, key: object) -> bool:
        return key in self.facts

    def __iter__(self) -> Iterator[SaeKey]:
        return iter(self.facts)

    def __len__(self) -> int:
        return len(self.facts)

    def only(self, keys: Iterable[SaeKey]) -> SaeShelf:
        """Return a shelf with some of the SAEs; both shelves share their memory."""
        return SaeShelf({key: self.facts[key] for key in keys}, self._cache)

    def parts(self, together: Iterable[Set[SaeKey]]) -> list[set[SaeKey]]:
        """Split the SAEs into groups that fit into memory.

        No set of ``together`` is split. A set joins the last group if both fit, and starts a new
        group otherwise, even if it does not fit by itself.
        """
        groups: list[set[SaeKey]] = []
        for keys in together:
            if any(keys <= group for group in groups):
                continue
            if groups and self._fits(groups[-1] | keys):
                groups[-1] |= keys
            else:
                groups.append(set(keys))
        return groups

    def _fits(self, keys: Set[SaeKey]) -> bool:
        size = {self.facts[key].origin: self.facts[key].n_bytes for key in keys}
        return sum(size.values()) <= self._cache.limit


Saes = SaeShelf | Mapping[SaeKey, SaeParams]
"""SAEs of a run: on a shelf, or all in memory."""


def _unchanged(sae: SaeParams) -> SaeParams:
    return sae


class _Cache:
    """Memory of a shelf: the loaded SAEs, and functions that reload the others."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._sources: dict[SaeOrigin, Callable[[], SaeParams]] = {}
        self._saes: OrderedDict[SaeOrigin, SaeParams] = OrderedDict()

    def add(self, sae: SaeParams, source: Callable[[], SaeParams]) -> None:
        """Add a loaded SAE and the function that reloads it."""
        self._sources.setdefault(sae.origin, source)
        self._saes.setdefault(sae.origin, sae)

    def make_room(self, n_bytes: int) -> None:
        """Drop SAEs until ``n_bytes`` more fit, or only one SAE is left."""
        while len(self._saes) > 1 and sum(map(_size, self._saes.values())) + n_bytes > self.limit:
            self._saes.popitem(last=False)

    def clear(self) -> None:
        """Drop all loaded SAEs."""
        self._saes.clear()

    def get(self, facts: SaeFacts) -> SaeParams:
        origin = facts.origin
        if origin not in self._saes:
            self.make_room(facts.n_bytes)
            self._saes[origin] = self.load(origin)
        self._saes.move_to_end(origin)
        return self._saes[origin]

    def load(self, origin: SaeOrigin) -> SaeParams:
        """Load an SAE without keeping it; ``InputError`` if its origin has changed since."""
        sae = self._sources[origin]()
        if sae.origin != origin:
            raise InputError(f"the SAE {origin.where} changed while the run used it; start again")
        return sae


def _code(source: SaeSource) -> str:
    """Return a hash of a source's code and, for a source of another package, of its settings.

    The settings of such a source may change SAEs without changing their origin.
    """
    code = code_of(source)
    if all(name.startswith("saematch.") for name in codes_of(source)):
        return code
    text = settings_text(source)
    return hashed([code, text, uuid.uuid4().hex if has_address(text) else ""])


def _size(sae: SaeParams) -> int:
    return sum(part.nbytes for part in vars(sae).values() if isinstance(part, Tensor))
