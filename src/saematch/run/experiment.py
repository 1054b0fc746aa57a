"""What a run is made of, and the checks that everything goes together before work begins."""

from __future__ import annotations

from collections.abc import Mapping

from saematch.chat.model import ChatModel, NoJudge
from saematch.core.files import expand_home
from saematch.core.pairs import NO_ARM
from saematch.core.specs import AtLeast1, Positive, Seed, Some, Text, Unique, spec
from saematch.evaluate.intervals import Intervals
from saematch.evaluate.paths import PathSpec
from saematch.evaluate.plan import check_strategies
from saematch.explain.explanations import ExplanationSource
from saematch.judge.design import Judging
from saematch.judge.overlap import WordOverlap
from saematch.lm.source import LmSource
from saematch.matching.arm import Arm
from saematch.report.figures import check_figures
from saematch.run.run_folders import check_name
from saematch.run.tracking import CsvLogging, NoLogging, WandbLogging
from saematch.sae.sources.selection import Selection
from saematch.sae.sources.source import SaeSource
from saematch.sae.stand_in import ActivationQuantile, StandIn
from saematch.texts.sources import TextSource, ZooTexts
from saematch.texts.text_pass import TrainerSpec
from saematch.training.collect import Collection
from saematch.training.state import TrainingRecipe

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
