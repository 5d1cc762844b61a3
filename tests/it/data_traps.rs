//! What a day's work must not lose: inputs that are written over, labels and nodes that outputs forget, ids that are there
//! twice, pipes where files are read.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{PROMPT, answer, circuitscope, copy_folder, fixture, refused, refused_with, stdout};

fn json_at(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A folder with `graphs/g.json` and `graphs/g.safetensors`.
fn traced() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    assert!(circuitscope(folder.path(), &["trace", PROMPT, "--slug", "g", "--quiet"]).status.success());
    folder
}

/// Runs the program with `input` on its standard input.
fn with_stdin(folder: &Path, args: &[&str], input: &[u8]) -> Output {
    let mut child = start(folder, args, Stdio::piped());
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A program that refuses closes the pipe before all of it is written.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn start(folder: &Path, args: &[&str], stdin: Stdio) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_circuitscope"));
    command.current_dir(folder).args(args).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// The output of a program that must end by itself: where one waits for ever it is killed, and the test fails.
#[track_caller]
fn ends(child: Child, what: &str) -> Output {
    const PATIENCE: Duration = Duration::from_secs(60);
    let id = child.id().to_string();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    receiver.recv_timeout(PATIENCE).map(Result::unwrap).unwrap_or_else(|_| {
        Command::new("kill").arg(id).status().unwrap();
        panic!("{what} hangs");
    })
}

#[test]
fn inputs_are_not_written_over() {
    let folder = traced();
    let at = folder.path();
    std::fs::write(at.join("labels.json"), r#"{"0_39": "Texas"}"#).unwrap();
    std::fs::write(at.join("groups.json"), r#"{"Texas": ["0_39_7"]}"#).unwrap();
    std::fs::write(
        at.join("plan.json"),
        r#"{"alternatives": [{"name": "a", "interventions": [{"node": "0_39_7", "scale": 2}]}]}"#,
    )
    .unwrap();
    std::fs::copy(at.join("graphs/g.safetensors"), at.join("raw.json")).unwrap();
    std::fs::hard_link(at.join("graphs/g.json"), at.join("hard.json")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("graphs/g.json", at.join("soft.json")).unwrap();
    let files = || -> BTreeSet<(String, Vec<u8>)> {
        let paths = at.read_dir().unwrap().chain(at.join("graphs").read_dir().unwrap()).map(|e| e.unwrap().path());
        paths.filter(|p| p.is_file()).map(|p| (p.display().to_string(), std::fs::read(&p).unwrap())).collect()
    };
    let before = files();
    for (args, input) in [
        (&["prune", "graphs/g.json", "-o", "graphs/g.json"][..], "graphs/g.json"),
        (&["prune", "graphs/g.json", "-o", "graphs/../graphs/g.json"], "graphs/g.json"),
        (&["prune", "graphs/g.json", "-o", "hard.json"], "graphs/g.json"),
        #[cfg(unix)]
        (&["prune", "graphs/g.json", "-o", "soft.json"], "graphs/g.json"),
        #[cfg(unix)]
        (&["prune", "soft.json", "-o", "graphs/g.json"], "soft.json"),
        (&["prune", "graphs/g.safetensors", "-o", "graphs/g.safetensors"], "graphs/g.safetensors"),
        (&["prune", "raw.json"], "raw.json"),
        (&["prune", "graphs/g.safetensors", "--labels", "labels.json", "-o", "labels.json"], "labels.json"),
        (&["inspect", "graphs/g.json", "-o", "graphs/g.json"], "graphs/g.json"),
        (&["inspect", "graphs/g.safetensors", "--format", "json", "-o", "graphs/g.safetensors"], "g.safetensors"),
        (&["inspect", "graphs/g.json", "--save", "hard.json"], "graphs/g.json"),
        (&["inspect", "graphs/g.json", "--labels", "labels.json", "--save", "labels.json"], "labels.json"),
        (&["inspect", "graphs/g.json", "--group-file", "groups.json", "-o", "groups.json"], "groups.json"),
        (&["intervene", PROMPT, "--plan", "plan.json", "--svg", "plan.json"], "plan.json"),
        (&["intervene", PROMPT, "--plan", "plan.json", "--graph", "graphs/g.json", "--svg", "graphs/g.json"], "g.json"),
        (&["trace", PROMPT, "--labels", "graphs/g.json", "--slug", "g", "--force"], "graphs/g.json"),
    ] {
        let message = refused(at, args);
        // Labels that are no labels are refused for that.
        assert!(message.contains(input), "{args:?}: {message}");
        assert_eq!(files(), before, "{args:?}");
    }
    refused_with(at, &["inspect", "graphs/g.json", "--save", "x.json", "-o", "x.json"], &["--save", "--output"]);
    // Weights are nobody's graph.
    copy_folder(&fixture("atlas/model"), &at.join("model"));
    let weights = std::fs::read(at.join("model/model.safetensors")).unwrap();
    let args = ["trace", PROMPT, "--out-dir", "model", "--slug", "model", "--force"];
    refused_with(at, &args, &["model/model.safetensors", "no graph"]);
    assert_eq!(std::fs::read(at.join("model/model.safetensors")).unwrap(), weights);
}

#[test]
fn work_and_raw_graphs_outlive_other_outputs() {
    let folder = traced();
    let at = folder.path();
    let (raw, json) = (at.join("graphs/g.safetensors"), at.join("graphs/g.json"));
    answer(at, &["inspect", "graphs/g.json", "--carry", "0.5", "--group", "Texas=0_39_7", "--save", "pinned.json"]);
    std::fs::rename(at.join("pinned.json"), &json).unwrap();
    std::fs::copy(&raw, at.join("raw.json")).unwrap();
    let before = [std::fs::read(&raw).unwrap(), std::fs::read(&json).unwrap()];
    for (args, parts) in [
        (&["prune", "graphs/g.safetensors"][..], &["graphs/g.json", "pinned", "--output", "--force"][..]),
        (&["prune", "graphs/g.safetensors", "-o", "graphs/g.json"], &["graphs/g.json", "pinned"]),
        (&["prune", "graphs/g.json", "-o", "graphs/g.safetensors"], &["graphs/g.safetensors", ".json"]),
        (&["inspect", "graphs/g.json", "--save", "graphs/g.safetensors"], &["graphs/g.safetensors", ".json"]),
        (&["prune", "graphs/g.json", "-o", "raw.json"], &["raw.json", "raw graph"]),
        (&["inspect", "graphs/g.json", "--save", "raw.json"], &["raw.json", "raw graph"]),
        (&["inspect", "graphs/g.json", "--save", "x.png"], &["x.png", ".json"]),
    ] {
        refused_with(at, args, parts);
        assert_eq!([std::fs::read(&raw).unwrap(), std::fs::read(&json).unwrap()], before, "{args:?}");
    }
    assert!(std::fs::read(at.join("raw.json")).unwrap() == before[0] && !at.join("x.png").exists());
    answer(at, &["prune", "graphs/g.safetensors", "--force"]);
    assert_eq!(json_at(&json)["qParams"]["supernodes"], json!([]));
    // What nobody has worked on is replaced as before.
    answer(at, &["prune", "graphs/g.safetensors"]);
}

#[test]
fn the_name_of_the_list_is_no_graphs() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    refused_with(at, &["trace", PROMPT, "--slug", "graph-metadata"], &["--slug", "list"]);
    assert_eq!(at.read_dir().unwrap().count(), 0, "nothing was written");
    let folder = traced();
    let at = folder.path();
    let list = std::fs::read(at.join("graphs/graph-metadata.json")).unwrap();
    for args in [
        &["prune", "graphs/g.safetensors", "-o", "graphs/graph-metadata.json"][..],
        &["prune", "graphs/g.json", "-o", "graphs/graph-metadata.json"],
        &["inspect", "graphs/g.json", "--save", "graphs/graph-metadata.json"],
    ] {
        refused_with(at, args, &["graph-metadata.json", "list"]);
        assert_eq!(std::fs::read(at.join("graphs/graph-metadata.json")).unwrap(), list, "{args:?}");
    }
}

#[test]
fn pictures_are_what_they_are_called_in_folders_that_are_there() {
    let folder = traced();
    let at = folder.path();
    let sweep = |picture: &'static str| ["intervene", PROMPT, "--sweep", "0_39_7=0..2/1", "--picture", picture];
    refused_with(at, &sweep("x.pdf"), &["x.pdf", ".svg", ".png"]);
    refused_with(at, &sweep("nd/x.svg"), &["nd/x.svg", "no folder"]);
    refused_with(at, &["inspect", "graphs/g.json", "-o", "nd/x.svg"], &["nd/x.svg", "no folder"]);
    assert_eq!(at.read_dir().unwrap().count(), 1, "only the graphs");
    answer(at, &sweep("x.svg"));
    assert!(std::fs::read_to_string(at.join("x.svg")).unwrap().starts_with("<svg"));
    // A dash is no file's name.
    let printed = answer(at, &["inspect", "graphs/g.json"]);
    assert_eq!(answer(at, &["inspect", "graphs/g.json", "-o", "-"]), printed);
    assert!(!printed.is_empty() && !at.join("-").exists());
}

#[test]
fn json_comes_through_pipes_wherever_it_is_read() {
    let folder = traced();
    let at = folder.path();
    let graph = std::fs::read(at.join("graphs/g.json")).unwrap();
    let plain = answer(at, &["inspect", "graphs/g.json"]);
    let names: &[&str] = if cfg!(unix) { &["-", "/dev/stdin"] } else { &["-"] };
    for name in names {
        let ok = |args: &[&str], input: &[u8]| {
            let output = with_stdin(at, args, input);
            assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
            stdout(&output)
        };
        assert_eq!(ok(&["inspect", name], &graph), plain);
        assert_eq!(
            ok(&["inspect", name, "--node-threshold", "0.5"], &graph),
            answer(at, &["inspect", "graphs/g.json", "--node-threshold", "0.5"])
        );
        assert_eq!(
            ok(&["diff", "graphs/g.json", name], &graph),
            answer(at, &["diff", "graphs/g.json", "graphs/g.json"])
        );
        assert!(ok(&["common", name, "graphs/g.json"], &graph).contains("in at least 2 of 2 graphs"));
        ok(&["prune", name, "--node-threshold", "0.5", "-o", "piped.json"], &graph);
        answer(at, &["prune", "graphs/g.json", "--node-threshold", "0.5", "-o", "read.json"]);
        assert_eq!(json_at(&at.join("piped.json")), json_at(&at.join("read.json")));
        let labels = br#"{"0_39": "the lone star"}"#;
        assert!(ok(&["inspect", "graphs/g.json", "--labels", name], labels).contains("the lone star"));
        let groups = br#"[["one group", "0_39_7", "3_955_8"]]"#;
        assert!(ok(&["inspect", "graphs/g.json", "--group-file", name], groups).contains("one group"));
        let plan = br#"[{"node": "0_39_7", "ablate": true}]"#;
        assert!(ok(&["intervene", PROMPT, "--plan", name], plan).contains("0_39_7=0"));
        let intervened = ok(&["intervene", PROMPT, "--ablate", "0_39_7", "--graph", name], &graph);
        assert!(intervened.contains("0_39_7=0"));
        assert!(ok(&["trace", "--prompt-file", name, "--slug", "p", "--force"], PROMPT.as_bytes()).contains(PROMPT));
        // Links before nodes: what came is looked at twice.
        let whole: Value = serde_json::from_slice(&graph).unwrap();
        let parts = ["metadata", "qParams", "links", "nodes"].map(|key| format!("\"{key}\":{}", whole[key]));
        assert_eq!(ok(&["inspect", name], format!("{{{}}}", parts.join(",")).as_bytes()), plain);
    }
    let output = with_stdin(at, &["diff", "-", "-"], &graph);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && message.contains("read once"), "{message}");
}

#[test]
fn what_must_be_a_file_says_so() {
    let folder = traced();
    let at = folder.path();
    let raw = std::fs::read(at.join("graphs/g.safetensors")).unwrap();
    for args in [&["inspect", "-"][..], &["verify", "-"], &["diff", "graphs/g.json", "-"]] {
        let output = with_stdin(at, args, &raw);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {message}");
        assert!(message.contains("a raw graph must be a file") && message.contains("`-`"), "{args:?}: {message}");
    }
}

#[test]
#[cfg(unix)]
fn a_pipe_that_nobody_writes_into_is_not_waited_for_where_it_is_of_no_use() {
    let folder = traced();
    let at = folder.path();
    let fifo = |name: &str| assert!(Command::new("mkfifo").arg(at.join(name)).status().unwrap().success());
    fifo("pipe");
    fifo("pipe.gguf");
    copy_folder(&fixture("atlas/model"), &at.join("model"));
    copy_folder(&fixture("atlas/transcoders"), &at.join("transcoders"));
    std::fs::remove_file(at.join("model/config.json")).unwrap();
    fifo("model/config.json");
    copy_folder(&fixture("atlas/model"), &at.join("weights"));
    std::fs::remove_file(at.join("weights/model.safetensors")).unwrap();
    fifo("weights/model.safetensors");
    copy_folder(&fixture("atlas/transcoders"), &at.join("layer"));
    std::fs::remove_file(at.join("layer/layer_1.safetensors")).unwrap();
    fifo("layer/layer_1.safetensors");
    for args in [
        &["verify", "pipe"][..],
        &["trace", PROMPT, "--model", "pipe.gguf", "--transcoders", "transcoders"],
        &["trace", PROMPT, "--model", "model", "--transcoders", "transcoders"],
        &["trace", PROMPT, "--model", "weights", "--transcoders", "transcoders"],
        &["trace", PROMPT, "--model", "atlas", "--transcoders", "layer"],
        &["trace", PROMPT, "--transcoders", "layer"],
    ] {
        let output = ends(start(at, args, Stdio::null()), &format!("{args:?}"));
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {message}");
        assert!(message.starts_with("error: "), "{args:?}: {message}");
    }
    // One without an end is not read to its end.
    let output = ends(start(at, &["inspect", "/dev/zero"], Stdio::null()), "inspect /dev/zero");
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn ids_are_there_once_in_every_table() {
    let folder = traced();
    let at = folder.path();
    // Named like each other, like a node that stays, like each other once they are written, and like what is made of them.
    let groups = json!([
        ["capital", "0_656_2"],
        ["capital", "0_479_8"],
        ["3_955_8", "0_39_7"],
        ["a\u{1b}", "3_260_8"],
        ["a\u{1}", "2_717_8"],
        ["capital (2)", "0_90_2"]
    ]);
    std::fs::write(at.join("groups.json"), groups.to_string()).unwrap();
    let table =
        |format: &str| answer(at, &["inspect", "graphs/g.json", "--group-file", "groups.json", "--format", format]);
    let n_nodes = 24;
    let graphml = table("graphml");
    let between = |text: &str, start: &str, end: &str| -> Vec<String> {
        text.split(start).skip(1).map(|rest| rest.split(end).next().unwrap().to_owned()).collect()
    };
    let unique = |ids: &[String]| ids.iter().collect::<BTreeSet<_>>().len();
    let ids = between(&graphml, "<node id=\"", "\"");
    assert_eq!((ids.len(), unique(&ids)), (n_nodes, n_nodes), "{ids:?}");
    for end in ["<edge source=\"", "\" target=\""] {
        assert!(between(&graphml, end, "\"").iter().all(|id| ids.contains(id)));
    }
    let dot = table("dot");
    let ids: Vec<String> = between(&dot, "\n  \"", "\" [label").into_iter().filter(|id| !id.contains("->")).collect();
    assert_eq!((ids.len(), unique(&ids)), (n_nodes, n_nodes), "{ids:?}");
    let csv = table("csv-nodes");
    let ids: Vec<String> = csv.lines().skip(1).map(|line| line.split(',').next().unwrap().to_owned()).collect();
    assert_eq!((ids.len(), unique(&ids)), (n_nodes, n_nodes), "{ids:?}");
    assert!(ids.contains(&"3_955_8".to_owned()), "nodes keep their ids");
}

#[test]
fn numbers_that_no_float_holds_are_refused() {
    let folder = traced();
    let at = folder.path();
    let whole = json_at(&at.join("graphs/g.json"));
    let feature = whole["nodes"].as_array().unwrap().iter().position(|n| n["activation"].is_number()).unwrap();
    for (list, index, field, value) in [
        ("nodes", feature, "activation", "1e300"),
        ("nodes", feature, "activation", "-1e39"),
        ("nodes", feature, "token_prob", "1e300"),
        ("nodes", feature, "token_prob", "-1"),
        ("links", 3, "weight", "1e300"),
        ("links", 3, "weight", "-1e39"),
    ] {
        let mut changed = whole.clone();
        changed[list][index][field] = json!("THE NUMBER");
        std::fs::write(at.join("x.json"), changed.to_string().replace("\"THE NUMBER\"", value)).unwrap();
        for args in [&["inspect", "x.json"][..], &["prune", "x.json", "-o", "y.json"]] {
            let message = refused(at, args);
            let named = if list == "nodes" { field } else { "links" };
            // Where the reader of JSON says it, it says the place.
            let is_placed = message.contains("number out of range at line 1");
            assert!(message.contains(named) || is_placed, "{field} {value}: {message}");
        }
        assert!(!at.join("y.json").exists());
    }
    for change in ["set", "scale"] {
        std::fs::write(at.join("plan.json"), format!(r#"[{{"node": "0_39_7", "{change}": 1e300}}]"#)).unwrap();
        refused_with(at, &["intervene", PROMPT, "--plan", "plan.json"], &["plan.json", change, "range"]);
    }
}

#[test]
fn tables_are_for_spreadsheets_or_exact() {
    let folder = traced();
    let at = folder.path();
    std::fs::write(at.join("labels.json"), r#"{"0_39": "=1+1", "3_955": "\tx", "0_656": "+a", "0_479": "@SUM(1)"}"#)
        .unwrap();
    let table = |cells: &[&str]| {
        let args = ["inspect", "graphs/g.json", "--labels", "labels.json", "--format", "csv-nodes"];
        answer(at, &[&args, cells].concat())
    };
    let (usual, spreadsheet, exact) = (table(&[]), table(&["--cells", "spreadsheet"]), table(&["--cells", "exact"]));
    assert_eq!(usual, spreadsheet);
    for label in ["'=1+1", "'+a", "'@SUM(1)", "'\tx"] {
        assert!(spreadsheet.contains(&format!(",{label},")), "{label}: {spreadsheet}");
    }
    for label in ["=1+1", "+a", "@SUM(1)", "\"\tx\""] {
        assert!(exact.contains(&format!(",{label},")), "{label}: {exact}");
    }
    std::fs::write(
        at.join("plan.json"),
        r#"{"alternatives": [{"name": "=1", "interventions": [{"node": "0_39_7", "scale": 2}]}]}"#,
    )
    .unwrap();
    let sweep =
        |cells: &str| answer(at, &["intervene", PROMPT, "--plan", "plan.json", "--format", "csv", "--cells", cells]);
    assert!(sweep("spreadsheet").contains("\n'=1,") && sweep("exact").contains("\n=1,"));
}

#[test]
fn the_ending_of_an_output_says_what_is_written() {
    let folder = traced();
    let at = folder.path();
    for (name, start) in [
        ("x.txt", "prompt "),
        ("x.json", "{"),
        ("x.svg", "<svg"),
        ("x.png", "\u{89}PNG"),
        ("x.PNG", "\u{89}PNG"),
        ("x.dot", "digraph"),
        ("x.gv", "digraph"),
        ("x.graphml", "<?xml"),
        ("x.csv", "source,target"),
        ("x", "prompt "),
    ] {
        if name.to_lowercase().ends_with(".png") && !cfg!(feature = "png") {
            continue;
        }
        answer(at, &["inspect", "graphs/g.json", "-o", name]);
        let bytes = std::fs::read(at.join(name)).unwrap();
        let text: String = bytes.iter().take(20).map(|&byte| char::from(byte)).collect();
        assert!(text.starts_with(start), "{name}: {text:?}");
    }
    for name in ["x.pdf", "x.jpg", "x.xlsx"] {
        refused_with(at, &["inspect", "graphs/g.json", "-o", name], &[&name[1..], ".png", ".csv", "--format"]);
        assert!(!at.join(name).exists());
    }
    // What is asked for holds, and is said where the name says otherwise.
    let output = circuitscope(at, &["inspect", "graphs/g.json", "-o", "y.png", "--format", "csv"]);
    assert!(output.status.success() && String::from_utf8_lossy(&output.stderr).contains("y.png` holds csv"));
    assert!(std::fs::read_to_string(at.join("y.png")).unwrap().starts_with("source,"));
}

#[test]
fn pictures_and_tables_of_a_node_are_of_that_node() {
    let folder = traced();
    let at = folder.path();
    let told: Value = serde_json::from_str(&answer(
        at,
        &["inspect", "graphs/g.json", "--node", "0_39_7", "--format", "json", "--top", "999"],
    ))
    .unwrap();
    let neighbors = |key: &str| -> Vec<String> {
        let lists = told["nodes"][0].as_object().unwrap().iter().filter(|(name, _)| name.contains(key));
        let signs = lists.flat_map(|(_, ends)| [ends["positive"].clone(), ends["negative"].clone()]);
        let nodes = signs.flat_map(|list| list.as_array().cloned().unwrap_or_default());
        nodes.filter_map(|entry| entry["id"].as_str().or(entry["node"]["id"].as_str()).map(str::to_owned)).collect()
    };
    let mut expected: BTreeSet<String> = neighbors("input").into_iter().chain(neighbors("output")).collect();
    expected.insert("0_39_7".to_owned());
    assert!(expected.len() > 5, "{told}");
    let nodes = answer(at, &["inspect", "graphs/g.json", "--node", "0_39_7", "--format", "csv-nodes"]);
    let ids: BTreeSet<String> = nodes.lines().skip(1).map(|line| line.split(',').next().unwrap().to_owned()).collect();
    assert_eq!(ids, expected);
    let whole = answer(at, &["inspect", "graphs/g.json", "--format", "csv"]);
    for format in ["csv", "dot", "graphml", "svg"] {
        let of_node = answer(at, &["inspect", "graphs/g.json", "--node", "0_39_7", "--format", format]);
        assert!(of_node.len() < answer(at, &["inspect", "graphs/g.json", "--format", format]).len(), "{format}");
    }
    let edges = answer(at, &["inspect", "graphs/g.json", "--node", "0_39_7", "--format", "csv"]);
    let ends = |line: &str| -> Vec<String> { line.split(',').take(2).map(str::to_owned).collect() };
    assert!(edges.lines().skip(1).all(|line| ends(line).iter().all(|end| expected.contains(end))));
    let n_own = |text: &str| text.lines().filter(|line| ends(line).contains(&"0_39_7".to_owned())).count();
    assert!(n_own(&edges) == n_own(&whole) && n_own(&edges) > 0);
    refused_with(at, &["inspect", "graphs/g.json", "--node", "9_9_9", "--format", "svg"], &["9_9_9"]);
}

#[test]
fn labels_that_are_given_are_kept() {
    let folder = traced();
    let at = folder.path();
    std::fs::write(at.join("labels.json"), r#"{"0_39": "the lone star", "3_955": "answers"}"#).unwrap();
    let label = |path: &str, id: &str| -> String {
        let graph = json_at(&at.join(path));
        let nodes = graph["nodes"].as_array().unwrap();
        nodes.iter().find(|node| node["node_id"] == id).unwrap()["clerp"].as_str().unwrap().to_owned()
    };
    for graph in ["graphs/g.json", "graphs/g.safetensors"] {
        answer(at, &["inspect", graph, "--labels", "labels.json", "--save", "saved.json"]);
        assert_eq!(
            (label("saved.json", "0_39_7").as_str(), label("saved.json", "3_955_8").as_str()),
            ("the lone star", "answers")
        );
        assert_eq!(label("saved.json", "0_656_2"), label("graphs/g.json", "0_656_2"), "the others keep theirs");
        answer(at, &["prune", graph, "--labels", "labels.json", "-o", "pruned.json"]);
        assert_eq!(label("pruned.json", "0_39_7"), "the lone star");
    }
    let labels = ["--labels", "labels.json"];
    assert!(answer(at, &[&["diff", "graphs/g.json", "graphs/g.json"][..], &labels].concat()).contains("the lone star"));
    assert!(
        answer(at, &[&["common", "graphs/g.json", "graphs/g.json"][..], &labels].concat()).contains("the lone star")
    );
    let intervened = ["intervene", PROMPT, "--ablate", "1_224_7", "--graph", "graphs/g.json", "--top", "99"];
    assert!(answer(at, &[&intervened[..], &labels].concat()).contains("answers"));
    // A graph that was traced with these labels holds with them.
    answer(at, &[&["trace", PROMPT, "--slug", "named"][..], &labels].concat());
    let quick = ["--samples", "1", "--ablate", "1"];
    answer(at, &[&["verify", "graphs/named.safetensors"][..], &labels, &quick].concat());
    let output = circuitscope(at, &[&["verify", "graphs/named.safetensors"][..], &quick].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("\"the lone star\""), "{}", stdout(&output));
}

#[test]
fn nodes_can_be_renamed() {
    let folder = traced();
    let at = folder.path();
    let args = [
        "inspect",
        "graphs/g.json",
        "--group",
        "both=0_39_7,3_955_8",
        "--rename",
        "0_39_7=lone = star",
        "--rename",
        "3_260=answers",
        "--rename",
        "both=the two",
        "--save",
        "saved.json",
    ];
    let text = answer(at, &args);
    assert!(text.contains("lone = star") && text.contains("the two"), "{text}");
    let saved = json_at(&at.join("saved.json"));
    let clerp =
        |id: &str| saved["nodes"].as_array().unwrap().iter().find(|n| n["node_id"] == id).unwrap()["clerp"].clone();
    assert_eq!((clerp("0_39_7"), clerp("3_260_8")), (json!("lone = star"), json!("answers")));
    assert_eq!(saved["qParams"]["supernodes"][0][0], "the two");
    assert!(answer(at, &["inspect", "saved.json"]).contains("lone = star"));
    answer(at, &["inspect", "saved.json", "--rename", "0_39_7=", "--save", "again.json"]);
    let again = json_at(&at.join("again.json"));
    assert_eq!(again["nodes"].as_array().unwrap().iter().find(|n| n["node_id"] == "0_39_7").unwrap()["clerp"], "");
    for (rename, part) in [("9_9_9=x", "9_9_9"), ("E_2859_7=x", "feature"), ("0_39_7", "ID=LABEL"), ("=x", "ID=LABEL")]
    {
        refused_with(at, &["inspect", "graphs/g.json", "--rename", rename], &[part]);
    }
}
