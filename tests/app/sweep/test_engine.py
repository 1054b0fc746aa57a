"""Points of random and Bayesian sweeps, from W&B's own engine."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml

from saematch.app.sweep.engine import next_point
from saematch.app.sweep.file import Metric, SweepFile, read_sweep

METRIC = Metric("score", "maximize")
WEIGHT = {"x": {"distribution": "uniform", "min": -1.0, "max": 1.0}, "y": {"values": ["a", "b"]}}


def sweep(method, parameters=WEIGHT):
    return SweepFile("s", method, METRIC, parameters, (), None, None)


def test_a_grid_is_in_the_engines_order():
    with warnings.catch_warnings(action="ignore"):
        from sweeps import SweepRun, next_run

    for path in (Path(__file__).parents[3] / "sweeps").glob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        if content["method"] != "grid":
            continue
        runs = []
        while (run := next_run(content, runs)) is not None:
            runs.append(SweepRun(config=run.config, state="finished"))
        theirs = [{k: v["value"] for k, v in run.config.items()} for run in runs]
        assert read_sweep(path).grid() == theirs, path


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_the_same_seed_gives_the_same_points_and_leaves_the_generators_alone(method):
    state = np.random.get_state()[1].tolist()
    tried = [({"x": 0.5, "y": "a"}, 1.0), ({"x": -0.5, "y": "b"}, None)]
    first, again, other = (next_point(sweep(method), tried, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert -1 <= first["x"] <= 1
    assert type(first["x"]) is float
    assert first["y"] in ("a", "b")
    assert next_point(sweep(method), tried[:1], 0) != first
    assert np.random.get_state()[1].tolist() == state


def test_the_bayesian_search_goes_where_the_metric_is_best():
    parameters = {"x": WEIGHT["x"]}
    tried = []
    for _ in range(12):
        point = next_point(sweep("bayes", parameters), tried, 0)
        tried.append((point, -((point["x"] - 0.6) ** 2)))
    best = max(tried, key=lambda trial: trial[1])
    assert abs(best[0]["x"] - 0.6) < 0.1
    later = [abs(point["x"] - 0.6) for point, _ in tried[6:]]
    assert np.median(later) < 0.3, "random points would lie about 0.6 away"


def test_without_the_engine_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sweeps", None)
    with pytest.raises(ValueError, match="pip install --no-deps sweeps"):
        next_point(sweep("random"), [], 0)


def test_a_distribution_that_there_is_not():
    with pytest.raises(ValueError, match="engine refuses the sweep s"):
        next_point(sweep("random", {"x": {"distribution": "zipf", "a": 1}}), [], 0)
