"""Store of solved matches for all runs; a key is a hash of everything that determines a match."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial, reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

from saematch.core.claims import do_together, is_sharing
from saematch.core.code import code_of, has_address, settings_text
from saematch.core.cost import Cost, Meter
from saematch.core.files import hashed
from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey
from saematch.core.store import is_kept
from saematch.matching.arm import Arm
from saematch.matching.evidence import Evidence
from saematch.matching.objectives.factors import Factors
from saematch.matching.objectives.objective import Objective
from saematch.matching.synchronised import Synchronise, Synchronised
from saematch.sae.folding import fold
from saematch.sae.suites import SaeFacts, SaeShelf

Step = tuple[SaeKey, SaeKey, Arm]
"""A match of the store: source, target and arm."""


@dataclass
class MatchStore:
    """A folder with one file for each match, named by its key; several runs may use it at once."""

    folder: Path
    evidence: Evidence = field(default_factory=Evidence)
    """What objectives read besides weights."""
    counts: Counter[str] = field(default_factory=Counter)
    """Numbers of matches ``solved``, ``read`` (another run, or an earlier start of this run, solved
    them) and ``reused`` (requested again)."""
    _matches: dict[str, Match] = field(default_factory=dict)
    _synchronised: dict[str, Synchronised] = field(default_factory=dict)
    _costs: dict[str, Cost] = field(default_factory=dict)

    def match(self, saes: SaeShelf, source: SaeKey, target: SaeKey, arm: Arm) -> Match:
        """Return the arm's match of two layers, from the store or else by solving it.

        A match with a time limit depends on the machine's load, so it is not shared with other
        runs. Neither is the match of an objective or matcher without a text of its settings.
        """
        pair = Pair(source, target)
        facts = self._facts(saes, pair, arm)
        key = hashed(list(facts.values()))
        if key in self._matches:
            self.counts["reused"] += 1
            return self._matches[key]
        path = self.folder / f"{key}.safetensors"
        shared = _is_shared(arm)
        if shared and is_kept(path):
            match, stored = Match.load(path)
            cost: Any = stored.get("cost")
            self.counts["read"] += 1
        else:
            saes_of_pair = saes[source], saes[target]  # loaded before the time counts
            meter = Meter.start()
            match = arm.match(*saes_of_pair, self.evidence.similarity(saes, pair, arm))
            cost = asdict(meter.cost())
            self.counts["solved"] += 1
            if shared:
                match.save(path, {**facts, "cost": cost}, keep=True)
        self._matches[key] = match
        if cost is not None:
            self._costs[key] = Cost(**cost)
        return match

    def share(self, saes: SaeShelf, steps: Iterable[Step]) -> None:
        """Solve matches together with other processes, if this process shares its work."""
        if not is_sharing():
            return
        units = {}
        for source, target, arm in steps:
            if _is_shared(arm):
                facts = self._facts(saes, Pair(source, target), arm)
                path = self.folder / f"{hashed(list(facts.values()))}.safetensors"
                units[path] = partial(self.match, saes, source, target, arm)
        do_together(units)

    def cost(self, saes: SaeShelf, layers: Sequence[SaeKey], arm: Arm) -> Cost | None:
        """Return the cost of the matches of successive layers when they were solved.

        For a whole-model match it is the cost of all layers, without direct matches that were kept.
        None if a file of the store does not state it. The recordings that objectives read are not
        in it, because all arms share them.
        """
        if arm.synchronise is not None:
            keys = [hashed(list(suite_facts([saes.facts[key] for key in layers], arm).values()))]
        else:
            pairs = [Pair(source, target) for source, target in pairwise(layers)]
            keys = [hashed(list(self._facts(saes, pair, arm).values())) for pair in pairs]
        if not all(key in self._costs for key in keys):
            return None
        return reduce(Cost.then, (self._costs[key] for key in keys))

    def _facts(self, saes: SaeShelf, pair: Pair, arm: Arm) -> dict[str, object]:
        """Return everything that determines the arm's match of a pair."""
        source, target = (saes.facts[key] for key in pair)
        return key_facts(source, target, arm, self.evidence.identity(pair, arm))

    def chain(self, saes: SaeShelf, layers: Sequence[SaeKey], arm: Arm) -> Match:
        """Return the composition of the matches of successive layers."""
        steps = (self.match(saes, source, target, arm) for source, target in pairwise(layers))
        return reduce(partial(Match.compose, most=arm.composed_entries), steps)

    def synchronised(self, saes: SaeShelf, keys: Sequence[SaeKey], arm: Arm) -> Synchronised:
        """Return the whole-model match of a suite's layers, from the store or by solving it."""
        assert arm.synchronise is not None and isinstance(arm.objective, Objective)
        facts = suite_facts([saes.facts[key] for key in keys], arm)
        key = hashed(list(facts.values()))
        if key not in self._synchronised:
            path = self.folder / f"{key}.safetensors"
            match = Synchronised.load(path, tuple(keys)) if _is_shared(arm) else None
            if match is None:
                meter = Meter.start()
                match = self._synchronise(saes, keys, arm.synchronise, arm)
                match = replace(match, cost=meter.cost())
                if _is_shared(arm):
                    match.save(path, facts)
            self._synchronised[key] = match
            if match.cost is not None:
                self._costs[key] = match.cost
        return self._synchronised[key]

    def _synchronise(
        self, saes: SaeShelf, keys: Sequence[SaeKey], settings: Synchronise, arm: Arm
    ) -> Synchronised:
        direct = replace(arm, synchronise=None)

        def vectors(key: SaeKey) -> Factors:
            folded = fold(saes[key], arm.fold)
            assert isinstance(arm.objective, Objective)
            return arm.objective.factors(folded, folded)

        return Synchronised(
            tuple(keys),
            *settings(
                [partial(vectors, key) for key in keys],
                lambda source, target: self.match(saes, keys[source], keys[target], direct),
                arm.matcher,
            ),
        )

    def summary(self) -> str:
        """Return the counts in one line."""
        n = sum(self.counts.values())
        return (
            f"{n} matches: {self.counts['solved']} solved, {self.counts['read']} found in "
            f"{self.folder}, {self.counts['reused']} used again"
        )


