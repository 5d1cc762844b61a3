//! Open and closed positions: what a closed position gives is exactly what attention reads there.

use std::collections::BTreeMap;

use candle_core::Tensor;
use circuitscope::attribution::{Attribution, AttributionOptions, OpenChoice, RowChoice, attribute, linearized};
use circuitscope::export::{read_raw, write_raw};
use circuitscope::graph::{NodeId, NodeKind};
use circuitscope::job::Job;
use circuitscope::model::{Activations, ForwardOptions, HookPoint, Norm, NormKind};
use circuitscope::replacement::{LinearModel, Origin, Replacement, Sources, TargetBatch, TargetSite, spans};
use circuitscope::transcoder::{InputHook, OutputHook};

use crate::reference::{Case, cases};
use crate::support::Random;

/// f32 sums in other orders, as a part of all that a row was summed from.
const SUM_TOL: f64 = 5e-6;

fn trace(replacement: &Replacement, case: &Case, open: OpenChoice) -> Attribution {
    let options = AttributionOptions { rows: RowChoice::All, open, ..case.options() };
    let tokens = replacement.tokenizer.encode_prompt(case.prompt()).unwrap();
    let job = Job::default();
    let linear = linearized(replacement, &tokens, &options, &job).unwrap();
    attribute(replacement, &linear, case.prompt(), &options, &job).unwrap()
}

/// Some choices of open positions: a suffix, a span in the middle, every other one, one alone, all but the first.
fn choices(n_pos: usize) -> Vec<Vec<usize>> {
    let all = [
        (n_pos / 2..n_pos).collect::<Vec<_>>(),
        (1..n_pos.div_ceil(2)).collect(),
        (0..n_pos).step_by(2).collect(),
        vec![n_pos - 1],
        (1..n_pos).collect(),
    ];
    all.into_iter().filter(|open| !open.is_empty()).collect()
}

/// Rows of numbers, in f64.
type Matrix = Vec<Vec<f64>>;

fn matrix(tensor: &Tensor) -> Matrix {
    let width = tensor.dims().last().copied().unwrap();
    let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    values.chunks_exact(width).map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    matrix(&tensor.flatten_all().unwrap()).concat()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `x · w`, row by row. `w` `[d_in, d_out]`
fn product(x: &Matrix, w: &Matrix) -> Matrix {
    let of_row = |row: &Vec<f64>| {
        let mut out = vec![0.0; w[0].len()];
        row.iter().zip(w).for_each(|(x, w)| out.iter_mut().zip(w).for_each(|(out, w)| *out += x * w));
        out
    };
    x.iter().map(of_row).collect()
}

/// The literal twin: gradients of every position and every layer, dense, in f64, from weights and a run of the model; no
/// ragged batches, no folded norms, no places. Before each layer the gradient at closed positions is dotted with the
/// residual stream there and then set to zero.
struct Twin<'a> {
    replacement: &'a Replacement,
    /// The sources of all positions.
    linear: LinearModel,
    kept: Activations,
    closed: Vec<usize>,
}

impl<'a> Twin<'a> {
    fn new(replacement: &'a Replacement, tokens: &[u32], closed: Vec<usize>) -> Self {
        let mut kept = Activations::at(replacement.points());
        replacement.model.forward(&[tokens.to_vec()], &mut kept, ForwardOptions::default()).unwrap();
        let linear = replacement.linearize(tokens, &Job::default()).unwrap();
        Self { replacement, linear, kept, closed }
    }

    fn at(&self, point: HookPoint) -> &Tensor {
        self.kept.need(point).unwrap()
    }

    /// The transpose of a norm with the scale of the run.
    fn through_norm(&self, grad: &Matrix, norm: &Norm, scale: HookPoint, gain: bool) -> Matrix {
        let scales = values(self.at(scale));
        let gains = values(&norm.gain);
        let of_row = |(row, scale): (&Vec<f64>, &f64)| {
            let mut row: Vec<f64> =
                row.iter().zip(&gains).map(|(g, gain_here)| g * if gain { *gain_here } else { 1.0 } / scale).collect();
            if norm.kind == NormKind::Layer {
                let mean = row.iter().sum::<f64>() / row.len() as f64;
                row.iter_mut().for_each(|g| *g -= mean);
            }
            row
        };
        grad.iter().zip(&scales).map(of_row).collect()
    }

