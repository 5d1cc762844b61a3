//! Heads of edges, in every family: against the same frozen model with heads taken out of it, which knows nothing of
//! flows.

use candle_core::Tensor;
use circuitscope::attribution::{
    Attribution, AttributionOptions, FrozenScore, Score, TargetKind, TargetRequest, Versus, attribute,
};
use circuitscope::graph::{AttributionGraph, EdgeHeads, Head, HeadFlow, HeadFlows, NodeId};
use circuitscope::heads::{FlowOptions, ScorePairs, bills, edge_in_full, head_flows, head_patterns, head_rows};
use circuitscope::intervene::{HeadChange, HeadIntervention, Mode, Original, Positions};
use circuitscope::job::Job;
use circuitscope::model::{ForwardOptions, HookPoint, Hooks, Layer};
use circuitscope::ops::SourceVecs;
use circuitscope::replacement::{LinearModel, Origin, PushUp, Replacement, Sources, TargetBatch, TargetSite};

use crate::reference::{Case, cases};
use crate::support::Random;

/// Of the sum of the sizes of what is added up: f32 sums in different orders.
const RTOL: f32 = 1e-4;

struct Traced {
    name: String,
    replacement: Replacement,
    linear: LinearModel,
    found: Attribution,
    case: Case,
}

/// One prompt of each family, with a graph in which every feature has a row.
fn traced() -> Vec<Traced> {
    let mut seen = Vec::new();
    let mut all = Vec::new();
    for case in cases() {
        if seen.contains(&case.family().to_owned()) || !case.json["parameters"]["max_feature_nodes"].is_null() {
            continue;
        }
        seen.push(case.family().to_owned());
        let replacement = case.replacement();
        let tokens = replacement.tokenizer.encode_prompt(case.prompt()).unwrap();
        let linear = replacement.linearize(&tokens, &Job::default()).unwrap();
        let found = attribute(&replacement, &linear, case.prompt(), &case.options(), &Job::default()).unwrap();
        all.push(Traced { name: case.name.clone(), replacement, linear, found, case });
    }
    assert!(all.len() >= 8, "only {} families", all.len());
    all
}

impl Traced {
    fn n_layers(&self) -> usize {
        self.replacement.model.config.n_layers
    }

    fn n_heads(&self) -> usize {
        self.replacement.model.config.n_heads
    }

    /// Some edges: of the targets and of some features, the largest and random ones.
    fn edges(&self, random: &mut Random) -> Vec<(usize, usize)> {
        let graph = &self.found.graph;
        let layout = graph.layout();
        let mut edges = Vec::new();
        let features = (0..12).map(|_| random.below(layout.n_features()));
        let rows: Vec<usize> = features.chain(layout.n_features()..layout.n_rows()).collect();
        for row in rows {
            let values = graph.row(row);
            let mut order: Vec<usize> = (0..layout.targets().start).filter(|&i| values[i] != 0.0).collect();
            order.sort_by(|&a, &b| values[b].abs().total_cmp(&values[a].abs()));
            let rest = order.split_off(order.len().min(8));
            edges.extend(order.iter().map(|&source| (row, source)));
            edges.extend(rest.iter().filter(|_| random.below(rest.len()) < 6).map(|&source| (row, source)));
        }
        edges.sort_unstable();
        edges.dedup();
        assert!(edges.len() > 60, "{}: {} edges", self.name, edges.len());
        edges
    }

    fn ids(&self, edges: &[(usize, usize)]) -> Vec<(NodeId, NodeId)> {
        let layout = self.found.graph.layout();
        let target = |row: usize| match row.checked_sub(layout.n_features()) {
            Some(number) => NodeId::Target { index: number as u32 },
            None => layout.node(row).unwrap(),
        };
        edges.iter().map(|&(row, source)| (target(row), layout.node(source).unwrap())).collect()
    }

    fn flows(&self, linear: &LinearModel, edges: &[(usize, usize)], options: &FlowOptions) -> Vec<EdgeHeads> {
        head_flows(linear, &self.found.targets, &self.ids(edges), options, &Job::default()).unwrap()
    }

    /// The edges of the same graph where the heads of `layer` are scaled.
    fn edges_with(&self, scaled: &[(usize, Vec<f32>)], edges: &[(usize, usize)]) -> Vec<f32> {
        let mut linear = self.linear.clone();
        for (layer, factors) in scaled {
            linear.scale_heads(*layer, factors).unwrap();
        }
        self.effects(&linear, edges)
    }

    fn effects(&self, linear: &LinearModel, edges: &[(usize, usize)]) -> Vec<f32> {
        let options = self.case.options();
        let found = attribute(&self.replacement, linear, self.case.prompt(), &options, &Job::default()).unwrap();
        edges.iter().map(|&(row, source)| found.graph.row(row)[source]).collect()
    }
}

/// All flows of an edge, by layer and head.
fn flow_of(edge: &EdgeHeads, layer: usize, head: usize) -> f32 {
    let wanted = Head { layer: layer as u32, head: head as u32 };
    edge.strongest.iter().find(|flow| flow.head == wanted).map_or(0.0, |flow| flow.flow)
}

fn size(edge: &EdgeHeads) -> f32 {
    edge.strongest.iter().map(|flow| flow.flow.abs()).sum::<f32>()
        + edge.hops.iter().map(|part| part.abs()).sum::<f32>()
}

const EVERY_HEAD: FlowOptions = FlowOptions { strongest: 64, max_hops: 6, value_bytes: 512 << 20 };

