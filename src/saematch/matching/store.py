"""Store of solved matches for all runs; a key is a hash of everything that determines a match."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial, reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

from saematch.core.code import code_of, has_address, settings_text
from saematch.core.cost import Cost, Meter
from saematch.core.files import hashed
from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey
from saematch.core.store import is_kept
from saematch.matching.arm import Arm
from saematch.matching.evidence import Evidence
from saematch.sae.suites import SaeFacts, SaeShelf


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
        shared = getattr(arm.matcher, "time_limit", None) is None and not has_address(
            settings_text(arm.objective) + settings_text(arm.matcher)
        )
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

    def cost(self, saes: SaeShelf, layers: Sequence[SaeKey], arm: Arm) -> Cost | None:
        """Return the cost of the matches of successive layers when they were solved.

        None if a file of the store does not state it. The recordings that objectives read are not
        in it, because all arms share them.
        """
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

    def summary(self) -> str:
        """Return the counts in one line."""
        n = sum(self.counts.values())
        return (
            f"{n} matches: {self.counts['solved']} solved, {self.counts['read']} found in "
            f"{self.folder}, {self.counts['reused']} used again"
        )


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
