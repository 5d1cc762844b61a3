//! JSON graphs, read in one pass: a link is 12 bytes as soon as it is met, or nothing where a threshold drops one of its
//! ends.
//!
//! A graph of a long prompt has tens of millions of links, gigabytes of JSON, and a few thousand nodes. Nodes are read
//! whole; the ids of a link are looked up where they stand and never become strings of their own.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::link_heads::heads_of_link;
use super::link_seed::{Ids, LinkSeed, WireEnds};
use super::wire::{WireGraph, WireLink, WireMetadata, WireNode};
use super::wire_read::{NodeReader, resolve};
use crate::graph::{Circuit, CircuitMeta, CompactLink, HeadFlows, Link, Node};
use crate::input::{is_stream, read_json};
use crate::{Error, Result};

const BUFFER_BYTES: usize = 1 << 20;

/// Smaller files are read whole, which is parsed faster than a stream.
const WHOLE_FILE_BYTES: u64 = 256 << 20;

/// Fields of a link that this program does not know.
type Extra = BTreeMap<String, Value>;

/// A JSON graph with its links as numbers.
#[derive(Debug)]
pub struct StreamedGraph {
    /// The file without its links; node i is `nodes[i]`.
    header: WireGraph,
    /// The file's nodes, in its order.
    pub nodes: Vec<Node>,
    /// Between the nodes above, in the file's order.
    pub links: Vec<CompactLink>,
    /// By source and target. Almost no file has any.
    extra: HashMap<(u32, u32), Extra>,
    /// Links of the file.
    pub n_links_read: usize,
}

impl StreamedGraph {
    /// `qParams` of the file.
    pub fn q_params(&self) -> &Map<String, Value> {
        &self.header.q_params
    }

    /// Ids as the file has them, also where another program wrote them another way.
    pub fn node_id(&self, node: usize) -> &str {
        &self.header.nodes[node].node_id
    }

    /// Where the graph comes from.
    pub fn meta(&self) -> CircuitMeta {
        self.header.circuit_meta(&self.nodes)
    }

    /// Notes that this many nodes more were left out for their number.
    pub(crate) fn leave_out(&mut self, n_nodes: usize) {
        if n_nodes > 0 {
            let before = self.meta().n_left_out;
            self.header.set_left_out(before + n_nodes);
        }
    }

    /// Drops the other nodes and all links to them.
    pub fn keep_nodes(&mut self, is_kept: &[bool]) {
        let place = places(is_kept);
        self.links.retain_mut(|link| renumber(link, is_kept, &place));
        let extra = std::mem::take(&mut self.extra).into_iter();
        let is_in = |ends: &(u32, u32)| is_kept[ends.0 as usize] && is_kept[ends.1 as usize];
        let moved = extra.filter(|(ends, _)| is_in(ends));
        self.extra = moved.map(|((s, t), extra)| ((place[s as usize], place[t as usize]), extra)).collect();
        let mut at = is_kept.iter();
        self.nodes.retain(|_| at.next() == Some(&true));
        let mut at = is_kept.iter();
        self.header.nodes.retain(|_| at.next() == Some(&true));
    }

    /// The circuit of the nodes and links.
    ///
    /// # Errors
    /// Cycles.
    pub fn circuit(&self) -> Result<Circuit> {
        let links = self.links.iter().map(|link| Link {
            source: link.source as usize,
            target: link.target as usize,
            weight: link.weight,
        });
        let mut circuit = Circuit::new(self.meta(), self.nodes.clone(), links)?;
        if !self.extra.is_empty() {
            let heads = self.links.iter().filter_map(|link| {
                let extra = self.extra.get(&(link.source, link.target))?;
                let [target, source] = [link.target, link.source].map(|node| self.nodes[node as usize].id);
                heads_of_link(target, source, link.weight, extra)
            });
            circuit.set_heads(HeadFlows::of_edges(heads.collect()).map(Arc::new));
        }
        Ok(circuit)
    }

