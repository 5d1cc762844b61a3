//! Circuits for other programs: Graphviz, GraphML, tables.

use std::collections::HashSet;
use std::fmt::Write;

use super::node_text;
use crate::circuits::{CollapsedCircuit, CollapsedNode, collapsed_heads};
use crate::graph::{Circuit, EdgeHeads};
use crate::text::{Cells, csv_cell, dot as dot_text, xml};

/// Layer of a node that is in one.
fn layer(circuit: &Circuit, node: &CollapsedNode) -> String {
    match (&node.name, circuit.node(node.members[0]).id.layer()) {
        (None, Some(layer)) => layer.to_string(),
        _ => String::new(),
    }
}

/// The ids of all nodes, made once: edges are many. Each is there once: of supernodes that are called alike, or as a node
/// is, the later ones get a number. Nodes keep their own ids.
fn ids(circuit: &Circuit, collapsed: &CollapsedCircuit, quoted: impl Fn(&str) -> String) -> Vec<String> {
    let mut taken: HashSet<String> = HashSet::with_capacity(collapsed.nodes.len());
    let mut ids = vec![String::new(); collapsed.nodes.len()];
    for are_supernodes in [false, true] {
        let nodes = collapsed.nodes.iter().zip(&mut ids);
        for (node, id) in nodes.filter(|(node, _)| node.name.is_some() == are_supernodes) {
            let own = node_text::id(circuit, node);
            // Compared as it is written: what cannot be written there is left out of both.
            *id = quoted(&own);
            let mut number = 2;
            while !taken.insert(id.clone()) {
                *id = quoted(&format!("{own} ({number})"));
                number += 1;
            }
        }
    }
    ids
}

/// The collapsed circuit in Graphviz's language, bottom to top.
pub fn dot(circuit: &Circuit, collapsed: &CollapsedCircuit) -> String {
    let ids = ids(circuit, collapsed, dot_text);
    let mut out = String::from("digraph circuit {\n  rankdir=BT;\n  node [shape=box, style=rounded, fontsize=10];\n");
    for (node, id) in collapsed.nodes.iter().zip(&ids) {
        let shape = match node_text::kind(circuit, node) {
            "error" => ", style=\"rounded,dashed\"",
            "supernode" => ", peripheries=2",
            _ => "",
        };
        let label = dot_text(&node_text::label(circuit, node));
        let _ = writeln!(out, "  {id} [label={label}{shape}];");
    }
    let largest = collapsed.edges.iter().map(|edge| edge.weight.abs()).fold(f64::MIN_POSITIVE, f64::max);
    let heads = collapsed_heads(circuit, collapsed);
    for edge in &collapsed.edges {
        let through = heads.get(&(edge.source, edge.target)).map(EdgeHeads::label).unwrap_or_default();
        let through = if through.is_empty() { through } else { format!(", label={}", dot_text(&through)) };
        let _ = writeln!(
            out,
            "  {} -> {} [weight={}, penwidth={:.2}, color=\"{}\", tooltip=\"{:+.4}\"{through}];",
            ids[edge.source],
            ids[edge.target],
            // Graphviz wants whole numbers here.
            (edge.share * 100.0).round(),
            0.3 + 4.0 * (edge.weight.abs() / largest).sqrt(),
            if edge.weight < 0.0 { "#c8452f" } else { "#2f6db3" },
            edge.weight,
        );
    }
    out.push_str("}\n");
    out
}

