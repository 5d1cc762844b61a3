//! Parts of a graph: paths, groups, scores, what two graphs share, and what a search finds.

use std::sync::Arc;

use axum::extract::State;
use petgraph::graph::NodeIndex;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::circuits::{ClusterSettings, carried, diff as diff_of, find_nodes, find_supernodes, pinned_scores};
use crate::graph::{Circuit, NodeKind, Scores, strongest_paths, subgraph_scores};
use crate::{Error, Result};

use super::super::app::{App, away};
use super::super::cut::Cut;
use super::super::extract::{Asked, At, Body};
use super::super::reply::{Answer, Refusal, json_response};
use super::super::whole::Whole;
use super::graphs::ThresholdsAsked;

const MAX_PATHS: usize = 1000;

/// Nodes of a cut by the names of a request: ids, numbers and labels; with commas between several.
///
/// # Errors
/// A name that is none of the cut's.
pub(in super::super) fn named(whole: &Whole, cut: &Cut, circuit: &Circuit, text: &str) -> Result<Vec<NodeIndex>> {
    let one = |name: &str| -> Result<Vec<NodeIndex>> {
        if let Some(n) = whole.find(name) {
            return match cut.place(n) {
                Some(place) => Ok(vec![NodeIndex::new(place)]),
                None => Err(Error::UnknownNode { id: name.to_owned(), near: Vec::new() }),
            };
        }
        find_nodes(circuit, name)
    };
    // A label may have commas itself.
    let found = match one(text) {
        Err(_) if text.contains(',') => text.split(',').map(one).collect::<Result<Vec<_>>>()?.concat(),
        found => found?,
    };
    Ok(found)
}

#[derive(Deserialize)]
pub(in super::super) struct PathsAsked {
    node_threshold: Option<f64>,
    edge_threshold: Option<f64>,
    from: Option<String>,
    to: Option<String>,
    k: Option<usize>,
}

pub(in super::super) async fn paths(
    State(app): State<Arc<App>>,
    At(id): At<String>,
    Asked(asked): Asked<PathsAsked>,
) -> Answer {
    away(move || {
        let k = asked.k.unwrap_or(10);
        if k == 0 || k > MAX_PATHS {
            return Err(Refusal::bad_request(format!("`k` is {k}, expected 1 to {MAX_PATHS}")));
        }
        let whole = app.graph(&id)?;
        let cut = ThresholdsAsked { node_threshold: asked.node_threshold, edge_threshold: asked.edge_threshold }
            .cut(&whole)?;
        let circuit = cut.circuit(&whole)?;
        let said = |text: &Option<String>| {
            text.as_deref().filter(|text| !text.is_empty()).map(|text| named(&whole, &cut, &circuit, text))
        };
        let from = said(&asked.from).transpose()?.unwrap_or_else(|| circuit.tokens());
        let to = said(&asked.to).transpose()?.unwrap_or_else(|| circuit.targets().into_iter().take(1).collect());
        let found = strongest_paths(&circuit, &from, &to, k);
        let path = |path: &crate::graph::Path| -> Value {
            let numbers: Vec<u32> = path.nodes.iter().map(|node| cut.nodes[node.index()]).collect();
            let ids: Vec<&str> = numbers.iter().map(|&n| whole.ids[n as usize].as_str()).collect();
            let weight = |ends: &[NodeIndex]| {
                circuit.graph().find_edge(ends[0], ends[1]).map(|edge| circuit.graph()[edge].weight)
            };
            let weights: Vec<_> = path.nodes.windows(2).map(weight).collect();
            let effect = if path.is_negative { -path.strength } else { path.strength };
            json!({"nodes": numbers, "ids": ids, "weights": weights, "strength": path.strength, "effect": effect})
        };
        Ok(json_response(&json!({"paths": found.paths.iter().map(path).collect::<Vec<_>>(), "total": found.total})))
    })
    .await
}

