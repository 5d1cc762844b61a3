//! The sampled sweep: exact in its limit, unbiased, honest about its errors, the same bytes whatever the order of work.

use circuitscope::graph::{
    AttributionGraph, FeatureId, Influence, KeptFeatures, RowSource, SampleSettings, SampledInfluence, Start,
    influence, sampled_influence, scores,
};
use circuitscope::{Error, Result};
use proptest::prelude::*;
use rayon::prelude::*;

use crate::graph::{any_graph, random_graph};
use crate::reference::cases;
use crate::support::close;

/// Enough features for several blocks of rows a layer; none that sees few sources.
fn large_graph(seed: u64) -> AttributionGraph {
    let (n_layers, n_pos) = (6, 7);
    let cell = |layer, pos| (0..14).map(move |feature| FeatureId { layer, pos, feature });
    let features = (1..n_layers).flat_map(|layer| (1..n_pos).flat_map(move |pos| cell(layer, pos))).collect();
    random_graph(features, n_layers as usize, n_pos as usize, 3, seed)
}

fn exact(graph: &AttributionGraph) -> Influence {
    influence(&graph.edge_rows, graph.layout(), &graph.target_probabilities)
}

fn sweep_from(source: &dyn RowSource, graph: &AttributionGraph, settings: SampleSettings) -> Result<SampledInfluence> {
    sampled_influence(source, graph.layout(), &graph.target_probabilities, settings)
}

fn sweep(graph: &AttributionGraph, settings: SampleSettings) -> SampledInfluence {
    sweep_from(&graph.edge_rows, graph, settings).unwrap()
}

fn rows(graph: &AttributionGraph, n_rows: usize) -> SampleSettings {
    SampleSettings::for_rows(n_rows, &graph.target_probabilities)
}

fn theta(theta: f64) -> SampleSettings {
    SampleSettings { theta, start: Start::Middle }
}

fn assert_exact(graph: &AttributionGraph, settings: SampleSettings, name: &str) {
    let whole = exact(graph);
    let found = sweep(graph, settings);
    let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&found.nodes), bits(&whole.nodes[..found.nodes.len()]), "{name}");
    assert!(found.uncertainty.iter().all(|&u| u == 0.0), "{name}");
    let expected = scores(graph.layout(), &whole, &graph.target_probabilities);
    close(found.scores.replacement, expected.replacement, 1e-12, 0.0, &format!("{name} replacement"));
    close(found.scores.completeness, expected.completeness, 1e-12, 0.0, &format!("{name} completeness"));
    assert_eq!((found.score_uncertainty.replacement, found.score_uncertainty.completeness), (0.0, 0.0));
}

#[test]
fn without_theta_the_sweep_is_the_exact_influence_bit_for_bit() {
    for case in cases() {
        // With the smallest θ, features without influence are not visited: they add nothing.
        assert_exact(&case.graph(), theta(0.0), &case.name);
        assert_exact(&case.graph(), theta(f64::MIN_POSITIVE), &case.name);
    }
    let graph = large_graph(3);
    assert_exact(&graph, theta(0.0), "large");
    assert_exact(&graph, theta(f64::MIN_POSITIVE), "large");
}

proptest! {
    #[test]
    fn without_theta_the_sweep_is_exact_on_any_graph(graph in any_graph()) {
        assert_exact(&graph, theta(0.0), "any");
    }
}

#[test]
fn influence_is_conserved_within_theta_a_layer() {
    // What reaches a row without sources ends there.
    let has_sources = |graph: &AttributionGraph| exact(graph).row_abs_sums.iter().all(|&sum| sum > 0.0);
    for (seed, graph) in (1..).map(|seed| (seed, large_graph(seed))).filter(|(_, graph)| has_sources(graph)).take(15) {
        let layout = graph.layout();
        let given: f64 = graph.target_probabilities.iter().map(|&w| f64::from(w)).sum();
        let whole = exact(&graph);
        let arrived = |nodes: &[f64]| nodes[layout.errors().start..layout.tokens().end].iter().sum::<f64>();
        close(arrived(&whole.nodes), given, 1e-9, 0.0, "every row of this graph has sources");
        for n_rows in [5, 20, 80] {
            for start in [Start::Middle, Start::Seed(seed)] {
                let settings = SampleSettings { start, ..rows(&graph, n_rows) };
                let off = arrived(&sweep(&graph, settings).nodes) - given;
                assert!(off.abs() <= settings.theta * layout.n_layers() as f64, "{off} at θ {}", settings.theta);
            }
        }
    }
}

