"""What a run is made of, and the checks that everything goes together before work begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from saematch.data.texts import LocalTexts, ZooTexts
from saematch.data.tokens import TokenBatch, tokenise
from saematch.evals.runner import TrainerSpec
from saematch.evals.splice import NO_ARM
from saematch.lm.hooks import LanguageModel
from saematch.lm.source import LmSource
from saematch.matching.arm import Arm
from saematch.sae.folding import fold_scale
from saematch.sae.params import SaeParams
from saematch.sae.source import SaeSource
from saematch.tasks.evaluate import check_strategies
from saematch.tracking import CsvLogging, NoLogging, WandbLogging

TASKS = ("match", "evaluate")


@dataclass(frozen=True)
class Experiment:
    """Everything that a run is made of."""

    name: str
    seed: int
    tasks: Sequence[str]
    layers: Sequence[int] | None
    """Layers to match, in rising order each with the next; None for all that have an SAE."""
    model: LmSource
    sae: SaeSource
    arms: Mapping[str, Arm]
    strategies: Sequence[str]
    dataset: ZooTexts | LocalTexts
    trainer: TrainerSpec
    logger: WandbLogging | CsvLogging | NoLogging

    def __post_init__(self) -> None:
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or "match" not in self.tasks:
            raise ValueError(
                f"tasks={list(self.tasks)}: a run does [match] or [match, evaluate], nothing else"
            )
        if not self.arms or NO_ARM in self.arms:
            raise ValueError(
                f"arms holds {list(self.arms) or 'nothing'}: a run needs at least one way of "
                f"matching, and none may be called {NO_ARM!r}"
            )
        layers = self.layers
        if layers is not None and (
            not isinstance(layers, Sequence) or not all(isinstance(layer, int) for layer in layers)
        ):
            raise ValueError(f"layers={layers} must be a list of whole numbers, as layers=[2,3,4]")


def load_saes(experiment: Experiment) -> dict[int, SaeParams]:
    """Load the SAE of each layer; refuse layers that have none and SAEs that do not go together."""
    there = experiment.sae.layers()
    if not there:  # loading says what is missing and what there is
        experiment.sae.load(0)
        raise ValueError(f"no SAE was found at {experiment.sae.name}")
    layers = there if experiment.layers is None else sorted(set(experiment.layers))
    missing = [layer for layer in layers if layer not in there]
    if missing:
        raise ValueError(
            f"layers={layers}: there is no SAE for layer {missing[0]} in {experiment.sae.name}, "
            f"only for layers {', '.join(map(str, there))}"
        )
    if len(layers) < 2:
        raise ValueError(f"layers={layers}: matching needs at least two layers")
    saes = {
        layer: experiment.sae.load(layer)
        for layer in tqdm(layers, desc="load SAEs", unit="SAE", leave=False)
    }
    widths = {sae.d_model for sae in saes.values()}
    if len(widths) > 1:
        sizes = ", ".join(f"layer {layer}: {sae.d_model}" for layer, sae in saes.items())
        raise ValueError(f"the SAEs have different d_model ({sizes}), so they cannot be matched")
    models = {sae.origin.model_name for sae in saes.values()}
    if len(models) > 1:
        raise ValueError(f"the SAEs are of different language models: {', '.join(sorted(models))}")
    return saes


def _check_fit(lm: LanguageModel, saes: Mapping[int, SaeParams]) -> None:
    sae = next(iter(saes.values()))
    if sae.d_model != lm.d_model:
        raise ValueError(
            f"the SAEs have d_model {sae.d_model}, but the language model {lm.name} has "
            f"{lm.d_model}: choose the model that they were trained on"
        )
    trained_on = sae.origin.model_name
    if trained_on and trained_on != lm.name:
        raise ValueError(
            f"the SAEs were trained on {trained_on}, but the language model is {lm.name}: choose "
            "the other model, or set model.name if it is the same under another name"
        )
    beyond = [layer for layer in saes if layer >= lm.n_layers]
    if beyond:
        raise ValueError(f"{lm.name} has {lm.n_layers} blocks, there is no layer {beyond[0]}")


def check_arms(arms: Mapping[str, Arm], saes: Mapping[int, SaeParams]) -> None:
    """Refuse before the first match what folding would refuse in the middle of them."""
    folds = {arm.fold for arm in arms.values()} | {"threshold"}  # MSE is measured on folded SAEs
    for by in folds:
        for sae in saes.values():
            fold_scale(sae, by)


def load_tokens(
    experiment: Experiment, lm: LanguageModel, saes: Mapping[int, SaeParams]
) -> dict[str, tuple[TokenBatch, ...]]:
    """Check all that evaluation needs, and return the batches of each text set."""
    _check_fit(lm, saes)
    check_strategies(experiment.strategies)
    sets = experiment.dataset.load()
    names = [texts.name for texts in sets]
    if len(set(names)) < len(names):
        raise ValueError(f"two text sets have one name ({', '.join(names)}); rename a file")
    max_tokens, size = experiment.dataset.max_tokens, experiment.trainer.batch_size
    tokens = {texts.name: tokenise(texts, lm.tokenizer, max_tokens, size) for texts in sets}
    longest = max(batch.ids.shape[1] for batches in tokens.values() for batch in batches)
    if lm.max_positions is not None and longest > lm.max_positions:
        raise ValueError(
            f"a text has {longest} tokens, but {lm.name} takes at most {lm.max_positions}: set "
            f"dataset.max_tokens={lm.max_positions}"
        )
    return tokens
