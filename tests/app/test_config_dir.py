"""``--config-dir`` in every command that runs something, and how a wrong folder is refused."""

import sys
from pathlib import Path

import pytest

from conftest import tiny_overrides
from saematch.app import reproduce
from saematch.app.main import console
from saematch.core.results import Results

EXPERIMENT = """\
# @package _global_
defaults:
  - override /objective: sum
  - override /arms: [folded]
  - override /evaluations: []
name: mine
figures: []
"""
OBJECTIVE = "_target_: saematch.matching.objectives.parts.Parts\nW_dec: 2.0\n"
SWEEP = """\
method: grid
metric: {name: mse_W_dec/folded, goal: minimize}
parameters: {objective: {values: [both, sum]}}
command: ["${env}", "${interpreter}", "-m", "saematch", %s"+experiment=mine",
          "${args_no_hyphens}"]
"""
SMALL = ("logger=none", "layers=[0,1]")


@pytest.fixture
def presets(cli, tmp_path):
    """Write an objective and an experiment; the folder's name has signs that need quotes."""
    folder = Path("my presets, 'a=b'")
    for name, text in (("objective/sum", OBJECTIVE), ("experiment/mine", EXPERIMENT)):
        path = tmp_path / folder / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return str(folder)


@pytest.fixture
def command(cli, tiny):
    """Run a subcommand on the tiny model; return its message and output."""

    def run(*words):
        return cli(*words, *tiny_overrides(tiny), *SMALL, base=[])

    return run


def weight(folder):
    return Results.load(Path(folder, "results.json")).config["objective"]["W_dec"]


def test_every_job_of_a_sweep_and_of_one_that_is_resumed(command, presets):
    Path("s.yaml").write_text(SWEEP % "")
    words = ("sweep", "s.yaml", "--config-dir", presets)
    assert command(*words)[0] is None
    folders = [Path("outputs/sweeps/s") / number for number in "01"]
    assert [weight(folder) for folder in folders] == [1.0, 2.0]
    for name in ("results.json", "run.json"):
        (folders[1] / name).unlink()
    message, output = command(*words, "--resume")
    assert message is None
    assert "2 jobs, 1 of them finished" in output.err
    assert weight(folders[1]) == 2.0


def test_a_sweep_file_names_the_folder_in_its_command(command, presets):
    Path("s.yaml").write_text(SWEEP % f'"--config-dir", "{presets}", ')
    message, output = command("sweep", "s.yaml", "--dry-run")
    assert message is None
    assert output.out.startswith("python -m saematch --config-dir 'my presets, '")
    Path("s.yaml").write_text((SWEEP % "").replace("mine", 'mine", "--config-dir'))
    assert "s.yaml: argument --config-dir: " in command("sweep", "s.yaml")[0]


def test_a_reproduction_runs_experiments_of_the_folder(command, presets, monkeypatch):
    monkeypatch.setattr(reproduce, "FAMILIES", {"zoo": {"tiny": []}})
    monkeypatch.setattr(reproduce, "ONCE", {"zoo": {}})
    message, _ = command("reproduce", "--only", "mine", "--config-dir", presets)
    assert message is None
    assert weight("outputs/mine/reproduction-tiny") == 2.0
    page = Path("outputs/reproduction/index.md").read_text()
    assert f"saematch --config-dir {presets} +experiment=mine" in page


@pytest.mark.parametrize("words", [(), ("sweep", "quantile"), ("reproduce",)])
@pytest.mark.parametrize(
    ("folders", "sentence"),
    [
        (("nowhere",), "nowhere: there is no such folder"),
        (("a", "b"), "--config-dir was given 2 times (a, b): put all presets into one folder"),
    ],
)
def test_a_wrong_folder_ends_in_one_line(cli, words, folders, sentence):
    options = [word for folder in folders for word in ("--config-dir", folder)]
    message, _ = cli(*words, *options, base=[])
    assert message.startswith("saematch: --config-dir ")
    assert message.endswith(sentence)


@pytest.mark.parametrize("words", [("sweep",), ("reproduce",)])
def test_help_describes_the_option(cli, words):
    _, output = cli(*words, "--help", base=[])
    assert "--config-dir DIR" in output.out


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("nowhere.Top", "ModuleNotFoundError: No module named 'nowhere'): install the package "
         "nowhere, add its folder to PYTHONPATH, or start saematch in the folder that holds it"),
        ("broken_matcher.Top", "ModuleNotFoundError: No module named 'nowhere')"),
        ("saematch.matching.Top", "ModuleNotFoundError: No module named 'saematch.matching.Top')"),
    ],
)  # fmt: skip
def test_a_class_that_cannot_be_imported(cli, tmp_path, monkeypatch, target, sentence):
    (tmp_path / "broken_matcher.py").write_text("import nowhere")
    (tmp_path / "presets/matcher").mkdir(parents=True)
    (tmp_path / "presets/matcher/top.yaml").write_text(f"_target_: {target}")
    monkeypatch.syspath_prepend(tmp_path)
    message, _ = cli("matcher=top", "--config-dir", "presets", "logger=none", base=[])
    assert message == f"saematch: matcher._target_={target}: cannot import it ({sentence}"


def test_the_console_script_imports_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["installed"])
    monkeypatch.setattr("sys.argv", ["saematch", "saes", "--help"])
    with pytest.raises(SystemExit):
        console()
    assert sys.path == ["installed", str(tmp_path)]
