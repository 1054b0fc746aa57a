"""A caller's mistake ends in one line in every command; any other error says where it happened."""

import os
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch

from conftest import tiny_overrides
from saematch.core.errors import FileError, InputError, stage
from saematch.core.results import Results
from saematch.matching.arm import Arm
from saematch.runs import stages

SMALL = ["logger=none", "arms=[identity]", "layers=[0,1]", "run_id=a"]
LONG = "x" * 300
UNREADABLE = "/proc/self/mem"
"""A file that is there and that nobody can read, not even root."""


@pytest.fixture
def bad(tmp_path):
    """Return a folder with one path for each kind of wrong path."""
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "empty_folder").mkdir()
    (folder / "binary").write_bytes(bytes(range(256)) * 8)
    (folder / "empty").write_bytes(b"")
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "layer_0").write_text("a file")
    return folder


PATHS = ["missing", "empty_folder", "binary", "fifo", "loop", "binary/below", LONG]
"""Below the folder ``bad``."""


PATH_SETTINGS = [
    "dataset.paths=['{}']",
    "model.path='{}'",
    "sae.path='{}/layer_{{layer}}'",
    "explain=jsonl explain.path='{}' evaluations=[explain]",
]
FILES_OF_LAYERS = "explain=jsonl explain.path='{}/{{layer}}.jsonl' evaluations=[explain]"


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        *product(PATH_SETTINGS, [*PATHS, UNREADABLE]),
        *product([FILES_OF_LAYERS], ["missing", "binary", "loop"]),
    ],
)
def test_a_path_that_cannot_be_read_ends_in_one_line(cli, bad, setting, name):
    message, output = cli(*SMALL, *(word.format(bad / name) for word in setting.split()))
    assert message is not None
    assert message.startswith("saematch: ")
    assert "\n" not in message
    assert "Traceback" not in output.err


@pytest.mark.parametrize("name", ["binary", "loop", "binary/below", LONG, "/dev/full", "/proc"])
@pytest.mark.parametrize("setting", ["cache='{}'", "sweep sparsity --folder {}",
                                     "compare outputs --out {}", "compare {}"])  # fmt: skip
