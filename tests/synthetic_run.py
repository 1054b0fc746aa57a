"""A run's folder of any size with synthetic matches, activity, contexts and verdicts.

``python tests/synthetic_run.py FOLDER --layers 26 --features 16384`` writes one.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import pairwise
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
SYLLABLES = ["ka", "ri", "to", "men", "sal", "ver", "din", "pro", "lu", "est", "con", "ti", "gra"]
VOCABULARY = [*WORDS, *(a + b + c for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES)]
"""Words of explanations and tokens, by descending frequency."""


@dataclass(frozen=True)
class _Run:
    folder: Path
    rng: np.random.Generator
    n_features: int
    n_explored: int
    matches: dict[tuple[Pair, str], Match]


def write_run(
    folder: Path, n_layers: int = 3, n_features: int = 64, n_explored: int = 64, seed: int = 0
) -> Path:
    """Write the folder; ``n_explored`` features of each SAE have histograms and contexts."""
    rng = np.random.default_rng(seed)
    run = _Run(folder, rng, n_features, n_explored, {})
    keys = [SaeKey(DEFAULT, layer) for layer in range(n_layers)]
    rows = []
    for pair in (Pair(*keys) for keys in pairwise(keys)):
        for arm, n_partners in ARMS.items():
            match = run.matches[pair, arm] = _match(rng, n_features, n_partners)
            match.save(folder / "matches" / arm / f"{pair.label}.safetensors")
            score = float(rng.random())
            rows.append({**pair.columns(), "arm": arm, "matching_score": score,
                         "n_features": n_features, "n_entries": len(match.rows)})  # fmt: skip
        of_pair = [_verified(rng, run.matches[pair, arm], arm) for arm in ARMS]
        _write(folder / VERIFY, pair.label, pd.concat(of_pair, ignore_index=True))
    for key in keys:
        _write_features(run, key)
        _write_contexts(run, key, _write_profile(run, key))
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


def _write_features(run: _Run, key: SaeKey) -> None:
    rng, n = run.rng, run.n_features
    _write(run.folder / FEATURES, key.label, pd.DataFrame({
        "feature": np.arange(n), "threshold": rng.lognormal(0, 0.5, n),
        "norm_W_enc": rng.lognormal(0, 0.2, n), "norm_W_dec": np.ones(n),
        "b_enc": rng.normal(-1, 0.3, n),
        "explanation": [" ".join(_words(rng, length)) for length in rng.integers(5, 15, n)],
        "explainer": "synthetic",
    }))  # fmt: skip


def _write_profile(run: _Run, key: SaeKey) -> list[tuple[int, int]]:
    """Write the activity of features; return the feature and the rank of each context."""
    rng, n = run.rng, run.n_features
    n_active = rng.geometric(0.001, n)
    shares = zip(_words(rng, n), _words(rng, n), rng.integers(20, 60, n), strict=True)
    _write(run.folder / PROFILE, key.label, pd.DataFrame({
        "feature": np.arange(n), "n_active": n_active, "density": n_active / 1e6,
        "density_prose": n_active / 1e6, "density_code": n_active / 2e6,
        "mean_activation": rng.lognormal(1, 0.3, n), "max_activation": rng.lognormal(2, 0.3, n),
        "top_tokens": [f'" {a}" ({share}%), " {b}" ({share // 2}%)' for a, b, share in shares],
        "histogram": list(rng.integers(0, 99, (n, 20))),
    }))  # fmt: skip
    kept = np.sort(np.argsort(-n_active, kind="stable")[: run.n_explored])
    return [(feature, rank) for feature in kept.tolist() for rank in range(N_CONTEXTS)]


def _write_contexts(run: _Run, key: SaeKey, places: list[tuple[int, int]]) -> None:
    rng, n = run.rng, len(places)
    _write(run.folder / CONTEXTS, key.label, pd.DataFrame({
        "feature": [feature for feature, _ in places], "rank": [rank for _, rank in places],
        "dataset": rng.choice(["prose", "code"], n),
        "text": rng.integers(0, 99, n), "start": rng.integers(1, 40, n),
        "tokens": [[f" {word}" for word in _words(rng, WINDOW)] for _ in places],
        "values": list(_activations(rng, n)),
    }))  # fmt: skip
    rows = []
    for (pair, arm), match in run.matches.items():
        if key not in pair or arm != "cosine":
            continue
        is_source = key == pair.source
        other = pair.target if is_source else pair.source
        ranked = ranked_partners(match if is_source else match.inverse())[:, :3]
        rows += [(f, rank, *other, int(p)) for f, rank in places for p in ranked[f] if p >= 0]
    names = ["feature", "rank", "partner_suite", "partner_layer", "partner"]
    frame = pd.DataFrame(rows, columns=names)
    values = list(_activations(rng, len(rows)))
    _write(run.folder / PARTNERS, key.label, frame.assign(values=values))


def _words(rng: np.random.Generator, n: int) -> list[str]:
    """Return words whose frequencies fall like those of English (Zipf's law, from 20 on)."""
    share = 1 / (20 + np.arange(len(VOCABULARY)))
    words = np.searchsorted(np.cumsum(share), rng.random(n) * share.sum())
    return [VOCABULARY[word] for word in words.tolist()]


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
