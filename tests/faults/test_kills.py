"""Runs killed at random moments continue and end with the same results as other runs."""

import math
import os
import random
import signal
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from safetensors import safe_open

from chat.judge_server import JudgeServer
from commands import FORKS, forked
from conftest import tiny_overrides
from saematch.core.results import Results

pytestmark = pytest.mark.slow

KILLS = 3
"""Kills of each kind of work and seed."""
SEEDS = (0, 1)

SWEEP = """\
method: grid
metric: {name: explained_variance/folded, goal: maximize}
parameters:
  objective: {values: [both, decoder]}
  arms.folded.fold: {values: [threshold, decoder_norm]}
command: ["${env}", "${interpreter}", "-m", "saematch", "+experiment=skip_layers",
          "arms=[folded,random]", "${args_no_hyphens}"]
"""
TRAINING = [
    "layers=[0,1,2]", "dataset.n_texts=null", "collection.n_tokens=60", "collection.context=12",
    "collection.held_out=8", "training.n_features=20", "training.target_l0=3.0",
    "training.samples=1600", "training.batch=16",
]  # fmt: skip
JUDGING = ["evaluations=[explain]", "explain=own", "judging.n_paths=10", "arms=[folded,random]"]

KINDS: dict[str, list[list[str]]] = {
    "match": [["arms=[folded,unfolded,random]"]],
    "skip_layers": [["+experiment=skip_layers"]],
    "paths": [["+experiment=paths", "layers=[0,1,2,3]", "explain=own"]],
    "overlap": [[*JUDGING, "judge=overlap"]],
    "judge": [[*JUDGING, "judge=local", "judge.limits.concurrency=4"]],
    "collect": [["task=collect", *TRAINING]],
    "train_saes": [["task=train_saes", *TRAINING]],
    "sweep": [["sweep", "s.yaml", "--folder", "s", "--resume"]],
    "reproduce": [["reproduce", "--only", "norms,feature_mse", "--families", "chain,mixed"]],
    "shared cache": [["run_id=a"], ["run_id=b", "seed=1"]],
}
"""Arguments of the commands that work at the same time in one folder."""


class Work(NamedTuple):
    """One kind of work, and its results without a kill."""

    commands: list[list[str]]
    folder: Path
    seconds: float
    """CPU time, which depends less on other work of the machine than wall time."""

    def do(self, folder: Path, limit: float = math.inf) -> tuple[int, float]:
        """Begin or continue the work in ``folder``; kill each process after its CPU seconds.

        Returns how many were killed, and the CPU seconds of the longest.
        """
        processes = [forked(folder, *words) for words in self.commands]
        longest = 0.0
        while any(process.is_alive() for process in processes):
            time.sleep(0.005)
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    used = sum(psutil.Process(process.pid).cpu_times()[:2])
                    longest = max(longest, used)
                    if used > limit:
                        process.kill()
        codes = [process.exitcode for process in processes]
        allowed = {0} if limit == math.inf else {0, -signal.SIGKILL}
        assert set(codes) <= allowed, (folder / "output.log").read_text()[-3000:]
        return codes.count(-signal.SIGKILL), longest


@pytest.fixture(scope="module")
def server():
    server = JudgeServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def works(tiny, server, tmp_path_factory):
    """Return a kind of work after doing it once without a kill."""
    done: dict[str, Work] = {}
    first = FORKS.Process(target=os.getpid)  # what it imports takes longer than the work
    first.start()
    first.join()

    def work(kind: str) -> Work:
        if kind not in done:
            commands = [[*words, *settings(kind, words, tiny, server)] for words in KINDS[kind]]
            whole = Work(commands, prepared(tmp_path_factory.mktemp("whole")), 0.0)
            done[kind] = whole._replace(seconds=whole.do(whole.folder)[1])
        return done[kind]

    return work


def settings(kind: str, words: list[str], tiny: Path, server: JudgeServer) -> list[str]:
    """Return the further arguments of a command."""
    own = ["logger=none", "figures=[]", "trainer.batch_size=1"]
    if kind == "reproduce":
        return [*own, "trainer.batch_size=2", "dataset.n_texts=4", "layers=[0,1,2]"]
    url = [f"judge.base_url={server.url}"] if kind == "judge" else []
    run_id = [] if kind in ("sweep", "shared cache") else ["run_id=a"]
    return [*tiny_overrides(tiny), *own, *url, *run_id]


def prepared(folder: Path) -> Path:
    (folder / "s.yaml").write_text(SWEEP)
    return folder


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    """Sums have the same last digits with the same number of threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("WANDB_MODE", "offline")


def tables(folder: Path) -> dict[str, dict]:
    """Return the tables of all runs in a folder, without training times."""
    states = {}
    for path in folder.rglob("results.json"):
        results = Results.load(path)
        assert results.status == "finished", path
        rows: dict = {name: results.tables.rows(name) for name in results.tables}
        for row in rows.get("saes", []):
            del row["seconds"]
        states[str(path.relative_to(folder))] = rows | {"metrics": results.metrics}
    return states


def kept(folder: Path) -> dict[str, int]:
    """Return the complete files of tensors in a folder, and when each was written.

    A run's own contexts are left out: it removes them as soon as the cache has the whole of them.
    """
    paths = [
        path
        for path in folder.rglob("*.safetensors")
        if not path.name.startswith(".")
        and (path.parent.name != "contexts" or path.parent.parent.name == "cache")
    ]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in paths}


def answers(folder: Path) -> list[tuple]:
    """Return the stored replies of LLMs."""
    path = folder / "outputs/cache/judge.sqlite"
    if not path.exists():
        return []
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        return database.execute("select key, content from replies order by key").fetchall()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_D_work_that_is_killed_at_random_moments_loses_doubles_and_changes_nothing(
    works, server, tmp_path, kind, seed
):
    work = works(kind)
    moments = random.Random(f"{kind} {seed}")
    folder, killed, delivered = prepared(tmp_path), 0, server.delivered.copy()
    for _ in range(KILLS):
        before = kept(folder)
        killed += work.do(folder, moments.uniform(0.1, 0.9) * work.seconds)[0]
        assert before.items() <= kept(folder).items(), "nothing is lost or done again"
    before = kept(folder)
    work.do(folder)
    assert killed
    assert before.items() <= kept(folder).items()
    assert kept(folder).keys() == kept(work.folder).keys()
    for path in kept(folder):
        with safe_open(folder / path, framework="pt") as file:
            assert list(file.keys())
    assert tables(folder) == tables(work.folder)
    assert answers(folder) == answers(work.folder)
    again = sum((server.delivered - delivered).values()) - len(answers(folder))
    assert again <= 4 * killed, "no more than what was in flight is asked again"
    comparisons = [path / "s/comparison/comparison.csv" for path in (folder, work.folder)]
    if kind == "sweep":
        assert comparisons[0].read_text() == comparisons[1].read_text()
    assert len(list(tmp_path.rglob("*.part"))) <= killed
