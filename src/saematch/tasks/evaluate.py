"""Evaluate matches on a language model: skip layers, and see which features fire together."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from saematch.data.tokens import TokenBatch
from saematch.evals.runner import TrainerSpec, evaluate
from saematch.evals.splice import MATCHLESS, NO_ARM, Cell, SplicePlan
from saematch.evals.stats import CoActivation, Totals, co_activation, explained_variance
from saematch.lm.hooks import LanguageModel
from saematch.matching.arm import Arm
from saematch.results import Row
from saematch.sae.params import SaeParams
from saematch.tasks.match import MatchSet


def check_strategies(strategies: Sequence[str]) -> None:
    """Refuse a strategy that does not exist or that belongs to an arm."""
    unknown = [name for name in strategies if name not in MATCHLESS]
    if unknown:
        raise ValueError(
            f"unknown strategy {unknown[0]!r}: strategies may hold {', '.join(MATCHLESS)}; those "
            "with a match are set by each arm's decode"
        )


def plan_splices(
    saes: Mapping[int, SaeParams],
    matches: MatchSet,
    arms: Mapping[str, Arm],
    strategies: Sequence[str],
) -> SplicePlan:
    """Lay out what to evaluate: each arm's own strategies, then those that need no match."""
    cells = [Cell(name, strategy) for name, arm in arms.items() for strategy in arm.decode]
    cells += [Cell(NO_ARM, strategy) for strategy in strategies]
    return SplicePlan(matches.pairs, dict(saes), dict(matches.by_arm), tuple(cells))


def evaluate_texts(
    plan: SplicePlan,
    matches: MatchSet,
    lm: LanguageModel,
    tokens: Mapping[str, tuple[TokenBatch, ...]],
    trainer: TrainerSpec,
    folder: Path,
) -> dict[str, Totals]:
    """Evaluate the plan on every text set; what ``folder`` holds already is not done again."""
    cells = [dataclasses.astuple(cell) for cell in plan.cells]
    dtype = str(next(lm.parameters()).dtype)
    totals = {}
    for name, batches in tokens.items():
        ids = [batch.ids.tolist() for batch in batches]
        about = [matches.keys, plan.pairs, cells, lm.revision, dtype, trainer.precision, ids]
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]
        path = folder / f"{name}.safetensors"
        totals[name] = evaluate(trainer, plan, lm, batches, f"evaluate {name}", path, key)
    return totals


def strategy_rows(plan: SplicePlan, by_set: Mapping[str, Totals]) -> list[Row]:
    """Return the rows of the table ``strategies``: one for a pair, arm, data set and strategy."""
    rows: list[Row] = []
    for place, (earlier, later) in enumerate(plan.pairs):
        at = plan.layers.index(later)
        for dataset, t in by_set.items():
            n_tokens, n_targets = int(t.n_tokens), int(t.n_targets)
            original = (t.loss_original / n_targets).item()
            for number, cell in enumerate(plan.cells):
                sums = (t.error_sum[place, number], t.error_square[place, number])
                loss = (t.loss[place, number] / n_targets).item()
                rows.append(
                    {
                        "layer_from": earlier,
                        "layer_to": later,
                        "arm": cell.arm,
                        "dataset": dataset,
                        "strategy": cell.strategy,
                        "explained_variance": explained_variance(
                            *sums, t.x_sum[at], t.x_square[at], n_tokens
                        ),
                        "delta_loss": loss - original,
                        "loss": loss,
                        "loss_original": original,
                        "n_tokens": n_tokens,
                        "n_targets": n_targets,
                    }
                )
    return rows


def activation_rows(plan: SplicePlan, by_set: Mapping[str, Totals]) -> list[Row]:
    """Return the rows of the table ``activations``: co-activation by pair, arm and data set."""
    return [
        {
            "layer_from": plan.pairs[place][0],
            "layer_to": plan.pairs[place][1],
            "arm": arm,
            "dataset": dataset,
            **dataclasses.asdict(score(plan, [totals], place, arm)),
        }
        for place in range(len(plan.pairs))
        for arm in plan.matches
        for dataset, totals in by_set.items()
    ]


def score(plan: SplicePlan, parts: Sequence[Totals], place: int, arm: str) -> CoActivation:
    """Score one arm's match of one pair by co-activation, counts of all text sets added up."""
    earlier, later = (plan.layers.index(layer) for layer in plan.pairs[place])
    number = list(plan.matches).index(arm)
    both = sum(getattr(t, f"both_{place}")[number] for t in parts)
    fired_from = sum(getattr(t, f"fired_{earlier}") for t in parts)
    fired_to = sum(getattr(t, f"fired_{later}") for t in parts)
    partners = plan.matches[arm][place].partners()
    fired_partner = torch.where(partners >= 0, fired_to[partners.clamp(min=0)], 0)
    return co_activation(both, fired_from, fired_partner)


def layer_rows(plan: SplicePlan, by_set: Mapping[str, Totals]) -> list[Row]:
    """Return the rows of the table ``layers``: each layer's SAE as it was measured here."""
    rows: list[Row] = []
    n_tokens = sum(int(t.n_tokens) for t in by_set.values())
    for place, layer in enumerate(plan.layers):
        fired = sum(getattr(t, f"fired_{place}") for t in by_set.values())
        square = sum(t.x_square[place].item() for t in by_set.values())
        rows.append(
            {
                "layer": layer,
                "mean_l0": int(fired.sum()) / n_tokens,
                "n_dead": int((fired == 0).sum()),
                "rms_norm": (square / n_tokens) ** 0.5,
                "n_tokens": n_tokens,
            }
        )
    return rows
