//! Sampled graphs of a real model: they hold what the whole graph holds of their nodes, and say what they estimate.

use std::sync::{Arc, Mutex};

use circuitscope::attribution::{Attribution, AttributionOptions, RowChoice, Visits, attribute};
use circuitscope::circuits::{SummarySettings, summarize};
use circuitscope::export::{WireGraph, read_raw, write_raw};
use circuitscope::graph::{Circuit, WholeInfluence};
use circuitscope::job::{CancelToken, Job};
use circuitscope::prune::{PruneSettings, prune};
use circuitscope::replacement::Replacement;
use circuitscope::weights::{atlas_model, atlas_transcoders};
use circuitscope::{Error, Result};

use crate::reference::{Case, cases};
use crate::support::{PROMPT, circuitscope, close, close_all, device, refused_with, stdout};

fn atlas(rows: RowChoice, job: &Job) -> Result<Attribution> {
    let replacement = Replacement::open(atlas_model()?, &atlas_transcoders(), &device())?;
    let tokens = replacement.tokenizer.encode_prompt(PROMPT)?;
    let linear = replacement.linearize(&tokens, &Job::default())?;
    attribute(&replacement, &linear, PROMPT, &AttributionOptions { rows, ..Default::default() }, job)
}

fn traced(rows: RowChoice) -> Attribution {
    atlas(rows, &Job::default()).unwrap()
}

fn sampled(visits: Visits, nodes: Option<usize>) -> Attribution {
    traced(RowChoice::Sampled { visits, nodes })
}

fn circuit(found: &Attribution) -> Circuit {
    prune(&found.graph, &found.influence, &PruneSettings::default()).unwrap().circuit(&found.graph).unwrap()
}

/// Whether `part` is what `whole`, a graph of all active features, says of the nodes of `part`.
fn assert_part_of_whole(part: &Attribution, whole: &Attribution, name: &str) {
    let (graph, all) = (&part.graph, &whole.graph);
    let (layout, all_layout) = (graph.layout(), all.layout());
    assert_eq!(graph.active_features, all.active_features, "{name}");
    let in_whole = |node: usize| all_layout.index(layout.node(node).unwrap()).unwrap();
    for row in 0..layout.n_rows() {
        let node = in_whole(layout.node_of_row(row).unwrap());
        let all_row = (0..all_layout.n_rows()).find(|&row| all_layout.node_of_row(row) == Some(node)).unwrap();
        let expected: Vec<f32> = (0..layout.n_nodes()).map(|node| all.row(all_row)[in_whole(node)]).collect();
        close_all(graph.row(row), &expected, 1e-5, 1e-4, &format!("{name}: row {row}"));
        let sum = f64::from(graph.whole_influence().unwrap().row_abs_sums[row]);
        close(sum, whole.influence.row_abs_sums[all_row], 1e-5, 1e-4, &format!("{name}: sum of row {row}"));
    }
    assert!(graph.meta.row_identity_error < 1e-4, "{name}: {}", graph.meta.row_identity_error);
    if graph.selected_features.len() < graph.active_features.len() {
        assert!(graph.unselected_effect.iter().any(|&effect| effect != 0.0), "{name}: something was left out");
    }
}

fn trace_case(case: &Case, rows: RowChoice) -> Attribution {
    let replacement = case.replacement();
    let tokens = replacement.tokenizer.encode_prompt(case.prompt()).unwrap();
    let linear = replacement.linearize(&tokens, &Job::default()).unwrap();
    let options = AttributionOptions { rows, ..case.options() };
    attribute(&replacement, &linear, case.prompt(), &options, &Job::default()).unwrap()
}

#[test]
fn rows_of_a_sampled_graph_are_those_of_the_whole_and_add_up() {
    for case in cases() {
        let whole = trace_case(&case, RowChoice::All);
        let visits = Visits::Rows(1 + whole.graph.active_features.len() / 4);
        let part = trace_case(&case, RowChoice::Sampled { visits, nodes: Some(7) });
        assert!(part.graph.selected_features.len() <= 7, "{}", case.name);
        assert_part_of_whole(&part, &whole, &case.name);
    }
    assert_part_of_whole(&sampled(Visits::Rows(30), Some(40)), &traced(RowChoice::All), "atlas");
}

