"""The page of a reproduction: figures, statements about them, and whether the runs agree."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from saematch.core.files import replacing
from saematch.core.results import Results
from saematch.report.captions import CAPTIONS
from saematch.report.claims import Claim, Origin
from saematch.report.findings import (
    Count,
    Findings,
    count,
    counts_of,
    decide,
    origins_of,
    sentence_on,
)
from saematch.report.pages import write_template
from saematch.report.rules import Finding

MARKS = {True: "agrees", False: "disagrees", None: "–"}

COUNT_NOTE = """\
Each statement about an experiment has a rule, which decides from the numbers of one run whether the
run agrees. Statements are decided separately for each family of SAEs, and a statement is left out
where a run lacks the numbers. So "{agreeing} of {decided} agree" means that {agreeing} of the
{decided} verdicts, each on a statement and a family, are "agrees". A verdict "disagrees" shows that
these SAEs differ from the statement, not that a run failed."""
FIGURES_NOTE = """\
Bands and bars are 95 % intervals from a jackknife over texts. The paper's own numbers are for
Gemma 2 2B and approximate, since they were read off its figures."""
ZOO_NOTE = """\
The embedded language model is small and was trained within an hour. The results hold for a small
model only, and a figure that disagrees with the paper's is reported as such. The SAEs come in three
families. `chain`: training of each layer's SAE starts from the SAE of the previous layer. A hidden
permutation is the ground truth, so recall can be measured, and nearly every feature has a true
partner. `mixed`: like `chain`, but a quarter of the features starts afresh at each layer.
`independent`: each layer has its own seed, as released SAEs do. There is no ground truth, and many
features have no good partner, although a bijection must pair them. Where the embedded models cannot
show an effect, `planted` shows the mechanism on made-up SAEs whose correct match is known."""
OURS_NOTE = """\
`control` compares a match with chance. `mechanism` is shown on planted SAEs. `observed`: an early
trial on another small model suggested the statement, and these runs confirm or refute it."""


@dataclass(frozen=True)
class Run:
    """One experiment on one family of SAEs."""

    experiment: str
    family: str
    command: str
    folder: Path
    error: str = ""

    @property
    def results(self) -> Results | None:
        """The results, None if the run failed or is unfinished."""
        path = self.folder / "results.json"
        if self.error or not path.exists():
            return None
        results = Results.load(path)
        return results if results.status == "finished" else None


class Summary(NamedTuple):
    """How many statements about an experiment agree."""

    experiment: str
    anchor: str
    sentence: str


class OverviewRow(NamedTuple):
    """A claim in the overview."""

    experiment: str
    anchor: str
    source: str
    says: str
    findings: list[str]
    """One of ``MARKS`` for each family."""


class Check(NamedTuple):
    """A claim and the finding of its rule on one run."""

    claim: Claim
    family: str
    finding: str
    seen: str


class Figure(NamedTuple):
    """A figure of a run."""

    label: str
    path: str
    """Path relative to the page."""
    caption: str


class ShownRun(NamedTuple):
    """A run as the page shows it."""

    family: str
    command: str
    error: str
    figures: list[Figure]
    file: str
    """The ``results.json``."""
    n_rows: dict[str, int]
    """By table: its number of rows."""


class Section(NamedTuple):
    """An experiment on the page."""

    experiment: str
    anchor: str
    summary: str
    checks: dict[Origin, list[Check]]
    """Who made the statements, and only those who made some."""
    runs: list[ShownRun]


Loaded = dict[tuple[str, str], Results | None]
"""By experiment and family: the results, None of a run without any."""


def write_page(runs: Sequence[Run], model: str, page: Path) -> dict[Origin, Count]:
    """Write the page as Markdown and HTML, with copies of the figures in a folder next to it.

    Returns the counts of decided statements, by who made them.
    """
    shutil.rmtree(_figures(page), ignore_errors=True)
    loaded = {(run.experiment, run.family): run.results for run in runs}
    findings = decide({key: results for key, results in loaded.items() if results is not None})
    families = list(dict.fromkeys(run.family for run in runs))
    experiments = dict.fromkeys(run.experiment for run in runs)
    values = {
        "title": f"reproduction on {model}",
        "model": model,
        "introduction": _introduction(loaded, findings, model),
        "ours_note": OURS_NOTE,
        "families": families,
        "counts": (counts := counts_of(findings)),
        "summaries": [
            Summary(experiment, _anchor(experiment), sentence)
            for experiment in experiments
            if (sentence := sentence_on(experiment, findings))
        ],
        "overview": {
            origin: _overview(families, findings, origin)
            for origin in origins_of(claim for _, claim, _ in findings)
        },
        "failures": [run for run in runs if run.error],
        "sections": [
            Section(
                experiment,
                _anchor(experiment),
                sentence_on(experiment, findings),
                _checks(experiment, families, findings),
                [_shown(run, loaded, page) for run in runs if run.experiment == experiment],
            )
            for experiment in experiments
        ],
    }
    write_template(page, "reproduction.md", **values)
    write_template(page.with_suffix(".html"), "reproduction.html", **values)
    return counts


def _introduction(loaded: Loaded, findings: Findings, model: str) -> list[str]:
    """Return the paragraphs above the overview."""
    finished = [results.provenance for results in loaded.values() if results is not None]
    commits = sorted({str(provenance["git_commit"])[:10] for provenance in finished})
    seconds = sum(provenance["seconds"] for provenance in finished)
    paragraphs = [
        f"{len(finished)} of {len(loaded)} runs finished, with {seconds / 60:.1f} minutes of "
        f"computation in total. Code: {', '.join(commits)}."
    ]
    if len(commits) > 1:
        paragraphs.append("Different versions of the code made these runs.")
    note = COUNT_NOTE.format_map(count(findings.values())._asdict())
    return [note, *paragraphs, FIGURES_NOTE, *([ZOO_NOTE] if model == "zoo" else [])]


def _overview(families: Sequence[str], findings: Findings, origin: Origin) -> list[OverviewRow]:
    return [
        OverviewRow(
            experiment,
            _anchor(experiment),
            claim.source,
            claim.says,
            [_mark(findings.get((experiment, claim, family))) for family in families],
        )
        for experiment, claim in dict.fromkeys(key[:2] for key in findings)
        if claim.origin == origin
    ]


def _checks(
    experiment: str, families: Sequence[str], findings: Findings
) -> dict[Origin, list[Check]]:
    claims = dict.fromkeys(claim for name, claim, _ in findings if name == experiment)
    return {
        origin: [
            Check(claim, family, _mark(finding), finding.seen)
            for claim in claims
            for family in families
            if claim.origin == origin
            and (finding := findings.get((experiment, claim, family))) is not None
        ]
        for origin in origins_of(claims)
    }


def _anchor(heading: str) -> str:
    return heading.replace(" ", "-")


def _mark(finding: Finding | None) -> str:
    return MARKS[None if finding is None else finding.agrees]


def _shown(run: Run, loaded: Loaded, page: Path) -> ShownRun:
    """Return what the page shows of a run, after copying the run's figures."""
    results = loaded[run.experiment, run.family]
    file = str(run.folder / "results.json")
    if results is None:
        return ShownRun(run.family, run.command, run.error or "no results", [], file, {})
    figures = []
    for figure in sorted((run.folder / "figures").glob("*.png")):
        copy = _figures(page) / f"{_anchor(run.experiment)}-{run.family}-{figure.name}"
        _copy_small(figure, copy)
        path = copy.relative_to(page.parent).as_posix()
        label = f"{run.experiment}, {run.family}: {figure.stem}"
        figures.append(Figure(label, path, CAPTIONS.get(figure.stem, "")))
    n_rows = {name: len(rows) for name, rows in results.tables.items()}
    return ShownRun(run.family, run.command, "", figures, file, n_rows)


def _copy_small(figure: Path, copy: Path) -> None:
    """Copy a figure in 256 colours, which are enough for lines: a page has dozens of figures."""
    from PIL import Image

    with replacing(copy) as part, Image.open(figure) as image:
        image.convert("RGB").quantize(256).save(part, format="PNG", optimize=True)


def _figures(page: Path) -> Path:
    return page.with_name(f"{page.stem}_figures")
