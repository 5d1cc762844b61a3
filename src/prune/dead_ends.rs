//! What leads nowhere (definitions 7.4), for edges of any form.

use crate::graph::NodeKind;

/// Which nodes lie on a path to a target that begins at a token, context or error. `[n_nodes]`
///
/// Repeating the rule of the definitions until nothing changes keeps exactly these, so two sweeps do. `upwards` are the
/// edges as (source, target) in an order in which whatever feeds a node comes before what it feeds.
///
/// # Cost
/// Linear in nodes and edges.
pub(super) fn on_paths(
    n_nodes: usize,
    kind_of: impl Fn(usize) -> NodeKind,
    upwards: impl DoubleEndedIterator<Item = (usize, usize)> + Clone,
) -> Vec<bool> {
    let mut is_fed: Vec<bool> = (0..n_nodes).map(|node| kind_of(node) != NodeKind::Feature).collect();
    for (source, target) in upwards.clone() {
        is_fed[target] |= is_fed[source];
    }
    let mut leads_on: Vec<bool> = (0..n_nodes).map(|node| kind_of(node) == NodeKind::Target).collect();
    for (source, target) in upwards.rev() {
        leads_on[source] |= leads_on[target] && is_fed[target];
    }
    leads_on.into_iter().zip(is_fed).map(|(leads_on, is_fed)| leads_on && is_fed).collect()
}
