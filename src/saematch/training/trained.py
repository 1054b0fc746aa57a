"""From the end of a training to an SAE: its gauge, its thresholds, how good it is, its folder."""

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
"""Least threshold, as a share of the SAE's median. The few features that are active on nearly every
token lose their threshold in training; folding by one that is all but zero would mean nothing."""
DEAD_TOKENS = 131_072
"""Training tokens on which a feature must be active once to count as alive."""


@dataclass(frozen=True)
class Trained:
    """An SAE fresh from training."""

    sae: SaeParams
    threshold_factor: float | None
    """By which all thresholds were multiplied to reach the target L0; None for TopK."""
    raised_thresholds: int
    """Number of thresholds that were raised to ``THRESHOLD_FLOOR``."""


@dataclass(frozen=True)
class Quality:
    """One SAE's numbers."""

    explained_variance: float
    """``1 - sum Var(x_hat - x) / sum Var(x)`` on held-out tokens, variances over tokens."""
    explained_variance_standardised: float
    """The same with each coordinate in units of its standard deviation: where a few coordinates
    carry most of the variance, the plain number says little about the others."""
    l0: float
    """Mean number of active features a token on held-out tokens."""
    dead_features: int
    """Features never active on ``dead_tokens`` training tokens."""
    dead_tokens: int
    threshold_mean: float | None
    """None for an SAE without thresholds."""
    threshold_spread: float | None
    """Standard deviation of the thresholds over their mean."""


def finish(
    state: TrainingState,
    states: HiddenStates,
    recipe: TrainingRecipe,
    origin: SaeOrigin,
    dtype: torch.dtype = torch.float32,
) -> Trained:
    """Return the trained SAE with decoder vectors of norm 1 and the target's mean L0.

    All but the thresholds is rounded to ``dtype``, in which it is going to be saved. Thresholds are
    raised to ``THRESHOLD_FLOOR`` where they lie below, then all multiplied by one factor, both on
    the training's own hidden states.
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
    """Return the state as an SAE of the unscaled hidden states that it was trained on.

    Decoder vectors get norm 1.
    """
    scale = states.scale
    p = state.parameters
    if recipe.architecture == "topk":  # SAELens ranks, and decodes, as if rows had norm 1
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
    """Return the factor on all thresholds with which the mean L0 on a sample is ``target_l0``.

    A feature is active under the factor ``c`` where pre-activation over threshold is above ``c``,
    so ``c`` is that ratio's value of rank ``target_l0 * tokens``.
    """
    assert sae.threshold is not None
    sample = states.spread(SAMPLE)
    wanted = round(target_l0 * len(sample))
    parts = []
    for chunk in sample.split(CHUNK):
        ratio = torch.addmm(sae.b_enc, chunk, sae.W_enc).div_(sae.threshold)
        parts.append(ratio[ratio > 0.25])
    ratios = torch.cat(parts)
    if len(ratios) <= wanted:
        raise InputError(
            f"SAE {sae.origin.sae_id}: too few pre-activations reach a quarter of their threshold "
            f"for a mean L0 of {target_l0}; train it longer or ask for a lower target"
        )
    return float(ratios.topk(wanted + 1).values[-1])


def measure(sae: SaeParams, training: HiddenStates, held_out: HiddenStates) -> Quality:
    """Measure an SAE on stored hidden states."""
    x_all = held_out.rows(torch.arange(len(held_out)))
    error = torch.zeros(sae.d_model, dtype=torch.float64)
    square, active = error.clone(), 0
    for x in x_all.split(CHUNK):
        features = sae.encode(x)
        active += int((features > 0).sum())
        wrong = (sae.decode(features) - x).double()
        error += wrong.sum(0)
        square += wrong.square().sum(0)
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
    """Return what every SAE that was trained here says of itself in its ``cfg.json``."""
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
    """Return the JumpReLU SAE whose feature ``i`` is the given one's feature ``order[i]``."""
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
    """Write a folder that ``SAE.load_from_disk`` of SAELens loads.

    Thresholds are stored in float32 and the rest in ``dtype``; the folder appears under its name
    only when it is complete.
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
        about = json.dumps(config.to_dict(), indent=1) + "\n"
        (part / "cfg.json").write_text(about, encoding="utf-8")
