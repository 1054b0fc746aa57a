"""``saematch reproduce``: run every experiment of the paper and write the page that compares."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from saematch.cli import MISTAKES, build, one_line
from saematch.report.reproduction import Run, write_page

log = logging.getLogger(__name__)

EXPERIMENTS = (
    "norms",
    "mse",
    "feature_mse",
    "matching_score",
    "parts",
    "persistence",
    "skip_layers",
    "quantiles",
    "paths",
)
"""Done for every family of SAEs."""
DECODER_ONLY = ("folding", "matching=decoder")
"""With the decoder alone, since in the plain sum of all parts unfolded encoder biases may outweigh
everything else; with that sum ``skip_layers`` has the same four combinations."""
FAMILIES = {
    "zoo": {family: [f"sae={family}"] for family in ("chain", "independent", "mixed")},
    "gemma_2_2b": {"gemma_scope_2b": ["setting=gemma_2_2b", "sae=gemma_scope_2b"]},
}
"""For each model, its families of SAEs and their settings."""
ONCE = {
    "zoo": {
        "sparsity": "independent",
        "similar_l0": "independent",
        "llama": "independent",
        "planted": "planted",
    },
    "gemma_2_2b": {"sparsity": "gemma_scope_2b", "similar_l0": "gemma_scope_2b"},
}
"""Experiments that one family alone can do, or that bring their own SAEs."""


def main(arguments: Sequence[str]) -> None:
    """Run the command; exits with 1 if a run failed, after all others were done."""
    parser = argparse.ArgumentParser(
        prog="saematch reproduce",
        description="Run every experiment of the paper and write outputs/<run id>/index.html, "
        "every figure beside what the paper shows. What is finished already is not done again.",
    )
    parser.add_argument("--model", default="zoo", choices=sorted(FAMILIES))
    parser.add_argument("--only", metavar="A,B", help="these experiments alone")
    parser.add_argument("--families", metavar="A,B", help="these families of SAEs alone")
    parser.add_argument("--run-id", default="reproduction", help="name of the page's folder")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="write the page here instead")
    parser.add_argument("settings", nargs="*", help="settings of every run, as dataset.n_texts=20")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    plan = planned(options.model, options.run_id, options.settings)
    only, families = (
        None if chosen is None else chosen.split(",") for chosen in (options.only, options.families)
    )
    chosen = [
        (experiment, family, overrides)
        for experiment, family, overrides in plan
        if (only is None or experiment.partition(" ")[0] in only)
        and (families is None or family in families)
    ]
    if not chosen:
        names = sorted({experiment.partition(" ")[0] for experiment, _, _ in plan})
        sys.exit(f"saematch: nothing to do; --only takes {', '.join(names)}")
    runs = []
    for number, (experiment, family, overrides) in enumerate(chosen, 1):
        log.info("\n[%d/%d] %s on %s", number, len(chosen), experiment, family)
        runs.append(_one(experiment, family, overrides))
    page = options.page or Path("outputs") / options.run_id / "index.md"
    agreeing, decided = write_page(runs, options.model, page)
    log.info("\n%d of %d statements agree with their rules", agreeing, decided)
    log.info("written: %s\nwritten: %s", page, page.with_suffix(".html"))
    failed = [run for run in runs if run.error]
    if failed:
        sys.exit("\n".join(f"failed: {r.experiment} on {r.family}: {r.error}" for r in failed))


def planned(
    model: str, run_id: str, settings: Sequence[str] = ()
) -> list[tuple[str, str, list[str]]]:
    """Return every run as experiment, family and overrides."""
    plan = []
    for family, own in FAMILIES[model].items():
        for experiment in EXPERIMENTS:
            plan.append((experiment, family, [f"+experiment={experiment}", *own]))
        experiment, setting = DECODER_ONLY
        about = [f"+experiment={experiment}", *own, setting, f"name={experiment}_decoder"]
        plan.append((f"{experiment} decoder", family, about))
    for experiment, family in ONCE[model].items():
        own = FAMILIES[model].get(family, [])
        plan.append((experiment, family, [f"+experiment={experiment}", *own]))
    return [
        (experiment, family, [*overrides, f"run_id={run_id}-{family}", *settings])
        for experiment, family, overrides in plan
    ]


def _one(experiment: str, family: str, overrides: list[str]) -> Run:
    from saematch.run import finished_as, run

    command = f"saematch {' '.join(overrides)}"
    folder = Path()
    started = time.monotonic()
    try:
        parts, config = build(overrides)
        folder = Path("outputs") / config["name"] / config["run_id"]
        if finished_as(folder, config):
            log.info("finished before: %s", folder)
        else:
            run(parts, config, folder)
            log.info("%s: %.0f s", folder, time.monotonic() - started)
    except MISTAKES as error:
        log.error("failed: %s", one_line(error))
        return Run(experiment, family, command, folder, one_line(error))
    return Run(experiment, family, command, folder)
