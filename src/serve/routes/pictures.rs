//! Pictures, the layout of the circuit panel, and downloads.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use petgraph::graph::NodeIndex;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::circuits::{CollapsedCircuit, Supernode, collapse, members_within};
use crate::export::WireGraph;
use crate::graph::Circuit;
use crate::picture::{BoxKind, Cells, PictureSettings, arrange, csv_edges, csv_nodes, dot, graphml, png, svg};

use super::super::app::{App, away};
use super::super::cut::Cut;
use super::super::extract::{Asked, At, Body};
use super::super::reply::{Answer, Refusal, download, json_response};
use super::super::view::{Group, View, feature_of};
use super::super::whole::Whole;
use super::graphs::ThresholdsAsked;

/// Boxes that a picture may have, and how large a PNG may be drawn.
const MAX_NODES: usize = 400;
const MAX_SCALE: f64 = 6.0;

/// A part of a graph as it is to be drawn.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(in super::super) struct Part {
    pinned: Vec<String>,
    groups: Vec<Group>,
    labels: std::collections::BTreeMap<String, String>,
    node_threshold: Option<f64>,
    edge_threshold: Option<f64>,
    max_nodes: Option<usize>,
    scale: Option<f64>,
    format: Option<Format>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Format {
    Svg,
    Png,
}

/// A part, chosen, named and collapsed.
struct Chosen {
    circuit: Circuit,
    collapsed: CollapsedCircuit,
    settings: PictureSettings,
    /// Pinned nodes that the cut does not have.
    n_outside: usize,
}

impl Part {
    fn of_view(view: View) -> Self {
        Self { pinned: view.pinned, groups: view.groups, labels: view.labels, ..Self::default() }
    }

    fn thresholds(&self) -> ThresholdsAsked {
        ThresholdsAsked { node_threshold: self.node_threshold, edge_threshold: self.edge_threshold }
    }

    /// # Errors
    /// Sizes out of range; a group that cannot be.
    fn chosen(&self, whole: &Whole) -> Answer<Chosen> {
        let cut = self.thresholds().cut(whole)?;
        let mut circuit = Circuit::clone(&*cut.circuit(whole)?);
        self.relabel(&mut circuit);
        let place = |id: &String| whole.find(id).and_then(|n| cut.place(n)).map(NodeIndex::new);
        // Ids that this cut has dropped stay saved, and are not drawn.
        let mut taken = std::collections::HashSet::new();
        let mut groups = Vec::new();
        for group in &self.groups {
            let mut members: Vec<NodeIndex> = group.members.iter().filter_map(place).collect();
            members.sort_unstable();
            members.dedup();
            members.retain(|member| taken.insert(*member));
            if !members.is_empty() {
                groups.push(Supernode { name: group.name.clone(), members });
            }
        }
        let n_outside = self.pinned.iter().filter(|id| place(id).is_none()).count();
        let mut pinned: Vec<NodeIndex> = self.pinned.iter().filter_map(place).collect();
        if !pinned.is_empty() {
            pinned.extend(groups.iter().flat_map(|group| group.members.iter().copied()));
            // What a picture stands on and leads to.
            pinned.extend(circuit.tokens());
            pinned.extend(circuit.targets());
            pinned.sort_unstable();
            pinned.dedup();
            let part = circuit.part(&pinned);
            groups = members_within(&circuit, &part, groups);
            circuit = part;
        }
        let usual = PictureSettings::default();
        let max_nodes = self.max_nodes.unwrap_or(if self.pinned.is_empty() { usual.max_nodes } else { MAX_NODES });
        let scale = self.scale.unwrap_or(usual.scale);
        if max_nodes > MAX_NODES || !(0.1..=MAX_SCALE).contains(&scale) {
            let message = format!("`max_nodes` may be at most {MAX_NODES}, `scale` 0.1 to {MAX_SCALE}");
            return Err(Refusal::bad_request(message));
        }
        let collapsed = collapse(&circuit, &groups)?;
        Ok(Chosen { circuit, collapsed, settings: PictureSettings { max_nodes, scale, ..usual }, n_outside })
    }

    fn relabel(&self, circuit: &mut Circuit) {
        let labels: std::collections::HashMap<(u32, u32), &String> =
            self.labels.iter().filter_map(|(name, label)| Some((feature_of(name)?, label))).collect();
        circuit.set_labels(|layer, feature| labels.get(&(layer, feature)).map(|label| (*label).clone()));
    }

    fn drawn(&self, whole: &Whole, id: &str, format: Format) -> Answer {
        let Chosen { circuit, collapsed, settings, .. } = self.chosen(whole)?;
        let text = svg(&circuit, &collapsed, &arrange(&circuit, &collapsed, &settings));
        Ok(match format {
            Format::Svg => download("image/svg+xml", &format!("{id}.svg"), text),
            Format::Png => download("image/png", &format!("{id}.png"), png(&text, settings.scale)?),
        })
    }
}

#[derive(Deserialize)]
pub(in super::super) struct PictureAsked {
    node_threshold: Option<f64>,
    edge_threshold: Option<f64>,
    pinned: Option<String>,
    view: Option<bool>,
    max_nodes: Option<usize>,
    scale: Option<f64>,
}

pub(in super::super) async fn svg_of_view(
    State(app): State<Arc<App>>,
    At(id): At<String>,
    Asked(asked): Asked<PictureAsked>,
) -> Answer {
    of_view(app, id, asked, Format::Svg).await
}

pub(in super::super) async fn png_of_view(
    State(app): State<Arc<App>>,
    At(id): At<String>,
    Asked(asked): Asked<PictureAsked>,
) -> Answer {
    of_view(app, id, asked, Format::Png).await
}

