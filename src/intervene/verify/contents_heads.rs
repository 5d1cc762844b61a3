//! The tensors of heads, compared.

use super::contents::{PartCheck, RTOL, SCALE_TOL, Tally};
use crate::graph::{AttributionGraph, EdgeHeads, HeadFlows};

/// Flows are sums over more terms than edges are.
const FLOW_TOL: f64 = 10.0 * SCALE_TOL;

/// Compares the flows of every edge with those that were computed again with more heads named. Where none were, since a
/// target is not known, they count as not compared.
pub(super) fn check(in_graph: &HeadFlows, again: &AttributionGraph) -> Vec<PartCheck> {
    let mut edges = Tally::new("head_edges");
    let mut names = Tally::new("head_names");
    let mut flows = Tally::new("head_flows");
    let mut rest = Tally::new("head_rest");
    let mut hops = Tally::new("head_hops");
    if again.heads().is_none() && !in_graph.edges().is_empty() {
        edges.differs("all".into(), "there".into(), "not to be computed: a target is not known".into());
    }
    for (at, edge) in in_graph.edges().iter().enumerate() {
        let name = || format!("[{at}] ({} to {})", edge.source, edge.target);
        let Some(here) = again.heads().and_then(|heads| heads.find(edge.target, edge.source)) else { continue };
        let size = f64::from(size(here));
        let tolerance = |value: f32| RTOL * f64::from(value.abs()) + FLOW_TOL * size;
        // Whether it is this edge that the parts are of: they add up to it.
        let parts: f32 = if edge.hops.is_empty() { edge.effect } else { edge.hops.iter().sum() };
        edges.add(parts, edge.effect, tolerance(edge.effect), name);
        let mut left = here.rest + here.strongest.iter().map(|flow| flow.flow).sum::<f32>();
        let mut smallest = f32::INFINITY;
        for flow in &edge.strongest {
            let value = here.strongest.iter().find(|other| other.head == flow.head).map_or(0.0, |other| other.flow);
            left -= value;
            smallest = smallest.min(value.abs());
            flows.add(flow.flow, value, tolerance(value), || format!("{} {}", name(), flow.head));
        }
        // No head that is not named may have more than one that is.
        let unnamed = here.strongest.iter().find(|flow| edge.strongest.iter().all(|other| other.head != flow.head));
        names.check.n_values += 1;
        if let Some(unnamed) = unnamed
            && (edge.strongest.len() < in_graph.n_named()
                || f64::from(unnamed.flow.abs() - smallest) > tolerance(unnamed.flow))
            && f64::from(unnamed.flow.abs()) > tolerance(0.0)
        {
            names.differs(name(), "not named".into(), format!("{} {}", unnamed.head, unnamed.flow));
        }
        rest.add(edge.rest, left, tolerance(left), name);
        for (k, (&part, &part_here)) in edge.hops.iter().zip(&here.hops).enumerate() {
            hops.add(part, part_here, tolerance(part_here), || format!("{} {k} hops", name()));
        }
    }
    [edges, names, flows, rest, hops].map(|tally| tally.check).into()
}

/// What an edge is made of, flows and hops, whatever cancels.
fn size(edge: &EdgeHeads) -> f32 {
    let flows = edge.strongest.iter().map(|flow| flow.flow.abs()).sum::<f32>();
    edge.size().max(flows)
}
