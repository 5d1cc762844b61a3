//! `inspect`, `diff`, `common` and `prune` on JSON, from outside: what they answer and what they refuse.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{PROMPT, answer, circuitscope, refused_with, stdout};

/// A graph of two features, one token and one target, in whatever state a test needs.
fn small_graph() -> Value {
    let node = |id: &str, layer: &str, kind: &str, extra: Value| {
        let mut node = json!({
            "node_id": id, "feature": 1, "layer": layer, "ctx_idx": 0, "feature_type": kind, "jsNodeId": id, "clerp": "",
        });
        node.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        node
    };
    json!({
        "metadata": {"slug": "s", "scan": "m", "prompt_tokens": [" a"], "prompt": " a"},
        "qParams": {},
        "nodes": [
            node("0_1_0", "0", "cross layer transcoder", json!({"influence": 0.4, "activation": 2.0})),
            node("1_2_0", "1", "cross layer transcoder", json!({"influence": 0.7, "activation": 1.0})),
            node("1_-1_0", "1", "mlp reconstruction error", json!({"influence": 0.9})),
            node("E_5_0", "E", "embedding", json!({})),
            node("4_9_0", "4", "logit", json!({"token_prob": 0.8, "clerp": "Output \" b\" (p=0.800)"})),
        ],
        "links": [
            {"source": "E_5_0", "target": "0_1_0", "weight": 1.0},
            {"source": "0_1_0", "target": "1_2_0", "weight": -2.0},
            {"source": "1_2_0", "target": "4_9_0", "weight": 3.0},
            {"source": "1_-1_0", "target": "4_9_0", "weight": 1.0},
        ],
    })
}

fn write(folder: &Path, name: &str, graph: &Value) {
    std::fs::write(folder.join(name), graph.to_string()).unwrap();
}

fn json_answer(folder: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&answer(folder, &[args, &["--format", "json"]].concat())).unwrap()
}

/// Every command that opens a JSON graph.
const READERS: [&[&str]; 6] = [
    &["inspect", "bad.json"],
    &["inspect", "bad.json", "--format", "svg"],
    &["inspect", "bad.json", "--node-threshold", "0.9"],
    &["diff", "bad.json", "good.json"],
    &["common", "good.json", "bad.json"],
    &["prune", "bad.json", "-o", "out.json"],
];

#[test]
fn graphs_that_cannot_be_are_refused_by_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write(at, "good.json", &small_graph());
    let link =
        |source: &str, target: &str, weight: Value| json!({"source": source, "target": target, "weight": weight});
    type Damage<'a> = Box<dyn Fn(&mut Value) + 'a>;
    let add = |new: Value| -> Damage<'_> {
        Box::new(move |graph: &mut Value| graph["links"].as_array_mut().unwrap().push(new.clone()))
    };
    let cases: Vec<(&str, Damage<'_>)> = vec![
        ("7_7_7", add(link("0_1_0", "7_7_7", json!(1.0)))),
        ("cycle", add(link("1_2_0", "0_1_0", json!(1.0)))),
        ("not finite", add(link("0_1_0", "4_9_0", Value::Null))),
        ("out of range", add(link("0_1_0", "4_9_0", json!(1e300)))),
        ("invalid type", add(link("0_1_0", "4_9_0", json!("strong")))),
        ("missing field `weight`", add(json!({"source": "0_1_0", "target": "4_9_0"}))),
        (
            "twice",
            Box::new(|graph: &mut Value| {
                let first = graph["nodes"][0].clone();
                graph["nodes"].as_array_mut().unwrap().push(first);
            }),
        ),
        ("0_1_0", Box::new(|graph: &mut Value| graph["nodes"][0]["layer"] = json!("many"))),
        ("cannot be read", Box::new(|graph: &mut Value| graph["nodes"][0]["node_id"] = json!("nonsense"))),
        ("`nodes`", Box::new(|graph: &mut Value| drop(graph.as_object_mut().unwrap().remove("nodes")))),
        ("`links`", Box::new(|graph: &mut Value| drop(graph.as_object_mut().unwrap().remove("links")))),
        ("`metadata`", Box::new(|graph: &mut Value| drop(graph.as_object_mut().unwrap().remove("metadata")))),
    ];
    for (part, damage) in cases {
        let mut graph = small_graph();
        damage(&mut graph);
        write(at, "bad.json", &graph);
        for args in READERS {
            refused_with(at, args, &["bad.json", part]);
        }
    }
    std::fs::write(at.join("bad.json"), small_graph().to_string().replace("-2.0", "NaN")).unwrap();
    READERS.iter().for_each(|args| refused_with(at, args, &["bad.json", "graph JSON"]));
    std::fs::write(at.join("bad.json"), &small_graph().to_string()[..300]).unwrap();
    READERS.iter().for_each(|args| refused_with(at, args, &["bad.json", "graph JSON"]));
    std::fs::remove_file(at.join("bad.json")).unwrap();
    READERS.iter().for_each(|args| refused_with(at, args, &["bad.json"]));
    assert!(!at.join("out.json").exists());
}

