//! JSON graphs that are too large to be held: read as a stream, of which only what survives a threshold is kept.
//!
//! A graph of a long prompt has tens of millions of links, gigabytes of JSON, and a few thousand nodes. Nodes are read
//! whole; a link between kept nodes is 12 bytes, any other nothing.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::wire::{WireGraph, WireLink, WireMetadata, WireNode};
use super::wire_read::{NodeReader, resolve};
use crate::graph::{CompactLink, Link, Node, NodeId};
use crate::{Error, Result};

const BUFFER_BYTES: usize = 1 << 20;

/// What was kept of a file.
#[derive(Debug)]
pub struct StreamedGraph {
    /// The file without its links; node i is `nodes[i]`.
    header: WireGraph,
    pub nodes: Vec<Node>,
    /// Between kept nodes, in the file's order.
    pub links: Vec<CompactLink>,
    /// Links of the file.
    pub n_links_read: usize,
}

impl StreamedGraph {
    /// The file with these of its nodes and links.
    pub fn wire(self, keep_node: &[bool], links: &[CompactLink]) -> WireGraph {
        let ids: Vec<&str> = self.header.nodes.iter().map(|node| node.node_id.as_str()).collect();
        let links = links.iter().map(|link| WireLink {
            source: ids[link.source as usize].to_owned(),
            target: ids[link.target as usize].to_owned(),
            weight: link.weight,
            extra: BTreeMap::new(),
        });
        let links = links.collect();
        let kept = self.header.nodes.iter().zip(keep_node).filter(|(_, kept)| **kept);
        WireGraph { nodes: kept.map(|(node, _)| node.clone()).collect(), links, ..self.header }
    }
}

/// Reads the graph at `path`, of its nodes those whose cumulative influence is within `node_threshold` (tokens, targets
/// and nodes without influence always), of its links those between such nodes.
///
/// The file is read once, or twice where its links come before its nodes.
///
/// # Errors
/// A file that cannot be read or is no graph, nodes that are there twice or cannot be told, links to nodes that the file
/// does not have, that lead downwards or have no finite weight.
///
/// # Cost
/// Memory: the nodes, and 12 bytes for every kept link.
pub fn stream_wire(path: &Path, node_threshold: f64) -> Result<StreamedGraph> {
    let mut state = State { node_threshold, ..State::default() };
    read_into(path, &mut state)?;
    if state.links_came_first {
        read_into(path, &mut state)?;
    }
    let missing = |field: &str| Error::Damaged {
        file: path.display().to_string(),
        format: "graph JSON",
        reason: format!("missing field `{field}`"),
    };
    let metadata = state.metadata.ok_or_else(|| missing("metadata"))?;
    let known = state.known.ok_or_else(|| missing("nodes"))?;
    if !state.has_links {
        return Err(missing("links"));
    }
    let header =
        WireGraph { metadata, q_params: state.q_params, nodes: known.wire, links: Vec::new(), extra: state.extra };
    // Only now is it known what the prompt's tokens are.
    let mut reader = NodeReader::new(&header.metadata.prompt_tokens);
    let nodes = header.nodes.iter().map(|node| reader.node(node)).collect::<Result<Vec<_>>>()?;
    // Everything is indexed by kept nodes from here on.
    let mut place = vec![0u32; nodes.len()];
    let mut count = 0u32;
    for (place, &kept) in place.iter_mut().zip(&known.is_kept) {
        *place = count;
        count += u32::from(kept);
    }
    let links = state.links.iter_mut();
    links.for_each(|link| {
        link.source = place[link.source as usize];
        link.target = place[link.target as usize];
    });
    let kept = |index: usize| known.is_kept[index];
    let mut at = 0..;
    let nodes = nodes.into_iter().filter(|_| at.next().is_some_and(kept)).collect();
    let mut at = 0..;
    let wire = header.nodes.into_iter().filter(|_| at.next().is_some_and(kept)).collect();
    Ok(StreamedGraph {
        header: WireGraph { nodes: wire, ..header },
        nodes,
        links: state.links,
        n_links_read: state.n_links_read,
    })
}

/// The nodes of the file, once they have been met.
struct Known {
    wire: Vec<WireNode>,
    nodes: Vec<Node>,
    by_id: HashMap<String, Vec<usize>>,
    is_kept: Vec<bool>,
}

#[derive(Default)]
struct State {
    node_threshold: f64,
    metadata: Option<WireMetadata>,
    q_params: Map<String, Value>,
    extra: BTreeMap<String, Value>,
    known: Option<Known>,
    links: Vec<CompactLink>,
    n_links_read: usize,
    has_links: bool,
    links_came_first: bool,
    /// An error of ours on its way through the parser.
    failed: Option<Error>,
}

