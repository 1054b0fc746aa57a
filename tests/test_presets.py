"""Every preset can be composed and instantiated without weights."""

import socket
from dataclasses import is_dataclass
from inspect import isabstract
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import saematch
from saematch.app.configuration import CONF, REFERRED
from saematch.app.reproduce import FAMILIES, JUDGED, planned
from saematch.runs.experiment import Experiment
from saematch.sae.sources.source import ZooSaes

GROUPS = (
    "model",
    "sae",
    "objective",
    "matcher",
    "pairing",
    "dataset",
    "trainer",
    "logger",
    "selection",
    "setting",
    "judge",
    "explain",
    "task",
    "training",
    "stand_in",
)
NEEDED = {"model=local": ["model.path=x"], "sae=disk": ["sae.path=x/{layer}"],
          "sae=saelens": ["sae.release=x", "sae.id_template=x/{layer}"],
          "dataset=local": ["dataset.paths=[a.jsonl]"],
          "explain=jsonl": ["explain.path=a.jsonl"], "explain=own_llm": ["judge=gpt_4o_mini"],
          **{f"objective={name}": ["matcher=top_k", "arms=[folded]"]
             for name in ("pearson", "jaccard", "necessity", "sufficiency", "written_share",
                          "sparse_map", "explanations", "explanations_endpoint")},
          "pairing=listed": ["pairing.pairs=['1:3']"],
          "pairing=same_layer": ["pairing.target=wide"],
          "pairing=starts": ["pairing.starts=[1]"]}  # fmt: skip


def choices(group):
    return sorted(path.stem for path in Path(CONF, group).glob("*.yaml"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a config must not touch the network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    GlobalHydra.instance().clear()


def build(*overrides):
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        config = hydra.compose("config", list(overrides))
    parts = hydra.utils.instantiate(config, _convert_="object")
    for name in REFERRED:
        del parts[name]
    return Experiment(**parts)


@pytest.mark.parametrize("choice", [f"{g}={c}" for g in GROUPS for c in choices(g)])
def test_every_choice_of_every_group(choice):
    quoted = [s.replace("=x/{layer}", '="x/{layer}"') for s in NEEDED.get(choice, [])]
    build(choice, *quoted)


@pytest.mark.parametrize("arm", choices("arms"))
def test_every_arm(arm):
    assert list(build(f"arms=[{arm}]").arms) == [arm]


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_experiment(experiment):
    assert build(f"+experiment={experiment}").name == experiment


def test_every_objective_and_matcher_has_a_preset():
    presets = "".join(path.read_text() for group in ("objective", "matcher", "arms")
                      for path in Path(CONF, group).glob("*.yaml"))  # fmt: skip
    parts = ("saematch.matching.objectives", "saematch.matching.matchers")
    homes = {name: getattr(getattr(saematch, name), "__module__", "") for name in saematch.__all__}
    public = {name for name, module in homes.items() if module.startswith(parts)}
    values = {"Candidates", "ChanceLevel", "Factors", "FeatureTexts"}
    specs = {name for name in public - values if is_dataclass(getattr(saematch, name))}
    specs = {name for name in specs if not isabstract(getattr(saematch, name))}
    assert {"Parts", "Pearson", "SparseMap", "Sinkhorn", "Greedy"} <= specs
    assert not [name for name in specs if f".{name}" not in presets]


@pytest.mark.parametrize("group", ["objective", "matcher", "arms"])
def test_every_way_to_match_is_on_the_page_of_experiments(group):
    page = Path(CONF).parent.joinpath("docs/experiments.md").read_text()
    assert not [name for name in choices(group) if f"`{name}`" not in page]


def test_skip_layers_compares_four_arms_on_three_kinds_of_text():
    experiment = build("+experiment=skip_layers")
    assert list(experiment.arms) == ["folded", "unfolded", "identity", "random"]
    assert list(experiment.dataset.kinds) == ["prose", "docs", "code"]
    assert experiment.dataset.n_texts == 100


def test_the_objective_of_every_arm_is_the_chosen_one():
    arms = build("+experiment=skip_layers", "objective=decoder").arms
    assert {arm.objective.W_enc for arm in arms.values()} == {0.0}


@pytest.mark.parametrize("group", GROUPS)
def test_group_files_are_short(group):
    for path in Path(CONF, group).glob("*.yaml"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        assert len(lines) <= (14 if group == "setting" else 11), path


@pytest.mark.parametrize(
    "experiment", sorted(path.stem for path in Path(CONF, "experiment").iterdir())
)
def test_an_experiment_names_each_choice_once(experiment):
    experiment_file = OmegaConf.load(Path(CONF, "experiment", f"{experiment}.yaml"))
    for choice in experiment_file.get("defaults", []):
        for names in choice.values():
            assert isinstance(names, str) or len(names) == len(set(names))


@pytest.mark.parametrize("model", FAMILIES)
def test_every_run_of_a_reproduction(model):
    for step in planned(model, "r"):
        experiment = build(*step.overrides)
        if model != "zoo":
            assert experiment.model.path != "zoo"
            assert not isinstance(experiment.sae, ZooSaes)
    names = {step.experiment.partition(" ")[0] for step in planned("zoo", "r")}
    not_in_it = {"judge_layers", "mse_by_label", "verify", "verify_features", "increment",
                 "leaderboard", "explore"}  # fmt: skip
    assert names == set(choices("experiment")) - not_in_it
    judged = planned(model, "r", judge="local,judge.model=m")
    local = [step for step in judged if "judge=local" in step.overrides]
    assert {step.experiment for step in local} == set(JUDGED)
    for step in local if model == "zoo" else local[:1]:
        experiment = build(*step.overrides)
        assert experiment.judge.model == "m"
        assert experiment.explain.on_texts == (model in ("zoo", "smollm2_135m"))


def test_the_papers_layers():
    assert build("+experiment=parts", "setting=gemma_2_2b").layers == [19, 20]
    assert build("+experiment=persistence", "setting=gemma_2_2b").pairing.starts == [10, 12, 20]


def test_verify_has_its_settings_from_its_preset_and_its_features_from_the_experiment():
    evaluation = build("+experiment=verify").evaluations["verify"]
    assert evaluation.partners == [1, 2, 5, 20]
    assert evaluation.features is None
    assert evaluation.seed == 0
    assert build("+experiment=verify", "seed=7").evaluations["verify"].seed == 7
    chosen = build("+experiment=verify_features", "evaluations.verify.features=[7,42]")
    assert chosen.evaluations["verify"].features == [7, 42]
    assert chosen.layers == [5, 6]
    pair = build("+experiment=verify", "setting=smollm2_135m", "sae=smollm2_135m_pair")
    assert pair.dataset.max_tokens == 128


def test_no_sae_is_trained_on_what_it_is_evaluated_on():
    with pytest.raises(ValueError, match="so no SAE is trained on it"):
        build("task=train_saes", "dataset=zoo")
