"""Settings with a wrong type, a wrong range or no effect are refused by name before any work."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from saematch.app.configuration import build, quoted
from saematch.app.messages import EXAMPLES, MISTAKES, one_line
from saematch.core.specs import Some, Unique, check_fields, spec
from saematch.matching.arm import Arm
from saematch.matching.matchers import Optimal
from saematch.matching.objectives.parts import Parts
from saematch.runs.experiment import Experiment
from saematch.runs.resuming import settings_of

CONF = Path(__file__).parents[2] / "conf"


def refusal(*overrides: str) -> str:
    """Return the message that refuses settings."""
    with pytest.raises(MISTAKES) as caught:
        build(list(overrides))
    return one_line(caught.value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("training.samples=0", "training.samples=0 is less than one batch"),
        ("training.samples=-5", "training.samples=-5 must be greater than or equal to 0"),
        ("training.samples=1000", "training.samples=1000 is less than one batch"),
        ("training.batch=0", "training.batch=0 must be greater than or equal to 1"),
        ("training.lr=-1", "training.lr=-1 must be greater than 0"),
        ("+training.warm_up=2", "training.warm_up=2 must be less than or equal to 1"),
    ],
)
def test_A11_training_on_nothing_is_refused(setting, words):
    assert words in refusal("task=train_saes", "dataset=zoo_training", setting)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            "evaluations.skipping.strategies=[drop,drop]",
            "evaluations.skipping.strategies=['drop', 'drop'] names 'drop' twice",
        ),
        ("arms.folded.decode=[permute,permute]", "arms.decode"),
        ("layers=[2,2]", "layers=[2, 2] names 2 twice"),
        ("evaluations=[paths,paths]", "evaluations=[paths,paths] names 'paths' twice"),
        ("arms=[folded,folded]", "arms=[folded,folded] names 'folded' twice"),
        ("figures=[mse,mse]", "names 'mse' twice"),
        ("evaluations.paths.features=[7,7]", "names 7 twice"),
        ("dataset.kinds=[zoo_prose,zoo_prose]", "dataset.kinds"),
        ("arms={}", "arms={} has no effect"),
        ("arms=[]", "arms is missing"),
        ("layers=[]", "layers=[] must have at least 1 item"),
        ("dataset.kinds=[]", "dataset.kinds=[] must have at least 1 item"),
    ],
)
def test_A16_settings_without_meaning_are_refused(setting, words):
    chosen = ["evaluations=[paths]"] if setting.startswith("evaluations.paths") else []
    assert words in refusal(*chosen, setting)


def test_A16_a_sweep_over_a_bad_seed_is_refused_by_the_plan(tmp_path, monkeypatch):
    from saematch.app.sweep.command import main

    (tmp_path / "seeds.yaml").write_text(
        "method: grid\nmetric: {name: gap/folded, goal: minimize}\n"
        "parameters: {seed: {values: [1, abc]}}\n"
        "command: ['${env}', '${interpreter}', -m, saematch, +experiment=mse, '${args_no_hyphens}']"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="seed='abc' must be a valid integer"):
        main(["seeds.yaml", "--dry-run"])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("seed=1.5", "seed=1.5 must be a valid integer"),
        ("seed=true", "seed=True must be a valid integer"),
        (
            "evaluations.skipping.strategies=null",
            "evaluations.skipping.strategies=None must be a list",
        ),
        ("cache=5", "cache=5 must be a valid string"),
        (
            "evaluations.paths.features=[a]",
            "evaluations.paths.features=['a'] item 0 must be a valid integer",
        ),
        ("matcher.device=foo", "device='foo' is not the name of a device"),
        ("intervals.n_replicates=2.5", "intervals.n_replicates=2.5 must be a valid integer"),
        ("model.path=null", "model.path=None must be a valid string"),
        ("dataset.max_tokens=x", "dataset.max_tokens='x' must be a valid integer"),
        ("trainer.devices=2.5", "trainer.devices=2.5 must be a valid integer or a valid string"),
        ("arms.folded=5", "arms.folded=5 must be of class Arm"),
        ("sae_memory=inf", "sae_memory=inf must be a finite number"),
        ("intervals.level=nan", "intervals.level=nan must be a finite number"),
        ("judge.limits=5", "judge.limits"),
    ],
)
def test_B10_a_wrong_type_is_refused_by_name(setting, words):
    judge = ["judge=gpt_4o_mini"] if setting.startswith("judge") else []
    chosen = ["evaluations=[paths]"] if setting.startswith("evaluations.paths") else []
    assert words in refusal(*judge, *chosen, setting)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("seed=-1", "seed=-1 must be greater than or equal to 0"),
        ("dataset.kinds=[]", "dataset.kinds=[]"),
        ("layers=4", "layers=4 must be a list"),
        ("evaluations=5", "evaluations=5: choose one of co_activation, explain, features, "),
        ("arms.folded.decode=permute", "'permute' must be a list, as in arms.decode=[permute]"),
        ("figures=mse", "figures='mse' must be a list"),
        ("model=[1]", "model=[1]: choose one of gemma_2_2b, "),
        ("objective=5", "objective=5: choose one of both, cosine, decoder, encoder"),
    ],
)
def test_B16_messages_name_the_setting_and_the_allowed_values(setting, words):
    assert words in refusal(setting)


def test_flags_of_hydra_and_folders_of_presets_are_taken(cli, tmp_path):
    (tmp_path / "presets/arms").mkdir(parents=True)
    preset = (CONF / "arms/folded.yaml").read_text()
    (tmp_path / "presets/arms/mine.yaml").write_text(preset.replace("folded:", "mine:"))
    message, output = cli("arms=[mine]", "--config-dir", "presets", "--cfg", "job")
    assert message is None
    assert "mine:" in output.out


def test_B16_a_number_as_the_path_of_saes():
    assert refusal("sae=disk", "sae.path=5").startswith("sae.path=5 must be a valid string")


def test_B10_library_specs_refuse_what_the_command_line_refuses():
    with pytest.raises(ValueError, match=r"arms\.objective='both' must be an object, not text"):
        Arm(fold="threshold", objective="both", matcher=Optimal())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"arms\.matcher='optimal' must be an object, not text"):
        Arm(fold="threshold", objective=Parts(), matcher="optimal")  # type: ignore[arg-type]


def test_a_spec_checks_types_before_its_own_rules_and_converts_nothing():
    @spec("group")
    class Settings:
        share: float = 1
        names: Unique[str] = ()
        sizes: Some[int] | None = None

        def __post_init__(self) -> None:
            if self.share > 1:
                raise ValueError("too much")

    assert type(Settings(share=1).share) is int
    assert Settings(names=("a", "b")).names == ("a", "b")
    for wrong, words in (
        ({"share": "2"}, "group.share='2' must be a valid number"),
        ({"share": 2}, "too much"),
        ({"names": "ab"}, "group.names='ab' must be a list"),
        ({"names": ["a", 1]}, "group.names=['a', 1] item 1 must be a valid string"),
        ({"sizes": []}, "group.sizes=[] must have at least 1 item, not 0"),
        ({"names": ["x" * 200, 1]}, "x..."),
    ):
        with pytest.raises(ValueError) as caught:
            Settings(**wrong)
        assert words in str(caught.value)
    with pytest.raises(ValueError, match=r"^seed='a' must be a valid integer"):
        check_fields(Experiment, {"seed": "a"})


PRESETS = sorted(
    (path.parent.name, path.stem)
    for group in (
        "model",
        "sae",
        "selection",
        "stand_in",
        "objective",
        "matcher",
        "pairing",
        "dataset",
        "explain",
        "judge",
        "training",
        "trainer",
        "logger",
        "task",
        "experiment",
        "setting",
    )
    for path in (CONF / group).glob("*.yaml")
)
WEIRD = st.one_of(
    st.sampled_from(["null", "true", "inf", "nan", "-1", "0", "1", "1.5", "1e400", "[]", "[[]]",
                     "[1]", "[a]", "[1,1]", "[null]", "{a:1}", "abc", "''"]),
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(str),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12).map(quoted),
)  # fmt: skip


def leaves(config: Any, name: str = "") -> list[str]:
    """Return every setting of a configuration, groups and lists included."""
    inner = config.items() if isinstance(config, dict) else ()
    own = [name] if name and not name.endswith("_target_") else []
    return own + [
        leaf
        for key, value in inner
        for leaf in leaves(value, f"{name}.{key}" if name else str(key))
        if key != "_target_"
    ]


@pytest.mark.parametrize(
    "n_examples", [15, pytest.param(1000, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_B10_no_setting_of_any_preset_ends_in_a_traceback(n_examples):
    """Change one or two settings of a preset: the run is built, or refused in one line."""
    checks = [HealthCheck.too_slow]
    profile = settings(max_examples=n_examples, deadline=None, derandomize=True, database=None,
                       suppress_health_check=checks)  # fmt: skip
    profile(given(data=st.data())(change_settings))()


def change_settings(data):
    group, preset = data.draw(st.sampled_from(PRESETS))
    base = [f"+experiment={preset}"] if group == "experiment" else [f"{group}={preset}"]
    config = _composed(*base)
    changes = [
        f"{data.draw(st.sampled_from(config))}={data.draw(WEIRD)}"
        for _ in range(data.draw(st.integers(1, 2)))
    ]
    try:
        experiment, resolved = build([*base, *changes])
    except InstantiationException as error:
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        assert isinstance(cause, ValueError | OSError | HydraException), (changes, repr(cause))
        assert "\n" not in one_line(error)
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        assert "\n" not in one_line(error)
    else:
        settings_of(resolved)
        assert {field.name for field in fields(experiment)} <= vars(experiment).keys()


@cache
def _composed(*base: str) -> list[str]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return leaves(OmegaConf.to_container(compose("config", [*base]), resolve=False))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["sae.path=x"], "sae.path: the chosen sae has no such setting; these have it: sae=disk"),
        (["stand_in.quantile=0.5"], "these have it: stand_in=activation"),
        (["judge.base_url=x"], "these have it: judge=gpt_4o_mini, judge=local"),
        (["sae.widht=3"], "did you mean sae.width?"),
        (["sae=disk"], "sae.path has no default: set it, as 'sae.path=\"my_saes/layer_{layer}\"'"),
        (["model=local"], "model.path has no default: set it, as model.path=FOLDER"),
        (["+sae@suites.b=disk"], "suites.b.path has no default: set it, as 'suites.b.path="),
    ],
)
def test_a_setting_of_another_preset_or_without_default_names_what_to_set(settings, words):
    assert words in refusal(*settings)


def test_every_setting_without_default_has_an_example():
    open_settings = {
        f"{path.parent.name}.{key}"
        for path in CONF.glob("*/*.yaml")
        for key, value in (yaml.safe_load(path.read_text()) or {}).items()
        if value == "???"
    }
    assert open_settings == set(EXAMPLES)
