//! `intervene` and `verify` from outside: what they print, and what they say to bad input.

use serde_json::Value;

use crate::support::{PROMPT, circuitscope, close, fixture, refused_with, stdout};

/// Texas off, California on, at Dallas.
const SWAP: [&str; 16] = [
    "--ablate",
    "0_39_7",
    "--ablate",
    "1_224_7",
    "--set",
    "0_303_7=13.87",
    "--set",
    "0_400_7=11.456",
    "--set",
    "2_262_7=1.92",
    "--set",
    "1_17_7=1.675",
    "--set",
    "3_474_7=16.885",
    "--top",
    "5",
];

fn intervene<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["intervene", PROMPT], args].concat()
}

#[test]
fn texas_swapped_for_california_turns_austin_into_sacramento() {
    let folder = tempfile::tempdir().unwrap();
    let output = circuitscope(folder.path(), &[&intervene(&SWAP)[..], &["--generate", "2"]].concat());
    assert!(output.status.success());
    let text = stdout(&output);
    for part in ["\" Austin\" 1.000 -> 0.000", "\" Sacramento\"", "changed   \" Sacramento.", "original  \" Austin."] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let output = circuitscope(folder.path(), &[&intervene(&SWAP)[..], &["--format", "json"]].concat());
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(json["target"]["text"], " Austin");
    assert!(json["kl_divergence"].as_f64().unwrap() > 5.0);
    assert_eq!(json["tokens"][0]["rank_after"].as_u64(), Some(1));
    assert!(json["features"].as_array().unwrap().len() <= 5);
}

#[test]
fn sweeps_come_as_table_json_csv_and_picture() {
    let folder = tempfile::tempdir().unwrap();
    let sweep = intervene(&["--sweep", "0_39_7=0..20/5", "--svg", "plots/sweep.svg", "--quiet"]);
    // A folder that is not there may be a mistyped one.
    assert_eq!(circuitscope(folder.path(), &sweep).status.code(), Some(2));
    std::fs::create_dir(folder.path().join("plots")).unwrap();
    assert!(stdout(&circuitscope(folder.path(), &sweep)).contains("0_39_7=20"));
    let svg = std::fs::read_to_string(folder.path().join("plots/sweep.svg")).unwrap();
    assert_eq!(svg.matches("<circle").count(), 5);
    let csv = stdout(&circuitscope(folder.path(), &[&sweep[..], &["--format", "csv"]].concat()));
    assert_eq!(csv.lines().count(), 6);
    let n_fields = csv.lines().next().unwrap().split(',').count();
    assert!(csv.lines().all(|line| line.split(',').count() == n_fields));
    let json: Value =
        serde_json::from_str(&stdout(&circuitscope(folder.path(), &[&sweep[..], &["--format", "json"]].concat())))
            .unwrap();
    assert_eq!(json["points"].as_array().unwrap().len(), 5);
}

#[test]
fn plans_name_nodes_supernodes_and_alternatives() {
    let folder = tempfile::tempdir().unwrap();
    assert!(circuitscope(folder.path(), &["trace", PROMPT, "--slug", "g", "--quiet"]).status.success());
    let graph = folder.path().join("graphs/g.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&graph).unwrap()).unwrap();
    json["qParams"]["supernodes"] = serde_json::json!([["Texas", "0_39_7", "1_224_7", "E_5_7"]]);
    std::fs::write(&graph, json.to_string()).unwrap();
    let plan = r#"{"alternatives": [
        {"name": "off", "interventions": [{"supernode": "Texas", "ablate": true}]},
        {"name": "twice", "interventions": [{"supernode": "Texas", "scale": 2}]},
        {"name": "one", "interventions": [{"node": "0_39_7", "ablate": true}]}]}"#;
    std::fs::write(folder.path().join("plan.json"), plan).unwrap();
    let args = intervene(&["--plan", "plan.json", "--graph", "graphs/g.json", "--format", "json"]);
    let result: Value = serde_json::from_str(&stdout(&circuitscope(folder.path(), &args))).unwrap();
    let points = result["points"].as_array().unwrap();
    assert_eq!(points.iter().map(|p| p["name"].as_str().unwrap()).collect::<Vec<_>>(), ["off", "twice", "one"]);
    assert!(points[0]["target_probability"].as_f64().unwrap() < 0.1);
    assert!(points[1]["target_probability"].as_f64().unwrap() > 0.99);
    // With a graph, only its own features are listed.
    let args = intervene(&["--ablate", "0_39_7", "--graph", "graphs/g.json", "--format", "json", "--top", "500"]);
    let result: Value = serde_json::from_str(&stdout(&circuitscope(folder.path(), &args))).unwrap();
    let ids: Vec<String> =
        json["nodes"].as_array().unwrap().iter().map(|n| n["node_id"].as_str().unwrap().to_owned()).collect();
    let features = result["features"].as_array().unwrap();
    assert!(!features.is_empty());
    for feature in features {
        let id = format!("{}_{}_{}", feature["layer"], feature["feature"], feature["pos"]);
        assert!(ids.contains(&id), "{id} is no node of the graph");
    }
}