fn over_starts(graph: &AttributionGraph, settings: SampleSettings, n_starts: u64) -> Vec<SampledInfluence> {
    (0..n_starts)
        .into_par_iter()
        .map(|seed| sweep(graph, SampleSettings { start: Start::Seed(seed), ..settings }))
        .collect()
}

#[test]
fn the_mean_over_independent_starts_converges_to_the_exact_influence() {
    const N_STARTS: u64 = 1024;
    let reference = cases().into_iter().take(6).map(|case| (case.name.clone(), case.graph()));
    let random = [1, 2, 3].map(|seed| (format!("random {seed}"), large_graph(seed)));
    for (name, graph) in reference.chain(random) {
        let whole = exact(&graph);
        let n_features = graph.layout().n_features();
        let settings = rows(&graph, n_features / 8);
        let found = over_starts(&graph, settings, N_STARTS);
        assert!(found.iter().any(|draw| draw.visited.len() < n_features / 3), "{name}: rows are left out");
        let n = found.len() as f64;
        let (mut of_mean, mut of_one) = (0.0, 0.0);
        for node in 0..found[0].nodes.len() {
            let mean = found.iter().map(|draw| draw.nodes[node]).sum::<f64>() / n;
            let square = found.iter().map(|draw| (draw.nodes[node] - whole.nodes[node]).powi(2)).sum::<f64>() / n;
            of_mean += (mean - whole.nodes[node]).powi(2);
            of_one += square;
            // Nodes that rare visits alone reach are no normal distribution.
            if whole.nodes[node] > settings.theta / 4.0 {
                let tolerance = 5.0 * (square / n).sqrt() + 1e-12;
                close(mean, whole.nodes[node], tolerance, 0.0, &format!("{name}: node {node}"));
            }
        }
        // A 32nd is expected; a bias would not shrink.
        let shrunk = (of_mean / of_one).sqrt();
        assert!(of_one > 0.0 && shrunk < 0.1, "{name}: the mean of {N_STARTS} is off by {shrunk} of one");
    }
}

#[test]
fn stated_uncertainties_cover_the_true_errors() {
    let (mut true_squares, mut stated_squares, mut within_two, mut n) = (0.0, 0.0, 0usize, 0usize);
    let (mut scores_true, mut scores_stated) = (0.0, 0.0);
    for seed in 1..9 {
        let graph = large_graph(seed);
        let whole = exact(&graph);
        let expected = scores(graph.layout(), &whole, &graph.target_probabilities);
        for draw in over_starts(&graph, rows(&graph, 40), 8) {
            for ((&found, &stated), &exact) in draw.nodes.iter().zip(&draw.uncertainty).zip(&whole.nodes) {
                true_squares += (found - exact).powi(2);
                stated_squares += stated.powi(2);
                within_two += usize::from((found - exact).abs() <= 2.0 * stated + 1e-12);
                n += 1;
            }
            scores_true += (draw.scores.replacement - expected.replacement).powi(2);
            scores_true += (draw.scores.completeness - expected.completeness).powi(2);
            scores_stated += draw.score_uncertainty.replacement.powi(2) + draw.score_uncertainty.completeness.powi(2);
        }
    }
    let ratio = (stated_squares / true_squares).sqrt();
    assert!((0.8..1.5).contains(&ratio), "influences: stated {ratio} of true");
    assert!(within_two * 10 > n * 8, "{within_two} of {n} within twice the stated");
    let ratio = (scores_stated / scores_true).sqrt();
    assert!((0.6..2.0).contains(&ratio), "scores: stated {ratio} of true");
}

/// Brings rows from several threads, last first.
struct Backwards<'a>(&'a AttributionGraph);

impl RowSource for Backwards<'_> {
    fn rows(&self, rows: &[usize], each: &(dyn Fn(usize, &[f32]) + Sync)) -> Result<()> {
        (0..rows.len()).into_par_iter().rev().for_each(|place| each(place, self.0.row(rows[place])));
        Ok(())
    }
}

