//! Sampled graphs of a real model: they hold what the whole graph holds of their nodes, and say what they estimate.

use std::sync::{Arc, Mutex};

use circuitscope::attribution::{Attribution, AttributionOptions, RowChoice, TargetRequest, Visits, attribute};
use circuitscope::circuits::{SummarySettings, summarize};
use circuitscope::export::{WireGraph, read_raw, write_raw};
use circuitscope::graph::{AttributionGraph, Circuit, WholeInfluence};
use circuitscope::job::{CancelToken, Job};
use circuitscope::prune::{PruneSettings, prune};
use circuitscope::replacement::Replacement;
use circuitscope::tracer::{InfluenceCheck, InfluenceCheckOptions};
use circuitscope::weights::{atlas_model, atlas_transcoders};
use circuitscope::{DeviceChoice, Error, Result, Setup, Tracer};

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
fn sampled_scores_of_every_reference_model_are_near_the_whole() {
    let mut n_cross_layer = 0;
    for case in cases() {
        let whole = trace_case(&case, RowChoice::All);
        let visits = Visits::Rows(1 + whole.graph.active_features.len() / 3);
        let part = trace_case(&case, RowChoice::Sampled { visits, nodes: None });
        let sampling = part.graph.meta.sampling.unwrap();
        let (found, exact) = (&part.graph.meta, &whole.graph.meta);
        for (found, exact, stated) in [
            (found.replacement_score, exact.replacement_score, sampling.replacement_uncertainty),
            (found.completeness_score, exact.completeness_score, sampling.completeness_uncertainty),
        ] {
            // A third of some hundred features is a small sample: the worst case, llama_relu/prompt2, is 0.012 off.
            assert!((found - exact).abs() <= f64::max(0.015, 2.0 * stated), "{}: {found} {exact} {stated}", case.name);
        }
        n_cross_layer += usize::from(case.name.contains("clt"));
    }
    assert!(n_cross_layer > 0, "cross-layer transcoders are among them");
}

