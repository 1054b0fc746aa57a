"""Counts of findings, by experiment and by who made the statements."""

import re

from saematch.report.claims import CLAIMS, Claim, Origin
from saematch.report.findings import Count, count, counts_of, sentence_on
from saematch.report.rules import Finding


def claims(*sources):
    return [Claim("mse", source, f"statement {n}", lambda _: None)
            for n, source in enumerate(sources)]  # fmt: skip


def findings(outcomes):
    """Return findings from outcomes by claim and family."""
    return {
        ("mse", claim, family): Finding(agrees, "")
        for claim, of_claim in outcomes.items()
        for family, agrees in of_claim.items()
    }


def test_a_statement_of_the_paper_names_its_figure():
    assert {claim.origin for claim in CLAIMS} == set(Origin)
    for claim in CLAIMS:
        is_figure = re.fullmatch(r"(as )?figures? [\d, ]+", claim.source) is not None
        assert is_figure == (claim.origin == Origin.PAPER)
        assert not claim.reports or is_figure


def test_undecided_findings_are_not_counted():
    outcomes = [True, False, None, True]
    assert count(Finding(agrees, "") for agrees in outcomes) == Count(2, 3)


def test_statements_are_counted_by_who_made_them():
    ours, paper = claims("control", "figure 3")
    decided = findings({ours: {"a": False, "b": True}, paper: {"a": True, "b": None}})
    assert list(counts_of(decided).items()) == [
        (Origin.PAPER, Count(1, 1)),
        (Origin.OURS, Count(1, 2)),
    ]


def test_the_sentence_joins_families_with_equal_counts():
    first, second, ours = claims("figure 3", "figure 3", "observed")
    decided = findings(
        {
            first: {"a": True, "b": True, "c": True, "d": None},
            second: {"a": False, "b": True, "c": False, "d": None},
            ours: {"a": None, "b": True},
        }
    )
    assert sentence_on("mse", decided) == (
        "1 of 2 statements of the paper agree on a and c, 2 of 2 on b; "
        "1 of 1 statements of our own agree on b."
    )
    assert sentence_on("parts", decided) == ""
