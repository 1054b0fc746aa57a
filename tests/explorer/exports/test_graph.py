"""Paths as an attribution graph, and an existing graph grouped by a match."""

import json

import pytest
import torch

from hand_run import write_hand_run
from matches import of_dense
from saematch.core.errors import InputError
from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey
from saematch.explorer.exports.graph import paths_graph, write_graph
from saematch.explorer.exports.group import grouped, read_graph
from saematch.explorer.paths import parse_node
from saematch.explorer.run_data import RunData

REQUIRED = {
    "metadata": {"slug", "scan", "transcoder_list", "prompt_tokens", "prompt", "schema_version"},
    "qParams": {"pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"},
    "nodes": {"node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"},
    "links": {"source", "target", "weight"},
}
FORWARD = Match.from_columns(torch.tensor([1, 2, 0]), 3)
"""Feature i of a layer is feature i + 1 modulo 3 of the next layer."""
MODEL = {"model": {"name": "org/Tiny-LM", "path": "org/Tiny-LM"}}


def run_of(tmp_path, provenance=None, matches=None):
    matches = matches or {("m", Pair.of_layers(n, n + 1)): FORWARD for n in range(3)}
    explanations = {SaeKey("default", 0): ["zero", None, "two"]}
    return RunData.open(
        write_hand_run(tmp_path / "run", matches, explanations, provenance or MODEL)
    )


def existing(nodes, **saved):
    """Return a graph as circuit-tracer writes it: features, an error, a token and a logit."""
    kinds = {"E": "embedding", "9": "logit"}
    entries = [
        {"node_id": node, "feature": -7, "layer": node.split("_")[0], "ctx_idx": 0,
         "feature_type": kinds.get(node[0], "cross layer transcoder"), "jsNodeId": node,
         "clerp": ""}
        for node in nodes
    ]  # fmt: skip
    entries.append({**entries[0], "node_id": "0_-1_0", "feature_type": "mlp reconstruction error"})
    return {
        "metadata": {"slug": "s", "scan": "tiny-lm", "prompt_tokens": ["a"], "prompt": "a"},
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", **saved},
        "nodes": entries,
        "links": [{"source": nodes[0], "target": nodes[-1], "weight": 1.5}],
    }


def test_paths_are_columns_and_supernodes(tmp_path):
    run = run_of(tmp_path)
    graph = paths_graph(run, "m", [parse_node(run, "0/0"), parse_node(run, "2/1")])
    assert graph["qParams"]["supernodes"] == [
        ["zero", "0_0_0", "1_1_0", "2_2_0", "3_0_0"],
        ["2/1", "0_2_1", "1_0_1", "2_1_1", "3_2_1"],
    ]
    assert graph["qParams"]["pinnedIds"] == [node["node_id"] for node in graph["nodes"]]
    assert graph["links"][0] == {"source": "0_0_0", "target": "1_1_0", "weight": 1.0}
    assert len(graph["links"]) == 6
    assert graph["metadata"]["prompt_tokens"] == ["0/0", "2/1"]
    assert graph["metadata"]["scan"] == "Tiny-LM"
    nodes = {node["node_id"]: node for node in graph["nodes"]}
    assert nodes["2_2_0"]["feature"] == (2 + 2) * (2 + 2 + 1) // 2 + 2  # Cantor's pairing
    assert nodes["2_2_0"]["layer"] == "2" and nodes["0_2_1"]["clerp"] == "two"
    for name, fields in REQUIRED.items():
        parts = graph[name] if isinstance(graph[name], list) else [graph[name]]
        assert all(fields <= part.keys() for part in parts), name
    write_graph(graph, tmp_path / "graph.json")
    assert read_graph(tmp_path / "graph.json") == graph


def test_links_have_the_score_and_equal_names_differ(tmp_path):
    scored = Match(
        FORWARD.rows, FORWARD.columns, FORWARD.weights, 3, 3,
        scores=torch.tensor([0.5, 0.25, 0.125]).double(),
    )  # fmt: skip
    run = run_of(tmp_path, matches={("m", Pair.of_layers(0, 1)): scored})
    start = parse_node(run, "0/0")
    graph = paths_graph(run, "m", [start, start])
    assert [link["weight"] for link in graph["links"]] == [0.5, 0.5]
    assert [supernode[0] for supernode in graph["qParams"]["supernodes"]] == ["zero", "zero (2)"]


def test_a_path_with_two_saes_of_a_layer_is_refused(tmp_path):
    pair = Pair(SaeKey("a", 1), SaeKey("b", 1))
    run = run_of(tmp_path, matches={("m", pair): FORWARD})
    with pytest.raises(InputError, match=r"two SAEs of one layer.*: a/1/0, b/1/1"):
        paths_graph(run, "m", [parse_node(run, "a/1/0")])


def test_chains_of_matched_nodes_become_supernodes(tmp_path):
    """0/0 → 1/1 → 2/2 → 3/0 is a path; 1/1 at position 5 and 2/0 have no matched neighbour."""
    nodes = ["0_0_4", "1_1_4", "2_2_4", "1_1_5", "2_0_4", "E_3_0", "9_1_4"]
    links = existing(nodes)["links"]
    grouping = grouped(run_of(tmp_path), "m", None, existing(nodes, pinnedIds=["9_1_4"]), None)
    assert grouping.graph["qParams"]["supernodes"] == [["zero", "0_0_4", "1_1_4", "2_2_4"]]
    assert grouping.graph["qParams"]["pinnedIds"] == ["9_1_4", "0_0_4", "1_1_4", "2_2_4"]
    assert (grouping.n_features, grouping.n_groups, grouping.n_grouped) == (5, 1, 3)
    assert (grouping.n_other, grouping.n_kept) == (3, 0)
    names = {node["node_id"]: node["clerp"] for node in grouping.graph["nodes"]}
    assert names["0_0_4"] == "zero" and names["1_1_4"] == "1/1" and names["2_0_4"] == ""
    assert grouping.graph["links"] == links
    assert grouping.graph["metadata"] == existing(nodes)["metadata"]


