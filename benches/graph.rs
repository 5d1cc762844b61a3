//! Influence and pruning at the size of SmolLM2-135M's graphs: 30 layers, 6 positions. Goal: together under 0.2 s with
//! 4,219 features and under 1 s with 15,322, on two cores.

use std::hint::black_box;
use std::time::Duration;

use circuitscope::graph::{
    AttributionGraph, EdgeRows, FeatureId, GraphData, GraphMeta, NodeLayout, PartialRows, influence, partial_influence,
    scores,
};
use circuitscope::prune::{PruneSettings, prune};
use criterion::{Criterion, criterion_group, criterion_main};

const N_LAYERS: usize = 30;
const N_POS: usize = 6;
const N_TARGETS: usize = 10;

/// A graph with as many features in every layer and position but the first position, and edges wherever they can be.
fn synthetic(n_features: usize) -> AttributionGraph {
    let n_cells = N_LAYERS * (N_POS - 1);
    let mut features = Vec::with_capacity(n_features);
    for cell in 0..n_cells {
        let in_cell = (cell + 1) * n_features / n_cells - cell * n_features / n_cells;
        let (layer, pos) = ((cell / (N_POS - 1)) as u32, (cell % (N_POS - 1) + 1) as u32);
        features.extend((0..in_cell as u32).map(|feature| FeatureId { layer, pos, feature }));
    }
    let layout = NodeLayout::new(features.clone(), N_LAYERS, N_POS, N_TARGETS).unwrap();
    let (n_rows, n_nodes) = (layout.n_rows(), layout.n_nodes());
    let mut values = vec![0.0f32; n_rows * n_nodes];
    let mut state = 1u64;
    for row in 0..n_rows {
        for range in layout.source_ranges(row) {
            for value in &mut values[row * n_nodes..][range] {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let uniform = ((state >> 40) as f32 + 0.5) / (1u64 << 24) as f32 * 2.0 - 1.0;
                // Heavy tails, as real edges have: few matter.
                *value = uniform * uniform * uniform;
            }
        }
    }
    AttributionGraph::new(GraphData {
        input_tokens: vec![0; N_POS],
        activation_values: vec![1.0; n_features],
        selected_features: (0..n_features).collect(),
        active_features: features,
        edge_rows: EdgeRows::from_vec(values, n_rows, n_nodes).unwrap(),
        bias_effect: vec![0.0; n_rows],
        unselected_effect: Vec::new(),
        error_nodes: None,
        unselected_error_effect: Vec::new(),
        row_values: vec![0.0; n_rows],
        target_ids: (0..N_TARGETS as i64).collect(),
        target_probabilities: vec![0.1; N_TARGETS],
        logits: vec![0.0; 1],
        meta: GraphMeta {
            prompt_tokens: vec![String::new(); N_POS],
            target_labels: vec![String::new(); N_TARGETS],
            target_positions: vec![N_POS as u32 - 1; N_TARGETS],
            n_layers: N_LAYERS,
            ..GraphMeta::default()
        },
    })
    .unwrap()
}

fn bench(c: &mut Criterion) {
    for n_features in [4_219, 15_322] {
        let graph = synthetic(n_features);
        let layout = graph.layout();
        let weights = &graph.target_probabilities;
        let mut group = c.benchmark_group(format!("graph/{n_features}"));
        group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
        group.bench_function("influence", |b| b.iter(|| black_box(influence(&graph.edge_rows, layout, weights))));
        for (name, node_threshold, edge_threshold) in [("0.8_0.98", 0.8, 0.98), ("0.99_0.99", 0.99, 0.99)] {
            let settings = PruneSettings { node_threshold, edge_threshold, max_nodes: None };
            group.bench_function(format!("influence_scores_prune_circuit_{name}"), |b| {
                b.iter(|| {
                    let influence = influence(&graph.edge_rows, layout, weights);
                    black_box(scores(layout, &influence, weights));
                    black_box(prune(&graph, &influence, &settings).unwrap().circuit(&graph).unwrap())
                });
            });
        }
        group.bench_function("row_identity_error", |b| b.iter(|| black_box(graph.row_identity_error())));

        // As in the middle of partial attribution: the targets' rows and half of the features'.
        let visited: Vec<usize> = (0..n_features).step_by(2).collect();
        let mut values: Vec<f32> = (n_features..layout.n_rows()).flat_map(|row| graph.row(row)).copied().collect();
        visited.iter().for_each(|&row| values.extend_from_slice(graph.row(row)));
        let rows = PartialRows {
            values: &values,
            stride: layout.n_nodes(),
            n_columns: layout.targets().start,
            n_active: n_features,
            weights,
            visited: &visited,
        };
        group.bench_function("partial_influence_of_half_the_rows", |b| b.iter(|| black_box(partial_influence(&rows))));
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
