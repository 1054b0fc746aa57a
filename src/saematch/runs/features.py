"""Write the facts of single features into the run's folder, for pages, exports and the terminal."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from tqdm import tqdm

from saematch.core.files import replacing
from saematch.core.pairs import SaeKey
from saematch.explain.explanations import Explanation, Explanations, FeatureKey
from saematch.explorer.run_data import FEATURES
from saematch.runs.context import Context
from saematch.sae.params import SaeParams


def save_features(context: Context) -> None:
    """Write ``features/<SAE>.parquet``: a row for each feature of each SAE (``RunData.features``)."""
    for key in tqdm(context.saes, desc="features", unit="SAE", leave=False):
        frame = from_weights(context.saes[key])
        explained = _explained(context.explanations, key)
        frame["explanation"] = frame["feature"].map({f: e.text for f, e in explained.items()})
        frame["explainer"] = frame["feature"].map({f: e.explainer for f, e in explained.items()})
        with replacing(context.folder / FEATURES / f"{key.label}.parquet") as path:
            frame.to_parquet(path, index=False)


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


def _explained(explanations: Explanations | None, key: SaeKey) -> Mapping[int, Explanation]:
    """Return the first explanation of each feature, without asking an LLM."""
    if explanations is None or explanations.asks_llm:
        return {}
    keys = [FeatureKey(key, feature) for feature in explanations.features(key)]
    return {key.feature: texts[0] for key, texts in explanations.of(keys).items()}
