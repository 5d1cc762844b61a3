//! The program from outside: what it prints, what it writes, and what it says to bad input.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{PROMPT, circuitscope, copy_folder, fixture, refused, refused_with, stdout};

/// A copy of a small model with its transcoders that a test may damage.
fn small_model(folder: &Path) -> (PathBuf, PathBuf) {
    let (model, transcoders) = (folder.join("model"), folder.join("transcoders"));
    copy_folder(&fixture("reference/llama_relu/model"), &model);
    copy_folder(&fixture("reference/llama_relu/transcoders"), &transcoders);
    (model, transcoders)
}

const SMALL: [&str; 6] = ["trace", "He went", "--model", "model", "--transcoders", "transcoders"];

/// Rewrites a safetensors file with other values for one tensor.
fn replace_tensor(path: &Path, name: &str, change: impl Fn(&mut Vec<usize>, &mut Vec<u8>)) {
    let bytes = std::fs::read(path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let changed: Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)> = tensors
        .tensors()
        .into_iter()
        .map(|(tensor, view)| {
            let (mut shape, mut data) = (view.shape().to_vec(), view.data().to_vec());
            if tensor == name {
                change(&mut shape, &mut data);
            }
            (tensor, view.dtype(), shape, data)
        })
        .collect();
    let views = changed.iter().map(|(tensor, dtype, shape, data)| {
        (tensor.clone(), safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn trace_needs_no_argument_but_the_prompt_and_writes_both_graphs() {
    let folder = tempfile::tempdir().unwrap();
    let output = circuitscope(folder.path(), &["trace", PROMPT]);
    assert!(output.status.success());
    let text = stdout(&output);
    for part in ["\" Austin\" 1.000", "replacement 0.905", "completeness 0.974", "Texas", "strongest paths"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let slug = "the-capital-of-the-state-containing-dallas-is";
    for extension in ["json", "safetensors"] {
        assert!(folder.path().join(format!("graphs/{slug}.{extension}")).is_file());
    }
}

#[test]
fn the_same_command_writes_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    for (out, threads) in [("a", "1"), ("b", "2")] {
        let args = ["trace", PROMPT, "--out-dir", out, "--slug", "graph", "--threads", threads];
        assert!(circuitscope(folder.path(), &args).status.success());
    }
    let args = ["trace", PROMPT, "--out-dir", "c", "--slug", "graph", "--threads", "2"];
    assert!(circuitscope(folder.path(), &args).status.success());
    let read = |out: &str, name: &str| std::fs::read(folder.path().join(out).join(name)).unwrap();
    for name in ["graph.json", "graph.safetensors"] {
        assert_eq!(read("b", name), read("c", name), "{name}");
        assert_eq!(read("a", name), read("b", name), "{name} depends on the number of threads");
    }
}

#[test]
fn trace_prune_and_inspect_tell_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let traced = circuitscope(at, &["trace", PROMPT, "--slug", "g", "--format", "json", "--timings"]);
    let traced: Value = serde_json::from_str(&stdout(&traced)).unwrap();
    let inspected = circuitscope(at, &["inspect", "graphs/g.safetensors", "--format", "json"]);
    let inspected: Value = serde_json::from_str(&stdout(&inspected)).unwrap();
    for key in ["prompt", "predictions", "counts", "strongest", "paths"] {
        assert_eq!(traced[key], inspected[key], "{key}");
    }
    assert!(traced["timings"].as_array().unwrap().len() >= 4);
    assert!(circuitscope(at, &["prune", "graphs/g.safetensors", "-o", "again.json"]).status.success());
    let json = |path: &str| -> Value { serde_json::from_slice(&std::fs::read(at.join(path)).unwrap()).unwrap() };
    assert_eq!(json("graphs/g.json")["nodes"], json("again.json")["nodes"]);
    assert_eq!(json("graphs/g.json")["links"], json("again.json")["links"]);
}

#[test]
fn every_kind_of_target_can_be_traced() {
    let folder = tempfile::tempdir().unwrap();
    let args = [
        "trace",
        PROMPT,
        "--slug",
        "g",
        "--target",
        " Austin",
        "--target",
        " Austin",
        "--target-id",
        "100",
        "--target-diff",
        " Austin",
        " Sacramento",
        "--target-feature",
        "3_955_8",
        "--format",
        "json",
    ];
    let output = circuitscope(folder.path(), &args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["counts"]["targets"], 4);
    assert!(report["scores"]["row_identity_error"].as_f64().unwrap() < 1e-5);
    // An earlier position: later tokens cannot matter, so they have no path to the target.
    let args = ["trace", PROMPT, "--slug", "p", "--position", "3", "--format", "json"];
    let report: Value = serde_json::from_str(&stdout(&circuitscope(folder.path(), &args))).unwrap();
    let strongest = report["strongest"].as_array().unwrap();
    assert!(!strongest.is_empty() && strongest.iter().all(|node| node["pos"].as_u64().unwrap() <= 3));
    let graph: Value = serde_json::from_slice(&std::fs::read(folder.path().join("graphs/p.json")).unwrap()).unwrap();
    let nodes = graph["nodes"].as_array().unwrap();
    let later: Vec<&Value> = nodes.iter().filter(|node| node["ctx_idx"].as_u64().unwrap() > 3).collect();
    let links = graph["links"].as_array().unwrap();
    assert!(!later.is_empty() && !links.is_empty());
    for node in later {
        let has_path = links.iter().any(|link| link["source"] == node["node_id"] || link["target"] == node["node_id"]);
        assert!(!has_path, "{}", node["node_id"]);
    }
}

#[test]
fn a_prompt_can_come_as_tokens_or_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("prompt.txt"), format!("{PROMPT}\n")).unwrap();
    let from = |args: &[&str]| -> Value {
        let args = [&["trace", "--slug", "g", "--format", "json"], args].concat();
        let output = circuitscope(folder.path(), &args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str(&stdout(&output)).unwrap()
    };
    let (text, file) = (from(&[PROMPT]), from(&["--prompt-file", "prompt.txt"]));
    assert_eq!(text["strongest"], file["strongest"]);
    let bytes = std::fs::read(folder.path().join("graphs/g.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ids: Vec<String> = tensors
        .tensor("input_tokens")
        .unwrap()
        .data()
        .chunks_exact(8)
        .map(|b| i64::from_le_bytes(b.try_into().unwrap()).to_string())
        .collect();
    assert_eq!(from(&["--tokens", &ids.join(",")])["strongest"], text["strongest"]);
}

#[test]
fn bad_prompts_and_targets_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    refused_with(at, &["trace", ""], &["empty"]);
    refused_with(at, &["trace", "--tokens", "2,99999"], &["99999", "3147"]);
    let long = "capital ".repeat(5000);
    refused_with(at, &["trace", &long], &["context"]);
    refused_with(at, &["trace", PROMPT, "--target", "Austin Texas"], &["--target", "not one token"]);
    refused_with(at, &["trace", PROMPT, "--target-feature", "3_41"], &["layer_feature_position"]);
    refused_with(at, &["trace", PROMPT, "--target-feature", "9_41_2"], &["layer 9", "4 layers"]);
    refused_with(at, &["trace", PROMPT, "--target-feature", "3_41_99"], &["position 99"]);
    refused_with(at, &["trace", PROMPT, "--position", "99"], &["position 99"]);
    refused_with(at, &["trace", "--prompt-file", "nowhere.txt"], &["nowhere.txt"]);
    assert!(!at.join("graphs").exists() || at.join("graphs").read_dir().unwrap().next().is_none());
}

#[test]
fn settings_out_of_range_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for args in [
        ["--node-threshold", "1.5"],
        ["--edge-threshold", "-0.1"],
        ["--node-threshold", "NaN"],
        ["--logit-prob", "2"],
        ["--max-logits", "0"],
        ["--device", "tpu"],
    ] {
        let option = args.join("=");
        let message = refused(folder.path(), &["trace", PROMPT, &option]);
        assert!(message.contains(args[1]), "{message}");
    }
    refused(folder.path(), &["trace", PROMPT, "--max-features", "many"]);
    refused_with(folder.path(), &["trace", PROMPT, "--max-features", "9", "--batch-size=0"], &["`batch_size` is 0"]);
    if !circuitscope::ops::built_with_cuda() {
        refused_with(folder.path(), &["trace", PROMPT, "--device", "cuda:1"], &["cuda:1", "--features cuda"]);
    }
    refused_with(folder.path(), &["trace", PROMPT, "--device", "cuda:first"], &["cuda:first", "cuda:N"]);
    refused(folder.path(), &["trace"]);
}

#[test]
fn options_that_would_be_passed_over_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let conflict = "cannot be used with";
    let missing = "required arguments were not provided";
    let traces: [(&[&str], &[&str]); 12] = [
        (&["--batch-size", "8"], &["--max-features <N>", missing]),
        (&["--rows", "20", "--batch-size", "8"], &["--batch-size <N>", conflict]),
        (&["--nodes", "20", "--batch-size", "8"], &["--batch-size <N>", conflict]),
        (&["--target", " Austin", "--max-logits", "3"], &["--max-logits <N>", conflict]),
        (&["--target-feature", "3_955_8", "--logit-prob", "0.5"], &["--logit-prob <SHARE>", conflict]),
        (&["--target-feature", "3_955_8", "--position", "3"], &["--position", "positions of their own"]),
        (&["--target-attention", "1.0@3:2", "--position", "3"], &["--position", "positions of their own"]),
        (&["--timings"], &["--timings", "--format json"]),
        (&["--features", "atlas"], &["--features", "--examples"]),
        (&["--no-raw", "--no-decoders"], &["--no-decoders", conflict]),
        (&["--no-raw", "--no-json", "--heads"], &["--heads", "--no-raw and --no-json"]),
        (&["--no-raw", "--no-json", "--open"], &["--open", "--no-raw and --no-json"]),
    ];
    for (args, parts) in traces {
        refused_with(at, &[&["trace", PROMPT], args].concat(), parts);
        assert!(!at.join("graphs").exists(), "{args:?}");
    }
    let interventions: [(&[&str], &[&str]); 13] = [
        (&["--ablate", "0_39_7", "--seed", "3"], &["--temperature <T>", missing]),
        (&["--ablate", "0_39_7", "--generate", "2", "--seed", "3"], &["--temperature <T>", missing]),
        (&["--sweep", "0_39_7=0..2/1", "--temperature", "1"], &["--temperature <T>", conflict]),
        (&["--sweep", "0_39_7=0..2/1", "--top-p", "0.5"], &["--top-p <P>", conflict]),
        (&["--sweep", "0_39_7=0..2/1", "--seed", "3"], &["--seed <S>", conflict]),
        (&["--sweep", "0_39_7=0..2/1", "--keep-frozen"], &["--keep-frozen", conflict]),
        (&["--ablate", "0_39_7", "--group", "a=0_39_7"], &["--graph <FILE>", missing]),
        (&["--ablate", "0_39_7", "--group-file", "g.json"], &["--graph <FILE>", missing]),
        (&["--ablate", "0_39_7", "--auto-group"], &["--graph <FILE>", missing]),
        (&["--ablate", "0_39_7", "--no-groups"], &["--graph <FILE>", missing]),
        (&["--ablate", "0_39_7", "--like-at", "4"], &["--like <FILE[:NAME]>", missing]),
        (&["--like", "g.json:Texas", "--like-at", "4"], &["--like-at", "supernode"]),
        (&["--ablate", "0_39_7", "--cells", "exact"], &["--cells", "--format csv"]),
    ];
    for (args, parts) in interventions {
        refused_with(at, &[&["intervene", PROMPT], args].concat(), parts);
    }
    let others: [(&[&str], &[&str]); 15] = [
        (&["batch", "p.jsonl", "--no-raw", "--no-decoders"], &["--no-decoders", conflict]),
        (&["inspect", "g.json", "--cells", "exact"], &["--cells", "csv-nodes"]),
        (&["train", "--out", "t", "--field", "body"], &["--text <FILE>...", missing]),
        (&["train", "--out", "t", "--from", "atlas", "--features", "64"], &["--features <N>", conflict]),
        (&["train", "--out", "t", "--from", "atlas", "--activation", "topk"], &["--activation <FUNCTION>", conflict]),
        (&["train", "--out", "t", "--from", "atlas", "--l0", "8,16"], &["--from", "--l0"]),
        (&["evaluate", "--field", "body"], &["--text <FILE>...", missing]),
        (
            &["features", "label", "atlas", "-o", "l", "--import", "a.csv", "--explain", "all"],
            &["--explain <", conflict],
        ),
        (
            &["features", "label", "atlas", "-o", "l", "--import", "a.csv", "--min-f1", "0.4"],
            &["--min-f1 <F1>", conflict],
        ),
        (&["features", "label", "atlas", "-o", "l", "--import", "a.csv", "--tokens", "9"], &["--tokens <N>", conflict]),
        (&["features", "search", "atlas", "fox", "--model", "atlas"], &["--model", "--on-text"]),
        (
            &["features", "export", "atlas", "--format", "neuronpedia", "-o", "x", "--no-logits", "--model", "atlas"],
            &["--no-logits"],
        ),
        (&["serve", "--no-model", "--device", "cpu"], &["--no-model", conflict]),
        (&["heads", "--node-threshold", "0.5"], &["--node-threshold", "no graph"]),
        (&["heads", "--transcoders", "somewhere"], &["--transcoders", "the model alone"]),
    ];
    for (args, parts) in others {
        refused_with(at, args, parts);
    }
    assert_eq!(at.read_dir().unwrap().count(), 0, "nothing was written");
}

#[test]
fn files_that_are_missing_or_damaged_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let (model, transcoders) = small_model(at);
    assert!(circuitscope(at, &SMALL).status.success());
    refused_with(at, &["trace", "a", "--model", "no/such/folder", "--transcoders", "transcoders"], &["no/such/folder"]);
    refused_with(at, &["trace", "a", "--model", "model"], &["--transcoders"]);

    let layer = transcoders.join("layer_2.safetensors");
    let whole = std::fs::read(&layer).unwrap();
    std::fs::write(&layer, &whole[..whole.len() / 2]).unwrap();
    refused_with(at, &SMALL, &["layer_2.safetensors", "layer 2"]);
    std::fs::remove_file(&layer).unwrap();
    refused_with(at, &SMALL, &["layer_2.safetensors"]);
    std::fs::write(&layer, &whole).unwrap();

    replace_tensor(&layer, "W_enc", |_, data| data[400..404].copy_from_slice(&f32::NAN.to_le_bytes()));
    refused_with(at, &SMALL, &["W_enc", "layer_2.safetensors", "NaN"]);
    std::fs::write(&layer, &whole).unwrap();

    replace_tensor(&layer, "W_dec", |shape, _| *shape = vec![shape[0] * 2, shape[1] / 2]);
    refused_with(at, &SMALL, &["W_dec", "[512, 32]", "[256, 64]"]);
    std::fs::write(&layer, &whole).unwrap();

    let weights = model.join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    replace_tensor(&weights, "model.layers.1.mlp.up_proj.weight", |_, data| {
        data[..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    });
    refused_with(at, &SMALL, &["model.layers.1.mlp.up_proj.weight", "inf"]);
    std::fs::write(&weights, &whole[..whole.len() - 1000]).unwrap();
    refused_with(at, &SMALL, &["model.safetensors"]);
    std::fs::write(&weights, &whole).unwrap();
    assert!(circuitscope(at, &SMALL).status.success(), "the files are whole again");
}

#[test]
fn configs_that_cannot_be_met_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let (model, transcoders) = small_model(at);
    let config = model.join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    for (from, to, parts) in [
        ("\"llama\"", "\"mamba\"", &["mamba", "qwen3", "gpt_oss"][..]),
        ("\"num_hidden_layers\": 4", "\"num_hidden_layers\": 3", &["4 layers", "3"]),
        ("\"hidden_size\": 64", "\"hidden_size\": 32", &["embed_tokens", "[512, 64]", "[512, 32]"]),
        ("\"silu\"", "\"sine\"", &["hidden_act", "sine"]),
        ("\"num_hidden_layers\": 4", "\"num_hidden_layers\": \"four\"", &["num_hidden_layers", "four"]),
    ] {
        assert!(text.contains(from), "{from}");
        std::fs::write(&config, text.replace(from, to)).unwrap();
        refused_with(at, &SMALL, parts);
    }
    std::fs::write(&config, &text).unwrap();
    let yaml = transcoders.join("config.yaml");
    let text = std::fs::read_to_string(&yaml).unwrap();
    for (from, to, parts) in [
        ("mlp.hook_in", "mlp.hook_sideways", &["mlp.hook_sideways", "hook_resid_mid"][..]),
        ("transcoder_set", "crosscoder", &["crosscoder", "cross_layer_transcoder"]),
        ("relu", "gelu", &["gelu", "topk"]),
        ("- layer_3.safetensors", "", &["3 layers", "4"]),
    ] {
        assert!(text.contains(from), "{from}");
        std::fs::write(&yaml, text.replace(from, to)).unwrap();
        refused_with(at, &SMALL, parts);
    }
    std::fs::remove_file(&yaml).unwrap();
    refused_with(at, &SMALL, &["config.yaml"]);
}

