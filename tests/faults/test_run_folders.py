"""One run, one folder: claims, names, failed attempts, secrets, damaged files."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from socket import gethostname
from threading import Barrier

import pytest

from conftest import tiny_overrides
from saematch.app.configuration import build
from saematch.compare.runs import find_runs
from saematch.core.errors import InputError
from saematch.core.results import Results
from saematch.runs import run, run_folders, run_names, stages, tracking
from saematch.runs.resuming import finished_as, settings_of
from saematch.runs.run_folders import claimed, run_folder

SMALL = ["logger=none", "evaluations=[]", "arms=[folded]", "layers=[0,1]"]
A = Path("outputs/match/a")


def files(folder: Path) -> dict[str, bytes]:
    """Return what lies below a folder: the content of files, nothing of folders."""
    paths = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in paths}


def runs(folder: Path) -> list[Path]:
    """Return the folders of runs below ``outputs``."""
    return [p for p in folder.glob("outputs/*/*") if p.parent.name != "cache"]


# A7


class OneSecond(datetime):
    """A clock that always shows the same time."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 3, 4, 5, 6, 7)


def test_A7_runs_of_one_second_get_folders_of_their_own(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folders, "datetime", OneSecond)
    assert cli(*SMALL, "seed=0")[0] is None
    assert cli(*SMALL, "seed=1")[0] is None
    found_run = {
        Results.load(path / "results.json").config["seed"]: path for path in runs(tmp_path)
    }
    assert sorted(found_run) == [0, 1]
    assert all(path.name.startswith("2026-03-04_05-06-07_") for path in found_run.values())
    names = [build([])[1]["run_id"] for _ in range(4)]
    assert len(set(names)) == 4


def test_A7_the_jobs_of_a_multirun_share_a_new_folder(cli, tiny, tmp_path):
    base = ["--multirun", "figures=[]", *tiny_overrides(tiny)]
    assert cli(*SMALL, "seed=0,1", base=base)[0] is None
    (folder,) = runs(tmp_path)
    seeds = [Results.load(folder / f"{n}/results.json").config["seed"] for n in (0, 1)]
    assert seeds == [0, 1]


HOLDER = """
import json, sys
from pathlib import Path
from saematch.runs.run_folders import claimed

with claimed(Path(sys.argv[1]), json.loads(sys.argv[2])) as claim:
    print("held", flush=True)
    sys.stdin.read()
"""
"""Claims a folder and holds it until it is killed."""


def test_A7_a_folder_that_another_process_writes_is_refused_until_that_is_gone(cli, tiny, tmp_path):
    arguments = [*SMALL, "run_id=a"]
    settings = settings_of(build(["figures=[]", *tiny_overrides(tiny), *arguments])[1])
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / A), json.dumps(settings)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as holder:  # fmt: skip
        assert holder.stdout.readline() == b"held\n"
        before = files(tmp_path / A)
        message, _ = cli(*arguments)
        assert message == (
            f"saematch: {A} is being written by process {holder.pid} on {gethostname()}: choose "
            "another run_id, or wait until it ends"
        )
        assert files(tmp_path / A) == before
        os.kill(holder.pid, signal.SIGKILL)
    assert cli(*arguments)[0] is None
    assert Results.load(tmp_path / A / "results.json").status == "finished"


def test_A7_of_claims_at_once_one_gets_the_folder(tmp_path):
    n, ready, tried = 8, Barrier(8), Barrier(8)

    def claim(number):
        ready.wait()
        try:
            with claimed(tmp_path / "a", {"seed": number}):
                tried.wait()  # all have tried while this one holds the folder
                return "held"
        except ValueError as error:
            tried.wait()
            return str(error)

    with ThreadPoolExecutor(n) as pool:
        outcomes = list(pool.map(claim, range(n)))
    assert outcomes.count("held") == 1
    assert sum("is being written by" in outcome for outcome in outcomes) == n - 1
    assert "seed" in json.loads((tmp_path / "a/run.json").read_text())


