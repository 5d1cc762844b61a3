//! The influences that a graph states, against exact ones.

use serde::Serialize;

use crate::attribution::{ExactInfluence, Target, exact_influence, targets_of};
use crate::error::{Error, Result};
use crate::graph::{AttributionGraph, FeatureId, NodeId, next_features};
use crate::intervene::{Random, linearized_as_traced};
use crate::job::Job;
use crate::replacement::{LinearModel, Replacement};

/// The strongest features, by exact influence, of which it is counted how many are among the strongest of the graph.
const N_TOP: usize = 500;

/// Relative difference that passes where influence is exact: f32 rows, summed in another order or on another machine.
const ROUNDING: f64 = 1e-3;

/// Share of the features that must be within two standard errors. 0.95 would be ideal; of a few features less may be.
const MIN_SHARE_WITHIN_TWO: f64 = 2.0 / 3.0;

/// What [`crate::Tracer::verify_influence`] compares.
#[derive(Clone, Copy, Debug)]
pub struct InfluenceCheckOptions {
    /// So many features of the graph, chosen at random.
    pub n_features: usize,
    /// Seeds the choice.
    pub seed: u64,
}

/// How far the influences of a graph are from exact.
#[derive(Clone, Debug, Serialize)]
pub struct InfluenceCheck {
    /// Rows that the exact influence came from: those of all active features and of the targets.
    pub n_rows: usize,
    /// Rows of features that the graph's influence was estimated from; `None` where it was not sampled.
    pub n_visited: Option<usize>,
    /// The replacement score.
    pub replacement: CheckedScore,
    /// The completeness score.
    pub completeness: CheckedScore,
    /// The random features, strongest first.
    pub features: Vec<CheckedFeature>,
    /// Part of them within one stated standard error of exact, in 0..=1.
    pub share_within_one: f64,
    /// Part of them within two.
    pub share_within_two: f64,
    /// How many features of most exact influence the next two figures are about: 500, or all.
    pub n_top: usize,
    /// Part of these that are among as many strongest features of the graph, in 0..=1.
    pub share_of_top_found: f64,
    /// Median of their `|stated - exact| / exact`.
    pub median_error_of_top: f64,
    /// Whether two thirds of the random features are within two standard errors; `None` where rows were chosen
    /// best-first, so that the graph's influence is of its own part.
    pub passed: Option<bool>,
}

/// A score, stated and exact.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CheckedScore {
    /// What the graph says.
    pub stated: f64,
    /// The standard error that it states; 0 where it states none.
    pub uncertainty: f64,
    /// From all rows.
    pub exact: f64,
}

/// A feature's part of the targets' weight, stated and exact.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CheckedFeature {
    /// The feature.
    pub node: NodeId,
    /// What the graph says.
    pub stated: f64,
    /// The standard error that it states; 0 where it states none.
    pub uncertainty: f64,
    /// From all rows.
    pub exact: f64,
}

impl CheckedFeature {
    /// Whether the difference is within so many standard errors, and rounding.
    fn is_within(&self, n_errors: f64) -> bool {
        (self.stated - self.exact).abs() <= n_errors * self.uncertainty + ROUNDING * self.exact.abs()
    }
}