#[test]
fn an_unwritable_out_dir_is_refused_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), b"").unwrap();
    refused_with(folder.path(), &["trace", PROMPT, "--out-dir", "file/graphs"], &["file/graphs"]);
}

#[test]
fn a_raw_graph_of_another_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    assert!(circuitscope(at, &["trace", PROMPT, "--slug", "g"]).status.success());
    let path = at.join("graphs/g.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let find = br#"\"format_version\":1"#;
    let start = bytes.windows(find.len()).position(|w| w == find).unwrap();
    let mut other = bytes.clone();
    other[start + find.len() - 1] = b'7';
    std::fs::write(&path, other).unwrap();
    refused_with(at, &["inspect", "graphs/g.safetensors"], &["version 7"]);
    std::fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    refused_with(at, &["prune", "graphs/g.safetensors", "-o", "x.json"], &["g.safetensors"]);
    assert!(!at.join("x.json").exists());
    refused_with(at, &["inspect", "graphs/nowhere.json"], &["nowhere.json"]);
}

#[test]
fn automatic_supernodes_use_decoder_directions_where_the_raw_graph_holds_them() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let groups_of = |options: &[&str]| -> Value {
        assert!(circuitscope(at, &[&["trace", PROMPT, "--slug", "g"], options].concat()).status.success());
        let args = ["inspect", "graphs/g.safetensors", "--auto-group", "--format", "json"];
        serde_json::from_str::<Value>(&stdout(&circuitscope(at, &args))).unwrap()["grouping"].clone()
    };
    let (with, without) = (groups_of(&[]), groups_of(&["--no-decoders"]));
    assert_ne!(with["supernodes"], without["supernodes"]);
    for grouping in [with, without] {
        for scores in ["before", "collapsed"] {
            for score in ["replacement", "completeness"] {
                assert!((0.0..=1.0).contains(&grouping[scores][score].as_f64().unwrap()), "{grouping}");
            }
        }
    }
}

#[test]
fn saved_parts_carry_their_scores() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    assert!(circuitscope(at, &["trace", PROMPT, "--slug", "g"]).status.success());
    for (graph, over_all) in [("graphs/g.safetensors", true), ("graphs/g.json", false)] {
        let args = ["inspect", graph, "--carry", "0.5", "--save", "pinned.json", "--format", "json"];
        let told: Value = serde_json::from_str(&stdout(&circuitscope(at, &args))).unwrap();
        let saved: Value = serde_json::from_slice(&std::fs::read(at.join("pinned.json")).unwrap()).unwrap();
        assert_eq!(saved["qParams"]["pinnedIds"], told["subgraph"]["ids"]);
        let scores = &saved["metadata"]["scores"];
        assert!(scores["replacement_score"].is_number(), "those of the whole graph stay");
        let part = &scores["pinned_subgraph"];
        assert_eq!(part["replacement_score"], told["subgraph"]["replacement"]);
        assert_eq!(part["completeness_score"], told["subgraph"]["completeness"]);
        assert_eq!(part["n_pinned_features"], told["subgraph"]["n_pinned_features"]);
        assert_eq!(part["over_all_edges"], over_all);
        assert!(crate::export::schema().is_valid(&saved));
    }
}
