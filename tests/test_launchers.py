"""A sweep gives the same tables whatever launches its jobs."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from commands import command, tables
from saematch.cli import one_line


def sweep(tiny, folder, launcher, *settings):
    """Run a sweep of two jobs; return their tables.

    Launchers give jobs different numbers of threads, on which the last digits of sums depend: all
    get one here, so that their tables are the same to the last bit.
    """
    folder.mkdir(exist_ok=True)
    options = ["--multirun", f"hydra/launcher={launcher}", "matching=both,decoder", "run_id=a"]
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
def test_jobs_beside_each_other(tiny, basic, tmp_path, launcher):
    assert sweep(tiny, tmp_path / launcher, launcher) == basic


@pytest.mark.ray
def test_jobs_on_a_ray_that_the_launcher_starts(tiny, basic, tmp_path):
    about = ["hydra.launcher.ray.init.num_cpus=2", "hydra.launcher.ray.remote.num_cpus=1"]
    assert sweep(tiny, tmp_path / "ray", "ray", *about) == basic


@pytest.mark.ray
@pytest.mark.parametrize("address", ["auto", "ray://127.0.0.1:10001"])
def test_jobs_on_a_ray_that_runs_already(tiny, basic, tmp_path, address):
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    start = ["start", "--head", "--num-cpus=2", "--include-dashboard=false", "--port=0"]
    subprocess.run([*ray, *start], cwd=tmp_path, check=True, capture_output=True)
    try:
        about = [
            f"hydra.launcher.ray.init.address={address}",
            "hydra.launcher.ray.remote.num_cpus=1",
        ]
        assert sweep(tiny, tmp_path, "ray", *about) == basic
    finally:
        subprocess.run([*ray, "stop"], check=True, capture_output=True)


@pytest.mark.skipif(
    find_spec("hydra_plugins.hydra_ray_launcher") is not None, reason="it is installed"
)
def test_a_launcher_that_is_not_installed_ends_in_what_installs_it(cli):
    message, _ = cli("matching=both,decoder", base=["--multirun", "hydra/launcher=ray"])
    assert message == (
        "saematch: hydra/launcher=ray is not installed: pip install hydra-ray-launcher"
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "joblib",
            "Unknown plugin class : 'hydra_plugins.hydra_joblib_launcher.joblib_launcher.J'",
        ),
        (
            "submitit",
            "In 'hydra/launcher/submitit': Could not load 'hydra/launcher/submitit_slurm'",
        ),
        ("submitit", "Could not find 'hydra/launcher/submitit_local'"),
    ],
)
def test_what_hydra_says_of_a_missing_launcher(name, said):
    assert one_line(RuntimeError(said)).endswith(f"pip install hydra-{name}-launcher")
