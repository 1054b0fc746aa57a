"""Messages at the beginning of a run: device, SAEs, sizes, and what takes the time."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from saematch.core.pairs import layers_text
from saematch.core.progress import counted
from saematch.lm.source import AUTO, dtype_on
from saematch.runs.checks import Chosen
from saematch.runs.context import Context
from saematch.runs.experiment import Experiment
from saematch.texts.trainer import TrainerSpec

log = logging.getLogger(__name__)


def log_device(experiment: Experiment) -> None:
    """Log the device and why it is used, and the language model if the run reads texts."""
    trainer, model = experiment.trainer, experiment.model
    line = f"device: {device_text(trainer)}"
    if experiment.reads_texts or experiment.trains:
        dtype = dtype_on(trainer.device_type) if model.dtype == AUTO else model.dtype
        line += f"; language model {model.name} in {dtype}"
        line += "" if trainer.precision == "32-true" else f", precision {trainer.precision}"
    log.info("%s", line)


def device_text(trainer: TrainerSpec) -> str:
    """Return the device of the language model, and why it is used."""
    if trainer.accelerator != "auto":
        return f"{trainer.accelerator} (trainer.accelerator={trainer.accelerator})"
    if trainer.device_type == "cpu":
        return "CPU (no CUDA device)"
    several = "" if trainer.devices == 1 else f", trainer.devices={trainer.devices}"
    return f"GPU ({torch.cuda.get_device_name()}{several})"


def log_choice(chosen: Chosen, arms: Sequence[str]) -> None:
    """Log the numbers of SAEs, pairs and arms, before the SAEs are loaded."""
    layers: dict[str, list[int]] = {}
    for key in chosen.keys:
        layers.setdefault(chosen.suites[key.suite].name, []).append(key.layer)
    of_suites = "; ".join(f"{name}, {layers_text(of_suite)}" for name, of_suite in layers.items())
    log.info("SAEs: %d (%s); %s in %s (%s)", len(chosen.keys), of_suites,
             counted(len(chosen.pairs), "pair"), counted(len(arms), "arm"),
             ", ".join(arms))  # fmt: skip


def log_work(context: Context) -> None:
    """Log the sizes of the SAEs, and the work whose time the run will measure."""
    experiment, facts = context.experiment, context.saes.facts.values()
    widths, sizes = ({getattr(sae, name) for sae in facts} for name in ("n_features", "d_model"))
    n_matches = len(context.chosen.pairs) * len(experiment.arms)
    work = [counted(n_matches, "match")]
    n_batches = sum(
        len(of_set)
        for reader in context.readers.values()
        for of_set in (*reader.tokens.values(), *reader.calibration.values())
    )
    if n_batches:
        work.append(f"{counted(n_batches, 'batch')} of texts")
    work += [f"questions to {judge.model}" for judge in context.judges if judge and judge.writes]
    log.info("SAE sizes: %s features, d_model %s", _listed(widths), _listed(sizes))
    log.info("time: %s; the time left is estimated after the first units of each stage",
             ", then ".join(work))  # fmt: skip


def _listed(sizes: set[int]) -> str:
    return ", ".join(f"{size:,}" for size in sorted(sizes))
