//! The real model: SmolLM2-135M-Instruct with its transcoders. Neither is part of the repository.

use std::path::{Path, PathBuf};
use std::process::Command;

use circuitscope::attribution::{AttributionOptions, RowChoice, attribute};
use circuitscope::graph::FeatureId;
use circuitscope::heads::{HEAD_SCORES, HeadScoreOptions, head_scores};
use circuitscope::job::Job;
use circuitscope::model::ForwardOptions;
use safetensors::SafeTensors;

use crate::support::{close_all, file_named_by, open_replacement, shared};

/// The variable that names the GGUF file.
const GGUF: &str = "CIRCUITSCOPE_SMOLLM2_GGUF";

fn f32s(tensors: &SafeTensors, name: &str) -> Vec<f32> {
    let tensor = tensors.tensor(name).unwrap();
    tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn i64s(tensors: &SafeTensors, name: &str) -> Vec<i64> {
    let tensor = tensors.tensor(name).unwrap();
    tensor.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
#[ignore = "needs CIRCUITSCOPE_SMOLLM2_GGUF (SmolLM2-135M-Instruct-Q8_0.gguf) and CIRCUITSCOPE_SHARED (smollm2/ with its transcoders): cargo test --release --test it -- --ignored smollm2"]
fn rows_of_the_real_model_agree_with_the_reference() {
    let (gguf, folder) = (file_named_by(GGUF), shared("smollm2"));
    let replacement = open_replacement(&gguf, &folder.join("transcoders"));
    let cases: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("expected/cases.json")).unwrap()).unwrap();
    for case in cases.as_array().unwrap() {
        let (name, prompt) = (case["name"].as_str().unwrap(), case["prompt"].as_str().unwrap());
        let bytes = std::fs::read(folder.join(format!("expected/{name}.safetensors"))).unwrap();
        let expected = SafeTensors::deserialize(&bytes).unwrap();
        let tokens = replacement.tokenizer.encode_prompt(prompt).unwrap();
        let linear = replacement.linearize(&tokens, &Job::default()).unwrap();
        let options = AttributionOptions { rows: RowChoice::All, ..Default::default() };
        let graph = attribute(&replacement, &linear, prompt, &options, &Job::default()).unwrap().graph;

        assert_eq!(graph.input_tokens, i64s(&expected, "input_tokens"), "{name}");
        assert_eq!(graph.target_ids, i64s(&expected, "target_ids"), "{name}");
        let active: Vec<FeatureId> = i64s(&expected, "active_features")
            .chunks_exact(3)
            .map(|f| FeatureId { layer: f[0] as u32, pos: f[1] as u32, feature: f[2] as u32 })
            .collect();
        assert_eq!(graph.active_features, active, "{name}: active features");
        for (what, actual, expected) in [
            ("logits", &graph.logits, f32s(&expected, "logits")),
            ("activations", &graph.activation_values, f32s(&expected, "activation_values")),
        ] {
            close_all(actual, &expected, 1e-3, 1e-3, &format!("{name}: {what}"));
        }
        let n_columns = graph.layout().targets().start;
        let feature_rows = i64s(&expected, "row_features");
        let n_active = graph.active_features.len();
        let rows = feature_rows.iter().map(|&i| i as usize).chain(n_active..n_active + graph.target_ids.len());
        let values = [f32s(&expected, "feature_rows"), f32s(&expected, "target_rows")].concat();
        let mut n_rows = 0;
        for (row, expected) in rows.zip(values.chunks_exact(n_columns)) {
            let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
            // The reference program's own two backends differ by some 1e-5 of the largest edge of a row.
            let atol = 5e-5 * f64::from(largest);
            close_all(&graph.row(row)[..n_columns], expected, atol, 1e-3, &format!("{name}: row {row}"));
            n_rows += 1;
        }
        assert_eq!(n_rows, feature_rows.len() + graph.target_ids.len(), "{name}: rows compared");
        assert!(graph.meta.row_identity_error < 1e-5, "{name}: {:e}", graph.meta.row_identity_error);
    }
}