#[test]
fn graphs_of_nothing_have_answers() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let mut graph = small_graph();
    graph["links"] = json!([]);
    write(at, "unlinked.json", &graph);
    graph["nodes"] = json!([]);
    write(at, "empty.json", &graph);
    for name in ["unlinked.json", "empty.json"] {
        for format in ["text", "json", "svg", "png", "dot", "graphml", "csv", "csv-nodes"] {
            assert!(circuitscope(at, &["inspect", name, "--format", format]).status.success(), "{name} as {format}");
        }
        for options in [&["--carry", "0.5"][..], &["--auto-group"], &["--layers", "0..3"], &["--feature-type", "error"]]
        {
            answer(at, &[&["inspect", name], options].concat());
        }
        answer(at, &["prune", name, "-o", "pruned.json"]);
        assert_eq!(json_answer(at, &["common", name, name])["edges"], json!([]));
    }
    assert_eq!(json_answer(at, &["diff", "empty.json", "empty.json"])["shared"], json!([]));
}

#[test]
fn options_of_inspect_that_make_no_sense_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write(at, "g.json", &small_graph());
    std::fs::write(at.join("groups.txt"), "no groups").unwrap();
    for (options, parts) in [
        (&["--node", "0_1_9"][..], &["0_1_9", "`0_1_0`"][..]),
        (&["--subgraph", "0_1_0,9_9_9"], &["9_9_9"]),
        (&["--around", "9_9_9"], &["9_9_9"]),
        (&["--from", "9_9_9"], &["9_9_9"]),
        (&["--to", "9_9_9"], &["9_9_9"]),
        (&["--hops", "2"], &["--around"]),
        (&["--layers", "5..3"], &["5..3"]),
        (&["--layers", "a..3"], &["a..3", "expected a number"]),
        (&["--positions", "2..2"], &["2..2"]),
        (&["--positions", "1.."], &["position 1", "1 positions"]),
        (&["--layers", "9"], &["layer 9"]),
        (&["--feature-type", "neuron"], &["neuron"]),
        (&["--carry", "1.5"], &["carry", "1.5"]),
        (&["--carry", "NaN"], &["carry", "NaN"]),
        (&["--edge-share", "-0.1"], &["edge-share", "-0.1"]),
        (&["--node-threshold", "7"], &["node-threshold", "7"]),
        (&["--edge-threshold", "NaN"], &["edge-threshold"]),
        (&["--auto-group", "2"], &["auto-group", "2"]),
        (&["--group", "Texas"], &["group", "NAME=ID"]),
        (&["--group", "=0_1_0"], &["group", "NAME=ID"]),
        (&["--group", "Texas="], &["Texas", "no members"]),
        (&["--group", "Texas=9_9_9"], &["9_9_9"]),
        (&["--group", "a=0_1_0", "--group", "b=0_1_0,1_2_0"], &["`b`", "`a`"]),
        (&["--group-file", "nowhere.json"], &["nowhere.json"]),
        (&["--group-file", "groups.txt"], &["groups.txt"]),
        (&["--labels", "nowhere.json"], &["nowhere.json"]),
        (&["--format", "bmp"], &["bmp"]),
        (&["-o", "no/folder/at/all.svg"], &["no/folder/at/all.svg"]),
        (&["--max-nodes", "-1"], &["-1"]),
        (&["--paths", "many"], &["many"]),
    ] {
        let args: Vec<String> = ["inspect", "g.json"].into_iter().map(str::to_owned).chain(joined(options)).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        refused_with(at, &args, parts);
    }
}