#[test]
fn without_theta_influence_and_scores_of_a_sampled_graph_are_exact() {
    let (whole, part) = (traced(RowChoice::All), sampled(Visits::Theta(0.0), Some(40)));
    let estimated = part.graph.whole_influence().unwrap();
    let n = estimated.nodes.len();
    close_all(&estimated.nodes, &whole.influence.nodes[..n], 1e-7, 1e-4, "influence");
    assert!(estimated.uncertainty.iter().all(|&uncertainty| uncertainty == 0.0));
    let (found, exact) = (&part.graph.meta, &whole.graph.meta);
    close(found.replacement_score, exact.replacement_score, 1e-6, 0.0, "replacement");
    close(found.completeness_score, exact.completeness_score, 1e-6, 0.0, "completeness");
    let of_nodes = &part.influence.nodes[part.graph.layout().features()];
    assert_eq!(of_nodes.len(), 40);
    assert!(of_nodes.iter().all(|&influence| influence > 0.0));
}

#[test]
fn pruning_a_sampled_graph_of_exact_influence_keeps_what_pruning_the_whole_keeps() {
    let (whole, part) = (circuit(&traced(RowChoice::All)), circuit(&sampled(Visits::Theta(0.0), None)));
    assert!(whole.graph().node_count() > 20);
    let ids = |circuit: &Circuit| circuit.graph().node_weights().map(|node| node.id).collect::<Vec<_>>();
    assert_eq!(ids(&part), ids(&whole));
    let shares = |circuit: &Circuit| -> Vec<f64> {
        circuit.graph().node_weights().map(|node| node.influence.unwrap_or(1.0)).collect()
    };
    close_all(&shares(&part), &shares(&whole), 1e-5, 0.0, "cumulative shares are of the whole influence");
    let links = |circuit: &Circuit| {
        let graph = circuit.graph();
        let ends = graph.edge_indices().map(|edge| graph.edge_endpoints(edge).unwrap());
        ends.map(|(source, target)| (source.index(), target.index())).collect::<Vec<_>>()
    };
    assert_eq!(links(&part), links(&whole));
}

#[test]
fn few_rows_are_near_the_whole_and_say_how_near() {
    let (whole, part) = (traced(RowChoice::All), sampled(Visits::Rows(60), None));
    let sampling = part.graph.meta.sampling.unwrap();
    assert!((20..=120).contains(&sampling.n_visited), "{sampling:?}");
    let (found, exact) = (&part.graph.meta, &whole.graph.meta);
    for (found, exact, stated) in [
        (found.replacement_score, exact.replacement_score, sampling.replacement_uncertainty),
        (found.completeness_score, exact.completeness_score, sampling.completeness_uncertainty),
    ] {
        assert!(
            (found - exact).abs() < 0.01 && (found - exact).abs() <= 3.0 * stated + 1e-9,
            "{found} {exact} {stated}"
        );
    }
    assert!(part.n_rows < whole.n_rows, "a sample is less work");
}

#[test]
fn the_default_is_the_whole_graph_where_that_is_cheap() {
    let (default, whole) = (traced(RowChoice::default()), traced(RowChoice::All));
    assert_eq!(default.graph.selected_features, (0..whole.graph.active_features.len()).collect::<Vec<_>>());
    assert_eq!(default.graph.edge_rows.values(), whole.graph.edge_rows.values());
    assert_eq!(default.graph.meta, whole.graph.meta);
    assert!(default.graph.whole_influence().is_none() && default.graph.meta.sampling.is_none());
}

#[test]
fn a_sampled_graph_comes_back_from_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("graph.safetensors");
    let found = sampled(Visits::Rows(40), Some(50));
    write_raw(&found.graph, &path).unwrap();
    let read = read_raw(&path).unwrap();
    assert_eq!(read.whole_influence(), found.graph.whole_influence());
    assert_eq!(read.meta, found.graph.meta);
    assert_eq!(read.influence(), found.influence);

    let traced = circuit(&found);
    let pruned = prune(&read, &read.influence(), &PruneSettings::default()).unwrap().circuit(&read).unwrap();
    let again = WireGraph::new(&pruned, "slug").unwrap().circuit().unwrap();
    assert_eq!(again.meta.sampling, found.graph.meta.sampling);
    let estimates = |circuit: &Circuit| circuit.graph().node_weights().map(|node| node.estimate).collect::<Vec<_>>();
    assert_eq!(estimates(&again), estimates(&traced));
    assert!(estimates(&traced).iter().flatten().any(|estimate| estimate.share > 0.0 && estimate.uncertainty > 0.0));
    let summary = summarize(&again, &SummarySettings::default()).unwrap();
    assert!(summary.scores.sampling.is_some() && summary.strongest.iter().all(|node| node.estimate.is_some()));
}

