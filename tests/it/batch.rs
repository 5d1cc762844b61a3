//! Many prompts: the files that tracing each alone writes, lines that fail, what is done again and what is not, shards, kills.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{PROMPT, circuitscope, copy_folder, program, refused_with, stdout};

const CITIES: [&str; 4] = ["Dallas", "Oakland", "Houston", "Miami"];

fn with_lines(lines: &[Value]) -> TempDir {
    let folder = TempDir::new().unwrap();
    write_lines(folder.path(), lines);
    folder
}

fn write_lines(folder: &Path, lines: &[Value]) {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(folder.join("prompts.jsonl"), text).unwrap();
}

/// One prompt for each city.
fn cities() -> Vec<Value> {
    CITIES.iter().map(|city| json!({"prompt": PROMPT.replace("Dallas", city), "slug": city})).collect()
}

#[track_caller]
fn batch(folder: &Path, options: &[&str]) -> Output {
    circuitscope(folder, &[&["batch", "prompts.jsonl"], options].concat())
}

/// A batch none of whose lines fails; what it says.
#[track_caller]
fn succeeds(folder: &Path, options: &[&str]) -> String {
    let output = batch(folder, options);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(stdout(&output), "", "nothing is data here");
    said(&output)
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Everything but what a run took and the list, which is in the order of writing.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = folder.read_dir().unwrap().map(|entry| entry.unwrap());
    let named = entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.path()));
    let kept = named.filter(|(name, _)| name != "index-times.jsonl" && name != "graph-metadata.json");
    kept.map(|(name, path)| (name, std::fs::read(path).unwrap())).collect()
}

