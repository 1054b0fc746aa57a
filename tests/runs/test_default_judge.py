"""Word overlap judges every run that evaluates texts, unless the run switches it off."""

from dataclasses import replace

import pytest

from conftest import random_sae, tiny_overrides, write_sae
from saematch.app.configuration import build
from saematch.core.pairs import SaeKey
from saematch.core.results import Results
from saematch.runs.refusals import no_explanations
from saematch.sae.suites import SaeShelf

SMALL = ["figures=[]", "logger=none", "run_id=a", "intervals.n_replicates=20", "layers=[0,1]",
         "arms=[folded,random]"]  # fmt: skip
NOTHING = "judge=overlap judges nothing"


@pytest.fixture
def run(cli, tiny, tmp_path):
    """Do a small run with the default judge; return its results and its output."""

    def run(*settings, sae=None):
        base = [setting for setting in tiny_overrides(tiny) if setting != "judge=none"]
        if sae is not None:
            base = [s for s in base if not s.startswith("sae.path")]
            base.append(f'sae.path="{sae}/layer_{{layer}}"')
        message, output = cli(*SMALL, *settings, base=base)
        assert message is None
        return Results.load(next(tmp_path.glob("outputs/*/a/results.json"))), output

    return run


def test_a_run_on_texts_is_judged_and_its_scores_name_the_judge(run):
    results, output = run("evaluations=[co_activation]")
    tables = results.tables
    assert {"judge_score/folded", "judge_score/random", "judge_control/random"} <= set(
        results.metrics
    )
    assert results.provenance["judges"][0]["model"] == "overlap 0.1/0.3"
    assert tables.column("judge_score").label == "judge score (word overlap, no LLM)"
    assert "Judge score (word overlap, no LLM)" in output.out
    assert {row["source_explainer"] for row in tables.rows("judgements")} <= {"tokens", None}


@pytest.mark.parametrize("settings", [["judge=overlap"], ["judge.maybe=0.2"], []])
def test_a_run_without_texts_reads_none_and_says_so_if_the_judge_was_chosen(run, settings):
    results, output = run("evaluations=[]", *settings)
    assert "judgements" not in results.tables
    assert not results.provenance["texts"]
    assert (NOTHING in output.err + output.out) == bool(settings)


def test_the_evaluation_explain_lets_it_judge_without_other_evaluations(run):
    results, output = run("+experiment=judge_layers", "judge=overlap", "setting.judged=[0,1]")
    assert len(results.tables["judge_scores"])
    assert NOTHING not in output.err + output.out


def test_none_switches_it_off(run):
    results, output = run("evaluations=[co_activation]", "judge=none")
    assert "judgements" not in results.tables
    assert NOTHING not in output.err + output.out


@pytest.fixture
def silent(tmp_path):
    """Write SAEs of layers 0 and 1; no feature of layer 1 is ever active."""
    for layer in (0, 1):
        sae = random_sae(layer, layer=layer)
        if layer:
            sae.threshold.fill_(1e6)
        write_sae(tmp_path / f"saes/layer_{layer}", sae, layer=layer)
    return tmp_path / "saes"


def test_an_sae_without_active_features_does_not_end_the_run(run, silent):
    results, output = run("evaluations=[co_activation]", sae=silent)
    assert "layer 1: 0 of 24 features are active" in output.err + output.out
    rows = results.tables.rows("judgements")
    assert {row["label"] for row in rows if row["role"] == "pair"} == {"UNEXPLAINED"}


def test_an_sae_without_active_features_is_not_matched_by_explanations(cli, tiny, silent):
    base = [s for s in tiny_overrides(tiny) if not s.startswith("sae.path")]
    base += [f'sae.path="{silent}/layer_{{layer}}"', *SMALL[:-1], "arms=[explanations]"]
    message, _ = cli("evaluations=[]", base=base)
    assert "no feature of layer 1 is active on the calibration texts" in message


def test_which_runs_need_explanations(tiny):
    def of(*settings):
        experiment, _ = build([*tiny_overrides(tiny), "judge=overlap", *settings])
        return experiment.explains, experiment.explains_if_possible

    assert of("evaluations=[co_activation]") == (False, True)
    assert of("evaluations=[]") == (False, False)
    assert of("evaluations=[explain]") == (True, False)
    assert of("evaluations=[co_activation]", "explain=neuronpedia") == (False, False)
    second = ["judge@second_judge=local", "second_judge.model=m"]
    assert of("evaluations=[]", *second) == (True, False)
    with pytest.raises(ValueError, match="set judge to an LLM, or set explain=own"):
        of("evaluations=[co_activation]", "explain=own_llm")


def test_an_sae_without_activations_between_blocks_switches_it_off(tiny):
    experiment, _ = build([*tiny_overrides(tiny), "judge=overlap", "evaluations=[co_activation]"])
    sae = random_sae(0)
    assert no_explanations(experiment, SaeShelf.of({SaeKey("default", 0): sae})) == ""
    inside = replace(sae, origin=replace(sae.origin, site="mlp_out"))
    reason = no_explanations(experiment, SaeShelf.of({SaeKey("default", 0): inside}))
    assert "site mlp_out" in reason
