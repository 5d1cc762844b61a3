//! A cut: what pruning at two thresholds keeps of a graph, as rows of links by number.

use std::sync::{Arc, OnceLock};

use serde::Serialize;

use crate::circuits::{Summary, SummarySettings, summarize, summarize_with_raw};
use crate::graph::{Circuit, CircuitMeta, CompactLink, Link, NodeKind, subgraph_scores};
use crate::prune::{nodes_within, prune, prune_links};
use crate::{Error, Result};

use super::whole::{Edges, Thresholds, Whole};

/// Links of a circuit in memory, some 60 bytes each.
const MAX_CIRCUIT_LINKS: usize = 4_000_000;

/// What a cut keeps. Everything of a node is by its place among the kept nodes.
#[derive(Debug)]
pub(super) struct Cut {
    pub thresholds: Thresholds,
    /// Numbers of the kept nodes, ascending. `[n_kept]`
    pub nodes: Vec<u32>,
    /// Where the inputs of every node begin, closed by the number of links. `[n_kept + 1]`
    pub row_starts: Vec<usize>,
    /// Numbers of the nodes where links begin. `[n_links]`
    pub sources: Vec<u32>,
    /// `[n_links]`
    pub weights: Vec<f32>,
    /// Sum of `|weight|` of a node's inputs. `[n_kept]`
    pub abs_sums: Vec<f64>,
    /// Part of the targets' weight that passes through a node. `[n_kept]`
    pub shares: Vec<f64>,
    /// Of the cut's own links (definitions 8).
    pub scores: Both,
    of_whole: OnceLock<Option<Both>>,
    circuit: OnceLock<Arc<Circuit>>,
    summary: OnceLock<Arc<Summary>>,
}

/// Both scores, in 0..=1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Both {
    pub replacement: f64,
    pub completeness: f64,
}

/// How many there are of each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Counts {
    pub features: usize,
    pub errors: usize,
    pub tokens: usize,
    /// Only where positions are closed.
    #[serde(skip_serializing_if = "is_zero")]
    pub contexts: usize,
    pub targets: usize,
    pub edges: usize,
}

/// A cut in figures.
#[derive(Debug, Clone, Serialize)]
pub(super) struct CutReport<'a> {
    pub node_threshold: Option<f64>,
    pub edge_threshold: Option<f64>,
    pub n_nodes: usize,
    pub n_links: usize,
    pub counts: Counts,
    pub scores: Both,
    pub of_whole: Option<Both>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<&'a [u32]>,
}

impl Cut {
    /// Cuts a graph.
    ///
    /// # Errors
    /// As [`prune`] and [`prune_links`]; links that go round in a circle.
    ///
    /// # Cost
    /// That of pruning; then linear in the kept links.
    pub fn new(whole: &Whole, thresholds: Thresholds) -> Result<Cut> {
        match (&whole.edges, thresholds) {
            (Edges::Raw(traced), settings) => {
                let pruned = prune(traced.graph(), traced.influence(), &settings.unwrap_or_default())?;
                let links = pruned.edges.iter().map(|link| (link.source as u32, link.target as u32, link.weight));
                Cut::of_links(whole, thresholds, &pruned.node_mask, links)
            }
            (Edges::Json(file), None) => {
                let links = file.links.iter().map(|link| (link.source, link.target, link.weight));
                Cut::of_links(whole, thresholds, &vec![true; whole.nodes.len()], links)
            }
            (Edges::Json(file), Some(settings)) => {
                let kept = nodes_within(&whole.nodes, settings.node_threshold);
                let is_kept = |link: &&CompactLink| kept[link.source as usize] && kept[link.target as usize];
                let mut links: Vec<CompactLink> = file.links.iter().filter(is_kept).copied().collect();
                let stays = prune_links(&whole.nodes, &mut links, settings.edge_threshold)?;
                let stays: Vec<bool> = stays.iter().zip(&kept).map(|(stays, kept)| *stays && *kept).collect();
                Cut::of_links(
                    whole,
                    thresholds,
                    &stays,
                    links.iter().map(|link| (link.source, link.target, link.weight)),
                )
            }
        }
    }

