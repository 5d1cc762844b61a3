//! Interventions by name: supernodes and labels of a graph, what another graph or prompt has, the strongest features; and
//! what is read and followed.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use circuitscope::graph::FeatureId;
use circuitscope::{Job, Setup, Tracer};

use crate::support::{PROMPT, circuitscope, refused_with, stdout};

const OAKLAND: &str = "The capital of the state containing Oakland is";

/// A folder with graphs of Dallas and of Oakland, whose supernodes are given.
fn folder_with_graphs() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (prompt, slug) in [(PROMPT, "dallas"), (OAKLAND, "oakland")] {
        let output = circuitscope(folder.path(), &["trace", prompt, "--slug", slug, "-q"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let groups = [("dallas", json!([["capital", "0_656_2", "0_90_2"], ["say a capital", "3_955_8"]]))];
    for (slug, supernodes) in groups {
        let path = folder.path().join(format!("graphs/{slug}.json"));
        let mut graph: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        graph["qParams"]["supernodes"] = supernodes;
        std::fs::write(&path, graph.to_string()).unwrap();
    }
    folder
}

#[track_caller]
fn run(folder: &Path, args: &[&str]) -> Value {
    let output = circuitscope(folder, &[&["intervene", PROMPT, "--format", "json"], args].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A result without what another wording of the request changes.
fn outcome(mut result: Value) -> Value {
    let object = result.as_object_mut().unwrap();
    object.remove("groups");
    object.remove("interventions");
    if let Some(points) = object.get_mut("points").and_then(Value::as_array_mut) {
        points.iter_mut().for_each(|point| point["name"] = Value::Null);
    }
    result
}

/// Features of a graph's JSON whose label is `label`, as L_F_P, with their activations.
fn labelled(folder: &Path, slug: &str, label: &str) -> Vec<(String, f64)> {
    let graph: Value =
        serde_json::from_slice(&std::fs::read(folder.join(format!("graphs/{slug}.json"))).unwrap()).unwrap();
    let nodes = graph["nodes"].as_array().unwrap().iter().filter(|node| node["clerp"] == label);
    nodes.map(|node| (node["node_id"].as_str().unwrap().to_owned(), node["activation"].as_f64().unwrap())).collect()
}

#[test]
fn a_name_stands_for_all_features_of_a_supernode_or_a_label() {
    let folder = folder_with_graphs();
    let folder = folder.path();
    let graph = ["--graph", "graphs/dallas.json"];
    let texas = labelled(folder, "dallas", "Texas");
    assert!(!texas.is_empty());
    let by_id = |option: &str, suffix: &str, ids: &[&str]| -> Value {
        let values: Vec<String> = ids.iter().map(|id| format!("{id}{suffix}")).collect();
        let args: Vec<&str> = values.iter().flat_map(|value| [option, value.as_str()]).collect();
        outcome(run(folder, &[&graph[..], &args].concat()))
    };
    let texas: Vec<&str> = texas.iter().map(|(id, _)| id.as_str()).collect();
    let named = |args: &[&str]| outcome(run(folder, &[&graph[..], args].concat()));
    assert_eq!(named(&["--ablate", "Texas"]), by_id("--ablate", "", &texas), "a label");
    let capital = ["0_656_2", "0_90_2"];
    assert_eq!(named(&["--scale", "capital=-2"]), by_id("--scale", "=-2", &capital), "a supernode");
    assert_eq!(named(&["--set", "capital=3.5"]), by_id("--set", "=3.5", &capital));
    assert_ne!(named(&["--scale", "capital=-2"]), named(&["--scale", "capital=2"]));

    // A sweep of a supernode scales all of it.
    let alternative = |factor: i32| {
        let entries = capital.map(|id| json!({"node": id, "scale": factor}));
        json!({"name": factor.to_string(), "interventions": entries})
    };
    let plan = json!({"alternatives": (-1..=1).map(|i| alternative(2 * i)).collect::<Vec<_>>()});
    std::fs::write(folder.join("plan.json"), plan.to_string()).unwrap();
    let (mut swept, planned) = (named(&["--sweep", "capital=-2..2/2"]), named(&["--plan", "plan.json"]));
    let points = swept["points"].as_array_mut().unwrap();
    assert_eq!(points.len(), 3);
    for (point, value) in points.iter_mut().zip([-2.0, 0.0, 2.0]) {
        assert_eq!(point.as_object_mut().unwrap().remove("value"), Some(json!(value)));
    }
    assert_eq!(swept, planned);
}

#[test]
fn the_graph_gives_prompt_and_model_where_nothing_else_does() {
    let folder = folder_with_graphs();
    let with_prompt = run(folder.path(), &["--graph", "graphs/dallas.json", "--ablate", "Texas"]);
    for graph in ["graphs/dallas.json", "graphs/dallas.safetensors"] {
        let args = ["intervene", "--graph", graph, "--ablate", "0_39_7", "--ablate", "1_224_7", "--format", "json"];
        let output = circuitscope(folder.path(), &args);
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["prompt"], with_prompt["prompt"], "{graph}");
        assert_eq!(json["prompt_tokens"], with_prompt["prompt_tokens"], "{graph}");
    }
}

#[test]
fn a_supernode_of_another_graph_brings_the_activations_that_it_has_there() {
    let folder = folder_with_graphs();
    let folder = folder.path();
    let california = labelled(folder, "oakland", "California");
    assert!(!california.is_empty());
    let values: Vec<String> = california.iter().map(|(id, value)| format!("{id}={value}")).collect();
    let explicit: Vec<&str> = values.iter().flat_map(|value| ["--set", value.as_str()]).collect();
    let like = run(folder, &["--ablate", "0_39_7", "--like", "graphs/oakland.json:California"]);
    assert_eq!(outcome(like.clone()), outcome(run(folder, &[&["--ablate", "0_39_7"], &explicit[..]].concat())));
    let group = &like["groups"].as_array().unwrap()[0];
    assert_eq!((&group["name"], &group["is_changed"]), (&json!("California"), &json!(true)));
    assert!((group["percent_after"].as_f64().unwrap() - 100.0).abs() < 1e-3, "as in the other graph: {group}");

    // Into a longer prompt: the place is that of the same token, or the end.
    let output = circuitscope(
        folder,
        &[
            "intervene",
            "The largest city of the state containing Dallas is",
            "--like",
            "graphs/dallas.json:say a capital",
            "--format",
            "json",
        ],
    );
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(json["interventions"][0].as_str().unwrap().starts_with("3_955_9="), "{json}");
}

#[test]
fn another_prompt_exchanges_all_features_of_the_tokens_that_differ() {
    let folder = folder_with_graphs();
    let folder = folder.path();
    let tracer = Tracer::open(Setup::atlas()).unwrap();
    let active = |prompt: &str| -> BTreeMap<FeatureId, f32> {
        let all = tracer.active_features(prompt, &Job::default()).unwrap().into_iter();
        all.filter(|(id, _)| id.pos == 7).collect()
    };
    let (here, there) = (active(PROMPT), active(OAKLAND));
    let node = |id: &FeatureId| format!("{}_{}_{}", id.layer, id.feature, id.pos);
    let off = here.keys().filter(|id| !there.contains_key(id)).map(|id| json!({"node": node(id), "ablate": true}));
    let on = there.iter().map(|(id, value)| json!({"node": node(id), "set": value}));
    let plan: Vec<Value> = off.chain(on).collect();
    assert!(plan.len() > there.len(), "something is switched off");
    std::fs::write(folder.join("plan.json"), json!(plan).to_string()).unwrap();
    let planned = outcome(run(folder, &["--plan", "plan.json"]));
    assert_eq!(outcome(run(folder, &["--like-prompt", OAKLAND])), planned);
    assert_eq!(
        outcome(run(folder, &["--like", "graphs/oakland.safetensors"])),
        planned,
        "a raw graph has all features"
    );
    assert_eq!(outcome(run(folder, &["--like-prompt", OAKLAND, "--like-at", "7..8"])), planned);
    let likeliest = planned["tokens"].as_array().unwrap().iter().find(|token| token["rank_after"] == 1).unwrap();
    assert_eq!(likeliest["text"], " Sacramento");
}

#[test]
fn the_strongest_features_are_those_that_inspect_lists_first() {
    let folder = folder_with_graphs();
    let folder = folder.path();
    let listed = circuitscope(folder, &["inspect", "graphs/dallas.json", "--top", "50", "--format", "json"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let strongest = listed["strongest"].as_array().unwrap().iter().filter(|node| node["kind"] == "feature");
    let ids: Vec<String> = strongest.take(3).map(|node| node["id"].as_str().unwrap().to_owned()).collect();
    let args: Vec<String> = ids.iter().flat_map(|id| ["--scale".to_owned(), format!("{id}=2")]).collect();
    let graph = ["--graph", "graphs/dallas.json"];
    let explicit: Vec<&str> = graph.iter().copied().chain(args.iter().map(String::as_str)).collect();
    let top = run(folder, &[&graph[..], &["--top-features", "3", "--scale", "2"]].concat());
    assert_eq!(outcome(top), outcome(run(folder, &explicit)));
}

#[test]
fn supernodes_are_read_in_per_cent_of_what_they_were() {
    let folder = folder_with_graphs();
    let folder = folder.path();
    let result = run(folder, &["--graph", "graphs/dallas.json", "--scale", "Texas=-2", "--top", "1000"]);
    let groups = result["groups"].as_array().unwrap();
    let group = |name: &str| groups.iter().find(|group| group["name"] == name).unwrap_or_else(|| panic!("{groups:?}"));
    let near = |value: &Value, expected: f64| {
        assert!((value.as_f64().unwrap() - expected).abs() < 1e-3 * expected.abs().max(1.0), "{value}, not {expected}");
    };
    near(&group("Texas")["percent_after"], -200.0);
    assert_eq!(group("Texas")["is_changed"], true);
    // The others are what the table of features says: the mean of after over before.
    let features = result["features"].as_array().unwrap();
    let ratio = |id: [u64; 3]| {
        let is_it = |f: &&Value| [&f["layer"], &f["feature"], &f["pos"]].map(|n| n.as_u64().unwrap()) == id;
        features.iter().find(is_it).map_or(1.0, |f| f["after"].as_f64().unwrap() / f["before"].as_f64().unwrap())
    };
    let capital = (ratio([0, 656, 2]) + ratio([0, 90, 2])) / 2.0;
    near(&group("capital")["percent_after"], 100.0 * capital);
    let say = ratio([3, 955, 8]);
    assert!((say - 1.0).abs() > 0.01, "the change reaches it");
    near(&group("say a capital")["percent_after"], 100.0 * say);
    assert_eq!(group("say a capital")["is_changed"], false);

    let text = stdout(&circuitscope(
        folder,
        &["intervene", "--graph", "graphs/dallas.json", "--scale", "Texas=-2", "--picture", "change.svg"],
    ));
    assert!(text.contains("supernodes") && text.contains("-200 %") && text.contains("(activations)"), "{text}");
    let svg = std::fs::read_to_string(folder.join("change.svg")).unwrap();
    for shown in ["Texas", "-200 %", "say a capital", "red border: changed"] {
        assert!(svg.contains(shown), "{shown}");
    }
    let png = ["intervene", "--graph", "graphs/dallas.json", "--scale", "Texas=-2", "--picture", "change.png"];
    assert!(circuitscope(folder, &png).status.success());
    assert!(std::fs::read(folder.join("change.png")).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn features_are_compared_by_activation_and_under_constraints_by_pre_activation() {
    let folder = tempfile::tempdir().unwrap();
    let of = |args: &[&str]| {
        let result = run(folder.path(), &[&["--ablate", "0_39_7", "--top", "1000"], args].concat());
        let is_it = |f: &&Value| f["layer"] == 3 && f["feature"] == 260 && f["pos"] == 8;
        let feature = result["features"].as_array().unwrap().iter().find(is_it).unwrap().clone();
        (result["measure"].clone(), feature)
    };
    // The feature's threshold lies above what is left of it.
    let (measure, feature) = of(&[]);
    assert_eq!((measure, &feature["after"]), (json!("activation"), &json!(0.0)));
    let (measure, feature) = of(&["--direct"]);
    assert_eq!((measure, &feature["after"]), (json!("pre-activation"), &feature["pre_activation"]));
    // The edge of the graph, as the guide shows it.
    assert!(
        (feature["before"].as_f64().unwrap() - feature["after"].as_f64().unwrap() - 6.377).abs() < 1e-2,
        "{feature}"
    );
    let text = |args: &[&str]| {
        stdout(&circuitscope(folder.path(), &[&["intervene", PROMPT, "--ablate", "0_39_7"], args].concat()))
    };
    assert!(text(&[]).contains("(activations)") && text(&[]).contains("  off"));
    assert!(text(&["--direct"]).contains("(pre-activations)") && !text(&["--direct"]).contains("  off"));
}

#[test]
fn differences_and_directions_are_followed_and_traced_alike() {
    let folder = folder_with_graphs();
    let folder = folder.path();
    let tracer = Tracer::open(Setup::atlas()).unwrap();
    let tokens = [" Austin", " Sacramento"].map(|text| tracer.token(text).unwrap());
    let rows = tracer.replacement().model.unembedding_rows(&tokens).unwrap().to_vec2::<f32>().unwrap();
    let vec: Vec<u8> = rows[0].iter().zip(&rows[1]).flat_map(|(a, b)| (a - b).to_le_bytes()).collect();
    let header =
        json!({"steer": {"dtype": "F32", "shape": [rows[0].len()], "data_offsets": [0, vec.len()]}}).to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec].concat();
    std::fs::write(folder.join("steer.safetensors"), file).unwrap();

    let sum = "\" Austin\" - \" Sacramento\"";
    let result = run(
        folder,
        &[
            "--ablate",
            "0_39_7",
            "--target",
            " Austin",
            "--target",
            " Sacramento",
            "--target-diff",
            " Austin",
            " Sacramento",
            "--target-direction",
            sum,
            "--target-direction",
            "steer.safetensors",
        ],
    );
    let followed = result["followed"].as_array().unwrap();
    let labels: Vec<&str> = followed.iter().map(|f| f["label"].as_str().unwrap()).collect();
    assert_eq!(labels, ["\" Sacramento\"", sum, sum, "steer"]);
    let change = |at: usize| followed[at]["after"].as_f64().unwrap() - followed[at]["before"].as_f64().unwrap();
    let austin = result["target"]["logit_change"].as_f64().unwrap();
    assert!((change(1) - (austin - change(0))).abs() < 1e-3, "a difference of logits");
    for at in [2, 3] {
        assert!((followed[at]["before"].as_f64().unwrap() - followed[1]["before"].as_f64().unwrap()).abs() < 1e-3);
        assert!((change(at) - change(1)).abs() < 1e-3, "{}", labels[at]);
    }
    // A sweep follows them too, in table and CSV.
    let sweep = run(folder, &["--sweep", "0_39_7=0..0/1", "--target-diff", " Austin", " Sacramento"]);
    let value = sweep["points"][0]["followed"][0].as_f64().unwrap();
    assert!((value - followed[1]["after"].as_f64().unwrap()).abs() < 1e-3);
    let args =
        ["intervene", PROMPT, "--sweep", "0_39_7=0..4/2", "--target-diff", " Austin", " Sacramento", "--format", "csv"];
    let csv = stdout(&circuitscope(folder, &args));
    assert!(csv.lines().next().unwrap().contains("Sacramento") && csv.lines().count() == 4, "{csv}");

    // Traced, all three are the same target.
    let edges = |slug: &str, args: &[&str]| {
        let trace = [&["trace", PROMPT, "--slug", slug, "-q", "--no-raw"], args].concat();
        let output = circuitscope(folder, &trace);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let graph: Value =
            serde_json::from_slice(&std::fs::read(folder.join(format!("graphs/{slug}.json"))).unwrap()).unwrap();
        graph["links"].as_array().unwrap().iter().map(|link| link["weight"].as_f64().unwrap()).collect::<Vec<f64>>()
    };
    let expected = edges("diff", &["--target-diff", " Austin", " Sacramento"]);
    for (slug, direction) in [("sum", sum), ("file", "steer.safetensors:steer")] {
        let found = edges(slug, &["--target-direction", direction]);
        assert_eq!(found.len(), expected.len(), "{direction}");
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-3 * b.abs().max(0.1)), "{direction}");
    }
}

#[test]
fn features_have_the_names_that_inspect_knows() {
    let folder = folder_with_graphs();
    let folder = folder.path();
    let texas: Vec<String> = labelled(folder, "dallas", "Texas").into_iter().map(|(id, _)| id).collect();
    let at_dallas = texas.iter().filter(|id| id.ends_with("_7")).cloned().collect::<Vec<_>>();
    assert!(!at_dallas.is_empty());
    let ablated = |ids: &[String]| {
        let ids: Vec<&str> = ids.iter().flat_map(|id| ["--ablate", id.as_str()]).collect();
        outcome(run(folder, &[&["--graph", "graphs/dallas.json"], &ids[..]].concat()))
    };
    let owned = |ids: &[&str]| ids.iter().map(|&id| id.to_owned()).collect::<Vec<String>>();
    let graph: Value = serde_json::from_slice(&std::fs::read(folder.join("graphs/dallas.json")).unwrap()).unwrap();
    let ids = graph["nodes"].as_array().unwrap().iter().map(|node| node["node_id"].as_str().unwrap());
    let everywhere: Vec<String> = ids.filter(|id| id.starts_with("0_39_")).map(str::to_owned).collect();
    assert!(!everywhere.is_empty());
    for (name, expected) in [
        ("0/39", everywhere.clone()),
        ("0_39", everywhere),
        ("0_39@7", owned(&["0_39_7"])),
        ("0/39/-2", owned(&["0_39_7"])),
        ("3_955_-1", owned(&["3_955_8"])),
        ("texas", texas.clone()),
        ("Texas@7", at_dallas.clone()),
        ("Texas@-2", at_dallas),
        ("Say A Capital", owned(&["3_955_8"])),
        ("capital@2", owned(&["0_656_2", "0_90_2"])),
    ] {
        assert_eq!(ablated(&owned(&[name])), ablated(&expected), "{name}");
    }
    // Without a graph, numbers do: at a position, or wherever the feature is active.
    for (name, expected) in [("0/39", "0_39_*"), ("0_39", "0_39_*"), ("0/39@7", "0_39_7"), ("3_955_-1", "3_955_8")] {
        assert_eq!(outcome(run(folder, &["--ablate", name])), outcome(run(folder, &["--ablate", expected])), "{name}");
    }
    let set = |name: &str| outcome(run(folder, &["--set", name]));
    assert_eq!(set("3_955_-1=9"), set("3_955_8=9"));
}

#[test]
fn a_name_that_two_supernodes_have_is_refused_with_both() {
    let folder = folder_with_graphs();
    let folder = folder.path();
    let path = folder.join("graphs/dallas.json");
    let mut graph: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    graph["qParams"]["supernodes"] = json!([["twice", "0_656_2"], ["twice", "0_90_2"], ["Once", "3_955_8"]]);
    std::fs::write(&path, graph.to_string()).unwrap();
    fn with<'a>(args: &[&'a str]) -> Vec<&'a str> {
        [&["intervene", PROMPT, "--graph", "graphs/dallas.json"], args].concat()
    }
    let both = ["`twice`", "0_656_2", "0_90_2", "graphs/dallas.json"];
    for args in [&["--ablate", "twice"][..], &["--set", "TWICE=3"], &["--scale", "twice@2=2"]] {
        refused_with(folder, &with(args), &both);
    }
    std::fs::write(folder.join("plan.json"), r#"[{"supernode": "twice", "ablate": true}]"#).unwrap();
    refused_with(folder, &with(&["--plan", "plan.json"]), &both);
    // Another name, and the features themselves, are not in doubt.
    run(folder, &["--graph", "graphs/dallas.json", "--ablate", "once"]);
    run(folder, &["--graph", "graphs/dallas.json", "--ablate", "0_90_2"]);
}

#[test]
fn what_names_nothing_or_fits_nothing_is_refused() {
    let folder = folder_with_graphs();
    let folder = folder.path();
    // A safetensors file without tensors: no direction, which is not the default targets.
    std::fs::write(folder.join("empty.safetensors"), [&2u64.to_le_bytes()[..], b"{}"].concat()).unwrap();
    let trace = ["trace", PROMPT, "--slug", "empty", "--target-direction", "empty.safetensors"];
    refused_with(folder, &trace, &["`empty.safetensors`", "no tensors"]);
    assert!(!folder.join("graphs/empty.json").exists());
    let unknown = ["intervene", PROMPT, "--graph", "graphs/dallas.json", "--ablate", "0/1"];
    refused_with(folder, &unknown, &["no node `0/1`"]);
    let message = circuitscope(folder, &unknown).stderr;
    assert!(!String::from_utf8_lossy(&message).contains("supernode"), "{}", String::from_utf8_lossy(&message));
    assert!(circuitscope(folder, &["trace", "The opposite of small is", "--slug", "small", "-q"]).status.success());
    let graph = ["--graph", "graphs/dallas.json"];
    for (args, parts) in [
        (&["--ablate", "Texsa"][..], &["`Texsa`", "graphs/dallas.json", "nearest is `Texas`"][..]),
        (&["--ablate", "Ohio"], &["`Ohio`", "supernodes are capital, say a capital"]),
        (&["--scale", "Texas"], &["--scale Texas", "NUMBER"]),
        (&["--scale", "Texas=x"], &["--scale Texas=x"]),
        (&["--top-features", "3"], &["--top-features", "--scale X"]),
        (&["--like", "graphs/oakland.json:Calfornia"], &["Calfornia", "nearest is `California`"]),
        (&["--like", "graphs/missing.json:California"], &["graphs/missing.json"]),
        (&["--like", "graphs/dallas.json"], &["same tokens", "--like-at"]),
        (&["--like-prompt", "The opposite of small is"], &["9 tokens", "--like FILE:NAME"]),
        (&["--like-prompt", OAKLAND, "--like-at", "20"], &["position 20"]),
        (&["--ablate", "Texas@3"], &["`Texas@3`"]),
        (&["--target-direction", "empty.safetensors", "--ablate", "Texas"], &["`empty.safetensors`", "no tensors"]),
        (&["--target-direction", "missing.safetensors", "--ablate", "Texas"], &["missing.safetensors"]),
        (&["--target-direction", "\" Austin\" - \" Austin\"", "--ablate", "Texas"], &["zero"]),
        (&["--target-direction", "\" Aus tin\"", "--ablate", "Texas"], &["Aus tin"]),
        (&["--group-url", "https://x.y/graph?slug=a", "--ablate", "Texas"], &["pinnedIds"]),
        (&["--group", "x=9_9_9", "--ablate", "Texas"], &["9_9_9"]),
    ] {
        refused_with(folder, &[&["intervene", PROMPT], &graph[..], args].concat(), parts);
    }
    refused_with(folder, &["intervene", PROMPT, "--ablate", "Texas"], &["Texas", "--graph"]);
    refused_with(
        folder,
        &["intervene", PROMPT, "--ablate", "0_39_7", "--picture", "a.svg"],
        &["--picture", "supernodes"],
    );
    refused_with(folder, &["intervene", PROMPT, "--like", "graphs/oakland.json"], &["--graph", "raw graph"]);
    refused_with(folder, &["intervene", PROMPT, "--top-features", "3", "--scale", "2"], &["--graph"]);
    assert!(!folder.join("a.svg").exists());
}