def _is_shared(arm: Arm) -> bool:
    """Return whether runs may share the arm's matches; see ``MatchStore.match``."""
    settings = settings_text(arm.objective) + settings_text(arm.matcher)
    return getattr(arm.matcher, "time_limit", None) is None and not has_address(settings)


def match_key(source: SaeFacts, target: SaeFacts, arm: Arm, evidence: Sequence[str] = ()) -> str:
    """Return a hash of everything that determines a match."""
    return hashed(list(key_facts(source, target, arm, evidence).values()))


def key_facts(
    source: SaeFacts, target: SaeFacts, arm: Arm, evidence: Sequence[str] = ()
) -> dict[str, object]:
    """Return everything that determines a match.

    These are both SAEs, fold, objective, matcher, code, and the evidence that the objective reads
    besides weights (``Evidence.identity``).
    """
    facts: dict[str, object] = {
        "source": source.identity,
        "target": target.identity,
        "fold": arm.fold,
        "objective": settings_text(arm.objective),
        "matcher": settings_text(arm.matcher),
        "code": code_of(arm),
    }
    return {**facts, "evidence": list(evidence)} if evidence else facts


def suite_facts(saes: Sequence[SaeFacts], arm: Arm) -> dict[str, object]:
    """Return everything that determines the whole-model match of a suite's SAEs."""
    facts = key_facts(saes[0], saes[-1], arm)
    identities = [sae.identity for sae in saes]
    return {**facts, "saes": identities, "synchronise": settings_text(arm.synchronise)}
