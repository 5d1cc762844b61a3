//! Nodes by the names that people type: ids, features wherever they are, tokens, targets and labels.

use petgraph::graph::NodeIndex;

use super::summary::text_of;
use crate::export::node_id_text;
use crate::graph::{Circuit, Node, NodeId, NodeKind};
use crate::text::{typing_distance, unquoted};
use crate::{Error, Result};

/// Suggestions that a message makes.
const MAX_NEAR: usize = 5;

/// The node with this id.
///
/// # Errors
/// There is none; names the nearest.
pub fn find_node(circuit: &Circuit, id: &str) -> Result<NodeIndex> {
    with_id(circuit, id).ok_or_else(|| unknown(circuit, id))
}

fn with_id(circuit: &Circuit, id: &str) -> Option<NodeIndex> {
    circuit.graph().node_indices().find(|&index| id_of(circuit, index) == id)
}

/// All nodes that `name` stands for, ascending, at least one:
///
/// - an id: `3_955_8`, `3_-1_8` (an error), `E_2859_7` (a token);
/// - a feature with `/` for `_`, wherever it is (`3/955`, `3_955`) or at a position (`3_955@8`, `3_955@-1`; -1 is the
///   last position, also in ids: `3_955_-1`);
/// - a token of the prompt, a target, or a label, as it is, else without spaces around it (`Dallas`), else in
///   lower or upper case; in quotes, as it is printed (`" Dallas"`), too; `Dallas@7` only at that position;
/// - `@7`: the token at that position.
///
/// # Errors
/// There is none; names the nearest.
///
/// # Cost
/// Linear in nodes.
pub fn find_nodes(circuit: &Circuit, name: &str) -> Result<Vec<NodeIndex>> {
    if let Some(index) = with_id(circuit, name) {
        return Ok(vec![index]);
    }
    // A token may hold an `@` itself, so that the name as a whole comes first.
    let at = name.rsplit_once('@').and_then(|(stem, pos)| Some((stem, position(circuit, pos)?)));
    // Messages and tables print tokens in quotes; but a token may be in quotes itself.
    let whole = (Some(name.to_owned()), None);
    let stem = at.map_or((None, None), |(stem, pos)| (Some(stem.to_owned()), Some(pos)));
    let in_quotes = |(text, pos): &(Option<String>, Option<u32>)| (text.as_deref().and_then(unquoted), *pos);
    let tries = [in_quotes(&whole), in_quotes(&stem)];
    let tries = [whole, stem].into_iter().chain(tries).filter_map(|(text, pos)| Some((text?, pos)));
    let mut found = tries.map(|(text, pos)| named(circuit, &text, pos));
    found.find(|found| !found.is_empty()).ok_or_else(|| unknown(circuit, name))
}

fn position(circuit: &Circuit, text: &str) -> Option<u32> {
    typed_position(text, circuit.meta.prompt_tokens.len())
}

/// A position of `n_pos` as it is typed: negative ones count from the end.
pub(crate) fn typed_position(text: &str, n_pos: usize) -> Option<u32> {
    let pos: i64 = text.parse().ok()?;
    u32::try_from(if pos < 0 { pos.checked_add_unsigned(n_pos as u64)? } else { pos }).ok()
}

/// The nodes with this name, at `pos` if it is given.
fn named(circuit: &Circuit, name: &str, pos: Option<u32>) -> Vec<NodeIndex> {
    let nodes = |fits: &dyn Fn(&Node, NodeIndex) -> bool| -> Vec<NodeIndex> {
        let indices = circuit.graph().node_indices();
        indices.filter(|&i| pos.is_none_or(|pos| pos == circuit.node(i).pos) && fits(circuit.node(i), i)).collect()
    };
    if let Some((layer, feature, own_pos)) = feature_parts(circuit, name) {
        return nodes(&|node, _| {
            let is_it = match node.id {
                NodeId::Feature { layer: l, feature: f, .. } => (l, i64::from(f)) == (layer, feature),
                NodeId::Error { layer: l, .. } => (l, -1) == (layer, feature),
                _ => false,
            };
            is_it && own_pos.is_none_or(|pos| pos == node.pos)
        });
    }
    if name.is_empty() || name == "E" {
        return if pos.is_some() { nodes(&|node, _| node.id.kind().is_beginning()) } else { Vec::new() };
    }
    let lower = name.trim().to_lowercase();
    let tiers: [&dyn Fn(&str) -> bool; 3] =
        [&|text| text == name, &|text| text.trim() == name.trim(), &|text| text.trim().to_lowercase() == lower];
    let found = tiers.into_iter().map(|fits| nodes(&|_, index| names_of(circuit, index).any(fits)));
    found.into_iter().find(|found| !found.is_empty()).unwrap_or_default()
}