/// Values that begin with a minus must be written `--option=value`.
fn joined(options: &[&str]) -> Vec<String> {
    match options {
        [option, value] if value.starts_with('-') && option.starts_with("--") => vec![format!("{option}={value}")],
        _ => options.iter().map(|option| (*option).to_owned()).collect(),
    }
}

#[test]
fn options_of_diff_common_and_prune_that_make_no_sense_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write(at, "g.json", &small_graph());
    refused_with(at, &["common", "g.json", "g.json", "--at-least", "3"], &["at-least", "3", "number of graphs"]);
    refused_with(at, &["common", "g.json", "--at-least", "0"], &["at-least", "0"]);
    refused_with(at, &["common"], &["GRAPHS"]);
    refused_with(at, &["diff", "g.json"], &["RIGHT"]);
    refused_with(at, &["diff", "g.json", "nowhere.json"], &["nowhere.json"]);
    refused_with(at, &["diff", "g.json", "g.json", "--node-threshold", "2"], &["node-threshold", "2"]);
    refused_with(at, &["prune", "g.json"], &["--output"]);
    refused_with(at, &["prune", "g.json", "-o", "x.json", "--edge-threshold", "1.1"], &["edge-threshold", "1.1"]);
    assert!(!at.join("x.json").exists());
}

#[test]
fn inspect_shows_what_the_graph_holds() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write(at, "g.json", &small_graph());
    let node = json_answer(at, &["inspect", "g.json", "--node", "1_2_0"]);
    assert_eq!(node["nodes"][0]["inputs"]["negative"][0]["node"]["id"], "0_1_0");
    assert_eq!(node["nodes"][0]["outputs"]["positive"][0]["edge_share"], 0.75);
    assert_eq!(node["nodes"][0]["node"]["cumulative_influence"], 0.7);
    let paths = json_answer(at, &["inspect", "g.json", "--from", "0_1_0", "--to", "4_9_0", "--paths", "3"]);
    assert_eq!(paths["paths"].as_array().unwrap().len(), 1);
    assert_eq!((&paths["paths"][0]["strength"], &paths["paths"][0]["is_negative"]), (&json!(0.75), &json!(true)));
    for (options, ids) in [
        (&["--layers", "1"][..], json!(["1_2_0", "1_-1_0", "E_5_0", "4_9_0"])),
        (&["--feature-type", "feature"], json!(["0_1_0", "1_2_0"])),
        (&["--subgraph", "0_1_0"], json!(["0_1_0", "E_5_0", "4_9_0"])),
        (&["--around", "0_1_0"], json!(["0_1_0", "1_2_0", "E_5_0"])),
        (&["--around", "0_1_0", "--hops", "2"], json!(["0_1_0", "1_2_0", "E_5_0", "4_9_0"])),
    ] {
        let told = json_answer(at, &[&["inspect", "g.json"], options].concat());
        assert_eq!(told["subgraph"]["ids"], ids, "{options:?}");
    }
    let grouped = json_answer(at, &["inspect", "g.json", "--group", "both=0_1_0, 1_2_0"]);
    assert_eq!(grouped["grouping"]["supernodes"][0]["members"], json!(["0_1_0", "1_2_0"]));
    assert!(
        answer(at, &["inspect", "g.json", "--group", "both=0_1_0,1_2_0", "--format", "csv"]).contains("both,4_9_0,3,")
    );
    answer(at, &["inspect", "g.json", "--group", "both=0_1_0,1_2_0", "--carry", "0.9", "--save", "saved.json"]);
    let saved: Value = serde_json::from_slice(&std::fs::read(at.join("saved.json")).unwrap()).unwrap();
    assert_eq!(saved["qParams"]["supernodes"], json!([["both", "0_1_0", "1_2_0"]]));
    let again = json_answer(at, &["inspect", "saved.json"]);
    assert_eq!(
        again["grouping"]["supernodes"], grouped["grouping"]["supernodes"],
        "they are shown without being asked for"
    );
    assert_eq!(json_answer(at, &["inspect", "saved.json", "--no-groups"])["grouping"], Value::Null);
}

