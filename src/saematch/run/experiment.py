"""What a run is made of, and the checks that everything goes together before work begins."""

from __future__ import annotations

from collections.abc import Mapping

from saematch.chat.model import ChatModel, NoJudge
from saematch.core.errors import InputError
from saematch.core.files import expand_home
from saematch.core.pairs import DEFAULT, NO_ARM
from saematch.core.specs import Positive, Seed, Some, Text, Unique, spec
from saematch.evaluate.co_activation import CoActivation
from saematch.evaluate.evaluation import Evaluation
from saematch.evaluate.intervals import Intervals
from saematch.evaluate.paths import Paths
from saematch.explain.explanations import ExplanationSource
from saematch.judge.design import Judging
from saematch.judge.overlap import WordOverlap
from saematch.lm.source import LmSource
from saematch.matching.arm import Arm
from saematch.matching.pairing import Pairing
from saematch.report.figures import check_figures
from saematch.report.metrics import own_columns
from saematch.run.run_folders import check_name
from saematch.run.tracking import CsvLogging, NoLogging, WandbLogging
from saematch.sae.sources.selection import Selection
from saematch.sae.sources.source import SaeSource
from saematch.sae.stand_in import ActivationQuantile, StandIn
from saematch.texts.sources import TextSource, ZooTexts
from saematch.texts.trainer import TrainerSpec
from saematch.training.collect import Collection
from saematch.training.state import TrainingRecipe

TASKS = ("match", "collect", "train_saes")
"""What a run does; all but ``match`` make SAEs."""


