"""A run's folder with matches, explanations and other facts that a test chooses."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey
from saematch.core.results import Results
from saematch.core.tables import Tables
from saematch.explorer.run_data import FEATURES, VERIFY


def write_hand_run(
    folder: Path,
    matches: Mapping[tuple[str, Pair], Match],
    explanations: Mapping[SaeKey, Sequence[str | None]] | None = None,
    provenance: dict | None = None,
    **tables: list[dict],
) -> Path:
    """Write the folder of a finished run; further tables by name."""
    sizes: dict[SaeKey, int] = {}
    for (arm, pair), match in matches.items():
        match.save(folder / "matches" / arm / f"{pair.label}.safetensors")
        sizes |= {pair.source: match.n_source, pair.target: match.n_target}
    for key, texts in (explanations or {}).items():
        frame = pd.DataFrame({"feature": range(len(texts)), "explanation": texts})
        write_parquet(folder / FEATURES / f"{key.label}.parquet", frame.assign(explainer="me"))
    layers = [{**key._asdict(), "n_features": size} for key, size in sorted(sizes.items())]
    rows = [{**pair.columns(), "arm": arm, "n_entries": len(match.rows)}
            for (arm, pair), match in matches.items()]  # fmt: skip
    of_run = Tables.of({"layers": layers, "matches": rows, **tables})
    Results("hand", {"name": "hand"}, provenance or {}, "finished", tables=of_run).save(
        folder / "results.json"
    )
    return folder


def write_verified(folder: Path, pair: Pair, rows: list[dict]) -> None:
    """Write the results of ``verify`` for a pair."""
    write_parquet(folder / VERIFY / f"{pair.label}.parquet", pd.DataFrame(rows))


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path, index=False)
