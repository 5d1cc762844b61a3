"""Arrays are views, records are complete, and figures are those of the library."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest
from conftest import DALLAS

import circuitscope as cs


def test_adjacency_is_the_graphs_own_memory(graph: cs.Graph) -> None:
    native = graph._native.array("adjacency").__array_interface__
    address, is_read_only = native["data"]
    assert graph.adjacency.__array_interface__["data"] == (address, True) and is_read_only
    assert graph.adjacency.shape == native["shape"] == (graph.n_features + graph.n_targets, len(graph))
    # Every view is of the same memory.
    assert np.shares_memory(graph.adjacency, np.asarray(graph._native.array("adjacency")))
    with pytest.raises(ValueError, match="read-only"):
        graph.adjacency[0, 0] = 1.0
    with pytest.raises(ValueError):
        graph.adjacency.flags.writeable = True


def test_views_take_no_memory_and_outlive_the_graph(tracer: cs.Tracer) -> None:
    graph = tracer.trace(DALLAS)
    tracemalloc.start()
    view = graph.adjacency
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 10_000 < view.nbytes
    whole, row = float(view.sum()), view[-1]
    del graph, view
    gc.collect()
    # What the allocator would hand out again is still ours.
    others = [np.full(row.shape, 7.0, np.float32) for _ in range(100)]
    assert float(row.base.sum() if row.base.ndim == 2 else whole) == pytest.approx(whole) and len(others) == 100


def test_a_graph_of_a_file_is_the_same(graph: cs.Graph, tmp_path) -> None:
    graph.save(tmp_path / "g.safetensors")
    read = cs.Graph.read(tmp_path / "g.safetensors")
    for name in (
        "adjacency active_features activation_values selected_features bias_effect unselected_effect row_values "
        "input_tokens target_ids target_probabilities logits influence"
    ).split():
        ours, theirs = getattr(graph, name), getattr(read, name)
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs), name
        assert not ours.flags.writeable and not theirs.flags.owndata, name
    assert read.nodes.dtype == graph.nodes.dtype and read.nodes.tobytes() == graph.nodes.tobytes()
    assert read.meta == graph.meta and repr(read) == repr(graph)


def test_rows_add_up(graph: cs.Graph) -> None:
    sums = graph.adjacency.astype(float).sum(axis=1) + graph.bias_effect
    if graph.unselected_effect.size:
        sums = sums + graph.unselected_effect
    if graph.unselected_error_effect.size:
        sums = sums + graph.unselected_error_effect
    scale = np.abs(graph.adjacency).sum(axis=1)
    assert (np.abs(sums - graph.row_values) / scale).max() < 1e-5


def test_nodes_are_records_in_the_order_of_the_columns(graph: cs.Graph) -> None:
    nodes = graph.nodes
    assert len(nodes) == len(graph) == graph.adjacency.shape[1]
    assert nodes[0].kind == "feature" and nodes[-1].kind == "target"
    texas = nodes[graph.index("0_39_7")]
    assert (texas.layer, texas.feature, texas.pos, texas.text) == (0, 39, 7, " Dallas")
    assert texas.label == "Texas" and texas.activation == pytest.approx(22.296, abs=1e-3)
    assert nodes[nodes.kind == "token"].text.tolist() == graph.prompt_tokens
    assert nodes[nodes.kind == "target"].text.tolist() == graph.targets
    assert nodes.influence[graph.index("0_39_7")] == graph.influence[graph.index("0_39_7")]
    # The ids of the pruned graph are among those of the whole.
    assert set(graph.prune().nodes.id) <= set(nodes.id)
    with pytest.raises(cs.InputError, match="no node"):
        graph.index("0_40_7")


def test_closed_positions_have_contexts(tracer: cs.Tracer, tmp_path) -> None:
    graph = tracer.trace(DALLAS, open_positions="5..9")
    nodes = graph.nodes
    contexts = nodes[nodes.kind == "context"]
    assert contexts.id.tolist() == [f"C_{pos}" for pos in range(5)] and contexts.text.tolist() == graph.prompt_tokens[:5]
    assert set(nodes[nodes.kind == "feature"].pos) <= set(range(5, 9)) and (nodes.kind == "token").sum() == 4
    assert graph.adjacency[-1][graph.index("C_2")] != 0 and graph.meta["settings"]["open"] == "5..9"
    sums = graph.adjacency.astype(float).sum(axis=1) + graph.bias_effect
    assert np.allclose(sums, graph.row_values, atol=1e-3)
    assert "context" in graph.prune().nodes.kind and len(graph.prune(max_nodes=12)) <= 12 < len(graph.prune())
    with pytest.raises(cs.InputError, match="closed"):
        graph.to_circuit_tracer(library="numpy")
    graph.save(tmp_path / "g.safetensors")
    assert cs.Graph.read(tmp_path / "g.safetensors").nodes.tobytes() == nodes.tobytes()


def test_circuits_go_to_networkx_and_pandas(graph: cs.Graph) -> None:
    networkx = pytest.importorskip("networkx")
    pandas = pytest.importorskip("pandas")
    circuit = graph.prune()
    net, tables = circuit.to_networkx(), circuit.to_pandas()
    assert networkx.is_directed_acyclic_graph(net)
    assert (len(net), net.number_of_edges()) == (len(circuit), len(circuit.edges)) == (24, 74)
    assert net.nodes["0_39_7"]["label"] == "Texas" and "0_39_7" in circuit
    assert isinstance(tables.nodes, pandas.DataFrame) and len(tables.edges) == 74
    edge = tables.edges.iloc[0]
    assert net.edges[edge.source, edge.target]["weight"] == pytest.approx(float(edge.weight))
    # Edges of the circuit are entries of the adjacency.
    at = graph.adjacency
    row_of = {str(node): row for row, node in enumerate(graph.nodes.id[: graph.n_features])}
    row_of |= {str(node): graph.n_features + k for k, node in enumerate(graph.nodes.id[-graph.n_targets :])}
    for source, target, weight in zip(tables.edges.source, tables.edges.target, tables.edges.weight):
        assert at[row_of[target], graph.index(source)] == np.float32(weight)


def test_paths_go_from_tokens_to_the_target(graph: cs.Graph) -> None:
    circuit = graph.prune()
    paths = circuit.paths(k=10)
    assert len(paths) == 10 and all(a.strength >= b.strength for a, b in zip(paths, paths[1:]))
    for path in paths:
        assert path.nodes[0].startswith("E_") and path.sign in (-1, 1) and len(path.nodes) == len(path.names)
        shares = [_share(circuit, *ends) for ends in zip(path.nodes, path.nodes[1:])]
        assert np.prod(shares) == pytest.approx(path.strength)
    through = circuit.paths(3, sources="0_39_7")
    assert all(path.nodes[0] == "0_39_7" for path in through) and through


def _share(circuit: cs.Circuit, source: str, target: str) -> float:
    ids = list(circuit.nodes.id)
    edges = circuit.edges
    found = edges[(edges.source == ids.index(source)) & (edges.target == ids.index(target))]
    return float(found[0].share)


def test_distributions_are_those_of_the_report(tracer: cs.Tracer) -> None:
    run = tracer.intervene(DALLAS, {"0_39_7": 0.0, "0_303_7": 13.87}, generate=8)
    assert run.logits.dtype == np.float32 and not run.logits.flags.writeable and len(run.logits) == tracer.d_vocab
    p, q = run.before.probabilities, run.after.probabilities
    assert run.kl == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-9)
    assert run.kl == run.report["kl_divergence"]
    for change in run.report["tokens"]:
        assert run.before[change["token_id"]] == pytest.approx(change["probability_before"], rel=1e-12)
        assert run.after[change["token_id"]] == pytest.approx(change["probability_after"], rel=1e-12)
    assert run.before.top(1)[0].token == " Austin" and run.after.top(3)[0].probability >= run.after.top(3)[1].probability
    assert run.before.top(0) == [] and len(run.before.top(10**9)) == tracer.d_vocab
    assert run.generated != run.generated_before


def test_features_are_sparse_dense_and_named(tracer: cs.Tracer, graph: cs.Graph) -> None:
    hooks = ["blocks.0.hook_resid_pre", "blocks.1.attn.hook_pattern", "ln_final.hook_scale", "blocks.0.mlp.hook_in"]
    found = tracer.features(DALLAS, pre_activations=True, hooks=hooks)
    assert np.array_equal(found.active, graph.active_features)
    assert np.array_equal(found.activations, graph.activation_values)
    # The last row of a product of all positions, and the product of the last row.
    assert np.allclose(found.logits, graph.logits, rtol=0, atol=1e-4)
    assert found["0_39_7"] == pytest.approx(22.296, abs=1e-3) and found["0_39_1"] == 0.0
    n_pos = len(found.tokens)
    for layer in range(tracer.n_layers):
        dense, before = found.dense(layer), found.pre_activations[layer]
        assert dense.shape == before.shape == (n_pos, tracer.n_features[layer])
        on = dense > 0
        assert np.allclose(before[on], dense[on], rtol=1e-4, atol=1e-4)
    assert found.hooks["blocks.0.hook_resid_pre"].shape == (n_pos, tracer.d_model)
    pattern = found.hooks["blocks.1.attn.hook_pattern"]
    assert pattern.shape[1:] == (n_pos, n_pos) and np.allclose(pattern.sum(-1), 1, atol=1e-5)
    assert tracer.labels(["0_39_7", "0_39"]) == {"0_39_7": "Texas", "0_39": "Texas"}
    assert found.at(7)["0_39_7"] == found.to_dict()["0_39_7"]


def test_a_target_can_be_any_direction(tracer: cs.Tracer) -> None:
    rng = np.random.default_rng(0)
    for dtype in (np.float64, np.float32, np.float16):
        vec = rng.standard_normal(tracer.d_model).astype(dtype)
        graph = tracer.trace(DALLAS, cs.Direction(vec, "mine"))
        assert graph.targets == ["mine"] and graph.target_ids.tolist() == [-1]
    assert tracer.trace(DALLAS, [vec, " Austin", (" Austin", " Sacramento")]).n_targets == 3


def test_notebooks_and_terminals_show_them(graph: cs.Graph, tracer: cs.Tracer) -> None:
    circuit = graph.prune()
    assert "strongest nodes" in repr(graph) and "<svg" in graph._repr_html_() and "<pre>" in graph._repr_html_()
    assert circuit._repr_svg_() == circuit.svg() and circuit.png()[:8] == b"\x89PNG\r\n\x1a\n"
    hostile = tracer.trace("<script>alert('&')</script> is")
    assert "<script>" not in hostile._repr_html_()
    run = tracer.intervene(DALLAS, {"0_39_7": 0.0})
    assert "next token" in repr(run) and run._repr_html_().startswith("<pre>")
