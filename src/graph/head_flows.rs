//! Heads of edges: through which attention heads a direct effect goes, and in how many hops.

use std::fmt;
use std::str::FromStr;

use super::NodeId;
use crate::{Error, Result};

/// Smaller parts of an edge would be shown as 0 %.
const SHOWN_PART: f32 = 0.005;

/// Edges whose largest part is smaller than this go through many heads.
const MUCH: f32 = 0.1;

/// A head, by its layer and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Head {
    /// The layer of the attention.
    pub layer: u32,
    /// Its number among the heads of the layer.
    pub head: u32,
}

/// As `18.6`: layer 18, head 6.
impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.layer, self.head)
    }
}

impl FromStr for Head {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::Spec { text: text.into(), expected: "LAYER.HEAD, as in 18.6" };
        let (layer, head) = text.split_once('.').ok_or_else(wrong)?;
        let number = |text: &str| text.parse::<u32>().map_err(|_| wrong());
        Ok(Head { layer: number(layer)?, head: number(head)? })
    }
}

/// The part of an edge that goes through a head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadFlow {
    /// The head.
    pub head: Head,
    /// In the units of the edge.
    pub flow: f32,
}

/// How one edge is carried.
///
/// At every layer between its ends an edge is the sum of its flows through the heads there and of what stays in the
/// residual stream. So flows of one layer may be added to each other, those of different layers may not: a path with
/// two hops is in the flows of two layers.
#[derive(Clone, Debug, PartialEq)]
pub struct EdgeHeads {
    /// The target's end of the edge.
    pub target: NodeId,
    /// The source's end.
    pub source: NodeId,
    /// The edge itself.
    pub effect: f32,
    /// The largest flows, by size, largest first.
    pub strongest: Vec<HeadFlow>,
    /// The sum of all other flows.
    pub rest: f32,
    /// Parts of the edge that pass exactly 0, 1, .. heads; the last: that many or more. They add up to the edge.
    pub hops: Vec<f32>,
}

impl EdgeHeads {
    /// `Σ k·|A_k| / Σ |A_k|`: how many heads its paths pass, weighed by their size. (Weighed with their signs the mean
    /// can be any number, where parts cancel.)
    pub fn mean_hops(&self) -> f32 {
        let sum: f32 = self.hops.iter().map(|part| part.abs()).sum();
        let weighed: f32 = self.hops.iter().enumerate().map(|(k, part)| k as f32 * part.abs()).sum();
        if sum > 0.0 { weighed / sum } else { 0.0 }
    }
}

impl EdgeHeads {
    /// The part of the edge that passes no head: along the residual stream of one position.
    pub fn direct(&self) -> f32 {
        self.hops.first().copied().unwrap_or(0.0)
    }

    /// Adds another edge: a supernode's edges are one. Flows of a head that only one of them names stay as they are, what
    /// the other gives it is in its rest.
    pub fn add(&mut self, other: &EdgeHeads) {
        self.effect += other.effect;
        self.rest += other.rest;
        for flow in &other.strongest {
            match self.strongest.iter_mut().find(|own| own.head == flow.head) {
                Some(own) => own.flow += flow.flow,
                None => self.strongest.push(*flow),
            }
        }
        self.strongest.sort_by(|a, b| b.flow.abs().total_cmp(&a.flow.abs()).then(a.head.cmp(&b.head)));
        self.hops.resize(self.hops.len().max(other.hops.len()), 0.0);
        self.hops.iter_mut().zip(&other.hops).for_each(|(own, part)| *own += part);
    }

    /// What the edge is made of, whatever cancels: the sum of the sizes of its parts by number of hops, which shares are
    /// parts of.
    pub fn size(&self) -> f32 {
        self.hops.iter().map(|part| part.abs()).sum::<f32>().max(self.effect.abs())
    }

    /// The largest flow and the direct part, each as a part of [`EdgeHeads::size`]: `18.6 71 %, direct 12 %`. A minus
    /// stands before parts that have the other sign than the edge.
    pub fn label(&self) -> String {
        [self.top(), self.direct_part()].into_iter().flatten().map(|(text, _)| text).collect::<Vec<_>>().join(", ")
    }

