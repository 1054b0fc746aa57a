"""Evaluate matches on a language model: skip layers, and see which features fire together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from saematch.core.code import code_of
from saematch.core.errors import InputError
from saematch.core.files import hashed
from saematch.core.match import Match
from saematch.core.pairs import NO_ARM, Pair, Refusal, SaeKey
from saematch.evaluate.splice import MATCHLESS, Splice, SplicePlan, canonical
from saematch.evaluate.weights import FoldedPair, of_least_error, row_errors
from saematch.lm.hooks import LanguageModel
from saematch.lm.source import LmSource
from saematch.matching.arm import Arm
from saematch.matching.matches import MatchSet
from saematch.sae.params import SaeOrigin
from saematch.sae.sites import is_skippable, skipping_refusal
from saematch.sae.suites import SaeFacts, Saes, SaeShelf
from saematch.texts.readers import Reader
from saematch.texts.sums import TextSums
from saematch.texts.text_pass import run_batches
from saematch.texts.tokens import TokenBatch
from saematch.texts.trainer import TrainerSpec


@dataclass(frozen=True)
class Cell:
    """One row of the table ``strategies``, but for the data set: a splice and who asked for it."""

    arm: str
    splice: Splice
    """As asked for; its canonical form is what was evaluated."""
    evaluated: Splice


def check_strategies(strategies: Sequence[str]) -> None:
    """Refuse a strategy that does not exist or that belongs to an arm."""
    unknown = [name for name in strategies if name not in MATCHLESS]
    if unknown:
        raise InputError(
            f"unknown strategy {unknown[0]!r}: strategies may hold {', '.join(MATCHLESS)}; those "
            "with a match are set by each arm's decode"
        )


def counting_refusal(source: SaeFacts, target: SaeFacts) -> str | None:
    """Return why it cannot be counted which features of two SAEs fire together, else None."""
    return skipping_refusal(source.origin) or skipping_refusal(target.origin)


def layers_refusal(pair: Pair, models: Mapping[str, str]) -> str | None:
    """Return why no layers can be skipped from source to target, None if they can.

    ``models`` labels the language model of each suite, as ``SplicePlan.models`` does.
    """
    source, target = pair
    if models.get(source.suite, "") != models.get(target.suite, ""):
        return f"{source.suite} and {target.suite} are SAEs of two language models"
    if source.layer == target.layer:
        return f"both SAEs are of layer {source.layer}, so there is no layer to skip"
    if source.layer > target.layer:
        return f"layer {target.layer} comes before layer {source.layer}, so no layer can be skipped"
    return None


def plan_splices(
    saes: Saes,
    matches: MatchSet,
    arms: Mapping[str, Arm],
    strategies: Sequence[str],
    refused: Sequence[Refusal] = (),
    models: Mapping[str, str] | None = None,
) -> tuple[SplicePlan, list[Cell]]:
    """Lay out what to evaluate at each pair: each arm's strategies, then those without a match.

    What several ask for is evaluated once. Without ``arms`` no layer is skipped for a match; which
    features fire together is counted all the same. ``refused`` names the pairs that skipping and
    counting leave out; ``models`` labels the language model of each suite that has its own.
    """
    shelf, models = SaeShelf.of(saes), models or {}
    first: dict[tuple[int, SaeOrigin, str], SaeKey] = {}
    twins = {
        key: first.setdefault((key.layer, sae.origin, models.get(key.suite, "")), key)
        for key, sae in shelf.facts.items()
        if is_skippable(sae.origin)
    }
    plan = SplicePlan(shelf.only(first.values()), twins, {}, {}, models)
    left_out = {(refusal.pair, refusal.evaluation) for refusal in refused}
    cells = []
    for pair in matches.pairs:
        skips = (pair, "skipping") not in left_out
        errors = _row_errors(shelf, matches, pair, arms) if skips else {}
        for name, match in matches.of(pair).items():
            found = matches.hashes[name][pair]
            if (pair, "co_activation") not in left_out:
                plan.matched.setdefault(plan.matched_pair(pair, found), match)
            asked = _of_arm(arms[name], pair, match, found, errors) if arms and skips else ()
            for splice, moved in asked:
                cells.append(Cell(name, splice, canonical(plan, splice, match)))
                plan.splices.setdefault(cells[-1].evaluated, moved)
        for strategy in strategies if skips else ():
            splice = Splice(strategy, pair)
            cells.append(Cell(NO_ARM, splice, canonical(plan, splice, None)))
            plan.splices.setdefault(cells[-1].evaluated, None)
    return plan, cells


def _row_errors(
    saes: SaeShelf, matches: MatchSet, pair: Pair, arms: Mapping[str, Arm]
) -> dict[str, Tensor]:
    """Return the row errors of the matches whose arms have quantiles, by the match's hash."""
    ranked = {
        matches.hashes[name][pair]: match
        for name, match in matches.of(pair).items()
        if name in arms and arms[name].decode and arms[name].quantiles
    }
    if not ranked:
        return {}
    folded = FoldedPair(saes[pair.source], saes[pair.target])
    return {key: row_errors(folded, match) for key, match in ranked.items()}


def _of_arm(
    arm: Arm, pair: Pair, match: Match, key: str, errors: Mapping[str, Tensor]
) -> Iterable[tuple[Splice, Match]]:
    """Yield the splices of an arm, each with the match of the features that it transports.

    ``key`` is the match's hash; ``errors`` holds the row errors by hash.
    """
    for strategy in arm.decode:
        yield Splice(strategy, pair, key), match
        for quantile in map(float, arm.quantiles):
            moved = of_least_error(match, errors[key], quantile)
            yield Splice(strategy, pair, key, quantile), moved


def evaluate_texts(
    plan: SplicePlan,
    lm: LanguageModel,
    tokens: Mapping[str, tuple[TokenBatch, ...]],
    trainer: TrainerSpec,
    folder: Path,
    others: Mapping[str, Reader] | None = None,
) -> dict[str, TextSums]:
    """Evaluate the plan on every text set, in one pass over the texts for each of its parts.

    ``others`` holds the language models of suites that have their own, by label.

    ``folder`` holds one file a part and batch, named by a hash of all that determines its sums.
    What it holds already, from this run or another, is not evaluated again.
    """
    readers = {"": Reader(lm, tokens), **(others or {})}
    code = code_of(evaluate_texts, LmSource)
    files: dict[str, list[tuple[Path, ...]]] = {name: [] for name in tokens}
    for number, part in enumerate(parts := plan.parts(), start=1):
        lm = readers[part.model].lm
        beside = {label: readers[label].lm for label in part.labels if label != part.model}
        part = replace(part, others=beside)
        saes = SaeShelf.of(part.saes).facts
        about = [code, trainer.precision, trainer.device_type]
        about += [[label, *_named(readers[label].lm)] for label in (part.model, *beside)]
        about += [[list(k), part.model_of(k), sae.identity] for k, sae in saes.items()]
        about += [list(part.matched), list(part.splices)]
        for name, batches in readers[part.model].tokens.items():
            keys = [hashed([*about, *b.content()]) for b in batches]
            paths = tuple(folder / f"{key}.safetensors" for key in keys)
            label = f"evaluate {name}" + (f" {number}/{len(parts)}" if len(parts) > 1 else "")
            run_batches(trainer, part, lm, batches, label, paths)
            files[name].append(paths)
    return {name: TextSums(tuple(of_set)) for name, of_set in files.items()}


def _named(lm: LanguageModel) -> list[str | None]:
    """Return what determines a model's hidden states."""
    return [lm.name, lm.revision, str(next(lm.parameters()).dtype)]
