//! `verify` looks at everything that a raw graph's file holds.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Output;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};

use crate::support::{PROMPT, circuitscope, stdout};

/// A raw graph taken apart.
#[derive(Clone)]
struct Parts {
    tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
    meta: Map<String, Value>,
}

impl Parts {
    fn read(path: &Path) -> Parts {
        let bytes = std::fs::read(path).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensor =
            |(name, view): (String, TensorView)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec());
        Parts {
            tensors: file.tensors().into_iter().map(tensor).collect(),
            meta: serde_json::from_str(&header.metadata().as_ref().unwrap()["circuitscope"]).unwrap(),
        }
    }

    fn write(&self, path: &Path) {
        let views = self
            .tensors
            .iter()
            .map(|(name, dtype, shape, data)| (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
        let meta = HashMap::from([("circuitscope".to_owned(), Value::Object(self.meta.clone()).to_string())]);
        std::fs::write(path, safetensors::serialize(views, Some(meta)).unwrap()).unwrap();
    }

    fn tensor(&mut self, name: &str) -> &mut Vec<u8> {
        &mut self.tensors.iter_mut().find(|(tensor, ..)| tensor == name).unwrap().3
    }

    fn set_f32(&mut self, name: &str, value: f32, which: impl Fn(usize) -> bool) {
        let chunks = self.tensor(name).chunks_exact_mut(4).enumerate();
        chunks.filter(|(i, _)| which(*i)).for_each(|(_, bytes)| bytes.copy_from_slice(&value.to_le_bytes()));
    }
}

/// Traces the prompt into `graphs/g.safetensors`.
fn traced(folder: &Path, options: &[&str]) -> PathBuf {
    let output = circuitscope(folder, &[&["trace", PROMPT, "--slug", "g", "--force", "--quiet"], options].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder.join("graphs/g.safetensors")
}

fn verify(folder: &Path, graph: &str) -> Output {
    circuitscope(folder, &["verify", graph, "--samples", "2", "--ablate", "1"])
}

/// What the program said, on both outputs.
fn said(output: &Output) -> String {
    stdout(output) + &String::from_utf8_lossy(&output.stderr)
}

/// Asserts that verify fails and names `name`: with its verdict, or already when it looks whether the graph is of this
/// model at all.
#[track_caller]
fn fails(folder: &Path, parts: &Parts, name: &str, what: &str) {
    parts.write(&folder.join("changed.safetensors"));
    let output = verify(folder, "changed.safetensors");
    let said = said(&output);
    match output.status.code() {
        Some(1) => {
            let line = said.lines().position(|line| line.starts_with(&format!("  {name}: ")));
            let line = line.unwrap_or_else(|| panic!("{what} is not named: {said}"));
            let rest: Vec<&str> = said.lines().skip(line + 1).take(3).collect();
            assert!(rest.iter().any(|line| line.starts_with("    graph  ")), "{what}: {said}");
            assert!(rest.iter().any(|line| line.starts_with("    here   ")), "{what}: {said}");
        }
        Some(2) => assert!(said.starts_with("error: ") && !said.contains("panicked"), "{what}: {said}"),
        code => panic!("{what} passes with {code:?}: {said}"),
    }
}

/// Another value of the same kind.
fn other(value: &Value) -> Value {
    match value {
        Value::Null => json!(7),
        Value::Bool(b) => json!(!b),
        Value::Number(n) if n.is_u64() => json!(n.as_u64().unwrap() + 1),
        Value::Number(n) => json!(n.as_f64().unwrap() * 1.5 + 0.01),
        Value::String(text) => json!(format!("{text}x")),
        Value::Array(list) => {
            let mut list = list.clone();
            match list.first_mut() {
                Some(first) => *first = other(first),
                None => list.push(json!("token 7")),
            }
            json!(list)
        }
        Value::Object(_) => unreachable!("objects are taken apart"),
    }
}

const KINDS: [&[&str]; 5] = [
    &[],
    &["--max-features", "100", "--target", " Austin", "--position", "8"],
    &["--rows", "60", "--nodes", "40"],
    &["--heads", "--target", " Austin"],
    &["--target-diff", " Austin", " Sacramento", "--target-feature", "3_955_8", "--target", " Austin", "--no-decoders"],
];

#[test]
fn graphs_as_they_were_traced_hold() {
    let folder = tempfile::tempdir().unwrap();
    for options in KINDS {
        let path = traced(folder.path(), options);
        let output = verify(folder.path(), "graphs/g.safetensors");
        assert_eq!(output.status.code(), Some(0), "{options:?}: {}", said(&output));
        assert!(stdout(&output).contains("contents    holds: "), "{}", stdout(&output));
        // As older programs wrote them.
        let mut parts = Parts::read(&path);
        parts.meta.remove("trace_id");
        let settings = parts.meta["settings"].as_object_mut().unwrap();
        settings.remove("targets");
        settings.remove("position");
        if !options.contains(&"--rows") {
            settings.remove("rows");
        }
        parts.write(&path);
        let output = verify(folder.path(), "graphs/g.safetensors");
        assert_eq!(output.status.code(), Some(0), "{options:?}, older: {}", said(&output));
    }
}

#[test]
fn no_tensor_can_be_wrong_and_pass() {
    let folder = tempfile::tempdir().unwrap();
    for options in KINDS {
        let whole = Parts::read(&traced(folder.path(), options));
        // What there is says the file.
        for at in 0..whole.tensors.len() {
            let (name, dtype, _, data) = &whole.tensors[at];
            let size = match dtype {
                Dtype::F32 | Dtype::I32 => 4,
                Dtype::I64 | Dtype::F64 => 8,
                Dtype::F16 => 2,
                other => panic!("`{name}` is {other:?}: say here how it is changed"),
            };
            let n_values = data.len() / size;
            // Everywhere in the usual graph, in the middle of what others have.
            let places = [n_values / 2, 0, n_values - 1];
            for place in &places[..if options.is_empty() { 3 } else { 1 }] {
                let mut changed = whole.clone();
                let bytes = &mut changed.tensors[at].3[place * size..][..size];
                match dtype {
                    Dtype::F32 => {
                        let value = f32::from_le_bytes(bytes.try_into().unwrap());
                        bytes.copy_from_slice(&(value * 1.2 + 0.5).to_le_bytes());
                    }
                    Dtype::F64 => {
                        let value = f64::from_le_bytes(bytes.try_into().unwrap());
                        bytes.copy_from_slice(&(value * 1.2 + 0.5).to_le_bytes());
                    }
                    Dtype::I32 => {
                        let value = i32::from_le_bytes(bytes.try_into().unwrap());
                        bytes.copy_from_slice(&(value + 1).to_le_bytes());
                    }
                    Dtype::I64 => {
                        let value = i64::from_le_bytes(bytes.try_into().unwrap());
                        bytes.copy_from_slice(&(value + 1).to_le_bytes());
                    }
                    _ => {
                        let value = half::f16::from_le_bytes(bytes.try_into().unwrap());
                        bytes.copy_from_slice(&half::f16::from_f32(value.to_f32() + 0.1).to_le_bytes());
                    }
                }
                fails(folder.path(), &changed, name, &format!("`{name}` at {place} with {options:?}"));
            }
        }
    }
}

#[test]
fn no_key_of_the_metadata_can_be_wrong_and_pass() {
    let folder = tempfile::tempdir().unwrap();
    for options in KINDS {
        let whole = Parts::read(&traced(folder.path(), options));
        // All keys of the usual graph, and those that are others' own.
        let own = ["settings", "sampling", "target_labels", "target_positions", "trace_id"];
        for (key, value) in whole.meta.iter().filter(|(key, _)| options.is_empty() || own.contains(&key.as_str())) {
            let Value::Object(fields) = value else {
                let mut changed = whole.clone();
                changed.meta[key] = other(value);
                fails(folder.path(), &changed, key, &format!("`{key}` with {options:?}"));
                continue;
            };
            for (field, value) in fields {
                let mut changed = whole.clone();
                changed.meta[key][field] = other(value);
                fails(folder.path(), &changed, key, &format!("`{key}.{field}` with {options:?}"));
            }
        }
    }
}

#[test]
fn values_that_once_passed_are_named_with_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let whole = Parts::read(&traced(at, &[]));
    let told = |parts: &Parts| {
        parts.write(&at.join("changed.safetensors"));
        let output = verify(at, "changed.safetensors");
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        stdout(&output)
    };
    let mut changed = whole.clone();
    changed.set_f32("activation_values", 1234.5, |_| true);
    let text = told(&changed);
    assert!(text.contains("activation_values: 246 of 246 differ") && text.contains("graph  1234.5"), "{text}");

    let mut changed = whole.clone();
    changed.set_f32("target_probabilities", 0.001, |_| true);
    let text = told(&changed);
    for part in ["target_probabilities: differs", "at [0] \" Austin\"", "graph  0.001", "here   0.999"] {
        assert!(text.contains(part), "{part:?}: {text}");
    }

    // A feature that is another of the same layer: fewer than what rounding may decide about.
    let mut changed = whole.clone();
    let ids = changed.tensor("active_features");
    let n_active = ids.len() / 24;
    let mut n_changed = 0;
    for i in 0..n_active - 1 {
        let number = |ids: &[u8], at: usize| i64::from_le_bytes(ids[at * 8..][..8].try_into().unwrap());
        let (here, next) = (number(ids, 3 * i + 2), number(ids, 3 * i + 5));
        if n_changed < 1 && next > here + 1 {
            ids[(3 * i + 2) * 8..][..8].copy_from_slice(&(here + 1).to_le_bytes());
            n_changed += 1;
        }
    }
    let text = told(&changed);
    assert!(text.contains("active_features: ") && text.contains("here   not active, "), "{text}");

    let mut changed = whole.clone();
    changed.tensor("decoder_directions").rotate_left(2);
    assert!(told(&changed).contains("decoder_directions: "));

    // What no one has looked at does not hold either.
    let mut changed = whole.clone();
    changed.tensors.push(("later".into(), Dtype::F32, vec![1], vec![0; 4]));
    changed.meta.insert("later_key".into(), json!(1));
    let text = told(&changed);
    assert!(text.contains("  later: ") && text.contains("  later_key: ") && text.contains("not known"), "{text}");

    let args = ["verify", "changed.safetensors", "--samples", "2", "--ablate", "1", "--format", "json"];
    let report: Value = serde_json::from_str(&stdout(&circuitscope(at, &args))).unwrap();
    assert_eq!(report["passed"], false);
    let tensors = report["contents"]["tensors"].as_array().unwrap();
    assert_eq!(tensors.iter().filter(|check| check["n_different"] != 0).count(), 1, "{tensors:?}");
}