def test_a_chain_needs_every_layer_and_the_best_partner(tmp_path):
    soft = of_dense(torch.tensor([[0.6, 0.4, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    run = run_of(tmp_path, matches={("m", Pair.of_layers(0, 1)): soft})
    assert grouped(run, "m", None, existing(["0_0_0", "1_1_0"]), None).n_groups == 0
    assert grouped(run, "m", None, existing(["0_0_0", "1_0_0"]), None).n_groups == 1
    # two features with one best partner are one connected group
    grouping = grouped(
        run_of(tmp_path / "two", matches={
            ("m", Pair.of_layers(0, 1)): of_dense(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        }),
        "m", None, existing(["0_0_0", "0_1_0", "1_0_0"]), None,
    )  # fmt: skip
    assert grouping.graph["qParams"]["supernodes"] == [["zero", "0_0_0", "0_1_0", "1_0_0"]]


def test_existing_supernodes_stay_also_as_the_text_that_neuronpedia_writes(tmp_path):
    nodes = ["0_0_4", "1_1_4", "2_2_4", "3_0_4"]
    supernodes = [["mine", "0_0_4"], ["2/2", "9_1_4"]]
    saved = {"supernodes": json.dumps(supernodes), "pinnedIds": "0_0_4,9_1_4"}
    grouping = grouped(run_of(tmp_path), "m", None, existing(nodes, **saved), None)
    kept = grouping.graph["qParams"]["supernodes"]
    assert kept == [*supernodes, ["1/1", "1_1_4", "2_2_4", "3_0_4"]]
    assert grouping.graph["qParams"]["pinnedIds"] == ["0_0_4", "9_1_4", "1_1_4", "2_2_4", "3_0_4"]
    assert grouping.n_kept == 2


@pytest.mark.parametrize(
    "graph, scan, message",
    [
        (existing(["0_0_0"]) | {"metadata": {"scan": "other"}}, None,
         "the graph is of the model 'other', the run of Tiny-LM"),
        (existing(["8_0_0"]), None, "no node of the run's SAEs: its features are of the layers 8"),
        (existing(["E_0_0"]), None, "no node of the run's SAEs: its features are of the layers"),
        (existing(["1_3_0"]), None, "the graph's node 1_3_0 has a feature that the SAE of layer 1"),
        (existing(["0_0_0"], supernodes=[["a", 3]]), None, "qParams.supernodes of the graph is"),
        (existing(["0_0_0"], supernodes="[["), None, "qParams.supernodes of the graph is '[['"),
        (existing(["0_0_0"], pinnedIds={"a": 1}), None, "qParams.pinnedIds of the graph is"),
    ],
)  # fmt: skip
def test_graphs_that_do_not_fit_the_run_are_refused(tmp_path, graph, scan, message):
    with pytest.raises(InputError) as refused:
        grouped(run_of(tmp_path), "m", None, graph, scan)
    assert message in str(refused.value)


def test_another_name_of_the_model_is_accepted_if_it_is_named(tmp_path):
    graph = existing(["0_0_0"]) | {"metadata": {"scan": "other"}}
    assert grouped(run_of(tmp_path), "m", None, graph, "other").n_features == 1


def test_a_graph_of_other_saes_on_neuronpedia_is_refused(tmp_path):
    saes = {str(n): {"neuronpedia_id": f"tiny-lm/{n}-res-16k"} for n in range(4)}
    run = run_of(tmp_path, MODEL | {"saes": saes})
    graph = existing(["0_0_0"])
    graph["metadata"]["feature_details"] = {"neuronpedia_source_set": "res-16k"}
    assert grouped(run, "m", None, graph, None).n_features == 1
    graph["metadata"]["feature_details"] = {"neuronpedia_source_set": "transcoder-16k"}
    with pytest.raises(InputError, match="features are of 'transcoder-16k', the run's SAEs of res"):
        grouped(run, "m", None, graph, None)


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "is damaged"),
        ("[1]", "is damaged (it holds a list"),
        ("{}", "is no attribution graph: it lacks metadata, qParams, nodes, links"),
        (json.dumps(existing(["0_0_0"]) | {"nodes": ["x"]}), "a node lacks node_id"),
        (json.dumps(existing(["0_0_0"]) | {"nodes": [{"node_id": 3}]}), "a node lacks node_id"),
        (json.dumps(existing(["0_0_0"]))[:-9], "is damaged"),
    ],
)
def test_files_that_are_no_graph_are_refused(tmp_path, content, message):
    path = tmp_path / "graph.json"
    path.write_text(content)
    with pytest.raises(InputError) as refused:
        read_graph(path)
    assert str(path) in str(refused.value) and message in str(refused.value)


def test_the_graph_of_a_path_can_be_grouped_again(tmp_path):
    run = run_of(tmp_path)
    graph = paths_graph(run, "m", [parse_node(run, "0/0")])
    members = graph["qParams"]["supernodes"][0][1:]
    graph["qParams"] |= {"supernodes": [], "pinnedIds": []}
    grouping = grouped(run, "m", None, graph, None)
    assert grouping.graph["qParams"]["supernodes"] == [["zero", *members]]
