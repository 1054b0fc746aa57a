"""The data files of contexts: where a feature is active, and how its partners respond there.

A file has the contexts of consecutive features. Its parts are arrays in which features, contexts,
tokens and partners follow each other:

| length | parts |
| --- | --- |
| features | ``features`` (ascending), ``n_contexts``, and ``histogram`` (as many bins for each) |
| contexts | ``dataset``, ``text``, ``start``, ``n_tokens``, ``n_partners``, ``largest`` |
| tokens of all contexts | ``tokens``, ``values`` |
| partners of all contexts | ``partner_sae``, ``partner``, ``partner_largest`` |
| tokens of all partners | ``partner_values`` |

``dataset`` is a number in the list ``datasets``, ``tokens`` are numbers in the list ``vocabulary``.
Activations are stored as shades: whole numbers from 0 to 255 relative to the ``largest``
activation of the context (or of the partner in it).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from saematch.core.pairs import SaeKey
from saematch.explorer.blob import cut, unsigned, write_parts
from saematch.explorer.run_data import RunData

CHUNK_BYTES = 2**18
"""Approximate size of the numbers in a file of contexts; the page loads a file for a feature."""
MAX_SHADE = 255
TOKEN_CHARACTERS = 100
"""Longest text of a token on the page."""


def write_contexts(run: RunData, key: SaeKey, histograms: pd.Series, folder: Path) -> list[int]:
    """Write the files of an SAE's contexts; return the first feature of each file.

    ``histograms`` has a list of counts for each feature with contexts. An SAE without contexts has
    no files.
    """
    contexts, partners = run.contexts(key), run.partners(key)
    if contexts is None or partners is None or contexts.empty:
        return []
    contexts = contexts.sort_values(["feature", "rank"], ignore_index=True)
    context_ids, partner_ids = _ids(contexts), _ids(partners)
    order = np.argsort(partner_ids, kind="stable")
    partners, partner_ids = partners.iloc[order], partner_ids[order]
    numbers = {sae: number for number, sae in enumerate(run.saes)}
    keys = zip(partners["partner_suite"], partners["partner_layer"], strict=True)
    partners = partners.assign(sae=[numbers[SaeKey(suite, layer)] for suite, layer in keys])
    starts = np.searchsorted(partner_ids, np.append(context_ids, np.iinfo(np.int64).max))
    contexts = contexts.assign(
        n_tokens=[len(tokens) for tokens in contexts["tokens"]], n_partners=np.diff(starts)
    )
    features, first_context = np.unique(contexts["feature"], return_index=True)
    n_bytes = contexts["n_tokens"] * (contexts["n_partners"] + 3) + 8 * contexts["n_partners"] + 16
    costs = np.add.reduceat(n_bytes.to_numpy(), first_context)
    first_context = np.append(first_context, len(contexts))
    chunks = cut(costs, CHUNK_BYTES)
    for number, chunk in enumerate(chunks):
        first, last = first_context[[chunk.start, chunk.stop]]
        parts = _parts(contexts.iloc[first:last], partners.iloc[starts[first] : starts[last]])
        counts = np.stack(histograms.loc[features[chunk]].to_list())
        parts["histogram"] = unsigned(counts.ravel())
        write_parts(folder, f"contexts/{numbers[key]}/{number}", parts)
    return [int(features[chunk.start]) for chunk in chunks]


def _ids(frame: pd.DataFrame) -> np.ndarray:
    """Return a number for each row that sorts rows by the context's feature and rank."""
    return frame["feature"].to_numpy(np.int64) * 2**16 + frame["rank"].to_numpy(np.int64)


def _parts(contexts: pd.DataFrame, partners: pd.DataFrame) -> dict[str, Any]:
    """Return the parts of a file, without histograms."""
    features, n_contexts = np.unique(contexts["feature"], return_counts=True)
    dataset, datasets = pd.factorize(contexts["dataset"])
    tokens, vocabulary = pd.factorize(np.concatenate(contexts["tokens"].to_list()))
    largest, values = shades(contexts["values"])
    partner_largest, partner_values = shades(partners["values"])
    return {
        "features": unsigned(features), "n_contexts": unsigned(n_contexts),
        "datasets": [str(name) for name in datasets], "dataset": unsigned(dataset),
        "text": unsigned(contexts["text"].to_numpy()),
        "start": unsigned(contexts["start"].to_numpy()),
        "n_tokens": unsigned(contexts["n_tokens"].to_numpy()),
        "n_partners": unsigned(contexts["n_partners"].to_numpy()), "largest": largest,
        "vocabulary": [shortened(str(token), TOKEN_CHARACTERS) for token in vocabulary],
        "tokens": unsigned(tokens), "values": values,
        "partner_sae": unsigned(partners["sae"].to_numpy()),
        "partner": unsigned(partners["partner"].to_numpy()),
        "partner_largest": partner_largest, "partner_values": partner_values,
    }  # fmt: skip


def shortened(text: str, n_characters: int) -> str:
    """Return text with at most ``n_characters``; cut text ends with an ellipsis."""
    return text if len(text) <= n_characters else f"{text[: n_characters - 1]}…"


def shades(activations: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest activation of each row, and the activations as shades.

    The error of an activation is at most half a shade, ``largest / 510``. A positive activation
    has at least the shade 1, and a negative one has 0.
    """
    if activations.empty:
        return np.zeros(0), np.zeros(0, np.uint8)
    lengths = [len(row) for row in activations]
    values = np.concatenate(activations.to_list()).astype(np.float64).clip(min=0)
    largest = np.maximum.reduceat(values, np.cumsum([0, *lengths[:-1]]))
    scale = np.repeat(np.where(largest > 0, largest, 1), lengths)
    shades = np.where(values > 0, np.rint(values / scale * MAX_SHADE).clip(min=1), 0)
    return largest, shades.astype(np.uint8)