#[test]
fn what_does_not_exist_or_says_nothing_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for (args, parts) in [
        (&["--ablate", "9_1_2"][..], &["layer 9", "4 layers"][..]),
        (&["--ablate", "0_5000_2"], &["0_5000", "1024 features"]),
        (&["--ablate", "0_1_9"], &["position 9", "0..=8"]),
        (&["--ablate", "0_1_7..10"], &["position 9"]),
        (&["--ablate", "0_1_4..4"], &["4..4", "empty"]),
        (&["--ablate", "0"], &["`0`", "LAYER_FEATURE_POSITION"]),
        (&["--ablate", "9/1"], &["layer 9", "4 layers"]),
        (&["--ablate", "0_1_-10"], &["`-10`", "the last is -1"]),
        (&["--ablate", "0_1@x"], &["`x`", "a position"]),
        (&["--set", "0_1_2"], &["--set 0_1_2"]),
        (&["--set", "0_1_2=x"], &["0_1_2=x"]),
        (&["--set", "0_1_2=inf"], &["0_1_2=inf"]),
        (&["--scale", "0_39_2=2"], &["0_39", "not active", "--set"]),
        (&["--constrain", "3..3", "--ablate", "0_1_2"], &["3..3", "empty"]),
        (&["--constrain", "0..9", "--ablate", "0_1_2"], &["layer 8", "0..=3"]),
        (&["--constrain", "x", "--ablate", "0_1_2"], &["--constrain"]),
        (&["--constrain", "0..2", "--direct", "--ablate", "0_1_2"], &["--constrain", "--direct"]),
        (&["--keep-frozen", "--generate", "2", "--ablate", "0_1_2"], &["--keep-frozen", "--freeze-attention"]),
        (&["--keep-frozen", "--ablate", "0_1_2"], &["--generate"]),
        (&["--sweep", "0_1_2=0..1/1", "--generate", "2"], &["--sweep", "--generate"]),
        (&["--sweep", "0_1_2=1..0/1"], &["0_1_2=1..0/1"]),
        (&["--sweep", "0_1_2=0..1"], &["START..END/STEP"]),
        (&["--generate", "2", "--temperature=-1", "--ablate", "0_1_2"], &["--temperature"]),
        (&["--generate", "2", "--temperature", "1", "--top-p", "0", "--ablate", "0_1_2"], &["--top-p"]),
        (&["--svg", "a.svg", "--ablate", "0_1_2"], &["--picture"]),
        (&["--format", "csv", "--ablate", "0_1_2"], &["--format csv"]),
        (&["--target-id", "99999", "--ablate", "0_1_2"], &["99999"]),
        (&["--target", " Aus tin", "--ablate", "0_1_2"], &[" Aus tin"]),
        (&["--plan", "missing.json"], &["missing.json"]),
        (&["--graph", "missing.json", "--ablate", "0_1_2"], &["missing.json"]),
        (&[], &["nothing", "--set"]),
    ] {
        refused_with(at, &intervene(args), parts);
    }
}

#[test]
fn plans_with_unknown_keys_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("plan.json"), r#"[{"node": "0_39_7", "sacle": 2}]"#).unwrap();
    refused_with(folder.path(), &intervene(&["--plan", "plan.json"]), &["plan.json", "sacle"]);
    std::fs::write(folder.path().join("plan.json"), r#"[{"supernode": "Texas", "ablate": true}]"#).unwrap();
    refused_with(folder.path(), &intervene(&["--plan", "plan.json"]), &["Texas", "no graph"]);
}

/// A traced graph of the atlas prompt; its path relative to the folder.
fn traced(folder: &std::path::Path) -> &'static str {
    assert!(circuitscope(folder, &["trace", PROMPT, "--slug", "g", "--quiet"]).status.success());
    "graphs/g.safetensors"
}

