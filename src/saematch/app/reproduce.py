"""``saematch reproduce``: run every experiment of the paper and compare the figures on a page."""

from __future__ import annotations

import argparse
import logging
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from saematch.app.configuration import add_config_dir, build, config_dir_of
from saematch.app.messages import MISTAKES, one_line
from saematch.core.errors import InputError, described
from saematch.core.files import PRESETS, check_path
from saematch.core.safe_text import visible
from saematch.report.reproduction import Run, write_page
from saematch.runs.run_folders import LOG, LogFile, check_name, remove_unused, run_folder

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
"""Experiments that run on every family of SAEs."""
DECODER_ONLY = ("folding", "objective=decoder")
"""An experiment that runs on every family too, and its setting. It matches by the decoder alone,
because unfolded encoder biases may outweigh everything else in the plain sum of all parts.
``skip_layers`` has the same four combinations with that sum."""
JUDGED = {
    "judge_layers": ("+experiment=judge_layers",),
    "mse_by_label": ("+experiment=mse_by_label",),
    "persistence_judged": (
        "+experiment=persistence",
        "name=persistence_judged",
        "evaluations=[skipping,explain]",
    ),
}
"""Runs on every family that need a judge."""
FAMILIES = {
    "zoo": {family: [f"sae={family}"] for family in ("chain", "independent", "mixed")},
    "gemma_2_2b": {"gemma_scope_2b": ["setting=gemma_2_2b", "sae=gemma_scope_2b"]},
    "llama_3_1_8b": {"llama_scope": ["setting=llama_3_1_8b", "sae=llama_scope"]},
    "smollm2_135m": {"trained": ["setting=smollm2_135m", "sae=smollm2_135m"]},
}
"""By model and family of SAEs: the settings that choose the SAEs."""
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
"""By model and experiment: the family of an experiment that runs on one family only. A family that
``FAMILIES`` lacks comes from the experiment's preset."""
OPTIONS = {"run_id": "--run-id", "name": "--run-id", "experiment": "--only"}
"""By setting that the command chooses for each run: the option to use instead."""