def test_A7_a_folder_of_a_run_with_other_settings_is_left_as_it_is(cli, tmp_path):
    assert cli(*SMALL, "run_id=a", "seed=1")[0] is None
    before = files(tmp_path / A)
    message, _ = cli(*SMALL, "run_id=a", "seed=2")
    assert "contains a run with other settings (seed: 1 -> 2" in message
    assert files(tmp_path / A) == before


# B25


def test_B25_an_attempt_that_fails_before_any_work_leaves_no_folder(cli, tmp_path, monkeypatch):
    def load(context):
        settings = json.loads((context.folder / "run.json").read_text())
        assert settings["seed"] == 3, "the folder is claimed before anything is loaded"
        run.log.warning("this line makes a log")
        raise InputError("no such SAE")

    message = cli("evaluations=[nothing]", "run_id=a", "logger=none")[0]
    assert "there is no evaluations=nothing" in message
    assert runs(tmp_path) == []
    with monkeypatch.context() as patched:
        patched.setattr(stages, "load", load)
        assert cli(*SMALL, "seed=3", "run_id=a")[0] == "saematch: no such SAE"
    assert runs(tmp_path) == []
    assert cli(*SMALL, "seed=4", "run_id=a")[0] is None, "the name is free for other settings"


def test_B25_an_attempt_that_did_work_keeps_its_folder(cli, tmp_path, monkeypatch):
    def fail(*_):
        raise InputError("no ink")

    with monkeypatch.context() as patched:
        patched.setattr(run, "draw_figures", fail)
        assert cli(*SMALL, "run_id=a")[0] == "saematch: no ink"
    failed = Results.load(tmp_path / A / "results.json")
    assert (failed.status, failed.error) == ("failed", "InputError: no ink")
    assert (tmp_path / A / "matches/folded/0-1.safetensors").exists()
    with monkeypatch.context() as patched:
        patched.setattr(stages, "load", fail)
        assert cli(*SMALL, "run_id=a")[0] == "saematch: no ink"
    assert (tmp_path / A / "matches/folded/0-1.safetensors").exists()
    message, output = cli(*SMALL, "run_id=a")
    assert message is None
    assert "1 matches: 0 solved, 1 found" in output.err


