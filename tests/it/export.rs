//! Files: what is written is valid, complete and comes back; what is damaged is refused without a panic.

use std::collections::BTreeMap;
use std::path::Path;

use circuitscope::Error;
use circuitscope::circuits::{Summary, SummarySettings, summarize};
use circuitscope::export::{WireGraph, read_raw, read_wire, wire, write_raw, write_wire};
use circuitscope::graph::{AttributionGraph, Circuit, NodeId, influence};
use circuitscope::labels::Labels;
use circuitscope::prune::{PruneSettings, prune};
use petgraph::visit::EdgeRef;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::graph::any_graph;
use crate::reference::cases;
use crate::support::close;

fn circuit_of(graph: &AttributionGraph, settings: &PruneSettings) -> Circuit {
    let influence = influence(&graph.edge_rows, graph.layout(), &graph.target_probabilities);
    prune(graph, &influence, settings).unwrap().circuit(graph).unwrap()
}

/// All links by the nodes at their ends.
fn links_of(circuit: &Circuit) -> BTreeMap<(NodeId, NodeId), f32> {
    let graph = circuit.graph();
    let ends = |edge: petgraph::graph::EdgeReference<'_, circuitscope::graph::Edge>| {
        ((graph[edge.source()].id, graph[edge.target()].id), edge.weight().weight)
    };
    graph.edge_references().map(ends).collect()
}

#[test]
fn pruned_graphs_equal_those_of_the_reference() {
    for case in cases() {
        let graph = case.graph();
        let circuit = circuit_of(&graph, &PruneSettings::default());
        let ours = WireGraph::new(&circuit, "slug").unwrap();
        let theirs = read_wire(&case.wire_path()).unwrap();
        let their_circuit = theirs.circuit().unwrap();
        assert_eq!(their_circuit.meta.n_layers, circuit.meta.n_layers, "{}", case.name);

        let ids = |circuit: &Circuit| -> std::collections::BTreeSet<NodeId> {
            circuit.graph().node_weights().map(|node| node.id).collect()
        };
        assert_eq!(ids(&circuit), ids(&their_circuit), "{}", case.name);
        assert_eq!(links_of(&circuit), links_of(&their_circuit), "{}", case.name);
        let mut n_influences = 0;
        for node in circuit.graph().node_weights() {
            let their_node = their_circuit.node(their_circuit.find(node.id).unwrap());
            let what = format!("{} {:?}", case.name, node.id);
            assert_eq!(node.token_id, their_node.token_id, "{what}");
            assert_eq!(node.probability, their_node.probability, "{what}");
            assert_eq!(node.activation, their_node.activation, "{what}");
            if let (Some(actual), Some(expected)) = (node.influence, their_node.influence) {
                close(actual, expected, 2e-6, 0.0, &what);
                n_influences += 1;
            }
        }
        assert!(n_influences > 0, "{}: no influence was compared", case.name);
        // Except for the ids of errors, the nodes read the same.
        let by_id: BTreeMap<&str, _> = theirs.nodes.iter().map(|node| (node.node_id.as_str(), node)).collect();
        for node in ours.nodes.iter().filter(|node| node.feature_type != "mlp reconstruction error") {
            let theirs = by_id[node.node_id.as_str()];
            assert_eq!(node.feature, theirs.feature, "{}", node.node_id);
            assert_eq!(node.layer, theirs.layer, "{}", node.node_id);
            assert_eq!(node.js_node_id, theirs.js_node_id, "{}", node.node_id);
            assert_eq!(node.is_target_logit, theirs.is_target_logit, "{}", node.node_id);
            assert_eq!(node.clerp, theirs.clerp, "{}", node.node_id);
        }
    }
}

