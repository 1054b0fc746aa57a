"""Export of paths as an attribution graph, which circuit-tracer and Neuronpedia show.

The schema is version 1 of circuit-tracer (``metadata.schema_version``), which is also Neuronpedia's
``graph-schema.json`` 1.0.0. Required fields:

- ``metadata``: ``slug``, ``scan`` (the model), ``transcoder_list``, ``prompt_tokens``, ``prompt``;
- ``qParams``: ``pinnedIds``, ``supernodes`` (a name, then ids of nodes), ``linkType``,
  ``clickedId``, ``sg_pos``;
- each node: ``node_id`` (``<layer>_<feature>_<position>``), ``feature`` (layer and feature as one
  number by Cantor's pairing), ``layer`` (text), ``ctx_idx``, ``feature_type``, ``jsNodeId``,
  ``clerp`` (the node's name);
- each link: ``source``, ``target``, ``weight``.

An attribution graph has a column for each token of a prompt. This export has one for each path.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from saematch.core.errors import InputError
from saematch.core.files import replacing
from saematch.core.pairs import SaeKey
from saematch.core.safe_text import visible
from saematch.explorer.exports.neuronpedia import neuronpedia_sources
from saematch.explorer.paths import Node, Paths, nodes_of
from saematch.explorer.run_data import RunData

Graph = dict[str, Any]

FEATURE = "cross layer transcoder"
"""Type of all nodes that are features in circuit-tracer's graphs, also with other SAEs."""
SHOWN = 200
"""Largest number of pinned nodes that the pages show; groups of other nodes are invisible."""


def paths_graph(run: RunData, arm: str, chosen: Sequence[Node]) -> Graph:
    """Return the paths of the chosen features as a graph.

    Links are weighted by the score, or else by the weight of the match. Each path is a supernode.
    Raises ``InputError`` for a path with two SAEs of one layer, which a graph cannot show.
    """
    paths = Paths(run, arm)
    names = Names(run)
    nodes: list[Graph] = []
    links: list[Graph] = []
    supernodes: list[list[str]] = []
    taken: set[str] = set()
    for position, start in enumerate(chosen):
        path = paths.path(start)
        on_path = nodes_of(start, path)
        _check_layers(start, on_path)
        ids = [f"{node.key.layer}_{node.feature}_{position}" for node in on_path]
        nodes += [
            _node(node, node_id, position, names.of(node))
            for node, node_id in zip(on_path, ids, strict=True)
        ]
        links += [
            {"source": source, "target": target,
             "weight": link.weight if link.score is None else link.score}
            for source, target, link in zip(ids, ids[1:], path, strict=False)
        ]  # fmt: skip
        supernodes.append([unique_name(names.of(start), taken), *ids])
    starts = [start.name for start in chosen]
    return {
        "metadata": {
            "slug": f"{run.folder.resolve().name}-{arm}",
            "scan": model_names(run)[0],
            "transcoder_list": [],
            "prompt_tokens": starts,
            "prompt": " ".join(starts),
            "schema_version": 1,
        },
        "qParams": {
            "pinnedIds": [node["node_id"] for node in nodes],
            "supernodes": supernodes,
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": nodes,
        "links": links,
    }


def write_graph(graph: Graph, path: Path) -> None:
    """Write a graph as JSON without spaces."""
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        json.dump(graph, file, separators=(",", ":"))


class Names:
    """Names of features: their explanations, which are read once for each SAE."""

    def __init__(self, run: RunData) -> None:
        self.run = run
        self._explanations: dict[SaeKey, pd.Series] = {}

    def of(self, node: Node) -> str:
        """Return a feature's explanation, or ``layer/feature`` without one."""
        if node.key not in self._explanations:
            frame = self.run.features(node.key).reindex(columns=["explanation"])
            self._explanations[node.key] = frame["explanation"]
        text = self._explanations[node.key][node.feature]
        return visible(" ".join(text.split())) if isinstance(text, str) else node.name


def unique_name(name: str, taken: set[str]) -> str:
    """Return a name that is not in ``taken``, and add it; the pages use names as identifiers."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name} ({number})"
    taken.add(free)
    return free


def model_names(run: RunData) -> list[str]:
    """Return names of a run's model, without its organisation; Neuronpedia's name comes first."""
    provenance = run.results.provenance
    models = [provenance.get("model", {}), *provenance.get("models", {}).values()]
    named = [str(model[name]) for model in models for name in ("name", "path") if model.get(name)]
    names = [source.partition("/")[0] for source in neuronpedia_sources(run).values()]
    names += [name.rstrip("/").rpartition("/")[2] for name in named]
    return list(dict.fromkeys(names)) or ["unknown"]


def _node(node: Node, node_id: str, position: int, name: str) -> Graph:
    layer, feature = node.key.layer, node.feature
    return {
        "node_id": node_id,
        "feature": (layer + feature) * (layer + feature + 1) // 2 + feature,
        "layer": str(layer),
        "ctx_idx": position,
        "feature_type": FEATURE,
        "token_prob": 0.0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{layer}_{feature}-0",
        "clerp": name,
        "influence": None,
        "activation": None,
    }


def _check_layers(start: Node, nodes: Sequence[Node]) -> None:
    layers = [node.key.layer for node in nodes]
    if len(set(layers)) < len(layers):
        raise InputError(
            f"the path of {start.name} has two SAEs of one layer, which a graph cannot show: "
            f"{', '.join(node.name for node in nodes)}"
        )