def test_B25_a_folder_that_was_there_stays(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("mine", "new"):
        with pytest.raises(ValueError, match="early"), claimed(tmp_path / name, {}):
            raise ValueError("early")
    assert files(tmp_path) == {"mine": b""}


# C5, B7, B11

UNSAFE = {
    "run_id='x[/y]'": "run_id='x[/y]'",
    "run_id=../../x": "run_id='../../x'",
    "run_id=/x": "run_id='/x'",
    "run_id=..": "run_id='..'",
    "run_id=.x": "run_id='.x'",
    "run_id=[a,b]": "run_id=['a', 'b']",
    'run_id="a\nb"': r"run_id='a\nb'",
    'run_id="a\x1b[31mb"': r"run_id='a\x1b[31mb'",
    "run_id=''": "run_id=''",
    "run_id=null": "run_id=None",
    "run_id=true": "run_id=True",
    "run_id=1.5": "run_id=1.5",
    f"run_id={'a' * 101}": f"run_id='{'a' * 101}'",
    "name=../x": "name='../x'",
    "name=[a]": "name=['a']",
}


@pytest.mark.parametrize("setting", UNSAFE)
def test_C5_names_that_are_not_names_are_refused_before_anything_is_made(cli, tmp_path, setting):
    message, _ = cli(setting)
    assert message.startswith(f"saematch: {UNSAFE[setting]}: a name has 1 to 100 characters")
    assert "\n" not in message
    assert "\x1b" not in message
    assert files(tmp_path) == {}
    with pytest.raises(ValueError, match="a name has 1 to 100 characters"):
        build([setting])


@pytest.mark.parametrize("value", ["a/b", "../x", "a\nb", "", "a b"])
def test_B7_WANDB_RUN_ID_is_a_name_too(cli, tmp_path, monkeypatch, value):
    monkeypatch.setenv("WANDB_RUN_ID", value)
    for settings in ([], ["run_id=a"]):
        message, _ = cli(*settings)
        assert message.startswith(f"saematch: WANDB_RUN_ID={value!r}: a name has")
        assert files(tmp_path) == {}


def test_C5_sweeps_reproductions_and_the_library_check_names_too(cli, tmp_path):
    (tmp_path / "s.yaml").write_text(
        "method: grid\nmetric: {name: m, goal: maximize}\nparameters: {name: {values: [../x]}}\n"
        'command: ["${env}", "${interpreter}", "-m", saematch, seed=1, "${args_no_hyphens}"]\n'
    )
    assert "name='../x': a name" in cli("sweep", "s.yaml", base=[])[0]
    assert "--run-id='../x': a name" in cli("reproduce", "--run-id", "../x", base=[])[0]
    assert "name='../x': a name" in cli("--multirun", "name=../x", base=[])[0]
    assert set(files(tmp_path)) <= {"s.yaml", "outputs", "outputs/sweeps"}
    experiment = build([])[0]
    with pytest.raises(ValueError, match="name='x/y': a name"):
        replace(experiment, name="x/y")
    with pytest.raises(ValueError, match="arms: name='x/y': a name"):
        replace(experiment, arms={"x/y": experiment.arms["folded"]})


def test_C5_names_stay_below_outputs(cli, tmp_path):
    assert run_folder("match", "2026-01-02_x.y") == Path("outputs/match/2026-01-02_x.y")
    assert run_folder("match", 3) == Path("outputs/match/3"), "run_id=3 needs no quotes"
    assert cli(*SMALL, "run_id=3", "hydra.job.name=../../evil")[0] is None
    assert {path.split("/")[0] for path in files(tmp_path)} == {"outputs"}
    assert (tmp_path / "outputs/match/3/saematch.log").exists()


def test_C5_a_folder_of_any_name_gives_wandb_an_identifier_that_it_takes():
    assert run_names.wandb_id("match", Path("outputs/match/a")) == "match-a"
    assert run_names.wandb_id("mse", Path("outputs/match/a")) == "mse-match-a"
    spoilt = {
        run_names.wandb_id("m", Path(path)) for path in ("/m/a b", "/m/a?b", "/m/" + 200 * "a")
    }
    assert len(spoilt) == 3
    for identifier in spoilt:
        run_folders.check_name("id", identifier)


# C4


@pytest.mark.parametrize(
    "setting",
    [
        "+hydra.job.env_set={TOKENS:s3cret}",
        "hydra.job.env_set.PLAIN=s3cret",
        "++hydra.job={env_set:{PLAIN:s3cret}}",
        "hydra.launcher.ray.init.runtime_env={env_vars:{PLAIN:s3cret}}",
        "hydra.launcher.setup=['export HF_TOKEN=s3cret']",
    ],
)
def test_C4_values_of_the_environment_are_no_settings(cli, tmp_path, setting):
    for base in ([], ["--multirun"], ["sweep", "sparsity"], ["reproduce"]):
        message, output = cli(setting, base=base)
        assert message.startswith("saematch: ")
        assert "s3cret" not in message + output.out + output.err
        assert files(tmp_path) == {}
    with pytest.raises(ValueError, match="environment variable"):
        build([setting])


def test_C4_a_sweep_file_holds_no_key(cli, tmp_path):
    (tmp_path / "s.yaml").write_text(
        "method: grid\nmetric: {name: m, goal: maximize}\nparameters: {seed: {values: [1]}}\n"
        'command: ["${env}", "${interpreter}", "-m", saematch, +judge.api_key=s3cret, '
        '"${args_no_hyphens}"]\n'
    )
    assert "no key or password" in cli("sweep", "s.yaml", base=[])[0]
    assert set(files(tmp_path)) <= {"s.yaml", "outputs", "outputs/sweeps"}


# A15


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Record each request to W&B's server, which does not answer."""
    requests = []

    def look(url, timeout):
        requests.append(url)
        raise OSError("no answer")

    monkeypatch.setattr("urllib.request.urlopen", look)
    for name in ("WANDB_RUN_ID", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    return requests


def mirrored(folder: Path, **settings: bool) -> None:
    outcome = tracking.Outcome(Results("x", {}, {}), {}, folder / "matches")
    folder.mkdir()
    tracking.WandbLogging(**settings).start("x", folder, {}).finish(outcome)


@pytest.mark.parametrize("mode", ["offline", "dryrun"])
def test_A15_an_offline_wish_holds_for_every_run_of_a_process(
    tmp_path, monkeypatch, caplog, server, mode
):
    monkeypatch.setenv("WANDB_MODE", mode)
    with caplog.at_level("INFO", logger="saematch"):
        for name in ("a", "b"):
            mirrored(tmp_path / name)
    assert server == []
    assert caplog.text.count("as requested") == 2
    assert os.environ["WANDB_MODE"] == mode
    assert all(any((tmp_path / name / "wandb").glob("offline-run-*")) for name in ("a", "b"))


def test_A15_one_run_that_is_offline_makes_no_other_one_so(tmp_path, server):
    mirrored(tmp_path / "a", offline=True)
    assert "WANDB_MODE" not in os.environ
    assert server == []
    mirrored(tmp_path / "b")
    assert len(server) == 1


# B16

WHOLE = {"schema": 2, "name": "x", "config": {}, "provenance": {}, "status": "finished"}
DAMAGE = {
    "cut off": b'{"name": "x", "con',
    "no JSON": b"\xff\xfe\x00",
    "a list": b"[]",
    "nested": b"[" * 100_000,
    "missing": b'{"schema": 2, "name": "x"}',
    "wrong type": json.dumps(WHOLE | {"tables": []}).encode(),
    "wrong table": json.dumps(WHOLE | {"tables": {"means": [1]}}).encode(),
    "a folder": None,
}


def damage(path: Path, content: bytes | None) -> None:
    path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("kind", DAMAGE)
def test_B16_a_damaged_results_file_is_named_by_every_reader(tmp_path, kind):
    path = tmp_path / "results.json"
    damage(path, DAMAGE[kind])
    (tmp_path / "run.json").write_text("{}")
    for read in (Results.load, lambda path: finished_as(path.parent, {})):
        with pytest.raises(ValueError, match="is damaged") as caught:
            read(path)
        assert str(caught.value).startswith(f"{path} is damaged (")
        assert "\n" not in str(caught.value)
    (found_run,) = find_runs([tmp_path]).runs
    assert found_run.state == "damaged"
    assert found_run.reason.startswith(f"{path} is damaged (")


@pytest.mark.parametrize("kind", ["cut off", "no JSON", "a list", "nested", "a folder"])
def test_B16_a_damaged_run_json_is_named_by_every_reader(tmp_path, kind):
    path = tmp_path / "run.json"
    Results("x", {}, {}, "finished").save(tmp_path / "results.json")
    damage(path, DAMAGE[kind])
    with pytest.raises(ValueError, match="is damaged") as caught:
        finished_as(tmp_path, {})
    assert str(caught.value).startswith(f"{path} is damaged (")
    with pytest.raises(ValueError, match="is damaged") as caught, claimed(tmp_path, {}):
        pass
    assert str(caught.value).startswith(f"{path} is damaged (")


def test_B16_the_command_line_names_a_damaged_file(cli, tmp_path):
    assert cli(*SMALL, "run_id=a")[0] is None
    for name in ("results.json", "run.json"):
        path = tmp_path / A / name
        whole = path.read_bytes()
        damage(path, whole[:50])
        message, _ = cli(*SMALL, "run_id=a")
        assert message.startswith(f"saematch: {A / name} is damaged (")
        assert "\n" not in message
        path.write_bytes(whole)
    assert cli(*SMALL, "run_id=a")[0] is None
