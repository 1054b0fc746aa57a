"""A signal ends a run in any stage; the printed command continues it to the same tables."""

import importlib
import itertools
import json
import os
import runpy
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from threading import Event

import psutil
import pytest

from chat.judge_server import JudgeServer, same_text
from commands import command
from conftest import tiny_overrides
from saematch.chat import asking
from saematch.compare.runs import find_runs
from saematch.core import files
from saematch.core.results import Results
from saematch.runs import interruption
from wandb_reader import records

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}


@pytest.fixture
def signalled(cli, monkeypatch):
    """Run the command line, and raise a signal at the n-th call of one of its functions."""

    def run(place, nth, number, *words, base=None):
        name, calls = place.rpartition(":")[2], 0
        holder = importlib.import_module(place.partition(":")[0])
        *path, name = name.split(".")
        for part in path:
            holder = getattr(holder, part)
        real = getattr(holder, name)

        def counted(*arguments, **settings):
            nonlocal calls
            calls += 1
            if calls == nth:
                signal.raise_signal(number)
            return real(*arguments, **settings)

        with monkeypatch.context() as patched:
            patched.setattr(holder, name, counted)
            code, output = cli(*words, base=base)
        return code, output.err

    return run


def continuation(printed: str) -> list[str]:
    """Return the arguments of the command that the message says to continue with."""
    assert "Traceback" not in printed
    (line,) = [line for line in printed.splitlines() if "continue with: " in line]
    words = shlex.split(line.partition("continue with: ")[2])
    start = [Path(word).name for word in words].index("saematch")
    assert start == 0 or words[1:start] == ["-m"]
    return words[start + 1 :]


def tables(path: Path) -> dict:
    """Return a finished run's tables without training times."""
    results = Results.load(path / "results.json")
    assert results.status == "finished"
    rows = {name: results.tables.rows(name) for name in results.tables}
    for row in rows.get("saes", []):
        del row["seconds"]
    return rows


MATCH = ["logger=none", "figures=[]", "trainer.batch_size=1", "arms=[folded,random]"]  # fmt: skip
JUDGED = [*MATCH, "evaluations=[]", "judging.n_paths=6", "judging.random=4", "judging.identity=3",
          "judging.ceiling=2", "explain=jsonl", "explain.path=labels.jsonl"]  # fmt: skip
TRAIN = [
    "task=train_saes", "logger=none", "layers=[1,2]", "dataset.n_texts=null",
    "collection.n_tokens=60", "collection.context=12", "collection.held_out=8",
    "training.n_features=20", "training.target_l0=3.0", "training.samples=160", "training.batch=16",
]  # fmt: skip
TEXTS = "saematch.texts.lightning_runner:write_sums"
STAGES = {
    "loading": ("saematch.runs.stages:choose_saes", 1, signal.SIGTERM, MATCH),
    "solver": ("saematch.matching.solver.solve:solve_small", 3, signal.SIGHUP, MATCH),
    "texts": (TEXTS, 3, signal.SIGTERM, MATCH),
    "texts by Ctrl-C": (TEXTS, 3, signal.SIGINT, MATCH),
    "judge": ("saematch.chat.asking:Chat.keep", 3, signal.SIGINT, JUDGED),
    "collect": (TEXTS, 2, signal.SIGTERM, TRAIN),
    "training": ("saematch.training.train_saes:save_sae", 2, signal.SIGTERM, TRAIN),
}


@pytest.fixture
def labels(tmp_path):
    lines = [
        {"layer": layer, "feature": feature, "text": f"word{feature % 5} of {layer}"}
        for layer in range(4)
        for feature in range(24)
    ]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, lines)))


@pytest.mark.filterwarnings("ignore")  # SAELens' imports warn
@pytest.mark.parametrize("stage", STAGES)
def test_A8_a_signal_ends_a_run_in_any_stage(signalled, cli, labels, tmp_path, stage):
    place, nth, number, settings = STAGES[stage]
    server = JudgeServer()
    if stage == "judge":
        settings = [*settings, "judge=local", f"judge.base_url={server.url}"]
    handlers = {code_signal: signal.getsignal(code_signal) for code_signal in CODES}
    code, printed = signalled(place, nth, number, *settings)
    assert code == CODES[number]
    assert {code_signal: signal.getsignal(code_signal) for code_signal in CODES} == handlers
    words = continuation(printed)
    (run_id,) = [word.partition("=")[2] for word in words if word.startswith("run_id=")]
    (folder,) = (tmp_path / "outputs").glob(f"*/{run_id}")
    results = Results.load(folder / "results.json")
    assert (results.status, results.error) == ("interrupted", f"interrupted by {number.name}")
    run = find_runs([folder]).runs[0]
    assert run.state == "unfinished"
    finished = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}

    assert cli(*words, base=[])[0] is None
    assert not [p for p, at in finished.items() if p.stat().st_mtime_ns != at], "done again"
    assert not list(tmp_path.rglob("*.part"))
    answers = server.delivered.copy()
    assert cli(*words, "run_id=whole", "cache=whole", *WHOLE.get(stage, ()), base=[])[0] is None
    server.close()
    assert server.delivered - answers == answers, "nothing is asked twice"
    assert tables(folder) == tables(folder.with_name("whole"))


