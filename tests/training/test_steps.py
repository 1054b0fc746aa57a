import dataclasses

import numpy as np
import pytest
import torch

from saematch.lm.states import HiddenStates
from saematch.sae.params import SaeOrigin
from saematch.training.state import TrainingRecipe, TrainingState, refresh, start
from saematch.training.steps import train
from saematch.training.trained import permuted, save_sae, threshold_factor, to_params

ORIGIN = SaeOrigin(layer=0, release="test", sae_id="layer_0")
RECIPE = TrainingRecipe(n_features=32, target_l0=4.0, samples=256 * 40, seed=3, batch=256)


@pytest.fixture(scope="module")
def activations() -> HiddenStates:
    """Sparse sums of 24 directions away from the origin, on the scale of a residual stream."""
    rng = np.random.default_rng(0)
    active = rng.random((4096, 24)) < 0.15
    amounts = active * rng.lognormal(0.0, 0.3, (4096, 24))
    x = amounts @ rng.normal(size=(24, 16)) + 0.1 * rng.normal(size=(4096, 16)) + 1.0
    return HiddenStates((torch.from_numpy((50 * x).astype(np.float16)),))


def mean_l0(sae, activations):
    return (sae.encode(activations.parts[0].float()) > 0).sum(1).double().mean().item()


def error(sae, activations):
    x = activations.parts[0].float()
    return (sae.reconstruct(x) - x).square().sum().item()


def test_start_fires_at_the_target_with_thresholds_that_differ(activations):
    sae = to_params(start(activations, RECIPE), activations, ORIGIN, RECIPE)
    assert mean_l0(sae, activations) == pytest.approx(4, rel=0.02)
    assert (sae.threshold > 0).all()
    assert sae.threshold.std() > 0.05 * sae.threshold.mean()


def test_start_depends_on_the_seed(activations):
    other = start(activations, dataclasses.replace(RECIPE, seed=4))
    assert not torch.equal(
        start(activations, RECIPE).parameters["W_dec"], other.parameters["W_dec"]
    )


def test_factor_sets_the_mean_l0_exactly(activations):
    sae = to_params(start(activations, RECIPE), activations, ORIGIN, RECIPE)
    for target in (2.0, 3.5, 6.0):
        factor = threshold_factor(sae, activations, target)
        scaled = dataclasses.replace(sae, threshold=sae.threshold * factor)
        assert mean_l0(scaled, activations) == pytest.approx(target, abs=0.01)


def test_factor_refuses_a_target_out_of_reach(activations):
    sae = to_params(start(activations, RECIPE), activations, ORIGIN, RECIPE)
    with pytest.raises(ValueError, match="too few pre-activations"):
        threshold_factor(sae, activations, 32.0)


def test_refresh_takes_exactly_the_given_features(activations):
    old = start(activations, RECIPE)
    new = start(activations, dataclasses.replace(RECIPE, seed=4))
    features = torch.tensor([1, 30])
    mixed = refresh(old, new, features).parameters
    is_new = torch.isin(torch.arange(32), features)
    for name, dim in (("W_dec", 0), ("W_enc", 1), ("b_enc", 0), ("threshold", 0)):
        for source, rows in ((new, features), (old, torch.nonzero(~is_new).flatten())):
            expected = source.parameters[name].index_select(dim, rows)
            assert torch.equal(mixed[name].index_select(dim, rows), expected)
    assert torch.equal(mixed["b_dec"], old.parameters["b_dec"])


@pytest.mark.filterwarnings("ignore")
def test_train_save_and_go_on(activations, tmp_path):
    """All tests with SAELens, in one function since its import takes seconds."""
    from sae_lens import SAE

    first = start(activations, RECIPE)
    seen = []
    state = train(first, activations, RECIPE, seen.append)
    assert sum(seen) == state.samples == RECIPE.samples

    before, after = (to_params(s, activations, ORIGIN, RECIPE) for s in (first, state))
    assert error(after, activations) < 0.8 * error(before, activations)
    norms = torch.linalg.vector_norm(after.W_dec, dim=1)
    torch.testing.assert_close(norms, torch.ones(32), atol=1e-3, rtol=0)

    state.save(tmp_path / "state.safetensors")
    loaded = TrainingState.load(tmp_path / "state.safetensors")
    assert (loaded.steps, loaded.samples) == (40, RECIPE.samples)
    for group in ("parameters", "means", "squares"):
        for name, tensor in getattr(state, group).items():
            assert torch.equal(getattr(loaded, group)[name], tensor)

    more = dataclasses.replace(RECIPE, samples=256 * 2, seed=5)
    forgetful = dataclasses.replace(state, steps=0)
    on, anew = (train(s, activations, more, lambda _: None) for s in (loaded, forgetful))
    assert on.steps == 42
    assert not torch.equal(on.parameters["W_dec"], anew.parameters["W_dec"])

    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    shuffled = permuted(after, order)
    save_sae(shuffled, tmp_path / "layer_0", {"model_name": "tiny", "l0": 4.0})
    sae = SAE.load_from_disk(tmp_path / "layer_0")
    assert type(sae).__name__ == "JumpReLUSAE"
    assert not sae.cfg.apply_b_dec_to_input
    assert sae.cfg.metadata.model_name == "tiny"
    for name, tensor in sae.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, getattr(shuffled, name))
    x = activations.parts[0][:100].float()
    with torch.no_grad():
        torch.testing.assert_close(sae(x), after.reconstruct(x), rtol=1e-4, atol=1e-2)
