//! Attention explained: heads of edges, bills of targets, pairs behind a score.

use super::Tracer;
use crate::attribution::{FrozenScore, Score, Target, Versus, targets_of};
use crate::error::{Error, Result};
use crate::graph::{AttributionGraph, HeadFlows, NodeId};
use crate::heads::{Bill, FlowOptions, ScorePairs, bills, head_flows};
use crate::intervene::linearized_as_traced;
use crate::job::Job;
use crate::replacement::LinearModel;

/// What every head gives to one target of a graph.
#[derive(Clone, Debug)]
pub struct TargetBills {
    /// The graph's name for the target.
    pub label: String,
    /// By layer and head.
    pub bills: Vec<Bill>,
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
        let targets = self.known_targets(&linear, graph)?;
        flows_of(&linear, &targets, edges, options, job)
    }

    /// What every head gives to the targets of a graph.
    ///
    /// # Errors
    /// As [`Tracer::edge_heads`].
    pub fn bills(&self, graph: &AttributionGraph, job: &Job) -> Result<Vec<TargetBills>> {
        let (_, linear) = linearized_as_traced(&self.replacement, graph, job)?;
        let targets = self.known_targets(&linear, graph)?;
        let found = bills(&self.replacement, &linear, &targets, job)?;
        let labels = targets.iter().map(|target| target.label.clone());
        Ok(labels.zip(found).map(|(label, bills)| TargetBills { label, bills }).collect())
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
