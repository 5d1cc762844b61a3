//! The list of graphs; header, nodes and cuts of one.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use crate::graph::NodeKind;

use super::super::app::{App, away};
use super::super::columns::{Values, safetensors, texts};
use super::super::cut::Cut;
use super::super::extract::{Asked, At};
use super::super::reply::{Answer, bytes_response, json_response, tagged};
use super::super::whole::{Edges, Whole};

/// The thresholds of a request.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(in super::super) struct ThresholdsAsked {
    pub node_threshold: Option<f64>,
    pub edge_threshold: Option<f64>,
}

impl ThresholdsAsked {
    /// The graph cut at them.
    ///
    /// # Errors
    /// As [`Whole::cut`].
    pub fn cut(self, whole: &Whole) -> Answer<Arc<Cut>> {
        Ok(whole.cut(whole.thresholds(self.node_threshold, self.edge_threshold)?)?)
    }
}

pub(in super::super) async fn list(State(app): State<Arc<App>>) -> Answer {
    away(move || {
        let mut graphs = app.library.list();
        if graphs.is_empty() && app.wait_for_demo() {
            graphs = app.library.list();
        }
        Ok(json_response(&json!({ "graphs": graphs })))
    })
    .await
}

#[derive(Deserialize)]
pub(in super::super) struct HeaderAsked {
    node_threshold: Option<f64>,
    edge_threshold: Option<f64>,
    summary: Option<bool>,
}

pub(in super::super) async fn header(
    State(app): State<Arc<App>>,
    At(id): At<String>,
    Asked(asked): Asked<HeaderAsked>,
) -> Answer {
    away(move || {
        let whole = app.graph(&id)?;
        let thresholds = ThresholdsAsked { node_threshold: asked.node_threshold, edge_threshold: asked.edge_threshold };
        let cut = thresholds.cut(&whole)?;
        // The page paints before the story is found.
        let summary = if asked.summary.unwrap_or(true) { Some(cut.summary(&whole)?) } else { None };
        let files = app.library.files_of(&id).unwrap_or_default();
        let meta = &whole.meta;
        let targets: Vec<_> = (0..whole.nodes.len())
            .filter(|&n| whole.nodes[n].id.kind() == NodeKind::Target)
            .map(|n| {
                let node = &whole.nodes[n];
                json!({"n": n, "id": whole.ids[n], "text": node.text, "pos": node.pos, "token_id": node.token_id, "probability": node.probability})
            })
            .collect();
        let n_links = match &whole.edges {
            Edges::Raw(traced) => Some(n_links_of(traced.graph())),
            Edges::Json(_) => None,
        };
        Ok(json_response(&json!({
            "id": id,
            "prompt": meta.prompt,
            "prompt_tokens": meta.prompt_tokens,
            "scan": meta.scan,
            "model": meta.model,
            "transcoders": meta.transcoders,
            "n_layers": meta.n_layers,
            "raw": whole.raw().is_some(),
            "json": files.json.is_some(),
            "in_memory": app.library.in_memory(&id).is_some(),
            "n_nodes": whole.nodes.len(),
            "n_links": n_links,
            "targets": targets,
            "scores": {"replacement": meta.replacement_score, "completeness": meta.completeness_score},
            "proof": meta.row_identity_error.map(|error| json!({ "row_identity_error": error })),
            "sampling": meta.sampling,
            "settings": meta.settings,
            "verification": app.verification(&whole.etag),
            "cut": cut.report(&whole, false),
            "summary": summary.as_deref(),
            "etag": whole.etag,
        })))
    })
    .await
}

/// Edges that the rows of a raw graph can have.
fn n_links_of(graph: &crate::graph::AttributionGraph) -> usize {
    let layout = graph.layout();
    (0..layout.n_rows()).map(|row| layout.source_ranges(row).map(|range| range.len()).sum::<usize>()).sum()
}

