"""Experiments that a command line specifies."""

import pytest

from saematch.app.configuration import build


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ([], "saematch-zoo"),
        (["model.path=my_model"], "my_model"),
        (["model=gemma_2_2b", "model.path=google/gemma-2-9b"], "google/gemma-2-9b"),
        (["model.path=my_model", "model.name=mine"], "mine"),
    ],
)
def test_a_model_at_another_path_has_not_the_name_of_its_preset(settings, name):
    experiment, config = build(settings)
    assert experiment.model.name == config["model"]["name"] == name


def test_a_model_of_a_suite_is_named_by_its_path_too():
    settings = ["+model@models.wide=zoo", "models.wide.path=other", "+sae@suites.wide=chain"]
    experiment, _ = build(settings)
    assert experiment.models["wide"].name == "other"
    assert experiment.model.name == "saematch-zoo"
