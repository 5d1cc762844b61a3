//! The links of a cut, strongest first, and those of one node with the proof of its row.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::graph::{AttributionGraph, NodeKind};

use super::super::app::{App, away};
use super::super::columns::{Values, safetensors};
use super::super::cut::Cut;
use super::super::extract::{Asked, At};
use super::super::reply::{Answer, Hash, Refusal, bytes_response, json_response, tagged};
use super::super::whole::{Edges, Whole};
use super::graphs::ThresholdsAsked;

/// Links of one answer.
const MAX_TOP: usize = 1_000_000;
const DEFAULT_TOP: usize = 2000;

/// Links of one side of a node in one answer.
const MAX_LIMIT: usize = 5000;
const DEFAULT_LIMIT: usize = 200;

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum By {
    #[default]
    Weight,
    Score,
}

#[derive(Deserialize)]
pub(in super::super) struct LinksAsked {
    node_threshold: Option<f64>,
    edge_threshold: Option<f64>,
    top: Option<usize>,
    #[serde(default)]
    by: By,
}

pub(in super::super) async fn links(
    State(app): State<Arc<App>>,
    At(id): At<String>,
    Asked(asked): Asked<LinksAsked>,
    headers: HeaderMap,
) -> Answer {
    away(move || {
        let top = asked.top.unwrap_or(DEFAULT_TOP);
        if top > MAX_TOP {
            return Err(Refusal::too_large(format!("`top` is {top}, at most {MAX_TOP} links are given")));
        }
        let whole = app.graph(&id)?;
        let thresholds = whole.thresholds(asked.node_threshold, asked.edge_threshold)?;
        let etag = Hash::new()
            .with(whole.etag.as_bytes())
            .with(format!("{thresholds:?} {top} {:?}", asked.by).as_bytes())
            .etag();
        tagged(&etag, headers.get(header::IF_NONE_MATCH), || {
            let cut = whole.cut(thresholds)?;
            Ok(link_columns(&whole, &cut, top, asked.by, &etag))
        })
    })
    .await
}

