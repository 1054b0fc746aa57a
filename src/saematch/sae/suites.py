"""The SAEs of a run, of which memory holds a few at a time."""

from __future__ import annotations

import math
import uuid
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor
from tqdm import tqdm

from saematch.core.code import code_of, codes_of, has_address, settings_text
from saematch.core.errors import InputError
from saematch.core.files import hashed
from saematch.core.pairs import SaeKey
from saematch.sae.folding import FOLDS, fold_scale
from saematch.sae.params import SaeOrigin, SaeParams
from saematch.sae.sources.source import SaeSource
from saematch.sae.thresholds import threshold_summary

GIB = 2**30


@dataclass(frozen=True)
class SaeFacts:
    """What a run knows of an SAE without its weights."""

    origin: SaeOrigin
    d_model: int
    n_features: int
    n_bytes: int
    """Of its tensors."""
    thresholds: Mapping[str, str | float | None]
    """Their kind, mean and spread and the share of biases, as ``threshold_summary`` has them."""
    unfoldable: Mapping[str, str]
    """Fold -> why the SAE cannot be folded by it."""
    code: str = ""
    """Hash of the code of its source and of later changes; empty for an SAE given in memory."""

    @property
    def identity(self) -> str:
        """What tells the SAE's weights apart, for the keys of files computed from them."""
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
    """SAEs by key, each loaded when it is asked for; ``InputError`` as its source raises it.

    As many are held as fit into the memory, but at least two; the least recently used goes first.
    SAEs of one origin are held once. Go through pairs in order: each shares an SAE with the one
    before it. Let go of a pair's SAEs before taking the next one's, or memory holds both.
    """

    def __init__(self, facts: Mapping[SaeKey, SaeFacts], held: _Held) -> None:
        self.facts = facts
        self._held = held

    @classmethod
    def load(
        cls, keys: Sequence[SaeKey], suites: Mapping[str, SaeSource], memory: float
    ) -> SaeShelf:
        """Load each SAE once, to know its facts; ``memory`` is in GiB.

        Raises ``InputError`` if two suites have different SAEs of one origin: that would hide one.
        """
        facts: dict[SaeKey, SaeFacts] = {}
        once: dict[SaeOrigin, SaeFacts] = {}  # sets may share SAEs
        held = _Held(memory * GIB)
        codes = {name: _code(source) for name, source in suites.items()}
        for key in tqdm(keys, desc="load SAEs", unit="SAE", leave=False):
            held.make_room(max((known.n_bytes for known in once.values()), default=0))
            source = partial(suites[key.suite].load, key.layer)
            sae = source()
            if sae.origin not in once:
                once[sae.origin] = replace(SaeFacts.of(sae), code=codes[key.suite])
                held.add(sae, source)
            elif replace(SaeFacts.of(sae), code=once[sae.origin].code) != once[sae.origin]:
                raise InputError(
                    f"the SAE of {key.name} has the origin of another SAE ({sae.origin.where}), "
                    "but not its weights: let its source give it an origin of its own"
                )
            facts[key] = once[sae.origin]
        return cls(facts, held)

    def dressed(
        self, change: Callable[[SaeParams], SaeParams], keys: Container[SaeKey] | None = None
    ) -> SaeShelf:
        """Return the same SAEs, each changed as soon as it is loaded; this shelf is emptied.

        ``keys`` are the SAEs to change, None for all.
        """
        held = _Held(self._held.limit)
        self._held.clear()
        facts: dict[SaeKey, SaeFacts] = {}
        once: dict[tuple[SaeOrigin, bool], SaeFacts] = {}
        for key, known in self.facts.items():
            changes = keys is None or key in keys
            source = partial(self._changed, known.origin, change if changes else None)
            if (known.origin, changes) not in once:
                held.make_room(known.n_bytes)
                sae = source()
                code = hashed([known.code, code_of(change)]) if changes else known.code
                once[known.origin, changes] = replace(SaeFacts.of(sae), code=code)
                held.add(sae, source)
            facts[key] = once[known.origin, changes]
        return SaeShelf(facts, held)

    def _changed(
        self, origin: SaeOrigin, change: Callable[[SaeParams], SaeParams] | None
    ) -> SaeParams:
        sae = self._held.load(origin)
        return sae if change is None else change(sae)

    @classmethod
    def of(cls, saes: Saes) -> SaeShelf:
        """Return SAEs that are in memory anyway as a shelf, and a shelf as it is."""
        if isinstance(saes, SaeShelf):
            return saes
        held = _Held(math.inf)
        for sae in saes.values():
            held.add(sae, partial(_unchanged, sae))
        return cls({key: SaeFacts.of(sae) for key, sae in saes.items()}, held)

    def __getitem__(self, key: SaeKey) -> SaeParams:
        return self._held.get(self.facts[key])

    def __contains__(self, key: object) -> bool:
        return key in self.facts

    def __iter__(self) -> Iterator[SaeKey]:
        return iter(self.facts)

    def __len__(self) -> int:
        return len(self.facts)

    def only(self, keys: Iterable[SaeKey]) -> SaeShelf:
        """Return some of the SAEs; memory is shared with the others."""
        return SaeShelf({key: self.facts[key] for key in keys}, self._held)

    def parts(self, together: Iterable[Set[SaeKey]]) -> list[set[SaeKey]]:
        """Return groups of SAEs that fit into memory at a time.

        Each set of ``together`` lies in one of them. The next set joins the group before it if both
        fit; a set that does not fit by itself is a group all the same.
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
        return sum(size.values()) <= self._held.limit


Saes = SaeShelf | Mapping[SaeKey, SaeParams]
"""The SAEs of a run: on a shelf, or all in memory."""


def _unchanged(sae: SaeParams) -> SaeParams:
    return sae


class _Held:
    """SAEs by origin: those that are in memory, and how to load the others."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._sources: dict[SaeOrigin, Callable[[], SaeParams]] = {}
        self._saes: OrderedDict[SaeOrigin, SaeParams] = OrderedDict()

    def add(self, sae: SaeParams, source: Callable[[], SaeParams]) -> None:
        """Take in an SAE that was just loaded, and how to load it again."""
        self._sources.setdefault(sae.origin, source)
        self._saes.setdefault(sae.origin, sae)

    def make_room(self, n_bytes: int) -> None:
        """Let go of SAEs until another one fits, or one is left."""
        while len(self._saes) > 1 and sum(map(_size, self._saes.values())) + n_bytes > self.limit:
            self._saes.popitem(last=False)

    def clear(self) -> None:
        """Let go of all."""
        self._saes.clear()

    def get(self, known: SaeFacts) -> SaeParams:
        origin = known.origin
        if origin not in self._saes:
            self.make_room(known.n_bytes)
            self._saes[origin] = self.load(origin)
        self._saes.move_to_end(origin)
        return self._saes[origin]

    def load(self, origin: SaeOrigin) -> SaeParams:
        """Load an SAE, without holding it; ``InputError`` if it is another one by now."""
        sae = self._sources[origin]()
        if sae.origin != origin:
            raise InputError(f"the SAE {origin.where} was changed while it was in use; start again")
        return sae


def _code(source: SaeSource) -> str:
    """Return a hash of a source's code; for a source of another package, of its settings too.

    Such a source may change SAEs by its settings and leave their origin as it is.
    """
    code = code_of(source)
    if all(name.startswith("saematch.") for name in codes_of(source)):
        return code
    text = settings_text(source)
    return hashed([code, text, uuid.uuid4().hex if has_address(text) else ""])


def _size(sae: SaeParams) -> int:
    return sum(part.nbytes for part in vars(sae).values() if isinstance(part, Tensor))