#[test]
fn a_flow_is_what_the_edge_loses_without_the_head() {
    for (seed, traced) in traced().iter().enumerate() {
        let edges = traced.edges(&mut Random::new(seed as u64));
        let flows = traced.flows(&traced.linear, &edges, &EVERY_HEAD);
        let mut largest = 0f32;
        for layer in 0..traced.n_layers() {
            for head in 0..traced.n_heads() {
                let mut factors = vec![1.0; traced.n_heads()];
                factors[head] = 0.0;
                let without = traced.edges_with(&[(layer, factors)], &edges);
                for (edge, without) in flows.iter().zip(without) {
                    let (flow, lost) = (flow_of(edge, layer, head), edge.effect - without);
                    largest = largest.max(flow.abs() / size(edge));
                    let name = format!("{}: {} from {} through {layer}.{head}", traced.name, edge.target, edge.source);
                    assert!((flow - lost).abs() <= RTOL * size(edge), "{name}: {flow}, but {lost} is lost");
                }
            }
        }
        assert!(largest > 0.2, "{}: no head carries anything", traced.name);
    }
}

#[test]
fn heads_and_bypass_add_up_to_the_edge_at_every_layer_and_hops_to_the_whole() {
    for (seed, traced) in traced().iter().enumerate() {
        let edges = traced.edges(&mut Random::new(seed as u64));
        let flows = traced.flows(&traced.linear, &edges, &EVERY_HEAD);
        for layer in 0..traced.n_layers() {
            // Without any head of the layer, what stays in the residual stream is left.
            let bypass = traced.edges_with(&[(layer, vec![0.0; traced.n_heads()])], &edges);
            for ((edge, bypass), &(row, source)) in flows.iter().zip(bypass).zip(&edges) {
                let sum = bypass + (0..traced.n_heads()).map(|head| flow_of(edge, layer, head)).sum::<f32>();
                let whole = traced.found.graph.row(row)[source];
                let name = format!("{}: {} from {} at layer {layer}", traced.name, edge.target, edge.source);
                assert!((sum - whole).abs() <= RTOL * size(edge), "{name}: {sum}, but the edge is {whole}");
            }
        }
        for (edge, &(row, source)) in flows.iter().zip(&edges) {
            let (whole, hops) = (traced.found.graph.row(row)[source], edge.hops.iter().sum::<f32>());
            let name = format!("{}: {} from {}", traced.name, edge.target, edge.source);
            assert!((hops - whole).abs() <= RTOL * size(edge), "{name}: hops {hops}, edge {whole}");
            assert!((edge.effect - whole).abs() <= RTOL * size(edge), "{name}");
            let flow: f32 = edge.strongest.iter().map(|flow| flow.flow).sum::<f32>() + edge.rest;
            let counted: f32 = edge.hops.iter().enumerate().map(|(k, part)| k as f32 * part).sum();
            assert!((flow - counted).abs() <= 6.0 * RTOL * size(edge), "{name}: flows {flow}, hops counted {counted}");
        }
    }
}

/// With every pattern scaled by x, an edge is `Σ A_k x^k`.
#[test]
fn hops_are_the_powers_of_a_scaled_pattern() {
    for (seed, traced) in traced().iter().enumerate() {
        let edges = traced.edges(&mut Random::new(seed as u64));
        let flows = traced.flows(&traced.linear, &edges, &FlowOptions { max_hops: traced.n_layers(), ..EVERY_HEAD });
        for x in [0.0f32, 0.5, 2.0] {
            let scaled: Vec<_> = (0..traced.n_layers()).map(|layer| (layer, vec![x; traced.n_heads()])).collect();
            for (edge, scaled) in flows.iter().zip(traced.edges_with(&scaled, &edges)) {
                let terms: Vec<f32> = edge.hops.iter().enumerate().map(|(k, part)| part * x.powi(k as i32)).collect();
                let size: f32 = terms.iter().map(|term| term.abs()).sum::<f32>() + edge.effect.abs();
                let name = format!("{}: {} from {} at {x}", traced.name, edge.target, edge.source);
                assert!((terms.iter().sum::<f32>() - scaled).abs() <= RTOL * size, "{name}: {terms:?}, not {scaled}");
            }
            // The last part holds what has more hops.
            let few = traced.flows(&traced.linear, &edges[..20], &FlowOptions { max_hops: 2, ..EVERY_HEAD });
            for (few, all) in few.iter().zip(&flows) {
                assert_eq!(few.hops[..2], all.hops[..2]);
                let more: f32 = all.hops[2..].iter().sum();
                assert!((few.hops[2] - more).abs() <= RTOL * size_of(all), "{}: {} {more}", traced.name, few.hops[2]);
            }
        }
    }
}

fn size_of(edge: &EdgeHeads) -> f32 {
    edge.hops.iter().map(|part| part.abs()).sum::<f32>() + edge.effect.abs()
}