fn read_into(path: &Path, state: &mut State) -> Result<()> {
    let file = File::open(path).map_err(|source| Error::Io { doing: "cannot read", path: path.to_owned(), source })?;
    let mut parser = serde_json::Deserializer::from_reader(BufReader::with_capacity(BUFFER_BYTES, file));
    let parsed = FileSeed(state).deserialize(&mut parser).and_then(|()| parser.end());
    match (state.failed.take(), parsed) {
        (Some(error), _) => Err(error),
        (None, Ok(())) => Ok(()),
        (None, Err(e)) => {
            Err(Error::Damaged { file: path.display().to_string(), format: "graph JSON", reason: e.to_string() })
        }
    }
}

struct FileSeed<'a>(&'a mut State);

impl<'de> DeserializeSeed<'de> for FileSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<(), D::Error> {
        parser.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FileSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("a graph: an object with `metadata`, `nodes` and `links`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let state = self.0;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "metadata" => state.metadata = Some(map.next_value()?),
                "qParams" => state.q_params = map.next_value()?,
                "nodes" if state.known.is_some() => map.next_value::<IgnoredAny>().map(drop)?,
                "nodes" => match Known::new(map.next_value()?, state.node_threshold) {
                    Ok(known) => state.known = Some(known),
                    Err(error) => return Err(fail(state, error)),
                },
                "links" => {
                    state.has_links = true;
                    if state.known.is_some() && state.n_links_read == 0 {
                        state.links_came_first = false;
                        map.next_value_seed(LinksSeed(state))?;
                    } else {
                        state.links_came_first = state.n_links_read == 0;
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                _ => {
                    let value = map.next_value()?;
                    state.extra.insert(key, value);
                }
            }
        }
        Ok(())
    }
}

/// Leaves `error` for [`read_into`] and stops the parser.
fn fail<E: serde::de::Error>(state: &mut State, error: Error) -> E {
    let message = E::custom(&error);
    state.failed = Some(error);
    message
}

impl Known {
    fn new(wire: Vec<WireNode>, node_threshold: f64) -> Result<Known> {
        let mut reader = NodeReader::new(&[]);
        let mut by_id: HashMap<String, Vec<usize>> = HashMap::with_capacity(wire.len());
        let mut nodes: Vec<Node> = Vec::with_capacity(wire.len());
        let mut seen = std::collections::HashSet::with_capacity(wire.len());
        for node in &wire {
            by_id.entry(node.node_id.clone()).or_default().push(nodes.len());
            let read = reader.node(node)?;
            if !seen.insert(read.id) {
                return Err(Error::CircuitDuplicate { node: format!("`{}`", node.node_id) });
            }
            nodes.push(read);
        }
        // The first node that reaches the threshold is in.
        let last = nodes.iter().filter_map(|node| node.influence).filter(|&share| share >= node_threshold);
        let last = last.fold(f64::INFINITY, f64::min);
        let is_kept = nodes
            .iter()
            .map(|node| matches!(node.id, NodeId::Token { .. }) || node.influence.is_none_or(|share| share <= last))
            .collect();
        Ok(Known { wire, nodes, by_id, is_kept })
    }
}

struct LinksSeed<'a>(&'a mut State);

impl<'de> DeserializeSeed<'de> for LinksSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<(), D::Error> {
        parser.deserialize_seq(self)
    }
}

/// What is needed of a link. A weight that is no number is found below, with its ends.
#[derive(Deserialize)]
struct LinkParts {
    source: String,
    target: String,
    weight: Option<f32>,
}

impl<'de> Visitor<'de> for LinksSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("a list of links")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let state = self.0;
        let mut before: Option<Link> = None;
        while let Some(parts) = list.next_element::<LinkParts>()? {
            let index = state.n_links_read;
            state.n_links_read += 1;
            let Some(known) = &state.known else { continue };
            let link = match link_of(known, parts, before.as_ref(), index) {
                Ok(link) => link,
                Err(error) => return Err(fail(state, error)),
            };
            if known.is_kept[link.source] && known.is_kept[link.target] {
                let (source, target) = (link.source as u32, link.target as u32);
                state.links.push(CompactLink { source, target, weight: link.weight });
            }
            before = Some(link);
        }
        Ok(())
    }
}

fn link_of(known: &Known, parts: LinkParts, before: Option<&Link>, index: usize) -> Result<Link> {
    let weight = parts.weight.filter(|weight| weight.is_finite());
    let weight = weight.ok_or(Error::GraphNotFinite { name: "links", index })?;
    let only = |id: &str| match known.by_id.get(id).map(Vec::as_slice) {
        Some([one]) => Some(*one),
        _ => None,
    };
    let link = match (only(&parts.source), only(&parts.target)) {
        (Some(source), Some(target)) => Link { source, target, weight },
        _ => {
            let wire = WireLink { source: parts.source, target: parts.target, weight, extra: BTreeMap::new() };
            let find = |id: &str| known.by_id.get(id).map(Vec::as_slice);
            resolve(&known.nodes, find, &wire, before)?
        }
    };
    let (source, target) = (&known.nodes[link.source], &known.nodes[link.target]);
    if source.id.height() >= target.id.height() {
        return Err(Error::CircuitCycle { node: format!("{:?}", target.id) });
    }
    Ok(link)
}