fn index(folder: &Path, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The names of the graphs that the folder's list has.
fn listed(folder: &Path) -> Vec<String> {
    let text = std::fs::read(folder.join("graph-metadata.json")).unwrap();
    let list: Value = serde_json::from_slice(&text).unwrap();
    let slugs = list["graphs"].as_array().unwrap().iter();
    let mut slugs: Vec<String> = slugs.map(|graph| graph["slug"].as_str().unwrap().to_owned()).collect();
    slugs.sort();
    slugs
}

#[test]
fn files_are_byte_for_byte_those_that_trace_writes() {
    let lines = [
        json!({"prompt": PROMPT}),
        json!({"prompt": PROMPT, "targets": [{"difference": [" Austin", " Sacramento"]}]}),
        json!({"prompt": PROMPT, "slug": "many", "targets": [" Austin", {"token_id": 7}, {"feature": "3_955_8"},
            {"direction": "\" Austin\" - \" Sacramento\""}], "position": 8}),
        json!({"prompt": PROMPT, "slug": "look", "targets": [{"attention": "1.0@3:2", "versus": 1}]}),
        json!({"tokens": [1, 5, 9], "slug": "tokens", "max_logits": 3, "logit_prob": 0.5}),
        json!({"prompt": "He went to the", "heads": true, "node_threshold": 0.7, "edge_threshold": 0.9}),
        json!({"prompt": "She saw the", "rows": 20, "nodes": 12}),
        json!({"prompt": "She saw the", "slug": "best", "max_features": 9, "batch_size": 2}),
    ];
    let traces: [&[&str]; 8] = [
        &[PROMPT],
        &[PROMPT, "--target-diff", " Austin", " Sacramento"],
        &[
            PROMPT,
            "--slug",
            "many",
            "--target",
            " Austin",
            "--target-id",
            "7",
            "--target-feature",
            "3_955_8",
            "--target-direction",
            "\" Austin\" - \" Sacramento\"",
            "--position",
            "8",
        ],
        &[PROMPT, "--slug", "look", "--target-attention", "1.0@3:2", "--versus", "1"],
        &["--tokens", "1,5,9", "--slug", "tokens", "--max-logits", "3", "--logit-prob", "0.5"],
        &["He went to the", "--heads", "--node-threshold", "0.7", "--edge-threshold", "0.9"],
        &["She saw the", "--rows", "20", "--nodes", "12"],
        &["She saw the", "--slug", "best", "--max-features", "9", "--batch-size", "2"],
    ];
    let folder = with_lines(&lines);
    let at = folder.path();
    succeeds(at, &["--out-dir", "batch"]);
    succeeds(at, &["--out-dir", "alone", "--threads", "1", "-q"]);
    for trace in traces {
        let output = circuitscope(at, &[&["trace", "--out-dir", "traced", "--quiet"], trace].concat());
        assert!(output.status.success(), "{trace:?}: {output:?}");
    }
    let (of_batch, of_one_thread) = (files(&at.join("batch")), files(&at.join("alone")));
    assert!(of_batch == of_one_thread, "the number of threads changes nothing, the index included");
    let traced = files(&at.join("traced"));
    assert_eq!(traced.len(), 2 * traces.len());
    for (name, bytes) in &traced {
        assert!(of_batch.get(name) == Some(bytes), "{name} differs, of {:?}", of_batch.keys());
    }
    assert_eq!(of_batch.len(), traced.len() + 1);
    assert_eq!(listed(&at.join("batch")), listed(&at.join("traced")));
}

#[test]
fn options_hold_for_lines_that_say_nothing_else() {
    let folder = with_lines(&[json!({"prompt": PROMPT}), json!({"prompt": "He went", "max_features": "all"})]);
    let at = folder.path();
    succeeds(at, &["--out-dir", "a", "--max-features", "9", "--node-threshold", "0.5", "--no-raw"]);
    let names: Vec<String> = files(&at.join("a")).into_keys().collect();
    let dallas = "the-capital-of-the-state-containing-dallas-is";
    assert_eq!(names, ["he-went.json".to_owned(), "index.jsonl".to_owned(), format!("{dallas}.json")]);
    let output = circuitscope(
        at,
        &["trace", PROMPT, "--out-dir", "b", "--max-features", "9", "--node-threshold", "0.5", "--no-raw", "-q"],
    );
    assert!(output.status.success());
    let name = format!("{dallas}.json");
    assert!(files(&at.join("a"))[&name] == files(&at.join("b"))[&name]);
}

#[test]
fn a_line_that_fails_is_reported_and_the_rest_goes_on() {
    let folder = with_lines(&[]);
    let at = folder.path();
    let mut text = Vec::new();
    for line in [
        &br#"{"prompt": "He went", "slug": "good"}"#[..],
        b"",
        br#"{"promt": "He went"}"#,
        b"no JSON",
        b"\xff\xfe",
        br#"{"prompt": "He went", "targets": ["nothing of the kind"]}"#,
        br#"{"prompt": "He went", "slug": "../up"}"#,
        br#"{"prompt": "He went", "targets": [{"attention": "0.0@0:1"}], "slug": "late"}"#,
        br#"{"prompt": "She saw", "slug": "last"}"#,
    ] {
        text.extend_from_slice(line);
        text.extend_from_slice(b"\r\n");
    }
    std::fs::write(at.join("prompts.jsonl"), text).unwrap();
    let output = batch(at, &[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = said(&output);
    let graphs = at.join("graphs");
    let entries = index(&graphs, "index.jsonl");
    for (line, part) in
        [(3, "`promt`"), (4, "expected"), (5, "column 1"), (6, "nothing of the kind"), (7, "../up"), (8, "0.0@0:1")]
    {
        let start = format!("line {line}: ");
        let told = said.lines().find(|told| told.starts_with(&start)).unwrap_or_else(|| panic!("{start}: {said}"));
        let entry = entries.iter().find(|entry| entry["line"] == line).unwrap();
        assert_eq!(told, start + entry["error"].as_str().unwrap());
        assert!(told.contains(part), "{told}");
    }
    assert!(said.contains("8 lines: 2 traced, 6 failed"), "{said}");
    let slugs: Vec<&str> = entries.iter().filter_map(|entry| entry["slug"].as_str()).collect();
    assert_eq!(slugs, ["good", "last"]);
    assert_eq!(listed(&graphs), ["good", "last"]);
    assert!(!at.join("up.json").exists());
    // Put right, they are traced, and no longer failures.
    write_lines(at, &[json!({"prompt": "He went", "slug": "good"}), json!({"prompt": "She saw", "slug": "last"})]);
    let said = succeeds(at, &[]);
    assert!(said.contains("2 lines: 0 traced, 2 there already"), "{said}");
    assert!(index(&graphs, "index.jsonl").iter().all(|entry| entry["line"].is_null()));
}

#[test]
fn a_second_run_does_what_is_missing_and_nothing_else() {
    let folder = with_lines(&cities());
    let (at, graphs) = (folder.path(), folder.path().join("graphs"));
    succeeds(at, &[]);
    let first = files(&graphs);
    let when = |name: &str| graphs.join(name).metadata().unwrap().modified().unwrap();
    let dallas = when("Dallas.safetensors");
    std::fs::remove_file(graphs.join("Miami.json")).unwrap();
    std::fs::write(graphs.join("Oakland.safetensors"), &first["Oakland.safetensors"][..99]).unwrap();
    let again = batch(at, &[]);
    // What is no graph any more is for nobody to replace.
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    assert!(said(&again).contains("Oakland.safetensors` is there already and is no graph"), "{again:?}");
    std::fs::remove_file(graphs.join("Oakland.safetensors")).unwrap();
    let said = succeeds(at, &[]);
    assert!(said.contains("4 lines: 1 traced, 3 there already"), "{said}");
    assert!(files(&graphs) == first);
    assert_eq!(when("Dallas.safetensors"), dallas, "it was not written again");

    // Other settings are other graphs: these names are taken by those that are there.
    let other = batch(at, &["--node-threshold", "0.5"]);
    assert_eq!(other.status.code(), Some(1));
    assert!(self::said(&other).contains("holds another graph"), "{other:?}");
    assert!(files(&graphs).iter().all(|(name, bytes)| name == "index.jsonl" || first[name] == *bytes));
    let said = succeeds(at, &["--node-threshold", "0.5", "--force"]);
    assert!(said.contains("4 traced"), "{said}");
    assert!(succeeds(at, &["--node-threshold", "0.5"]).contains("4 there already"));
}

#[test]
fn other_weights_are_another_request() {
    let folder = with_lines(&cities()[..1]);
    let at = folder.path();
    copy_folder(&crate::support::fixture("atlas/model"), &at.join("m"));
    copy_folder(&crate::support::fixture("atlas/transcoders"), &at.join("t"));
    let options = ["--model", "m", "--transcoders", "t"];
    succeeds(at, &options);
    assert!(succeeds(at, &options).contains("1 there already"));
    // The last value of the last decoder row.
    let layer = at.join("t/layer_3.safetensors");
    let mut bytes = std::fs::read(&layer).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    let end = 8 + n + header["W_dec"]["data_offsets"][1].as_u64().unwrap() as usize;
    bytes[end - 1] ^= 1;
    std::fs::write(&layer, bytes).unwrap();
    assert!(succeeds(at, &options).contains("1 traced"));
    std::fs::write(at.join("t/feature_labels.json"), "{\"0_39\": \"a state\"}").unwrap();
    assert!(succeeds(at, &options).contains("1 traced"), "names are in the files");
}

#[test]
fn graphs_that_somebody_has_worked_on_are_left_alone() {
    let folder = with_lines(&cities());
    let at = folder.path();
    succeeds(at, &[]);
    let output =
        circuitscope(at, &["inspect", "graphs/Dallas.json", "--group", "texas=0_39_7", "--save", "worked.json"]);
    assert!(output.status.success(), "{output:?}");
    std::fs::rename(at.join("worked.json"), at.join("graphs/Dallas.json")).unwrap();
    let saved = files(&at.join("graphs"));
    assert!(succeeds(at, &[]).contains("4 there already"));
    assert!(files(&at.join("graphs")) == saved);
}

#[test]
fn names_are_given_as_trace_gives_them_and_never_twice() {
    let folder = with_lines(&[
        json!({"prompt": "He went"}),
        json!({"prompt": "He went", "targets": [" to"]}),
        json!({"prompt": "He went"}),
        json!({"prompt": "She saw", "slug": "x"}),
        json!({"prompt": "She saw the", "slug": "X"}),
        json!({"prompt": "She saw", "slug": "x"}),
        json!({"prompt": "He went", "slug": "graph-metadata"}),
    ]);
    let at = folder.path();
    let output = batch(at, &[]);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("line 5: its name `X` is that of line 4"), "{said}");
    assert!(said.contains("line 7: ") && said.contains("is kept for the list"), "{said}");
    assert!(said.contains("7 lines: 3 traced, 2 the same as an earlier line, 2 failed"), "{said}");
    for trace in [&["trace", "He went"][..], &["trace", "He went", "--target", " to"]] {
        assert!(circuitscope(at, &[trace, &["--out-dir", "traced", "-q"]].concat()).status.success());
    }
    let (batch_files, traced) = (files(&at.join("graphs")), files(&at.join("traced")));
    assert_eq!(traced.len(), 4);
    assert!(traced.iter().all(|(name, bytes)| batch_files.get(name) == Some(bytes)), "{:?}", batch_files.keys());
}

#[test]
fn what_cannot_begin_is_refused() {
    let folder = with_lines(&[]);
    let at = folder.path();
    refused_with(at, &["batch", "prompts.jsonl"], &["there are no lines"]);
    refused_with(at, &["batch", "nowhere.jsonl"], &["cannot read `nowhere.jsonl`"]);
    write_lines(at, &cities());
    refused_with(at, &["batch", "prompts.jsonl", "--out-dir", "prompts.jsonl"], &["prompts.jsonl"]);
    refused_with(at, &["batch", "prompts.jsonl", "--shard", "3/2"], &["3/2"]);
    refused_with(at, &["batch", "prompts.jsonl", "--logit-prob", "2"], &["logit_prob"]);
    refused_with(at, &["batch", "prompts.jsonl", "--no-raw", "--no-json"], &["--no-raw"]);
    for name in ["index.jsonl", "index-times.jsonl", "graph-metadata.json"] {
        let out = at.join("out");
        std::fs::create_dir_all(&out).unwrap();
        std::fs::write(out.join(name), "mine\n").unwrap();
        let message = [&format!("{name}` is not a valid")[..]];
        refused_with(at, &["batch", "prompts.jsonl", "--out-dir", "out", "-q"], &message);
        assert_eq!(std::fs::read(out.join(name)).unwrap(), b"mine\n");
        std::fs::remove_dir_all(&out).unwrap();
    }
    // Prompts that lie where the index goes.
    std::fs::create_dir(at.join("in")).unwrap();
    std::fs::rename(at.join("prompts.jsonl"), at.join("in/index.jsonl")).unwrap();
    refused_with(at, &["batch", "in/index.jsonl", "--out-dir", "in"], &["is read, and cannot be written over"]);
}

#[test]
fn prompts_come_through_standard_input_too() {
    let folder = with_lines(&cities());
    let at = folder.path();
    let mut child = program(at).args(["batch", "-", "--out-dir", "a", "-q"]).stdin(Stdio::piped()).spawn().unwrap();
    let text = std::fs::read(at.join("prompts.jsonl")).unwrap();
    child.stdin.take().unwrap().write_all(&text).unwrap();
    assert!(child.wait().unwrap().success());
    succeeds(at, &["--out-dir", "b"]);
    assert!(files(&at.join("a")) == files(&at.join("b")));
}

#[test]
fn shards_in_one_folder_at_the_same_time_give_what_one_run_gives() {
    let mut lines = cities();
    lines.extend(CITIES.map(|city| json!({"prompt": format!("{city} is a large city in")})));
    lines.push(json!({"promt": 1}));
    // The names of equal prompts must not depend on who is first.
    lines.push(json!({"prompt": "Dallas is a large city in", "targets": [" the"]}));
    let folder = with_lines(&lines);
    let at = folder.path();
    assert_eq!(batch(at, &["--out-dir", "one", "-q"]).status.code(), Some(1));
    let shard = |index: usize| {
        let mut command = program(at);
        command.args(["batch", "prompts.jsonl", "--out-dir", "shards", "-q", "--shard", &format!("{index}/3")]);
        command.stderr(Stdio::null()).spawn().unwrap()
    };
    let codes: Vec<_> = [1, 2, 3].map(shard).map(|mut child| child.wait().unwrap().code()).into();
    assert_eq!(codes, [Some(0), Some(0), Some(1)], "line 9 is the third's");
    assert!(files(&at.join("one")) == files(&at.join("shards")));
    assert_eq!(listed(&at.join("one")), listed(&at.join("shards")));
    assert_eq!(index(&at.join("shards"), "index-times.jsonl").len(), 9);
}

#[test]
#[cfg(unix)]
fn a_run_that_is_ended_leaves_whole_files_and_the_next_one_ends_the_same() {
    // Enough for some seconds.
    let words = ["city", "river", "mayor", "friend", "house", "train"];
    let lines: Vec<Value> = (0..240)
        .map(|i| json!({"prompt": format!("The {} of {} {} is the", words[i % 6], CITIES[i % 4], i), "slug": i.to_string()}))
        .collect();
    let folder = with_lines(&lines);
    let at = folder.path();
    succeeds(at, &["--out-dir", "whole", "-q"]);
    let whole = files(&at.join("whole"));
    let graphs = at.join("graphs");
    let n_there = || graphs.read_dir().map_or(0, |entries| entries.count());
    for (signal, code) in [(libc_sigint(), Some(130)), (9, None), (libc_sigterm(), Some(130)), (9, None)] {
        let before = n_there();
        let mut child = program(at)
            .args(["batch", "prompts.jsonl", "-q"])
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // In the middle: some files are new, and not all are there.
        while n_there() < before + 12 && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let kill = std::process::Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status();
        assert!(kill.is_ok());
        let output = child.wait_with_output().unwrap();
        let message = said(&output);
        // A machine may be quick enough to end before the signal comes.
        assert!(output.status.code() == code || output.status.success(), "{signal}: {:?} {message}", output.status);
        assert!(!message.contains("panicked"), "{message}");
        for (name, bytes) in files(&graphs) {
            match name.as_str() {
                "index.jsonl" => {
                    for entry in index(&graphs, &name) {
                        let entry_files = entry["files"].as_object().unwrap();
                        let is_whole = entry_files
                            .iter()
                            .all(|(file, size)| graphs.join(file).metadata().unwrap().len() == size.as_u64().unwrap());
                        assert!(is_whole, "{entry}");
                    }
                }
                // A kill leaves what was under way; the next run removes it.
                name if name.starts_with(".circuitscope-") => assert_eq!(code, None, "{name}"),
                name => assert!(whole[name] == bytes, "{name} is whole"),
            }
        }
    }
    succeeds(at, &["-q"]);
    assert!(files(&graphs) == whole);
    assert!(succeeds(at, &[]).contains("240 there already"));
}

#[cfg(unix)]
fn libc_sigint() -> i32 {
    2
}

#[cfg(unix)]
fn libc_sigterm() -> i32 {
    15
}