/// Three layers of two heads: every path is a set of heads, one at most a layer, and what it carries is found by
/// switching heads on and off.
#[test]
fn flows_and_hops_are_sums_over_all_paths() {
    let mut several = 0f64;
    for (seed, traced) in traced().iter().enumerate() {
        // Layers 1 to 3, heads 0 and 2: all other heads are out.
        let heads: Vec<(usize, usize)> = (1..4).flat_map(|layer| [(layer, 0), (layer, 2)]).collect();
        let only = |set: usize| -> Vec<(usize, Vec<f32>)> {
            let factor = |layer, head| {
                let number = heads.iter().position(|&there| there == (layer, head));
                if number.is_some_and(|number| set >> number & 1 == 1) { 1.0 } else { 0.0 }
            };
            let of_layer = |layer| (layer, (0..traced.n_heads()).map(|head| factor(layer, head)).collect());
            (0..traced.n_layers()).map(of_layer).collect()
        };
        let edges: Vec<_> = traced.edges(&mut Random::new(seed as u64)).into_iter().step_by(3).collect();
        let n_sets = 1 << heads.len();
        let with: Vec<Vec<f32>> = (0..n_sets).map(|set| traced.edges_with(&only(set), &edges)).collect();
        // What goes through exactly these heads: Möbius inversion over the subsets.
        let path = |set: usize, edge: usize| -> f64 {
            let subsets = (0..n_sets).filter(|subset| subset & !set == 0);
            subsets.map(|subset| sign(set, subset) * f64::from(with[subset][edge])).sum()
        };
        let mut linear = traced.linear.clone();
        only(n_sets - 1).iter().for_each(|(layer, factors)| linear.scale_heads(*layer, factors).unwrap());
        let flows = traced.flows(&linear, &edges, &EVERY_HEAD);
        for (number, edge) in flows.iter().enumerate() {
            let paths: Vec<f64> = (0..n_sets).map(|set| path(set, number)).collect();
            let size: f64 =
                with.iter().map(|with| f64::from(with[number].abs())).fold(0.0, f64::max) + f64::from(size(edge));
            for k in 0..=3 {
                let of_k = (0..n_sets).filter(|set| set.count_ones() == k).map(|set| paths[set]).sum::<f64>();
                let hops = f64::from(edge.hops[k as usize]);
                assert!((hops - of_k).abs() <= 1e-3 * size, "{}: {k} hops {hops}, paths {of_k}", traced.name);
                several = several.max(if k > 1 { of_k.abs() / size } else { 0.0 });
            }
            for (h, &(layer, head)) in heads.iter().enumerate() {
                let through = (0..n_sets).filter(|set| set >> h & 1 == 1).map(|set| paths[set]).sum::<f64>();
                let flow = f64::from(flow_of(edge, layer, head));
                assert!(
                    (flow - through).abs() <= 1e-3 * size,
                    "{}: {layer}.{head} {flow}, paths {through}",
                    traced.name
                );
            }
        }
    }
    assert!(several > 0.02, "no path of two hops carries more than {several} of its edge");
}

fn sign(set: usize, subset: usize) -> f64 {
    if (set ^ subset).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 }
}

#[test]
fn flows_do_not_depend_on_how_many_sources_are_held_at_once() {
    let traced = traced().remove(0);
    let edges = traced.edges(&mut Random::new(1));
    let all = traced.flows(&traced.linear, &edges, &FlowOptions::default());
    let one_by_one = traced.flows(&traced.linear, &edges, &FlowOptions { value_bytes: 1, ..FlowOptions::default() });
    assert_eq!(all, one_by_one);
    assert!(all.iter().any(|edge| edge.rest != 0.0), "eight heads are not all");
}

/// The value that a target's row adds up to.
fn row_sum(graph: &AttributionGraph, row: usize) -> f64 {
    graph.row(row).iter().map(|&v| f64::from(v)).sum::<f64>() + f64::from(graph.bias_effect[row])
}

/// `b_O` of each layer, where the family has it.
#[derive(Default)]
struct OutputBias(Vec<Option<Tensor>>);

impl Hooks for OutputBias {
    fn wants(&self, _: HookPoint) -> bool {
        false
    }

    fn see(&mut self, _: HookPoint, _: &Tensor) -> circuitscope::Result<Option<Tensor>> {
        Ok(None)
    }

    fn weights(&mut self, _: usize, layer: &Layer) {
        self.0.push(layer.vo.o.bias.clone());
    }
}

/// A bill is what the target loses when the head is taken out, and what the head's own constants give: biases of its
/// values, which taking it out of the frozen model leaves alone.
#[test]
fn bills_are_the_flows_of_all_sources_and_of_the_heads_constants() {
    for traced in traced() {
        let bills = bills(&traced.replacement, &traced.linear, &traced.found.targets, &Job::default()).unwrap();
        let mut output_bias = OutputBias::default();
        let tokens = traced.linear.tokens.clone();
        traced.replacement.model.forward(&[tokens], &mut output_bias, ForwardOptions::default()).unwrap();
        let options = traced.case.options();
        let graph_of = |linear: &LinearModel| {
            attribute(&traced.replacement, linear, traced.case.prompt(), &options, &Job::default()).unwrap().graph
        };
        let graph = &traced.found.graph;
        let layout = graph.layout();
        let (n_pos, _) = traced.linear.final_normed.dims2().unwrap();
        let mut largest = 0f64;
        for layer in 0..traced.n_layers() {
            let without: Vec<AttributionGraph> = (0..traced.n_heads())
                .map(|head| {
                    let mut factors = vec![1.0; traced.n_heads()];
                    factors[head] = 0.0;
                    let mut linear = traced.linear.clone();
                    linear.scale_heads(layer, &factors).unwrap();
                    graph_of(&linear)
                })
                .collect();
            // The layer's constants with `b_O` alone: the heads' own are the difference.
            let has_constants = traced.linear.attn_constants[layer].is_some();
            let only_output = has_constants.then(|| {
                let mut linear = traced.linear.clone();
                linear.attn_constants[layer] = output_bias.0[layer].as_ref().map(|bias| Sources {
                    vecs: SourceVecs::new(
                        bias.unsqueeze(0).unwrap().repeat((n_pos, 1)).unwrap(),
                        (0..=n_pos).collect::<Vec<_>>().into(),
                    ),
                    origins: vec![Origin::Constant; n_pos],
                });
                graph_of(&linear)
            });
            for (target, bills) in bills.iter().enumerate() {
                let row = layout.n_features() + target;
                let size: f64 = graph.row(row).iter().map(|&v| f64::from(v.abs())).sum();
                let constants: Vec<f64> = (0..traced.n_heads())
                    .map(|head| {
                        let wanted = Head { layer: layer as u32, head: head as u32 };
                        let bill = bills.iter().find(|bill| bill.head == wanted);
                        let bill = f64::from(bill.expect("every head below a target is on its bill").amount);
                        largest = largest.max(bill.abs() / size);
                        bill - (row_sum(graph, row) - row_sum(&without[head], row))
                    })
                    .collect();
                let name = format!("{} at layer {layer}, target {target}", traced.name);
                match &only_output {
                    Some(only_output) => {
                        let own = row_sum(graph, row) - row_sum(only_output, row);
                        let sum: f64 = constants.iter().sum();
                        assert!((sum - own).abs() <= 1e-4 * size, "{name}: constants {constants:?}, not {own}");
                    }
                    None => assert!(constants.iter().all(|c| c.abs() <= 1e-4 * size), "{name}: {constants:?}"),
                }
            }
        }
        assert!(largest > 0.01, "{}: no head gives anything", traced.name);
    }
}