    /// The larger of the two parts of [`EdgeHeads::label`]; empty where neither is much.
    pub fn short_label(&self) -> String {
        let parts = [self.top(), self.direct_part()].into_iter().flatten();
        let largest = parts.max_by(|a, b| a.1.abs().total_cmp(&b.1.abs()));
        largest.filter(|(_, part)| part.abs() >= MUCH * self.size()).map_or_else(String::new, |(text, _)| text)
    }

    /// The largest flow in words, and how much it is.
    fn top(&self) -> Option<(String, f32)> {
        let flow = self.strongest.first()?;
        Some((format!("{} {}", flow.head, self.percent(flow.flow)?), flow.flow))
    }

    /// What passes no head, likewise.
    fn direct_part(&self) -> Option<(String, f32)> {
        Some((format!("direct {}", self.percent(self.direct())?), self.direct()))
    }

    fn percent(&self, part: f32) -> Option<String> {
        let share = part.abs() / self.size();
        let sign = if part * self.effect < 0.0 { "-" } else { "" };
        (share >= SHOWN_PART).then(|| format!("{sign}{:.0} %", 100.0 * share))
    }
}

/// Heads of many edges: those of a pruned circuit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeadFlows {
    /// By target and then source, every edge once.
    edges: Vec<EdgeHeads>,
    /// How many heads of an edge are named, at most.
    n_named: usize,
    /// Parts by number of hops: one more than the largest number. 0: hops were not counted.
    n_hops: usize,
}

impl HeadFlows {
    /// Sorts and checks `edges`.
    ///
    /// # Errors
    /// An edge that is there twice, more named heads than `n_named` or another number of hops than `n_hops`, values that
    /// are not finite.
    pub fn new(mut edges: Vec<EdgeHeads>, n_named: usize, n_hops: usize) -> Result<Self> {
        edges.sort_by_key(|edge| (edge.target, edge.source));
        for (index, edge) in edges.iter().enumerate() {
            let is_again =
                index > 0 && (edges[index - 1].target, edges[index - 1].source) == (edge.target, edge.source);
            if is_again {
                return Err(Error::CircuitDuplicate { node: format!("heads of {} to {}", edge.source, edge.target) });
            }
            for (name, expected, actual) in [
                ("head_flows", n_named.min(edge.strongest.len()), edge.strongest.len()),
                ("head_hops", n_hops, edge.hops.len()),
            ] {
                if expected != actual {
                    return Err(Error::GraphShape { name, expected: vec![expected], actual: vec![actual] });
                }
            }
            let flows = edge.strongest.iter().map(|flow| flow.flow);
            if !flows.chain(edge.hops.iter().copied()).chain([edge.rest]).all(f32::is_finite) {
                return Err(Error::GraphNotFinite { name: "head_flows", index });
            }
        }
        Ok(Self { edges, n_named, n_hops })
    }

    /// As [`HeadFlows::new`], with the sizes that `edges` have; `None` where they do not agree, or where there is none.
    pub fn of_edges(edges: Vec<EdgeHeads>) -> Option<Self> {
        let n_named = edges.iter().map(|edge| edge.strongest.len()).max()?;
        let n_hops = edges.first()?.hops.len();
        Self::new(edges, n_named, n_hops).ok()
    }

    /// Every edge, by target and then source.
    pub fn edges(&self) -> &[EdgeHeads] {
        &self.edges
    }

    /// How many heads of an edge are named, at most.
    pub fn n_named(&self) -> usize {
        self.n_named
    }

    /// Parts of every edge by number of hops.
    pub fn n_hops(&self) -> usize {
        self.n_hops
    }

    /// The heads of an edge.
    pub fn find(&self, target: NodeId, source: NodeId) -> Option<&EdgeHeads> {
        let at = self.edges.binary_search_by_key(&(target, source), |edge| (edge.target, edge.source));
        at.ok().map(|at| &self.edges[at])
    }
}
