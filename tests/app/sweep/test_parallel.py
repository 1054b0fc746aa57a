"""Sweeps with several jobs at a time."""

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import tiny_overrides
from saematch.core.results import Results

SWEEP = """\
method: grid
metric: {name: explained_variance/folded, goal: maximize}
parameters:
  objective: {values: [both, decoder]}
  arms.folded.fold: {values: [threshold, decoder_norm]}
command: ["${env}", "${interpreter}", "-m", "saematch", "+experiment=skip_layers",
          "arms=[folded,random]", "figures=[]", "${args_no_hyphens}"]
"""


@pytest.fixture
def begin(tiny, tmp_path, monkeypatch):
    """Start a sweep with a cache of its own in a process of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3] / "src"))
    Path("s.yaml").write_text(SWEEP)

    def start(folder, *arguments):
        command = [sys.executable, "-m", "saematch", "sweep", "s.yaml", "--folder", folder,
                   *arguments, *tiny_overrides(tiny),
                   f"cache={folder}/cache", "logger=none"]  # fmt: skip
        with Path(f"{folder}.log").open("w") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    return start


def statuses(folder):
    files = (Path(folder, str(n), "results.json") for n in range(4))
    return [Results.load(path).status if path.exists() else "" for path in files]


def table(folder):
    return Path(folder, "comparison/comparison.csv").read_text()


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(["hydra.launcher.n_jobs=2"], id="joblib", marks=pytest.mark.slow),
        pytest.param(["hydra.launcher.ray.init.num_cpus=2", "hydra.launcher.ray.remote.num_cpus=1"],
                     id="ray", marks=pytest.mark.ray),
    ],
)  # fmt: skip
def test_jobs_side_by_side_give_the_same_numbers_as_one_after_the_other(begin, launcher, request):
    name = request.node.callspec.id
    assert begin("basic").wait(300) == 0, Path("basic.log").read_text()
    beside = begin("beside", f"hydra/launcher={name}", *launcher)
    assert beside.wait(300) == 0, Path("beside.log").read_text()
    assert statuses("beside") == ["finished"] * 4
    assert table("beside") == table("basic")