/// Traces every row of the graph's prompt again, and compares.
pub(super) fn check(
    replacement: &Replacement,
    graph: &AttributionGraph,
    options: &InfluenceCheckOptions,
    job: &Job,
) -> Result<InfluenceCheck> {
    let (_, linear) = linearized_as_traced(replacement, graph, job)?;
    let targets = same_targets(replacement, &linear, graph)?;
    let exact = exact_influence(replacement, &linear, &targets, job)?;
    let checked = checked_features(graph, &exact);

    let mut features = Random(options.seed).draw(&checked.nodes, options.n_features);
    features.sort_by(|a, b| b.exact.total_cmp(&a.exact).then(a.node.cmp(&b.node)));
    let share = |n: usize, all: usize| if all == 0 { 1.0 } else { n as f64 / all as f64 };
    let within = |n_errors: f64| share(features.iter().filter(|f| f.is_within(n_errors)).count(), features.len());
    let (share_within_one, share_within_two) = (within(1.0), within(2.0));

    let n_top = N_TOP.min(checked.all.len());
    let strongest = |influence: &dyn Fn(&CheckedFeature) -> f64| {
        let influence: Vec<f64> = checked.all.iter().map(influence).collect();
        next_features(&influence, &vec![false; influence.len()], n_top)
    };
    let top = strongest(&|feature| feature.exact);
    let mut stated_top = strongest(&|feature| feature.stated);
    stated_top.sort_unstable();
    let n_found = top.iter().filter(|feature| stated_top.binary_search(feature).is_ok()).count();
    let mut errors: Vec<f64> = top
        .iter()
        .map(|&feature| &checked.all[feature])
        .map(|feature| (feature.stated - feature.exact).abs() / feature.exact.max(f64::MIN_POSITIVE))
        .collect();
    errors.sort_by(f64::total_cmp);

    let sampling = graph.meta.sampling;
    let is_part = sampling.is_none() && graph.selected_features.len() < graph.active_features.len();
    Ok(InfluenceCheck {
        n_rows: exact.layout.n_rows(),
        n_visited: sampling.map(|sampling| sampling.n_visited),
        replacement: CheckedScore {
            stated: graph.meta.replacement_score,
            uncertainty: sampling.map_or(0.0, |sampling| sampling.replacement_uncertainty),
            exact: exact.scores.replacement,
        },
        completeness: CheckedScore {
            stated: graph.meta.completeness_score,
            uncertainty: sampling.map_or(0.0, |sampling| sampling.completeness_uncertainty),
            exact: exact.scores.completeness,
        },
        share_within_one,
        share_within_two,
        n_top,
        share_of_top_found: share(n_found, n_top),
        median_error_of_top: errors.get(errors.len() / 2).copied().unwrap_or(0.0),
        passed: (!is_part).then_some(share_within_two >= MIN_SHARE_WITHIN_TWO),
        features,
    })
}

/// The targets of `graph`, all of which must be known: influence is that on all of them.
fn same_targets(replacement: &Replacement, linear: &LinearModel, graph: &AttributionGraph) -> Result<Vec<Target>> {
    let targets = targets_of(replacement, linear, graph)?.into_iter().collect::<Option<Vec<Target>>>();
    targets.ok_or(Error::Contradiction {
        first: "--influence",
        second: "a target whose direction the file does not tell (one of an older version)",
    })
}

struct Checked {
    /// All active features of this run.
    all: Vec<CheckedFeature>,
    /// Those that are nodes of the graph.
    nodes: Vec<CheckedFeature>,
}

/// Stated beside exact. The few features that another machine finds active are left out.
fn checked_features(graph: &AttributionGraph, exact: &ExactInfluence) -> Checked {
    let weight: f64 = graph.target_probabilities.iter().map(|&weight| f64::from(weight)).sum();
    let part = |influence: f64| if weight > 0.0 { influence / weight } else { 0.0 };
    let of_nodes = if graph.whole_influence().is_none() { graph.influence().nodes } else { Vec::new() };
    let stated = |feature: FeatureId| -> Option<(f64, f64, bool)> {
        let active = graph.active_features.binary_search(&feature).ok()?;
        let node = graph.selected_features.binary_search(&active).ok();
        Some(match graph.whole_influence() {
            Some(whole) => (whole.nodes[active], f64::from(whole.uncertainty[active]), node.is_some()),
            None => (node.map_or(0.0, |node| of_nodes[node]), 0.0, node.is_some()),
        })
    };
    let (mut all, mut nodes) = (Vec::new(), Vec::new());
    for (&feature, &influence) in exact.layout.feature_ids().iter().zip(&exact.nodes) {
        let Some((value, uncertainty, is_node)) = stated(feature) else { continue };
        let checked = CheckedFeature {
            node: feature.into(),
            stated: part(value),
            uncertainty: part(uncertainty),
            exact: part(influence),
        };
        all.push(checked);
        if is_node {
            nodes.push(checked);
        }
    }
    Checked { all, nodes }
}