@spec("")
class Experiment:
    """Everything that a run is made of."""

    name: Text
    seed: Seed
    task: str
    """``match``, ``collect`` (hidden states of the model, kept on disk) or ``train_saes`` (that,
    and SAEs trained on them)."""
    evaluations: Mapping[str, Evaluation]
    """Questions put to the matches, by name."""
    layers: Some[int] | None
    """Layers whose SAEs are matched; None for all that have one."""
    model: LmSource
    models: Mapping[str, LmSource]
    """Language models of suites that are not of ``model``, by suite."""
    sae: SaeSource
    selection: Selection
    suites: Mapping[str, SaeSource]
    """Further suites of SAEs, by name."""
    pairing: Pairing
    """Which SAEs are compared with which."""
    stand_in: StandIn
    """What SAEs without thresholds are folded by."""
    arms: Mapping[str, Arm]
    dataset: TextSource
    intervals: Intervals
    explain: ExplanationSource
    """Where explanations come from, if there is a judge or the evaluation ``explain``."""
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
        for suite in self.suites:
            check_name("suites: name", suite)
        if self.task not in TASKS:
            raise InputError(f"task={self.task} is none of {', '.join(TASKS)}")
        if self.trains and self.evaluations:
            raise InputError(
                f"evaluations=[{','.join(self.evaluations)}]: task={self.task} matches nothing, so "
                "there is nothing to evaluate: leave evaluations empty, or take task=match"
            )
        if not self.arms or NO_ARM in self.arms:
            raise InputError(
                f"arms holds {list(self.arms) or 'nothing'}: a run needs at least one way of "
                f"matching, and none may be called {NO_ARM!r}"
            )
        if self.trains and isinstance(self.dataset, ZooTexts):
            raise InputError(
                "dataset=zoo is what SAEs are evaluated on, so none are trained on it: take "
                "dataset=zoo_training (after 'make texts'), or dataset=local"
            )
        recipe = self.training
        if self.task == "train_saes" and recipe.samples < recipe.batch:
            raise InputError(
                f"training.samples={recipe.samples} is less than one batch (training.batch="
                f"{recipe.batch}), so nothing would be trained: raise samples or lower batch"
            )
        self._check_classes()
        self._check_partners()
        self._check_columns()
        check_figures(self.figures)
        if DEFAULT in self.models:
            raise InputError(
                f"models.{DEFAULT}: the default suite is of the run's own model: set model"
            )
        spread = [m for m in (self.model, *self.models.values()) if m.device_map is not None]
        if spread and self.trainer.devices != 1:
            raise InputError(
                f"model.device_map spreads one model over the devices in one process, but "
                f"trainer.devices={self.trainer.devices} asks for a model on each: choose one"
            )
        if self.explains and self.explain.asks_llm and not isinstance(self.judge, ChatModel):
            raise InputError(
                "these explanations are an LLM's, and neither judge=none nor judge=overlap is one: "
                "set judge, or take explain=own"
            )
        if self.judge == self.second_judge != NoJudge():
            raise InputError("judge and second_judge are one and the same: choose another one")
        astray = [arm for arm in self.judging.arms or () if arm not in self.arms]
        if astray:
            raise InputError(
                f"judging.arms holds {astray[0]!r}, which is none of {list(self.arms)}"
            )
        if isinstance(self.judge, NoJudge) and not isinstance(self.second_judge, NoJudge):
            raise InputError("second_judge is set, but judge=none: set judge first")
        follows = any(isinstance(each, Paths) for each in self.evaluations.values())
        if follows and not self.pairing.chains:
            raise InputError("paths go from each layer to the next: take pairing=neighbours")

    def _check_classes(self) -> None:
        """Refuse two evaluations of one class: their tables have the same names."""
        names: dict[type, str] = {}
        for name, evaluation in self.evaluations.items():
            first = names.setdefault(type(evaluation), name)
            if first != name:
                raise InputError(
                    f"evaluations.{first} and evaluations.{name} are both a "
                    f"{type(evaluation).__name__}, so their tables would have the same names: "
                    "choose one, or make two runs"
                )

    def _check_partners(self) -> None:
        for name, evaluation in self.evaluations.items():
            for arm, of_arm in self.arms.items():
                if evaluation.one_partner and not of_arm.matcher.one_partner:
                    raise InputError(
                        f"evaluations holds {name}, which {evaluation.one_partner}, but "
                        f"arms.{arm}.matcher, {type(of_arm.matcher).__name__}, may give a feature "
                        f"several partners: leave {name} out, or choose another matcher for this "
                        "arm"
                    )

    def _check_columns(self) -> None:
        """Refuse a metric with two definitions, one of which tables and figures would lose."""
        definitions = own_columns()
        for name, evaluation in self.evaluations.items():
            for column in evaluation.columns:
                check_name(f"evaluations.{name}: name of a metric", column.name)
                if definitions.setdefault(column.name, column) != column:
                    raise InputError(
                        f"evaluations.{name} defines the metric {column.name}, which saematch or "
                        "another evaluation defines differently: rename the metric"
                    )

    @property
    def model_labels(self) -> dict[str, str]:
        """Suite -> label of its language model, for suites that are not of ``model``.

        The label is the first suite of that model.
        """
        return {
            suite: next(first for first, other in self.models.items() if other == model)
            for suite, model in self.models.items()
            if model != self.model
        }

    @property
    def trains(self) -> bool:
        """Whether the run makes SAEs instead of matching some."""
        return self.task != "match"

    @property
    def explains(self) -> bool:
        """Whether the run needs explanations."""
        asked = any(evaluation.explains for evaluation in self.evaluations.values())
        return asked or not isinstance(self.judge, NoJudge)

    @property
    def evaluates_texts(self) -> bool:
        """Whether an evaluation needs the language model and texts."""
        return any(evaluation.reads_texts for evaluation in self.evaluations.values())

    @property
    def counting(self) -> str | None:
        """Name of the evaluation that counts which features fire together, if there is one."""
        counting = [name for name, e in self.evaluations.items() if isinstance(e, CoActivation)]
        return counting[0] if counting else None

    @property
    def reads_texts(self) -> bool:
        """Whether the run needs the language model and texts."""
        measured = isinstance(self.stand_in, ActivationQuantile)
        explained = self.explains and self.explain.on_texts
        return measured or explained or self.evaluates_texts