#[test]
fn json_graphs_are_pruned_while_they_are_opened_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write(at, "g.json", &small_graph());
    let count = |options: &[&str]| {
        let told = json_answer(at, &[&["inspect", "g.json"], options].concat());
        (told["counts"]["features"].clone(), told["counts"]["errors"].clone(), told["counts"]["edges"].clone())
    };
    assert_eq!(count(&[]), (json!(2), json!(1), json!(4)), "as it is");
    assert_eq!(count(&["--node-threshold", "0.7"]), (json!(2), json!(0), json!(3)), "without the error node");
    assert_eq!(count(&["--edge-threshold", "0.9"]), (json!(2), json!(0), json!(3)), "without the weakest edge");
    // `prune` does the same to the file.
    answer(
        at,
        &["prune", "g.json", "--node-threshold", "0.7", "--edge-threshold", "1", "-o", "pruned.json", "--slug", "p"],
    );
    let pruned: Value = serde_json::from_slice(&std::fs::read(at.join("pruned.json")).unwrap()).unwrap();
    assert_eq!((pruned["nodes"].as_array().unwrap().len(), pruned["links"].as_array().unwrap().len()), (4, 3));
    assert_eq!(pruned["metadata"]["slug"], "p");
    assert_eq!(pruned["metadata"]["pruning_settings"]["node_threshold"], 0.7);
}

#[test]
fn diff_and_common_tell_what_graphs_share() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for (name, prompt) in [("dallas", PROMPT), ("oakland", "The capital of the state containing Oakland is")] {
        answer(at, &["trace", prompt, "--slug", name, "--out-dir", "."]);
    }
    let diff = json_answer(at, &["diff", "dallas.json", "oakland.json"]);
    assert!(!diff["shared"].as_array().unwrap().is_empty());
    assert!(diff["only_left"].as_array().unwrap().iter().any(|feature| feature["label"] == "Texas"));
    assert!(diff["aligned"].as_array().unwrap().len() >= 7, "all tokens but the city");
    let similarity = diff["similarity"].as_f64().unwrap();
    assert!(similarity > 0.0 && similarity < 1.0);
    // The raw graph, pruned on the way, is the JSON graph.
    let raw = json_answer(at, &["diff", "dallas.safetensors", "dallas.json"]);
    assert_eq!(raw["jaccard"], 1.0);
    let text = answer(at, &["diff", "dallas.json", "oakland.json", "--top", "1"]);
    assert!(text.contains("only left") && text.contains("similarity"));

    let three = ["common", "dallas.json", "oakland.json", "dallas.safetensors"];
    let (all, two) = (json_answer(at, &three), json_answer(at, &[&three[..], &["--at-least", "2"]].concat()));
    for list in ["features", "edges"] {
        let (all, two) = (all[list].as_array().unwrap(), two[list].as_array().unwrap());
        assert!(all.len() < two.len());
        assert!(all.iter().all(|found| found["graphs"] == json!([0, 1, 2])));
        assert!(two.iter().all(|found| found["graphs"].as_array().unwrap().len() >= 2));
    }
    assert_eq!(all["features"].as_array().unwrap().len(), diff["shared"].as_array().unwrap().len());
}

#[test]
fn graphs_of_other_transcoders_are_compared_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let mut other = small_graph();
    other["metadata"]["scan"] = json!("another");
    write(folder.path(), "a.json", &small_graph());
    write(folder.path(), "other.json", &other);
    let mut unnamed = small_graph();
    unnamed["metadata"]["scan"] = json!("");
    write(folder.path(), "unnamed.json", &unnamed);
    for command in ["diff", "common"] {
        let run = |right: &str| {
            let output = circuitscope(folder.path(), &[command, "a.json", right, "--format", "json"]);
            assert!(output.status.success(), "{output:?}");
            let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
            (json["warning"].clone(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let (warning, message) = run("other.json");
        let warning = warning.as_str().unwrap();
        assert!(
            ["a.json", "other.json", "\"m\"", "\"another\""].iter().all(|part| warning.contains(part)),
            "{warning}"
        );
        assert_eq!(message, format!("warning: {warning}\n"));
        for same in ["a.json", "unnamed.json"] {
            assert_eq!(run(same), (Value::Null, String::new()), "{command} {same}");
        }
    }
}