/// Everything below a layer, biases included, adds up to the residual stream that the model computed there; so what is
/// read between two layers is what makes up their difference.
#[test]
fn what_is_read_below_a_layer_is_the_residual_stream_before_it() {
    for traced in traced() {
        let mut random = Random::new(5);
        let kept = kept(&traced);
        let linear = &traced.linear;
        let (n_pos, d_model) = linear.final_normed.dims2().unwrap();
        for layer in 0..traced.n_layers() {
            for pos in [0, n_pos / 2, n_pos - 1] {
                let direction = random.vec(d_model);
                let resid: Vec<f32> = kept.resid_pre[layer].get(pos).unwrap().to_vec1().unwrap();
                let value: f64 = direction.iter().zip(&resid).map(|(a, b)| f64::from(a * b)).sum();
                let size: f64 = direction.iter().zip(&resid).map(|(a, b)| f64::from((a * b).abs())).sum();
                let mut gradients = vec![0f32; pos * d_model];
                gradients.extend(&direction);
                let gradients = Tensor::from_vec(gradients, (pos + 1, d_model), linear.final_normed.device()).unwrap();
                let site = TargetSite::AttentionInput { layer };
                let (mut sum, mut parts) = (0f64, 0f64);
                linear
                    .pull_back(&TargetBatch { site, positions: vec![pos], gradients }, &mut |sources, grad, ragged| {
                        let effects = sources.effects(grad, ragged)?.flatten_all()?.to_vec1::<f32>()?;
                        sum += effects.iter().map(|&e| f64::from(e)).sum::<f64>();
                        parts += effects.iter().map(|&e| f64::from(e.abs())).sum::<f64>();
                        Ok(())
                    })
                    .unwrap();
                let name = format!("{} before layer {layer} at {pos}", traced.name);
                assert!((sum - value).abs() <= 1e-5 * (parts + size), "{name}: {sum}, not {value} (parts {parts})");
            }
        }
    }
}

/// Keeps the weights and the residual stream before every layer.
#[derive(Default)]
struct KeepLayers {
    weights: Vec<Layer>,
    resid_pre: Vec<Tensor>,
    scores: Vec<Tensor>,
}

impl Hooks for KeepLayers {
    fn wants(&self, point: HookPoint) -> bool {
        matches!(point, HookPoint::ResidPre(_) | HookPoint::AttnScores(_))
    }

    fn see(&mut self, point: HookPoint, tensor: &Tensor) -> circuitscope::Result<Option<Tensor>> {
        let kept = if matches!(point, HookPoint::ResidPre(_)) { &mut self.resid_pre } else { &mut self.scores };
        kept.push(tensor.squeeze(0)?);
        Ok(None)
    }

    fn weights(&mut self, _: usize, layer: &Layer) {
        self.weights.push(layer.clone());
    }
}

fn kept(traced: &Traced) -> KeepLayers {
    let mut kept = KeepLayers::default();
    let tokens = traced.linear.tokens.clone();
    traced.replacement.model.forward(&[tokens], &mut kept, ForwardOptions::default()).unwrap();
    kept
}