/// The strongest links, ascending.
fn strongest(cut: &Cut, top: usize, by: By) -> Vec<u32> {
    let mut links: Vec<u32> = (0..cut.n_links() as u32).collect();
    if top < links.len() {
        if by == By::Weight {
            let strength = |link: u32| cut.weights[link as usize].abs();
            cutoff(&mut links, top, |a, b| strength(b).total_cmp(&strength(a)).then(a.cmp(&b)));
        } else {
            let score = |row: usize, link: usize| cut.shares[row] * cut.link_share(row, link);
            let links_of = |row: usize| cut.row_starts[row]..cut.row_starts[row + 1];
            let rows = (0..cut.nodes.len()).flat_map(|row| links_of(row).map(move |link| (row, link)));
            let scores: Vec<f64> = rows.map(|(row, link)| score(row, link)).collect();
            cutoff(&mut links, top, |a, b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
        }
    }
    links
}

fn cutoff(links: &mut Vec<u32>, top: usize, order: impl Fn(u32, u32) -> std::cmp::Ordering) {
    if top > 0 {
        links.select_nth_unstable_by(top - 1, |a, b| order(*a, *b));
    }
    links.truncate(top);
    links.sort_unstable();
}

fn link_columns(whole: &Whole, cut: &Cut, top: usize, by: By, etag: &str) -> Response {
    let chosen = strongest(cut, top, by);
    let n_kept = cut.nodes.len();
    let (mut row_start, mut source, mut weight, mut share) = (vec![0u32], Vec::new(), Vec::new(), Vec::new());
    let mut rest = chosen.as_slice();
    for row in 0..n_kept {
        let n_here = rest.partition_point(|&link| (link as usize) < cut.row_starts[row + 1]);
        let (here, after) = rest.split_at(n_here);
        rest = after;
        let mut here = here.to_vec();
        here.sort_by(|&a, &b| cut.weights[b as usize].abs().total_cmp(&cut.weights[a as usize].abs()).then(a.cmp(&b)));
        for link in here {
            let link = link as usize;
            source.push(cut.sources[link]);
            weight.push(cut.weights[link]);
            share.push(cut.link_share(row, link) as f32);
        }
        row_start.push(source.len() as u32);
    }
    let n_inputs: Vec<u32> = cut.row_starts.windows(2).map(|ends| (ends[1] - ends[0]) as u32).collect();
    let mut place = vec![0u32; whole.nodes.len()];
    cut.nodes.iter().enumerate().for_each(|(at, &n)| place[n as usize] = at as u32);
    let mut n_outputs = vec![0u32; n_kept];
    cut.sources.iter().for_each(|&source| n_outputs[place[source as usize] as usize] += 1);
    let node_share: Vec<f32> = cut.shares.iter().map(|&share| share as f32).collect();
    let weight_total: f64 = cut.abs_sums.iter().sum();
    let weight_shown: f64 = weight.iter().map(|weight: &f32| f64::from(weight.abs())).sum();
    let report = serde_json::to_string(&cut.report(whole, false)).unwrap_or_default();
    let metadata = [
        ("format", "circuitscope links".to_owned()),
        ("version", "1".to_owned()),
        ("cut", report),
        ("n_links", cut.n_links().to_string()),
        ("n_shown", source.len().to_string()),
        ("weight_total", weight_total.to_string()),
        ("weight_shown", weight_shown.to_string()),
        ("etag", etag.to_owned()),
    ];
    let columns = [
        ("node", Values::U32(&cut.nodes)),
        ("node_share", Values::F32(&node_share)),
        ("n_inputs", Values::U32(&n_inputs)),
        ("n_outputs", Values::U32(&n_outputs)),
        ("row_start", Values::U32(&row_start)),
        ("source", Values::U32(&source)),
        ("weight", Values::F32(&weight)),
        ("share", Values::F32(&share)),
    ];
    bytes_response("application/octet-stream", safetensors(&metadata, &columns))
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Side {
    Inputs,
    Outputs,
    #[default]
    Both,
}

#[derive(Deserialize)]
pub(in super::super) struct NodeAsked {
    node_threshold: Option<f64>,
    edge_threshold: Option<f64>,
    #[serde(default)]
    side: Side,
    #[serde(default)]
    offset: usize,
    limit: Option<usize>,
    #[serde(default)]
    whole: bool,
}

/// One link of a node: the other end, weight, share of the target's input.
type Tie = (usize, f32, f64);

#[derive(Serialize)]
struct Listed<'a> {
    n: usize,
    id: &'a str,
    kind: NodeKind,
    layer: Option<u32>,
    pos: u32,
    label: &'a str,
    weight: f32,
    share: f64,
    in_cut: bool,
    activation: Option<f32>,
}

pub(in super::super) async fn of_node(
    State(app): State<Arc<App>>,
    At((id, name)): At<(String, String)>,
    Asked(asked): Asked<NodeAsked>,
) -> Answer {
    away(move || {
        let limit = asked.limit.unwrap_or(DEFAULT_LIMIT);
        if limit == 0 || limit > MAX_LIMIT {
            return Err(Refusal::bad_request(format!("`limit` is {limit}, expected 1 to {MAX_LIMIT}")));
        }
        let whole = app.graph(&id)?;
        let n = whole.need(&name)?;
        let ThresholdsAsked { node_threshold, edge_threshold } =
            ThresholdsAsked { node_threshold: asked.node_threshold, edge_threshold: asked.edge_threshold };
        let cut = whole.cut(whole.thresholds(node_threshold, edge_threshold)?)?;
        let side = |side: Side| {
            if asked.side != Side::Both && asked.side != side {
                return json!({"total": null, "weight": null, "links": []});
            }
            let mut ties = match (side, asked.whole) {
                (Side::Outputs, false) => outputs(&whole, &cut, n),
                (Side::Outputs, true) => whole_outputs(&whole, n),
                (_, false) => inputs(&cut, n),
                (_, true) => whole_inputs(&whole, n),
            };
            ties.sort_unstable_by(|a, b| b.2.total_cmp(&a.2).then(b.1.abs().total_cmp(&a.1.abs())).then(a.0.cmp(&b.0)));
            let weight: f64 = ties.iter().map(|tie| f64::from(tie.1.abs())).sum();
            let listed: Vec<Listed> =
                ties.iter().skip(asked.offset).take(limit).map(|&tie| listed(&whole, &cut, tie)).collect();
            json!({"total": ties.len(), "weight": weight, "links": listed})
        };
        Ok(json_response(&json!({
            "n": n,
            "id": whole.ids[n],
            "kind": whole.nodes[n].id.kind(),
            "label": whole.label(n),
            "in_cut": cut.place(n).is_some(),
            "inputs": side(Side::Inputs),
            "outputs": side(Side::Outputs),
            "proof": whole.raw().and_then(|traced| proof(traced.graph(), n)),
        })))
    })
    .await
}

fn listed<'a>(whole: &'a Whole, cut: &Cut, (n, weight, share): Tie) -> Listed<'a> {
    let node = &whole.nodes[n];
    Listed {
        n,
        id: &whole.ids[n],
        kind: node.id.kind(),
        layer: node.id.layer(),
        pos: node.pos,
        label: whole.label(n),
        weight,
        share,
        in_cut: cut.place(n).is_some(),
        activation: node.activation,
    }
}

fn inputs(cut: &Cut, n: usize) -> Vec<Tie> {
    let Some(row) = cut.place(n) else { return Vec::new() };
    let links = cut.row_starts[row]..cut.row_starts[row + 1];
    links.map(|link| (cut.sources[link] as usize, cut.weights[link], cut.link_share(row, link))).collect()
}

