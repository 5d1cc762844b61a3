"""Graphs to and from circuit-tracer."""

from __future__ import annotations

import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import DALLAS

import circuitscope as cs


def theirs_of(graph: cs.Graph, **changes: object) -> SimpleNamespace:
    parts = graph.to_circuit_tracer("numpy")
    return SimpleNamespace(**{**parts, "cfg": SimpleNamespace(n_layers=graph.n_layers, model_name="atlas"), **changes})


def test_tensors_are_those_of_circuit_tracer(graph: cs.Graph) -> None:
    parts = graph.to_circuit_tracer("numpy")
    n_features, n_nodes, n_targets = graph.n_features, len(graph), graph.n_targets
    adjacency = parts["adjacency_matrix"]
    assert adjacency.shape == (n_nodes, n_nodes) and adjacency.dtype == np.float32
    assert np.array_equal(adjacency[:n_features], graph.adjacency[:n_features])
    assert np.array_equal(adjacency[-n_targets:], graph.adjacency[n_features:])
    # Errors and tokens have no inputs.
    assert not adjacency[n_features:-n_targets].any()
    assert parts["active_features"].tolist() == graph.active_features.tolist()
    for name in ("active_features", "input_tokens", "selected_features"):
        assert parts[name].dtype == np.int64
    assert parts["logit_targets"][0] == (" Austin", int(graph.target_ids[0]))
    assert parts["vocab_size"] == len(graph.logits) and parts["input_string"] == DALLAS
    parts["adjacency_matrix"][0, 0] = 1.0  # It is a copy of its own.


def test_directions_have_numbers_past_the_vocabulary(tracer: cs.Tracer) -> None:
    graph = tracer.trace(DALLAS, [" Austin", cs.Direction(np.ones(tracer.d_model), "ones")])
    targets = graph.to_circuit_tracer("numpy")["logit_targets"]
    assert targets[1] == ("ones", tracer.d_vocab + 1)
    assert cs.Graph.from_circuit_tracer(theirs_of(graph)).target_ids.tolist() == [targets[0][1], -1]


def test_a_graph_comes_back(graph: cs.Graph, tmp_path) -> None:
    again = cs.Graph.from_circuit_tracer(theirs_of(graph))
    assert np.array_equal(again.adjacency, graph.adjacency)
    assert np.allclose(again.influence, graph.influence)
    assert again.replacement_score == pytest.approx(graph.replacement_score)
    ours, theirs = graph.prune(), again.prune()
    assert ours.nodes.id.tolist() == theirs.nodes.id.tolist()
    assert ours.edges.tolist() == theirs.edges.tolist()
    again.save(tmp_path / "g.safetensors")
    assert np.array_equal(cs.Graph.read(tmp_path / "g.safetensors").adjacency, graph.adjacency)
    theirs.save(tmp_path / "g.json")


def test_features_in_another_order_are_sorted(graph: cs.Graph) -> None:
    parts = graph.to_circuit_tracer("numpy")
    rng = np.random.default_rng(0)
    n, n_active = graph.n_features, len(graph.active_features)
    active, chosen = rng.permutation(n_active), rng.permutation(n)
    place = np.argsort(active)
    nodes = np.concatenate([chosen, np.arange(n, len(graph))])
    shuffled = theirs_of(
        graph,
        active_features=parts["active_features"][active],
        activation_values=parts["activation_values"][active],
        selected_features=place[parts["selected_features"][chosen]],
        adjacency_matrix=parts["adjacency_matrix"][np.ix_(nodes, nodes)],
    )
    again = cs.Graph.from_circuit_tracer(shuffled)
    assert np.array_equal(again.adjacency, graph.adjacency)
    assert np.array_equal(again.activation_values, graph.activation_values)


@pytest.mark.parametrize(
    "change",
    [
        {"adjacency_matrix": np.zeros((3, 4), np.float32)},
        {"adjacency_matrix": np.zeros((3, 3), np.float32)},
        {"adjacency_matrix": "x"},
        {"active_features": np.zeros((3, 2), int)},
        {"active_features": np.zeros((0, 3), int)},
        {"selected_features": np.array([10**6])},
        {"selected_features": np.array([-1])},
        {"activation_values": np.zeros(1)},
        {"input_tokens": np.array([-5] * 9)},
        {"logit_targets": [("a",)]},
        {"logit_targets": []},
        {"logit_probabilities": np.array([np.nan])},
        {"input_string": "\ud800"},
        {"vocab_size": -1},
        {"cfg": SimpleNamespace(n_layers=10**9)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_graphs_that_do_not_fit(graph: cs.Graph, change: dict[str, object]) -> None:
    with pytest.raises((cs.Error, TypeError)):
        cs.Graph.from_circuit_tracer(theirs_of(graph, **change))


def test_a_pickle_is_opened_by_circuit_tracer_alone(
    graph: cs.Graph, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = tmp_path / "graph.pt"
    # Whoever unpickled this would make a file.
    evil.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "opened").encode() + b"'\ntR.")
    monkeypatch.setitem(sys.modules, "circuit_tracer", None)
    with pytest.raises(ImportError, match="only circuit-tracer itself opens"):
        cs.Graph.from_circuit_tracer(evil)
    asked = []
    program = types.ModuleType("circuit_tracer")
    program.Graph = SimpleNamespace(from_pt=lambda name: asked.append(name) or theirs_of(graph))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "circuit_tracer", program)
    assert np.array_equal(cs.Graph.from_circuit_tracer(evil).adjacency, graph.adjacency)
    assert asked == [str(evil)] and not (tmp_path / "opened").exists()
    with pytest.raises(TypeError, match="no graph of circuit-tracer"):
        cs.Graph.from_circuit_tracer(object())


def test_tensors_need_torch(graph: cs.Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(cs.InputError):
        graph.to_circuit_tracer("jax")
    try:
        import torch
    except ImportError:
        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(ImportError, match="PyTorch"):
            graph.to_circuit_tracer()
    else:
        parts = graph.to_circuit_tracer()
        assert parts["adjacency_matrix"].dtype == torch.float32 and parts["active_features"].dtype == torch.int64
        again = cs.Graph.from_circuit_tracer(theirs_of(graph, **parts))
        assert np.array_equal(again.adjacency, graph.adjacency)
