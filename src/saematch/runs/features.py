"""Write the facts of single features into the run's folder, for pages, exports and the terminal."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from saematch.core.files import replacing
from saematch.core.pairs import SaeKey, pair_of
from saematch.core.progress import progress
from saematch.core.tables import Tables
from saematch.explain.explanations import FeatureKey
from saematch.explorer.run_data import FEATURES
from saematch.runs.context import Context
from saematch.sae.params import SaeParams

SECOND = ("ceiling", "paraphrase")
"""Roles of judgements on two explanations of one feature."""


def save_features(context: Context) -> None:
    """Write ``features/<SAE>.parquet``, with a row for each feature (``RunData.features``)."""
    with progress("write features", len(context.saes), "SAE") as bar:
        for key in context.saes:
            frame = from_weights(context.saes[key])
            explained = _explained(context, key).reindex(frame["feature"])
            frame[explained.columns] = explained.to_numpy()
            with replacing(context.folder / FEATURES / f"{key.label}.parquet") as path:
                frame.to_parquet(path, index=False)
            bar.advance()


def from_weights(sae: SaeParams) -> pd.DataFrame:
    """Return a row for each feature: threshold, norms of its vectors, and encoder bias."""
    columns = {
        "norm_W_enc": sae.W_enc.norm(dim=0),
        "norm_W_dec": sae.W_dec.norm(dim=1),
        "b_enc": sae.b_enc,
    }
    if sae.threshold is not None:
        columns["threshold"] = sae.threshold
    numbers = {name: values.float().cpu().numpy() for name, values in columns.items()}
    return pd.DataFrame({"feature": range(sae.n_features), **numbers})


def _explained(context: Context, key: SaeKey) -> pd.DataFrame:
    """Return the explanation and the explainer of each explained feature, with its number as index.

    No LLM is asked: if an LLM explains features, these are those that the run has asked about.
    """
    explanations = context.explanations
    if explanations is None:
        return _frame({})
    if explanations.asks_llm:
        return explained_in(context.results.tables, key)
    keys = [FeatureKey(key, feature) for feature in explanations.features(key)]
    return _frame({
        key.feature: (texts[0].text, texts[0].explainer)
        for key, texts in explanations.of(keys).items()
    })  # fmt: skip


def explained_in(tables: Tables, key: SaeKey) -> pd.DataFrame:
    """Return the explanations of an SAE's features in the tables of a run.

    In two roles, the target's text is a second explanation of the source feature. It is left out.
    """
    explained: dict[int, tuple[str, str]] = {}
    for name in ("judgements", "features", "paths"):
        for row in tables.rows(name):
            ends = ("source",) if row.get("role") in SECOND else ("source", "target")
            for end, end_key in zip(ends, pair_of(row), strict=False):
                text = row.get(f"{end}_explanation")
                if end_key == key and text is not None:
                    value = str(text), str(row[f"{end}_explainer"])
                    explained.setdefault(int(row[f"{end}_feature"]), value)  # type: ignore[arg-type]
    return _frame(explained)


def _frame(explained: Mapping[int, tuple[str, str]]) -> pd.DataFrame:
    columns = ["explanation", "explainer"]
    return pd.DataFrame(list(explained.values()), list(explained), columns, dtype=object)