#[test]
fn error_ids_of_circuit_tracer_that_equal_feature_ids_are_told_apart() {
    let node = |id: &str, layer: &str, pos: u32, kind: &str| {
        json!({"node_id": id, "feature": 0, "layer": layer, "ctx_idx": pos, "feature_type": kind, "jsNodeId": "",
               "clerp": ""})
    };
    let link = |source: &str, target: &str, weight: f64| json!({"source": source, "target": target, "weight": weight});
    let (feature, error) = ("cross layer transcoder", "mlp reconstruction error");
    let graph = json!({
        "metadata": {"slug": "s", "scan": null, "prompt_tokens": ["a", "b"], "prompt": "ab"},
        "qParams": {},
        "nodes": [
            node("0_2_1", "0", 1, feature), node("1_9_1", "1", 1, feature), node("3_5_1", "3", 1, feature),
            node("0_2_1", "2", 1, error), node("E_7_1", "E", 1, "embedding"), node("5_8_1", "5", 1, "logit"),
        ],
        "links": [
            link("E_7_1", "0_2_1", 1.0),
            link("0_2_1", "1_9_1", 2.0),
            link("0_2_1", "3_5_1", 3.0), link("0_2_1", "3_5_1", 4.0), link("E_7_1", "3_5_1", 5.0),
            link("3_5_1", "5_8_1", 6.0), link("0_2_1", "5_8_1", 7.0),
        ],
    });
    let graph = wire::parse_wire(graph.to_string().as_bytes(), "test").unwrap();
    let circuit = graph.circuit().unwrap();
    let feature = |layer, feature| NodeId::Feature { layer, pos: 1, feature };
    let error = NodeId::Error { layer: 2, pos: 1 };
    let (token, target) = (NodeId::Token { pos: 1 }, NodeId::Target { index: 0 });
    let expected = BTreeMap::from([
        ((token, feature(0, 2)), 1.0),
        ((feature(0, 2), feature(1, 9)), 2.0),
        ((feature(0, 2), feature(3, 5)), 3.0),
        ((error, feature(3, 5)), 4.0),
        ((token, feature(3, 5)), 5.0),
        ((feature(3, 5), target), 6.0),
        ((error, target), 7.0),
    ]);
    assert_eq!(links_of(&circuit), expected);
    let ours = WireGraph::new(&circuit, "s").unwrap();
    assert!(ours.nodes.iter().any(|node| node.node_id == "2_-1_1"));
}

#[test]
fn unknown_fields_survive_a_round_trip() {
    let text = json!({
        "metadata": {"slug": "s", "scan": "m", "prompt_tokens": ["a"], "prompt": "a", "transcoder_list": [1], "x": {"y": 2}},
        "qParams": {"pinnedIds": ["E_1_0"], "z": 3},
        "nodes": [{"node_id": "E_1_0", "feature": 0, "layer": "E", "ctx_idx": 0, "feature_type": "embedding",
                   "jsNodeId": "E_1-0", "clerp": "", "qk_tracing_results": {"a": []}}],
        "links": [],
        "qk_only_nodes": {"a": 1},
    });
    let graph = wire::parse_wire(text.to_string().as_bytes(), "test").unwrap();
    let back: Value = serde_json::to_value(&graph).unwrap();
    assert_eq!(back["metadata"]["x"], text["metadata"]["x"]);
    assert_eq!(back["metadata"]["transcoder_list"], text["metadata"]["transcoder_list"]);
    assert_eq!(back["qParams"], text["qParams"]);
    assert_eq!(back["qk_only_nodes"], text["qk_only_nodes"]);
    assert_eq!(back["nodes"][0]["qk_tracing_results"], text["nodes"][0]["qk_tracing_results"]);
}

#[test]
fn links_to_missing_nodes_and_strange_ids_are_refused() {
    let graph = |nodes: Value, links: Value| {
        let text = json!({"metadata": {"slug": "s", "scan": "m", "prompt_tokens": ["a"], "prompt": "a"},
                          "qParams": {}, "nodes": nodes, "links": links});
        wire::parse_wire(text.to_string().as_bytes(), "test").unwrap().circuit()
    };
    let node = |id: &str, layer: &str| {
        json!({"node_id": id, "feature": 0, "layer": layer, "ctx_idx": 0, "feature_type": "cross layer transcoder",
               "jsNodeId": "", "clerp": ""})
    };
    let link = json!([{"source": "0_1_0", "target": "0_7_0", "weight": 1.0}]);
    let error = graph(json!([node("0_1_0", "0")]), link).unwrap_err();
    assert!(matches!(&error, Error::LinkToNowhere { missing, .. } if missing == "0_7_0"), "{error}");
    assert!(matches!(graph(json!([node("0_1_0", "x")]), json!([])), Err(Error::WireNode { .. })));
    assert!(matches!(graph(json!([node("nonsense", "0")]), json!([])), Err(Error::WireNode { .. })));
    let twice = graph(json!([node("0_1_0", "0"), node("0_1_0", "0")]), json!([]));
    assert!(matches!(twice, Err(Error::CircuitDuplicate { .. })));
}

pub fn schema() -> jsonschema::Validator {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/graph-schema.json");
    let schema: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    jsonschema::validator_for(&schema).unwrap()
}