def test_a_folder_that_cannot_be_written_ends_in_one_line(cli, bad, tmp_path, setting, name):
    words = [word.format(bad / name) for word in setting.split()]
    if words[0] == "compare":
        Results("x", {}, {}, "finished").save(tmp_path / "outputs/x/a/results.json")
    command = words[0] in ("sweep", "compare")
    message, output = cli(*words, base=[]) if command else cli(*SMALL, *words)
    assert message is not None
    assert message.startswith("saematch: ")
    assert "\n" not in message
    assert "Traceback" not in output.err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["trainer.accelerator=tpu"], "trainer"),
        (["trainer.accelerator=nothing"], "trainer"),
        (["trainer.strategy=nothing"], "trainer"),
        (["trainer.devices=0"], "trainer"),
        (["trainer.devices=[7]"], "trainer"),
        (["trainer.devices=x", "trainer.strategy=ddp_spawn"], "trainer"),
        (["matcher.device=cuda", "arms=[folded]"], "cuda"),
        (["matcher.device=cuda:99", "arms=[folded]"], "cuda"),
        (["matcher.device=meta", "arms=[folded]"], "device"),
        (["matcher.device=mps", "arms=[folded]"], "device"),
        (["matcher.device=xpu", "arms=[folded]"], "device"),
        (["model.device_map=nothing"], "model"),
        (["model.dtype=nothing"], "dtype"),
    ],
)
def test_a_device_that_is_not_there_ends_in_one_line(cli, settings, words):
    if torch.cuda.is_available() and "cuda" in settings[0]:
        pytest.skip("there is a GPU")
    message, output = cli(*SMALL, *settings)
    assert message.startswith("saematch: ")
    assert words in message
    assert "\n" not in message
    assert "Traceback" not in output.err


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "cfg.json"])
@pytest.mark.parametrize("kind", ["half", "empty", "fifo", "folder", "unreadable"])
def test_a_spoilt_sae_ends_in_one_line(cli, tiny, tmp_path, name, kind):
    shutil.copytree(tiny / "saes", tmp_path / "saes")
    path = tmp_path / "saes/layer_1" / name
    whole = path.read_bytes()
    path.unlink()
    if kind in ("half", "empty"):
        path.write_bytes(whole[: len(whole) // 2 if kind == "half" else 0])
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "loop" else UNREADABLE)
    message, output = cli(*SMALL, f'sae.path="{tmp_path}/saes/layer_{{layer}}"')
    assert message.startswith("saematch: ")
    assert "\n" not in message
    assert "Traceback" not in output.err


@pytest.mark.parametrize(
    ("name", "value"),
    [("WANDB_MODE", "junk"), ("WANDB_API_KEY", "junk"), ("WANDB_BASE_URL", "junk"),
     ("WANDB_DIR", "/proc"), ("WANDB_RUN_ID", "a/b"), ("WANDB_ENTITY", "a/b"),
     ("WANDB_PROJECT", "a/b")],
)  # fmt: skip
def test_junk_in_wandbs_environment_ends_in_one_line(cli, monkeypatch, name, value):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv(name, value)
    message, output = cli(*SMALL[1:], "evaluations=[]", "logger=wandb")
    assert message is None or message.startswith("saematch: "), message
    assert "\n" not in (message or "")
    assert "Traceback" not in output.err


@pytest.mark.parametrize(
    ("variable", "setting", "reason"),
    [("WANDB_MODE", "logger=wandb", "WANDB_..."), ("WANDB_RUN_ID", "logger=wandb", "WANDB_RUN_ID"),
     ("", "dataset.paths=[absent.jsonl]", "absent.jsonl"),
     ("", "dataset.paths=[absent/*.txt]", "absent/*.txt"), ("", "figures=[absent]", "absent")],
)  # fmt: skip
def test_a_mistake_is_refused_before_any_sae_is_loaded(
    cli, tiny, monkeypatch, variable, setting, reason
):
    """Released SAEs take minutes to download and to load."""
    from saematch.sae.suites import SaeShelf

    monkeypatch.setattr(SaeShelf, "load", None)
    if variable:
        monkeypatch.setenv(variable, "")
    settings = [*tiny_overrides(tiny), "logger=none", setting]
    keys = {s.partition("=")[0]: s for s in settings}
    message, output = cli(base=list(keys.values()))
    assert message.startswith("saematch: ")
    assert reason in message
    assert "Traceback" not in output.err


PLUGIN = """
from saematch.matching.matchers import Identity

class Broken(Identity):
    def __init__(self, at="call"):
        if at == "init":
            len(3)

    def __call__(self, similarity):
        return len(3)
"""


def test_a_plug_in_that_fails_shows_its_traceback_and_where(cli, tmp_path, monkeypatch):
    (tmp_path / "broken_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    arms = ["arms=[identity]", "+arms.identity.matcher.at=call",
            "arms.identity.matcher._target_=broken_plugin.Broken"]  # fmt: skip
    with pytest.raises(TypeError, match="has no len") as caught:
        cli(*SMALL, "evaluations=[]", *arms)
    assert "in stage match, arm identity, pair 0-1" in caught.value.__notes__
    assert caught.traceback[-1].path.name == "broken_plugin.py"
    results = Results.load(tmp_path / "outputs/match/a/results.json")
    assert results.status == "failed"
    assert results.error.startswith("TypeError: object of type 'int' has no len()")
    assert "(in stage match, arm identity, pair 0-1)" in results.error
    arms[1] = "+arms.identity.matcher.at=init"
    with pytest.raises(TypeError, match="has no len") as caught:
        cli(*SMALL, "run_id=b", "evaluations=[]", *arms)
    assert caught.value.__notes__ == ["in stage configuration, full_key: arms.identity.matcher"]
    assert caught.traceback[-1].path.name == "broken_plugin.py"
    arms[1] = "+arms.identity.matcher.nothing=1"
    message, _ = cli(*SMALL, "run_id=b", "evaluations=[]", *arms)
    assert "unexpected keyword argument 'nothing'" in message
    assert "\n" not in message


def test_a_job_with_a_failing_plug_in_is_recorded(cli, tmp_path, monkeypatch):
    (tmp_path / "broken_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    target = ["arms.identity.matcher._target_=broken_plugin.Broken"]
    with pytest.raises(TypeError, match="has no len"):
        cli(*SMALL, *target, "+arms.identity.matcher.at=init", "--multirun")
    results = Results.load(tmp_path / "outputs/match/a/0/results.json")
    assert (results.status, results.error) == (
        "failed",
        "TypeError: object of type 'int' has no len() "
        "(in stage configuration, full_key: arms.identity.matcher)",
    )


def test_each_job_with_a_bug_shows_its_traceback(cli, tiny, tmp_path, monkeypatch):
    (tmp_path / "broken_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    target = "arms.identity.matcher._target_=broken_plugin.Broken"
    message, _ = cli(*SMALL, target, "evaluations=[]", "arms.identity.fold=nonsense,threshold",
                     "--multirun")  # fmt: skip
    assert message.startswith("saematch: unknown fold 'nonsense'"), "Hydra shows the first failure"
    log = (tmp_path / "outputs/match/a/1/saematch.log").read_text()
    assert "outputs/match/a/1 failed unexpectedly" in log
    assert "broken_plugin.py" in log
    assert "in stage match, arm identity, pair 0-1" in log
    (tmp_path / "s.yaml").write_text(
        "method: grid\nmetric: {name: x, goal: minimize}\n"
        "command: ['${env}', '${interpreter}', '-m', saematch, '${args_no_hyphens}']\n"
        "parameters: {seed: {values: [0, 1]}}\n"
    )
    settings = ["figures=[]", *tiny_overrides(tiny), *SMALL[:-1], target, "evaluations=[]"]
    message, _ = cli("sweep", "s.yaml", *settings, base=[])
    assert "2 of 2 jobs failed" in message
    for job in "01":
        assert "broken_plugin.py" in (tmp_path / f"outputs/sweeps/s/{job}/saematch.log").read_text()


@pytest.mark.parametrize(
    ("error", "text", "notes"),
    [
        (InputError("too wide"), "arm folded, pair 3-4: too wide", []),
        (FileError("no space"), "no space", []),
        (KeyError("x"), "'x'", ["in stage match, arm folded, pair 3-4"]),
    ],
)
def test_an_error_names_its_stage(error, text, notes):
    with pytest.raises(type(error)) as caught, stage("match", arm="folded", pair="3-4"):
        raise error
    assert caught.value is error
    assert str(error) == text
    assert getattr(error, "__notes__", []) == notes


def test_a_stage_within_itself_is_noted_once():
    with pytest.raises(KeyError) as caught, stage("match"), stage("match", "folded", "3-4"):
        raise KeyError("x")
    assert caught.value.__notes__ == ["in stage match, arm folded, pair 3-4"]


def test_a_stage_without_arm_leaves_a_callers_mistake_as_it_is():
    @stage("load")
    def load():
        raise InputError("no such SAE")

    with pytest.raises(InputError) as caught:
        load()
    assert str(caught.value) == "no such SAE"


def test_a_path_object_becomes_text():
    from saematch.sae.sources.disk import SaeFolders

    folders = SaeFolders(Path("saes/layer_{layer}"))  # type: ignore[arg-type]
    assert folders == SaeFolders("saes/layer_{layer}")


def test_a_name_instead_of_a_spec_is_refused():
    with pytest.raises(InputError, match=r"arms\.objective='decoder' must be an object, not text"):
        Arm(objective="decoder")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("run_id=2024_01", "run_id=2024_01 is parsed as a number: quote the name, as in "
                           "\"run_id='2024_01'\""),
        ("run_id=12e4567", "Quote a name that looks like a number: \"run_id='12e4567'\""),
    ],
)  # fmt: skip
def test_a_name_that_looks_like_a_number_is_to_be_quoted(cli, setting, words):
    assert words in cli(setting)[0]
    key, _, name = setting.partition("=")
    message, _ = cli("logger=none", "arms=[identity]", "evaluations=[]", f"{key}='{name}'")
    assert message is None
    assert Path(f"outputs/match/{name}/results.json").exists()


def test_judges_are_closed_if_the_second_one_cannot_be_connected(cli, monkeypatch):
    closed = []

    class First:
        model = "first"

        def close(self):
            closed.append(self.model)

    def connect(spec, store):
        if spec.model == "second":
            raise InputError("no server")
        return First()

    judges = ["judge=gpt_4o_mini", "judge.model=first", "judge@second_judge=gpt_4o",
              "second_judge.model=second"]  # fmt: skip
    monkeypatch.setattr(stages, "connect", connect)
    message, _ = cli(*judges, "logger=none")
    assert "no server" in message
    assert closed == ["first"]