#[test]
fn the_default_is_the_whole_graph_where_that_is_cheap() {
    let (default, whole) = (traced(RowChoice::default()), traced(RowChoice::All));
    assert_eq!(default.graph.selected_features, (0..whole.graph.active_features.len()).collect::<Vec<_>>());
    assert_eq!(default.graph.edge_rows.values(), whole.graph.edge_rows.values());
    // The files say which was asked for, and are the same in everything else.
    let mut meta = default.graph.meta.clone();
    assert_eq!((meta.settings.rows.as_str(), whole.graph.meta.settings.rows.as_str()), ("auto", "all"));
    meta.settings.rows.clone_from(&whole.graph.meta.settings.rows);
    meta.trace_id.clone_from(&whole.graph.meta.trace_id);
    assert_eq!(meta, whole.graph.meta);
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
        let args = [&["trace", PROMPT, "--slug", "sampled", "--force"], args].concat();
        let output = circuitscope(folder.path(), &args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        stdout(&output)
    };
    for args in [&["--rows", "40"][..], &["--theta", "0.05", "--nodes", "60"], &["--nodes", "60"]] {
        let printed = trace(args);
        for part in ["replacement 0.", " ± 0.0", "of the whole graph, estimated from ", "of the whole"] {
            assert!(printed.contains(part), "{args:?}: {part:?} is not in {printed}");
        }
        let inspected = |file: &str| stdout(&circuitscope(folder.path(), &["inspect", file]));
        assert_eq!(inspected("graphs/sampled.safetensors"), printed, "{args:?}");
        // A pruned graph has fewer edges to add up, and says the same of all else.
        let head = |text: &str| text.lines().take_while(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        let table = |text: &str| {
            let lines = text.lines().skip_while(|line| !line.starts_with("strongest nodes"));
            // Direct effects of nodes of one name are such a sum.
            let is_effect = |cell: &&str| cell.starts_with(['+', '-']) || *cell == ".";
            lines.map(|line| line.split_whitespace().filter(|cell| !is_effect(cell)).collect()).collect::<Vec<String>>()
        };
        let pruned = inspected("graphs/sampled.json");
        assert_eq!(head(&pruned), head(&printed), "{args:?}");
        assert!(head(&pruned).len() >= 4 && table(&pruned).len() > 5, "{pruned}");
        assert_eq!(table(&pruned), table(&printed), "{args:?}");
    }
    // Every row and few nodes: exact influence. All of both: the graph as it is.
    let exact = trace(&["--rows", "all", "--nodes", "60"]);
    assert!(exact.contains("± 0.000"));
    let says_few = |printed: &str| printed.contains(": too few for ± to be trusted");
    assert!(says_few(&trace(&["--rows", "5"])));
    assert!(!says_few(&exact) && !says_few(&trace(&["--rows", "150"])));
    // Where every row is no more work than a sample, a number of nodes alone leaves the influence exact.
    assert_eq!(trace(&["--nodes", "60"]), exact);
    assert_eq!(trace(&["--rows", "all"]), trace(&["--max-features", "all"]));
    for (args, part) in [
        (&["--rows", "0"][..], "rows"),
        (&["--nodes", "0"], "--nodes"),
        (&["--rows", "all", "--nodes", "0"], "--nodes"),
        (&["--theta=-1"], "theta"),
        (&["--rows", "5", "--theta", "1"], "cannot be used with"),
        (&["--rows", "5", "--max-features", "9"], "cannot be used with"),
        (&["--rows", "some"], "expected a number or `all`"),
    ] {
        refused_with(folder.path(), &[&["trace", PROMPT], args].concat(), &[part]);
    }
}

fn tracer() -> Tracer {
    Tracer::open(Setup::atlas().device(DeviceChoice::Cpu)).unwrap()
}

fn checked(tracer: &Tracer, graph: &AttributionGraph, n_features: usize) -> InfluenceCheck {
    tracer.verify_influence(graph, &InfluenceCheckOptions { n_features, seed: 1 }, &Job::default()).unwrap()
}

#[test]
fn verified_influence_is_compared_with_that_of_the_whole_graph() {
    let (tracer, whole, part) = (tracer(), traced(RowChoice::All), sampled(Visits::Rows(60), Some(50)));
    let found = checked(&tracer, &part.graph, 30);
    assert_eq!(found.features.len(), 30);
    assert_eq!((found.n_rows, found.n_top), (whole.n_rows, whole.graph.active_features.len()));
    assert_eq!(found.n_visited, Some(part.graph.meta.sampling.unwrap().n_visited));
    close(found.replacement.exact, whole.graph.meta.replacement_score, 1e-6, 0.0, "replacement");
    close(found.completeness.exact, whole.graph.meta.completeness_score, 1e-6, 0.0, "completeness");
    assert_eq!(found.replacement.stated, part.graph.meta.replacement_score);
    let weight: f64 = whole.graph.target_probabilities.iter().map(|&weight| f64::from(weight)).sum();
    let estimated = part.graph.whole_influence().unwrap();
    let mut nodes = Vec::new();
    let (mut within_one, mut within_two) = (0, 0);
    for feature in &found.features {
        let of_whole = whole.graph.layout().index(feature.node).unwrap();
        close(feature.exact, whole.influence.nodes[of_whole] / weight, 1e-7, 1e-4, "exact");
        close(feature.stated, estimated.nodes[of_whole] / weight, 1e-12, 1e-9, "stated");
        close(feature.uncertainty, f64::from(estimated.uncertainty[of_whole]) / weight, 1e-12, 1e-9, "uncertainty");
        assert!(part.graph.layout().index(feature.node).is_some(), "it is a node of the graph");
        let distance = (feature.stated - feature.exact).abs() - 1e-3 * feature.exact;
        within_one += usize::from(distance <= feature.uncertainty);
        within_two += usize::from(distance <= 2.0 * feature.uncertainty);
        nodes.push(feature.node);
    }
    nodes.sort();
    nodes.dedup();
    assert_eq!(nodes.len(), 30, "each at most once");
    assert_eq!((found.share_within_one, found.share_within_two), (within_one as f64 / 30.0, within_two as f64 / 30.0));
    assert_eq!(found.passed, Some(true));
    assert!(found.median_error_of_top > 0.0);
    let other = tracer
        .verify_influence(&part.graph, &InfluenceCheckOptions { n_features: 30, seed: 2 }, &Job::default())
        .unwrap();
    assert!(other.features.iter().any(|feature| !nodes.contains(&feature.node)), "another seed draws others");
}

#[test]
fn verified_influence_fails_where_it_is_wrong_and_passes_no_judgement_on_a_part() {
    let tracer = tracer();
    let mut wrong = sampled(Visits::Rows(60), Some(50)).graph;
    let mut influence = wrong.whole_influence().unwrap().clone();
    influence.nodes.iter_mut().for_each(|influence| *influence *= 1.5);
    wrong.set_whole_influence(influence).unwrap();
    let found = checked(&tracer, &wrong, 50);
    assert_eq!(found.passed, Some(false), "{}", found.share_within_two);

    let whole = checked(&tracer, &traced(RowChoice::All).graph, usize::MAX);
    assert_eq!((whole.passed, whole.share_within_one, whole.share_of_top_found), (Some(true), 1.0, 1.0));
    let capped = checked(&tracer, &traced(RowChoice::BestFirst { max_features: 20 }).graph, 20);
    assert_eq!((capped.passed, capped.n_visited), (None, None));
    assert!(capped.replacement.stated < capped.replacement.exact - 0.01, "best-first is biased");
}

#[test]
fn influence_is_verified_on_targets_of_every_kind() {
    let tracer = tracer();
    let d_model = tracer.replacement().model.config.d_model;
    let direction = |vec: Vec<f32>| TargetRequest::Direction { vec, label: "a direction".into() };
    let vec: Vec<f32> = (0..d_model).map(|i| (i as f32).sin()).collect();
    let (pos, layer, feature) = {
        let found = traced(RowChoice::All).graph;
        let last = found.active_features.last().unwrap();
        (last.pos as usize, last.layer as usize, last.feature as usize)
    };
    let [first, second] = [" Austin", " Dallas"].map(|text| tracer.token(text).unwrap());
    let kinds: [Vec<TargetRequest>; 4] = [
        vec![TargetRequest::TokenDiff(first, second)],
        vec![direction(vec)],
        vec![TargetRequest::Feature { layer, feature, pos }],
        vec![TargetRequest::Token(7), TargetRequest::Feature { layer, feature, pos: pos - 1 }],
    ];
    for targets in kinds {
        let name = format!("{targets:?}");
        let options = |rows| AttributionOptions { rows, targets: targets.clone(), ..Default::default() };
        let whole = tracer.trace(PROMPT, &options(RowChoice::All)).unwrap();
        let sampled = RowChoice::Sampled { visits: Visits::Rows(40), nodes: Some(50) };
        let part = tracer.trace(PROMPT, &options(sampled)).unwrap();
        let found = checked(&tracer, part.graph(), 30);
        close(found.replacement.exact, whole.graph().meta.replacement_score, 1e-6, 0.0, &name);
        close(found.completeness.exact, whole.graph().meta.completeness_score, 1e-6, 0.0, &name);
        let weight: f64 = whole.graph().target_probabilities.iter().map(|&weight| f64::from(weight)).sum();
        for checked in &found.features {
            let node = whole.graph().layout().index(checked.node).unwrap();
            close(checked.exact, whole.influence().nodes[node] / weight, 1e-7, 1e-4, &name);
        }
        assert!(!found.features.is_empty(), "{name}");
    }

    // Files of older versions do not say what was asked for.
    let options = AttributionOptions { targets: vec![TargetRequest::TokenDiff(first, second)], ..Default::default() };
    let replacement = tracer.replacement();
    let tokens = replacement.tokenizer.encode_prompt(PROMPT).unwrap();
    let linear = replacement.linearize(&tokens, &Job::default()).unwrap();
    let mut older = attribute(replacement, &linear, PROMPT, &options, &Job::default()).unwrap().graph;
    older.meta_mut().trace_id.clear();
    let options = InfluenceCheckOptions { n_features: 3, seed: 0 };
    let message = tracer.verify_influence(&older, &options, &Job::default()).unwrap_err().to_string();
    assert!(message.contains("whose direction the file does not tell"), "{message}");
}

#[test]
fn a_sample_on_a_device_is_the_sample_on_the_cpu() {
    let rows = RowChoice::Sampled { visits: Visits::Rows(60), nodes: Some(50) };
    let on_cpu = Replacement::open(atlas_model().unwrap(), &atlas_transcoders(), &candle_core::Device::Cpu).unwrap();
    let tokens = on_cpu.tokenizer.encode_prompt(PROMPT).unwrap();
    let linear = on_cpu.linearize(&tokens, &Job::default()).unwrap();
    let options = AttributionOptions { rows, ..Default::default() };
    let on_cpu = attribute(&on_cpu, &linear, PROMPT, &options, &Job::default()).unwrap().graph;
    let here = traced(rows).graph;
    let (found, expected) = (here.whole_influence().unwrap(), on_cpu.whole_influence().unwrap());
    close_all(&found.nodes, &expected.nodes, 1e-7, 1e-3, "influence");
    close_all(&found.uncertainty, &expected.uncertainty, 1e-7, 1e-3, "uncertainty");
    assert_eq!(here.selected_features, on_cpu.selected_features);
    let (found, expected) = (here.meta.sampling.unwrap(), on_cpu.meta.sampling.unwrap());
    assert_eq!(found.n_visited, expected.n_visited);
    close(found.replacement_uncertainty, expected.replacement_uncertainty, 1e-7, 1e-3, "replacement");
    close(found.completeness_uncertainty, expected.completeness_uncertainty, 1e-7, 1e-3, "completeness");
    close(here.meta.completeness_score, on_cpu.meta.completeness_score, 1e-6, 0.0, "completeness");
}

#[test]
fn verify_prints_stated_and_exact_influence() {
    let folder = tempfile::tempdir().unwrap();
    let trace = ["trace", PROMPT, "--rows", "60", "--nodes", "50", "--slug", "g", "--quiet"];
    assert!(circuitscope(folder.path(), &trace).status.success());
    let graph = "graphs/g.safetensors";
    let output = circuitscope(folder.path(), &["verify", graph, "--influence=7", "--format", "json"]);
    assert!(output.status.success());
    let json: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(json["influence"]["features"].as_array().unwrap().len(), 7);
    assert_eq!((json["passed"].as_bool(), json["influence"]["passed"].as_bool()), (Some(true), Some(true)));
    let text = stdout(&circuitscope(folder.path(), &["verify", graph, "--influence"]));
    for part in ["influence   holds: estimated from ", "replacement   0.", ", exact 0.", "20 random", "within two"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let without = stdout(&circuitscope(folder.path(), &["verify", graph]));
    assert!(text.starts_with(&without) && text.len() > without.len());
}

#[test]
fn a_sampled_trace_writes_the_same_bytes_with_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let traced = |threads: &str| {
        let trace = ["trace", PROMPT, "--rows", "60", "--nodes", "50", "--slug", "g", "--quiet", "--threads", threads];
        assert!(circuitscope(folder.path(), &trace).status.success());
        ["safetensors", "json"].map(|kind| std::fs::read(folder.path().join("graphs/g").with_extension(kind)).unwrap())
    };
    let one = traced("1");
    assert!(one.iter().all(|file| file.len() > 1000));
    for threads in ["2", "3", "7"] {
        assert!(traced(threads) == one, "{threads} threads");
    }
}
