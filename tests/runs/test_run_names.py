"""Names of runs in Weights & Biases."""

import pytest

from saematch.runs.run_names import MAX_LABEL, run_label


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], ""),
        (["+experiment=skip_layers", "run_id=a", "logger=wandb", "cache=null"], ""),
        (["sae=independent", "sae.sparsity=l0_40", "seed=1"], "independent l0_40 seed=1"),
        (["arms=[folded,random]", "layers=[0,1]"], "arms=folded,random layers=0,1"),
        (["dataset.n_texts=20", "++show=true"], "n_texts=20 show=true"),
        (["+sae@suites.wide=chain"], "wide=chain"),
        (["model.path=/home/me/gemma-2-2b"], "path=gemma-2-2b"),
        (["judge=local", "judge.base_url=http://h/v1", "judge.key_variable=KEY"], "local"),
        (["trainer.batch_size=2", "~arms.random", "name=x"], ""),
    ],
)
def test_a_label_has_the_settings_that_differ(overrides, words):
    assert run_label("skip", overrides) == f"skip {words}".strip()


def test_a_long_label_is_cut():
    label = run_label("skip", [f"evaluations.a{n}={n}" for n in range(99)])
    assert len(label) == MAX_LABEL
    assert label.endswith("…")
