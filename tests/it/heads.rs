//! Heads of edges, in every family: against the same frozen model with heads taken out of it, which knows nothing of
//! flows.

use candle_core::Tensor;
use circuitscope::attribution::{Attribution, attribute};
use circuitscope::graph::{AttributionGraph, EdgeHeads, Head, NodeId};
use circuitscope::heads::{FlowOptions, bills, head_flows};
use circuitscope::job::Job;
use circuitscope::model::{ForwardOptions, HookPoint, Hooks, Layer};
use circuitscope::ops::SourceVecs;
use circuitscope::replacement::{LinearModel, Origin, Replacement, Sources};

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
    edge.strongest.iter().map(|flow| flow.flow.abs()).sum::<f32>() + edge.hops.iter().map(|part| part.abs()).sum::<f32>()
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
        let mut several = 0f64;
        for (number, edge) in flows.iter().enumerate() {
            let paths: Vec<f64> = (0..n_sets).map(|set| path(set, number)).collect();
            let size: f64 = with.iter().map(|with| f64::from(with[number].abs())).fold(0.0, f64::max) + f64::from(size(edge));
            for k in 0..=3 {
                let of_k = (0..n_sets).filter(|set| set.count_ones() == k).map(|set| paths[set]).sum::<f64>();
                let hops = f64::from(edge.hops[k as usize]);
                assert!((hops - of_k).abs() <= 1e-3 * size, "{}: {k} hops {hops}, paths {of_k}", traced.name);
                several += if k > 1 { of_k.abs() / size } else { 0.0 };
            }
            for (h, &(layer, head)) in heads.iter().enumerate() {
                let through = (0..n_sets).filter(|set| set >> h & 1 == 1).map(|set| paths[set]).sum::<f64>();
                let flow = f64::from(flow_of(edge, layer, head));
                assert!((flow - through).abs() <= 1e-3 * size, "{}: {layer}.{head} {flow}, paths {through}", traced.name);
            }
        }
        assert!(several > 0.01, "{}: no path has two hops", traced.name);
    }
}

fn sign(set: usize, subset: usize) -> f64 {
    if (set ^ subset).count_ones() % 2 == 0 { 1.0 } else { -1.0 }
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
                    vecs: SourceVecs {
                        vecs: bias.unsqueeze(0).unwrap().repeat((n_pos, 1)).unwrap(),
                        starts: (0..=n_pos).collect::<Vec<_>>().into(),
                    },
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