WHOLE = {stage: ["collection.folder=whole"] for stage in ("collect", "training")}


GRID = {
    "method": "grid",
    "metric": {"name": "explained_variance/folded", "goal": "maximize"},
    "parameters": {"objective": {"values": ["both", "decoder"]}},
    "command": ["${env}", "${interpreter}", "-m", "saematch", "+experiment=skip_layers",
                "${args_no_hyphens}"],
}  # fmt: skip


def test_A8_a_sweep_records_the_job_in_progress_and_resumes_it(signalled, cli, tiny, tmp_path):
    (tmp_path / "s.yaml").write_text(json.dumps(GRID))
    words = ["sweep", "s.yaml", "--folder", "s"]
    words += [*tiny_overrides(tiny), *MATCH]
    code, printed = signalled(TEXTS, 16, signal.SIGTERM, *words, base=[])
    assert code == 143
    paths = [tmp_path / "s" / job / "results.json" for job in "01"]
    assert [Results.load(path).status for path in paths] == ["finished", "interrupted"]
    words = continuation(printed)
    assert words[-1] == "--resume"
    assert cli(*words, base=[])[0] is None
    assert [Results.load(path).status for path in paths] == ["finished", "finished"]


def test_A8_a_multirun_records_the_job_in_progress(signalled, tiny, tmp_path):
    words = ["--multirun", "objective=both,decoder", *tiny_overrides(tiny), *MATCH]
    code, printed = signalled(TEXTS, 16, signal.SIGTERM, *words, base=[])
    (folder,) = (tmp_path / "outputs/match").iterdir()
    states = [Results.load(folder / job / "results.json").status for job in "01"]
    assert (code, *states) == (143, "finished", "interrupted")
    assert continuation(printed) == [*words, f"run_id={folder.name}"]


@pytest.mark.slow
def test_A8_a_reproduction_ends_with_its_run(signalled, tmp_path):
    words = ["reproduce", "--only", "norms", "--families", "chain", "layers=[0,1]",
             "logger=none"]  # fmt: skip
    code, printed = signalled("saematch.runs.run:draw_figures", 1, signal.SIGHUP, *words, base=[])
    results = Results.load(tmp_path / "outputs/norms/reproduction-chain/results.json")
    assert (code, results.status) == (129, "interrupted")
    assert continuation(printed) == words


@pytest.mark.slow
def test_A8_a_real_process_ends_at_once_and_w_and_b_sees_a_failure(tiny, tmp_path):
    """Lightning's own handler would continue to the end of the batch, here for a minute."""
    script = """
import sys, time
from saematch.texts import lightning_runner
real = lightning_runner.write_sums
def slow(path, sums):
    real(path, sums)
    time.sleep(60)
lightning_runner.write_sums = slow
from saematch.app.main import main
main()
"""
    words = [word for word in command(tiny, *MATCH)[3:] if word != "logger=none"]
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words, "logger.offline=true"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not list(tmp_path.glob("outputs/cache/sums/*.safetensors")):
        assert process.poll() is None
        assert time.monotonic() - began < 120
        time.sleep(0.05)
    sent = time.monotonic()
    process.terminate()
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 143
    assert time.monotonic() - sent < 20
    (folder,) = tmp_path.glob("outputs/match/*")
    assert Results.load(folder / "results.json").status == "interrupted"
    assert f"run_id={folder.name}" in continuation(printed)
    (end,) = [r.exit for r in records(folder / "wandb") if r.WhichOneof("record_type") == "exit"]
    assert end.exit_code == 1


SWEEP = ["sweep", "s.yaml", "--folder", "s", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
SPREAD = ["run_id=a", "trainer.devices=2", "trainer.strategy=ddp_spawn"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "begun", "number"),
    [(SWEEP, "s/*/results.json", signal.SIGTERM),
     (SPREAD, "outputs/match/a/matches/random/*", signal.SIGTERM),
     (SPREAD, "outputs/match/a/matches/random/*", signal.SIGINT)],
    ids=["sweep", "devices", "devices by Ctrl-C"],
)  # fmt: skip
def test_A8_processes_that_a_run_has_started_end_with_it(tiny, tmp_path, words, begun, number):
    (tmp_path / "s.yaml").write_text(json.dumps(GRID))
    main = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    main += "if __name__ == '__main__':\n    from saematch.app.main import main\n    main()\n"
    (tmp_path / "main.py").write_text(main)
    command = [sys.executable, "main.py", *words, *tiny_overrides(tiny), *MATCH]
    process = psutil.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(begun)) or len(process.children()) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    children = process.children(recursive=True)
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == CODES[number]
    continuation(printed)
    paths = tmp_path.glob("s/*/results.json" if words == SWEEP else "outputs/*/*/results.json")
    assert {Results.load(path).status for path in paths} == {"interrupted"}
    assert not psutil.wait_procs(children, timeout=10)[1]


