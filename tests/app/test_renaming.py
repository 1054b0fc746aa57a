"""Names of version 0.1 are refused at every door with the line to write instead."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from saematch.app.configuration import build
from saematch.app.renaming import CLASSES, EVALUATIONS, KEYS, renamed
from saematch.app.sweep.file import read_sweep
from saematch.core.errors import InputError
from saematch.runs.experiment import Experiment

PRESETS = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("assignment=partial", "'assignment' is now 'matcher': write matcher=partial"),
        ("+assignment.tolerance=0", "'assignment' is now 'matcher': write +matcher.tolerance=0"),
        ("~assignment", "'assignment' is now 'matcher': write ~matcher"),
        (
            "+assignment@arms.mine.assignment=scipy",
            "'assignment' is now 'matcher': write +matcher@arms.mine.matcher=scipy",
        ),
        ("matching=both,decoder", "'matching' is now 'objective': write objective=both,decoder"),
        ("matching.W_dec=2", "'matching' is now 'objective': write objective.W_dec=2"),
        ("tasks=[match]", "'tasks' is now 'evaluations': write evaluations=[]"),
        (
            "tasks=[match,evaluate,paths]",
            "'tasks' is now 'evaluations': write evaluations=[co_activation,skipping,paths]",
        ),
        (
            "tasks=[match],[match,activations]",
            "'tasks' is now 'evaluations': write evaluations=[],[co_activation]",
        ),
        (
            "tasks=evaluate",
            "'tasks' is now 'evaluations': write evaluations=[co_activation,skipping]",
        ),
        ("tasks=[collect]", "'tasks' is now 'task': write task=collect"),
        ("tasks=[train_saes]", "'tasks' is now 'task': write task=train_saes"),
        (
            "evaluations=[evaluate]",
            "'evaluate' is now 'co_activation,skipping': write "
            "evaluations=[co_activation,skipping]",
        ),
        (
            "evaluations=[paths,activations]",
            "'activations' is now 'co_activation': write evaluations=[paths,co_activation]",
        ),
        ("evaluations=[match,paths]", "'match' is always done: write evaluations=[paths]"),
        (
            "starts=[1,3]",
            "'starts' is now 'pairing.starts': write pairing=starts pairing.starts=[1,3]",
        ),
        (
            "strategies=[drop]",
            "'strategies' is now 'evaluations.skipping.strategies': write "
            "evaluations.skipping.strategies=[drop]",
        ),
        (
            "paths.features=[7]",
            "'paths' is now 'evaluations.paths': write evaluations.paths.features=[7]",
        ),
        ("starts=null", "'starts' is now 'pairing.starts': write pairing=neighbours"),
        (
            "reach=1",
            "'reach' is now 'pairing.reach': write pairing=starts pairing.starts=[...] "
            "pairing.reach=1",
        ),
        (
            "arms.folded.assignment=partial",
            "'assignment' is now 'matcher': write arms.folded.matcher=partial",
        ),
        (
            "arms.folded.assignment.seed=1",
            "'assignment' is now 'matcher': write arms.folded.matcher.seed=1",
        ),
    ],
)
def test_an_old_name_on_the_command_line(cli, setting, sentence):
    assert renamed(setting) == f"{setting}: {sentence}"
    for words in ([], ["sweep", "sparsity"], ["reproduce"]):
        message, _ = cli(*words, setting, base=[])
        assert message == f"saematch: {setting}: {sentence}"
    with pytest.raises(InputError) as caught:
        build([setting])
    assert str(caught.value) == f"{setting}: {sentence}"


def test_names_of_today_are_not_old():
    settings = ["matcher=partial", "objective=both", "evaluations=[skipping]", "evaluations=[]",
                "task=match", "pairing.starts=[1]", "dataset.paths=[a]", "evaluations.paths.seed=1",
                "arms.folded.matcher=partial",
                "name=matching", "--config-dir=assignment", "sae.path=starts/reach=1"]  # fmt: skip
    assert [renamed(setting) for setting in settings] == [None] * len(settings)
    fields = Experiment.__dataclass_fields__
    groups = {*fields, "objective", "matcher"}
    assert {new.partition(".")[0] for new in KEYS.values()} <= groups
    assert not groups & set(KEYS)
    assert all(renamed(f"evaluations=[{names}]") is None for names in EVALUATIONS.values())


@pytest.mark.parametrize(
    ("parameters", "command", "sentence"),
    [
        ("{matching: {values: [both, decoder]}}", "", "matching=both: 'matching' is now"),
        ("{assignment.tolerance: {min: 0, max: 1}}", "", "assignment.tolerance=..."),
        ("{tasks: {values: [[match, paths]]}}", "", "write evaluations=[paths]"),
        ("{seed: {values: [1]}}", "'tasks=[match]', ", "write evaluations=[]"),
    ],
)
def test_an_old_name_in_a_sweep_file(tmp_path, parameters, command, sentence):
    path = tmp_path / "old.yaml"
    path.write_text(
        f"method: grid\nmetric: {{name: x, goal: minimize}}\nparameters: {parameters}\n"
        "command: ['${env}', '${interpreter}', -m, saematch, "
        f"{command}'${{args_no_hyphens}}']\n"
    )
    with pytest.raises(InputError) as caught:
        read_sweep(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("file", "text", "settings", "sentence"),
    [
        (
            "arms/mine.yaml",
            "mine:\n  _target_: saematch.matching.arm.Arm\n  fold: threshold\n"
            "  objective: ${objective}\n  assignment: ${assignment}\n",
            ["arms=[mine]"],
            "arms.mine.assignment: 'assignment' is now 'matcher': write arms.mine.matcher",
        ),
        (
            "matcher/mine.yaml",
            "_target_: saematch.matching.assignment.Optimal",
            ["matcher=mine"],
            "matcher._target_=saematch.matching.assignment.Optimal: the class has moved: write "
            "_target_: saematch.matching.matchers.Optimal",
        ),
        (
            "experiment/mine.yaml",
            "# @package _global_\ntasks: [match, evaluate]",
            ["+experiment=mine"],
            "tasks=[match,evaluate]: 'tasks' is now 'evaluations': write "
            "evaluations=[co_activation,skipping]",
        ),
        (
            "experiment/mine.yaml",
            "# @package _global_\nevaluations: [activations]",
            ["+experiment=mine"],
            "In 'experiment/mine': a list where named parts are expected",
        ),
        (
            "experiment/mine.yaml",
            "# @package _global_\ndefaults:\n  - override /matching: decoder",
            ["+experiment=mine"],
            "In 'experiment/mine': matching=...: 'matching' is now 'objective'",
        ),
        (
            "experiment/mine.yaml",
            "# @package _global_\ndefaults:\n  - /assignment: scipy",
            ["+experiment=mine"],
            "In 'experiment/mine': assignment=scipy: 'assignment' is now 'matcher': write "
            "matcher=scipy",
        ),
        (
            "arms/mine.yaml",
            "mine:\n  _target_: saematch.matching.arm.Arm\n  fold: threshold\n"
            "  objective: ${matching}\n  matcher: ${matcher}\n",
            ["arms=[mine]"],
            "arms.mine.objective: ${matching}: 'matching' is now 'objective': write ${objective}",
        ),
    ],
)
def test_an_old_name_in_a_preset_of_the_user(cli, tmp_path, file, text, settings, sentence):
    path = tmp_path / "presets" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    message, _ = cli("--config-dir", str(tmp_path / "presets"), *settings, base=[])
    assert sentence in message
    assert "\n" not in message


@pytest.mark.parametrize(("old", "new"), CLASSES.items())
def test_a_moved_class_is_where_the_table_says(old, new):
    module, _, last = new.rpartition(".")
    assert find_spec(new) if last.islower() else hasattr(import_module(module), last)
    if old != "saematch.matching.objectives.Parts":
        with pytest.raises(ModuleNotFoundError):
            import_module(old)