    /// From the input hook of a layer down to the residual stream before its MLP.
    fn through_input(&self, grad: &Matrix, layer: usize) -> Matrix {
        let weights = self.replacement.model.layer(layer).unwrap();
        match self.replacement.transcoders.input_hook {
            InputHook::ResidMid => grad.clone(),
            InputHook::Normalized => self.through_norm(grad, &weights.mlp_norm, HookPoint::Ln2Scale(layer), false),
            InputHook::MlpIn => self.through_norm(grad, &weights.mlp_norm, HookPoint::Ln2Scale(layer), true),
        }
    }

    /// From the residual stream after a layer to its output hook.
    fn to_output(&self, grad: &Matrix, layer: usize) -> Matrix {
        let weights = self.replacement.model.layer(layer).unwrap();
        match (&weights.post_mlp_norm, self.replacement.transcoders.output_hook) {
            (Some(norm), OutputHook::MlpOut) => self.through_norm(grad, norm, HookPoint::Ln2PostScale(layer), true),
            _ => grad.clone(),
        }
    }

    fn through_attention(&self, grad: &Matrix, layer: usize) -> Matrix {
        let weights = self.replacement.model.layer(layer).unwrap();
        let config = &self.replacement.model.config;
        let (n_heads, n_kv, d_head) = (config.n_heads, config.n_kv_heads, config.d_head);
        let written = match &weights.post_attn_norm {
            Some(norm) => self.through_norm(grad, norm, HookPoint::Ln1PostScale(layer), true),
            None => grad.clone(),
        };
        let z = product(&written, &matrix(&weights.vo.o.weight));
        // `[n_heads * n_pos]` rows of `[n_pos]`
        let pattern = matrix(self.at(HookPoint::AttnPattern(layer)));
        let n_pos = grad.len();
        let mut v = vec![vec![0.0; n_kv * d_head]; n_pos];
        for head in 0..n_heads {
            let kv = head / (n_heads / n_kv);
            for query in 0..n_pos {
                for key in 0..=query {
                    let weight = pattern[head * n_pos + query][key];
                    for d in 0..d_head {
                        v[key][kv * d_head + d] += weight * z[query][head * d_head + d];
                    }
                }
            }
        }
        let read = product(&v, &matrix(&weights.vo.v.weight));
        let below = self.through_norm(&read, &weights.attn_norm, HookPoint::Ln1Scale(layer), true);
        grad.iter().zip(&below).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect()
    }

    /// The row of one gradient: effects by node, and what comes from biases.
    fn row(&self, site: TargetSite, pos: usize, gradient: &[f64]) -> (BTreeMap<NodeId, f64>, f64) {
        let (mut row, mut bias) = (BTreeMap::new(), 0.0);
        let n_pos = self.linear.tokens.len();
        let mut grad = vec![vec![0.0; gradient.len()]; n_pos];
        grad[pos] = gradient.to_vec();
        let n_layers = self.linear.mlp_sources.len();
        let top = match site {
            TargetSite::FinalNorm => {
                let norm = self.replacement.model.final_norm().unwrap();
                grad = self.through_norm(&grad, &norm, HookPoint::LnFinalScale, true);
                n_layers
            }
            TargetSite::InputHook { layer } => {
                grad = self.through_input(&grad, layer);
                self.below_mlp(&mut grad, layer, &mut row, &mut bias);
                layer
            }
            TargetSite::AttentionInput { .. } => unreachable!("not among the targets here"),
        };
        for layer in (0..top).rev() {
            let at_output = self.to_output(&grad, layer);
            self.read(&self.linear.mlp_sources[layer], &at_output, &mut row, &mut bias);
            if let Some(w_skip) = self.replacement.transcoders.layers[layer].w_skip() {
                let skipped = self.through_input(&product(&at_output, &matrix(w_skip)), layer);
                for (grad, skipped) in grad.iter_mut().zip(&skipped) {
                    grad.iter_mut().zip(skipped).for_each(|(g, s)| *g += s);
                }
            }
            self.below_mlp(&mut grad, layer, &mut row, &mut bias);
        }
        self.read(&self.linear.embed_sources, &grad, &mut row, &mut bias);
        (row, bias)
    }

