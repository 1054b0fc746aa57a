"""A run killed at any moment goes on, and ends as an unbroken one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import tiny_overrides

KILLER = """
import os, pathlib, signal, sys
left = int(sys.argv.pop(1))
real = pathlib.Path.replace

def replace(self, target):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, target)

pathlib.Path.replace = replace
from saematch.cli import main
main()
"""
"""Runs the command line and kills it just before its n-th file gets its name."""


def run(tiny: Path, folder: Path, n: int) -> int:
    settings = tiny_overrides(tiny)
    settings += ["run_id=a", "logger=none", "trainer.batch_size=1", "arms=[folded,random]"]
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(n), *settings],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, -9), done.stderr
    return done.returncode


def results(folder: Path) -> dict:
    return json.loads((folder / "outputs/match/a/results.json").read_text())


@pytest.fixture(scope="module")
def unbroken(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    assert run(tiny, folder, 10_000) == 0
    return results(folder)


@pytest.mark.slow
def test_killed_again_and_again(tiny, unbroken, tmp_path):
    """Each start writes its claim and results.json, the first also run.json and tokens; 12 match
    files and 5 batches' sums follow."""
    killed = 0
    for n in (9, 12):
        killed += run(tiny, tmp_path, n) == -9
    assert killed == 2
    done = list((tmp_path / "outputs/match/a/matches").rglob("*.safetensors"))
    assert len(done) == 6, "kills came after matching too"
    assert len(list((tmp_path / "outputs/cache/sums").glob("*.safetensors"))) == 1
    assert run(tiny, tmp_path, 10_000) == 0
    resumed = results(tmp_path)
    assert resumed["status"] == "finished"
    assert resumed["tables"] == unbroken["tables"]
    assert resumed["metrics"] == unbroken["metrics"]
    log = (tmp_path / "outputs/match/a/saematch.log").read_text()
    assert "6 matches: 0 solved, 6 found in" in log
