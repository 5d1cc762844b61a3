//! Traces that go on from finished rows: whatever was done before, the graph is that of a trace that was never interrupted.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use circuitscope::attribution::{AttributionOptions, FinishedPart, RowChoice, RowStore, Visits, attribute};
use circuitscope::export::write_raw;
use circuitscope::job::{CancelToken, Job};
use circuitscope::replacement::LinearModel;
use circuitscope::tracer::FinishedFile;
use circuitscope::{Error, ErrorKind, Result};

use crate::support::{PROMPT, atlas, circuitscope, refused_with};

/// A graph with rows of every kind: some visited, some kept, errors that are no nodes.
fn options(store: Option<&Path>) -> AttributionOptions {
    let finished = store.map(|path| Arc::new(FinishedFile::every(path, Duration::ZERO)) as Arc<dyn RowStore>);
    let rows = RowChoice::Sampled { visits: Visits::Rows(40), nodes: Some(25) };
    AttributionOptions { rows, finished, ..Default::default() }
}

fn linear() -> (circuitscope::replacement::Replacement, LinearModel) {
    let replacement = atlas();
    let tokens = replacement.tokenizer.encode_prompt(PROMPT).unwrap();
    let linear = replacement.linearize(&tokens, &Job::default()).unwrap();
    (replacement, linear)
}

/// A job that ends after so many reports.
fn ending_after(reports: usize) -> Job {
    let (seen, token) = (AtomicUsize::new(0), CancelToken::default());
    let cancel = token.clone();
    let job = Job::default().with_cancel(token);
    job.with_progress(move |_| {
        if seen.fetch_add(1, Ordering::Relaxed) + 1 >= reports {
            cancel.cancel();
        }
    })
}

#[test]
fn a_trace_that_goes_on_is_the_trace_that_was_never_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    let (replacement, linear) = linear();
    let trace = |store: Option<&Path>, job: &Job| -> Result<(Vec<u8>, f64)> {
        let found = attribute(&replacement, &linear, PROMPT, &options(store), job)?;
        let path = folder.path().join("graph.safetensors");
        write_raw(&found.graph, &path).unwrap();
        Ok((std::fs::read(&path).unwrap(), found.graph.meta.replacement_score))
    };
    let whole = trace(None, &Job::default()).unwrap();
    let (mut in_sweep, mut in_rows) = (0, 0);
    for reports in 2.. {
        let path = folder.path().join(format!("{reports}.rows"));
        let ended = trace(Some(&path), &ending_after(reports));
        // What is done is told in two numbers: how far the sweep is, and whether rows have begun.
        match FinishedFile::new(&path).read().unwrap().map(|kept| kept.about.done) {
            Some(FinishedPart::Sweep { .. }) => in_sweep += 1,
            Some(FinishedPart::Rows) => in_rows += 1,
            None => {}
        }
        let Err(error) = ended else { break };
        assert!(matches!(error, Error::Cancelled), "{error}");
        assert_eq!(trace(Some(&path), &Job::default()).unwrap(), whole, "after {reports} reports");
        // Interrupted once more, further on.
        assert_eq!(trace(Some(&path), &Job::default()).unwrap(), whole, "again after {reports} reports");
    }
    assert!(in_sweep > 0 && in_rows > 0, "interrupted {in_sweep} times in the sweep, {in_rows} times among the rows");
}

#[test]
fn finished_rows_that_are_damaged_or_of_another_graph_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (replacement, linear) = linear();
    let path = folder.path().join("kept.rows");
    let trace = |options: &AttributionOptions| attribute(&replacement, &linear, PROMPT, options, &Job::default());
    trace(&options(Some(&path))).unwrap();
    let whole = std::fs::read(&path).unwrap();

    let other = AttributionOptions { max_logits: 3, ..options(Some(&path)) };
    let error = trace(&other).unwrap_err().to_string();
    assert!(error.contains("kept.rows") && error.contains("another graph: trace_id"), "{error}");

    let header_end = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(whole[8..header_end].to_vec()).unwrap();
    let with_header = |from: &str, to: &str| {
        assert!(header.contains(from), "{from}: {header}");
        let header = header.replacen(from, to, 1);
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes().chain(whole[header_end..].iter().copied()));
        bytes
    };
    let damaged = [
        whole[..whole.len() - 5].to_vec(),
        whole[..3].to_vec(),
        Vec::new(),
        with_header("\"nodes\"", "\"sedon\""),
        with_header("\\\"done\\\":\\\"Rows\\\"", "\\\"done\\\":\\\"Cols\\\""),
        with_header("trace_id", "trade_id"),
        with_header("\"circuitscope\"", "\"circuitscape\""),
    ];
    for (at, bytes) in damaged.iter().enumerate() {
        std::fs::write(&path, bytes).unwrap();
        let error = trace(&options(Some(&path))).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Format), "{at}: {error}");
        assert!(error.to_string().contains("kept.rows"), "{at}: {error}");
        assert_eq!(std::fs::read(&path).unwrap(), *bytes, "{at}: the file stays as it was");
    }
}

#[test]
fn the_file_of_finished_rows_is_there_while_a_trace_runs_and_gone_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let sample = ["trace", PROMPT, "--rows", "40", "--nodes", "25", "--slug", "dallas", "--quiet"];
    let output = circuitscope(at, &[&sample[..], &["--resume"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut files: Vec<String> =
        at.join("graphs").read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    assert_eq!(files, ["dallas.json", "dallas.safetensors", "graph-metadata.json"]);
    let whole = std::fs::read(at.join("graphs/dallas.safetensors")).unwrap();

    // Rows of another prompt, and none at all.
    std::fs::write(at.join("graphs/dallas.rows"), "no rows").unwrap();
    refused_with(at, &[&sample[..], &["--resume"]].concat(), &["dallas.rows"]);
    assert_eq!(std::fs::read(at.join("graphs/dallas.safetensors")).unwrap(), whole);
    for refused in ["--rows all", "--max-features 5"] {
        let words: Vec<&str> = refused.split(' ').collect();
        refused_with(at, &[&["trace", PROMPT, "--resume"], &words[..]].concat(), &[]);
    }
}
