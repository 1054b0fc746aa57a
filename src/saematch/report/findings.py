"""Findings of all rules on the runs of a reproduction, counted by experiment and origin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from saematch.core.results import Results
from saematch.report.claims import CLAIMS, Claim, Origin
from saematch.report.rules import Finding

Findings = dict[tuple[str, Claim, str], Finding]
"""By experiment as it was run, claim and family."""


class Count(NamedTuple):
    """Numbers of pairs of a statement and a family of SAEs."""

    agreeing: int
    decided: int


def decide(results: Mapping[tuple[str, str], Results]) -> Findings:
    """Apply every rule to every run of its experiment."""
    return {
        (experiment, claim, family): claim.check(of_run.tables)
        for (experiment, family), of_run in results.items()
        for claim in CLAIMS
        if experiment.partition(" ")[0] == claim.experiment
    }


def count(findings: Iterable[Finding]) -> Count:
    """Return how many findings agree, and how many are decided."""
    decided = [finding.agrees for finding in findings if finding.agrees is not None]
    return Count(sum(decided), len(decided))


def counts_of(findings: Findings) -> dict[Origin, Count]:
    """Return the counts of findings by who made the statements, without those who made none."""
    return {
        origin: count(finding for key, finding in findings.items() if key[1].origin == origin)
        for origin in origins_of(claim for _, claim, _ in findings)
    }


def sentence_on(experiment: str, findings: Findings) -> str:
    """Return how many statements about an experiment agree, by origin and family, as a sentence.

    Empty if no statement was decided.
    """
    parts = []
    for origin in Origin:
        by_family: dict[str, list[Finding]] = {}
        for (name, claim, family), finding in findings.items():
            if name == experiment and claim.origin == origin:
                by_family.setdefault(family, []).append(finding)
        families: dict[Count, list[str]] = {}
        for family, of_family in by_family.items():
            families.setdefault(count(of_family), []).append(family)
        texts = [
            (f"{number.agreeing} of {number.decided}", f"on {_listed(names)}")
            for number, names in families.items()
            if number.decided
        ]
        if texts:
            (first, where), *others = texts
            part = [f"{first} statements of {origin} agree {where}", *map(" ".join, others)]
            parts.append(", ".join(part))
    return "; ".join(parts) + "." if parts else ""


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def origins_of(claims: Iterable[Claim]) -> list[Origin]:
    """Return who made the claims, the paper first."""
    made = {claim.origin for claim in claims}
    return [origin for origin in Origin if origin in made]
