"""Group the nodes of an existing attribution graph by the matches of a run.

The graph is JSON as circuit-tracer writes it or as Neuronpedia's pages download it (``graph.py``
lists the fields). A node's layer and feature are read from its ``node_id``,
``<layer>_<feature>_<position>``: the field ``feature`` holds a code that differs between versions.
The whole graph is read into memory, which takes about 6 times the size of the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from saematch.core.errors import InputError
from saematch.core.files import parse_json, read_json
from saematch.core.pairs import SaeKey
from saematch.explorer.exports.graph import FEATURE, Graph, Names, model_names, unique_name
from saematch.explorer.exports.neuronpedia import neuronpedia_sources
from saematch.explorer.paths import Node, Paths
from saematch.explorer.run_data import RunData

_NODE_ID = re.compile(r"(\d{1,9})_(\d{1,9})_(\d{1,9})")
_REMEDY = "write it again with circuit-tracer, or download it again from Neuronpedia"


@dataclass(frozen=True)
class Grouping:
    """A graph with new supernodes, and counts for the message."""

    graph: Graph
    n_features: int
    """Number of nodes that are features of the run's SAEs."""
    n_groups: int
    """Number of new supernodes."""
    n_grouped: int
    """Number of nodes in new supernodes."""
    n_other: int
    """Number of other nodes: errors, tokens, logits, features of SAEs that the run lacks."""
    n_kept: int
    """Number of nodes that were in supernodes before, and stay there."""


def read_graph(path: Path) -> Graph:
    """Read an attribution graph; raises ``InputError`` for a file that is none."""
    graph = read_json(path, dict, _REMEDY)
    shape = {"metadata": dict, "qParams": dict, "nodes": list, "links": list}
    wrong = [name for name, kind in shape.items() if not isinstance(graph.get(name), kind)]
    if wrong:
        raise InputError(f"{path} is no attribution graph: it lacks {', '.join(wrong)}; {_REMEDY}")
    for node in graph["nodes"]:
        names = ("node_id", "feature_type")
        if not isinstance(node, dict) or not all(isinstance(node.get(n), str) for n in names):
            raise InputError(
                f"{path} is no attribution graph: a node lacks node_id or feature_type; {_REMEDY}"
            )
    return graph


def grouped(run: RunData, arm: str, suite: str | None, graph: Graph, scan: str | None) -> Grouping:
    """Return a graph in which chains of matched features are supernodes.

    Two nodes of one token position are linked if the second is the best partner of the first under
    ``arm`` in the next SAE of a path (``Paths.next_pair``). Each connected chain of linked nodes is
    a supernode with the name of its first feature; its nodes are pinned, since the pages show only
    pinned nodes. Nodes in existing supernodes stay there. ``scan`` is the graph's name of the run's
    model, if the two names differ. Raises ``InputError`` for a graph of another model, without
    nodes of the run's layers, or with features that the SAEs do not have.
    """
    _check_model(run, graph, scan)
    nodes, positions = _features_of(run, suite, graph)
    saved = graph["qParams"]
    supernodes = _listed(saved, "supernodes", parse_json)
    pinned = _listed(saved, "pinnedIds", lambda text: [name for name in text.split(",") if name])
    kept = {node_id for supernode in supernodes for node_id in supernode[1:]}
    free = {node_id: node for node_id, node in nodes.items() if node_id not in kept}
    names = Names(run)
    taken = {supernode[0] for supernode in supernodes}
    new = [
        [unique_name(names.of(free[chain[0]]), taken), *chain]
        for chain in _chains(Paths(run, arm), free, positions)
    ]
    members = [node_id for supernode in new for node_id in supernode[1:]]
    written = {
        **saved,
        "supernodes": [*supernodes, *new],
        "pinnedIds": list(dict.fromkeys([*pinned, *members])),
    }
    return Grouping(
        {**graph, "qParams": written, "nodes": _named(graph["nodes"], free, set(members), names)},
        len(nodes), len(new), len(members), len(graph["nodes"]) - len(nodes), len(kept),
    )  # fmt: skip