#[test]
fn json_is_valid_against_the_published_schema() {
    let schema = schema();
    for case in cases() {
        let circuit = circuit_of(&case.graph(), &PruneSettings::default());
        let json = serde_json::to_value(WireGraph::new(&circuit, "slug").unwrap()).unwrap();
        if let Err(error) = schema.validate(&json) {
            panic!("{}: {error}", case.name);
        }
    }
    assert!(!schema.is_valid(&json!({"nodes": []})), "the schema refuses what it should");
}

#[test]
fn the_same_graph_gives_the_same_bytes() {
    let case = &cases()[0];
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str| {
        let graph = case.graph();
        let (raw, json) =
            (folder.path().join(format!("{name}.safetensors")), folder.path().join(format!("{name}.json")));
        write_raw(&graph, &raw).unwrap();
        let circuit = circuit_of(&graph, &PruneSettings::default());
        write_wire(&WireGraph::new(&circuit, "slug").unwrap(), &json).unwrap();
        (std::fs::read(raw).unwrap(), std::fs::read(json).unwrap())
    };
    assert_eq!(write("a"), write("b"));
}

#[test]
fn a_raw_graph_is_ordinary_safetensors() {
    let graph = cases()[0].graph();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("graph.safetensors");
    write_raw(&graph, &path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let edge_rows = tensors.tensor("edge_rows").unwrap();
    assert_eq!(edge_rows.shape(), [graph.layout().n_rows(), graph.layout().n_nodes()]);
    let offset = edge_rows.data().as_ptr() as usize - bytes.as_ptr() as usize;
    assert_eq!(offset % 4, 0, "aligned, so that a memory map can be used as it is");
}

#[test]
fn a_raw_graph_of_another_version_is_refused() {
    let graph = cases()[0].graph();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("graph.safetensors");
    write_raw(&graph, &path).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let key = br#"format_version\":1"#;
    let place = bytes.windows(key.len()).position(|window| window == key).unwrap();
    bytes[place + key.len() - 1] = b'7';
    std::fs::write(&path, bytes).unwrap();
    let error = read_raw(&path).unwrap_err();
    assert!(matches!(error, Error::GraphVersion { actual: 7, expected: 1, .. }), "{error}");
    assert!(error.hint().is_some());
}

#[test]
fn other_files_are_no_raw_graphs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    assert!(matches!(read_raw(&path), Err(Error::Io { .. })));
    std::fs::write(&path, b"").unwrap();
    assert!(read_raw(&path).is_err());
    std::fs::write(&path, b"{\"metadata\": {}}").unwrap();
    assert!(matches!(read_raw(&path), Err(Error::Damaged { .. })));
    let tensors: [(&str, safetensors::tensor::TensorView<'_>); 0] = [];
    std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    assert!(matches!(read_raw(&path), Err(Error::Damaged { .. })));
}

#[test]
fn label_files_name_features_and_are_checked() {
    let labels = Labels::parse(br#"{"3_41": "Texas", "0_2": "say \"a\""}"#, "f").unwrap();
    assert_eq!(labels.get(3, 41), Some("Texas"));
    assert_eq!(labels.get(3, 42), None);
    assert_eq!(labels.of([(3, 41), (3, 42)]).len(), 1);
    assert!(Labels::parse(br#"{"Texas": "3_41"}"#, "f").is_err());
    assert!(Labels::parse(b"[]", "f").is_err());

    let mut graph = cases()[0].graph();
    let first = graph.layout().feature_ids().iter().map(|f| (f.layer, f.feature));
    let keys: Vec<String> = first.map(|(layer, feature)| format!("{layer}_{feature}")).collect();
    graph.meta_mut().feature_labels = keys.into_iter().map(|key| (key, "a label".to_owned())).collect();
    let circuit = circuit_of(&graph, &PruneSettings::default());
    let wire = WireGraph::new(&circuit, "s").unwrap();
    let features = wire.nodes.iter().filter(|node| node.feature_type == "cross layer transcoder");
    assert!(features.into_iter().all(|node| node.clerp == "a label"));
}

#[test]
fn a_summary_names_every_part_and_reads_back() {
    for case in cases().iter().take(4) {
        let circuit =
            circuit_of(&case.graph(), &PruneSettings { node_threshold: 0.99, edge_threshold: 0.99, max_nodes: None });
        let prediction = summarize(&circuit, &SummarySettings::default()).unwrap().predictions[0].id.clone();
        let settings = SummarySettings { node: Some(prediction), ..SummarySettings::default() };
        let summary = summarize(&circuit, &settings).unwrap();
        assert_eq!(summary.counts.nodes(), circuit.graph().node_count());
        assert_eq!(summary.predictions.len(), circuit.targets().len());
        assert!(!summary.paths.is_empty());
        assert!(summary.paths.windows(2).all(|pair| pair[0].strength >= pair[1].strength));
        let node = &summary.nodes[0];
        let inputs = node.inputs.positive.iter().chain(&node.inputs.negative);
        let share: f64 = inputs.map(|edge| edge.edge_share).sum();
        assert!(share > 0.0 && share <= 1.0 + 1e-9);
        let json = serde_json::to_string(&summary).unwrap();
        let back: Summary = serde_json::from_str(&json).unwrap();
        assert_eq!(back.strongest.len(), summary.strongest.len());
        assert!(circuitscope::cli::summary_text(&summary).contains(&summary.nodes[0].node.id));

        let unknown = SummarySettings { node: Some("99_1_1".to_owned()), ..SummarySettings::default() };
        assert!(matches!(summarize(&circuit, &unknown), Err(Error::UnknownNode { .. })));
    }
}

fn same(a: &AttributionGraph, b: &AttributionGraph) -> bool {
    a.layout() == b.layout()
        && a.input_tokens == b.input_tokens
        && a.active_features == b.active_features
        && a.activation_values == b.activation_values
        && a.selected_features == b.selected_features
        && a.edge_rows.values() == b.edge_rows.values()
        && a.bias_effect == b.bias_effect
        && a.row_values == b.row_values
        && a.target_ids == b.target_ids
        && a.target_probabilities == b.target_probabilities
        && a.logits == b.logits
        && a.meta == b.meta
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn raw_graphs_come_back_as_they_were(graph in any_graph()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("graph.safetensors");
        write_raw(&graph, &path).unwrap();
        prop_assert!(same(&read_raw(&path).unwrap(), &graph));
    }

    #[test]
    fn json_graphs_come_back_as_they_were(graph in any_graph(), threshold in 0.3f64..1.0) {
        let circuit = circuit_of(&graph, &PruneSettings { node_threshold: threshold, edge_threshold: threshold, max_nodes: None });
        let wire = WireGraph::new(&circuit, "slug").unwrap();
        let bytes = serde_json::to_vec(&wire).unwrap();
        let back = wire::parse_wire(&bytes, "test").unwrap();
        prop_assert_eq!(&back, &wire);
        let back = back.circuit().unwrap();
        prop_assert_eq!(links_of(&back), links_of(&circuit));
        let nodes: Vec<_> = circuit.graph().node_weights().collect();
        prop_assert_eq!(back.graph().node_weights().collect::<Vec<_>>(), nodes);
        prop_assert_eq!(&back.meta, &circuit.meta);
        prop_assert_eq!(serde_json::to_vec(&WireGraph::new(&back, "slug").unwrap()).unwrap(), bytes);
        let mut ids: Vec<&str> = wire.nodes.iter().map(|node| node.node_id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        prop_assert_eq!(ids.len(), wire.nodes.len(), "ids are unique");
        prop_assert!(schema().is_valid(&serde_json::to_value(&wire).unwrap()));
    }

    #[test]
    fn damaged_raw_graphs_never_panic(
        graph in any_graph(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        keep in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("graph.safetensors");
        write_raw(&graph, &path).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Some(keep) = keep {
            bytes.truncate(keep.index(bytes.len()));
        }
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(graph) = read_raw(&path) {
            let influence = influence(&graph.edge_rows, graph.layout(), &graph.target_probabilities);
            if let Ok(pruned) = prune(&graph, &influence, &PruneSettings::default()) {
                let circuit = pruned.circuit(&graph).unwrap();
                let _ = WireGraph::new(&circuit, "slug");
                summarize(&circuit, &SummarySettings::default()).unwrap();
            }
        }
    }

    #[test]
    fn damaged_json_graphs_never_panic(
        graph in any_graph(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(b"0123456789_-E\"{}[],.null ".to_vec())), 1..8),
    ) {
        let circuit = circuit_of(&graph, &PruneSettings::default());
        let mut bytes = serde_json::to_vec(&WireGraph::new(&circuit, "slug").unwrap()).unwrap();
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Ok(circuit) = wire::parse_wire(&bytes, "test").and_then(|graph| graph.circuit()) {
            summarize(&circuit, &SummarySettings::default()).unwrap();
            let _ = WireGraph::new(&circuit, "slug");
        }
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, &bytes).unwrap();
        prop_assert!(read_raw(&path).is_err());
        prop_assert!(wire::parse_wire(&bytes, "x").is_err());
        prop_assert!(Labels::parse(&bytes, "x").is_err());
    }
}
