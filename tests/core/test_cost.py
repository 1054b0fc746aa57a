"""Time and peak memory of a piece of work."""

import time
from pathlib import Path

import numpy as np
import pytest

from saematch.core import cost
from saematch.core.cost import Cost, Meter

linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")


@linux
def test_the_peak_counts_memory_that_is_freed_again_and_not_that_of_earlier_work():
    np.ones(2**24)  # 128 MiB, freed
    meter = Meter.start()
    np.ones(2**22)  # 32 MiB, freed
    memory = meter.cost().memory
    assert memory is not None
    assert 30 < memory < 64


@linux
def test_memory_that_was_freed_before_counts_when_it_is_used_again():
    arrays = [np.ones(2**15) for _ in range(200)]  # 50 MiB in small parts
    arrays.clear()
    meter = Meter.start()
    arrays += [np.ones(2**15) for _ in range(200)]
    memory = meter.cost().memory
    assert memory is not None
    assert 45 < memory < 80


@linux
def test_work_that_is_measured_within_other_work_counts_for_both():
    outer = Meter.start()
    np.ones(2**23)  # 64 MiB, freed
    inner = Meter.start()
    np.ones(2**21)
    costs = [meter.cost().memory for meter in (inner, outer)]
    assert 14 < costs[0] < 40
    assert 62 < costs[1] < 90


def test_seconds():
    meter = Meter.start()
    time.sleep(0.02)
    assert 0.02 <= meter.cost().seconds < 5


def test_a_system_without_a_peak_measures_time_alone(monkeypatch):
    monkeypatch.setattr(cost, "restart_peak", lambda: None)
    assert Meter.start().cost().memory is None


def test_work_in_steps_has_the_sum_of_times_and_the_larger_peak():
    assert Cost(1.0, 5.0).then(Cost(2.0, 3.0)) == Cost(3.0, 5.0)
    assert Cost(1.0, 5.0).then(Cost(2.0, None)) == Cost(3.0, None)
