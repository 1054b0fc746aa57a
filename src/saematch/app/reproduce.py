"""``saematch reproduce``: run every experiment of the paper and write the page that compares."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from saematch.app.configuration import build
from saematch.app.messages import MISTAKES, one_line
from saematch.core.errors import described
from saematch.core.files import check_path
from saematch.core.safe_text import visible
from saematch.report.reproduction import Run, write_page
from saematch.run.run_folders import LOG, LogFile, check_name, remove_unused, run_folder

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
DECODER_ONLY = ("folding", "objective=decoder")
"""With the decoder alone, since in the plain sum of all parts unfolded encoder biases may outweigh
everything else; with that sum ``skip_layers`` has the same four combinations."""
JUDGED = {
    "judge_layers": ("+experiment=judge_layers",),
    "mse_by_label": ("+experiment=mse_by_label",),
    "persistence_judged": ("+experiment=persistence", "name=persistence_judged"),
}
"""Done for every family of SAEs too, if there is a judge."""
FAMILIES = {
    "zoo": {family: [f"sae={family}"] for family in ("chain", "independent", "mixed")},
    "gemma_2_2b": {"gemma_scope_2b": ["setting=gemma_2_2b", "sae=gemma_scope_2b"]},
    "llama_3_1_8b": {"llama_scope": ["setting=llama_3_1_8b", "sae=llama_scope"]},
    "smollm2_135m": {"trained": ["setting=smollm2_135m", "sae=smollm2_135m"]},
}
"""For each model, its families of SAEs and their settings."""
ONCE = {
    "zoo": {
        "sparsity": "independent",
        "similar_l0": "uneven",
        "llama": "independent",
        "planted": "planted",
    },
    "gemma_2_2b": {"sparsity": "gemma_scope_2b", "similar_l0": "gemma_scope_2b"},
    "llama_3_1_8b": {"llama": "llama_scope"},
    "smollm2_135m": {},
}
"""Experiments that one family alone can do, or that bring their own SAEs."""


def main(arguments: Sequence[str]) -> None:
    """Run the command; exits with 1 if a run failed, after all others were done."""
    parser = argparse.ArgumentParser(
        prog="saematch reproduce",
        description="Run every experiment of the paper and write outputs/<run id>/index.html, "
        "every figure beside what the paper shows. What is finished already is not done again; the "
        "page shows all that is finished.",
    )
    parser.add_argument("--model", default="zoo", choices=sorted(FAMILIES))
    parser.add_argument("--only", metavar="A,B", help="these experiments alone")
    parser.add_argument("--families", metavar="A,B", help="these families of SAEs alone")
    parser.add_argument(
        "--judge", metavar="NAME,SETTING,...",
        help="also do what needs a judge, as --judge gpt_4o_mini, --judge "
        "local,judge.base_url=http://127.0.0.1:8000/v1, or without any LLM --judge overlap",
    )  # fmt: skip
    parser.add_argument("--run-id", metavar="NAME", help="name of the page's folder")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="write the page here instead")
    parser.add_argument("settings", nargs="*", help="settings of every run, as dataset.n_texts=20")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("saematch").setLevel(logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    default = "reproduction" if options.model == "zoo" else f"reproduction_{options.model}"
    run_id = check_name("--run-id", default if options.run_id is None else options.run_id)
    page = options.page or Path("outputs") / run_id / "index.md"
    check_path("--page", page)
    plan = planned(options.model, run_id, options.settings, options.judge)
    chosen = [one for one in plan if _is_chosen(one, options.only, options.families)]
    if not chosen:
        experiments = sorted({one.experiment for one in plan})
        families = sorted({one.family for one in plan})
        sys.exit(
            f"saematch: nothing to do; --only takes {', '.join(experiments)}, and --families "
            f"{', '.join(families)}"
        )
    runs = []
    for one in plan:
        if one in chosen:
            number = chosen.index(one) + 1
            log.info("\n[%d/%d] %s on %s", number, len(chosen), one.experiment, one.family)
        run = _done(one) or (_do(one) if one in chosen else None)
        runs += [run] if run else []
    agreeing, decided = write_page(runs, options.model, page)
    log.info("\n%d of %d statements agree with their rules", agreeing, decided)
    log.info("written: %s\nwritten: %s", page, page.with_suffix(".html"))
    failed = [run for run in runs if run.error]
    if failed:
        sys.exit("\n".join(f"failed: {r.experiment} on {r.family}: {r.error}" for r in failed))


class Planned(NamedTuple):
    """One run to be done."""

    experiment: str
    family: str
    overrides: tuple[str, ...]


def planned(
    model: str, run_id: str, settings: Sequence[str] = (), judge: str | None = None
) -> list[Planned]:
    """Return every run of a reproduction; with ``judge``, a choice and settings, those it needs."""
    plan = []
    for family, own in FAMILIES[model].items():
        for experiment in EXPERIMENTS:
            plan.append(Planned(experiment, family, (f"+experiment={experiment}", *own)))
        experiment, setting = DECODER_ONLY
        about = (f"+experiment={experiment}", *own, setting, f"name={experiment}_decoder")
        plan.append(Planned(f"{experiment} decoder", family, about))
        for name, about in JUDGED.items() if judge else ():
            plan.append(Planned(name, family, (*about, *own, *f"judge={judge}".split(","))))
    for experiment, family in ONCE[model].items():
        own = FAMILIES[model].get(family, [])
        plan.append(Planned(experiment, family, (f"+experiment={experiment}", *own)))
    return [
        one._replace(overrides=(*one.overrides, f"run_id={run_id}-{one.family}", *settings))
        for one in plan
    ]


def _is_chosen(one: Planned, only: str | None, families: str | None) -> bool:
    return (only is None or one.experiment in only.split(",")) and (
        families is None or one.family in families.split(",")
    )


def _done(one: Planned) -> Run | None:
    """Return the run if it is finished already, with the same settings."""
    from saematch.run.resuming import finished_as

    try:
        _, config = build(list(one.overrides))
        folder = run_folder(config["name"], config["run_id"])
        if not finished_as(folder, config):
            return None
    except Exception:  # noqa: BLE001 - a mistake or a bug: doing it says what is wrong
        return None
    log.info("finished before: %s", folder)
    return Run(one.experiment, one.family, _command(one), folder)


def _do(one: Planned) -> Run:
    from saematch.run.run import run

    folder = Path()
    started = time.monotonic()
    root = logging.getLogger()
    try:
        parts, config = build(list(one.overrides))
        folder = run_folder(config["name"], config["run_id"])
        handler = LogFile(folder / LOG)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(handler)
        try:
            run(parts, config, folder)
        finally:
            root.removeHandler(handler)
            handler.close()
            remove_unused(folder)
    except MISTAKES as error:
        log.error("failed: %s", one_line(error))
        return Run(one.experiment, one.family, _command(one), folder, one_line(error))
    except Exception as error:  # ours: the other runs go on all the same
        log.exception("failed unexpectedly")
        return Run(one.experiment, one.family, _command(one), folder, visible(described(error)))
    log.info("%s: %.0f s", folder, time.monotonic() - started)
    return Run(one.experiment, one.family, _command(one), folder)


def _command(one: Planned) -> str:
    return f"saematch {' '.join(one.overrides)}"