    fn of_links(
        whole: &Whole,
        thresholds: Thresholds,
        is_kept: &[bool],
        links: impl ExactSizeIterator<Item = (u32, u32, f32)> + Clone,
    ) -> Result<Cut> {
        let nodes: Vec<u32> = (0..is_kept.len() as u32).filter(|&n| is_kept[n as usize]).collect();
        let mut place = vec![u32::MAX; is_kept.len()];
        nodes.iter().enumerate().for_each(|(at, &n)| place[n as usize] = at as u32);
        let mut row_starts = vec![0usize; nodes.len() + 1];
        for (_, target, _) in links.clone() {
            row_starts[place[target as usize] as usize + 1] += 1;
        }
        for at in 0..nodes.len() {
            row_starts[at + 1] += row_starts[at];
        }
        let mut next = row_starts.clone();
        let (mut sources, mut weights) = (vec![0u32; links.len()], vec![0f32; links.len()]);
        let mut abs_sums = vec![0f64; nodes.len()];
        for (source, target, weight) in links {
            let row = place[target as usize] as usize;
            sources[next[row]] = source;
            weights[next[row]] = weight;
            next[row] += 1;
            abs_sums[row] += f64::from(weight.abs());
        }
        let mut cut = Cut {
            thresholds,
            nodes,
            row_starts,
            sources,
            weights,
            abs_sums,
            shares: Vec::new(),
            scores: Both { replacement: 0.0, completeness: 1.0 },
            of_whole: OnceLock::new(),
            circuit: OnceLock::new(),
            summary: OnceLock::new(),
        };
        cut.sweep(whole, &place)?;
        Ok(cut)
    }

    /// Finds what passes through every node, and the scores, from the targets down.
    fn sweep(&mut self, whole: &Whole, place: &[u32]) -> Result<()> {
        let mut n_outputs = vec![0u32; self.nodes.len()];
        self.sources.iter().for_each(|&source| n_outputs[place[source as usize] as usize] += 1);
        let node = |at: usize| &whole.nodes[self.nodes[at] as usize];
        let mut influence: Vec<f64> = (0..self.nodes.len())
            .map(|at| match node(at).id.kind() {
                NodeKind::Target => node(at).probability.map_or(1.0, f64::from),
                _ => 0.0,
            })
            .collect();
        let weight: f64 = influence.iter().sum();
        // A node is ready once all that it feeds is done. The last first: targets are at the end.
        let mut ready: Vec<usize> = (0..self.nodes.len()).filter(|&at| n_outputs[at] == 0).collect();
        let (mut n_done, mut from_tokens, mut from_errors, mut explained, mut total) = (0, 0.0, 0.0, 0.0, 0.0);
        while let Some(at) = ready.pop() {
            n_done += 1;
            let (passed, row) = (influence[at], self.row_starts[at]..self.row_starts[at + 1]);
            let kind = node(at).id.kind();
            let mut error_sum = 0.0;
            for link in row {
                let source = place[self.sources[link] as usize] as usize;
                let abs = f64::from(self.weights[link].abs());
                if self.abs_sums[at] > 0.0 {
                    influence[source] += passed * abs / self.abs_sums[at];
                }
                if node(source).id.kind() == NodeKind::Error {
                    error_sum += abs;
                }
                n_outputs[source] -= 1;
                if n_outputs[source] == 0 {
                    ready.push(source);
                }
            }
            match kind {
                NodeKind::Token => {
                    from_tokens += passed;
                    explained += passed;
                    total += passed;
                }
                NodeKind::Context => {
                    explained += passed;
                    total += passed;
                }
                NodeKind::Error => (),
                NodeKind::Feature | NodeKind::Target => {
                    let errors = if self.abs_sums[at] > 0.0 { error_sum / self.abs_sums[at] } else { 0.0 };
                    from_errors += passed * errors;
                    explained += passed * (1.0 - errors);
                    total += passed;
                }
            }
        }
        if n_done < self.nodes.len() {
            let stuck = (0..self.nodes.len()).find(|&at| n_outputs[at] > 0).unwrap_or_default();
            return Err(Error::CircuitCycle { node: format!("`{}`", whole.ids[self.nodes[stuck] as usize]) });
        }
        // Error nodes have empty rows, which count as explained.
        explained += from_errors;
        total += from_errors;
        let ratio = |part: f64, whole: f64, otherwise: f64| if whole > 0.0 { part / whole } else { otherwise };
        self.scores = Both {
            replacement: ratio(from_tokens, from_tokens + from_errors, 0.0),
            completeness: ratio(explained, total, 1.0),
        };
        self.shares = influence.into_iter().map(|passed| ratio(passed, weight, 0.0)).collect();
        Ok(())
    }

    /// Links of the cut.
    pub fn n_links(&self) -> usize {
        self.sources.len()
    }

    /// Memory that the cut takes, without what is made of it later.
    pub fn size_bytes(&self) -> usize {
        let circuit = if self.circuit.get().is_some() { 60 * self.n_links() } else { 0 };
        self.n_links() * 8 + self.nodes.len() * 28 + circuit
    }