#[test]
fn the_influence_of_another_graph_is_refused() {
    let mut graph = sampled(Visits::Rows(40), Some(50)).graph;
    let good = graph.whole_influence().unwrap().clone();
    type Change = fn(&mut WholeInfluence);
    let changes: [(&str, Change); 5] = [
        ("influence", |whole| whole.nodes.truncate(1)),
        ("influence_uncertainty", |whole| whole.uncertainty.push(0.0)),
        ("row_abs_sums", |whole| whole.row_abs_sums.truncate(1)),
        ("influence", |whole| whole.nodes[3] = f64::NAN),
        ("influence_uncertainty", |whole| whole.uncertainty[0] = -1.0),
    ];
    for (name, change) in changes {
        let mut bad = good.clone();
        change(&mut bad);
        let message = graph.set_whole_influence(bad).unwrap_err().to_string();
        assert!(message.contains(name), "{message}");
    }
    graph.set_whole_influence(good).unwrap();
}

#[test]
fn a_sampled_trace_tells_its_progress_and_is_cancelled_in_both_passes() {
    let choice = RowChoice::Sampled { visits: Visits::Rows(60), nodes: Some(50) };
    for cancelled in [None, Some("influence rows"), Some("rows")] {
        let told = Arc::new(Mutex::new(Vec::new()));
        let (seen, token) = (told.clone(), CancelToken::default());
        let job = Job::default().with_cancel(token.clone()).with_progress(move |progress| {
            seen.lock().unwrap().push(progress);
            if Some(progress.phase) == cancelled {
                token.cancel();
            }
        });
        let found = atlas(choice, &job);
        let told = told.lock().unwrap();
        let in_phase = |phase| told.iter().filter(|progress| progress.phase == phase).collect::<Vec<_>>();
        assert!(told.iter().all(|progress| progress.done <= progress.total));
        match cancelled {
            Some(phase) => {
                assert!(matches!(found, Err(Error::Cancelled)));
                let last = told.last().unwrap();
                assert!(last.phase == phase && last.done < last.total, "{last:?}");
            }
            None => {
                let graph = found.unwrap().graph;
                let n_rows = graph.layout().n_rows();
                assert!(!in_phase("influence rows").is_empty());
                assert!(in_phase("rows").iter().any(|progress| progress.done == n_rows && progress.total == n_rows));
            }
        }
    }
}

#[test]
fn trace_and_inspect_say_that_rows_were_sampled_and_how_near_the_scores_are() {
    let folder = tempfile::tempdir().unwrap();
    let trace = |args: &[&str]| {
        let args = [&["trace", PROMPT, "--slug", "sampled"], args].concat();
        let output = circuitscope(folder.path(), &args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        stdout(&output)
    };
    for args in [&["--rows", "40"][..], &["--theta", "0.05", "--nodes", "60"], &["--nodes", "60"]] {
        let printed = trace(args);
        for part in ["replacement 0.", " ± 0.0", "of the whole graph, estimated from ", "of the whole"] {
            assert!(printed.contains(part), "{args:?}: {part:?} is not in {printed}");
        }
        for file in ["graphs/sampled.safetensors", "graphs/sampled.json"] {
            let inspected = stdout(&circuitscope(folder.path(), &["inspect", file]));
            assert_eq!(inspected, printed, "{args:?}: {file}");
        }
    }
    // Every row and few nodes: exact influence. All of both: the graph as it is.
    assert!(trace(&["--rows", "all", "--nodes", "60"]).contains("± 0.000"));
    assert_eq!(trace(&["--rows", "all"]), trace(&["--max-features", "all"]));
    for (args, part) in [
        (&["--rows", "0"][..], "rows"),
        (&["--theta=-1"], "theta"),
        (&["--rows", "5", "--theta", "1"], "cannot be used with"),
        (&["--rows", "5", "--max-features", "9"], "cannot be used with"),
        (&["--rows", "some"], "expected a number or `all`"),
    ] {
        refused_with(folder.path(), &[&["trace", PROMPT], args].concat(), &[part]);
    }
}
