"""The data files of a page, written from a run's folder.

Files, in the page's folder ``data-…`` (``blob.py`` has their format). SAEs and pairs are numbered
as in ``run``.

| name | content |
| --- | --- |
| ``run`` | object: facts of the run, its SAEs, pairs, arms, first features, tables, figures |
| ``tables/<table>/<part>`` | rows of a table: JSON lists, by column |
| ``features/<sae>/<block>`` | numbers and explanations of a block of features |
| ``links/<arm>/<pair>/<block>`` | best partners of a block of source features |
| ``sources/<arm>/<pair>/<block>`` | best sources of a block of target features |
| ``best/<arm>/<pair>`` | best partner of every source, and best source of every target feature |
| ``verify/<arm>/<pair>/<block>`` | effects of a block's tested features on their best partner |
| ``contexts/<sae>/<chunk>`` | histograms and contexts of some features (``contexts.py``) |
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from saematch.core.pairs import Pair, SaeKey
from saematch.core.progress import progress
from saematch.core.tables import rows_of
from saematch.evaluate.effects import NONE
from saematch.explorer.blob import cut, unsigned, write_object, write_parts
from saematch.explorer.contexts import shortened, write_contexts
from saematch.explorer.links import Links, partners, sources
from saematch.explorer.run_data import RunData
from saematch.explorer.start import verified_start

BLOCK = 1024
"""Number of features in a block."""
TABLE_BYTES = 2**21
"""Approximate size of the JSON of a part of a table."""
LABEL_CHARACTERS = 1000
"""Longest text of a label on the page."""
LABELS = ("explanation", "explainer", "top_tokens")
"""Columns of text among those of features."""
EFFECTS = ("n_events", "n_active", "off_rate", "effect", "effect_low", "effect_high", "floor_95")
"""Columns of numbers in the files of ``verify``."""


def write_data(run: RunData, folder: Path, facts: dict[str, Any]) -> None:
    """Write the data files of a run to ``folder``; ``facts`` are further entries of ``run``."""
    saes, pairs = [], []
    with progress("write page", len(run.saes) + len(run.pairs), "part") as bar:
        for key in run.saes:
            saes.append(_write_sae(run, key, folder))
            bar.advance()
        for pair in run.pairs:
            pairs.append(_write_pair(run, pair, folder))
            bar.advance()
    tables = [save_rows(folder, name, frame) for name, frame in run.results.tables.items()]
    write_object(folder, "run", {
        "block": BLOCK, "saes": saes, "pairs": pairs,
        "arms": list(run.arms), "tables": tables, "start": _start(run), **facts,
    })  # fmt: skip


def _start(run: RunData) -> list[dict[str, int]]:
    keys = list(run.saes)
    return [
        {"sae": keys.index(key), "feature": feature, "n_passing": n_passing}
        for key, feature, n_passing in verified_start(run)
    ]


def blocks(n: int) -> Iterator[tuple[int, slice]]:
    """Yield the number and the features of each block."""
    for number, start in enumerate(range(0, n, BLOCK)):
        yield number, slice(start, min(start + BLOCK, n))


def _write_sae(run: RunData, key: SaeKey, folder: Path) -> dict[str, Any]:
    number = list(run.saes).index(key)
    frame = run.features(key)
    numbers = [c for c in frame if c not in LABELS and c != "histogram"]
    for block, features in blocks(len(frame)):
        part = frame.iloc[features]
        parts: dict[str, Any] = {c: _stored(part[c]) for c in numbers}
        parts |= {c: _texts(part[c]) for c in LABELS if c in part}
        write_parts(folder, f"features/{number}/{block}", parts)
    return {
        "suite": key.suite, "layer": key.layer, "n_features": len(frame), "columns": numbers,
        "labels": [c for c in LABELS if c in frame],
        "chunks": write_contexts(run, key, frame.get("histogram"), folder),
    }  # fmt: skip


def _stored(column: pd.Series) -> np.ndarray:
    """Return numbers for a data file: counts stay exact, other numbers are rounded there."""
    is_count = column.dtype.kind in "iu" and column.notna().all() and (column >= 0).all()
    return unsigned(column.to_numpy()) if is_count else column.to_numpy(float)


def _texts(column: pd.Series) -> list[str | None]:
    return [
        shortened(value, LABEL_CHARACTERS) if isinstance(value, str) else None for value in column
    ]


def _write_pair(run: RunData, pair: Pair, folder: Path) -> dict[str, Any]:
    number = run.pairs.index(pair)
    source, target = (list(run.saes).index(key) for key in pair)
    verified = run.verified(pair)
    arms: dict[str, dict[str, Any]] = {}
    for arm in run.arms:
        match = run.match(arm, pair)
        if match is None:
            continue
        forward, backward = partners(match), sources(match)
        place = f"{arm}/{number}"
        _write_links(folder, f"links/{place}", forward)
        _write_links(folder, f"sources/{place}", backward)
        write_parts(folder, f"best/{place}", {
            "partner": _numbers(forward.best),
            "source": _numbers(backward.best),
        })  # fmt: skip
        of_arm = None if verified is None else verified[verified["arm"] == arm]
        if of_arm is not None:
            _write_verified(folder, f"verify/{place}", of_arm, match.n_source)
        arms[arm] = {
            "n_entries": len(match.rows), "scored": match.scores is not None,
            "verified": of_arm is not None,
        }  # fmt: skip
    return {"source": source, "target": target, "arms": arms}


def _write_verified(folder: Path, place: str, verified: pd.DataFrame, n_source: int) -> None:
    tested = verified["feature"].to_numpy()
    for block, features in blocks(n_source):
        part = verified[(tested >= features.start) & (tested < features.stop)]
        write_parts(folder, f"{place}/{block}", {
            "feature": part["feature"].to_numpy(np.uint32),
            **{c: _stored(part[c]) for c in EFFECTS},
            "finding": part["finding"].tolist(),
        })  # fmt: skip


def _write_links(folder: Path, place: str, links: Links) -> None:
    """Write blocks of links; ``starts`` counts from each block's first entry."""
    for block, features in blocks(len(links.starts) - 1):
        starts = links.starts[features.start : features.stop + 1]
        entries = slice(starts[0], starts[-1])
        parts = {
            "starts": (starts - starts[0]).astype(np.uint16),
            "others": _numbers(links.others[entries]),
            "weights": links.weights[entries],
        }
        if links.scores is not None:
            parts["scores"] = links.scores[entries]
        write_parts(folder, f"{place}/{block}", parts)


def _numbers(features: np.ndarray) -> np.ndarray:
    """Return numbers of features in 16 or 32 bits; ``NONE`` becomes the greatest number."""
    small = not len(features) or features.max() < np.iinfo(np.uint16).max
    kind = np.uint16 if small else np.uint32
    return np.where(features == NONE, np.iinfo(kind).max, features).astype(kind)


def save_rows(folder: Path, name: str, frame: pd.DataFrame) -> dict[str, Any]:
    """Write the parts of a table; return its name, number of rows and number of parts."""
    rows = rows_of(frame)
    parts = cut(np.array([len(json.dumps(row)) for row in rows], np.int64), TABLE_BYTES)
    for number, part in enumerate(parts):
        columns = {str(column): [row[column] for row in rows[part]] for column in frame}
        write_parts(folder, f"tables/{name}/{number}", {"columns": columns})
    return {"name": name, "n_rows": len(rows), "n_parts": len(parts)}