async fn of_view(app: Arc<App>, id: String, asked: PictureAsked, format: Format) -> Answer {
    away(move || {
        let whole = app.graph(&id)?;
        let view = if asked.view.unwrap_or(true) { app.saving.view(&app.library, &id)? } else { View::default() };
        let mut part = Part::of_view(view);
        if let Some(pinned) = &asked.pinned {
            part.pinned = pinned.split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect();
        }
        (part.node_threshold, part.edge_threshold) = (asked.node_threshold, asked.edge_threshold);
        (part.max_nodes, part.scale) = (asked.max_nodes, asked.scale);
        part.drawn(&whole, &id, format)
    })
    .await
}

pub(in super::super) async fn picture(
    State(app): State<Arc<App>>,
    At(id): At<String>,
    Body(part): Body<Part>,
) -> Answer {
    away(move || part.drawn(&*app.graph(&id)?, &id, part.format.unwrap_or(Format::Svg))).await
}

pub(in super::super) async fn layout(
    State(app): State<Arc<App>>,
    At(id): At<String>,
    Body(part): Body<Part>,
) -> Answer {
    away(move || {
        let whole = app.graph(&id)?;
        let chosen = part.chosen(&whole)?;
        Ok(laid_out(&whole, &chosen))
    })
    .await
}

fn laid_out(whole: &Whole, Chosen { circuit, collapsed, settings, n_outside }: &Chosen) -> Response {
    let arranged = arrange(circuit, collapsed, settings);
    let id = |node: NodeIndex| whole.id_of(circuit.node(node).id);
    let boxes: Vec<Value> = arranged
        .boxes
        .iter()
        .map(|drawn| {
            let members = || drawn.members.iter().map(|&member| &collapsed.nodes[member]);
            let ids: Vec<&str> = members().flat_map(|node| &node.members).map(|&node| id(node)).collect();
            let name = members().find_map(|node| node.name.clone());
            let kind = match drawn.kind {
                BoxKind::Token => "token",
                BoxKind::Feature => "feature",
                BoxKind::Error => "error",
                BoxKind::Supernode => "group",
                BoxKind::Target => "target",
            };
            json!({"ids": ids, "name": name.unwrap_or_else(|| drawn.lines.join(" ")), "kind": kind, "share": drawn.share,
                "x": drawn.x, "y": drawn.y, "width": drawn.width, "height": drawn.height, "lines": drawn.lines,
                "small_print": drawn.small_print})
        })
        .collect();
    let edges: Vec<Value> = arranged
        .edges
        .iter()
        .map(|edge| {
            let curve: Vec<Vec<[f64; 2]>> = edge.curve.iter().map(|piece| piece.iter().map(|&(x, y)| [x, y]).collect()).collect();
            json!({"source": edge.source, "target": edge.target, "weight": edge.weight, "share": edge.share, "width": edge.width(), "curve": curve})
        })
        .collect();
    let rows: Vec<Value> =
        arranged.rows.iter().map(|(name, top, bottom)| json!({"name": name, "top": top, "bottom": bottom})).collect();
    let hidden = arranged.hidden;
    json_response(&json!({
        "width": arranged.width,
        "height": arranged.legend_top,
        "boxes": boxes,
        "edges": edges,
        "rows": rows,
        "hidden": {"nodes": hidden.nodes + n_outside, "edges": hidden.edges, "targets": hidden.targets},
    }))
}

#[derive(Deserialize)]
pub(in super::super) struct ExportAsked {
    node_threshold: Option<f64>,
    edge_threshold: Option<f64>,
    part: Option<PartOf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PartOf {
    All,
    Pinned,
}

pub(in super::super) async fn export(
    State(app): State<Arc<App>>,
    At((id, name)): At<(String, String)>,
    Asked(asked): Asked<ExportAsked>,
    _: HeaderMap,
) -> Answer {
    away(move || {
        let not_found = || Refusal::not_found("there is nothing at this address");
        let format = name.strip_prefix("export.").ok_or_else(not_found)?;
        let whole = app.graph(&id)?;
        let q_params = app.saving.read(&app.library, &id)?;
        let mut part = Part::of_view(View::of_q_params(&q_params));
        (part.node_threshold, part.edge_threshold) = (asked.node_threshold, asked.edge_threshold);
        if asked.part != Some(PartOf::Pinned) {
            part.pinned.clear();
        }
        if format == "json" {
            return exported_json(&whole, &*part.thresholds().cut(&whole)?, &part, &id, q_params);
        }
        let Chosen { circuit, collapsed, .. } = part.chosen(&whole)?;
        Ok(match format {
            "graphml" => download("application/xml", &format!("{id}.graphml"), graphml(&circuit, &collapsed)),
            "dot" => download("text/vnd.graphviz; charset=utf-8", &format!("{id}.dot"), dot(&circuit, &collapsed)),
            "csv" => download(
                "text/csv; charset=utf-8",
                &format!("{id}.csv"),
                csv_edges(&circuit, &collapsed, Cells::Spreadsheet),
            ),
            "nodes.csv" => download(
                "text/csv; charset=utf-8",
                &format!("{id}.nodes.csv"),
                csv_nodes(&circuit, &collapsed, Cells::Spreadsheet),
            ),
            _ => return Err(not_found()),
        })
    })
    .await
}

fn exported_json(whole: &Whole, cut: &Cut, part: &Part, id: &str, q_params: serde_json::Map<String, Value>) -> Answer {
    let mut circuit = Circuit::clone(&*cut.circuit(whole)?);
    part.relabel(&mut circuit);
    let mut wire = WireGraph::new(&circuit, id)?;
    wire.q_params = q_params;
    let bytes = serde_json::to_vec(&wire).map_err(|error| Refusal::internal(error.to_string()))?;
    Ok(download("application/json", &format!("{id}.json"), bytes))
}