fn outputs(whole: &Whole, cut: &Cut, n: usize) -> Vec<Tie> {
    debug_assert!(n < whole.nodes.len());
    let links = cut.sources.iter().enumerate().filter(|(_, source)| **source as usize == n);
    links
        .map(|(link, _)| (cut.row_of(link), link))
        .map(|(row, link)| (cut.nodes[row] as usize, cut.weights[link], cut.link_share(row, link)))
        .collect()
}

fn whole_inputs(whole: &Whole, n: usize) -> Vec<Tie> {
    match &whole.edges {
        Edges::Raw(traced) => {
            let graph = traced.graph();
            let Some(row) = row_of(graph, n) else { return Vec::new() };
            let effects = graph.row(row);
            let sources = || graph.layout().source_ranges(row).flatten().filter(|&source| effects[source] != 0.0);
            let sum: f64 = sources().map(|source| f64::from(effects[source].abs())).sum();
            sources().map(|source| (source, effects[source], f64::from(effects[source].abs()) / sum)).collect()
        }
        Edges::Json(_) => whole.cut(None).map_or_else(|_| Vec::new(), |cut| inputs(&cut, n)),
    }
}

fn whole_outputs(whole: &Whole, n: usize) -> Vec<Tie> {
    match &whole.edges {
        Edges::Raw(traced) => {
            let (graph, layout) = (traced.graph(), traced.graph().layout());
            let sums = &traced.influence().row_abs_sums;
            let rows = (0..layout.n_rows()).filter(|&row| layout.source_ranges(row).any(|range| range.contains(&n)));
            let ties = rows.map(|row| (row, graph.row(row)[n])).filter(|(_, weight)| *weight != 0.0);
            ties.filter_map(|(row, weight)| {
                Some((layout.node_of_row(row)?, weight, f64::from(weight.abs()) / sums[row].max(f64::MIN_POSITIVE)))
            })
            .collect()
        }
        Edges::Json(_) => whole.cut(None).map_or_else(|_| Vec::new(), |cut| outputs(whole, &cut, n)),
    }
}

/// The row of a feature or target.
fn row_of(graph: &AttributionGraph, n: usize) -> Option<usize> {
    let layout = graph.layout();
    let target = layout.targets().contains(&n).then(|| layout.n_features() + n - layout.targets().start);
    layout.features().contains(&n).then_some(n).or(target)
}

/// The row identity of one node: inputs and bias add up to the pre-activation (definitions 4).
#[derive(Debug, Serialize)]
struct Proof {
    pre_activation: f64,
    from_features: f64,
    from_errors: f64,
    from_tokens: f64,
    /// Only where positions are closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    from_contexts: Option<f64>,
    bias: f64,
    unselected: Option<f64>,
    sum: f64,
    residual: f64,
    relative_error: f64,
}

fn proof(graph: &AttributionGraph, n: usize) -> Option<Proof> {
    let (row, layout) = (row_of(graph, n)?, graph.layout());
    let (effects, mut sums, mut abs_sum) = (graph.row(row), [0f64; 4], 0f64);
    for source in layout.source_ranges(row).flatten() {
        let kind = match layout.kind_of(source) {
            NodeKind::Feature => 0,
            NodeKind::Error => 1,
            NodeKind::Context => 3,
            NodeKind::Token | NodeKind::Target => 2,
        };
        sums[kind] += f64::from(effects[source]);
        abs_sum += f64::from(effects[source].abs());
    }
    let (bias, value) = (f64::from(graph.bias_effect[row]), f64::from(graph.row_values[row]));
    let of = |effects: &[f32]| effects.get(row).map(|&effect| f64::from(effect));
    let unselected = match (of(&graph.unselected_effect), of(&graph.unselected_error_effect)) {
        (Some(features), Some(errors)) => Some(features + errors),
        (features, errors) => features.or(errors),
    };
    let sum = sums.iter().sum::<f64>() + bias + unselected.unwrap_or(0.0);
    // What was summed is the scale: the value may be the difference of large effects.
    let whole = graph.whole_influence().map_or(0.0, |whole| f64::from(whole.row_abs_sums[row]));
    let scale =
        abs_sum.max(whole).max(value.abs()).max(bias.abs()).max(unselected.unwrap_or(0.0).abs()).max(f64::MIN_POSITIVE);
    Some(Proof {
        pre_activation: value,
        from_features: sums[0],
        from_errors: sums[1],
        from_tokens: sums[2],
        from_contexts: (!layout.closed().is_empty()).then_some(sums[3]),
        bias,
        unselected,
        sum,
        residual: sum - value,
        relative_error: (sum - value).abs() / scale,
    })
}
