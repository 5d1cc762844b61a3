//! The real model: SmolLM2-135M-Instruct with its transcoders, where both are at hand.

use std::path::PathBuf;
use std::process::Command;

use circuitscope::attribution::{AttributionOptions, attribute};
use circuitscope::graph::FeatureId;
use circuitscope::job::Job;
use circuitscope::model::ForwardOptions;
use circuitscope::replacement::Replacement;
use circuitscope::weights::{Folder, HostFiles};
use safetensors::SafeTensors;

use crate::reference::close;
use crate::support::{device, shared};

/// The GGUF file, from the variable that the README's walk-through sets.
fn gguf() -> Option<PathBuf> {
    let path = std::env::var_os("CIRCUITSCOPE_SMOLLM2_GGUF").map(PathBuf::from).filter(|path| path.exists());
    if path.is_none() {
        println!("skipped: CIRCUITSCOPE_SMOLLM2_GGUF names no file");
    }
    path
}

fn open(model: &str, transcoders: &str) -> Replacement {
    Replacement::open(HostFiles::open(model).unwrap(), &Folder::open(transcoders).unwrap(), &device()).unwrap()
}

fn f32s(tensors: &SafeTensors, name: &str) -> Vec<f32> {
    let tensor = tensors.tensor(name).unwrap();
    tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn i64s(tensors: &SafeTensors, name: &str) -> Vec<i64> {
    let tensor = tensors.tensor(name).unwrap();
    tensor.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn rows_of_the_real_model_agree_with_the_reference() {
    let (Some(gguf), Some(folder)) = (gguf(), shared("smollm2")) else { return };
    let replacement = open(gguf.to_str().unwrap(), folder.join("transcoders").to_str().unwrap());
    let cases: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("expected/cases.json")).unwrap()).unwrap();
    for case in cases.as_array().unwrap() {
        let (name, prompt) = (case["name"].as_str().unwrap(), case["prompt"].as_str().unwrap());
        let bytes = std::fs::read(folder.join(format!("expected/{name}.safetensors"))).unwrap();
        let expected = SafeTensors::deserialize(&bytes).unwrap();
        let tokens = replacement.tokenizer.encode_prompt(prompt).unwrap();
        let linear = replacement.linearize(&tokens, &Job::default()).unwrap();
        let options = AttributionOptions { max_features: None, ..Default::default() };
        let graph = attribute(&replacement, &linear, prompt, &options, &Job::default()).unwrap().graph;

        assert_eq!(graph.input_tokens, i64s(&expected, "input_tokens"), "{name}");
        assert_eq!(graph.target_ids, i64s(&expected, "target_ids"), "{name}");
        let active: Vec<FeatureId> = i64s(&expected, "active_features")
            .chunks_exact(3)
            .map(|f| FeatureId { layer: f[0] as u32, pos: f[1] as u32, feature: f[2] as u32 })
            .collect();
        assert_eq!(graph.active_features, active, "{name}: active features");
        for (what, actual, expected) in [
            ("logit", &graph.logits, f32s(&expected, "logits")),
            ("activation", &graph.activation_values, f32s(&expected, "activation_values")),
        ] {
            for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
                close(f64::from(*a), f64::from(e), 1e-3, 1e-3, &format!("{name}: {what} {i}"));
            }
        }
        let n_columns = graph.layout().targets().start;
        let feature_rows = i64s(&expected, "row_features");
        let n_active = graph.active_features.len();
        let rows = feature_rows.iter().map(|&i| i as usize).chain(n_active..n_active + graph.target_ids.len());
        let values = [f32s(&expected, "feature_rows"), f32s(&expected, "target_rows")].concat();
        for (row, expected) in rows.zip(values.chunks_exact(n_columns)) {
            let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
            for (column, (a, e)) in graph.row(row).iter().zip(expected).enumerate() {
                // The reference program's own two backends differ by some 1e-5 of the largest edge of a row.
                let atol = 5e-5 * f64::from(largest);
                close(f64::from(*a), f64::from(*e), atol, 1e-3, &format!("{name}: edge {row} <- {column}"));
            }
        }
        assert!(graph.meta.row_identity_error < 1e-5, "{name}: {:e}", graph.meta.row_identity_error);
    }
}

#[test]
fn gguf_file_and_folder_written_from_it_give_the_same_logits() {
    let (Some(gguf), Some(folder)) = (gguf(), shared("smollm2/transcoders")) else { return };
    let temporary = tempfile::tempdir().unwrap();
    let out = temporary.path().join("smollm2");
    // The example is built by the same `cargo test` that built this.
    let example = PathBuf::from(env!("CARGO_BIN_EXE_circuitscope")).with_file_name("examples").join("dequantize_gguf");
    let status = Command::new(example).arg(&gguf).arg(&out).status().unwrap();
    assert!(status.success());
    let logits = |model: &str| -> Vec<f32> {
        let replacement = open(model, folder.to_str().unwrap());
        let tokens = replacement.tokenizer.encode_prompt("The capital of France is").unwrap();
        let pass = replacement.model.forward(&[tokens], &mut (), ForwardOptions::default()).unwrap();
        replacement.model.last_logits(&pass).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let (from_gguf, from_folder) = (logits(gguf.to_str().unwrap()), logits(out.to_str().unwrap()));
    for (i, (a, e)) in from_gguf.iter().zip(&from_folder).enumerate() {
        close(f64::from(*a), f64::from(*e), 1e-3, 0.0, &format!("logit {i}"));
    }
}
