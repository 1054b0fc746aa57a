"""The data files of a page, written from a run's folder.

Files, in ``data/`` (``blob.py`` has their format). SAEs and pairs are numbered as in ``run``.

| name | content |
| --- | --- |
| ``run`` | object: facts of the run, its SAEs, pairs, arms, tables and figures |
| ``tables/<table>/<part>`` | rows of a table: JSON lists, by column |
| ``features/<sae>/<block>`` | numbers and explanations of a block of features |
| ``links/<arm>/<pair>/<block>`` | best partners of a block of source features |
| ``sources/<arm>/<pair>/<block>`` | best sources of a block of target features |
| ``best/<arm>/<pair>`` | best partner of every source, and best source of every target feature |
| ``verify/<arm>/<pair>`` | effects of tested source features on their best partner |
| ``contexts/<sae>/<chunk>`` | histograms and contexts of the features that have them |
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from saematch.core.pairs import Pair, SaeKey
from saematch.core.tables import rows_of
from saematch.evaluate.effects import NONE
from saematch.explorer.blob import rounded, write_object, write_parts
from saematch.explorer.links import Links, partners, sources
from saematch.explorer.run_data import RunData

BLOCK = 1024
"""Number of features in a block."""
CHUNK = 128
"""Number of features in a chunk of contexts."""
TABLE_CELLS = 100_000
"""Largest number of cells in a part of a table."""
SCORE_BITS, NUMBER_BITS = 11, 8
"""Bits of the mantissa of scores and of other numbers: 3 to 4 and 2 to 3 digits."""
LABELS = ("explanation", "explainer", "top_tokens")
"""Columns of text among those of features."""
EFFECTS = ("n_events", "n_active", "off_rate", "effect", "effect_low", "effect_high", "floor_95")
"""Columns of numbers in the files of ``verify``."""


def write_data(run: RunData, folder: Path, facts: dict[str, Any]) -> None:
    """Write the data files of a run to ``folder``; ``facts`` are further entries of ``run``."""
    work = [*run.saes, *run.pairs]
    described: list[dict[str, Any]] = []
    for item in tqdm(work, desc="page", unit="file", leave=False):
        if isinstance(item, SaeKey):
            described.append(_write_sae(run, item, folder))
        else:
            described.append(_write_pair(run, item, folder))
    tables = [_write_table(folder, name, frame) for name, frame in run.results.tables.items()]
    n = len(run.saes)
    write_object(folder, "run", {
        "block": BLOCK, "chunk": CHUNK, "saes": described[:n], "pairs": described[n:],
        "arms": list(run.arms), "tables": tables, **facts,
    })  # fmt: skip


def blocks(n: int, size: int = BLOCK) -> Iterator[tuple[int, slice]]:
    """Yield the number and the features of each block."""
    for number, start in enumerate(range(0, n, size)):
        yield number, slice(start, min(start + size, n))


def _write_sae(run: RunData, key: SaeKey, folder: Path) -> dict[str, Any]:
    number = list(run.saes).index(key)
    frame = run.features(key)
    numbers = [c for c in frame if c not in LABELS and c != "histogram"]
    for block, features in blocks(len(frame)):
        part = frame.iloc[features]
        parts: dict[str, Any] = {c: rounded(part[c].to_numpy(float), NUMBER_BITS) for c in numbers}
        parts |= {c: _texts(part[c]) for c in LABELS if c in part}
        write_parts(folder, f"features/{number}/{block}", parts)
    return {
        "suite": key.suite, "layer": key.layer, "n_features": len(frame), "columns": numbers,
        "labels": [c for c in LABELS if c in frame],
        "chunks": _write_contexts(run, key, number, frame, folder),
    }  # fmt: skip


def _texts(column: pd.Series) -> list[str | None]:
    return [value if isinstance(value, str) else None for value in column]


def _write_contexts(
    run: RunData, key: SaeKey, number: int, frame: pd.DataFrame, folder: Path
) -> list[int]:
    """Write histograms and contexts of an SAE's features; return the numbers of the chunks.

    A chunk maps a feature to its ``histogram`` and ``contexts``. A context has ``dataset``,
    ``text``, ``start``, ``tokens``, ``values`` and ``partners``, which maps ``<sae>:<feature>`` to
    the partner's activations. Activations are rounded to three digits.
    """
    contexts, of_partners = run.contexts(key), run.partners(key)
    if contexts is None or of_partners is None:
        return []
    saes = list(run.saes)
    partner_values: dict[tuple[int, int], dict[str, list[float]]] = {}
    for row in of_partners.itertuples(index=False):
        sae = saes.index(SaeKey(row.partner_suite, row.partner_layer))
        of_context = partner_values.setdefault((row.feature, row.rank), {})
        of_context[f"{sae}:{row.partner}"] = _short(row.values)
    chunks: dict[int, dict[str, dict[str, Any]]] = {}
    for row in contexts.itertuples(index=False):
        of_chunk = chunks.setdefault(row.feature // CHUNK, {})
        of_feature = of_chunk.setdefault(
            str(row.feature),
            {"histogram": list(map(int, frame["histogram"][row.feature])), "contexts": []},
        )
        of_feature["contexts"].append({
            "dataset": row.dataset, "text": row.text, "start": row.start,
            "tokens": list(row.tokens), "values": _short(row.values),
            "partners": partner_values.get((row.feature, row.rank), {}),
        })  # fmt: skip
    for chunk, content in chunks.items():
        write_parts(folder, f"contexts/{number}/{chunk}", {"features": content})
    return sorted(chunks)


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{value:.3g}") for value in values]


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
            write_parts(folder, f"verify/{place}", {
                "feature": of_arm["feature"].to_numpy(np.uint32),
                **{c: rounded(of_arm[c].to_numpy(float), SCORE_BITS) for c in EFFECTS},
                "finding": of_arm["finding"].tolist(),
            })  # fmt: skip
        arms[arm] = {
            "n_entries": len(match.rows), "scored": match.scores is not None,
            "verified": of_arm is not None,
        }  # fmt: skip
    return {"source": source, "target": target, "arms": arms}


def _write_links(folder: Path, place: str, links: Links) -> None:
    """Write blocks of links; ``starts`` counts from each block's first entry."""
    for block, features in blocks(len(links.starts) - 1):
        starts = links.starts[features.start : features.stop + 1]
        entries = slice(starts[0], starts[-1])
        parts = {
            "starts": (starts - starts[0]).astype(np.uint16),
            "others": _numbers(links.others[entries]),
            "weights": rounded(links.weights[entries], SCORE_BITS),
        }
        if links.scores is not None:
            parts["scores"] = rounded(links.scores[entries], SCORE_BITS)
        write_parts(folder, f"{place}/{block}", parts)


def _numbers(features: np.ndarray) -> np.ndarray:
    """Return numbers of features in 16 or 32 bits; ``NONE`` becomes the greatest number."""
    small = not len(features) or features.max() < np.iinfo(np.uint16).max
    kind = np.uint16 if small else np.uint32
    return np.where(features == NONE, np.iinfo(kind).max, features).astype(kind)


def _write_table(folder: Path, name: str, frame: pd.DataFrame) -> dict[str, Any]:
    size = max(1, TABLE_CELLS // max(len(frame.columns), 1))
    for part, rows in blocks(len(frame), size):
        columns = _columns(frame.iloc[rows])
        write_parts(folder, f"tables/{name}/{part}", {"columns": columns})
    return {"name": name, "n_rows": len(frame), "n_parts": -(-len(frame) // size)}


def _columns(frame: pd.DataFrame) -> dict[str, list[Any]]:
    rows = rows_of(frame)
    return {str(name): [row[name] for row in rows] for name in frame}
