"""From a training state to an SAE: scale, thresholds, quality, and the folder on disk."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Int64
from safetensors.torch import save_file

from saematch.core.errors import InputError
from saematch.core.files import replacing_folder
from saematch.lm.states import SAMPLE, HiddenStates
from saematch.sae.folding import fold
from saematch.sae.params import SaeOrigin, SaeParams
from saematch.training.state import CHUNK, MIN_THRESHOLD, TrainingRecipe, TrainingState

WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")
THRESHOLD_FLOOR = 0.2
"""Smallest threshold, as a share of the SAE's median threshold. Training lowers the thresholds of
features that are active on nearly every token; folding by a threshold near zero is meaningless."""
DEAD_TOKENS = 131_072
"""Number of training tokens on which a feature must be active at least once to be alive."""


@dataclass(frozen=True)
class Trained:
    """An SAE after training, with the changes to its thresholds."""

    sae: SaeParams
    threshold_factor: float | None
    """Factor on all thresholds that makes L0 the target; None for TopK."""
    raised_thresholds: int
    """Number of thresholds that were raised to ``THRESHOLD_FLOOR``."""


@dataclass(frozen=True)
class Quality:
    """Metrics of an SAE."""

    explained_variance: float
    """``1 - sum Var(x_hat - x) / sum Var(x)`` on held-out tokens, variances over tokens."""
    explained_variance_standardised: float
    """Explained variance with each coordinate in units of its standard deviation. If a few
    coordinates have most of the variance, the other number hardly depends on the rest."""
    l0: float
    """Mean number of active features per held-out token."""
    dead_features: int
    """Number of features that are never active on ``dead_tokens`` training tokens."""
    dead_tokens: int
    threshold_mean: float | None
    """Mean threshold; None for an SAE without thresholds."""
    threshold_spread: float | None
    """Standard deviation of the thresholds, divided by their mean."""


def finish(
    state: TrainingState,
    states: HiddenStates,
    recipe: TrainingRecipe,
    origin: SaeOrigin,
    dtype: torch.dtype = torch.float32,
) -> Trained:
    """Return the trained SAE with decoder vectors of norm 1 and the target's mean L0.

    All tensors except the thresholds are rounded to ``dtype``, in which they will be saved.
    Thresholds below ``THRESHOLD_FLOOR`` are raised to it. Then all thresholds are multiplied by the
    factor that makes the mean L0 on the training hidden states the target.
    """
    sae = to_params(state, states, origin, recipe)
    sae = replace(sae, **{name: getattr(sae, name).to(dtype).float() for name in WEIGHTS})
    if sae.threshold is None:
        return Trained(sae, None, 0)
    floor = THRESHOLD_FLOOR * sae.threshold.median()
    raised = int((sae.threshold < floor).sum())
    sae = replace(sae, threshold=sae.threshold.clamp(min=floor))
    factor = threshold_factor(sae, states, recipe.target_l0)
    assert sae.threshold is not None
    return Trained(replace(sae, threshold=factor * sae.threshold), factor, raised)


def to_params(
    state: TrainingState, states: HiddenStates, origin: SaeOrigin, recipe: TrainingRecipe
) -> SaeParams:
    """Return the SAE of a training state, for the unscaled hidden states.

    Its decoder vectors have norm 1.
    """
    scale = states.scale
    p = state.parameters
    if recipe.architecture == "topk":  # SAELens ranks and decodes as if rows had norm 1
        norm = torch.linalg.vector_norm(p["W_dec"], dim=1)
        return SaeParams(
            W_enc=p["W_enc"] * norm,
            b_enc=p["b_enc"] * norm / scale,
            W_dec=p["W_dec"] / norm[:, None],
            b_dec=p["b_dec"] / scale,
            threshold=None,
            activation="topk",
            origin=origin,
            k=int(recipe.target_l0),
        )
    sae = SaeParams(
        W_enc=p["W_enc"] * scale,
        b_enc=p["b_enc"],
        W_dec=p["W_dec"] / scale,
        b_dec=p["b_dec"] / scale,
        threshold=p["threshold"].clamp(min=MIN_THRESHOLD),
        activation="jumprelu",
        origin=origin,
    )
    return fold(sae, "decoder_norm")


def threshold_factor(sae: SaeParams, states: HiddenStates, target_l0: float) -> float:
    """Return the factor on all thresholds that makes the mean L0 on a sample ``target_l0``.

    With the factor ``c``, a feature is active if the ratio of pre-activation and threshold exceeds
    ``c``. So ``c`` is the ratio of rank ``target_l0 * tokens``.
    """
    assert sae.threshold is not None
    sample = states.spread(SAMPLE)
    n_active = round(target_l0 * len(sample))
    parts = []
    for chunk in sample.split(CHUNK):
        ratio = torch.addmm(sae.b_enc, chunk, sae.W_enc).div_(sae.threshold)
        parts.append(ratio[ratio > 0.25])
    ratios = torch.cat(parts)
    if len(ratios) <= n_active:
        raise InputError(
            f"SAE {sae.origin.sae_id}: too few pre-activations reach a quarter of their threshold "
            f"for a mean L0 of {target_l0}; train it longer or lower the target"
        )
    return float(ratios.topk(n_active + 1).values[-1])


def measure(sae: SaeParams, training: HiddenStates, held_out: HiddenStates) -> Quality:
    """Return the metrics of an SAE on stored hidden states."""
    x_all = held_out.rows(torch.arange(len(held_out)))
    error = torch.zeros(sae.d_model, dtype=torch.float64)
    square, active = error.clone(), 0
    for x in x_all.split(CHUNK):
        features = sae.encode(x)
        active += int((features > 0).sum())
        residual = (sae.decode(features) - x).double()
        error += residual.sum(0)
        square += residual.square().sum(0)
    n = len(x_all)
    unexplained = square / n - (error / n).square()
    total = x_all.double().var(0, correction=0)
    varying = total > 0
    sample = training.spread(DEAD_TOKENS)
    alive = torch.zeros(sae.n_features, dtype=torch.bool)
    for x in sample.split(CHUNK):
        alive |= (sae.encode(x) > 0).any(0)
    thresholds = sae.threshold
    mean = None if thresholds is None else float(thresholds.mean())
    return Quality(
        explained_variance=1 - float(unexplained.sum() / total.sum()),
        explained_variance_standardised=1 - float((unexplained / total)[varying].mean()),
        l0=active / n,
        dead_features=int((~alive).sum()),
        dead_tokens=len(sample),
        threshold_mean=mean,
        threshold_spread=None
        if thresholds is None or not mean
        else float(thresholds.std(correction=0)) / mean,
    )


def describe(
    trained: Trained, quality: Quality, recipe: TrainingRecipe, model_name: str
) -> dict[str, object]:
    """Return the metadata of a trained SAE for its ``cfg.json``."""
    layer = trained.sae.origin.layer
    return {
        "model_name": model_name,
        "hook_name": f"blocks.{layer}.hook_resid_post",
        "layer": layer,
        **asdict(quality),
        "threshold_factor": trained.threshold_factor,
        "raised_thresholds": trained.raised_thresholds,
        "seed": recipe.seed,
        "training": asdict(recipe),
    }


def permuted(sae: SaeParams, order: Int64[torch.Tensor, " n_features"]) -> SaeParams:
    """Return a JumpReLU SAE whose feature ``i`` is feature ``order[i]`` of ``sae``."""
    assert sae.threshold is not None
    return replace(
        sae,
        W_enc=sae.W_enc[:, order].contiguous(),
        b_enc=sae.b_enc[order],
        W_dec=sae.W_dec[order],
        threshold=sae.threshold[order],
    )


def save_sae(
    sae: SaeParams,
    folder: Path,
    metadata: dict[str, object],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a folder that ``SAE.load_from_disk`` of SAELens reads.

    Thresholds are stored in float32, other tensors in ``dtype``. The folder gets its name only when
    it is complete.
    """
    from sae_lens import JumpReLUSAEConfig, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    size = {"d_in": sae.d_model, "d_sae": sae.n_features, "apply_b_dec_to_input": False}
    size |= {"metadata": SAEMetadata(**metadata)}
    tensors = {name: getattr(sae, name).contiguous().to(dtype) for name in WEIGHTS}
    if sae.threshold is not None:
        config = JumpReLUSAEConfig(**size)
        tensors["threshold"] = sae.threshold.float().contiguous()
    else:
        config = TopKSAEConfig(**size, k=sae.k, rescale_acts_by_decoder_norm=False)
    with replacing_folder(folder) as part:
        save_file(tensors, part / "sae_weights.safetensors")
        settings = json.dumps(config.to_dict(), indent=1) + "\n"
        (part / "cfg.json").write_text(settings, encoding="utf-8")