#[test]
fn threads_and_the_order_of_rows_change_no_bit() {
    let graph = large_graph(5);
    for settings in [theta(0.0), rows(&graph, 30)] {
        let on = |n: usize, source: &(dyn RowSource + Sync)| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
            pool.install(|| sweep_from(source, &graph, settings).unwrap())
        };
        let once = on(1, &graph.edge_rows);
        assert_eq!(once, on(3, &graph.edge_rows));
        assert_eq!(once, on(3, &Backwards(&graph)));
    }
}

/// Asks for what it should not get twice: counts the rows, refuses those above their turn.
struct Counting<'a>(&'a AttributionGraph, std::sync::Mutex<Vec<usize>>);

impl RowSource for Counting<'_> {
    fn rows(&self, rows: &[usize], each: &(dyn Fn(usize, &[f32]) + Sync)) -> Result<()> {
        let layers: std::collections::BTreeSet<_> =
            rows.iter().map(|&row| self.0.layout().feature_ids().get(row).map(|f| f.layer)).collect();
        assert_eq!(layers.len(), 1, "rows of one layer, or of targets");
        assert!(rows.is_sorted_by(|a, b| a < b));
        self.1.lock().unwrap().extend(rows);
        self.0.edge_rows.rows(rows, each)
    }
}

#[test]
fn every_row_is_asked_for_once_and_strong_features_always() {
    let graph = large_graph(7);
    let settings = rows(&graph, 60);
    let source = Counting(&graph, std::sync::Mutex::default());
    let found = sweep_from(&source, &graph, settings).unwrap();
    let mut asked = source.1.into_inner().unwrap();
    asked.sort_unstable();
    let targets = graph.layout().n_features()..graph.layout().n_rows();
    assert_eq!(asked, found.visited.iter().copied().chain(targets).collect::<Vec<_>>());
    let n = found.visited.len();
    assert!((20..180).contains(&n), "{n} rows for about 60");
    for feature in graph.layout().features().filter(|&feature| found.nodes[feature] >= settings.theta) {
        assert!(found.visited.binary_search(&feature).is_ok(), "feature {feature} was passed by");
    }
}

#[test]
fn kept_features_carry_the_share_of_the_whole_influence() {
    let graph = large_graph(2);
    let layout = graph.layout();
    let found = sweep(&graph, rows(&graph, 40));
    let total: f64 = found.nodes.iter().sum();
    let kept = |share| found.kept_features(layout, KeptFeatures::Share(share));
    for share in [0.3, 0.6, 0.9] {
        let features = kept(share);
        assert!(features.is_sorted_by(|a, b| a < b));
        let weakest = features.iter().map(|&f| found.nodes[f]).fold(f64::INFINITY, f64::min);
        // With every node that is as strong the share is reached, without the weakest it is not.
        let sum_of = |is_in: &dyn Fn(f64) -> bool| found.nodes.iter().filter(|&&i| is_in(i)).sum::<f64>();
        let next = layout.features().map(|f| found.nodes[f]).filter(|&i| i < weakest).fold(0.0, f64::max);
        assert!(sum_of(&|i| i > next) >= share * total * (1.0 - 1e-9), "{share}");
        assert!(sum_of(&|i| i > weakest) < share * total, "{share}");
    }
    assert!(kept(0.3).len() < kept(0.6).len() && kept(0.6).len() < kept(0.9).len());
    // All of the influence: every feature that has any.
    assert_eq!(kept(1.0), layout.features().filter(|&f| found.nodes[f] > 0.0).collect::<Vec<_>>());
    let three = found.kept_features(layout, KeptFeatures::Number(3));
    let others = layout.features().filter(|f| !three.contains(f)).map(|f| found.nodes[f]).fold(0.0, f64::max);
    assert!(three.len() == 3 && three.iter().all(|&f| found.nodes[f] >= others));
}

struct Forgetful;

impl RowSource for Forgetful {
    fn rows(&self, _: &[usize], _: &(dyn Fn(usize, &[f32]) + Sync)) -> Result<()> {
        Ok(())
    }
}

#[test]
fn bad_settings_and_missing_rows_are_errors() {
    let graph = large_graph(1);
    for bad in [-1.0, f64::NAN, f64::INFINITY] {
        let error = sweep_from(&graph.edge_rows, &graph, theta(bad)).unwrap_err();
        assert!(matches!(error, Error::Setting { name: "theta", .. }), "{error}");
    }
    assert!(sweep_from(&Forgetful, &graph, theta(0.1)).is_err());
}
