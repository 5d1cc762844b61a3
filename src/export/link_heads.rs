//! Heads of an edge as keys of a link: `heads`, `heads_rest` and `hops`, which viewers pass over.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::graph::{EdgeHeads, Head, HeadFlow, NodeId};

/// The key of the named flows: `[[layer, head, flow], ..]`, largest first.
const HEADS: &str = "heads";

/// The key of the sum of all other flows.
const REST: &str = "heads_rest";

/// The key of the parts by number of hops.
const HOPS: &str = "hops";

/// The keys of a link whose heads are known.
pub(super) fn link_heads(edge: &EdgeHeads) -> BTreeMap<String, Value> {
    let flows: Vec<Value> =
        edge.strongest.iter().map(|flow| json!([flow.head.layer, flow.head.head, flow.flow])).collect();
    [(HEADS, Value::Array(flows)), (REST, json!(edge.rest)), (HOPS, json!(edge.hops))]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

/// The heads that a link's keys tell of; `None` where there are none, or where another program means something else by
/// these names.
pub(super) fn heads_of_link(
    target: NodeId,
    source: NodeId,
    effect: f32,
    extra: &BTreeMap<String, Value>,
) -> Option<EdgeHeads> {
    let flows: Vec<(u32, u32, f32)> = Vec::deserialize(extra.get(HEADS)?).ok()?;
    let rest = f32::deserialize(extra.get(REST)?).ok()?;
    let hops: Vec<f32> = Vec::deserialize(extra.get(HOPS)?).ok()?;
    let flow = |(layer, head, flow)| HeadFlow { head: Head { layer, head }, flow };
    let strongest: Vec<HeadFlow> = flows.into_iter().map(flow).collect();
    let values = strongest.iter().map(|flow| flow.flow).chain(hops.iter().copied()).chain([rest]);
    let is_finite = values.into_iter().all(f32::is_finite);
    is_finite.then_some(EdgeHeads { target, source, effect, strongest, rest, hops })
}
