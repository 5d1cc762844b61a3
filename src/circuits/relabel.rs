//! Other names for features, and for supernodes.

use petgraph::graph::NodeIndex;

use super::{Supernode, find_node};
use crate::graph::{Circuit, NodeId, NodeKind};
use crate::labels::Labels;
use crate::{Error, Result};

/// Gives every feature that `labels` knows its label, over the one that the graph carries; the others keep theirs.
///
/// # Cost
/// Linear in nodes.
pub fn relabel(circuit: &mut Circuit, labels: &Labels) {
    circuit.set_labels(|layer, feature| labels.get(layer, feature).map(str::to_owned));
}

/// Gives every feature without a label the one that `labels` knows for it.
///
/// # Cost
/// Linear in nodes.
pub fn label_rest(circuit: &mut Circuit, labels: &Labels) {
    let missing = |&index: &NodeIndex| circuit.node(index).label.is_none();
    let nodes: Vec<NodeIndex> = circuit.graph().node_indices().filter(missing).collect();
    for index in nodes {
        if let NodeId::Feature { layer, feature, .. } = circuit.node(index).id
            && let Some(label) = labels.get(layer, feature)
        {
            circuit.set_label(index, Some(label.to_owned()));
        }
    }
}

/// Gives a feature at one position (`3_955_8`), at all of them (`3_955`), or a supernode (by its name) another label; an
/// empty one takes the label of a feature away.
///
/// # Errors
/// [`Error::UnknownNode`]; a node that is no feature: tokens and targets are called by their text, errors by their place;
/// a supernode without a name.
///
/// # Cost
/// Linear in nodes.
pub fn rename(circuit: &mut Circuit, groups: &mut [Supernode], id: &str, label: &str) -> Result<()> {
    if let Some(group) = groups.iter_mut().find(|group| group.name == id) {
        if label.is_empty() {
            return Err(Error::Supernode { name: id.to_owned(), problem: "needs a name".to_owned() });
        }
        label.clone_into(&mut group.name);
        return Ok(());
    }
    let new = (!label.is_empty()).then(|| label.to_owned());
    let of_feature = |node: &NodeIndex| match circuit.node(*node).id {
        NodeId::Feature { layer, feature, .. } => id == format!("{layer}_{feature}"),
        _ => false,
    };
    let mut nodes: Vec<NodeIndex> = circuit.graph().node_indices().filter(of_feature).collect();
    if nodes.is_empty() {
        let node = find_node(circuit, id)?;
        if circuit.node(node).id.kind() != NodeKind::Feature {
            let expected =
                "a feature or a supernode: tokens and targets are called by their text, errors by their place";
            return Err(Error::Spec { text: id.to_owned(), expected });
        }
        nodes.push(node);
    }
    nodes.into_iter().for_each(|node| circuit.set_label(node, new.clone()));
    Ok(())
}
