"""A sweep gives the same tables with every launcher."""

import os
import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec

import pytest

from commands import command, tables
from conftest import tiny_overrides
from saematch.app.messages import one_line
from saematch.core.results import Results

ONE_CPU = "hydra.launcher.ray.remote.num_cpus=1"


def sweep(tiny, folder, launcher, *settings):
    """Run a sweep of two jobs; return their tables.

    Launchers give jobs different numbers of threads, on which the last digits of sums depend: all
    get one here, so that their tables are the same to the last bit.
    """
    folder.mkdir(exist_ok=True)
    options = ["--multirun", f"hydra/launcher={launcher}", "objective=both,decoder", "run_id=a"]
    small = ["figures=[]", "arms=[folded,random]", "layers=[0,1,2]"]
    done = subprocess.run(
        command(tiny, *options, *small, *settings),
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "validated against ConfigStore" not in done.stderr
    return [tables(folder / "outputs/match/a" / job) for job in ("0", "1")]


@pytest.fixture(scope="module")
def basic(tiny, tmp_path_factory):
    of_jobs = sweep(tiny, tmp_path_factory.mktemp("sweep") / "basic", "basic")
    assert of_jobs[0] != of_jobs[1], "the jobs differ"
    return of_jobs


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_parallel_jobs(tiny, basic, tmp_path, launcher):
    assert sweep(tiny, tmp_path / launcher, launcher) == basic


@pytest.mark.ray
def test_jobs_on_a_ray_that_the_launcher_starts(tiny, basic, tmp_path):
    own = "hydra.launcher.ray.init.num_cpus=2"
    assert sweep(tiny, tmp_path / "ray", "ray", own, ONE_CPU) == basic


@pytest.mark.ray
def test_jobs_on_a_ray_that_runs_already(tiny, basic, tmp_path):
    with running_ray(tmp_path):
        joined = "hydra.launcher.ray.init.address=auto"
        assert sweep(tiny, tmp_path, "ray", joined, ONE_CPU) == basic


@contextmanager
def running_ray(folder):
    """Start a Ray whose jobs run in ``folder``; stop this one and no other."""
    start = ["start", "--head", "--block", "--num-cpus=2", "--include-dashboard=false", "--port=0"]
    ray = subprocess.Popen(
        [sys.executable, "-u", "-m", "ray.scripts.scripts", *start],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        printed = iter(ray.stdout.readline, "")
        assert any("Ray runtime started" in line for line in printed)
        yield
    finally:
        ray.terminate()
        ray.communicate()


@pytest.mark.skipif(
    find_spec("hydra_plugins.hydra_ray_launcher") is not None, reason="it is installed"
)
def test_a_launcher_that_is_not_installed_ends_in_what_installs_it(cli):
    message, _ = cli("objective=both,decoder", base=["--multirun", "hydra/launcher=ray"])
    assert message == ("saematch: hydra/launcher=ray is not installed: pip install 'saematch[ray]'")


@pytest.mark.parametrize(
    ("extra", "printed"),
    [
        (
            "ray",
            "Unknown plugin class : 'hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher'",
        ),
        (
            "slurm",
            "In 'hydra/launcher/submitit': Could not load 'hydra/launcher/submitit_slurm'",
        ),
        ("slurm", "Could not find 'hydra/launcher/submitit_local'"),
    ],
)
def test_the_message_for_a_missing_launcher(extra, printed):
    assert one_line(RuntimeError(printed)).endswith(f"pip install 'saematch[{extra}]'")


def test_a_job_that_fails_keeps_no_other_from_being_done(cli, tiny, tmp_path):
    settings = ["evaluations=[]", "run_id=a", "logger=none", "figures=[]", "arms=[folded]"]
    base = ["--multirun", *tiny_overrides(tiny), *settings]
    message, _ = cli("layers=[0,9],[0,1]", base=base)
    assert "there is no SAE for layer 9" in message
    failed, finished = (
        Results.load(tmp_path / f"outputs/match/a/{job}/results.json") for job in (0, 1)
    )
    assert failed.status == "failed"
    assert "there is no SAE for layer 9" in failed.error
    assert finished.status == "finished"


def test_a_job_whose_settings_do_not_go_together_leaves_its_error(cli, tiny, tmp_path):
    base = ["--multirun", *tiny_overrides(tiny), "run_id=a", "logger=none", "evaluations=[]"]
    message, _ = cli("judge@second_judge=overlap", base=base)
    results = Results.load(tmp_path / "outputs/match/a/0/results.json")
    assert results.status == "failed"
    assert message == f"saematch: {results.error}"
    assert "second_judge is set, but judge=none" in message