#[test]
#[ignore = "needs CIRCUITSCOPE_SMOLLM2_GGUF (SmolLM2-135M-Instruct-Q8_0.gguf) and CIRCUITSCOPE_SHARED (smollm2/ with its transcoders): cargo test --release --test it -- --ignored smollm2"]
fn gguf_file_and_folder_written_from_it_give_the_same_logits() {
    let (gguf, transcoders) = (file_named_by(GGUF), shared("smollm2/transcoders"));
    let temporary = tempfile::tempdir().unwrap();
    let out = temporary.path().join("smollm2");
    // The example is built by the same `cargo test` that built this.
    let example = PathBuf::from(env!("CARGO_BIN_EXE_circuitscope")).with_file_name("examples").join("dequantize_gguf");
    let status = Command::new(example).arg(&gguf).arg(&out).status().unwrap();
    assert!(status.success());
    let logits = |model: &Path| -> Vec<f32> {
        let replacement = open_replacement(model, &transcoders);
        let tokens = replacement.tokenizer.encode_prompt("The capital of France is").unwrap();
        let pass = replacement.model.forward(&[tokens], &mut (), ForwardOptions::default()).unwrap();
        replacement.model.last_logits(&pass).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let (from_gguf, from_folder) = (logits(&gguf), logits(&out));
    close_all(&from_gguf, &from_folder, 1e-3, 0.0, "logits");
}

/// The heads that other programs find in SmolLM2, in the order of their scores: means over 64 random sequences.
#[test]
#[ignore = "needs CIRCUITSCOPE_SMOLLM2_GGUF (SmolLM2-135M-Instruct) and CIRCUITSCOPE_SHARED: cargo test --release --test it -- --ignored smollm2"]
fn known_heads_of_the_real_model_come_first() {
    let (gguf, folder) = (file_named_by(GGUF), shared("smollm2"));
    let replacement = open_replacement(&gguf, &folder.join("transcoders"));
    let options = HeadScoreOptions { n_sequences: 64, ..HeadScoreOptions::default() };
    let scores = head_scores(&replacement.model, &replacement.tokenizer, &options, &Job::default()).unwrap();
    let expected: [(usize, &[(&str, f32)]); 3] = [
        (0, &[("18.6", 0.875), ("17.3", 0.747), ("17.4", 0.705), ("17.5", 0.615), ("18.7", 0.576)]),
        (1, &[("8.0", 0.655), ("14.3", 0.649), ("15.6", 0.416), ("5.6", 0.295), ("2.4", 0.226)]),
        (2, &[("16.0", 0.884), ("11.1", 0.867), ("2.1", 0.734), ("1.2", 0.704), ("19.3", 0.703)]),
    ];
    for (kind, heads) in expected {
        let mut order: Vec<_> = scores.iter().map(|score| (score.head.to_string(), score.all()[kind])).collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1));
        println!("{}: {:?}", HEAD_SCORES[kind], &order[..8]);
        for (head, expected) in heads {
            let found = scores.iter().find(|score| score.head.to_string() == *head).unwrap().all()[kind];
            println!("  {head}: {found:.3}, {expected} on eight other sequences");
            // Other tokens: eight sequences differ by this much from the mean over many.
            assert!((found - expected).abs() < 0.04, "{}: {head} has {found}, not {expected}", HEAD_SCORES[kind]);
        }
        let first: Vec<&str> = heads.iter().map(|(head, _)| *head).take(if kind == 0 { 1 } else { 2 }).collect();
        let mut found: Vec<&str> = order.iter().take(first.len()).map(|(head, _)| head.as_str()).collect();
        found.sort_by_key(|head| first.iter().position(|known| known == head));
        assert_eq!(found, first, "{}", HEAD_SCORES[kind]);
    }
}
