"""Matches that were solved before, in this run or another, found again by what determines them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from itertools import pairwise
from pathlib import Path

from saematch.core.code import code_of, has_address, settings_text
from saematch.core.files import hashed
from saematch.core.match import Match
from saematch.core.pairs import SaeKey
from saematch.core.store import is_kept
from saematch.matching.arm import Arm
from saematch.sae.suites import SaeFacts, SaeShelf


@dataclass
class MatchStore:
    """A folder with one file a match, named by its hash; runs may share it at the same time."""

    folder: Path
    counts: Counter[str] = field(default_factory=Counter)
    """``solved``, ``read`` (another run, or an earlier start of this one, had solved it) and
    ``reused`` (asked for a second time)."""
    _known: dict[str, Match] = field(default_factory=dict)

    def match(self, saes: SaeShelf, source: SaeKey, target: SaeKey, arm: Arm) -> Match:
        """Return the arm's match of two layers; load and solve it if nobody has.

        A match under a limit of time depends on the machine's load, so other runs don't get it. The
        same holds for an objective or matcher whose settings have no text.
        """
        facts = saes.facts[source], saes.facts[target]
        key = match_key(*facts, arm)
        if key in self._known:
            self.counts["reused"] += 1
            return self._known[key]
        path = self.folder / f"{key}.safetensors"
        shared = getattr(arm.matcher, "time_limit", None) is None and not has_address(
            settings_text(arm.objective) + settings_text(arm.matcher)
        )
        if shared and is_kept(path):
            match = Match.load(path)[0]
            self.counts["read"] += 1
        else:
            match = arm.match(saes[source], saes[target])
            self.counts["solved"] += 1
            if shared:
                match.save(path, about(*facts, arm), keep=True)
        self._known[key] = match
        return match

    def chain(self, saes: SaeShelf, layers: Sequence[SaeKey], arm: Arm) -> Match:
        """Return the composition of the matches from layer to layer."""
        steps = (self.match(saes, source, target, arm) for source, target in pairwise(layers))
        return reduce(partial(Match.compose, most=arm.composed_entries), steps)

    def said(self) -> str:
        """Return the counts in one line."""
        n = sum(self.counts.values())
        return (
            f"{n} matches: {self.counts['solved']} solved, {self.counts['read']} found in "
            f"{self.folder}, {self.counts['reused']} used again"
        )


def match_key(source: SaeFacts, target: SaeFacts, arm: Arm) -> str:
    """Return a hash of everything that determines a match."""
    return hashed(list(about(source, target, arm).values()))


def about(source: SaeFacts, target: SaeFacts, arm: Arm) -> dict[str, object]:
    """Return what determines a match: both SAEs, fold, objective, matcher and code."""
    return {
        "source": source.identity,
        "target": target.identity,
        "fold": arm.fold,
        "objective": settings_text(arm.objective),
        "matcher": settings_text(arm.matcher),
        "code": code_of(arm),
    }