    /// The file with these nodes and links, and with everything else that it held.
    pub fn to_wire(&self) -> WireGraph {
        let links = self.links.iter().map(|link| WireLink {
            source: self.node_id(link.source as usize).to_owned(),
            target: self.node_id(link.target as usize).to_owned(),
            weight: link.weight,
            extra: self.extra.get(&(link.source, link.target)).cloned().unwrap_or_default(),
        });
        WireGraph { links: links.collect(), ..self.header.clone() }
    }
}

/// What number every kept entry has among the kept ones.
fn places(is_kept: &[bool]) -> Vec<u32> {
    let mut count = 0u32;
    let place = is_kept.iter().map(|&kept| {
        count += u32::from(kept);
        count - u32::from(kept)
    });
    place.collect()
}

/// Whether a link stays; if so, its ends get their new numbers.
fn renumber(link: &mut CompactLink, is_kept: &[bool], place: &[u32]) -> bool {
    let (source, target) = (link.source as usize, link.target as usize);
    (link.source, link.target) = (place[source], place[target]);
    is_kept[source] && is_kept[target]
}

/// Which of a file's nodes stay. `[n_nodes]`
pub type KeepNodes<'a> = &'a dyn Fn(&[Node]) -> Vec<bool>;

/// Reads the graph at `path`; with `keep`, of its nodes those that it names, of its links those between such nodes.
///
/// The file is read once, or twice where its links come before its nodes.
///
/// # Errors
/// A file that cannot be read or is no graph, nodes that are there twice or cannot be told, links to nodes that the file
/// does not have or that have no finite weight; with `keep`, links that lead downwards.
///
/// # Cost
/// Memory: the nodes, and 12 bytes for every kept link; files up to 256 MB are held meanwhile.
pub fn stream_wire(path: &Path, keep: Option<KeepNodes<'_>>) -> Result<StreamedGraph> {
    let mut state = State { keep, ..State::default() };
    // What can be read once only is kept for a second look.
    let stream = if is_stream(path) { Some(read_json(path, "graph JSON")?) } else { None };
    read_into(path, stream.as_deref(), &mut state)?;
    if state.links_came_first {
        read_into(path, stream.as_deref(), &mut state)?;
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
    // Only now is it known what the prompt's tokens are.
    let mut nodes = known.nodes;
    for node in nodes.iter_mut().filter(|node| node.id.kind().is_beginning()) {
        node.text = metadata.prompt_tokens.get(node.pos as usize).cloned().unwrap_or_default();
    }
    let header =
        WireGraph { metadata, q_params: state.q_params, nodes: known.wire, links: Vec::new(), extra: state.extra };
    let mut graph =
        StreamedGraph { header, nodes, links: state.links, extra: state.link_extra, n_links_read: state.n_links_read };
    graph.keep_nodes(&known.is_kept);
    Ok(graph)
}

/// The nodes of the file, once they have been met.
struct Known {
    wire: Vec<WireNode>,
    nodes: Vec<Node>,
    ids: Ids,
    is_kept: Vec<bool>,
}

#[derive(Default)]
struct State<'a> {
    keep: Option<KeepNodes<'a>>,
    metadata: Option<WireMetadata>,
    q_params: Map<String, Value>,
    extra: Extra,
    known: Option<Known>,
    links: Vec<CompactLink>,
    link_extra: HashMap<(u32, u32), Extra>,
    n_links_read: usize,
    has_links: bool,
    links_came_first: bool,
    /// An error of ours on its way through the parser.
    failed: Option<Error>,
}

/// Reads the file at `path`, or the bytes of a stream.
fn read_into(path: &Path, stream: Option<&[u8]>, state: &mut State<'_>) -> Result<()> {
    let failed = |source| Error::Io { doing: "cannot read", path: path.to_owned(), source };
    let mut of_slice = |bytes: &[u8]| {
        let mut parser = serde_json::Deserializer::from_slice(bytes);
        FileSeed(state).deserialize(&mut parser).and_then(|()| parser.end())
    };
    let parsed = if let Some(bytes) = stream {
        of_slice(bytes)
    } else {
        let mut file = File::open(path).map_err(failed)?;
        let size_bytes = file.metadata().map_err(failed)?.len();
        if size_bytes <= WHOLE_FILE_BYTES {
            let mut bytes = Vec::with_capacity(size_bytes as usize + 1);
            std::io::Read::read_to_end(&mut file, &mut bytes).map_err(failed)?;
            of_slice(&bytes)
        } else {
            let mut parser = serde_json::Deserializer::from_reader(BufReader::with_capacity(BUFFER_BYTES, file));
            FileSeed(state).deserialize(&mut parser).and_then(|()| parser.end())
        }
    };
    match (state.failed.take(), parsed) {
        (Some(error), _) => Err(error),
        (None, Ok(())) => Ok(()),
        (None, Err(e)) => {
            Err(Error::Damaged { file: path.display().to_string(), format: "graph JSON", reason: e.to_string() })
        }
    }
}