/// `3_955`, `3/955`, `3_955_8`, `3_955_-1` taken apart; -1 for a feature stands for the error.
fn feature_parts(circuit: &Circuit, name: &str) -> Option<(u32, i64, Option<u32>)> {
    let parts: Vec<&str> = name.split(['_', '/']).map(str::trim).collect();
    let (layer, feature) = (parts.first()?.parse().ok()?, parts.get(1)?.parse().ok()?);
    match parts.len() {
        2 => Some((layer, feature, None)),
        3 => Some((layer, feature, Some(position(circuit, parts[2])?))),
        _ => None,
    }
}

/// What a node is called beside its id.
fn names_of(circuit: &Circuit, index: NodeIndex) -> impl Iterator<Item = &str> {
    let node = circuit.node(index);
    let own =
        matches!(node.id.kind(), NodeKind::Token | NodeKind::Context | NodeKind::Target).then_some(node.text.as_str());
    own.into_iter().chain(node.label.as_deref()).filter(|name| !name.is_empty())
}

fn id_of(circuit: &Circuit, index: NodeIndex) -> String {
    node_id_text(circuit.meta.n_layers, circuit.node(index))
}

/// There is no such node; what looks most like it, the most influential first.
fn unknown(circuit: &Circuit, name: &str) -> Error {
    let influence = circuit.node_influence();
    // Most often the text is meant and the position is wrong, or the other way round.
    let typed = name.rsplit_once('@').filter(|(_, pos)| pos.parse::<i64>().is_ok()).map_or(name, |(stem, _)| stem);
    let typed = &unquoted(typed).unwrap_or_else(|| typed.to_owned());
    let wanted = typed.trim().to_lowercase();
    let stem = feature_parts(circuit, typed);
    let allowed = (wanted.chars().count() / 3).max(1);
    let mut near: Vec<(usize, NodeIndex, String)> = Vec::new();
    for index in circuit.graph().node_indices() {
        let node = circuit.node(index);
        let is_same_feature = match (node.id, stem) {
            (NodeId::Feature { layer, feature, .. }, Some((l, f, _))) => (layer, i64::from(feature)) == (l, f),
            (NodeId::Error { layer, .. }, Some((l, f, _))) => (layer, -1) == (l, f),
            _ => false,
        };
        let id = id_of(circuit, index);
        let of_name = names_of(circuit, index).map(|other| {
            let other = other.trim().to_lowercase();
            if wanted.chars().count() > 2 && other.contains(&wanted) { 1 } else { typing_distance(&wanted, &other) }
        });
        let name_distance = of_name.min().filter(|&distance| distance <= allowed);
        let id_distance = Some(typing_distance(&wanted, &id)).filter(|&distance| distance <= allowed.min(2));
        let nearest = if is_same_feature { Some(0) } else { name_distance.into_iter().chain(id_distance).min() };
        if let Some(nearest) = nearest {
            let text = match node.id.kind() {
                NodeKind::Token => format!("{:?}@{}", node.text, node.pos),
                NodeKind::Target => format!("{:?}", text_of(circuit, index)),
                _ => match &node.label {
                    Some(label) if name_distance.is_some() => format!("`{id}` ({label})"),
                    _ => format!("`{id}`"),
                },
            };
            near.push((nearest, index, text));
        }
    }
    near.sort_by(|a, b| {
        a.0.cmp(&b.0).then_with(|| influence[b.1.index()].total_cmp(&influence[a.1.index()])).then(a.1.cmp(&b.1))
    });
    let near = near.into_iter().take(MAX_NEAR).map(|(_, _, text)| text).collect();
    Error::UnknownNode { id: name.to_owned(), near }
}
