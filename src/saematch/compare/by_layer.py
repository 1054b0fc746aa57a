"""Runs side by side, layer by layer: metrics of each pair, and the agreement of matches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import pandas as pd

from saematch.compare.runs import RunFolder
from saematch.core.columns import share
from saematch.core.match import Match
from saematch.core.pairs import PAIR_COLUMNS, Pair, SaeKey, pair_of, suites_of
from saematch.core.results import Results
from saematch.core.tables import Row, frame_of, rows_of
from saematch.report.frames import has, skipped_layers, table, where

METRICS = ("mse_W_dec", "matching_score", "explained_variance", "judge_score")
"""Metrics that are compared by layer."""
STRATEGIES = ("permute", "permute_raw")
"""Strategies whose explained variance is compared by layer."""
MAX_RUNS = 12
"""Largest number of runs that are compared by layer."""
AGREEMENT = share(
    "agreement", "share of equal entries",
    "share of the entries of a run's match that the match of another run has",
)  # fmt: skip
CHANCE = share(
    "chance", "share of equal entries by chance",
    "expected agreement with a random match of as many entries; 1 / F for permutations",
)  # fmt: skip


_Files = dict[tuple[Pair, str], Path]
"""Files of a run's matches by pair and arm."""


@dataclass(frozen=True, eq=False)
class ByLayer:
    """Runs compared by layer; the frames are empty if there are too few or too many runs."""

    metrics: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Columns ``run``, those of the pair, ``suites``, ``arm``, ``strategy``, ``metric``, ``value``,
    ``low`` and ``high``. Data sets are averaged, without an interval."""
    agreement: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Columns ``run``, ``against_run``, those of the pair, ``arm``, ``agreement`` and ``chance``:
    a row for each two runs and each pair of SAEs and arm that both have."""
    notes: tuple[str, ...] = ()
    """Remarks on what is left out."""


def by_layer(runs: Sequence[RunFolder]) -> ByLayer:
    """Compare runs by layer. Raises ``InputError`` for a damaged file of a match."""
    if len(runs) < 2:
        return ByLayer()
    if len(runs) > MAX_RUNS:
        note = f"{len(runs)} runs are too many to compare by layer (at most {MAX_RUNS})"
        return ByLayer(notes=(f"{note}: choose some with --where",))
    metrics = frame_of([{"run": run.name, **row} for run in runs for row in _metrics(run)])
    files = {run: _match_files(run) for run in runs}
    rows: list[Row] = []
    differing = []
    for both in combinations(runs, 2):
        shared = [key for key in files[both[0]] if key in files[both[1]]]
        equal = [(pair, arm) for pair, arm in shared if _same_saes(*both, pair)]
        rows += [_agreement(both, files, *key) for key in equal]
        if len(equal) < len(shared):
            differing.append(" and ".join(run.name for run in both))
    notes: tuple[str, ...] = ()
    if differing:
        names = "; ".join(differing[:3]) + (" and others" if len(differing) > 3 else "")
        notes = (f"matches of different SAEs are not compared with each other: those of {names}",)
    return ByLayer(metrics, frame_of(rows), notes)


def agreement_by_arm(agreement: pd.DataFrame) -> pd.DataFrame:
    """Return the mean agreement over pairs of SAEs, by pair of runs and arm."""
    keys = ["run", "against_run", "arm"]
    means = agreement.groupby(keys, sort=False, as_index=False)
    return means.agg(
        agreement=("agreement", "mean"), chance=("chance", "mean"), n_pairs=("agreement", "size")
    )


def _metrics(run: RunFolder) -> Iterator[Row]:
    """Yield the metrics of each pair of SAEs of a run."""
    results = run.results
    assert results is not None
    for metric, frame in _frames(results):
        cells = [*PAIR_COLUMNS, "arm", "strategy"]
        names = [metric, f"{metric}_low", f"{metric}_high"]
        frame = frame.assign(**{name: None for name in names if name not in frame})
        frame = frame[frame[metric].notna()]
        for _, of_cell in frame.groupby(cells, sort=False, dropna=False):
            first = rows_of(of_cell)[0]
            values = [of_cell[name].astype("float64").mean() for name in names]
            if len(of_cell) > 1:  # data sets: their intervals have no mean
                values[1:] = [None, None]
            yield {
                **{name: first[name] for name in cells}, "suites": suites_of(first),
                "metric": metric, **dict(zip(("value", "low", "high"), values, strict=True)),
            }  # fmt: skip


def _frames(results: Results) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield each metric with its table, whose rows have an arm and a strategy."""
    matches = table(results.tables, "matches")
    for metric in METRICS:
        if metric == "explained_variance":
            strategies = where(skipped_layers(results.tables), quantile=None)
            if len(strategies):
                yield metric, strategies[strategies["strategy"].isin(STRATEGIES)]
        elif has(matches, metric):
            yield metric, matches.assign(strategy=None)


def _agreement(
    runs: tuple[RunFolder, RunFolder], files: Mapping[RunFolder, _Files], pair: Pair, arm: str
) -> Row:
    """Return the row of one match that both runs have."""
    match, other = (Match.load(files[run][pair, arm])[0] for run in runs)
    return {
        "run": runs[0].name, "against_run": runs[1].name, **pair.columns(), "arm": arm,
        AGREEMENT.name: other.agreement(match),
        CHANCE.name: len(other) / (match.n_source * match.n_target),
    }  # fmt: skip


def _same_saes(run: RunFolder, other: RunFolder, pair: Pair) -> bool:
    """Whether both runs have the same SAEs at both ends of a pair."""
    return all(_identity(run, sae) == _identity(other, sae) for sae in pair)


def _identity(run: RunFolder, sae: SaeKey) -> list[object]:
    """Return what identifies an SAE of a run."""
    assert run.results is not None
    origin = run.results.provenance.get("saes", {}).get(sae.label, {})
    return [origin.get(name) for name in ("release", "sae_id", "revision", "site")]


def _match_files(run: RunFolder) -> _Files:
    """Return the existing files of a run's matches by pair and arm."""
    assert run.results is not None
    files = {}
    for row in run.results.tables.rows("matches"):
        pair, arm = pair_of(row), str(row["arm"])
        path = run.folder / "matches" / arm / f"{pair.label}.safetensors"
        if path.exists():
            files[pair, arm] = path
    return files
