"""Evaluate matches on a language model: skip layers, and see which features fire together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from saematch.core.code import code_of
from saematch.core.errors import InputError
from saematch.core.files import hashed
from saematch.core.match import Match
from saematch.core.pairs import NO_ARM, Pair, SaeKey
from saematch.evaluate.splice import MATCHLESS, Splice, SplicePlan, canonical
from saematch.evaluate.weights import of_least_error, row_errors
from saematch.lm.hooks import LanguageModel
from saematch.lm.source import LmSource
from saematch.matching.arm import Arm
from saematch.matching.matches import MatchSet
from saematch.sae.params import SaeOrigin
from saematch.sae.suites import Saes, SaeShelf
from saematch.texts.sums import TextSums
from saematch.texts.text_pass import TrainerSpec, run_batches
from saematch.texts.tokens import TokenBatch


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


def plan_splices(
    saes: Saes,
    matches: MatchSet,
    arms: Mapping[str, Arm],
    strategies: Sequence[str],
) -> tuple[SplicePlan, list[Cell]]:
    """Lay out what to evaluate at each pair: each arm's strategies, then those without a match.

    What several ask for is evaluated once. Without ``arms`` no layer is skipped for a match; which
    features fire together is counted all the same.
    """
    shelf = SaeShelf.of(saes)
    first: dict[tuple[int, SaeOrigin], SaeKey] = {}
    twins = {
        key: first.setdefault((key.layer, sae.origin), key) for key, sae in shelf.facts.items()
    }
    plan = SplicePlan(shelf.only(first.values()), twins, {}, {})
    cells = []
    for pair in matches.pairs:
        for name, of_arm in matches.by_arm.items():
            match, found = of_arm[pair], matches.hashes[name][pair]
            plan.matched.setdefault(plan.matched_pair(pair, found), match)
            for splice, moved in _of_arm(shelf, arms[name], pair, match, found) if arms else ():
                cells.append(Cell(name, splice, canonical(plan, splice, match)))
                plan.splices.setdefault(cells[-1].evaluated, moved)
        for strategy in strategies:
            splice = Splice(strategy, pair)
            cells.append(Cell(NO_ARM, splice, canonical(plan, splice, None)))
            plan.splices.setdefault(cells[-1].evaluated, None)
    return plan, cells


def _of_arm(
    saes: SaeShelf, arm: Arm, pair: Pair, match: Match, found: str
) -> Iterable[tuple[Splice, Match]]:
    """Yield the splices of an arm, each with the match of the features that go over."""
    errors = None
    for strategy in arm.decode:
        yield Splice(strategy, pair, found), match
        for quantile in map(float, arm.quantiles):
            if errors is None:
                errors = row_errors(saes[pair.source], saes[pair.target], match)
            moved = of_least_error(match, errors, quantile)
            yield Splice(strategy, pair, found, quantile), moved


def evaluate_texts(
    plan: SplicePlan,
    lm: LanguageModel,
    tokens: Mapping[str, tuple[TokenBatch, ...]],
    trainer: TrainerSpec,
    folder: Path,
) -> dict[str, TextSums]:
    """Evaluate the plan on every text set, in one pass over the texts for each of its parts.

    ``folder`` holds one file a part and batch, named by a hash of all that determines its sums.
    What it holds already, from this run or another, is not evaluated again.
    """
    dtype = str(next(lm.parameters()).dtype)
    code = code_of(evaluate_texts, LmSource)
    model = [code, lm.name, lm.revision, dtype, trainer.precision, trainer.device_type]
    files: dict[str, list[tuple[Path, ...]]] = {name: [] for name in tokens}
    for number, part in enumerate(parts := plan.parts(), start=1):
        saes = SaeShelf.of(part.saes).facts
        about = [*model, *([list(key), sae.identity] for key, sae in saes.items())]
        about += [list(part.matched), list(part.splices)]
        for name, batches in tokens.items():
            keys = [hashed([*about, *b.content()]) for b in batches]
            paths = tuple(folder / f"{key}.safetensors" for key in keys)
            label = f"evaluate {name}" + (f" {number}/{len(parts)}" if len(parts) > 1 else "")
            run_batches(trainer, part, lm, batches, label, paths)
            files[name].append(paths)
    return {name: TextSums(tuple(of_set)) for name, of_set in files.items()}
