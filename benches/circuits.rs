//! What `inspect`, `prune`, `diff` and pictures do, on a pruned graph of 2,000 nodes and 200,000 links. Goal: a whole
//! command, loading included, under 200 ms.

use std::hint::black_box;
use std::time::Duration;

use circuitscope::circuits::{
    ClusterSettings, SummarySettings, carrying_paths, circuit_scores, collapse, common, diff, find_supernodes,
    neighborhood, summarize,
};
use circuitscope::export::{WireGraph, stream_wire, write_wire};
use circuitscope::graph::{Circuit, CircuitMeta, Link, Node, NodeId, strongest_paths};
use circuitscope::picture::{PictureSettings, arrange, csv_edges, png, svg};
use circuitscope::prune::{nodes_within, prune_links};
use criterion::{Criterion, criterion_group, criterion_main};
use petgraph::graph::NodeIndex;

const N_LAYERS: u32 = 30;
const N_POS: u32 = 10;
const N_NODES: usize = 2_000;
const N_LINKS: usize = 200_000;

fn synthetic() -> Circuit {
    let n_features = N_NODES - N_POS as usize - 1;
    let mut ids: Vec<NodeId> = (0..n_features as u32)
        .map(|at| NodeId::Feature { layer: at * N_LAYERS / n_features as u32, pos: at % N_POS, feature: at })
        .collect();
    ids.extend((0..N_POS).map(|pos| NodeId::Token { pos }));
    ids.push(NodeId::Target { index: 0 });
    let node = |id: NodeId| Node {
        id,
        pos: id.pos().unwrap_or(N_POS - 1),
        token_id: id.layer().is_none().then_some(1),
        text: "token".to_owned(),
        label: Some("what the feature stands for".to_owned()),
        activation: Some(1.0),
        influence: Some(0.5),
        probability: id.pos().is_none().then_some(0.9),
        estimate: None,
    };
    let nodes: Vec<Node> = ids.into_iter().map(node).collect();
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize
    };
    let mut links = std::collections::BTreeMap::new();
    while links.len() < N_LINKS {
        let (a, b) = (random() % nodes.len(), random() % nodes.len());
        let (source, target) = if nodes[a].id.height() < nodes[b].id.height() { (a, b) } else { (b, a) };
        if nodes[source].id.height() < nodes[target].id.height() {
            links.insert((target, source), (random() % 2_000) as f32 / 1_000.0 - 1.0);
        }
    }
    let links: Vec<Link> =
        links.into_iter().map(|((target, source), weight)| Link { source, target, weight }).collect();
    let prompt_tokens = vec!["token".to_owned(); N_POS as usize];
    let meta = CircuitMeta { prompt_tokens, n_layers: N_LAYERS as usize, ..CircuitMeta::default() };
    Circuit::new(meta, nodes, links).unwrap()
}

fn bench(c: &mut Criterion) {
    let circuit = synthetic();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bench.json");
    write_wire(&WireGraph::new(&circuit, "bench").unwrap(), &path).unwrap();
    let mut group = c.benchmark_group("circuits/2000_nodes_200000_links");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    group.bench_function("load_json", |b| b.iter(|| black_box(stream_wire(&path, None).unwrap().circuit().unwrap())));
    group.bench_function("prune_json", |b| {
        b.iter(|| {
            let mut graph = stream_wire(&path, Some(&|nodes| nodes_within(nodes, 0.8))).unwrap();
            let is_kept = prune_links(&graph.nodes, &mut graph.links, 0.98).unwrap();
            graph.keep_nodes(&is_kept);
            black_box(graph.to_wire())
        })
    });
    group
        .bench_function("summary", |b| b.iter(|| black_box(summarize(&circuit, &SummarySettings::default()).unwrap())));
    group.bench_function("paths_100", |b| {
        b.iter(|| black_box(strongest_paths(&circuit, &circuit.tokens(), &circuit.targets(), 100)));
    });
    group.bench_function("paths_100000", |b| {
        b.iter(|| black_box(strongest_paths(&circuit, &circuit.tokens(), &circuit.targets(), 100_000)))
    });
    group.bench_function("carry", |b| b.iter(|| black_box(carrying_paths(&circuit, 0.5))));
    group.bench_function("around", |b| b.iter(|| black_box(neighborhood(&circuit, &circuit.targets(), 3))));
    group.bench_function("scores", |b| b.iter(|| black_box(circuit_scores(&circuit))));
    group.bench_function("auto_group", |b| {
        b.iter(|| black_box(find_supernodes(&circuit, &ClusterSettings::default(), None)))
    });
    // As wide as SmolLM2's: every feature writes its own way.
    let direction = |node: NodeIndex| Some((0..576).map(|d| ((d * (node.index() + 1)) as f32).sin() / 17.0).collect());
    group.bench_function("auto_group_with_decoders", |b| {
        b.iter(|| black_box(find_supernodes(&circuit, &ClusterSettings::default(), Some(&direction))))
    });
    let groups = find_supernodes(&circuit, &ClusterSettings { cut: 0.0, ..ClusterSettings::default() }, None);
    let collapsed = collapse(&circuit, &groups).unwrap();
    group.bench_function("collapsed_scores", |b| b.iter(|| black_box(collapsed.scores(&circuit))));
    group.bench_function("diff", |b| b.iter(|| black_box(diff(&circuit, &circuit))));
    let two = [circuit.clone(), circuit.clone()];
    group.bench_function("common", |b| b.iter(|| black_box(common(&two, 2))));
    group.bench_function("csv", |b| b.iter(|| black_box(csv_edges(&circuit, &collapse(&circuit, &[]).unwrap()))));
    let settings = PictureSettings::default();
    let picture = || {
        let view = collapse(&circuit, &[]).unwrap();
        svg(&circuit, &view, &arrange(&circuit, &view, &settings))
    };
    group.bench_function("svg", |b| b.iter(|| black_box(picture())));
    group.bench_function("png", |b| b.iter(|| black_box(png(&picture(), settings.scale).unwrap())));
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
