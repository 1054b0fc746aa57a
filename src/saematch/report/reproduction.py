"""The page of a reproduction: every figure beside what the paper shows, and whether it agrees."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from saematch.core.files import replacing
from saematch.core.results import Results
from saematch.core.safe_text import in_markdown
from saematch.report.claims import CLAIMS, Claim
from saematch.report.rules import Verdict

MARKS = {True: "agrees", False: "**disagrees**", None: "–"}

ZOO_NOTE = """\
The embedded language model is small and was trained within an hour; what it shows of the method is
shown of the method on a small model, and a figure that disagrees with the paper's is reported as
such. Its SAEs come in three families. `chain`: each layer's SAE goes on training from the one
before, and a hidden permutation is the truth, so that recall can be measured; nearly every feature
has a true partner. `mixed`: likewise, but a quarter of the features starts afresh at each layer.
`independent`: each layer from its own seed, as released SAEs are; nobody knows the truth, and many
features have no good partner, which a bijection must pair all the same. Where the zoo cannot show
an effect, `planted` shows the mechanism on made-up SAEs whose right match is known. Statements
marked `observed` are not the paper's: an early trial on another small model saw them, and here they
are shown or refuted."""


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
        """What was found, None of a run that failed."""
        path = self.folder / "results.json"
        if self.error or not path.exists():
            return None
        results = Results.load(path)
        return results if results.status == "finished" else None


def write_page(runs: Sequence[Run], model: str, page: Path) -> tuple[int, int]:
    """Write the page as Markdown and HTML, with a copy of each figure in a folder beside it.

    Returns how many statements agree, of how many that were decided.
    """
    shutil.rmtree(_figures(page), ignore_errors=True)
    found = {(run.experiment, run.family): run for run in runs}
    loaded = {key: run.results for key, run in found.items()}
    verdicts = decide({key: results for key, results in loaded.items() if results is not None})
    families = list(dict.fromkeys(run.family for run in runs))
    lines = [f"# Reproduction on {model}", "", *_about(runs, loaded, model)]
    lines += ["", "## At a glance", "", *_overview(families, verdicts), "", *_failures(runs)]
    for experiment in dict.fromkeys(run.experiment for run in runs):
        of_experiment = [run for run in runs if run.experiment == experiment]
        lines += ["", *_section(experiment, of_experiment, loaded, verdicts, page)]
    text = "\n".join(lines) + "\n"
    for path, content in (
        (page, text),
        (page.with_suffix(".html"), _html(text, f"saematch: reproduction on {model}")),
    ):
        with replacing(path) as part:
            part.write_text(content, encoding="utf-8")
    decided = [v.agrees for v in verdicts.values() if v.agrees is not None]
    return sum(decided), len(decided)


Verdicts = dict[tuple[str, Claim, str], Verdict]
"""By experiment as it was run, claim and family."""


def decide(results: Mapping[tuple[str, str], Results]) -> Verdicts:
    """Apply every rule to every run of its experiment."""
    return {
        (experiment, claim, family): claim.check(of_run.tables)
        for (experiment, family), of_run in results.items()
        for claim in CLAIMS
        if experiment.partition(" ")[0] == claim.experiment
    }


def _about(
    runs: Sequence[Run], loaded: Mapping[tuple[str, str], Results | None], model: str
) -> list[str]:
    made = [results.provenance for results in loaded.values() if results is not None]
    commits = sorted({str(about["git_commit"])[:10] for about in made})
    seconds = sum(about["seconds"] for about in made)
    lines = [
        f"{len(runs)} runs, {len(made)} of them finished, {seconds / 60:.1f} minutes of work in "
        f"all. Code: {', '.join(commits)}."
    ]
    if len(commits) > 1:
        lines += ["", "**The runs were made with different versions of the code.**"]
    lines += [
        "",
        "Whether a figure agrees with the paper's is decided by the rule that stands beside it, on "
        "the run's numbers. Bands and bars are 95 % intervals from a jackknife over texts.",
    ]
    return [*lines, "", ZOO_NOTE] if model == "zoo" else lines


def _overview(families: Sequence[str], verdicts: Verdicts) -> list[str]:
    heads = ["experiment", "", "claim", *families]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for experiment, claim in dict.fromkeys(key[:2] for key in verdicts):
        marks = [_mark(verdicts.get((experiment, claim, family))) for family in families]
        name = f"[{experiment}](#{_anchor(experiment)})"
        lines.append(f"| {name} | {claim.source} | {claim.says} | {' | '.join(marks)} |")
    return lines


def _anchor(heading: str) -> str:
    return heading.replace(" ", "-")


def _mark(verdict: Verdict | None) -> str:
    return MARKS[None if verdict is None else verdict.agrees]


def _failures(runs: Sequence[Run]) -> list[str]:
    failed = [run for run in runs if run.error]
    if not failed:
        return []
    lines = [f"- {run.experiment} on {run.family}: {in_markdown(run.error)}" for run in failed]
    return ["**Runs that failed:**", "", *lines]


def _section(
    experiment: str,
    runs: Sequence[Run],
    loaded: Mapping[tuple[str, str], Results | None],
    verdicts: Verdicts,
    page: Path,
) -> list[str]:
    lines = [f"## {experiment}", ""]
    claims = dict.fromkeys(claim for name, claim, _ in verdicts if name == experiment)
    if claims:
        lines += ["| claim | rule | family | | seen |", "| --- | --- | --- | --- | --- |"]
    for claim in claims:
        for run in runs:
            verdict = verdicts.get((experiment, claim, run.family))
            if verdict is not None:
                head = f"| {claim.says} ({claim.source}) | {claim.rule} | {run.family} "
                lines.append(f"{head}| {_mark(verdict)} | {verdict.seen} |")
    for run in runs:
        results = loaded[run.experiment, run.family]
        lines += ["", f"**{run.family}**", "", f"`{run.command}`", ""]
        if results is None:
            lines += [f"failed: {in_markdown(run.error)}"]
            continue
        for figure in sorted((run.folder / "figures").glob("*.png")):
            name = f"{_anchor(experiment)}-{run.family}-{figure.name}"
            copy = _figures(page) / name
            _copy_small(figure, copy)
            where = copy.relative_to(page.parent).as_posix()
            lines += [f"![{experiment}, {run.family}: {figure.stem}]({where})", ""]
        counts = ", ".join(f"`{name}` {len(rows)}" for name, rows in results.tables.items())
        lines += [f"Rows of the tables in `{run.folder / 'results.json'}`: {counts}."]
    return lines


def _copy_small(figure: Path, copy: Path) -> None:
    """Copy a figure in 256 colours: a page has dozens, and lines need no more."""
    from PIL import Image

    with replacing(copy) as part, Image.open(figure) as image:
        image.convert("RGB").quantize(256).save(part, format="PNG", optimize=True)


def _figures(page: Path) -> Path:
    return page.with_name(f"{page.stem}_figures")


def _html(markdown: str, title: str) -> str:
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    for heading in {line[3:] for line in markdown.splitlines() if line.startswith("## ")}:
        body = body.replace(f"<h2>{heading}</h2>", f'<h2 id="{_anchor(heading)}">{heading}</h2>')
    body = body.replace("<strong>disagrees</strong>", '<strong class="no">disagrees</strong>')
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><body>{body}</body></html>\n"
    )


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2em auto;padding:0 1em;"
    "color:#222}table{border-collapse:collapse;font-size:14px}td,th{border-bottom:1px solid #ddd;"
    "padding:.3em .7em;text-align:left;vertical-align:top}img{max-width:100%}code{background:"
    "#f4f4f4;padding:.1em .3em}h2{margin-top:2.5em;border-top:2px solid #eee;padding-top:1em}"
    ".no{color:#b03000}a{color:#0072b2}"
)