#[test]
fn verify_passes_a_true_graph_and_says_what_it_is_worth() {
    let folder = tempfile::tempdir().unwrap();
    let graph = traced(folder.path());
    let output = circuitscope(folder.path(), &["verify", graph, "--format", "json"]);
    assert!(output.status.success());
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(json["passed"], true);
    assert_eq!(json["edges"]["share_within"].as_f64(), Some(1.0));
    assert!(json["identity"]["largest_relative_error"].as_f64().unwrap() < 1e-5);
    let modes = json["faithfulness"]["modes"].as_array().unwrap();
    assert_eq!(
        modes.iter().map(|m| m["mode"].as_str().unwrap()).collect::<Vec<_>>(),
        ["free", "frozen attention", "frozen attention and norms", "direct"]
    );
    // Under full constraint the graph is not a model of the model: it is the model.
    assert!(modes[3]["pearson"].as_f64().unwrap() > 0.9999);
    for curve in ["sufficiency", "necessity"] {
        assert_eq!(json["circuit"][curve].as_array().unwrap().len(), 5);
    }
    let text = stdout(&circuitscope(folder.path(), &["verify", graph]));
    for part in ["identity    holds", "edges       holds", "Spearman", "sufficient", "necessary"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

#[test]
fn verify_tests_differences_and_features_and_says_where_predictions_go_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &str); 2] = [
        (&["--target-diff", " Austin", " Sacramento"], "\" Austin\" - \" Sacramento\""),
        (&["--target-feature", "3_955_8"], "feature 3_955_8"),
    ];
    for (at, (target, label)) in cases.into_iter().enumerate() {
        let slug = format!("g{at}");
        let args = ["trace", PROMPT, "--slug", &slug, "--quiet", "--no-json"];
        assert!(circuitscope(folder.path(), &[&args[..], target].concat()).status.success());
        let graph = format!("graphs/{slug}.safetensors");
        let output = circuitscope(folder.path(), &["verify", &graph, "--format", "json"]);
        assert!(output.status.success(), "{}", stdout(&output));
        let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(json["untested"], serde_json::json!([]));
        let found = &json["faithfulness"];
        assert_eq!(found["target"], label);
        // The edges into the target itself are measured, and exact.
        let modes = found["modes"].as_array().unwrap();
        assert!(modes[3]["pearson"].as_f64().unwrap() > 0.9999, "{label}");
        let parts = &found["error_parts"];
        let number = |key: &str| parts[key].as_f64().unwrap();
        assert!(number("real") > 0.0 && number("total") <= number("from_norms") + number("from_features") + 1e-9);
        // The parts are distances between the modes' own figures.
        let real = |mode: usize| -> Vec<f64> {
            modes[mode]["single"].as_array().unwrap().iter().map(|point| point["real"].as_f64().unwrap()).collect()
        };
        let mean =
            |a: Vec<f64>, b: Vec<f64>| a.iter().zip(&b).map(|(a, b)| (a - b).abs()).sum::<f64>() / a.len() as f64;
        close(number("from_norms"), mean(real(1), real(2)), 1e-9, 1e-9, "norms");
        close(number("from_attention"), mean(real(0), real(1)), 1e-9, 1e-9, "attention");
        // What a feature gives in a straight line is best known from a small step.
        let errors: Vec<f64> =
            parts["predictors"].as_array().unwrap().iter().map(|p| p["error"].as_f64().unwrap()).collect();
        assert!(errors.len() == 4 && errors.iter().all(|error| error.is_finite()), "{errors:?}");
        let text = stdout(&circuitscope(folder.path(), &["verify", &graph]));
        for part in ["where single predictions go wrong", "norms", "attention", "first-order predictors"] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    }
}

/// Changes one value of a tensor of a raw graph.
fn tamper(path: &std::path::Path, name: &str, change: impl Fn(&mut [f32])) {
    let bytes = std::fs::read(path).unwrap();
    let header_len = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..header_len]).unwrap();
    let offset = |i: usize| header_len + header[name]["data_offsets"][i].as_u64().unwrap() as usize;
    let (start, end) = (offset(0), offset(1));
    let mut values: Vec<f32> =
        bytes[start..end].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    change(&mut values);
    let changed: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(path, [&bytes[..start], &changed, &bytes[end..]].concat()).unwrap();
}

#[test]
fn verify_fails_graphs_whose_rows_or_edges_are_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let graph = traced(folder.path());
    tamper(&folder.path().join(graph), "bias_effect", |values| values[5] += 1.0);
    let output = circuitscope(folder.path(), &["verify", graph]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("identity    FAILS"));

    // Edges that are all a little too large.
    let graph = traced(folder.path());
    tamper(&folder.path().join(graph), "edge_rows", |values| values.iter_mut().for_each(|v| *v *= 1.1));
    let output = circuitscope(folder.path(), &["verify", graph, "--format", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(json["edges"]["passed"], false);
    assert_eq!(json["passed"], false);
}

#[test]
fn graphs_of_another_model_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let graph = traced(folder.path());
    let case = fixture("reference/llama_relu");
    let (model, transcoders) = (case.join("model"), case.join("transcoders"));
    let args = ["--model", model.to_str().unwrap(), "--transcoders", transcoders.to_str().unwrap()];
    refused_with(folder.path(), &[&["verify", graph][..], &args].concat(), &["another model", "--transcoders"]);
    let args = [&["intervene", "He went", "--ablate", "0_1_1", "--graph", graph][..], &args].concat();
    refused_with(folder.path(), &args, &["another model"]);
    // The same model with other activations.
    tamper(&folder.path().join(graph), "logits", |values| values[7] += 100.0);
    refused_with(folder.path(), &["verify", graph], &["another model", "logit of token 7"]);
}