#[derive(Deserialize)]
pub(in super::super) struct GroupsAsked {
    node_threshold: Option<f64>,
    edge_threshold: Option<f64>,
    cut: Option<f64>,
}

pub(in super::super) async fn groups(
    State(app): State<Arc<App>>,
    At(id): At<String>,
    Asked(asked): Asked<GroupsAsked>,
) -> Answer {
    away(move || {
        let whole = app.graph(&id)?;
        let thresholds = ThresholdsAsked { node_threshold: asked.node_threshold, edge_threshold: asked.edge_threshold };
        let cut = thresholds.cut(&whole)?;
        let circuit = cut.circuit(&whole)?;
        let usual = ClusterSettings::default();
        let cosine = asked.cut.unwrap_or(usual.cut);
        if !(-1.0..=1.0).contains(&cosine) {
            return Err(Refusal::bad_request(format!("`cut` is {cosine}, expected a cosine in -1..=1")));
        }
        let direction = |index: NodeIndex| {
            let graph = whole.raw()?.graph();
            let directions = graph.decoder_directions()?;
            let n = cut.nodes[index.index()] as usize;
            (n < directions.n_features()).then(|| directions.row(n))
        };
        let found = find_supernodes(&circuit, &ClusterSettings { cut: cosine, ..usual }, Some(&direction));
        let id_of = |node: &NodeIndex| whole.ids[cut.nodes[node.index()] as usize].as_str();
        let groups: Vec<Value> = found
            .iter()
            .map(|group| {
                let members: Vec<&str> = group.members.iter().map(id_of).collect();
                json!({"name": group.name, "members": members, "share": share_through(&circuit, &group.members)})
            })
            .collect();
        Ok(json_response(&json!({ "groups": groups })))
    })
    .await
}

