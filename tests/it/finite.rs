//! Numbers that leave the range of floats: an error that names the place where that began, and nothing is written.

use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{PROMPT, circuitscope, copy_folder, fixture, refused, stdout};

const MODEL: [&str; 5] = ["--model", "model", "--transcoders", "transcoders", "--quiet"];

/// A folder with a small model and its transcoders.
fn model_folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    for part in ["model", "transcoders"] {
        copy_folder(&fixture("reference/llama_relu").join(part), &folder.path().join(part));
    }
    folder
}

/// Changes every value of a tensor of a safetensors file, which is f32.
fn change_tensor(path: &Path, tensor: &str, change: impl Fn(f32) -> f32) {
    let mut bytes = std::fs::read(path).unwrap();
    let n_header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + n_header]).unwrap();
    assert_eq!(header[tensor]["dtype"], "F32");
    let at = |i: usize| header[tensor]["data_offsets"][i].as_u64().unwrap() as usize + 8 + n_header;
    for value in bytes[at(0)..at(1)].chunks_exact_mut(4) {
        let changed = change(f32::from_le_bytes(value.try_into().unwrap()));
        value.copy_from_slice(&changed.to_le_bytes());
    }
    std::fs::write(path, bytes).unwrap();
}

/// Refused with what the message must name; no file beside `before`.
#[track_caller]
fn refused_without_files(folder: &Path, args: &[&str], parts: &[&str]) {
    let names = || -> Vec<_> {
        let mut names: Vec<_> = folder.read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let message = refused(folder, args);
    for part in ["not finite", "layer"].iter().chain(parts) {
        assert!(message.contains(part), "{args:?}: {part:?} is not in {message}");
    }
    let out = Path::new("graphs").as_os_str().to_owned();
    assert!(folder.join(&out).read_dir().is_ok_and(|mut files| files.next().is_none()) || !folder.join(&out).exists());
    assert_eq!(names().into_iter().filter(|name| *name != out).collect::<Vec<_>>(), before, "{args:?}");
}

#[test]
fn a_change_that_overflows_is_an_error_in_every_mode_and_names_where() {
    let folder = TempDir::new().unwrap();
    let modes: [&[&str]; 8] = [
        &[],
        &["--freeze-attention"],
        &["--direct"],
        &["--constrain", "0..2"],
        &["--generate", "3"],
        &["--generate", "3", "--direct", "--keep-frozen"],
        &["--format", "json"],
        &["--ablate", "1_0_3"],
    ];
    for mode in modes {
        let args = [&["intervene", PROMPT, "--scale", "0_39_7=1e38"], mode].concat();
        refused_without_files(folder.path(), &args, &["blocks.0.hook_mlp_out", "(layer 0)", "position 7"]);
    }
    // The residual stream holds, but its square does not: the norm would make zeros of it.
    let args = ["intervene", PROMPT, "--scale", "0_39_7=1e20"];
    refused_without_files(folder.path(), &args, &["blocks.1.ln1.hook_scale", "(layer 1)", "position 7"]);
    for format in ["text", "json", "csv"] {
        let sweep = ["intervene", PROMPT, "--sweep", "0_39_7=0..1e38/5e37", "--svg", "sweep.svg", "--format", format];
        refused_without_files(folder.path(), &sweep, &["blocks.", "of sequence 1"]);
    }
}

#[test]
fn weights_that_overflow_are_an_error_that_names_the_layer_in_trace_intervene_and_verify() {
    let good = model_folder();
    let graph = [&["trace", "--tokens", "2,17,4", "--slug", "good", "--out-dir", "."], &MODEL[..]].concat();
    assert!(circuitscope(good.path(), &graph).status.success());
    let weights = [
        ("model.layers.0.mlp.down_proj.weight", 1e25, "blocks.1.ln1.hook_scale` (layer 1)"),
        ("model.layers.2.mlp.down_proj.weight", 1e25, "blocks.3.ln1.hook_scale` (layer 3)"),
        ("model.layers.1.self_attn.o_proj.weight", 1e25, "blocks.1.ln2.hook_scale` (layer 1)"),
        ("model.layers.3.mlp.down_proj.weight", 1e25, "ln_final.hook_scale"),
        ("model.layers.1.self_attn.q_proj.weight", 1e38, "(layer 1)"),
    ];
    for (tensor, factor, place) in weights {
        let folder = model_folder();
        std::fs::copy(good.path().join("good.safetensors"), folder.path().join("good.safetensors")).unwrap();
        change_tensor(&folder.path().join("model/model.safetensors"), tensor, |value| value * factor);
        let [trace, intervene, verify]: [&[&str]; 3] = [
            &["trace", "--tokens", "2,17,4"],
            &["intervene", "--tokens", "2,17,4", "--set", "3_1_2=1"],
            &["verify", "good.safetensors"],
        ];
        for command in [trace, intervene, verify] {
            let args = [command, &MODEL[..]].concat();
            let message = refused(folder.path(), &args);
            assert!(message.contains("not finite") && message.contains(place), "{tensor} {command:?}: {message}");
        }
        assert!(folder.path().join("graphs").read_dir().is_ok_and(|mut files| files.next().is_none()));
    }
}

#[test]
fn transcoders_that_overflow_are_an_error_that_names_layer_and_feature() {
    let cases: [(&str, f32, &[&str]); 3] = [
        ("W_enc", 3e38, &["layer 1", "pre-activation of feature"]),
        ("W_dec", 3e38, &["error of layer 1"]),
        ("b_enc", 3e38, &["error of layer 1"]),
    ];
    for (tensor, value, parts) in cases {
        let folder = model_folder();
        let file = folder.path().join("transcoders/layer_1.safetensors");
        change_tensor(&file, tensor, |before| if before < 0.0 && tensor != "b_enc" { -value } else { value });
        let args = [&["trace", "--tokens", "2,17,4"], &MODEL[..]].concat();
        let message = refused(folder.path(), &args);
        assert!(message.contains("not finite"), "{tensor}: {message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{tensor}: {message}");
        assert!(folder.path().join("graphs").read_dir().unwrap().next().is_none());
    }
}

/// Whether a number is missing where one belongs: JSON has no NaN, and writers put `null` instead.
fn nulls(json: &Value, at: &str, found: &mut Vec<String>) {
    match json {
        Value::Null => found.push(at.to_owned()),
        Value::Array(all) => all.iter().for_each(|value| nulls(value, at, found)),
        Value::Object(all) => all.iter().for_each(|(key, value)| nulls(value, &format!("{at}.{key}"), found)),
        _ => {}
    }
}

#[test]
fn numbers_in_json_are_never_null() {
    let folder = TempDir::new().unwrap();
    let trace = ["trace", PROMPT, "--slug", "g", "--out-dir", ".", "--quiet", "--format", "json"];
    let mut printed = vec![stdout(&circuitscope(folder.path(), &trace))];
    let commands: [&[&str]; 4] = [
        &["inspect", "g.json", "--format", "json"],
        &["verify", "g.safetensors", "--format", "json"],
        &["intervene", PROMPT, "--scale", "0_39_7=1e15", "--format", "json"],
        &["intervene", PROMPT, "--sweep", "0_39_7=0..1e15/5e14", "--format", "json"],
    ];
    printed.extend(commands.iter().map(|args| stdout(&circuitscope(folder.path(), args))));
    printed.push(std::fs::read_to_string(folder.path().join("g.json")).unwrap());
    for text in printed {
        let json: Value = serde_json::from_str(&text).unwrap();
        let mut found = Vec::new();
        nulls(&json, "", &mut found);
        // What a kind of node does not have is null by the schema; no figure is.
        let figures =
            ["probab", "logit", "kl_", "weight", "influence", "strength", "share", "error", "score", "pearson"];
        found.retain(|key| figures.iter().any(|figure| key.rsplit('.').next().unwrap().contains(figure)));
        found.retain(|key| !key.contains("nodes"));
        assert_eq!(found, Vec::<String>::new());
    }
}