    /// Where a node is among the kept ones.
    pub fn place(&self, n: usize) -> Option<usize> {
        self.nodes.binary_search(&(n as u32)).ok()
    }

    /// Part of the input that a link is of its target. `row` is the target's place.
    pub fn link_share(&self, row: usize, link: usize) -> f64 {
        let sum = self.abs_sums[row];
        if sum > 0.0 { f64::from(self.weights[link].abs()) / sum } else { 0.0 }
    }

    /// The row that a link is in.
    pub fn row_of(&self, link: usize) -> usize {
        self.row_starts.partition_point(|&start| start <= link) - 1
    }

    /// Scores of the cut's features pinned in the raw graph, over all edges; `None` where there is no raw graph.
    ///
    /// # Cost
    /// A pass over the rows of the kept features, once.
    pub fn of_whole(&self, whole: &Whole) -> Option<Both> {
        *self.of_whole.get_or_init(|| {
            let graph = whole.raw()?.graph();
            let mut pinned = vec![false; graph.layout().n_features()];
            for &n in &self.nodes {
                if let Some(pinned) = pinned.get_mut(n as usize) {
                    *pinned = true;
                }
            }
            let scores = subgraph_scores(&graph.edge_rows, graph.layout(), &graph.target_probabilities, &pinned);
            Some(Both { replacement: scores.replacement, completeness: scores.completeness })
        })
    }

    /// The cut in figures.
    pub fn report(&self, whole: &Whole, with_nodes: bool) -> CutReport<'_> {
        let mut counts = Counts { edges: self.n_links(), ..Counts::default() };
        for &n in &self.nodes {
            match whole.nodes[n as usize].id.kind() {
                NodeKind::Feature => counts.features += 1,
                NodeKind::Error => counts.errors += 1,
                NodeKind::Token => counts.tokens += 1,
                NodeKind::Context => counts.contexts += 1,
                NodeKind::Target => counts.targets += 1,
            }
        }
        let meta = self.meta(whole);
        CutReport {
            node_threshold: meta.node_threshold,
            edge_threshold: meta.edge_threshold,
            n_nodes: self.nodes.len(),
            n_links: self.n_links(),
            counts,
            scores: self.scores,
            of_whole: self.of_whole(whole),
            nodes: with_nodes.then_some(&self.nodes),
        }
    }

    fn meta(&self, whole: &Whole) -> CircuitMeta {
        let settings = match whole.edges {
            Edges::Raw(_) => Some(self.thresholds.unwrap_or_default()),
            Edges::Json(_) => self.thresholds,
        };
        let mut meta = whole.meta.clone();
        if let Some(settings) = settings {
            (meta.node_threshold, meta.edge_threshold) = (Some(settings.node_threshold), Some(settings.edge_threshold));
        }
        meta
    }

    /// The cut as a circuit; node `i` of it is `nodes[i]`.
    ///
    /// # Errors
    /// [`Error::TooManyLinks`].
    pub fn circuit(&self, whole: &Whole) -> Result<Arc<Circuit>> {
        if let Some(circuit) = self.circuit.get() {
            return Ok(circuit.clone());
        }
        if self.n_links() > MAX_CIRCUIT_LINKS {
            return Err(Error::TooManyLinks { n_links: self.n_links(), limit: MAX_CIRCUIT_LINKS });
        }
        let nodes = self.nodes.iter().map(|&n| whole.nodes[n as usize].clone()).collect();
        let mut links = Vec::with_capacity(self.n_links());
        for target in 0..self.nodes.len() {
            for link in self.row_starts[target]..self.row_starts[target + 1] {
                let source = self.place(self.sources[link] as usize).unwrap_or_default();
                links.push(Link { source, target, weight: self.weights[link] });
            }
        }
        let circuit = Arc::new(Circuit::new(self.meta(whole), nodes, links)?);
        Ok(self.circuit.get_or_init(|| circuit).clone())
    }

    /// The story of the cut, as the command line tells it.
    ///
    /// # Errors
    /// As [`Cut::circuit`].
    pub fn summary(&self, whole: &Whole) -> Result<Arc<Summary>> {
        if let Some(summary) = self.summary.get() {
            return Ok(summary.clone());
        }
        let (circuit, settings) = (self.circuit(whole)?, SummarySettings::default());
        let summary = match whole.raw() {
            Some(traced) => summarize_with_raw(&circuit, traced.graph(), &settings)?,
            None => summarize(&circuit, &settings)?,
        };
        Ok(self.summary.get_or_init(|| Arc::new(summary)).clone())
    }
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}