def _check_model(run: RunData, graph: Graph, scan: str | None) -> None:
    """Refuse a graph of another model, or of other SAEs on Neuronpedia."""
    metadata = graph["metadata"]
    stated = str(metadata.get("scan", ""))
    names = model_names(run)
    if stated != scan and _plain(stated) not in map(_plain, names):
        raise InputError(
            f"the graph is of the model {stated!r:.80}, the run of {' or '.join(names)}: choose a "
            f"run of the graph's model, or name the same model with --scan {stated or 'NAME'}"
        )
    details = metadata.get("feature_details") or {}
    source_set = details.get("neuronpedia_source_set") if isinstance(details, dict) else None
    sources = [source.partition("/")[2] for source in neuronpedia_sources(run).values()]
    source_sets = sorted({source.partition("-")[2] for source in sources})
    if source_set and source_sets and source_set not in source_sets:
        raise InputError(
            f"the graph's features are of {source_set!r:.80}, the run's SAEs of "
            f"{', '.join(source_sets)}: choose a run of the graph's SAEs"
        )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _features_of(
    run: RunData, suite: str | None, graph: Graph
) -> tuple[dict[str, Node], dict[str, int]]:
    """Return the features and the positions of the nodes of the run's SAEs, by ``node_id``."""
    suite = run.suite(suite)
    nodes: dict[str, Node] = {}
    positions: dict[str, int] = {}
    layers: set[int] = set()
    for entry in graph["nodes"]:
        parts = _NODE_ID.fullmatch(entry["node_id"])
        if entry["feature_type"] != FEATURE or parts is None:
            continue
        layer, feature, position = map(int, parts.groups())
        layers.add(layer)
        key = SaeKey(suite, layer)
        if key in run.saes:
            if feature >= run.saes[key]:
                raise InputError(
                    f"the graph's node {entry['node_id']} has a feature that the SAE of {key.name} "
                    f"lacks, which has {run.saes[key]}: choose a run of the graph's SAEs"
                )
            nodes[entry["node_id"]] = Node(key, feature)
            positions[entry["node_id"]] = position
    if not nodes:
        raise InputError(
            f"the graph has no node of the run's SAEs: its features are of the layers "
            f"{', '.join(map(str, sorted(layers))) or 'none'}, the run's of "
            f"{', '.join(str(key.layer) for key in run.saes if key.suite == suite)}"
        )
    return nodes, positions


def _chains(
    paths: Paths, nodes: Mapping[str, Node], positions: Mapping[str, int]
) -> Iterator[list[str]]:
    """Yield the ids of connected nodes, by layer; nodes without a linked node are left out."""
    ids = sorted(nodes, key=lambda node_id: (nodes[node_id].key.layer, node_id))
    number = {(nodes[node_id], positions[node_id]): n for n, node_id in enumerate(ids)}
    ends: list[tuple[int, int]] = []
    for (node, position), n in number.items():
        pair = paths.next_pair(node.key, forward=True, without={node.key})
        partners = paths.partners(pair, node.feature) if pair else []
        if partners and (partners[0].target, position) in number:
            ends.append((n, number[partners[0].target, position]))
    if not ends:
        return
    rows, columns = zip(*ends, strict=True)
    adjacency = coo_array(([1] * len(ends), (rows, columns)), shape=(len(ids), len(ids)))
    _, labels = connected_components(adjacency, directed=False)
    chains: dict[int, list[str]] = {}
    for node_id, label in zip(ids, labels.tolist(), strict=True):
        chains.setdefault(label, []).append(node_id)
    yield from (chain for chain in chains.values() if len(chain) > 1)


def _listed(saved: Graph, name: str, read: Callable[[str], Any]) -> list[Any]:
    """Return a list of ``qParams``, which Neuronpedia may store as text."""
    value = saved.get(name) or []
    listed: Any
    try:
        listed = read(value) if isinstance(value, str) else value
    except ValueError:
        listed = None
    is_valid = _is_texts if name == "pinnedIds" else _is_lists_of_texts
    if not is_valid(listed):
        raise InputError(f"qParams.{name} of the graph is {value!r:.80}: {_REMEDY}")
    return listed


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def _is_lists_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(_is_texts(part) and part for part in value)


def _named(
    nodes: Sequence[Graph], features: Mapping[str, Node], members: set[str], names: Names
) -> list[Graph]:
    """Return the nodes; grouped nodes without a name get their explanation."""
    return [
        node | {"clerp": names.of(features[node["node_id"]])}
        if node["node_id"] in members and not node.get("clerp")
        else node
        for node in nodes
    ]
