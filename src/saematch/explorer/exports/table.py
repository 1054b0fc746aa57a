"""Export of all links of a run as one tidy table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from saematch.core.errors import InputError
from saematch.core.files import replacing
from saematch.core.pairs import Pair
from saematch.core.safe_text import for_spreadsheets
from saematch.explorer.links import N_PARTNERS, Links, partners
from saematch.explorer.run_data import RunData

EVIDENCE = ("off_rate", "effect", "effect_low", "effect_high", "floor_95", "finding")
"""Columns that ``verify`` measured, for links to the best partner of a tested feature."""
OF_ENDS = ("density", "explanation")
"""Columns of features, which a link has twice."""


class LinkTable(NamedTuple):
    """Links, and the number of links that are not among the best."""

    frame: pd.DataFrame
    n_left_out: int


def links_table(
    run: RunData, arms: Sequence[str], pairs: Sequence[Pair], top: int = N_PARTNERS
) -> LinkTable:
    """Return a row for each of the ``top`` best partners of each source feature.

    Columns: those of the pair; ``source_feature``, ``target_feature``, ``arm``; ``rank`` from 1;
    ``weight``, ``score``; ``source_density``, ``target_density``; the columns in ``EVIDENCE``;
    ``source_explanation``, ``target_explanation``. A value that the run lacks is missing. Raises
    ``InputError`` if the arms matched none of the pairs.
    """
    parts = list(_parts(run, arms, pairs, top))
    if not parts:
        raise InputError(f"{run.folder}: the chosen arms matched none of the chosen pairs")
    frames, counts = zip(*parts, strict=True)
    frame = pd.concat(frames, ignore_index=True)
    return LinkTable(frame, sum(counts) - len(frame))


def save_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV that is safe in spreadsheets, or as Parquet, by the file's ending."""
    with replacing(path) as part:
        if path.suffix == ".csv":
            for_spreadsheets(table).to_csv(part, index=False)
        else:
            table.to_parquet(part, index=False)


def _parts(
    run: RunData, arms: Sequence[str], pairs: Sequence[Pair], top: int
) -> Iterator[tuple[pd.DataFrame, int]]:
    """Yield the links of each match, and its number of entries."""
    for pair in pairs:
        sides = [run.features(key).reindex(columns=list(OF_ENDS)) for key in pair]
        verified = run.verified(pair)
        for arm in arms:
            match = run.match(arm, pair)
            if match is not None:
                links = _rows(pair, arm, partners(match, top))
                yield _with_evidence(_with_ends(links, sides), verified), len(match.rows)


def _rows(pair: Pair, arm: str, links: Links) -> pd.DataFrame:
    """Return a row for each link."""
    counts = np.diff(links.starts)
    features = np.repeat(np.arange(len(counts)), counts)
    n = len(features)
    return pd.DataFrame({
        **{name: [value] * n for name, value in pair.columns().items()},
        "source_feature": features,
        "target_feature": links.others,
        "arm": [arm] * n,
        "rank": np.arange(n) - np.repeat(links.starts[:-1], counts) + 1,
        "weight": links.weights,
        "score": np.full(n, np.nan) if links.scores is None else links.scores,
    })  # fmt: skip


def _with_ends(links: pd.DataFrame, sides: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return links with the columns of their features."""
    for column in OF_ENDS:
        for end, side in zip(("source", "target"), sides, strict=True):
            values = side[column].astype(float if column == "density" else object)
            links[f"{end}_{column}"] = values.to_numpy()[links[f"{end}_feature"]]
    return links


def _with_evidence(links: pd.DataFrame, verified: pd.DataFrame | None) -> pd.DataFrame:
    """Return links with the results of ``verify``, before the explanations."""
    keys = ["arm", "source_feature", "target_feature"]
    names = {"feature": "source_feature", "partner": "target_feature"}
    if verified is None:
        evidence = pd.DataFrame({name: links[name][:0] for name in keys})
    else:
        evidence = verified.rename(columns=names)
    evidence = evidence.reindex(columns=[*keys, *EVIDENCE])
    evidence["finding"] = evidence["finding"].astype(object)
    table = links.merge(evidence, how="left", on=keys)
    texts = [f"{end}_explanation" for end in ("source", "target")]
    return table[[name for name in table if name not in texts] + texts]
