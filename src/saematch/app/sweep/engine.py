"""Next points of a random or Bayesian sweep, from W&B's own engine, the package ``sweeps``."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from saematch.app.sweep.file import Point, SweepFile
from saematch.core.errors import InputError

INSTALL = "pip install 'saematch[bayes]' && pip install --no-deps sweeps==0.3.0"
"""Installs the engine without its dependencies, because its pin of NumPy below 2 is outdated."""


def next_point(sweep: SweepFile, tried: Sequence[tuple[Point, float | None]], seed: int) -> Point:
    """Return the point to try next.

    ``tried`` has the earlier points with their metrics, None for a failed job. The same seed and
    the same earlier points give the same point. Raises ``InputError`` if the engine is missing or
    refuses the sweep.
    """
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # the engine's models are written for old pydantic
            import sweeps.bayes_search  # noqa: F401 - a later import would draw from the seeded generator
            from jsonschema import ValidationError
            from sweeps import SweepRun, next_run
    except ImportError as error:
        raise InputError(
            f"method: {sweep.method} needs W&B's engine ({error}): {INSTALL}"
        ) from error
    config = {
        "method": sweep.method,
        "metric": sweep.metric._asdict(),
        "parameters": {name: dict(values) for name, values in sweep.parameters.items()},
    }
    runs = [
        SweepRun(
            name=str(number),
            state="failed" if reached is None else "finished",
            config={name: {"value": value} for name, value in point.items()},
            summary_metrics={} if reached is None else {sweep.metric.name: reached},
        )
        for number, (point, reached) in enumerate(tried)
    ]
    with _seeded(seed, len(runs)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="sklearn")  # about the fit to few points
        try:
            next_config = next_run(config, runs, validate=True).config
        except (ValueError, AssertionError, ValidationError) as error:
            reason = " ".join(str(error).partition("\n\n")[0].split())
            raise InputError(f"W&B's engine refuses the sweep {sweep.study}: {reason}") from error
    return {name: _plain(entry["value"]) for name, entry in next_config.items()}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


@contextmanager
def _seeded(*seed: int) -> Iterator[None]:
    """Seed the process's generators, which the engine draws from; restore them afterwards."""
    states = random.getstate(), np.random.get_state()
    random.seed(repr(seed))
    np.random.seed(np.random.SeedSequence(seed).generate_state(1))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
