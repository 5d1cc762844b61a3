//! What `inspect --node` shows below the edges of a feature: its dashboard, and what it does at its place in the prompt.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use crate::Result;
use crate::circuits::{NodeSummary, OpenedGraph, Report, find_node};
use crate::cli::dashboard_text::{ShownParts, dashboard_text};
use crate::cli::setup::{GraphSource, SetupArgs};
use crate::cli::terminal;
use crate::error::Error;
use crate::features::{FeatureAt, FeatureId, FeatureReport, FeatureSet, report, report_here, report_weights};
use crate::job::Job;
use crate::replacement::LinearModel;
use crate::tracer::Tracer;

/// Features whose dashboards are shown; of more, the ids.
const MAX_FEATURES: usize = 3;

/// Logits and features that weights are shown of.
const N_WEIGHTS: usize = 10;

/// What is shown of each: with the edges above it, what fits two screens.
const SHOWN: ShownParts = ShownParts { examples: 5, per_interval: 0, rows: 5, has_histogram: false };

/// The features of the nodes that were asked for.
#[derive(Debug, Default)]
pub(super) struct Dashboards {
    pub reports: Vec<FeatureReport>,
    /// Features that there was no room for.
    others: Vec<FeatureId>,
    /// Where all of them are, as `features show` takes it.
    folder: String,
}

/// What `--format json` prints.
#[derive(Debug, Serialize)]
pub(super) struct WithDashboards {
    #[serde(flatten)]
    pub report: Report,
    /// What is known of the features of the nodes that were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dashboards: Vec<FeatureReport>,
}

impl Dashboards {
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for report in &self.reports {
            text.push('\n');
            text.push_str(&terminal::wrapped(&dashboard_text(report, &SHOWN)));
        }
        if let Some(first) = self.reports.first() {
            let _ = writeln!(text, "\nmore: circuitscope features show {} {}", self.folder, first.feature);
        }
        if !self.others.is_empty() {
            let ids: Vec<String> = self.others.iter().map(ToString::to_string).collect();
            let _ = writeln!(text, "also: {}", ids.join(", "));
        }
        text
    }
}

/// The dashboards of the features among `nodes`. What weights say needs the model: where it cannot be opened, the rest is
/// shown without it, unless options name it.
///
/// # Errors
/// Features that cannot be read; those of a model that options name.
pub(super) fn dashboards(
    opened: &OpenedGraph,
    set: &FeatureSet,
    nodes: &[NodeSummary],
    file: &Path,
    setup: &SetupArgs,
) -> Result<Dashboards> {
    let circuit = &opened.circuit;
    let mut positions: BTreeMap<FeatureId, Vec<usize>> = BTreeMap::new();
    for summary in nodes {
        let node = circuit.node(find_node(circuit, &summary.node.id)?);
        if let Some(id) = node.id.feature() {
            let (layer, feature) = (id.layer as usize, id.feature as usize);
            positions.entry(FeatureId { layer, feature }).or_default().push(id.pos as usize);
        }
    }
    let others = positions.keys().copied().skip(MAX_FEATURES).collect();
    let shown: Vec<(FeatureId, Vec<usize>)> = positions.into_iter().take(MAX_FEATURES).collect();
    let mut reports = shown.iter().map(|(id, _)| report(set, *id)).collect::<Result<Vec<_>>>()?;
    if !reports.is_empty()
        && let Err(error) = add_weights(&mut reports, &shown, opened, set, file, setup)
    {
        if setup.is_given() {
            return Err(error);
        }
        setup.note(&format!("what features push, read and feed needs the model: {error}"));
    }
    Ok(Dashboards { reports, others, folder: set.folder().spec().to_owned() })
}

fn add_weights(
    reports: &mut [FeatureReport],
    shown: &[(FeatureId, Vec<usize>)],
    opened: &OpenedGraph,
    set: &FeatureSet,
    file: &Path,
    setup: &SetupArgs,
) -> Result<()> {
    let source = GraphSource::of_circuit(file, &opened.circuit.meta);
    let tracer = setup.open_with(None, Some(&source))?;
    let linear = linear_model(opened, &tracer)?;
    // Where the logits are that the graph explains.
    let first = opened.circuit.targets().first().map(|&target| opened.circuit.node(target).pos as usize);
    let at = first.unwrap_or(linear.tokens.len() - 1);
    for (report, (id, positions)) in reports.iter_mut().zip(shown) {
        report.weights = Some(report_weights(tracer.replacement(), set, *id, N_WEIGHTS, true)?);
        for &pos in positions.iter().filter(|&&pos| pos <= at) {
            let feature = FeatureAt { id: *id, pos };
            report.here.extend(report_here(tracer.replacement(), set, &linear, feature, at, N_WEIGHTS)?);
        }
    }
    Ok(())
}

/// The prompt of the graph, linear.
///
/// # Errors
/// [`Error::GraphMismatch`] for a model that reads the prompt otherwise than the graph's did.
fn linear_model(opened: &OpenedGraph, tracer: &Tracer) -> Result<LinearModel> {
    let meta = &opened.circuit.meta;
    let tokens: Vec<u32> = match &opened.raw {
        Some(raw) => raw.input_tokens.iter().map(|&token| token as u32).collect(),
        None => tracer.tokenize(meta.prompt.as_str())?.tokens,
    };
    if tokens.len() != meta.prompt_tokens.len() {
        let (graph, model) = (format!("has {} tokens", meta.prompt_tokens.len()), format!("{} tokens", tokens.len()));
        return Err(Error::GraphMismatch { what: "prompt", graph, model });
    }
    tracer.replacement().linearize(&tokens, &Job::default())
}
