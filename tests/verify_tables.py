"""Tables of the evaluation ``verify``, made up from known numbers."""

import random
from itertools import count

from saematch.core.columns import Column, share
from saematch.core.tables import Tables

ARMS = {
    "folded": {1: 0.23},
    "cosine": {1: 0.24, 2: 0.32, 5: 0.42, 20: 0.55},
    "written_share": {1: 0.28, 2: 0.37, 5: 0.47, 20: 0.63},
    "random": {1: 0.01},
}
"""Off rate at the first pair, by arm and number of partners."""
REFERENCES = {"near miss": 0.1, "learned": 0.26, "best in hindsight": 0.81}
COLUMNS = (
    share("off_rate", "off rate", "M", interval=True, logged=("matches",)),
    Column("effect", "effect", "higher", "", -1.0, 1.0, True, ("matches",), "M"),
    Column("effect_over_random", "effect over random", "higher", interval=True, meaning="M",
           logged=("matches",)),
)  # fmt: skip
N_CHANGES = 60


def placed(source, target, suite="default"):
    return {"source_suite": suite, "source_layer": source,
            "target_suite": suite, "target_layer": target}  # fmt: skip


def measured(name, value, half=0.02):
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}


def removal(arm, k, off_rate):
    """Return a row of ``verify``; the effect is 1.1 times the off rate, k random targets .01."""
    row = {"arm": arm, "sampling": "feature", "edit": "remove", "k": k}
    for name, factor in (("off_rate", 1.0), ("effect", 1.1)):
        row |= measured(name, factor * off_rate) | {f"{name}_random": factor * 0.01 * k}
        row |= measured(f"{name}_over_random", factor * (off_rate - 0.01 * k))
    return row | {"n_events": 2700}


def verify_tables(pairs, suite="default"):
    """Return all tables; the off rate of the pair number n is lower by .01 n."""
    tables = {name: [] for name in ("matches", "verify", "verify_direct", "verify_changes",
                                    "verify_counts", "verify_features")}  # fmt: skip
    draw = random.Random(0)
    for n, pair in zip(count(), pairs, strict=False):
        key = placed(*pair, suite)
        rows = [
            removal(arm, k, rate - 0.01 * n)
            for arm, rates in {**ARMS, **{a: {1: r} for a, r in REFERENCES.items()}}.items()
            for k, rate in rates.items()
        ]
        tables["verify"] += [{**key, **row} for row in rows]
        # Other samplings and doses belong to other figures
        tables["verify"] += [{**key, **row, "sampling": "token", "off_rate": 9.0} for row in rows]
        tables["verify"] += [{**key, **row, "edit": "half", "off_rate": 9.0} for row in rows]
        for arm in ARMS:
            best = next(row for row in rows if row["arm"] == arm)
            columns = {name: best[name] for name in ("effect", "off_rate", "effect_over_random")}
            tables["matches"].append({**key, "arm": arm, "gap": None, "gap_over_chance": None,
                                      **columns})  # fmt: skip
            tables["verify_direct"].append({**key, "arm": arm, **measured("slope", 0.5 + 0.1 * n)})
            for _ in range(N_CHANGES):
                predicted = -draw.lognormvariate(0, 1)
                noise = draw.gauss(0, 0.5)
                tables["verify_changes"].append(
                    {**key, "arm": arm, "predicted": predicted, "measured": 0.5 * predicted + noise}
                )
            for feature, finding in enumerate(["passes", "passes", "fails", "too few events"]):
                tables["verify_features"].append({**key, "arm": arm, "feature": feature,
                                                  "finding": finding})  # fmt: skip
        tables["verify_counts"].append({**key, "n_features": 1024, "n_below_floor": 100,
                                        "n_without_events": 3, "n_events": 2700,
                                        "n_token_events": 1000, "n_texts": 150,
                                        "n_calibration_tokens": 9300})  # fmt: skip
    return Tables.of(tables, COLUMNS)
