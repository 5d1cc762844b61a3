//! Attention explained: heads of edges, bills of targets, pairs behind a score.

use super::Tracer;
use crate::attribution::{FrozenScore, Score, Target, Versus, targets_of};
use crate::error::{Error, Result};
use crate::graph::{AttributionGraph, Circuit, Head, HeadFlows, NodeId};
use crate::heads::{
    EdgeInFull, FlowOptions, HeadPattern, HeadRow, HeadScore, HeadScoreOptions, ScorePairs, edge_in_full, head_flows,
    head_patterns, head_rows, head_scores,
};
use crate::intervene::linearized_as_traced;
use crate::job::Job;
use crate::replacement::LinearModel;

/// What every head gives to one target of a graph.
#[derive(Clone, Debug)]
pub struct TargetHeads {
    /// The graph's name for the target.
    pub label: String,
    /// By head and position.
    pub row: HeadRow,
}

/// A score, and the pairs of sources that it is made of.
#[derive(Clone, Debug)]
pub struct ExplainedScore {
    /// The score with all norms held.
    pub frozen: FrozenScore,
    /// What every source gives to either side.
    pub pairs: ScorePairs,
}

impl Tracer {
    /// Through which heads edges of a graph go: target and source of each, as ids.
    ///
    /// # Errors
    /// A graph of another model, prompt or transcoder set; edges between nodes that it has not; those of reading weights
    /// and of the device; [`Error::Cancelled`].
    pub fn edge_heads(
        &self,
        graph: &AttributionGraph,
        edges: &[(NodeId, NodeId)],
        options: &FlowOptions,
        job: &Job,
    ) -> Result<HeadFlows> {
        let (_, linear) = linearized_as_traced(&self.replacement, graph, job)?;
        linear.positions.check_all("finding heads")?;
        let targets = self.known_targets(&linear, graph)?;
        flows_of(&linear, &targets, edges, options, job)
    }

    /// Finds out through which heads the edges of a pruned graph go, and keeps it in both graphs. Returns how many edges.
    ///
    /// # Errors
    /// As [`Tracer::edge_heads`].
    pub fn add_heads(&self, graph: &mut super::TracedGraph, circuit: &mut Circuit, job: &Job) -> Result<usize> {
        let edges = circuit.edge_ids();
        graph.set_heads(self.edge_heads(graph.graph(), &edges, &FlowOptions::default(), job)?)?;
        circuit.set_heads(graph.graph().heads().cloned());
        Ok(edges.len())
    }

    /// One edge of a graph in full: target and source as ids.
    ///
    /// # Errors
    /// As [`Tracer::edge_heads`].
    pub fn edge_in_full(
        &self,
        graph: &AttributionGraph,
        edge: (NodeId, NodeId),
        max_hops: usize,
        job: &Job,
    ) -> Result<EdgeInFull> {
        let (_, linear) = linearized_as_traced(&self.replacement, graph, job)?;
        linear.positions.check_all("finding heads")?;
        let targets = self.known_targets(&linear, graph)?;
        edge_in_full(&linear, &targets, edge, max_hops, job)
    }

    /// What every head gives to the targets of a graph; with `other`, a prompt of the same length, what it would give
    /// more if it wrote what it writes there ([`head_rows`]).
    ///
    /// # Errors
    /// As [`Tracer::edge_heads`]; [`Error::PromptLengths`].
    pub fn head_rows(
        &self,
        graph: &AttributionGraph,
        other: Option<super::Prompt>,
        job: &Job,
    ) -> Result<Vec<TargetHeads>> {
        let other = other.map(|other| self.tokenize(other)).transpose()?;
        let (_, linear) = linearized_as_traced(&self.replacement, graph, job)?;
        linear.positions.check_all("finding heads")?;
        let targets = self.known_targets(&linear, graph)?;
        let tokens = other.as_ref().map(|prompt| prompt.tokens.as_slice());
        let found = head_rows(&self.replacement, &linear, &targets, tokens, job)?;
        let labels = targets.iter().map(|target| target.label.clone());
        Ok(labels.zip(found).map(|(label, row)| TargetHeads { label, row }).collect())
    }

    /// What every head of the model does on random tokens.
    ///
    /// # Errors
    /// As [`head_scores`].
    pub fn head_scores(&self, options: &HeadScoreOptions, job: &Job) -> Result<Vec<HeadScore>> {
        head_scores(&self.replacement.model, &self.replacement.tokenizer, options, job)
    }

    /// Where heads look in a prompt.
    ///
    /// # Errors
    /// As [`head_patterns`], and of a prompt that does not fit the model.
    pub fn head_patterns(
        &self,
        prompt: impl Into<super::Prompt>,
        heads: &[Head],
        job: &Job,
    ) -> Result<(super::TokenizedPrompt, Vec<HeadPattern>)> {
        let prompt = self.tokenize(prompt)?;
        let found = head_patterns(&self.replacement.model, &prompt.tokens, heads, job)?;
        Ok((prompt, found))
    }

    /// The pairs of sources behind a score.
    ///
    /// # Errors
    /// Those of [`FrozenScore::new`] and of a prompt that does not fit the model; [`Error::Cancelled`].
    pub fn score_pairs(
        &self,
        prompt: impl Into<super::Prompt>,
        score: Score,
        versus: Versus,
        job: &Job,
    ) -> Result<(super::TokenizedPrompt, ExplainedScore)> {
        let prompt = self.tokenize(prompt)?;
        let frozen = FrozenScore::new(&self.replacement, &prompt.tokens, score, versus, job)?;
        let linear = self.replacement.linearize(&prompt.tokens, job)?;
        let pairs = ScorePairs::new(&linear, &frozen, job)?;
        Ok((prompt, ExplainedScore { frozen, pairs }))
    }

    /// The targets of a graph, every one of which must be known.
    fn known_targets(&self, linear: &LinearModel, graph: &AttributionGraph) -> Result<Vec<Target>> {
        let targets = targets_of(&self.replacement, linear, graph)?.into_iter().zip(&graph.meta.target_labels);
        targets.map(|(target, label)| target.ok_or_else(|| Error::UnknownTarget { label: label.clone() })).collect()
    }
}

/// The flows of edges, with the sizes that the options ask for.
pub(super) fn flows_of(
    linear: &LinearModel,
    targets: &[Target],
    edges: &[(NodeId, NodeId)],
    options: &FlowOptions,
    job: &Job,
) -> Result<HeadFlows> {
    let n_hops = if options.max_hops > 0 { options.max_hops + 1 } else { 0 };
    HeadFlows::new(head_flows(linear, targets, edges, options, job)?, options.strongest, n_hops)
}

/// The heads of a graph's edges computed again, with more heads named: where two flows are nearly the same, which of them
/// is named last may differ. Edges that this run has not are left out.
pub(super) fn heads_again(
    linear: &LinearModel,
    targets: &[Target],
    heads: &HeadFlows,
    again: &AttributionGraph,
    job: &Job,
) -> Result<HeadFlows> {
    let is_here = |node: NodeId| again.layout().index(node).is_some();
    let edges = heads.edges().iter().map(|edge| (edge.target, edge.source));
    let edges: Vec<(NodeId, NodeId)> = edges.filter(|&(target, source)| is_here(target) && is_here(source)).collect();
    let options = FlowOptions {
        strongest: 2 * heads.n_named() + 8,
        max_hops: heads.n_hops().saturating_sub(1),
        ..FlowOptions::default()
    };
    flows_of(linear, targets, &edges, &options, job)
}
