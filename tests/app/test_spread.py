"""``saematch spread``: several processes do the work of one run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from commands import FORKS, tables
from conftest import tiny_overrides
from saematch.app import spread
from saematch.app.configuration import build
from saematch.core.results import Results
from saematch.runs.run import run
from saematch.runs.worker import work

OPTIONS = ["figures=[]", "logger=none", "run_id=a", "trainer.batch_size=1"]
"""Settings of every run; a batch of one text gives a pass several units."""
VERIFY = [
    "evaluations=[skipping,verify,explain]", "evaluations.verify.floor=1",
    "evaluations.verify.n_learning=1", "arms=[folded,written_share]", "explain=own",
    "arms.folded.decode=[permute,increment]", "evaluations.verify.partners=[1]",
]  # fmt: skip
"""A run with passes that need the results of earlier passes."""


def settings(tiny, *more):
    return [*tiny_overrides(tiny), *OPTIONS, *VERIFY, *more]


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """Tables of the run in one process, which has a cache of its own."""
    folder = tmp_path_factory.mktemp("whole")
    run(*build(settings(tiny, f"cache={folder}/cache")), folder / "a")
    return tables(folder / "a")


def provenance(folder):
    return Results.load(folder / "results.json").provenance


def test_the_run_reads_what_its_workers_kept(cli, tiny, tmp_path, whole):
    words = settings(tiny, "name=spread", "hydra/launcher=basic")
    message, printed = cli(base=["spread", "-n", "2", *words])
    assert message is None
    folder = tmp_path / "outputs/spread/a"
    assert tables(folder) == whole
    assert provenance(folder)["matches"] == {"read": 6}, "three pairs in two arms"
    assert "Matches" in printed.out
    assert not (folder / "workers").exists()


@pytest.mark.parametrize(
    ("launcher", "more"),
    [
        pytest.param("joblib", [], marks=pytest.mark.slow),
        pytest.param("submitit_local", [], marks=pytest.mark.slow),
        pytest.param("ray", ["hydra.launcher.ray.init.num_cpus=2",
                             "hydra.launcher.ray.remote.num_cpus=1"], marks=pytest.mark.ray),
    ],
)  # fmt: skip
def test_workers_on_every_launcher(tiny, tmp_path, whole, launcher, more):
    """Launchers give jobs different numbers of threads, on which the last digits of sums depend."""
    words = ["spread", *settings(tiny, f"hydra/launcher={launcher}", *more)]
    process = subprocess.run(
        [sys.executable, "-m", "saematch", *words],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert tables(tmp_path / "outputs/match/a") == whole
    assert provenance(tmp_path / "outputs/match/a")["matches"] == {"read": 6}


def _work(place: Path, words: list[str], number: int, kill_at: int) -> None:
    """Do a worker's part; note the files that it writes, and kill it at one of them."""
    os.chdir(place)
    real, left = Path.replace, kill_at

    def replace(self, target):
        nonlocal left
        if target.parent.name in ("matches", "sums", "activity", "contexts"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            if "cache" in target.parts:
                with Path(f"{number}.txt").open("a") as file:
                    file.write(f"{target.name}\n")
        return real(self, target)

    Path.replace = replace
    experiment, _ = build(words)
    work(experiment, Path("outputs/spread/a"), Path("locks"))


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [0, 3])
def test_two_workers_do_each_unit_once(cli, tiny, tmp_path, whole, kill_at):
    """With ``kill_at``, one worker is killed in the middle, and another makes up for it."""
    words = settings(tiny, "name=spread")
    workers = [
        FORKS.Process(target=_work, args=(tmp_path, words, number, kill_at * (number == 0)))
        for number in range(2)
    ]
    for worker in workers:
        worker.start()
        if kill_at:  # beside a faster worker, the first might not reach the unit
            worker.join()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL if kill_at else 0, 0]
    by_worker = [
        Path(f"{n}.txt").read_text().split() for n in range(2) if Path(f"{n}.txt").exists()
    ]
    names = [name for of_worker in by_worker for name in of_worker]
    assert len(names) == len(set(names)), "no unit was done twice"
    message, _ = cli(base=words)
    assert message is None
    assert tables(tmp_path / "outputs/spread/a") == whole
    assert provenance(tmp_path / "outputs/spread/a")["matches"] == {"read": 6}
    cache = tmp_path / "outputs/cache"
    kept = [p.name for kind in ("matches", "sums", "activity") for p in (cache / kind).iterdir()]
    assert set(names) <= set(kept)
    assert len(set(kept) - set(names)) <= 3, "the fits of gains, which each worker makes"


def test_the_run_does_what_workers_of_a_launcher_that_gives_up_have_left(
    cli, tiny, tmp_path, monkeypatch, caplog
):
    real, starts = spread.launch, []

    def dies(task, planned, launcher):
        if task is not spread.do_part:
            return real(task, planned, launcher)
        starts.append(len(planned))
        raise RuntimeError("a worker\nwas killed")

    monkeypatch.setattr(spread, "launch", dies)
    words = [*tiny_overrides(tiny), *OPTIONS, "arms=[folded]", "hydra/launcher=basic"]
    message, _ = cli("-n", "3", base=["spread", *words])
    assert message is None and starts == [3, 3]
    messages = [r.getMessage() for r in caplog.records if "gave up" in r.getMessage()]
    assert messages == [
        "the launcher gave up (a worker was killed): starting the workers again",
        "the launcher gave up (a worker was killed)",
    ]
    assert provenance(tmp_path / "outputs/match/a")["matches"] == {"solved": 3}


def test_bad_input_ends_in_one_line_and_leaves_nothing(cli, tiny, tmp_path):
    words = ["spread", *tiny_overrides(tiny), *OPTIONS, "hydra/launcher=basic"]
    for word, reason in (
        ("layers=[0,9]", "there is no SAE for layer 9"),
        ("task=collect", "task=collect: only the work of task=match"),
        ("arms=[nothing]", "there is no arms=nothing"),
        ("hydra/launcher=nothing", "nothing"),
    ):
        message, printed = cli(word, base=words)
        assert message.startswith("saematch: ") and reason in message
        assert "\n" not in message and not printed.out
        assert not (tmp_path / "outputs/match/a").exists()
    assert cli("-n", "0", base=words)[0] == 2
