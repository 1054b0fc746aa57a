"""A run's folder of any size with synthetic matches, activity, contexts and verdicts.

``python tests/synthetic_run.py FOLDER --layers 26 --features 16384`` writes one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from saematch.core.files import replacing
from saematch.core.match import Match
from saematch.core.pairs import DEFAULT, Pair, SaeKey
from saematch.core.results import Results
from saematch.core.tables import Tables
from saematch.evaluate.effects import ranked_partners
from saematch.explorer.run_data import CONTEXTS, FEATURES, PARTNERS, PROFILE, VERIFY

ARMS = {"folded": 1, "cosine": 7}
"""Number of partners of each feature, by arm."""
WINDOW, N_CONTEXTS = 16, 4
FINDINGS = ("passes", "fails", "too few events")
WORDS = [
    "tokens", "names", "of", "cities", "verbs", "in", "the", "past", "tense", "numbers", "after",
    "a", "comma", "python", "imports", "quotes", "legal", "terms", "months", "sports", "animals",
    "references", "to", "music", "code", "comments", "French", "words", "medical", "closing",
    "brackets", "questions", "negation", "family", "members", "chemistry", "units", "headlines",
]  # fmt: skip


def write_run(
    folder: Path, n_layers: int = 3, n_features: int = 64, n_explored: int = 64, seed: int = 0
) -> Path:
    """Write the folder; ``n_explored`` features of each SAE have histograms and contexts."""
    rng = np.random.default_rng(seed)
    keys = [SaeKey(DEFAULT, layer) for layer in range(n_layers)]
    pairs = [Pair(*both) for both in zip(keys, keys[1:], strict=False)]
    rows = []
    matches: dict[tuple[Pair, str], Match] = {}
    for pair in pairs:
        for arm, n_partners in ARMS.items():
            match = matches[pair, arm] = _match(rng, n_features, n_partners)
            match.save(folder / "matches" / arm / f"{pair.label}.safetensors")
            score = float(rng.random())
            rows.append({**pair.columns(), "arm": arm, "matching_score": score,
                         "n_features": n_features, "n_entries": len(match.rows)})  # fmt: skip
    for key in keys:
        _write_features(rng, folder, key, n_features, n_explored, pairs, matches)
    for pair in pairs:
        of_pair = [_verified(rng, matches[pair, arm], arm) for arm in ARMS]
        _write(folder / VERIFY, pair.label, pd.concat(of_pair, ignore_index=True))
    tables = Tables.of({
        "layers": [{**key._asdict(), "n_features": n_features} for key in keys],
        "matches": rows,
    })  # fmt: skip
    config = {"name": "synthetic", "seed": seed}
    Results("synthetic", config, {"seed": seed}, "finished", tables=tables).save(
        folder / "results.json"
    )
    return folder


def _match(rng: np.random.Generator, n: int, n_partners: int) -> Match:
    """Return a permutation, or several random partners of each feature."""
    if n_partners == 1:
        match = Match.from_columns(torch.from_numpy(rng.permutation(n)), n)
        scores = torch.from_numpy(rng.random(n))
        return Match(match.rows, match.columns, match.weights, n, n, scores=scores)
    steps = np.sort(rng.integers(1, max(2, n // n_partners), (n, n_partners)).cumsum(1), axis=1)
    columns = np.sort((rng.integers(0, n, (n, 1)) + steps) % n, axis=1).ravel()
    scores = rng.random((n, n_partners))
    weights = (scores / scores.sum(1, keepdims=True)).ravel()
    rows = torch.arange(n).repeat_interleave(n_partners)
    parts = torch.from_numpy(columns), torch.from_numpy(weights)
    return Match(rows, *parts, n, n, scores=torch.from_numpy(scores.ravel()))


def _write_features(
    rng: np.random.Generator, folder: Path, key: SaeKey, n: int, n_explored: int,
    pairs: list[Pair], matches: dict[tuple[Pair, str], Match],
) -> None:  # fmt: skip
    features = np.arange(n)
    n_active = rng.geometric(0.001, n)
    _write(folder / FEATURES, key.label, pd.DataFrame({
        "feature": features, "threshold": rng.lognormal(0, 0.5, n),
        "norm_W_enc": rng.lognormal(0, 0.2, n), "norm_W_dec": np.ones(n),
        "b_enc": rng.normal(-1, 0.3, n),
        "explanation": [" ".join(rng.choice(WORDS, rng.integers(4, 14))) for _ in features],
        "explainer": "synthetic",
    }))  # fmt: skip
    kept = np.sort(np.argsort(-n_active, kind="stable")[:n_explored])
    histogram = list(rng.integers(0, 99, (n, 20)))
    _write(folder / PROFILE, key.label, pd.DataFrame({
        "feature": features, "n_active": n_active, "density": n_active / 1e6,
        "density_prose": n_active / 1e6, "density_code": n_active / 2e6,
        "mean_activation": rng.lognormal(1, 0.3, n), "max_activation": rng.lognormal(2, 0.3, n),
        "top_tokens": [f'"{rng.choice(WORDS)}" (40%), "{rng.choice(WORDS)}" (20%)'
                       for _ in features],
        "histogram": histogram,
    }))  # fmt: skip
    places = [(f, rank) for f in kept.tolist() for rank in range(N_CONTEXTS)]
    _write(folder / CONTEXTS, key.label, pd.DataFrame({
        "feature": [f for f, _ in places], "rank": [rank for _, rank in places],
        "dataset": rng.choice(["prose", "code"], len(places)),
        "text": rng.integers(0, 99, len(places)), "start": rng.integers(1, 40, len(places)),
        "tokens": [[f" {w}" for w in rng.choice(WORDS, WINDOW)] for _ in places],
        "values": list(_activations(rng, len(places))),
    }))  # fmt: skip
    shared = []
    for pair in pairs:
        if key not in pair:
            continue
        match = matches[pair, "cosine"]
        match, other = (match, pair.target) if key == pair.source else (match.inverse(), pair.source)
        ranked = ranked_partners(match)[:, :3]
        shared += [(f, rank, *other, int(p)) for f, rank in places for p in ranked[f] if p >= 0]
    names = ("feature", "rank", "partner_suite", "partner_layer", "partner")
    frame = pd.DataFrame(shared, columns=list(names))
    _write(folder / PARTNERS, key.label, frame.assign(values=list(_activations(rng, len(shared)))))


def _activations(rng: np.random.Generator, n: int) -> np.ndarray:
    values = rng.lognormal(1, 0.4, (n, WINDOW)).astype(np.float32)
    return np.where(rng.random((n, WINDOW)) < 0.3, values, 0)


def _verified(rng: np.random.Generator, match: Match, arm: str) -> pd.DataFrame:
    tested = np.flatnonzero(rng.random(match.n_source) < 0.8)
    effect = rng.random(len(tested))
    return pd.DataFrame({
        "arm": arm, "feature": tested, "partner": ranked_partners(match)[tested, 0],
        "n_events": 9, "n_active": 5, "off_rate": rng.random(len(tested)), "effect": effect,
        "effect_low": effect - 0.1, "effect_high": effect + 0.1,
        "floor_95": rng.random(len(tested)) / 4, "finding": rng.choice(FINDINGS, len(tested)),
    })  # fmt: skip


def _write(folder: Path, label: str, frame: pd.DataFrame) -> None:
    with replacing(folder / f"{label}.parquet") as path:
        frame.to_parquet(path, index=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=26)
    parser.add_argument("--features", type=int, default=16384)
    parser.add_argument("--explored", type=int, default=2048)
    arguments = parser.parse_args()
    write_run(arguments.folder, arguments.layers, arguments.features, arguments.explored)
