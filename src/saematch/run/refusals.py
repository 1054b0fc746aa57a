"""What a run leaves out for single pairs, decided from facts before work begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from saematch.core.errors import InputError
from saematch.core.pairs import Pair, Refusal
from saematch.evaluate.plan import counting_refusal, layers_refusal
from saematch.matching.matches import matching_refusals
from saematch.run.experiment import ON_TEXTS, Experiment
from saematch.sae.sites import skipping_refusal
from saematch.sae.stand_in import ActivationQuantile
from saematch.sae.suites import SaeShelf
from saematch.texts.readers import Reader


def find_refusals(
    experiment: Experiment, pairs: Sequence[Pair], saes: SaeShelf
) -> tuple[Refusal, ...]:
    """Return what the run leaves out, from facts alone: matches of pairs, and their evaluations.

    Raises ``InputError`` if no arm can match any pair, if no pair can be evaluated on texts though
    the run is to, and if SAEs that texts are needed for cannot be applied to hidden states.
    """
    refused = matching_refusals(saes.facts, pairs, experiment.arms)
    unmatched = {refusal.pair for refusal in refused if refusal.arm is None}
    matched = [pair for pair in pairs if pair not in unmatched]
    if not matched:
        raise InputError(_nothing_matched(refused))
    _check_sites(experiment, saes)
    if ON_TEXTS & set(experiment.evaluations):
        refused += _text_refusals(experiment, matched, saes)
        check_counted(pairs, refused)
    if "paths" in experiment.evaluations:
        refused += path_refusals(pairs, refused)
    if "features" in experiment.evaluations:
        reason = "vectors of different d_model have no squared error"
        unequal = [pair for pair in matched if len({saes.facts[key].d_model for key in pair}) > 1]
        refused += [Refusal(pair, "features", reason) for pair in unequal]
    if "planted" in experiment.evaluations:
        reason = "planted activations are known within one suite only"
        across = [pair for pair in matched if not pair.within_suite]
        refused += [Refusal(pair, "planted", reason) for pair in across]
    return tuple(refused)


def token_refusals(
    pairs: Sequence[Pair],
    readers: Mapping[str, Reader],
    labels: Mapping[str, str],
    known: Sequence[Refusal],
) -> tuple[Refusal, ...]:
    """Return the pairs of two language models that read different tokens.

    ``readers`` has the models by label; ``known`` has the refusals so far.
    """
    left_out = _uncounted(known)
    refused = []
    for pair in (pair for pair in pairs if pair not in left_out):
        source, target = (readers[labels.get(key.suite, "")] for key in pair)
        if source.lm is not target.lm and not source.reads_like(target):
            reason = (
                f"{source.lm.name} and {target.lm.name} split the texts into different tokens, so "
                "it cannot be counted which features fire on the same token"
            )
            refused.append(Refusal(pair, "co_activation", reason))
    return tuple(refused)


def check_counted(pairs: Sequence[Pair], refused: Sequence[Refusal]) -> None:
    """Refuse a run on texts of which no pair can be evaluated on texts."""
    reasons = _uncounted(refused)
    if reasons.keys() >= set(pairs):
        raise InputError(next(iter(reasons.values())))


def _uncounted(refused: Sequence[Refusal]) -> dict[Pair, str]:
    """Return why pairs are not evaluated on texts; one that no arm matches is among them."""
    return {
        refusal.pair: refusal.reason
        for refusal in refused
        if refusal.evaluation == "co_activation"
        or (refusal.evaluation == "matching" and refusal.arm is None)
    }


def _nothing_matched(refused: Sequence[Refusal]) -> str:
    reasons = {refusal.reason: refusal.pair for refusal in reversed(refused)}
    each = [f"{pair.source.name} and {pair.target.name}: {why}" for why, pair in reasons.items()]
    return f"no pair of SAEs can be matched; {'; '.join(reversed(each))}"


def _check_sites(experiment: Experiment, saes: SaeShelf) -> None:
    """Refuse SAEs that scales or explanations from texts are needed for, if they cannot be had."""
    measured = isinstance(experiment.stand_in, ActivationQuantile)
    if not (measured or (experiment.explains and experiment.explain.on_texts)):
        return
    for sae in saes.facts.values():
        reason = skipping_refusal(sae.origin)
        if reason is not None:
            raise InputError(f"{reason} and stand_in=decoder_norm" if measured else reason)


def _text_refusals(experiment: Experiment, pairs: Sequence[Pair], saes: SaeShelf) -> list[Refusal]:
    """Return the pairs that cannot be counted, then those whose layers cannot be skipped."""
    facts = saes.facts
    counting = {pair: counting_refusal(facts[pair.source], facts[pair.target]) for pair in pairs}
    refused = [Refusal(pair, "co_activation", why) for pair, why in counting.items() if why]
    if "skipping" in experiment.evaluations:
        labels = experiment.model_labels
        skipping = {pair: counting[pair] or layers_refusal(pair, labels) for pair in pairs}
        refused += [Refusal(pair, "skipping", why) for pair, why in skipping.items() if why]
    return refused


def path_refusals(pairs: Sequence[Pair], refused: Sequence[Refusal]) -> list[Refusal]:
    """Return the pairs that no path reaches: from a suite's first pair that the run leaves out.

    Paths go through all arms, so a pair that one arm cannot match ends those of every arm.
    """
    reasons = {
        refusal.pair: refusal.reason
        if refusal.arm is None
        else f"the arm {refusal.arm} cannot match the next pair: {refusal.reason}"
        for refusal in refused
        if refusal.evaluation in ("matching", "co_activation")
    }
    ended: dict[str, str] = {}
    beyond = []
    for pair in pairs:
        if pair in reasons:
            why = f"no path goes beyond {pair.source.name}: {reasons[pair]}"
            ended.setdefault(pair.suites, why)
        if pair.suites in ended:
            beyond.append(Refusal(pair, "paths", ended[pair.suites]))
    return beyond