struct FileSeed<'a, 'k>(&'a mut State<'k>);

impl<'de> DeserializeSeed<'de> for FileSeed<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<(), D::Error> {
        parser.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FileSeed<'_, '_> {
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
                "nodes" => match Known::new(map.next_value()?, state.keep) {
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
fn fail<E: serde::de::Error>(state: &mut State<'_>, error: Error) -> E {
    let message = E::custom(&error);
    state.failed = Some(error);
    message
}

impl Known {
    fn new(wire: Vec<WireNode>, keep: Option<KeepNodes<'_>>) -> Result<Known> {
        let mut reader = NodeReader::new(&[]);
        let mut nodes: Vec<Node> = Vec::with_capacity(wire.len());
        let mut seen = HashSet::with_capacity(wire.len());
        for node in &wire {
            let read = reader.node(node)?;
            if !seen.insert(read.id) {
                return Err(Error::CircuitDuplicate { node: format!("`{}`", node.node_id) });
            }
            nodes.push(read);
        }
        let is_kept = keep.map_or_else(|| vec![true; nodes.len()], |keep| keep(&nodes));
        let ids = Ids::new(wire.iter().map(|node| node.node_id.clone()).collect());
        Ok(Known { wire, nodes, ids, is_kept })
    }
}

struct LinksSeed<'a, 'k>(&'a mut State<'k>);

impl<'de> DeserializeSeed<'de> for LinksSeed<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<(), D::Error> {
        parser.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for LinksSeed<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("a list of links")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let state = self.0;
        let mut before: Option<Link> = None;
        // Called with the nodes known only; lent out, so that the state can be written meanwhile.
        let Some(known) = state.known.take() else { return Ok(()) };
        loop {
            let near = before.map_or((0, 0), |before| (before.source + 1, before.target));
            let Some(ends) = list.next_element_seed(LinkSeed { ids: &known.ids, before: near })? else { break };
            let index = state.n_links_read;
            state.n_links_read += 1;
            let must_lead_up = state.keep.is_some();
            let link = match known.link(&ends, before.as_ref(), index, must_lead_up) {
                Ok(link) => link,
                Err(error) => return Err(fail(state, error)),
            };
            if known.is_kept[link.source] && known.is_kept[link.target] {
                let (source, target) = (link.source as u32, link.target as u32);
                state.links.push(CompactLink { source, target, weight: link.weight });
                if !ends.extra.is_empty() {
                    state.link_extra.insert((source, target), ends.extra);
                }
            }
            before = Some(link);
        }
        state.known = Some(known);
        Ok(())
    }
}

impl Known {
    fn link(&self, ends: &WireEnds<'_>, before: Option<&Link>, index: usize, must_lead_up: bool) -> Result<Link> {
        let weight = ends.weight.filter(|weight| weight.is_finite());
        let weight = weight.ok_or(Error::GraphNotFinite { name: "links", index })?;
        let (sources, targets) = ends.found(&self.ids)?;
        let (source, target) = match (sources, targets) {
            // Almost every id is that of one node only.
            ([source], [target]) => (*source, *target),
            _ => resolve(&self.nodes, sources, targets, before),
        };
        if must_lead_up && self.nodes[source].id.height() >= self.nodes[target].id.height() {
            return Err(Error::CircuitCycle { node: format!("{:?}", self.nodes[target].id) });
        }
        Ok(Link { source, target, weight })
    }
}
