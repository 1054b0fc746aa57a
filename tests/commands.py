"""Helpers that run the command line in a separate process."""

import json
import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

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
from saematch.app.main import main
main()
"""
"""Script that runs the command line and kills it just before its n-th file is renamed."""

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["saematch.runs.run", "saematch.texts.lightning_runner", "sae_lens"])


def command(tiny: Path, *arguments: str) -> list[str]:
    """Return the command of a run on the tiny model; Hydra requires options to come first."""
    settings = tiny_overrides(tiny)
    return [sys.executable, "-m", "saematch", *arguments, *settings, "logger=none"]


def tables(folder: Path) -> dict:
    """Return the tables of a finished run."""
    results = json.loads((folder / "results.json").read_text())
    assert results["status"] == "finished"
    return results["tables"]


def forked(folder: Path, *words: str) -> ForkServerProcess:
    """Start the command line in ``folder``, forked from a process that has imported everything."""
    process = FORKS.Process(target=_run, args=(folder, words))
    process.start()
    return process


def _run(folder: Path, words: tuple[str, ...]) -> None:
    from saematch.app.main import main

    os.chdir(folder)
    with Path("output.log").open("a") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    sys.argv = ["saematch", *words]
    main()