def test_A8_in_a_notebook_a_keyboard_interrupt_stays_one(cli, tiny, tmp_path, monkeypatch):
    from saematch.app.configuration import build
    from saematch.runs.run import run
    from saematch.texts import lightning_runner

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = [*tiny_overrides(tiny), *MATCH]

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(lightning_runner, "write_sums", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(*build(words), tmp_path / "here")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    results = Results.load(tmp_path / "here/results.json")
    printed = "interrupted by KeyboardInterrupt"
    assert (results.status, results.error) == ("interrupted", printed)
    assert run(*build(words), tmp_path / "here").status == "finished"


def test_A8_an_error_while_a_run_ends_does_not_hide_the_interruption():
    cause = interruption.Interrupted(signal.SIGTERM)
    with pytest.raises(RuntimeError) as caught:
        try:
            raise cause
        finally:
            raise RuntimeError("the teardown failed")
    assert interruption.interruption(caught.value) is cause
    assert interruption.interruption(ValueError("a failure")) is None


def test_A8_other_handlers_and_ignored_signals_are_left_alone():
    """nohup, background jobs of a shell and submitit ignore signals on purpose."""
    own = signal.signal(signal.SIGTERM, lambda *_: None)
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruption.interruptible():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(interruption.Interrupted, match="interrupted by SIGINT"):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, own)
        signal.signal(signal.SIGHUP, ignored)


SECOND = """
import os, signal, sys, time
from concurrent.futures import Future
from saematch.runs import interruption
from saematch.core.background import in_background
interruption.ECHO_SECONDS = float(sys.argv[1])
in_background(Future(), lambda: time.sleep(60))  # a server that does not answer
try:
    with interruption.interruptible():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
except interruption.Interrupted as cause:
    sys.exit(cause.exit_code)
"""


@pytest.mark.parametrize(("echo", "code"), [(0.0, -signal.SIGTERM), (5.0, 143)])
def test_A8_a_second_signal_kills_and_an_echo_of_the_first_does_not(echo, code):
    done = subprocess.run([sys.executable, "-c", SECOND, str(echo)], timeout=30, check=False)
    assert done.returncode == code


def test_A8_a_server_that_does_not_answer_keeps_no_run_from_ending(cli, labels, monkeypatch):
    """Earlier replies are kept, and no question stays claimed."""
    count, late = itertools.count(1), Event()

    def answer(body):
        if (number := next(count)) > 8:
            if number == 9:
                os.kill(os.getpid(), signal.SIGTERM)
            late.wait(30)
        return same_text(body)

    server = JudgeServer(answer)
    monkeypatch.setattr(asking, "ENDING_SECONDS", 2.0)
    code, _ = cli(*JUDGED, "judge=local", f"judge.base_url={server.url}")
    assert code == 143
    late.set()
    with closing(sqlite3.connect("outputs/cache/judge.sqlite")) as database:
        assert database.execute("select count(*) from replies").fetchone() == (8,)
        assert database.execute("select count(*) from claims").fetchone() == (0,)
    server.close()


def test_A8_systems_without_a_hangup_signal(monkeypatch):
    monkeypatch.delattr(signal, "SIGHUP")
    module = runpy.run_path(interruption.__file__)
    assert module["SIGNALS"] == (signal.SIGTERM, signal.SIGINT)


def test_A8_what_killed_processes_of_other_hosts_left_is_removed_after_a_day(tmp_path):
    old, new = (tmp_path / f".a.0123456789ab-7-{digit * 32}.part" for digit in "12")
    folder = tmp_path / f".layer_0.0123456789ab-7-{'3' * 32}.part"
    folder.mkdir()
    for path in (old, new, folder / "half"):
        path.write_text("half")
    day_ago = time.time() - files.ABANDONED_SECONDS - 1
    for path in (old, folder):
        os.utime(path, (day_ago, day_ago))
    files.write_json(tmp_path / "b.json", 1)
    assert sorted(tmp_path.iterdir()) == [new, tmp_path / "b.json"]


LEFT = """
import os, signal, sys
from pathlib import Path
from saematch.core.files import replacing, replacing_folder
with replacing(Path(sys.argv[1]) / "a.json"), replacing_folder(Path(sys.argv[1]) / "sae") as part:
    (part / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_A8_what_a_killed_process_of_this_host_left_is_removed_at_once(tmp_path):
    subprocess.run([sys.executable, "-c", LEFT, str(tmp_path)], check=False)
    assert len(list(tmp_path.glob(".*.part"))) == 2
    with files.replacing(tmp_path / "ours") as part:
        part.write_text("at work")
        unseen = tmp_path / ".." / tmp_path.name  # a process cleans a folder of one name once
        files.write_json(unseen / "b.json", 1)
        assert list(tmp_path.glob(".*.part")) == [part]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.json", "ours"]