/// The collapsed circuit as GraphML.
pub fn graphml(circuit: &Circuit, collapsed: &CollapsedCircuit) -> String {
    let mut out = String::from(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<graphml xmlns=\"http://graphml.graphdrawing.org/xmlns\">\n",
    );
    let keys = [
        ("kind", "node", "string"),
        ("label", "node", "string"),
        ("layer", "node", "int"),
        ("position", "node", "int"),
        ("influence", "node", "double"),
        ("members", "node", "int"),
        ("weight", "edge", "double"),
        ("share", "edge", "double"),
    ];
    // Only where they are known, or every file of a graph without them would promise them.
    let of_heads = [("top_head", "edge", "string"), ("top_flow", "edge", "double"), ("direct", "edge", "double")];
    let has_heads = circuit.heads().is_some();
    for (name, on, kind) in keys.into_iter().chain(of_heads.into_iter().filter(|_| has_heads)) {
        let _ = writeln!(out, "<key id=\"{name}\" for=\"{on}\" attr.name=\"{name}\" attr.type=\"{kind}\"/>");
    }
    out.push_str("<graph edgedefault=\"directed\">\n");
    let ids = ids(circuit, collapsed, xml);
    for (node, id) in collapsed.nodes.iter().zip(&ids) {
        let _ = write!(out, "<node id=\"{id}\">");
        let facts = [
            ("kind", node_text::kind(circuit, node).to_owned()),
            ("label", xml(&node_text::label(circuit, node))),
            ("layer", layer(circuit, node)),
            ("position", circuit.node(node.members[0]).pos.to_string()),
            ("influence", node.influence.to_string()),
            ("members", node.members.len().to_string()),
        ];
        for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
            let _ = write!(out, "<data key=\"{name}\">{value}</data>");
        }
        out.push_str("</node>\n");
    }
    let heads = collapsed_heads(circuit, collapsed);
    for edge in &collapsed.edges {
        let _ = write!(
            out,
            "<edge source=\"{}\" target=\"{}\"><data key=\"weight\">{}</data><data key=\"share\">{}</data>",
            ids[edge.source], ids[edge.target], edge.weight, edge.share,
        );
        if let Some(heads) = heads.get(&(edge.source, edge.target)) {
            let (name, flow) = top_flow(heads);
            let facts = [("top_head", name), ("top_flow", flow), ("direct", heads.direct().to_string())];
            for (key, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
                let _ = write!(out, "<data key=\"{key}\">{value}</data>");
            }
        }
        out.push_str("</edge>\n");
    }
    out.push_str("</graph>\n</graphml>\n");
    out
}

/// The nodes of the collapsed circuit as a table, one a line.
pub fn csv_nodes(circuit: &Circuit, collapsed: &CollapsedCircuit, cells: Cells) -> String {
    let mut out = String::from("id,kind,layer,position,label,activation,influence,members\n");
    let ids = ids(circuit, collapsed, |id| csv_cell(id, cells));
    for (node, id) in collapsed.nodes.iter().zip(&ids) {
        let first = circuit.node(node.members[0]);
        let activation = match (&node.name, first.activation) {
            (None, Some(activation)) => activation.to_string(),
            _ => String::new(),
        };
        let _ = writeln!(
            out,
            "{id},{},{},{},{},{activation},{},{}",
            node_text::kind(circuit, node),
            layer(circuit, node),
            first.pos,
            csv_cell(&node_text::label(circuit, node), cells),
            node.influence,
            node.members.len(),
        );
    }
    out
}

/// The head with the largest flow, and the flow.
fn top_flow(heads: &EdgeHeads) -> (String, String) {
    let flow = heads.strongest.first().map(|flow| (flow.head.to_string(), flow.flow.to_string()));
    flow.unwrap_or_default()
}

/// The edges of the collapsed circuit as a table, one a line; where heads are known, with the one of the largest flow and
/// the part that passes none.
pub fn csv_edges(circuit: &Circuit, collapsed: &CollapsedCircuit, cells: Cells) -> String {
    let has_heads = circuit.heads().is_some();
    let heads = collapsed_heads(circuit, collapsed);
    let mut out = String::from("source,target,weight,share");
    out.push_str(if has_heads { ",top_head,top_flow,direct\n" } else { "\n" });
    let ids = ids(circuit, collapsed, |id| csv_cell(id, cells));
    for edge in &collapsed.edges {
        let _ = write!(out, "{},{},{},{}", ids[edge.source], ids[edge.target], edge.weight, edge.share);
        if has_heads {
            let heads = heads.get(&(edge.source, edge.target));
            let (name, flow) = heads.map(top_flow).unwrap_or_default();
            let direct = heads.map(|heads| heads.direct().to_string()).unwrap_or_default();
            let _ = write!(out, ",{name},{flow},{direct}");
        }
        out.push('\n');
    }
    out
}
