"""Matches and evaluations of single pairs that a run leaves out, decided before work begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from saematch.core.errors import InputError
from saematch.core.pairs import Pair, Refusal
from saematch.evaluate.evaluation import Evaluation, PairFacts
from saematch.matching.matchers.matcher import WidthBoundMatcher
from saematch.matching.matches import matched_paths, matching_refusals
from saematch.runs.experiment import Experiment
from saematch.sae.recorders import Models
from saematch.sae.sites import skipping_refusal
from saematch.sae.stand_in import ActivationQuantile
from saematch.sae.suites import SaeShelf
from saematch.texts.readers import Reader


def find_refusals(
    experiment: Experiment, pairs: Sequence[Pair], saes: SaeShelf
) -> tuple[Refusal, ...]:
    """Return the matches and evaluations of pairs that the run leaves out, from facts alone.

    Raises ``InputError`` if no arm can match any pair, if the run has evaluations on texts that
    apply to no pair, if an arm compares SAEs of two language models on texts, if a matcher needs
    wider SAEs, and if scales or explanations need texts but an SAE cannot be applied to hidden
    states.
    """
    refused = matching_refusals(saes.facts, pairs, experiment.arms)
    unmatched = {refusal.pair for refusal in refused if refusal.arm is None}
    if unmatched >= set(pairs):
        raise InputError(_nothing_matched(refused))
    _check_sites(experiment, saes)
    models = Models(experiment.model_labels)
    _check_activity(experiment, pairs, models, refused)
    _check_widths(experiment, pairs, saes)
    facts = [
        PairFacts(pair, saes.facts[pair.source], saes.facts[pair.target], models) for pair in pairs
    ]
    for name in sorted(experiment.evaluations, key=lambda name: _uses_refusals(experiment, name)):
        reasons = experiment.evaluations[name].refusals(facts, tuple(refused))
        refused += [Refusal(pair, name, reason) for pair, reason in reasons]
    check_texts(experiment, pairs, refused)
    return tuple(refused)


def _check_activity(
    experiment: Experiment, pairs: Sequence[Pair], models: Models, refused: Sequence[Refusal]
) -> None:
    """Refuse arms that read the texts for a pair of two language models.

    Arms refuse SAEs that name their models; other SAEs are caught here.
    """
    left_out = {(refusal.pair, refusal.arm) for refusal in refused}
    for name, arm in experiment.arms.items():
        for pair in pairs:
            if not arm.reads_texts or {(pair, name), (pair, None)} & left_out:
                continue
            if models.of(pair.source) != models.of(pair.target):
                raise InputError(
                    f"arms.{name} compares {pair.source.name} and {pair.target.name} on texts, but "
                    "they have two language models: choose an objective of weights without "
                    "transported vectors, or leave out this pair or arm"
                )


def _check_widths(experiment: Experiment, pairs: Sequence[Pair], saes: SaeShelf) -> None:
    """Refuse matchers whose settings need more features than a target has."""
    for name, paths in matched_paths(saes.facts, pairs, experiment.arms).items():
        matcher = experiment.arms[name].matcher
        if not isinstance(matcher, WidthBoundMatcher):
            continue
        for key in dict.fromkeys(key for path in paths for key in path[1:]):
            reason = matcher.width_refusal(saes.facts[key].n_features)
            if reason is not None:
                raise InputError(f"arms.{name}: {reason} ({key.name})")


def _uses_refusals(experiment: Experiment, name: str) -> bool:
    """Return whether an evaluation's refusals may depend on those of the other evaluations."""
    return type(experiment.evaluations[name]).refusals is not Evaluation.refusals


def token_refusals(
    experiment: Experiment,
    pairs: Sequence[Pair],
    readers: Mapping[str, Reader],
    refused: Sequence[Refusal],
) -> tuple[Refusal, ...]:
    """Return refusals of pairs of two language models that read different tokens.

    ``readers`` has the models by label; ``refused`` has the refusals so far.
    """
    refusals: list[Refusal] = []
    for pair in pairs:
        source, target = (readers[experiment.model_labels.get(key.suite, "")] for key in pair)
        if source.lm is target.lm or source.reads_like(target):
            continue
        reason = (
            f"{source.lm.name} and {target.lm.name} split the texts into different tokens, so "
            "features that fire on the same token cannot be counted"
        )
        refusals += [
            Refusal(pair, name, reason)
            for name, evaluation in experiment.evaluations.items()
            if evaluation.reads_texts and pair not in _left_out(refused, name)
        ]
    return tuple(refusals)


def check_texts(experiment: Experiment, pairs: Sequence[Pair], refused: Sequence[Refusal]) -> None:
    """Raise ``InputError`` if every evaluation on texts leaves out every pair."""
    on_texts = [name for name, e in experiment.evaluations.items() if e.reads_texts]
    reasons = [_left_out(refused, name) for name in on_texts]
    if reasons and all(of_evaluation.keys() >= set(pairs) for of_evaluation in reasons):
        raise InputError(next(iter(reasons[0].values())))


def no_explanations(experiment: Experiment, saes: SaeShelf) -> str:
    """Return why the run explains no features; empty if it does."""
    if experiment.explains:
        return ""
    if not experiment.explains_if_possible:
        return (
            "it reads explanations that the run makes while it evaluates texts; to make or load "
            "them in any run, add explain to evaluations"
        )
    reasons = (skipping_refusal(sae.origin) for sae in saes.facts.values())
    return next(filter(None, reasons), "")


def _left_out(refused: Sequence[Refusal], name: str) -> dict[Pair, str]:
    """Return the reason by pair that an evaluation leaves out, or that no arm matches."""
    return {
        refusal.pair: refusal.reason
        for refusal in refused
        if refusal.evaluation == name or (refusal.evaluation == "matching" and refusal.arm is None)
    }


def _nothing_matched(refused: Sequence[Refusal]) -> str:
    reasons = {refusal.reason: refusal.pair for refusal in reversed(refused)}
    shown = [
        f"{pair.source.name} and {pair.target.name}: {reason}" for reason, pair in reasons.items()
    ]
    return f"no pair of SAEs can be matched; {'; '.join(reversed(shown))}"


def _check_sites(experiment: Experiment, saes: SaeShelf) -> None:
    """Refuse SAEs without activations on texts, if scales or explanations need them."""
    measured = isinstance(experiment.stand_in, ActivationQuantile)
    if not (measured or experiment.explains_texts):
        return
    for sae in saes.facts.values():
        reason = skipping_refusal(sae.origin)
        if reason is not None:
            raise InputError(f"{reason} and stand_in=decoder_norm" if measured else reason)
