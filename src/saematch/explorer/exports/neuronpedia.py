"""Export of matched features as lists that Neuronpedia's API takes.

The file is a JSON list of bodies of ``POST /api/list/add-features``: each has ``featuresToAdd``, at
most 100 features with ``modelId``, ``layer`` (the source on Neuronpedia), ``index`` and
``description``, and a ``listId`` that is empty. ``POST /api/list/new`` with ``name`` makes the list
and returns its id. Both need a key of an account; this file is only written, not sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from saematch.core.errors import InputError
from saematch.core.pairs import SaeKey
from saematch.explorer.paths import Node, Paths, nodes_of
from saematch.explorer.run_data import RunData

MOST = 100
"""Largest number of features in one request."""


class Lists(NamedTuple):
    """Bodies of requests, and the number of features that Neuronpedia does not have."""

    bodies: list[dict[str, Any]]
    n_features: int
    n_left_out: int


def paths_lists(run: RunData, arm: str, chosen: Sequence[Node]) -> Lists:
    """Return the features on the paths of the chosen features.

    A description has the path's feature and the step. Features of SAEs without ``neuronpedia_id``
    are left out. Raises ``InputError`` if no SAE on the paths has one.
    """
    sources = neuronpedia_sources(run)
    paths = Paths(run, arm)
    features: list[dict[str, str]] = []
    n_left_out = 0
    for start in chosen:
        on_path = nodes_of(start, paths.path(start))
        listed = list(_features(start, on_path, sources))
        features += listed
        n_left_out += len(on_path) - len(listed)
    if not features:
        raise InputError(
            f"{run.folder}: the SAEs on these paths have no neuronpedia_id, so Neuronpedia "
            "does not have their features"
        )
    bodies = [
        {"listId": "", "featuresToAdd": features[first : first + MOST]}
        for first in range(0, len(features), MOST)
    ]
    return Lists(bodies, len(features), n_left_out)


def neuronpedia_sources(run: RunData) -> dict[SaeKey, str]:
    """Return the ``neuronpedia_id`` of the SAEs that have one: ``model/source``."""
    saes = run.results.provenance.get("saes", {})
    ids = {key: str(saes.get(key.label, {}).get("neuronpedia_id") or "") for key in run.saes}
    return {key: source for key, source in ids.items() if "/" in source}


def _features(
    start: Node, nodes: Sequence[Node], sources: Mapping[SaeKey, str]
) -> Iterator[dict[str, str]]:
    for node in nodes:
        if node.key in sources:
            model, _, source = sources[node.key].partition("/")
            yield {
                "modelId": model,
                "layer": source,
                "index": str(node.feature),
                "description": f"path of {start.name}: {node.name}",
            }