/// Every score that a query may have, as the model computed it.
#[test]
fn scores_of_frozen_sides_are_those_of_the_model() {
    for traced in traced() {
        let kept = kept(&traced);
        let config = &traced.replacement.model.config;
        for layer in 0..traced.n_layers() {
            let of_layer: Vec<Vec<Vec<f32>>> = kept.scores[layer].to_vec3().unwrap();
            for (head, of_head) in of_layer.iter().enumerate() {
                let sides = kept.weights[layer].score_sides(config, layer, head, &kept.resid_pre[layer]).unwrap();
                for (query, expected) in of_head.iter().enumerate() {
                    for (score, &expected) in sides.scores(query).unwrap().into_iter().zip(expected) {
                        let name = format!("{}: {layer}.{head} from {query}", traced.name);
                        match score {
                            None => assert_eq!(expected, f32::NEG_INFINITY, "{name}"),
                            Some(score) => {
                                let (capped, expected) = (sides.capped(score).0, f64::from(expected));
                                assert!((capped - expected).abs() <= 1e-4 * (1.0 + expected.abs()), "{name}");
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A graph of a score has two targets, and each adds up to the score of the model; so do contrasts.
#[test]
fn the_sides_of_a_score_add_up_to_it() {
    for traced in traced() {
        let kept = kept(&traced);
        let config = &traced.replacement.model.config;
        let query = traced.linear.tokens.len() - 1;
        for (layer, head, key) in [(1, 0, query - 1), (2, 3, query), (3, 1, query - 2)] {
            let score = Score { layer, head, query, key };
            let sides = kept.weights[layer].score_sides(config, layer, head, &kept.resid_pre[layer]).unwrap();
            let scores = sides.scores(query).unwrap();
            let value_of = |key: usize| scores[key].expect("near keys are seen");
            let pattern = sides.pattern(&scores);
            let rival = {
                let share = |k: usize| if k == key { 1.0 } else { -pattern[k] / (1.0 - pattern[key]) };
                let keys = (0..=query).filter(|&k| scores[k].is_some());
                let sum: f64 = keys.map(|k| share(k) * sides.capped(scores[k].unwrap()).1 * scores[k].unwrap()).sum();
                let to_sink = 1.0 - pattern.iter().sum::<f64>();
                sum - sides.sink.map_or(0.0, |sink| f64::from(sink) * to_sink / (1.0 - pattern[key]))
            };
            let cases = [
                (Versus::Nothing, value_of(key)),
                (Versus::Key(query - 3), value_of(key) - value_of(query - 3)),
                (Versus::Rivals, rival),
            ];
            for (versus, expected) in cases {
                let targets = vec![TargetRequest::Score { score, versus }];
                let options = AttributionOptions { targets, ..traced.case.options() };
                let prompt = traced.case.prompt();
                let found = attribute(&traced.replacement, &traced.linear, prompt, &options, &Job::default()).unwrap();
                let graph = &found.graph;
                assert_eq!(graph.meta.target_labels.len(), 2);
                assert!(graph.meta.target_labels[0].starts_with(&format!("attention {score}")));
                for target in 0..2 {
                    let row = graph.layout().n_features() + target;
                    let size: f64 = graph.row(row).iter().map(|&v| f64::from(v.abs())).sum::<f64>() + expected.abs();
                    let name = format!("{}: {score} {versus:?}, side {target}", traced.name);
                    assert!(
                        (row_sum(graph, row) - expected).abs() <= 1e-4 * size,
                        "{name}: {} {expected}",
                        row_sum(graph, row)
                    );
                    assert!(
                        (f64::from(graph.row_values[row]) - expected).abs() <= 1e-4 * (1.0 + expected.abs()),
                        "{name}"
                    );
                }
            }
        }
    }
}

/// What a source gives to a side is what it gives to the residual stream, read by the side.
#[test]
fn effects_on_a_score_are_what_sources_give_to_queries_and_keys() {
    for traced in traced() {
        let kept = kept(&traced);
        let config = &traced.replacement.model.config;
        let (layer, head, query) = (3, 2, traced.linear.tokens.len() - 1);
        let key = query - 1;
        let sides = kept.weights[layer].score_sides(config, layer, head, &kept.resid_pre[layer]).unwrap();
        let targets = vec![TargetRequest::Score { score: Score { layer, head, query, key }, versus: Versus::Nothing }];
        let options = AttributionOptions { targets, ..traced.case.options() };
        let found =
            attribute(&traced.replacement, &traced.linear, traced.case.prompt(), &options, &Job::default()).unwrap();
        let layout = found.graph.layout();
        let on_query = (sides.key.vecs.get(key).unwrap() * sides.scale).unwrap();
        let on_key = (sides.query.vecs.get(query).unwrap() * sides.scale).unwrap();
        let gradients = [
            (query, sides.query.pull_back(query, &on_query).unwrap().0),
            (key, sides.key.pull_back(key, &on_key).unwrap().0),
        ];
        let push = PushUp::new(&traced.linear).unwrap();
        let mut compared = 0;
        for pos in 1..=key {
            let mut origins = vec![Origin::Token { pos }, Origin::Error { layer: 1, pos }];
            let of_pos = traced.linear.features.all.iter().enumerate().filter(|(_, f)| f.pos == pos && f.layer < layer);
            origins.extend(of_pos.map(|(i, _)| Origin::Feature(i)).take(5));
            push.sort(&mut origins);
            let mut resid = None;
            push.push(pos, &origins, layer + 1, &mut |at, _, x| {
                resid = (at == layer).then(|| x.copy().unwrap());
                Ok(())
            })
            .unwrap();
            let resid: Vec<Vec<Vec<f32>>> = resid.expect("the layer is there").to_vec3().unwrap();
            for (side, (at, gradient)) in gradients.iter().enumerate() {
                let gradient: Vec<f32> = gradient.to_vec1().unwrap();
                for (slot, origin) in origins.iter().enumerate() {
                    let node = match *origin {
                        Origin::Feature(index) => index,
                        Origin::Error { layer, pos } => {
                            layout.index(NodeId::Error { layer: layer as u32, pos: pos as u32 }).unwrap()
                        }
                        Origin::Token { pos } => layout.index(NodeId::Token { pos: pos as u32 }).unwrap(),
                        Origin::Constant => unreachable!(),
                    };
                    let x = &resid[at - pos][slot];
                    let expected: f32 = x.iter().zip(&gradient).map(|(a, b)| a * b).sum();
                    let size: f32 = x.iter().zip(&gradient).map(|(a, b)| (a * b).abs()).sum();
                    let effect = found.graph.row(layout.n_features() + side)[node];
                    let name = format!("{}: side {side}, {origin:?}", traced.name);
                    assert!((effect - expected).abs() <= 1e-4 * (size + 1e-3), "{name}: {effect}, not {expected}");
                    compared += usize::from(effect != 0.0);
                }
            }
        }
        assert!(compared > 10, "{}: {compared} effects", traced.name);
    }
}

/// The gradient of the log-odds of the attention, where a change leaves the norm's scale as it is.
#[test]
fn rivals_gradient_is_that_of_the_log_odds() {
    let mut tried = 0;
    for traced in traced() {
        let config = &traced.replacement.model.config;
        if config.qk_norm {
            continue; // a change of the stream changes the scale of a query's own norm
        }
        let kept = kept(&traced);
        let (layer, head, query) = (2, 1, traced.linear.tokens.len() - 1);
        let key = query - 1;
        let resid = &kept.resid_pre[layer];
        let log_odds = |resid: &Tensor| {
            let sides = kept.weights[layer].score_sides(config, layer, head, resid).unwrap();
            let p = sides.pattern(&sides.scores(query).unwrap())[key];
            (p / (1.0 - p)).ln()
        };
        let score = Score { layer, head, query, key };
        let targets = vec![TargetRequest::Score { score, versus: Versus::Rivals }];
        let options = AttributionOptions { targets, ..traced.case.options() };
        let found =
            attribute(&traced.replacement, &traced.linear, traced.case.prompt(), &options, &Job::default()).unwrap();
        let gradients: Vec<Vec<Vec<f32>>> = found
            .targets
            .iter()
            .map(|target| match &target.kind {
                TargetKind::AttentionInput { gradients, .. } => gradients.to_vec2().unwrap(),
                _ => unreachable!(),
            })
            .collect();
        let (n_pos, d_model) = resid.dims2().unwrap();
        let rows: Vec<Vec<f32>> = resid.to_vec2().unwrap();
        let mut random = Random::new(5);
        for pos in [query, key, 1] {
            let mut delta = random.vec(d_model);
            // Without a mean and at right angles to the stream: neither norm's scale changes in first order.
            for axis in [
                vec![1.0; d_model],
                rows[pos].iter().map(|v| v - rows[pos].iter().sum::<f32>() / d_model as f32).collect(),
            ] {
                let dot: f32 = axis.iter().zip(&delta).map(|(a, d)| a * d).sum();
                let norm: f32 = axis.iter().map(|a: &f32| a * a).sum();
                delta.iter_mut().zip(&axis).for_each(|(d, a)| *d -= dot / norm * a);
            }
            let shifted = |step: f32| {
                let mut values = rows.concat();
                values[pos * d_model..(pos + 1) * d_model].iter_mut().zip(&delta).for_each(|(v, d)| *v += step * d);
                Tensor::from_vec(values, (n_pos, d_model), resid.device()).unwrap()
            };
            let step = 0.02;
            let measured = (log_odds(&shifted(step)) - log_odds(&shifted(-step))) / f64::from(2.0 * step);
            let row = |gradients: &Vec<Vec<f32>>| -> f64 {
                gradients.get(pos).map_or(0.0, |row| row.iter().zip(&delta).map(|(g, d)| f64::from(g * d)).sum())
            };
            let expected = row(&gradients[0]) + row(&gradients[1]);
            let name = format!("{} at {pos}", traced.name);
            assert!((measured - expected).abs() <= 5e-3 * (1.0 + measured.abs()), "{name}: {measured}, not {expected}");
            tried += usize::from(measured.abs() > 0.05);
        }
    }
    assert!(tried > 4, "only {tried} changes did anything");
}

#[test]
fn scores_that_are_not_there_are_refused() {
    let traced = traced().remove(0);
    let n_pos = traced.linear.tokens.len();
    let refused = |text: &str| {
        let request = TargetRequest::Score { score: text.parse().unwrap(), versus: Versus::Nothing };
        let options = AttributionOptions { targets: vec![request], ..traced.case.options() };
        let found = attribute(&traced.replacement, &traced.linear, traced.case.prompt(), &options, &Job::default());
        found.map(|_| ()).unwrap_err().to_string()
    };
    assert!(refused("9.0@2:1").contains("layer 9"), "{}", refused("9.0@2:1"));
    assert!(refused("1.9@2:1").contains("head 1.9 does not exist"));
    assert!(refused("1.0@99:1").contains(&format!("the prompt has {n_pos} positions")));
    assert!(refused("1.0@1:2").contains("comes after it"));
    for wrong in ["18.6", "18@1:2", "18.6@1", "18.6@1:x", "a.b@c:d", "18.6@-1:2", ""] {
        assert!(wrong.parse::<Score>().unwrap_err().to_string().contains("18.6@18:7"), "{wrong}");
    }
}

#[test]
fn edges_that_are_not_there_are_refused() {
    let traced = traced().remove(0);
    let token = NodeId::Token { pos: 0 };
    let refused = |target, source| {
        let options = FlowOptions::default();
        let found = head_flows(&traced.linear, &traced.found.targets, &[(target, source)], &options, &Job::default());
        found.unwrap_err().to_string()
    };
    let last = NodeId::Target { index: 0 };
    assert!(refused(NodeId::Target { index: 99 }, token).contains("target#99"));
    assert!(refused(token, token).contains("token@0"));
    assert!(refused(last, NodeId::Token { pos: 99 }).contains("token@99"));
    assert!(refused(last, NodeId::Feature { layer: 0, pos: 0, feature: 0 }).contains("0_0_0"));
    assert!(refused(last, last).contains("target#0"));
}

/// What a head moves between positions adds up to its flow, and where it is the only head there is one move: the closed
/// form of one hop, `P[c, p] · ⟨W_Oᵀ u, W_V v⟩`.
#[test]
fn moves_add_up_to_flows_and_one_head_alone_is_one_hop() {
    for (seed, traced) in traced().iter().enumerate() {
        let edges = traced.edges(&mut Random::new(seed as u64));
        let mut tried = 0;
        for &(target, source) in traced.ids(&edges).iter().step_by(17).take(4) {
            let targets = &traced.found.targets;
            let full =
                |linear: &LinearModel| edge_in_full(linear, targets, (target, source), 6, &Job::default()).unwrap();
            let whole = full(&traced.linear);
            for flow in &whole.heads.strongest {
                let moves = whole.moves.iter().filter(|at| at.head == flow.head).map(|at| at.flow);
                let (sum, sizes) = moves.fold((0f32, 0f32), |(sum, sizes), flow| (sum + flow, sizes + flow.abs()));
                let name = format!("{}: {target} from {source} by {}", traced.name, flow.head);
                assert!((sum - flow.flow).abs() <= RTOL * (sizes + size(&whole.heads)), "{name}: {sum} {}", flow.flow);
            }
            // One head at a time: together all one-hop parts.
            let mut one_hop = 0f32;
            for layer in 0..traced.n_layers() {
                for head in 0..traced.n_heads() {
                    let mut linear = traced.linear.clone();
                    for other in 0..traced.n_layers() {
                        let mut factors = vec![0.0; traced.n_heads()];
                        factors[head] = if other == layer { 1.0 } else { 0.0 };
                        linear.scale_heads(other, &factors).unwrap();
                    }
                    let alone = full(&linear);
                    // A skip connection or a cross-layer feature changes nothing about positions.
                    let places: Vec<(usize, usize)> = alone.moves.iter().map(|at| (at.from, at.to)).collect();
                    assert!(places.len() <= 1, "{}: {layer}.{head} moves {places:?}", traced.name);
                    one_hop += alone.moves.iter().map(|at| at.flow).sum::<f32>();
                    tried += alone.moves.len();
                }
            }
            let by_channels = whole.heads.hops[1];
            assert!(
                (one_hop - by_channels).abs() <= RTOL * size(&whole.heads),
                "{}: {one_hop} {by_channels}",
                traced.name
            );
        }
        assert!(tried > 4, "{}: {tried} moves", traced.name);
    }
}

/// Pairs add up to the score of the model; of either side they are the row of that side; sizes and the largest are those
/// of the whole matrix.
#[test]
fn pairs_of_sources_add_up_to_the_score_and_to_the_rows_of_its_sides() {
    for traced in traced() {
        let query = traced.linear.tokens.len() - 1;
        for (score, versus) in [
            (Score { layer: 3, head: 1, query, key: query - 1 }, Versus::Nothing),
            (Score { layer: 2, head: 0, query, key: query - 2 }, Versus::Key(query)),
            (Score { layer: 3, head: 2, query, key: query }, Versus::Rivals),
        ] {
            let name = format!("{}: {score}{versus}", traced.name);
            let frozen =
                FrozenScore::new(&traced.replacement, &traced.linear.tokens, score, versus, &Job::default()).unwrap();
            let pairs = ScorePairs::new(&traced.linear, &frozen, &Job::default()).unwrap();
            let n = pairs.sources.len();
            let each: Vec<usize> = (0..n).collect();
            let table = pairs.by_group(&each, n).unwrap();
            let sizes: f64 = table.amounts.iter().map(|amount| amount.abs()).sum();
            let tolerance = 1e-5 * sizes + 1e-4;
            let value = pairs.value().unwrap();
            assert!((value - frozen.value).abs() <= tolerance, "{name}: {value} {}", frozen.value);
            let sum_of_sizes = pairs.sum_of_sizes().unwrap();
            assert!((sum_of_sizes - sizes).abs() <= 1e-4 * sizes, "{name}: {sum_of_sizes} {sizes}");
            let targets = vec![TargetRequest::Score { score, versus }];
            let options = AttributionOptions { targets, ..traced.case.options() };
            let found = attribute(&traced.replacement, &traced.linear, traced.case.prompt(), &options, &Job::default())
                .unwrap();
            let (graph, layout) = (&found.graph, found.graph.layout());
            for (number, source) in pairs.sources.iter().enumerate() {
                for (side, marginal) in [table.of_query(number), table.of_key(number)].into_iter().enumerate() {
                    let row = layout.n_features() + side;
                    let effect = match source {
                        Some(node) => f64::from(graph.row(row)[layout.index(*node).unwrap()]),
                        None => f64::from(graph.bias_effect[row]) - frozen.constant,
                    };
                    assert!(
                        (marginal - effect).abs() <= tolerance,
                        "{name}: {source:?} side {side}: {marginal} {effect}"
                    );
                }
            }
            let strongest = pairs.strongest(5, |_, _| true).unwrap();
            let mut all: Vec<f64> = table.amounts.iter().map(|amount| amount.abs()).collect();
            all.sort_by(|a, b| b.total_cmp(a));
            for (pair, &size) in strongest.iter().zip(&all) {
                let amount = table.amount(pair.query, pair.key);
                assert!((f64::from(pair.amount) - amount).abs() <= 1e-4 * (amount.abs() + 1e-3), "{name}");
                assert!((amount.abs() - size).abs() <= 1e-4 * (size + 1e-3), "{name}: {amount} {size}");
            }
        }
    }
}

/// With everything held, a head that writes nothing takes its bill from every target, and one that writes what it writes
/// elsewhere changes them by its row.
#[test]
fn changed_heads_change_held_targets_by_their_bills() {
    for traced in traced() {
        let prompt = traced.linear.tokens.clone();
        let mut original = Original::run(&traced.replacement, &prompt, &Job::default()).unwrap();
        let targets = &traced.found.targets;
        let before = traced
            .replacement
            .model
            .forward(std::slice::from_ref(&prompt), &mut (), ForwardOptions::default())
            .unwrap();
        // Another prompt of the same length.
        let mut other = prompt.clone();
        let middle = other.len() / 2;
        other.swap(middle, middle - 1);
        let other_text = traced.replacement.tokenizer.decode(&other);
        let other_again = traced.replacement.tokenizer.encode_prompt(&other_text).unwrap_or_default();
        let rows = head_rows(&traced.replacement, &traced.linear, targets, None, &Job::default()).unwrap();
        let patched = head_rows(&traced.replacement, &traced.linear, targets, Some(&other), &Job::default()).unwrap();
        let mut compared = 0;
        for (layer, head) in [(0, 1), (2, 0), (3, 3)] {
            let at = Head { layer, head };
            let mut changes = vec![(HeadChange::Zero, &rows, -1.0f32)];
            if other_again == other {
                changes.push((HeadChange::Like(other_text.clone()), &patched, 1.0));
            }
            for (change, rows, sign) in changes {
                let name = format!("{}: {at} {change:?}", traced.name);
                let change = HeadIntervention { head: at, positions: Positions::From(0), change };
                original.change_heads(&[change], &Job::default()).unwrap();
                let after = original.intervene(&[Vec::new()], &Mode::Direct, &Job::default()).unwrap().remove(0);
                let end = before.final_normed.squeeze(0).unwrap();
                for (target, row) in targets.iter().zip(rows) {
                    let TargetKind::Direction(direction) = &target.kind else { continue };
                    if target.pos + 1 != prompt.len() {
                        continue;
                    }
                    let direction: Vec<f32> = direction.to_vec1().unwrap();
                    let end: Vec<f32> = end.get(target.pos).unwrap().to_vec1().unwrap();
                    let dot = |x: &[f32]| -> f64 { x.iter().zip(&direction).map(|(a, b)| f64::from(a * b)).sum() };
                    let changed = dot(&after.final_normed) - dot(&end);
                    let number = row.heads.iter().position(|&there| there == at).unwrap();
                    let bill = f64::from(sign * row.bills()[number].amount);
                    let size = dot(&end).abs() + bill.abs() + 1.0;
                    assert!((changed - bill).abs() <= 3e-4 * size, "{name}: {changed}, bill {bill}");
                    compared += usize::from(bill.abs() > 1e-3);
                }
            }
        }
        assert!(compared > 0, "{}: nothing was changed", traced.name);
    }
}

/// Replaces what one head reads, and nothing else.
struct Without {
    layer: usize,
    head: usize,
    from: usize,
}

impl Hooks for Without {
    fn wants(&self, point: HookPoint) -> bool {
        point == HookPoint::AttnZ(self.layer)
    }

    fn see(&mut self, _: HookPoint, z: &Tensor) -> circuitscope::Result<Option<Tensor>> {
        let (batch, n_pos, n_heads, d_head) = z.dims4().unwrap();
        let kept: Vec<f32> = (0..batch * n_pos * n_heads)
            .map(|at| f32::from(at % n_heads != self.head || at / n_heads % n_pos < self.from))
            .collect();
        let kept = Tensor::from_vec(kept, (batch, n_pos, n_heads, 1), z.device()).unwrap();
        Ok(Some(z.broadcast_mul(&kept).unwrap().reshape((batch, n_pos, n_heads, d_head)).unwrap()))
    }
}

/// The free model without a head is the model whose head reads nothing; heads of a plan's alternatives are each their own.
#[test]
fn a_head_that_is_switched_off_is_gone_from_the_free_model() {
    for traced in traced() {
        let prompt = traced.linear.tokens.clone();
        let model = &traced.replacement.model;
        let mut original = Original::run(&traced.replacement, &prompt, &Job::default()).unwrap();
        for (layer, head, from) in [(0, 2, 0), (1, 1, 3), (3, 0, prompt.len() - 1)] {
            let mut without = Without { layer, head, from };
            let pass = model.forward(std::slice::from_ref(&prompt), &mut without, ForwardOptions::default()).unwrap();
            let expected: Vec<f32> = model.last_logits(&pass).unwrap().get(0).unwrap().to_vec1().unwrap();
            let change = HeadIntervention {
                head: Head { layer: layer as u32, head: head as u32 },
                positions: Positions::From(from),
                change: HeadChange::Zero,
            };
            original.change_heads(std::slice::from_ref(&change), &Job::default()).unwrap();
            let found = original.intervene(&[Vec::new()], &Mode::Free, &Job::default()).unwrap().remove(0);
            let largest = expected.iter().fold(1f32, |m, l| m.max(l.abs()));
            for (found, expected) in found.logits.iter().zip(&expected) {
                assert!((found - expected).abs() <= 1e-4 * largest, "{}: {change}: {found} {expected}", traced.name);
            }
        }
    }
}

/// Rows add up to 1 or less, nobody looks ahead, and it is what the model computes.
#[test]
fn patterns_are_those_of_the_model() {
    for traced in traced() {
        let heads = [Head { layer: 0, head: 1 }, Head { layer: 3, head: 2 }];
        let model = &traced.replacement.model;
        let found = head_patterns(model, &traced.linear.tokens, &heads, &Job::default()).unwrap();
        let kept = kept(&traced);
        for (pattern, head) in found.iter().zip(heads) {
            let sides = kept.weights[head.layer as usize]
                .score_sides(
                    &model.config,
                    head.layer as usize,
                    head.head as usize,
                    &kept.resid_pre[head.layer as usize],
                )
                .unwrap();
            for (query, attention) in pattern.attention.iter().enumerate() {
                let expected = sides.pattern(&sides.scores(query).unwrap());
                for (key, (&p, expected)) in attention.iter().zip(expected).enumerate() {
                    assert!((f64::from(p) - expected).abs() < 1e-4, "{}: {head} {query} {key}", traced.name);
                    assert!(key <= query || p == 0.0);
                }
            }
        }
        let refused = |layer, head| {
            let tokens = &traced.linear.tokens;
            head_patterns(model, tokens, &[Head { layer, head }], &Job::default()).unwrap_err().to_string()
        };
        assert!(refused(99, 0).contains("layer 99") && refused(0, 99).contains("head 0.99 does not exist"));
    }
}

#[test]
fn heads_of_edges_that_do_not_belong_together_are_refused() {
    let edge = |source, flow| EdgeHeads {
        target: NodeId::Target { index: 0 },
        source: NodeId::Token { pos: source },
        effect: 1.0,
        strongest: vec![HeadFlow { head: Head { layer: 0, head: 0 }, flow }],
        rest: 0.0,
        hops: vec![1.0, 0.0],
    };
    let heads = HeadFlows::new(vec![edge(2, 1.0), edge(1, -0.5)], 8, 2).unwrap();
    assert_eq!(
        heads.find(NodeId::Target { index: 0 }, NodeId::Token { pos: 1 }).unwrap().label(),
        "0.0 -50 %, direct 100 %"
    );
    assert!(heads.find(NodeId::Target { index: 1 }, NodeId::Token { pos: 1 }).is_none());
    assert!(HeadFlows::new(vec![edge(1, 1.0), edge(1, 1.0)], 8, 2).unwrap_err().to_string().contains("twice"));
    assert!(HeadFlows::new(vec![edge(1, 1.0)], 8, 3).unwrap_err().to_string().contains("head_hops"));
    assert!(HeadFlows::new(vec![edge(1, 1.0)], 0, 2).unwrap_err().to_string().contains("head_flows"));
    assert!(HeadFlows::new(vec![edge(1, f32::NAN)], 8, 2).is_err());
    let traced = traced().remove(0);
    let mut graph = traced.found.graph;
    let elsewhere = HeadFlows::new(vec![edge(99, 1.0)], 8, 2).unwrap();
    assert!(graph.set_heads(elsewhere).unwrap_err().to_string().contains("token@99"));
}
