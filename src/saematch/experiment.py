"""What a run is made of, and the checks that everything goes together before work begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from saematch.data.texts import TextSource, ZooTexts
from saematch.data.token_cache import load_texts
from saematch.data.tokens import TokenBatch
from saematch.evals.intervals import Intervals
from saematch.evals.runner import TrainerSpec
from saematch.explain.explanations import ExplanationSource
from saematch.files import expand_home
from saematch.judge.model import ChatModel, NoJudge
from saematch.judge.overlap import WordOverlap
from saematch.lm.hooks import LanguageModel
from saematch.lm.source import LmSource
from saematch.matching.arm import Arm
from saematch.places import NO_ARM, POOLED
from saematch.report.figures import check_figures
from saematch.run_folders import check_name
from saematch.sae.hub import log_download
from saematch.sae.registry import release
from saematch.sae.released import ReleasedSaes
from saematch.sae.selection import Selection
from saematch.sae.sites import refuse_unskippable
from saematch.sae.source import SaeSource
from saematch.sae.training_state import TrainingRecipe
from saematch.shelf import SaeShelf
from saematch.specs import AtLeast1, Positive, Seed, Some, Text, Unique, spec
from saematch.tasks.collect import Collection
from saematch.tasks.evaluate import check_strategies
from saematch.tasks.judged import Judging
from saematch.tasks.paths import PathSpec, check_paths
from saematch.tasks.planted import check_planted
from saematch.tasks.stand_in import ActivationQuantile, StandIn, warn_of_biases
from saematch.tracking import CsvLogging, NoLogging, WandbLogging

TASKS = ("match", "activations", "evaluate", "features", "paths", "explain", "planted")
TRAINING = ("collect", "train_saes")
"""Tasks that make SAEs, in a run of their own."""
ON_TEXTS = {"activations", "evaluate"}
"""Tasks that need the language model and texts."""


@spec("")
class Experiment:
    """Everything that a run is made of."""

    name: Text
    seed: Seed
    tasks: Some[str]
    """``match``, and any of ``activations`` (which features fire together), ``evaluate`` (that, and
    skipped layers), ``features`` (errors of single features), ``paths``, ``explain`` (what the
    features of the last two are active on), and ``planted`` (known activations, decoded; for
    ``sae=planted``). Or else ``collect`` (hidden states of the model, kept on disk) or
    ``train_saes`` (that, and SAEs trained on them)."""
    layers: Some[int] | None
    """Layers to take, each to be matched with the next; None for all that have an SAE."""
    starts: Some[int] | None
    """If given, each of these layers is matched with every later one instead."""
    reach: AtLeast1 | None
    """With ``starts``: how many of the later layers; None for all."""
    model: LmSource
    sae: SaeSource
    selection: Selection
    stand_in: StandIn
    """What SAEs without thresholds are folded by."""
    arms: Mapping[str, Arm]
    strategies: Unique[str]
    dataset: TextSource
    intervals: Intervals
    paths: PathSpec
    explain: ExplanationSource
    """Where explanations come from, if there is a judge or the task ``explain``."""
    judge: ChatModel | WordOverlap | NoJudge
    """What reads the explanations of matched features, if anything: an LLM, or word overlap."""
    second_judge: ChatModel | WordOverlap | NoJudge
    """Another one, to see whether both agree."""
    judging: Judging
    figures: Unique[str] | None
    """Figures to draw; None for all that the tables allow."""
    collection: Collection
    training: TrainingRecipe
    """The last two are for the tasks that make SAEs."""
    trainer: TrainerSpec
    sae_memory: Positive
    """GiB of SAEs held in memory at a time, and on the device at a time; at least two are. Results
    do not depend on it."""
    logger: WandbLogging | CsvLogging | NoLogging
    cache: str | None
    """Folder of the matches, sums and tokens that runs share; None keeps them to the run."""

    def __post_init__(self) -> None:
        expand_home(self, "cache")
        check_name("name", self.name)
        for arm in self.arms:
            check_name("arms: name", arm)
        unknown = [task for task in self.tasks if task not in TASKS]
        if not self.trains and (unknown or "match" not in self.tasks):
            raise ValueError(
                f"tasks={list(self.tasks)}: a run does match, and any of {', '.join(TASKS[1:])}; "
                f"or it does one of {', '.join(TRAINING)}"
            )
        if not self.arms or NO_ARM in self.arms:
            raise ValueError(
                f"arms holds {list(self.arms) or 'nothing'}: a run needs at least one way of "
                f"matching, and none may be called {NO_ARM!r}"
            )
        if self.trains and isinstance(self.dataset, ZooTexts):
            raise ValueError(
                "dataset=zoo is what SAEs are evaluated on, so none are trained on it: take "
                "dataset=zoo_training (after 'make texts'), or dataset=local"
            )
        recipe = self.training
        if "train_saes" in self.tasks and recipe.samples < recipe.batch:
            raise ValueError(
                f"training.samples={recipe.samples} is less than one batch (training.batch="
                f"{recipe.batch}), so nothing would be trained: raise samples or lower batch"
            )
        check_strategies(self.strategies)
        check_figures(self.figures)
        if self.reach is not None and self.starts is None:
            raise ValueError(
                f"reach={self.reach}: it counts the layers that each of starts is matched with, so "
                "it goes with starts"
            )
        if self.model.device_map is not None and self.trainer.devices != 1:
            raise ValueError(
                f"model.device_map spreads one model over the devices in one process, but "
                f"trainer.devices={self.trainer.devices} asks for a model on each: choose one"
            )
        if self.explains and self.explain.asks_llm and not isinstance(self.judge, ChatModel):
            raise ValueError(
                "these explanations are an LLM's, and neither judge=none nor judge=overlap is one: "
                "set judge, or take explain=own"
            )
        if self.judge == self.second_judge != NoJudge():
            raise ValueError("judge and second_judge are one and the same: choose another one")
        astray = [arm for arm in self.judging.arms or () if arm not in self.arms]
        if astray:
            raise ValueError(
                f"judging.arms holds {astray[0]!r}, which is none of {list(self.arms)}"
            )
        if isinstance(self.judge, NoJudge) and not isinstance(self.second_judge, NoJudge):
            raise ValueError("second_judge is set, but judge=none: set judge first")
        if self.starts is not None and "paths" in self.tasks:
            raise ValueError("paths go from each layer to the next: leave starts at null")

    @property
    def trains(self) -> bool:
        """Whether the run makes SAEs instead of matching some."""
        return list(self.tasks) in [[task] for task in TRAINING]

    @property
    def explains(self) -> bool:
        """Whether the run needs explanations."""
        return "explain" in self.tasks or not isinstance(self.judge, NoJudge)

    @property
    def reads_texts(self) -> bool:
        """Whether the run needs the language model and texts."""
        measured = isinstance(self.stand_in, ActivationQuantile)
        explained = self.explains and self.explain.on_texts
        return measured or explained or bool(ON_TEXTS & set(self.tasks))


def choose_layers(experiment: Experiment, lm: LanguageModel) -> list[int]:
    """Return the layers to make SAEs for; refuse those that the model lacks."""
    if experiment.layers is None:
        return list(range(lm.n_layers))
    layers = sorted(set(experiment.layers))
    if not layers or not 0 <= layers[0] <= layers[-1] < lm.n_layers:
        raise ValueError(
            f"layers={layers}: choose some of 0 to {lm.n_layers - 1}, which {lm.name} has"
        )
    return layers


def choose_saes(experiment: Experiment) -> tuple[list[int], dict[str, SaeSource]]:
    """Return the layers and the sets of SAEs; refuse layers that have none."""
    source, starts = experiment.sae, experiment.starts or []
    there = source.layers()
    if not there:  # loading says what is missing and what there is
        source.load(0)
        raise ValueError(f"no SAE was found at {source.name}")
    layers = there if experiment.layers is None else sorted(set(experiment.layers))
    missing = [layer for layer in layers if layer not in there]
    if missing:
        raise ValueError(
            f"layers={layers}: there is no SAE for layer {missing[0]} in {source.name}, "
            f"only for layers {', '.join(map(str, there))}"
        )
    if len(layers) < 2:
        raise ValueError(f"layers={layers}: matching needs at least two layers")
    astray = [layer for layer in starts if layer not in layers[:-1]]
    if astray:
        raise ValueError(
            f"starts={list(starts)}: {astray[0]} is none of the layers {layers}, or the last"
        )
    if experiment.reach:  # the other layers are not needed
        ahead = [layers[n : n + 1 + experiment.reach] for n in map(layers.index, starts)]
        layers = sorted({layer for some in ahead for layer in some})
    sets = experiment.selection(source, layers)
    if "planted" in experiment.tasks:
        check_planted(sets)
    return layers, sets


def load_saes(layers: Sequence[int], sets: Mapping[str, SaeSource], memory: float) -> SaeShelf:
    """Load the SAE of each set and layer; refuse SAEs that do not go together.

    Logs first how much is to be fetched from the hub. ``memory`` is what SAEs may take up at a
    time, in GiB.
    """
    released = [source for source in sets.values() if isinstance(source, ReleasedSaes)]
    chosen = [source.chosen(layer) for source in released for layer in layers]
    log_download((release(name), sae_id) for name, sae_id in chosen)
    saes = SaeShelf.load(layers, sets, memory)
    facts = saes.facts
    if len({sae.d_model for sae in facts.values()}) > 1:
        sizes = ", ".join(f"layer {key.layer}: {sae.d_model}" for key, sae in facts.items())
        raise ValueError(f"the SAEs have different d_model ({sizes}), so they cannot be matched")
    sites = {sae.origin.site for sae in facts.values()}
    if len(sites) > 1:
        raise ValueError(
            f"the SAEs read different places of the model ({', '.join(sorted(sites))}), so they "
            "cannot be matched: choose SAEs of one site"
        )
    models = {sae.origin.model_name for sae in facts.values()}
    if len(models) > 1:
        raise ValueError(f"the SAEs are of different language models: {', '.join(sorted(models))}")
    return saes


def _check_fit(source: LmSource, lm: LanguageModel, saes: SaeShelf) -> None:
    sae = next(iter(saes.facts.values()))
    if sae.d_model != lm.d_model:
        raise ValueError(
            f"the SAEs have d_model {sae.d_model}, but the language model {lm.name} has "
            f"{lm.d_model}: choose the model that they were trained on"
        )
    trained_on = sae.origin.model_name
    if trained_on and not source.is_called(trained_on):
        raise ValueError(
            f"the SAEs were trained on {trained_on}, but the language model is {lm.name}: choose "
            "the other model, or set model.name if it is the same under another name"
        )
    beyond = [key.layer for key in saes if key.layer >= lm.n_layers]
    if beyond:
        raise ValueError(f"{lm.name} has {lm.n_layers} blocks, there is no layer {beyond[0]}")


def check_sites(experiment: Experiment, saes: SaeShelf) -> None:
    """Refuse SAEs that cannot be applied to hidden states between blocks, if they have to be."""
    if not experiment.reads_texts:
        return
    for sae in saes.facts.values():
        try:
            refuse_unskippable(sae.origin)
        except ValueError as error:
            if isinstance(experiment.stand_in, ActivationQuantile):
                raise ValueError(f"{error} and stand_in=decoder_norm") from error
            raise


def check_saes(experiment: Experiment, saes: SaeShelf) -> None:
    """Refuse before the first match what folding or following paths would refuse after it."""
    if "paths" in experiment.tasks:
        check_paths(experiment.paths, next(iter(saes.facts.values())))
    if experiment.explains:
        experiment.explain.check(saes)
    folds = {arm.fold for arm in experiment.arms.values()}
    folds |= {"threshold"}  # in which errors are measured
    for by in sorted(folds):
        for sae in saes.facts.values():
            if by in sae.unfoldable:
                raise ValueError(sae.unfoldable[by])
    warn_of_biases(saes, experiment.arms)


class RunTexts(NamedTuple):
    """The batches of each text set, and what determines its texts."""

    batches: dict[str, tuple[TokenBatch, ...]]
    about: dict[str, dict[str, Any]]


def load_tokens(
    experiment: Experiment, lm: LanguageModel, saes: SaeShelf, folder: Path
) -> RunTexts:
    """Check all that evaluation needs, and return the texts; ``folder`` keeps their tokens."""
    _check_fit(experiment.model, lm, saes)
    tokens, about = load_texts(experiment.dataset, lm, folder)
    for name, of_set in tokens.items():
        lm.refuse_ids(int(of_set.ids.max()), f"the text set {name!r}")
    if POOLED in tokens:
        raise ValueError(f"{POOLED!r} stands for all text sets together; rename the file")
    longest = max(int(of_set.lengths.max()) for of_set in tokens.values())
    if lm.max_positions is not None and longest > lm.max_positions:
        raise ValueError(
            f"a text has {longest} tokens, but {lm.name} takes at most {lm.max_positions}: set "
            f"dataset.max_tokens={lm.max_positions}"
        )
    size = experiment.trainer.batch_size
    return RunTexts({name: of_set.batches(size) for name, of_set in tokens.items()}, about)