    /// Through the attention of a layer; then closed positions are read and let go.
    fn below_mlp(&self, grad: &mut Matrix, layer: usize, row: &mut BTreeMap<NodeId, f64>, bias: &mut f64) {
        if let Some(constants) = &self.linear.attn_constants[layer] {
            self.read(constants, grad, row, bias);
        }
        *grad = self.through_attention(grad, layer);
        let resid = matrix(self.at(HookPoint::ResidPre(layer)));
        for &pos in &self.closed {
            *row.entry(NodeId::Context { pos: pos as u32 }).or_default() += dot(&grad[pos], &resid[pos]);
            grad[pos].fill(0.0);
        }
    }

    fn read(&self, sources: &Sources, grad: &Matrix, row: &mut BTreeMap<NodeId, f64>, bias: &mut f64) {
        let vecs = matrix(&sources.vecs.vecs);
        for (pos, grad) in grad.iter().enumerate() {
            for at in sources.vecs.starts[pos]..sources.vecs.starts[pos + 1] {
                let effect = dot(grad, &vecs[at]);
                let node = match sources.origins[at] {
                    Origin::Feature(index) => {
                        let f = &self.linear.features.all[index];
                        NodeId::Feature { layer: f.layer as u32, pos: f.pos as u32, feature: f.feature as u32 }
                    }
                    Origin::Error { layer, pos } => NodeId::Error { layer: layer as u32, pos: pos as u32 },
                    Origin::Token { pos } => NodeId::Token { pos: pos as u32 },
                    Origin::Constant => {
                        *bias += effect;
                        continue;
                    }
                };
                *row.entry(node).or_default() += effect;
            }
        }
    }
}

#[test]
fn closed_positions_agree_with_a_literal_twin_on_every_reference_case() {
    for (seed, case) in cases().iter().enumerate() {
        let replacement = case.replacement();
        let tokens = replacement.tokenizer.encode_prompt(case.prompt()).unwrap();
        let mut random = Random::new(seed as u64);
        for open in choices(tokens.len()) {
            let name = format!("{}, open {open:?}", case.name);
            let found = trace(&replacement, case, OpenChoice::Spans(spans(&open)));
            let graph = &found.graph;
            let layout = graph.layout();
            assert!(graph.meta.row_identity_error < 1e-5, "{name}: {:e}", graph.meta.row_identity_error);
            // The position of the targets is open, whatever was asked for.
            assert!(graph.meta.target_positions.iter().all(|&pos| !layout.is_closed(pos as usize)), "{name}");
            let twin = Twin::new(&replacement, &tokens, layout.closed());
            // The targets, and some features of all layers.
            let mut rows: Vec<usize> = layout.target_rows().collect();
            rows.extend((0..8).filter(|_| layout.n_features() > 0).map(|_| random.below(layout.n_features())));
            for row in rows {
                let (site, pos, gradient) = match layout.node(layout.node_of_row(row).unwrap()).unwrap() {
                    NodeId::Feature { layer, pos, feature } => {
                        let layer = layer as usize;
                        let index = twin.linear.features.of_layer(layer);
                        let at = index
                            .map(|(_, f)| (f.pos, f.feature))
                            .position(|at| at == (pos as usize, feature as usize));
                        let gradient = twin.linear.features.encoder_vecs[layer].get(at.unwrap()).unwrap();
                        (TargetSite::InputHook { layer }, pos as usize, values(&gradient))
                    }
                    NodeId::Target { index } => match &found.targets[index as usize].kind {
                        circuitscope::attribution::TargetKind::Direction(direction) => {
                            (TargetSite::FinalNorm, found.targets[index as usize].pos, values(direction))
                        }
                        _ => continue,
                    },
                    other => panic!("{other} has a row"),
                };
                let (expected, _) = twin.row(site, pos, &gradient);
                let scale: f64 = expected.values().map(|effect| effect.abs()).sum();
                let mut n_compared = 0;
                for (column, &effect) in graph.row(row).iter().enumerate() {
                    let node = layout.node(column).unwrap();
                    let twin_effect = expected.get(&node).copied().unwrap_or_default();
                    let difference = (f64::from(effect) - twin_effect).abs();
                    assert!(difference <= SUM_TOL * scale, "{name}: row {row}, {node}: {effect} is not {twin_effect}");
                    n_compared += usize::from(twin_effect != 0.0);
                }
                // Nothing of the twin's is missing in the graph.
                let open_effects = expected.iter().filter(|(node, _)| layout.index(**node).is_some());
                assert_eq!(open_effects.filter(|(_, effect)| **effect != 0.0).count(), n_compared, "{name}: row {row}");
                let lost: f64 =
                    expected.iter().filter(|(n, _)| layout.index(**n).is_none()).map(|(_, e)| e.abs()).sum();
                assert!(lost == 0.0, "{name}: row {row} has {lost} at closed positions");
            }
        }
    }
}

