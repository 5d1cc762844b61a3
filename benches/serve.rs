//! What a page asks a server for, at the size of SmolLM2-135M's graphs: 30 layers, 6 positions. Goal: pruned anew under 0.1 s
//! with 4,219 features and under 0.5 s with 15,322; links of a node under 5 ms.

use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use circuitscope::export::write_raw;
use circuitscope::graph::{
    AttributionGraph, EdgeRows, FeatureId, GraphData, GraphMeta, NodeLayout, RAW_FORMAT_VERSION,
};
use circuitscope::serve::{ServeOptions, Server};
use criterion::{Criterion, criterion_group, criterion_main};
use tokio::runtime::Runtime;
use tower::ServiceExt;

const N_LAYERS: usize = 30;
const N_POS: usize = 6;
const N_TARGETS: usize = 10;

/// Writes a graph with as many features in every layer and position but the first position, and edges wherever they can be.
fn write_synthetic(n_features: usize, path: &Path) {
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
                *value = uniform.powi(7);
            }
        }
    }
    let graph = AttributionGraph::new(GraphData {
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
            format_version: RAW_FORMAT_VERSION,
            prompt_tokens: vec!["token".to_owned(); N_POS],
            target_labels: vec!["target".to_owned(); N_TARGETS],
            target_positions: vec![N_POS as u32 - 1; N_TARGETS],
            n_layers: N_LAYERS,
            ..GraphMeta::default()
        },
    })
    .unwrap();
    write_raw(&graph, path).unwrap();
}

fn get(runtime: &Runtime, router: &Router, path: &str) -> usize {
    runtime.block_on(async {
        let request = Request::builder().uri(path).header("host", "127.0.0.1").body(Body::empty()).unwrap();
        let answer = router.clone().oneshot(request).await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        to_bytes(answer.into_body(), usize::MAX).await.unwrap().len()
    })
}

fn bench(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    for n_features in [4_219, 15_322] {
        let folder = tempfile::tempdir().unwrap();
        write_synthetic(n_features, &folder.path().join("graph.safetensors"));
        let serve = || {
            let options = ServeOptions { folder: Some(folder.path().to_owned()), ..ServeOptions::default() };
            Server::new(options).unwrap().router()
        };
        let mut group = c.benchmark_group(format!("serve/{n_features}"));
        group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(5));
        let router = serve();
        let mut step = 0u32;
        // Never the same thresholds twice: what is known already would be found again.
        let mut thresholds = move || {
            step += 1;
            format!("node_threshold={}", 0.6 + f64::from(step % 200_000) * 1e-6)
        };
        group.bench_function("open", |b| {
            b.iter(|| black_box(get(&runtime, &serve(), "/api/v1/graphs/graph/links.bin")))
        });
        group.bench_function("prune", |b| {
            b.iter(|| black_box(get(&runtime, &router, &format!("/api/v1/graphs/graph/links.bin?{}", thresholds()))))
        });
        for (name, path) in [
            ("nodes", "nodes.bin".to_owned()),
            ("links_again", "links.bin".to_owned()),
            ("links_of_a_node", format!("node/{}/links", n_features / 2)),
            ("all_links_of_a_node", format!("node/{}/links?whole=true", n_features / 2)),
        ] {
            let path = format!("/api/v1/graphs/graph/{path}");
            group.bench_function(name, |b| b.iter(|| black_box(get(&runtime, &router, &path))));
        }
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