def main(arguments: Sequence[str]) -> None:
    """Run the command. After all runs, exit with 1 if one of them failed."""
    options = _parser().parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("saematch").setLevel(logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    default = "reproduction" if options.model == "zoo" else f"reproduction_{options.model}"
    run_id = check_name("--run-id", default if options.run_id is None else options.run_id)
    page = options.page or Path("outputs") / run_id / "index.md"
    check_path("--page", page)
    config_dir = config_dir_of(options.config_dir)
    _check_settings(options.settings)
    plan = planned(options.model, run_id, options.settings, options.judge, config_dir)
    runs = _finished_runs(plan, chosen_runs(plan, options.only, options.families))
    failed = [run for run in runs if run.error]
    if len(failed) < len(runs):
        for origin, count in write_page(runs, options.model, page).items():
            log.info("statements of %s: %d of %d agree", origin, count.agreeing, count.decided)
        log.info("written: %s\nwritten: %s", page, page.with_suffix(".html"))
    if failed:
        sys.exit("\n".join(f"failed: {r.experiment} on {r.family}: {r.error}" for r in failed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="saematch reproduce",
        description="Run every experiment of the paper and write outputs/<run id>/index.html, a "
        "page that compares each figure with the paper's. Finished runs are not repeated; the "
        "page shows all finished runs.",
        epilog="With --config-dir DIR, the experiments in DIR/experiment are run too, on every "
        "family of SAEs. Run only one of them with --only NAME.",
    )
    parser.add_argument(
        "--model", default="zoo", choices=sorted(FAMILIES), help="language model (default: zoo)"
    )
    parser.add_argument(
        "--only", metavar="A,B", help="run only these experiments (default: all of the paper)"
    )
    parser.add_argument(
        "--families", metavar="A,B", help="run only on these families of SAEs (default: all)"
    )
    parser.add_argument(
        "--judge", metavar="NAME,SETTING,...",
        help="also run the experiments that need a judge: gpt_4o_mini, overlap (no LLM), or "
        "local,judge.base_url=http://127.0.0.1:8000/v1",
    )  # fmt: skip
    parser.add_argument(
        "--run-id", metavar="NAME",
        help="name of this reproduction: the folder of its page, and the start of its runs' ids",
    )  # fmt: skip
    parser.add_argument(
        "--page", type=Path, metavar="FILE.md", help="write the page to this file instead"
    )
    add_config_dir(parser)
    parser.add_argument(
        "settings", nargs="*", help="settings of every run, such as dataset.n_texts=20"
    )
    return parser


class Planned(NamedTuple):
    """A planned run."""

    experiment: str
    family: str
    overrides: tuple[str, ...]
    config_dir: Path | None
    """Folder of the user's presets; None without one."""

    @property
    def command(self) -> str:
        """The command line of this run alone."""
        presets = [] if self.config_dir is None else ["--config-dir", str(self.config_dir)]
        return " ".join(["saematch", *presets, *self.overrides])

    @property
    def experiment_names(self) -> set[str]:
        """Names by which ``--only`` chooses the run: ``folding`` also means ``folding decoder``."""
        return {self.experiment, self.experiment.partition(" ")[0]}


def planned(
    model: str,
    run_id: str,
    settings: Sequence[str] = (),
    judge: str | None = None,
    config_dir: Path | None = None,
) -> list[Planned]:
    """Return every run of a reproduction.

    ``settings`` are those of every run. ``judge`` is a judge's preset with its settings, joined by
    commas; without it, the runs that need a judge are left out. The experiments in ``config_dir``
    run on every family.
    """
    plan = []
    for family, saes in FAMILIES[model].items():
        for experiment in (*EXPERIMENTS, *_user_experiments(config_dir)):
            plan.append((experiment, family, (f"+experiment={experiment}", *saes)))
        experiment, setting = DECODER_ONLY
        overrides = (f"+experiment={experiment}", *saes, setting, f"name={experiment}_decoder")
        plan.append((f"{experiment} decoder", family, overrides))
        for name, judged in JUDGED.items() if judge else ():
            plan.append((name, family, (*judged, *saes, *f"judge={judge}".split(","))))
    for experiment, family in ONCE[model].items():
        saes = FAMILIES[model].get(family, [])
        plan.append((experiment, family, (f"+experiment={experiment}", *saes)))
    return [
        Planned(name, family, (*choices, f"run_id={run_id}-{family}", *settings), config_dir)
        for name, family, choices in plan
    ]


def _user_experiments(config_dir: Path | None) -> list[str]:
    """Return the names of the experiments in a folder of the user's presets."""
    files = [] if config_dir is None else sorted((config_dir / "experiment").glob("*.yaml"))
    return [file.stem for file in files if not (PRESETS / "experiment" / file.name).exists()]


def _check_settings(settings: Sequence[str]) -> None:
    """Refuse words that are no settings, and settings that differ from run to run."""
    for setting in settings:
        key, equals, _ = setting.lstrip("+~").partition("=")
        if not equals and not setting.startswith("~"):
            raise InputError(
                f"{setting!r} is not a setting: write NAME=VALUE, or --only NAME,NAME to choose "
                "experiments"
            )
        if key in OPTIONS:
            raise InputError(
                f"{setting}: this setting differs from run to run; use {OPTIONS[key]} instead"
            )


def chosen_runs(plan: Sequence[Planned], only: str | None, families: str | None) -> list[Planned]:
    """Return the runs that both options choose; ``InputError`` for a name that no run has."""
    experiments = None if only is None else only.split(",")
    chosen_families = None if families is None else families.split(",")
    for experiment in experiments or ():
        if not any(experiment in run.experiment_names for run in plan):
            raise InputError(f"--only {experiment}: {_absence(experiment, plan)}")
    existing = {run.family: None for run in plan}
    for family in chosen_families or ():
        if family not in existing:
            raise InputError(f"--families {family}: choose among {', '.join(existing)}")
    chosen = [
        run
        for run in plan
        if (experiments is None or not run.experiment_names.isdisjoint(experiments))
        and (chosen_families is None or run.family in chosen_families)
    ]
    if not chosen:
        raise InputError(f"nothing to run: --only {only} has no run on --families {families}")
    return chosen


def _absence(experiment: str, plan: Sequence[Planned]) -> str:
    """Return why the reproduction does not have an experiment, and what to do."""
    if experiment in JUDGED:
        return "needs a judge: add --judge overlap, or another judge"
    if (PRESETS / "experiment" / f"{experiment}.yaml").exists():
        return f"not in this reproduction; run it alone with saematch +experiment={experiment}"
    names = sorted({run.experiment.partition(" ")[0] for run in plan})
    return f"there is no such experiment; choose among {', '.join(names)}"


def _finished_runs(plan: Sequence[Planned], chosen: Sequence[Planned]) -> list[Run]:
    """Return the finished runs of the plan, after doing the chosen ones that are not finished."""
    runs = []
    for run in plan:
        if run in chosen:
            number = chosen.index(run) + 1
            log.info("\n[%d/%d] %s on %s", number, len(chosen), run.experiment, run.family)
        result = _finished_run(run) or (_do_run(run) if run in chosen else None)
        runs += [result] if result else []
    return runs


def has_folder(run: Planned) -> bool:
    """Return whether the run's folder may exist, without composing the run's configuration."""
    parts = [setting.lstrip("+").partition("=") for setting in run.overrides]
    values = {key: value for key, _, value in parts}
    preset = Path("experiment") / f"{values['experiment']}.yaml"
    folders = [folder for folder in (PRESETS, run.config_dir) if folder is not None]
    texts = [(f / preset).read_text("utf-8") for f in folders if (f / preset).is_file()]
    preset_name = re.search(r"^name: ([\w-]+)$", texts[0], re.MULTILINE) if texts else None
    if "name" in values:
        name = values["name"]
    elif preset_name is not None:
        name = preset_name[1]
    else:
        return True
    return run_folder(name, values["run_id"]).exists()


def _finished_run(run: Planned) -> Run | None:
    """Return the run if it is already finished with the same settings, else None."""
    from saematch.runs.resuming import finished_as

    if not has_folder(run):
        return None
    try:
        _, config = build(list(run.overrides), run.config_dir)
        folder = run_folder(config["name"], config["run_id"])
        if not finished_as(folder, config):
            return None
    except Exception:  # noqa: BLE001 - a mistake or a bug, which ``_do_run`` reports it
        return None
    log.info("already finished: %s", folder)
    return Run(run.experiment, run.family, run.command, folder)


def _do_run(planned_run: Planned) -> Run:
    from saematch.runs.run import run

    folder, error = Path(), ""
    started = time.monotonic()
    root = logging.getLogger()
    try:
        parts, config = build(list(planned_run.overrides), planned_run.config_dir)
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
        log.info("%s: %.0f s", folder, time.monotonic() - started)
    except MISTAKES as mistake:
        error = one_line(mistake)
        log.error("failed: %s", error)
    except Exception as bug:  # a bug of saematch; the other runs continue
        error = visible(described(bug))
        log.exception("failed unexpectedly")
    return Run(planned_run.experiment, planned_run.family, planned_run.command, folder, error)