#[test]
fn with_all_positions_open_nothing_changes() {
    for case in &cases() {
        let replacement = case.replacement();
        let n_pos = replacement.tokenizer.encode_prompt(case.prompt()).unwrap().len();
        let all = trace(&replacement, case, OpenChoice::All);
        let open = trace(&replacement, case, OpenChoice::Spans(vec![[0, n_pos]]));
        assert_eq!(all.graph.edge_rows.values(), open.graph.edge_rows.values(), "{}", case.name);
        assert_eq!(all.graph.bias_effect, open.graph.bias_effect, "{}", case.name);
        assert!(open.graph.layout().closed().is_empty());
    }
}

#[test]
fn contexts_are_in_files_prunings_and_both_forms() {
    let folder = tempfile::tempdir().unwrap();
    let case = &cases()[0];
    let replacement = case.replacement();
    let n_pos = replacement.tokenizer.encode_prompt(case.prompt()).unwrap().len();
    let found = trace(&replacement, case, OpenChoice::Spans(vec![[n_pos / 2, n_pos]]));
    let path = folder.path().join("graph.safetensors");
    write_raw(&found.graph, &path).unwrap();
    let again = read_raw(&path).unwrap();
    assert_eq!(again.layout(), found.graph.layout());
    assert_eq!(again.edge_rows.values(), found.graph.edge_rows.values());
    assert_eq!(again.context_at_all(), found.graph.context_at_all());
    assert_eq!(again.meta.closed_positions, [[0, n_pos / 2]]);
    // Layer by layer they are the edges.
    for (target, row) in again.layout().target_rows().enumerate() {
        let at = again.context_at(target).unwrap();
        for pos in 0..n_pos {
            let sum: f32 = (0..again.layout().n_layers()).map(|layer| at[layer * n_pos + pos]).sum();
            let edge =
                if again.layout().is_closed(pos) { again.row(row)[again.layout().tokens().start + pos] } else { 0.0 };
            assert!((sum - edge).abs() <= 1e-4 * edge.abs().max(1e-3), "position {pos}: {sum} is not {edge}");
        }
    }
    let traced = circuitscope::TracedGraph::read(&path).unwrap();
    let circuit = traced.prune(&circuitscope::PruneSettings::default()).unwrap();
    let contexts = circuit.graph().node_weights().filter(|node| node.id.kind() == NodeKind::Context).count();
    assert!(contexts > 0 && contexts <= n_pos / 2);
    let wire = circuitscope::export::WireGraph::new(&circuit, "closed").unwrap();
    assert!(wire.nodes.iter().any(|node| node.node_id == "C_1" || node.node_id == "C_0"));
    let back = wire.circuit().unwrap();
    let ids =
        |circuit: &circuitscope::graph::Circuit| circuit.graph().node_weights().map(|node| node.id).collect::<Vec<_>>();
    assert_eq!(ids(&back), ids(&circuit));
}

#[test]
fn gradients_are_where_positions_are_open() {
    let case = &cases()[0];
    let replacement = case.replacement();
    let tokens = replacement.tokenizer.encode_prompt(case.prompt()).unwrap();
    let positions = circuitscope::replacement::OpenPositions::new(vec![tokens.len() - 1], tokens.len()).unwrap();
    let linear = replacement.linearize_open(&tokens, &positions, &Job::default()).unwrap();
    let batch = TargetBatch {
        site: TargetSite::FinalNorm,
        positions: vec![0],
        gradients: linear.final_normed.narrow(0, 0, 1).unwrap(),
    };
    linear
        .pull_back(&batch, &mut |_, grad, ragged| {
            assert_eq!((grad.dim(0)?, ragged.n_segments()), (1, 1));
            Ok(())
        })
        .unwrap();
}
