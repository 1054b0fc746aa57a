"""The next points of a random or Bayesian sweep, from W&B's own engine, the package ``sweeps``."""

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
"""Its own pin of NumPy below 2 is out of date, so it is installed without its dependencies."""


def next_point(sweep: SweepFile, tried: Sequence[tuple[Point, float | None]], seed: int) -> Point:
    """Return the point to try after those in ``tried``, each with the metric that it reached.

    A job that failed has no metric. The same seed and the same jobs before give the same point.
    Raises ``InputError`` if the engine is missing or refuses the sweep.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # its models are written for old pydantic
            import sweeps.bayes_search  # noqa: F401 - else its import draws from the seeded generator
            from jsonschema import ValidationError
            from sweeps import SweepRun, next_run
    except ImportError as error:
        raise InputError(
            f"method: {sweep.method} wants W&B's engine ({error}): {INSTALL}"
        ) from error
    config = {
        "method": sweep.method,
        "metric": sweep.metric._asdict(),
        "parameters": {name: dict(given) for name, given in sweep.parameters.items()},
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
        warnings.filterwarnings("ignore", module="sklearn")  # of its fit, on few points
        try:
            found = next_run(config, runs, validate=True)
        except (ValueError, AssertionError, ValidationError) as error:
            said = " ".join(str(error).partition("\n\n")[0].split())
            raise InputError(f"W&B's engine refuses the sweep {sweep.study}: {said}") from error
    return {name: _plain(told["value"]) for name, told in found.config.items()}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


@contextmanager
def _seeded(*seed: int) -> Iterator[None]:
    """Seed the generators of the whole process, which the engine draws from, for a while."""
    states = random.getstate(), np.random.get_state()
    random.seed(repr(seed))
    np.random.seed(np.random.SeedSequence(seed).generate_state(1))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
