//! The two files of a trace: under a name that tells them from other traces', and never of two traces.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{PROMPT, circuitscope, copy_folder, fixture, refused, refused_with, stdout};

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The metadata of a raw graph.
fn meta(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    serde_json::from_str(&header.metadata().as_ref().unwrap()["circuitscope"]).unwrap()
}

/// Names and bytes of a folder's files.
fn files(folder: &Path) -> BTreeSet<(String, Vec<u8>)> {
    let entries = folder.read_dir().unwrap().map(|entry| entry.unwrap());
    // The list of a folder's graphs is all of theirs.
    let entries = entries.filter(|entry| entry.file_name() != "graph-metadata.json");
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

#[track_caller]
fn trace(folder: &Path, args: &[&str]) {
    let output = circuitscope(folder, &[&["trace"], args].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn traces_that_differ_get_files_that_differ() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    copy_folder(&fixture("atlas/model"), &at.join("model"));
    copy_folder(&fixture("atlas/transcoders"), &at.join("transcoders"));
    let long = format!("{} {PROMPT}", "The capital of the state containing Dallas is".repeat(2));
    let (texas, ohio) = (format!("{long} Texas"), format!("{long} Ohio"));
    let graphs = at.join("graphs");
    let mut n_files = 0;
    for args in [
        &[PROMPT][..],
        &[PROMPT, "--target", " Austin"],
        &[PROMPT, "--target", " Sacramento"],
        &[PROMPT, "--target-diff", " Austin", " Sacramento"],
        &[PROMPT, "--target-feature", "3_955_8"],
        &[PROMPT, "--position", "7"],
        &[PROMPT, "--max-logits", "2"],
        &[PROMPT, "--logit-prob", "0.5"],
        &[PROMPT, "--max-features", "100"],
        &[PROMPT, "--max-features", "100", "--batch-size", "16"],
        &[PROMPT, "--node-threshold", "0.5"],
        &[PROMPT, "--edge-threshold", "0.5"],
        &[PROMPT, "--model", "model", "--transcoders", "transcoders"],
        &["the capital of the state containing Dallas is"],
        &["The capital of the state containing Dallas is."],
        &[&texas],
        &[&ohio],
    ] {
        let before = if graphs.exists() { files(&graphs) } else { BTreeSet::new() };
        trace(at, args);
        let after = files(&graphs);
        assert!(after.is_superset(&before), "{args:?} changed a file of another trace");
        assert_eq!(after.len(), before.len() + 2, "{args:?} made two files");
        n_files = after.len();
        // The same again takes the place of itself.
        trace(at, args);
        assert_eq!(files(&graphs), after, "{args:?}");
    }
    assert_eq!(n_files, 34);
    for (name, _) in files(&graphs).iter().filter(|(name, _)| name.ends_with(".json")) {
        let file = json(&graphs.join(name));
        let stem = name.strip_suffix(".json").unwrap();
        assert_eq!(file["metadata"]["slug"], stem);
        let raw = meta(&graphs.join(format!("{stem}.safetensors")));
        assert_eq!(raw["trace_id"], file["metadata"]["trace_id"]);
        assert_eq!(raw["prompt"], file["metadata"]["prompt"]);
    }
}

#[test]
fn a_name_that_is_taken_is_refused_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    trace(at, &[PROMPT, "--slug", "g"]);
    let before = files(&at.join("graphs"));
    let named = |args: &[&'static str]| [&["trace"], args, &["--slug", "g"]].concat();
    refused_with(at, &named(&["Dallas is in"]), &["graphs/g.safetensors", "Dallas is in", PROMPT, "--force", "--slug"]);
    refused_with(at, &named(&[PROMPT, "--target", " Austin"]), &["g.safetensors", "targets or settings"]);
    refused_with(at, &named(&[PROMPT, "--no-json", "--max-features", "9"]), &["g.safetensors"]);
    refused_with(at, &named(&[PROMPT, "--node-threshold", "0.4"]), &["g.json", "thresholds"]);
    assert_eq!(files(&at.join("graphs")), before);
    // What somebody has worked on is not lost to the same trace either.
    let pin = ["inspect", "graphs/g.json", "--carry", "0.5", "--save", "graphs/pinned.json"];
    assert!(circuitscope(at, &pin).status.success());
    std::fs::rename(at.join("graphs/pinned.json"), at.join("graphs/g.json")).unwrap();
    refused_with(at, &named(&[PROMPT]), &["g.json", "pinned"]);
    std::fs::write(at.join("graphs/g.json"), "{}").unwrap();
    // What no trace has written is not replaced at all.
    refused_with(at, &named(&[PROMPT]), &["g.json", "no graph"]);
    refused_with(at, &named(&[PROMPT, "--force"]), &["g.json", "no graph"]);
    std::fs::remove_file(at.join("graphs/g.json")).unwrap();

    trace(at, &["Dallas is in", "--slug", "g", "--force"]);
    assert_eq!(meta(&at.join("graphs/g.safetensors"))["prompt"], "Dallas is in");
    assert_eq!(json(&at.join("graphs/g.json"))["metadata"]["prompt"], "Dallas is in");
}

#[test]
fn two_programs_that_write_one_name_leave_the_files_of_one_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let start = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_circuitscope"));
        command.current_dir(at).args(["trace", "--quiet", "--threads", "1", "--slug", "g"]).args(args);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let prompts = [PROMPT, "The capital of the state containing Oakland is"];
    let mut winners = BTreeSet::new();
    for round in 0..30 {
        // Half of the rounds replace what is there, half begin with nothing.
        let forced: &[&str] = if round % 2 == 0 { &["--force"] } else { &[] };
        if forced.is_empty() {
            std::fs::remove_dir_all(at.join("graphs")).unwrap();
        }
        let children = prompts.map(|prompt| start(&[&[prompt], forced].concat()));
        let codes = children.map(|mut child| child.wait().unwrap().code());
        let n_done = codes.iter().filter(|code| **code == Some(0)).count();
        assert!(codes.iter().all(|code| matches!(code, Some(0 | 2))), "{codes:?}");
        assert_eq!(n_done, if forced.is_empty() { 1 } else { 2 }, "{codes:?} in round {round}");
        let (raw, json) = (meta(&at.join("graphs/g.safetensors")), json(&at.join("graphs/g.json")));
        assert_eq!(raw["prompt"], json["metadata"]["prompt"], "round {round}");
        assert_eq!(raw["trace_id"], json["metadata"]["trace_id"], "round {round}");
        winners.insert(raw["prompt"].to_string());
    }
    assert_eq!(files(&at.join("graphs")).len(), 2);
}

#[test]
fn files_of_one_name_and_two_traces_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    trace(at, &[PROMPT, "--slug", "g"]);
    let inspect = |graph: &str| circuitscope(at, &["inspect", graph, "--top", "1", "--paths", "0"]);
    for graph in ["graphs/g.json", "graphs/g.safetensors"] {
        assert_eq!(String::from_utf8_lossy(&inspect(graph).stderr), "", "they belong together");
    }
    // As a kill between the two files leaves them.
    trace(at, &["Dallas is in", "--slug", "g", "--force", "--no-json"]);
    for (graph, partner) in [("graphs/g.json", "graphs/g.safetensors"), ("graphs/g.safetensors", "graphs/g.json")] {
        let output = inspect(graph);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.contains(partner) && said.contains("another trace"), "{said}");
    }
}

#[test]
fn slugs_are_names() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    trace(at, &[PROMPT, "--slug", "g"]);
    let long = "x".repeat(201);
    let before = files(&at.join("graphs"));
    for name in ["", ".", "..", "../x", "a/b", "/tmp/x", "a\\b", "a\nb", "\u{1b}[2J", "\u{202e}x", " x", &long] {
        let option = format!("--slug={name}");
        let message = refused(at, &["trace", PROMPT, &option]);
        assert!(message.contains("--slug") && message.contains("the name"), "{message}");
        refused(at, &["prune", "graphs/g.safetensors", "-o", "x.json", &option]);
    }
    assert_eq!(files(&at.join("graphs")), before);
    assert_eq!(at.read_dir().unwrap().count(), 1, "nothing was written beside the folder either");
    let name = "日本 & \"x\" (1)";
    let output = circuitscope(at, &["trace", PROMPT, "--slug", name, "--quiet"]);
    assert!(output.status.success() && !stdout(&output).is_empty());
    assert_eq!(json(&at.join(format!("graphs/{name}.json")))["metadata"]["slug"], name);
}