fn share_through(circuit: &Circuit, nodes: &[NodeIndex]) -> f64 {
    let whole = circuit.whole_weight();
    if whole > 0.0 { circuit.influence_through(nodes) / whole } else { 0.0 }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct ScoresAsked {
    nodes: Vec<String>,
    node_threshold: Option<f64>,
    edge_threshold: Option<f64>,
}

pub(in super::super) async fn scores(
    State(app): State<Arc<App>>,
    At(id): At<String>,
    Body(asked): Body<ScoresAsked>,
) -> Answer {
    away(move || {
        let whole = app.graph(&id)?;
        let cut = ThresholdsAsked { node_threshold: asked.node_threshold, edge_threshold: asked.edge_threshold }
            .cut(&whole)?;
        let circuit = cut.circuit(&whole)?;
        let (mut numbers, mut unknown) = (Vec::new(), Vec::new());
        for name in &asked.nodes {
            match whole.find(name) {
                Some(n) => numbers.push(n),
                None => unknown.push(name),
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        let mut is_in = vec![false; cut.nodes.len()];
        for &n in &numbers {
            match cut.place(n) {
                Some(place) => is_in[place] = true,
                None => unknown.push(&whole.ids[n]),
            }
        }
        // Over all edges also what the cut does not have counts.
        let scores = scores_of(&whole, &circuit, &numbers, &is_in);
        let part = carried(&circuit, |node| is_in[node.index()]);
        let kind = |node: &NodeIndex| circuit.node(*node).id;
        let chosen: Vec<NodeIndex> = (0..is_in.len()).filter(|&at| is_in[at]).map(NodeIndex::new).collect();
        let inner: Vec<NodeIndex> = chosen.iter().copied().filter(|node| kind(node).layer().is_some()).collect();
        Ok(json_response(&json!({
            "replacement": scores.replacement,
            "completeness": scores.completeness,
            "carried_by_tokens": part.by_tokens,
            "carried_by_errors": part.by_errors,
            "whole_by_tokens": carried(&circuit, |_| true).by_tokens,
            "passes_through": share_through(&circuit, &inner),
            "n_nodes": chosen.len(),
            "n_features": chosen.iter().filter(|node| kind(node).kind() == NodeKind::Feature).count(),
            "over_all_edges": whole.raw().is_some(),
            "unknown": unknown,
        })))
    })
    .await
}

fn scores_of(whole: &Whole, circuit: &Circuit, numbers: &[usize], is_in: &[bool]) -> Scores {
    let Some(traced) = whole.raw() else { return pinned_scores(circuit, |node| is_in[node.index()]) };
    let graph = traced.graph();
    let mut pinned = vec![false; graph.layout().n_features()];
    for &n in numbers {
        if let Some(pinned) = pinned.get_mut(n) {
            *pinned = true;
        }
    }
    subgraph_scores(&graph.edge_rows, graph.layout(), &graph.target_probabilities, &pinned)
}

pub(in super::super) async fn diff(
    State(app): State<Arc<App>>,
    At((id, other)): At<(String, String)>,
    Asked(asked): Asked<ThresholdsAsked>,
) -> Answer {
    away(move || {
        let (left, right) = (app.graph(&id)?, app.graph(&other)?);
        let (left_cut, right_cut) = (asked.cut(&left)?, asked.cut(&right)?);
        let found = diff_of(&*left_cut.circuit(&left)?, &*right_cut.circuit(&right)?);
        let mut answer = json!(found);
        (answer["left"], answer["right"]) = (json!(id), json!(other));
        Ok(json_response(&answer))
    })
    .await
}

#[derive(Deserialize)]
pub(in super::super) struct SearchAsked {
    node_threshold: Option<f64>,
    edge_threshold: Option<f64>,
    q: String,
    limit: Option<usize>,
}

pub(in super::super) async fn search(
    State(app): State<Arc<App>>,
    At(id): At<String>,
    Asked(asked): Asked<SearchAsked>,
) -> Answer {
    away(move || {
        let limit = asked.limit.unwrap_or(50).min(1000);
        let whole = app.graph(&id)?;
        let cut = ThresholdsAsked { node_threshold: asked.node_threshold, edge_threshold: asked.edge_threshold }.cut(&whole)?;
        let query = asked.q.trim().to_lowercase();
        if query.is_empty() {
            return Err(Refusal::bad_request("`q` has no word"));
        }
        let words: Vec<&str> = query.split_whitespace().collect();
        // What the cut has comes first, then what is called so exactly, then what carries most.
        let mut found: Vec<(bool, u8, f64, usize, &'static str)> = Vec::new();
        for n in 0..whole.nodes.len() {
            let (label, id) = (whole.label(n).to_lowercase(), whole.ids[n].as_str());
            let is_id = id == query || id.strip_prefix(query.as_str()).is_some_and(|rest| rest.starts_with('_'));
            let (rank, why) = match () {
                () if is_id => (0, "id"),
                () if label.trim() == query => (1, why(whole.nodes[n].id.kind())),
                () if !label.is_empty() && words.iter().all(|word| label.contains(word)) => (2, why(whole.nodes[n].id.kind())),
                () => continue,
            };
            let place = cut.place(n);
            let share = place.map_or(0.0, |place| cut.shares[place]);
            found.push((place.is_none(), rank, -share, n, why));
        }
        found.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)).then(a.2.total_cmp(&b.2)).then(a.3.cmp(&b.3)));
        let total = found.len();
        let entries: Vec<Value> = found
            .into_iter()
            .take(limit)
            .map(|(is_out, _, _, n, why)| {
                json!({"n": n, "id": whole.ids[n], "kind": whole.nodes[n].id.kind(), "label": whole.label(n), "in_cut": !is_out, "why": why})
            })
            .collect();
        Ok(json_response(&json!({"found": entries, "total": total})))
    })
    .await
}

fn why(kind: NodeKind) -> &'static str {
    if matches!(kind, NodeKind::Token | NodeKind::Target) { "token" } else { "label" }
}