pub(in super::super) async fn prune(
    State(app): State<Arc<App>>,
    At(id): At<String>,
    Asked(asked): Asked<ThresholdsAsked>,
) -> Answer {
    away(move || {
        let whole = app.graph(&id)?;
        Ok(json_response(&asked.cut(&whole)?.report(&whole, true)))
    })
    .await
}

pub(in super::super) async fn nodes(State(app): State<Arc<App>>, At(id): At<String>, headers: HeaderMap) -> Answer {
    away(move || {
        let whole = app.graph(&id)?;
        tagged(&whole.etag, headers.get(header::IF_NONE_MATCH), || Ok(node_columns(&id, &whole)))
    })
    .await
}

fn node_columns(id: &str, whole: &Whole) -> Response {
    let nodes = || whole.nodes.iter();
    let share = match whole.raw() {
        Some(traced) => {
            let weight: f64 = traced.graph().target_probabilities.iter().map(|&weight| f64::from(weight)).sum();
            let of = |influence: f64| if weight > 0.0 { (influence / weight) as f32 } else { 0.0 };
            let mut share: Vec<f32> = traced.influence().nodes.iter().map(|&influence| of(influence)).collect();
            for (n, node) in nodes().enumerate().filter(|(_, node)| node.id.kind() == NodeKind::Target) {
                share[n] = of(node.probability.map_or(1.0, f64::from));
            }
            share
        }
        // Of a pruned file there is only what it keeps.
        None => match whole.cut(None) {
            Ok(cut) => cut.shares.iter().map(|&share| share as f32).collect(),
            Err(_) => vec![f32::NAN; whole.nodes.len()],
        },
    };
    let layer: Vec<i32> = nodes()
        .map(|node| match node.id.kind() {
            NodeKind::Token | NodeKind::Context => -1,
            NodeKind::Target => whole.meta.n_layers as i32,
            _ => node.id.layer().map_or(-1, |layer| layer as i32),
        })
        .collect();
    let pos: Vec<i32> = nodes().map(|node| node.pos as i32).collect();
    let feature: Vec<i32> = nodes().map(|node| node.id.feature().map_or(-1, |id| id.feature as i32)).collect();
    let token_id: Vec<i32> = nodes().map(|node| node.token_id.map_or(-1, |id| id.max(-1) as i32)).collect();
    let activation: Vec<f32> = nodes().map(|node| node.activation.unwrap_or(f32::NAN)).collect();
    let influence: Vec<f32> = nodes().map(|node| node.influence.map_or(f32::NAN, |share| share as f32)).collect();
    let probability: Vec<f32> = nodes().map(|node| node.probability.unwrap_or(f32::NAN)).collect();
    let kind: Vec<u8> = nodes().map(|node| kind_number(node.id.kind())).collect();
    let (id_start, id_text) = texts(whole.ids.iter().map(String::as_str));
    let (label_start, label_text) = texts((0..whole.nodes.len()).map(|n| whole.label(n)));
    let metadata = [
        ("format", "circuitscope nodes".to_owned()),
        ("version", "1".to_owned()),
        ("graph", id.to_owned()),
        ("etag", whole.etag.clone()),
        ("n_nodes", whole.nodes.len().to_string()),
    ];
    let columns = [
        ("layer", Values::I32(&layer)),
        ("pos", Values::I32(&pos)),
        ("feature", Values::I32(&feature)),
        ("token_id", Values::I32(&token_id)),
        ("activation", Values::F32(&activation)),
        ("influence", Values::F32(&influence)),
        ("share", Values::F32(&share)),
        ("probability", Values::F32(&probability)),
        ("id_start", Values::U32(&id_start)),
        ("label_start", Values::U32(&label_start)),
        ("kind", Values::U8(&kind)),
        ("id_text", Values::U8(&id_text)),
        ("label_text", Values::U8(&label_text)),
    ];
    bytes_response("application/octet-stream", safetensors(&metadata, &columns))
}

fn kind_number(kind: NodeKind) -> u8 {
    match kind {
        NodeKind::Feature => 0,
        NodeKind::Error => 1,
        NodeKind::Token => 2,
        NodeKind::Target => 3,
        NodeKind::Context => 4,
    }
}
