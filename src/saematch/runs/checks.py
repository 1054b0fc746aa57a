"""Load the inputs of a run, and refuse those that do not fit together before work begins."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from saematch.core.errors import InputError
from saematch.core.pairs import POOLED, Pair, SaeKey
from saematch.lm.hooks import LanguageModel
from saematch.lm.source import ZOO_PATH, OpenedModel
from saematch.matching.arm import Arm
from saematch.matching.matches import steps
from saematch.matching.objectives.parts import Parts
from saematch.matching.pairing import FromStarts
from saematch.runs.experiment import Experiment
from saematch.sae.sources.hub import log_download
from saematch.sae.sources.registry import release
from saematch.sae.sources.released import ReleasedSaes
from saematch.sae.sources.source import SaeSource
from saematch.sae.suites import SaeShelf
from saematch.texts.token_cache import ResolvedTexts, load_texts
from saematch.texts.tokens import TokenBatch

log = logging.getLogger(__name__)

BIAS_SHARE = 0.5
"""Share of the squared norm of folded features above which encoder biases decide the match."""


def choose_layers(experiment: Experiment, lm: LanguageModel) -> list[int]:
    """Return the layers to train SAEs for; ``InputError`` for layers that the model lacks."""
    if experiment.layers is None:
        return list(range(lm.n_layers))
    layers = sorted(set(experiment.layers))
    if not layers or not 0 <= layers[0] <= layers[-1] < lm.n_layers:
        raise InputError(
            f"layers={layers}: choose some of 0 to {lm.n_layers - 1}, which {lm.name} has"
        )
    return layers


class Chosen(NamedTuple):
    """SAEs and pairs that a run compares."""

    suites: dict[str, SaeSource]
    keys: tuple[SaeKey, ...]
    """The SAEs to load, suite by suite."""
    pairs: tuple[Pair, ...]


def choose_saes(experiment: Experiment) -> Chosen:
    """Return the suites of a run and its pairs; ``InputError`` for layers without an SAE."""
    layers = _layers_of(experiment.sae, experiment.layers)
    suites = experiment.selection(experiment.sae, layers)
    twice = [name for name in experiment.suites if name in suites]
    if twice:
        raise InputError(
            f"suites.{twice[0]}: the suites of `sae` already have the names {', '.join(suites)}; "
            "choose another name"
        )
    by_suite = dict.fromkeys(suites, layers)
    for name, source in experiment.suites.items():
        by_suite[name] = _layers_of(source, experiment.layers)
    suites |= experiment.suites
    astray = [name for name in experiment.models if name not in suites]
    if astray:
        raise InputError(
            f"models.{astray[0]}: there is no such suite; the suites are {', '.join(suites)}"
        )
    pairs = experiment.pairing(by_suite)
    _refuse_one_label(pairs)
    for evaluation in experiment.evaluations.values():
        evaluation.check_sources(suites)
    keys = [SaeKey(name, layer) for name, layers in by_suite.items() for layer in layers]
    if isinstance(experiment.pairing, FromStarts) and experiment.pairing.reach is None:
        return Chosen(suites, tuple(keys), pairs)
    arms = experiment.arms.values()
    needed = {key for pair in pairs for arm in arms for key in steps(keys, pair, arm)}
    return Chosen(suites, tuple(key for key in keys if key in needed), pairs)


def _refuse_one_label(pairs: Sequence[Pair]) -> None:
    """Refuse names of suites that give two pairs of suites the same label.

    A label is both names joined by a hyphen. A single suite counts as a pair with itself, since its
    name labels the rows of its SAEs.
    """
    labels: dict[str, tuple[str, str]] = {}
    alone = [Pair(key, key) for pair in pairs for key in pair]
    for pair in (*pairs, *alone):
        ends = pair.source.suite, pair.target.suite
        if labels.setdefault(pair.suites, ends) != ends:
            raise InputError(
                f"suites: the results of {' with '.join(ends)} and of "
                f"{' with '.join(labels[pair.suites])} would both be called {pair.suites}: choose "
                "another name for a suite"
            )


def _layers_of(source: SaeSource, requested: Sequence[int] | None) -> list[int]:
    available = source.layers()
    if not available:  # the error of ``load`` names the missing and the existing SAEs
        source.load(0)
        raise InputError(f"no SAE was found at {source.name}")
    layers = available if requested is None else sorted(set(requested))
    missing = [layer for layer in layers if layer not in available]
    if missing:
        raise InputError(
            f"layers={layers}: there is no SAE for layer {missing[0]} in {source.name}, "
            f"only for layers {', '.join(map(str, available))}"
        )
    return layers


def load_saes(chosen: Chosen, memory: float, labels: Mapping[str, str]) -> SaeShelf:
    """Load the chosen SAEs, after logging the size of the download from the hub.

    ``memory`` is the memory for SAEs in GiB; ``labels`` has the models of suites, as
    ``Experiment.model_labels``. Raises ``InputError`` if SAEs with the same label belong to
    different language models.
    """
    released = [
        source.chosen(key.layer)
        for key in chosen.keys
        if isinstance(source := chosen.suites[key.suite], ReleasedSaes)
    ]
    log_download((release(name), sae_id) for name, sae_id in released)
    saes = SaeShelf.load(chosen.keys, chosen.suites, memory)
    for label in sorted({"", *labels.values()}):
        of_model = of_label(saes, label, labels)
        names = sorted({sae.origin.model_name for sae in of_model.facts.values()})
        if len(names) > 1:
            raise InputError(
                f"the SAEs belong to different language models: {', '.join(names)}; give a suite "
                "its own model with +model@models.SUITE=PRESET"
            )
    return saes


def of_label(saes: SaeShelf, label: str, labels: Mapping[str, str]) -> SaeShelf:
    """Return the SAEs of one language model."""
    return saes.only([key for key in saes if labels.get(key.suite, "") == label])


def refuse_embedded_model(experiment: Experiment, chosen: Chosen) -> None:
    """Refuse the embedded model, which is the default, for released SAEs, before their download."""
    for name, source in chosen.suites.items():
        model = experiment.models.get(name, experiment.model)
        layers = [key.layer for key in chosen.keys if key.suite == name]
        if model.path == ZOO_PATH and isinstance(source, ReleasedSaes) and layers:
            trained_on = release(source.chosen(layers[0])[0]).model
            raise InputError(
                f"{source.name}: these SAEs were trained on {trained_on}, but the language model "
                "is the embedded one: choose theirs with model= or setting=, or match by weights "
                "alone with evaluations=[]"
            )


def check_fit(model: OpenedModel, saes: SaeShelf) -> None:
    """Raise ``InputError`` if SAEs do not fit the language model, before its weights are loaded."""
    source, config = model.source, model.parts.config.get_text_config()
    d_model, n_layers = config.hidden_size, config.num_hidden_layers
    for key, sae in saes.facts.items():
        if sae.d_model != d_model:
            raise InputError(
                f"the SAE of {key.name} has d_model {sae.d_model}, but the language model "
                f"{source.name} has {d_model}: choose the model that it was trained on"
            )
        trained_on = sae.origin.model_name
        if trained_on and not source.is_called(trained_on):
            raise InputError(
                f"the SAE of {key.name} was trained on {trained_on}, but the language model is "
                f"{source.name}: choose the other model, or set model.name if it is the same under "
                "another name"
            )
    beyond = [key.layer for key in saes if key.layer >= n_layers]
    if beyond:
        raise InputError(f"{source.name} has {n_layers} blocks, so there is no layer {beyond[0]}")


def check_saes(experiment: Experiment, saes: SaeShelf) -> None:
    """Raise, before the first match, errors of evaluations, explanations and folds."""
    for evaluation in experiment.evaluations.values():
        evaluation.check_saes(saes)
    if experiment.explains or experiment.matches_explanations:
        experiment.explain.check(saes)
    folds = {arm.fold for arm in experiment.arms.values()}
    folds |= {"threshold"}  # the fold in which errors are measured
    for by in sorted(folds):
        for sae in saes.facts.values():
            if by in sae.unfoldable:
                raise InputError(sae.unfoldable[by])
    warn_of_biases(saes, experiment.arms)


class RunTexts(NamedTuple):
    """Batches of each text set, and everything that determines its texts."""

    batches: dict[str, tuple[TokenBatch, ...]]
    calibration: dict[str, tuple[TokenBatch, ...]]
    """Batches of the calibration texts; empty unless the run fits quantities to them."""
    facts: dict[str, dict[str, Any]]


def load_tokens(experiment: Experiment, texts: ResolvedTexts, lm: LanguageModel) -> RunTexts:
    """Return the texts in the tokens of a language model; ``InputError`` if they do not fit it."""
    tokens, facts = load_texts(texts, lm)
    for name, of_set in tokens.items():
        lm.refuse_ids(int(of_set.ids.max()), f"the text set {name!r}")
    if POOLED in tokens:
        raise InputError(f"{POOLED!r} is the name of all text sets together; rename the file")
    size = experiment.trainer.batch_size
    if not experiment.calibrates:
        return RunTexts({name: of_set.batches(size) for name, of_set in tokens.items()}, {}, facts)
    halves = experiment.calibration.split(tokens)
    for name, (fitted, evaluated) in halves.items():
        facts[name]["n_calibration"] = len(fitted.lengths)
        facts[name]["n_evaluation"] = len(evaluated.lengths)
    log.info("calibration texts: %s", ", ".join(
        f"{len(fitted.lengths):,} of {len(fitted.lengths) + len(evaluated.lengths):,} {name}"
        for name, (fitted, evaluated) in halves.items()))  # fmt: skip
    return RunTexts(
        {name: evaluated.batches(size) for name, (_, evaluated) in halves.items()},
        {name: fitted.batches(size) for name, (fitted, _) in halves.items()},
        facts,
    )


def warn_of_biases(saes: SaeShelf, arms: Mapping[str, Arm]) -> None:
    """Warn if encoder biases make up most of the vectors that an arm compares.

    A scale near 0, such as a low quantile of a ReLU SAE's activations, makes ``b_enc / scale`` so
    large that a match of all parts is a match of the biases.
    """
    compared = [arm.objective for arm in arms.values() if arm.fold == "threshold"]
    parts = [objective for objective in compared if isinstance(objective, Parts)]
    if not any(0 < part.b_enc >= part.W_dec for part in parts):
        return
    shares = {key: sae.thresholds["bias_share"] for key, sae in saes.facts.items()}
    most = {key: share for key, share in shares.items() if share and float(share) > BIAS_SHARE}
    if most:
        listed = ", ".join(f"{share:.0%} in {key.name}" for key, share in most.items())
        log.warning(
            "matching: the encoder biases make up %s of the squared norm of the folded features, "
            "so the match of all parts is a match of the biases: set objective=decoder, or with "
            "stand_in=activation a higher stand_in.quantile, such as 0.5",
            listed,
        )
