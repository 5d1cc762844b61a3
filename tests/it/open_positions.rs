//! Open and closed positions: what a closed position gives is exactly what attention reads there.

#[path = "../../examples/synthesize/synthetic.rs"]
#[allow(dead_code)]
mod synthetic;

use std::collections::BTreeMap;

use candle_core::Tensor;
use circuitscope::attribution::{
    Attribution, AttributionOptions, OpenChoice, RowChoice, TargetKind, TargetMap, Visits, attribute, linearized,
};
use circuitscope::export::{read_raw, write_raw};
use circuitscope::graph::{ByPlace, NodeId, NodeKind};
use circuitscope::job::Job;
use circuitscope::model::{Activations, ForwardOptions, HookPoint, Norm, NormKind};
use circuitscope::replacement::{LinearModel, Origin, Replacement, Sources, TargetBatch, TargetSite, spans};
use circuitscope::transcoder::{InputHook, OutputHook};

use crate::reference::{Case, cases};
use crate::support::{PROMPT, Random, answer, file_named_by, open_replacement, refused_with, shared};

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
        let vecs = matrix(&sources.vecs.all().unwrap());
        for (pos, grad) in grad.iter().enumerate() {
            let here = sources.vecs.starts[pos]..sources.vecs.starts[pos + 1];
            for (vec, origin) in vecs[here.clone()].iter().zip(&sources.origins[here]) {
                let effect = dot(grad, vec);
                let node = match *origin {
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

/// Compares rows of a graph with closed positions, those of the targets and `n_features` others, with the twin's.
fn check_rows(replacement: &Replacement, found: &Attribution, n_features: usize, random: &mut Random, name: &str) {
    let graph = &found.graph;
    let layout = graph.layout();
    assert!(graph.meta.row_identity_error < 1e-5, "{name}: {:e}", graph.meta.row_identity_error);
    // The position of the targets is open, whatever was asked for.
    assert!(graph.meta.target_positions.iter().all(|&pos| !layout.is_closed(pos as usize)), "{name}");
    let tokens: Vec<u32> = graph.input_tokens.iter().map(|&token| token as u32).collect();
    let twin = Twin::new(replacement, &tokens, layout.closed());
    let mut rows: Vec<usize> = layout.target_rows().collect();
    rows.extend((0..n_features).filter(|_| layout.n_features() > 0).map(|_| random.below(layout.n_features())));
    for row in rows {
        let (site, pos, gradient) = match layout.node(layout.node_of_row(row).unwrap()).unwrap() {
            NodeId::Feature { layer, pos, feature } => {
                let layer = layer as usize;
                let mut of_layer = twin.linear.features.of_layer(layer);
                let at = of_layer.position(|(_, f)| (f.pos, f.feature) == (pos as usize, feature as usize));
                let gradient = twin.linear.features.encoder_vecs[layer].select([at.unwrap()].into_iter()).unwrap();
                (TargetSite::InputHook { layer }, pos as usize, values(&gradient))
            }
            NodeId::Target { index } => match &found.targets[index as usize].kind {
                TargetKind::Direction(direction) => {
                    (TargetSite::FinalNorm, found.targets[index as usize].pos, values(direction))
                }
                _ => continue,
            },
            other => panic!("{other} has a row"),
        };
        let (expected, _) = twin.row(site, pos, &gradient);
        let scale: f64 = expected.values().map(|effect| effect.abs()).sum();
        for (column, &effect) in graph.row(row).iter().enumerate() {
            let node = layout.node(column).unwrap();
            let twin_effect = expected.get(&node).copied().unwrap_or_default();
            let difference = (f64::from(effect) - twin_effect).abs();
            assert!(difference <= SUM_TOL * scale, "{name}: row {row}, {node}: {effect} is not {twin_effect}");
        }
        // What has no column is in the remainders, and closed positions have nothing but contexts.
        let is_closed = |node: &NodeId| layout.is_closed(node.pos().unwrap() as usize);
        let without_column = || expected.iter().filter(|(node, _)| layout.index(**node).is_none());
        let lost: f64 = without_column().filter(|(node, _)| is_closed(node)).map(|(_, effect)| effect.abs()).sum();
        assert!(lost == 0.0, "{name}: row {row} has {lost} at closed positions");
        let rest: f64 = without_column().map(|(_, effect)| effect).sum();
        let remainder = |of_rows: &[f32]| of_rows.get(row).map_or(0.0, |&effect| f64::from(effect));
        let kept = remainder(&graph.unselected_effect) + remainder(&graph.unselected_error_effect);
        assert!((rest - kept).abs() <= SUM_TOL * scale, "{name}: row {row}: the remainder {kept} is not {rest}");
        let contexts = expected.iter().filter(|(node, _)| node.kind() == NodeKind::Context).count();
        assert_eq!(contexts, layout.closed().len(), "{name}: row {row}");
    }
}

#[test]
fn closed_positions_agree_with_a_literal_twin_on_every_reference_case() {
    for (seed, case) in cases().iter().enumerate() {
        let replacement = case.replacement();
        let n_pos = replacement.tokenizer.encode_prompt(case.prompt()).unwrap().len();
        let mut random = Random::new(seed as u64);
        for open in choices(n_pos) {
            let found = trace(&replacement, case, OpenChoice::Spans(spans(&open)));
            check_rows(&replacement, &found, 8, &mut random, &format!("{}, open {open:?}", case.name));
        }
    }
}

#[test]
#[ignore = "needs CIRCUITSCOPE_SMOLLM2_GGUF (SmolLM2-135M-Instruct) and CIRCUITSCOPE_SHARED: cargo test --release --test it -- --ignored smollm2"]
fn closed_positions_of_smollm2_agree_with_a_literal_twin() {
    let (gguf, folder) = (file_named_by("CIRCUITSCOPE_SMOLLM2_GGUF"), shared("smollm2"));
    let replacement = open_replacement(&gguf, &folder.join("transcoders"));
    let prompt = "Fact: Michael Jordan plays the sport of basketball. Fact: Lionel Messi plays the sport of";
    let tokens = replacement.tokenizer.encode_prompt(prompt).unwrap();
    let (job, mut random) = (Job::default(), Random::new(3));
    let chosen = choices(tokens.len()).into_iter().map(|open| OpenChoice::Spans(spans(&open)));
    for open in chosen.chain([OpenChoice::Strongest(6)]) {
        let rows = RowChoice::Sampled { visits: Visits::Rows(200), nodes: Some(200) };
        let options = AttributionOptions { rows, max_logits: 2, open, ..Default::default() };
        let linear = linearized(&replacement, &tokens, &options, &job).unwrap();
        let found = attribute(&replacement, &linear, prompt, &options, &job).unwrap();
        check_rows(&replacement, &found, 6, &mut random, &format!("open {}", options.open));
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
    assert_eq!(again.by_place_all(ByPlace::Contexts), found.graph.by_place_all(ByPlace::Contexts));
    assert_eq!(again.meta.closed_positions, [[0, n_pos / 2]]);
    // Layer by layer they are the edges.
    for (target, row) in again.layout().target_rows().enumerate() {
        let at = again.by_place(ByPlace::Contexts, target).unwrap();
        for pos in 0..n_pos {
            let sum: f32 = (0..again.layout().n_layers()).map(|layer| at[layer * n_pos + pos]).sum();
            let edge =
                if again.layout().is_closed(pos) { again.row(row)[again.layout().tokens().start + pos] } else { 0.0 };
            assert!((sum - edge).abs() <= 1e-4 * edge.abs().max(1e-3), "position {pos}: {sum} is not {edge}");
        }
    }
    let traced = circuitscope::TracedGraph::read(&path).unwrap();
    let circuit = traced.prune(&crate::circuits::EVERYTHING).unwrap();
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

#[test]
fn patterns_of_some_queries_are_those_of_all() {
    let mut random = Random::new(5);
    for case in &cases() {
        let replacement = case.replacement();
        let config = &replacement.model.config;
        let n_vocab = config.d_vocab;
        // More than a pass takes at once where nobody sees the pattern.
        let tokens: Vec<u32> = (0..300).map(|_| random.below(n_vocab) as u32).collect();
        let at = |patterns: bool| {
            let points = (0..config.n_layers).map(HookPoint::ResidPre);
            let patterns = (0..config.n_layers).filter(move |_| patterns).map(HookPoint::AttnPattern);
            let mut kept = Activations::at(points.chain(patterns));
            let pass =
                replacement.model.forward(std::slice::from_ref(&tokens), &mut kept, ForwardOptions::default()).unwrap();
            (kept, matrix(&pass.resid_final.squeeze(0).unwrap()))
        };
        let ((whole, last), (_, in_blocks)) = (at(true), at(false));
        let scale = last.concat().iter().fold(0f64, |most, value| most.max(value.abs()));
        for (a, b) in last.concat().iter().zip(in_blocks.concat()) {
            assert!((a - b).abs() <= 1e-4 * scale, "{}: {a} is not {b}", case.name);
        }
        let queries = [0, 1, 7, 100, 101, 299];
        for layer in 0..config.n_layers {
            let resid_pre = whole.need(HookPoint::ResidPre(layer)).unwrap();
            let found = matrix(&replacement.model.patterns_of(layer, resid_pre, &queries).unwrap());
            let all = matrix(whole.need(HookPoint::AttnPattern(layer)).unwrap());
            for (row, found) in found.iter().enumerate() {
                let (head, query) = (row / queries.len(), queries[row % queries.len()]);
                for (a, b) in found.iter().zip(&all[head * tokens.len() + query]) {
                    assert!((a - b).abs() <= 1e-5, "{}: layer {layer}, query {query}: {a} is not {b}", case.name);
                }
            }
        }
    }
}

#[test]
fn the_map_of_a_prompt_is_the_rows_of_its_targets() {
    for case in &cases() {
        let replacement = case.replacement();
        let tokens = replacement.tokenizer.encode_prompt(case.prompt()).unwrap();
        let (n_layers, n_pos, job) = (replacement.model.config.n_layers, tokens.len(), Job::default());
        let prepared = replacement.prepare(&tokens, &job).unwrap();
        let map = TargetMap::new(&replacement, &prepared, &case.options(), &job).unwrap();
        let whole: f64 = map.positions().iter().sum();
        assert!((whole - 1.0).abs() < 1e-9, "{}: shares add up to {whole}", case.name);

        // What cross-layer transcoders write at a place is one thing to the map, features and errors of it.
        let is_per_layer = !case.name.contains("clt");
        let found = trace(&replacement, case, OpenChoice::All);
        let (graph, layout) = (&found.graph, found.graph.layout());
        let (mut features, mut errors) = (vec![0.0; n_layers * n_pos], vec![0.0; n_layers * n_pos]);
        let mut of_tokens = vec![0.0; n_pos];
        let weights: f64 = found.targets.iter().map(|target| f64::from(target.weight)).sum();
        for (row, target) in layout.target_rows().zip(&found.targets) {
            let all: f64 = graph.row(row).iter().map(|effect| f64::from(effect.abs())).sum();
            for (column, effect) in graph.row(row).iter().enumerate() {
                let part = f64::from(effect.abs()) / all * f64::from(target.weight) / weights;
                match layout.node(column).unwrap() {
                    NodeId::Feature { layer, pos, .. } => features[layer as usize * n_pos + pos as usize] += part,
                    NodeId::Error { layer, pos } => errors[layer as usize * n_pos + pos as usize] += part,
                    NodeId::Token { pos } => of_tokens[pos as usize] += part,
                    _ => {}
                }
            }
        }
        if is_per_layer {
            let mapped = map.features.iter().chain(&map.errors).chain(&map.tokens);
            for (at, (a, b)) in mapped.zip(features.iter().chain(&errors).chain(&of_tokens)).enumerate() {
                assert!((a - b).abs() < 2e-5, "{}: place {at}: {a} is not {b}", case.name);
            }
        }
        // The strongest positions are opened, with that of the targets, and no other.
        for number in [1, n_pos / 2] {
            let options = AttributionOptions { open: OpenChoice::Strongest(number.max(1)), ..case.options() };
            let linear = linearized(&replacement, &tokens, &options, &job).unwrap();
            let mut expected = map.strongest(number.max(1));
            expected.push(n_pos - 1);
            expected.sort_unstable();
            expected.dedup();
            assert_eq!(linear.positions.open(), expected, "{}", case.name);
        }
    }
}

#[test]
fn spans_and_limits_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for (args, parts) in [
        (&["--open-positions", "7..3"][..], &["--open-positions", "7..3"][..]),
        (&["--open-positions", "3..3"], &["3..3"]),
        (&["--open-positions", ""], &["--open-positions"]),
        (&["--open-positions", "first"], &["first", "auto:N"]),
        (&["--open-positions", "auto:0"], &["open", "0"]),
        (&["--open-positions", "3..12"], &["11", "9"]),
        (&["--open-positions", "8", "--target-attention", "1.0@8:7"], &["attention score", "open"]),
        (&["--open-positions", "8", "--heads"], &["heads", "open"]),
        (&["--memory", "4 lemons"], &["--memory", "4 lemons"]),
        (&["--memory", "1MB"], &["1 MB", "--memory"]),
        (&["--max-nodes", "0"], &["--max-nodes", "0"]),
    ] {
        refused_with(at, &[&["trace", PROMPT], args].concat(), parts);
        assert!(!at.join("graphs").exists() || at.join("graphs").read_dir().unwrap().next().is_none(), "{args:?}");
    }
}

#[test]
fn a_node_limit_holds_for_traces_and_prunings_of_both_forms_and_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let run = |args: &[&str]| answer(at, args);
    let sizes = |name: &str| {
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(at.join(name)).unwrap()).unwrap();
        let left_out = json["metadata"]["pruning_settings"]["n_nodes_left_out"].as_u64();
        (json["nodes"].as_array().unwrap().len(), left_out)
    };
    run(&["trace", PROMPT, "--slug", "all", "--quiet"]);
    let (n_all, left_out) = sizes("graphs/all.json");
    assert_eq!((n_all, left_out), (24, None));
    let told = run(&["trace", PROMPT, "--slug", "few", "--max-nodes", "15", "--quiet"]);
    let (n_few, left_out) = sizes("graphs/few.json");
    assert!(n_few <= 15 && left_out.unwrap() as usize >= n_all - 15, "{n_few}, {left_out:?}");
    assert!(told.contains(&format!("{} nodes of less influence left out", left_out.unwrap())), "{told}");
    run(&["prune", "graphs/all.safetensors", "--max-nodes", "15", "-o", "from-raw.json"]);
    assert_eq!(sizes("from-raw.json"), (n_few, left_out));
    let told = run(&["prune", "graphs/all.json", "--max-nodes", "15", "--node-threshold", "1", "-o", "from-json.json"]);
    let (n_from_json, left_out) = sizes("from-json.json");
    assert!(n_from_json <= 15 && left_out == Some((n_all - 15) as u64), "{n_from_json}, {left_out:?}");
    assert!(told.contains("left out"), "{told}");
}

#[test]
fn of_many_errors_the_strongest_are_nodes_and_the_rest_is_in_exact_remainders() {
    // More errors than all become nodes of: 24 layers, 400 positions.
    let (n_layers, n_pos) = (24, 400);
    let shape = synthetic::Shape {
        name: "small",
        n_layers,
        d_model: 32,
        d_mlp: 48,
        n_heads: 2,
        n_kv_heads: 1,
        d_head: 16,
        d_vocab: 300,
        family: synthetic::Family::Llama,
        d_transcoder: 64,
        l0: 3.0,
    };
    let folder = tempfile::tempdir().unwrap();
    let [model, transcoders] = ["model", "transcoders"].map(|name| folder.path().join(name));
    synthetic::write_model(&shape, &model).unwrap();
    synthetic::write_transcoders(&shape, shape.l0, &transcoders).unwrap();
    let replacement = open_replacement(&model, &transcoders);
    let mut random = Random::new(11);
    let tokens: Vec<u32> = (0..n_pos).map(|_| random.below(shape.d_vocab) as u32).collect();
    let job = Job::default();
    for open in [OpenChoice::All, OpenChoice::Spans(vec![[20, n_pos]])] {
        let rows = RowChoice::Sampled { visits: Visits::Rows(60), nodes: Some(40) };
        let options = AttributionOptions { rows, max_logits: 2, open, ..Default::default() };
        let linear = linearized(&replacement, &tokens, &options, &job).unwrap();
        let found = attribute(&replacement, &linear, "many", &options, &job).unwrap();
        let graph = &found.graph;
        let errors = graph.error_nodes.as_ref().unwrap();
        assert!(!errors.is_empty() && errors.len() <= 1500, "{} of {} errors", errors.len(), n_layers * n_pos);
        assert!(graph.unselected_error_effect.iter().any(|&effect| effect != 0.0));
        check_rows(&replacement, &found, 3, &mut random, &format!("open {}", options.open));
        // The remainders of targets, place by place, are the remainder of the row.
        for (target, row) in graph.layout().target_rows().enumerate() {
            let sum: f64 =
                graph.by_place(ByPlace::UnselectedErrors, target).unwrap().iter().map(|&v| f64::from(v)).sum();
            let scale: f64 = graph.row(row).iter().map(|v| f64::from(v.abs())).sum();
            assert!((sum - f64::from(graph.unselected_error_effect[row])).abs() <= 1e-5 * scale);
        }
        let path = folder.path().join("many.safetensors");
        write_raw(graph, &path).unwrap();
        let again = read_raw(&path).unwrap();
        assert_eq!(again.layout(), graph.layout());
        assert_eq!(again.unselected_error_effect, graph.unselected_error_effect);
        assert_eq!(again.by_place(ByPlace::UnselectedErrors, 0), graph.by_place(ByPlace::UnselectedErrors, 0));
        // Pruned, the circuit is whole: what is kept has its errors.
        let traced = circuitscope::TracedGraph::read(&path).unwrap();
        let circuit = traced.prune(&circuitscope::PruneSettings::default()).unwrap();
        assert!(circuit.graph().node_weights().any(|node| node.id.kind() == NodeKind::Error));
    }
}

#[test]
fn a_map_is_printed_drawn_and_written_and_its_positions_can_be_opened() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let run = |args: &[&str]| answer(at, args);
    let told = run(&["trace", PROMPT, "--coarse", "--slug", "dallas"]);
    for part in ["9 tokens", "\" Austin\"", "\" Dallas\"@7", "--open-positions"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(told.lines().all(|line| line.chars().count() <= 80), "{told}");
    let json: serde_json::Value =
        serde_json::from_str(&run(&["trace", PROMPT, "--coarse", "--format", "json"])).unwrap();
    let spans = json["spans"].as_array().unwrap();
    let sum: f64 = spans.iter().map(|span| span["share"].as_f64().unwrap()).sum();
    assert!(spans.len() == 9 && (sum - 1.0).abs() < 1e-9, "{spans:?}");
    let svg = std::fs::read_to_string(at.join("graphs/dallas.map.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("layer 0"));
    let csv = std::fs::read_to_string(at.join("graphs/dallas.map.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + 9 * 5);
    run(&["trace", PROMPT, "--open-positions", "7..9", "--quiet"]);
    for refused in [&["--rows", "5"][..], &["--open-positions", "3"], &["--heads"], &["--node-threshold", "0.5"]] {
        refused_with(at, &[&["trace", PROMPT, "--coarse"], refused].concat(), &["--coarse", refused[0]]);
    }
    refused_with(at, &["trace", PROMPT, "--coarse", "--target-attention", "1.0@8:7"], &["attention score"]);
}
