"""The parts of a run, and checks before work begins that they fit together."""

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
from saematch.runs.run_folders import check_name
from saematch.runs.tracking import CsvLogging, NoLogging, WandbLogging
from saematch.sae.sources.selection import Selection
from saematch.sae.sources.source import SaeSource
from saematch.sae.stand_in import ActivationQuantile, StandIn
from saematch.texts.calibration import Calibration
from saematch.texts.sources import TextSource, ZooTexts
from saematch.texts.trainer import TrainerSpec
from saematch.training.collect import Collection
from saematch.training.state import TrainingRecipe

TASKS = ("match", "collect", "train_saes")
"""Tasks of a run; all except ``match`` are for the training of SAEs."""


@spec("")
class Experiment:
    """All settings of a run, as specs."""

    name: Text
    seed: Seed
    task: str
    """``match``, ``collect`` (store hidden states of the model on disk) or ``train_saes`` (collect
    hidden states and train SAEs on them)."""
    evaluations: Mapping[str, Evaluation]
    """Evaluations of the matches, by name."""
    layers: Some[int] | None
    """Layers whose SAEs are matched; None for all layers that have an SAE."""
    model: LmSource
    models: Mapping[str, LmSource]
    """Language models of suites that do not belong to ``model``, by suite."""
    sae: SaeSource
    selection: Selection
    suites: Mapping[str, SaeSource]
    """Further suites of SAEs, by name."""
    pairing: Pairing
    """Pairs of SAEs that are compared."""
    stand_in: StandIn
    """Scale by which SAEs without thresholds are folded."""
    arms: Mapping[str, Arm]
    dataset: TextSource
    calibration: Calibration
    """Split of the texts, if the run fits quantities to some of them."""
    intervals: Intervals
    explain: ExplanationSource
    """Source of explanations, used if an arm, an evaluation or a judge needs them."""
    judge: ChatModel | WordOverlap | NoJudge
    """Judge of the explanations of matched features: an LLM, word overlap or none. Word overlap
    judges runs with explanations, and those that can make explanations without an LLM from the
    texts that they evaluate (``explains_if_possible``)."""
    second_judge: ChatModel | WordOverlap | NoJudge
    """Another judge, to measure whether both agree."""
    judging: Judging
    figures: Unique[str] | None
    """Figures to draw; None for all that the tables allow."""
    show: bool
    """Whether to write the page on which features can be followed (``saematch show``)."""
    collection: Collection
    """Hidden states to collect, for the tasks other than ``match``."""
    training: TrainingRecipe
    """Recipe of the SAEs, for the task ``train_saes``."""
    trainer: TrainerSpec
    sae_memory: Positive
    """Memory for loaded SAEs in GiB, and as much on the device. At least two SAEs are loaded at a
    time. Results do not depend on it."""
    logger: WandbLogging | CsvLogging | NoLogging
    cache: str | None
    """Folder of matches, sums and tokens that runs share; None stores them in the run's folder."""

    def __post_init__(self) -> None:
        expand_home(self, "cache")
        check_name("name", self.name)
        for arm in self.arms:
            check_name("arms: name", arm)
        for suite in self.suites:
            check_name("suites: name", suite)
        self._check_task()
        if not self.arms or NO_ARM in self.arms:
            raise InputError(
                f"arms holds {list(self.arms) or 'nothing'}: a run needs at least one way of "
                f"matching, and no arm may be called {NO_ARM!r}"
            )
        self._check_classes()
        self._check_partners()
        self._check_columns()
        check_figures(self.figures)
        self._check_models()
        self._check_judges()
        follows = any(isinstance(spec, Paths) for spec in self.evaluations.values())
        if follows and not self.pairing.chains:
            raise InputError("paths go from each layer to the next: set pairing=neighbours")

    def _check_task(self) -> None:
        if self.task not in TASKS:
            raise InputError(f"task={self.task} is not one of {', '.join(TASKS)}")
        if self.trains and self.evaluations:
            raise InputError(
                f"evaluations=[{','.join(self.evaluations)}]: task={self.task} matches nothing, so "
                "there is nothing to evaluate: leave evaluations empty, or set task=match"
            )
        if self.trains and isinstance(self.dataset, ZooTexts):
            raise InputError(
                "dataset=zoo has the texts for evaluation, so no SAE is trained on it: set "
                "dataset=zoo_training (after 'make texts') or dataset=local"
            )
        recipe = self.training
        if self.task == "train_saes" and recipe.samples < recipe.batch:
            raise InputError(
                f"training.samples={recipe.samples} is less than one batch (training.batch="
                f"{recipe.batch}), so nothing would be trained: raise samples or lower batch"
            )

    def _check_models(self) -> None:
        if DEFAULT in self.models:
            raise InputError(
                f"models.{DEFAULT}: the default suite belongs to the run's own model: set model"
            )
        spread = [m for m in (self.model, *self.models.values()) if m.device_map is not None]
        if spread and self.trainer.devices != 1:
            raise InputError(
                f"model.device_map spreads one model over the devices in one process, but "
                f"trainer.devices={self.trainer.devices} asks for a model on each: choose one"
            )

    def _check_judges(self) -> None:
        explained = self.explains or self.explains_if_possible or self.matches_explanations
        if explained and self.explain.asks_llm and not isinstance(self.judge, ChatModel):
            raise InputError(
                "an LLM writes these explanations, and judge=none and judge=overlap are not LLMs: "
                "set judge to an LLM, or set explain=own"
            )
        if self.judge == self.second_judge != NoJudge():
            raise InputError("judge and second_judge are the same: choose another second_judge")
        astray = [arm for arm in self.judging.arms or () if arm not in self.arms]
        if astray:
            raise InputError(
                f"judging.arms holds {astray[0]!r}, which is not one of {list(self.arms)}"
            )
        if isinstance(self.judge, NoJudge) and not isinstance(self.second_judge, NoJudge):
            raise InputError("second_judge is set, but judge=none: set judge first")

    def _check_classes(self) -> None:
        """Refuse two evaluations of one class, since their tables have the same names."""
        names: dict[type, str] = {}
        for name, evaluation in self.evaluations.items():
            first = names.setdefault(type(evaluation), name)
            if first != name:
                raise InputError(
                    f"evaluations.{first} and evaluations.{name} are both of class "
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
        """Refuse a metric with two definitions, since tables and figures use only one."""
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
        """Label of the language model of each suite that does not belong to ``model``.

        The label is the first suite of that model.
        """
        return {
            suite: next(first for first, lm in self.models.items() if lm == model)
            for suite, model in self.models.items()
            if model != self.model
        }

    @property
    def trains(self) -> bool:
        """Whether the task is part of training SAEs, instead of matching them."""
        return self.task != "match"

    @property
    def explains(self) -> bool:
        """Whether evaluations or an LLM that judges need explanations."""
        requested = any(evaluation.explains for evaluation in self.evaluations.values())
        return requested or any(isinstance(j, ChatModel) for j in (self.judge, self.second_judge))

    @property
    def explains_if_possible(self) -> bool:
        """Whether the pass over the texts also records explanations, for word overlap to judge.

        SAEs whose activations cannot be read from texts are the exception, which is not an error.
        """
        free = isinstance(self.judge, WordOverlap) and self.explain.on_texts
        return free and self.evaluates_texts and not self.explains

    @property
    def evaluates_texts(self) -> bool:
        """Whether an evaluation needs the language model and texts."""
        return any(evaluation.reads_texts for evaluation in self.evaluations.values())

    @property
    def matches_on_texts(self) -> bool:
        """Whether an arm reads the calibration texts."""
        return not self.trains and any(arm.reads_texts for arm in self.arms.values())

    @property
    def matches_explanations(self) -> bool:
        """Whether an arm's objective reads explanations."""
        return not self.trains and any(arm.reads_explanations for arm in self.arms.values())

    @property
    def explains_texts(self) -> bool:
        """Whether explanations come from the run's own texts."""
        return (self.explains or self.matches_explanations) and self.explain.on_texts

    @property
    def calibrates(self) -> bool:
        """Whether the run fits quantities to texts, which it then splits off.

        Explanations that objectives read count as fitted, if they come from texts.
        """
        fitted = (evaluation.calibrates(self.arms) for evaluation in self.evaluations.values())
        explained = self.matches_explanations and self.explain.on_texts
        return self.matches_on_texts or explained or any(fitted)

    @property
    def counting(self) -> str | None:
        """Name of the evaluation that counts which features fire together, if there is one."""
        counting = [name for name, e in self.evaluations.items() if isinstance(e, CoActivation)]
        return counting[0] if counting else None

    @property
    def reads_texts(self) -> bool:
        """Whether the run needs the language model and texts."""
        measured = isinstance(self.stand_in, ActivationQuantile)
        others = self.explains_texts or self.evaluates_texts or self.matches_on_texts
        return measured or others
