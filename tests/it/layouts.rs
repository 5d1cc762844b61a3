//! One set of transcoders in every layout that transcoders are published in: the graphs must be the same.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use candle_core::Tensor;
use circuitscope::attribution::{AttributionOptions, RowChoice, attribute};
use circuitscope::graph::AttributionGraph;
use circuitscope::job::Job;
use circuitscope::replacement::Replacement;
use circuitscope::weights::Checkpoint;

use crate::support::{fixture, open_replacement};

const N_LAYERS: usize = 4;

fn trace(transcoders: &Path) -> AttributionGraph {
    let replacement = open_replacement(&fixture("reference/gemma2_jumprelu/model"), transcoders);
    let tokens = replacement.tokenizer.encode_prompt("He went to the house and").unwrap();
    let linear = replacement.linearize(&tokens, &Job::default()).unwrap();
    let options = AttributionOptions { rows: RowChoice::All, ..Default::default() };
    attribute(&replacement, &linear, "", &options, &Job::default()).unwrap().graph
}

/// The tensors of one layer: encoder, decoder, both biases, threshold.
fn layer(index: usize) -> [Tensor; 5] {
    let path = fixture(&format!("reference/gemma2_jumprelu/transcoders/layer_{index}.safetensors"));
    let file = Checkpoint::open_safetensors(&[path]).unwrap();
    ["W_enc", "W_dec", "b_enc", "b_dec", "activation_function.threshold"]
        .map(|name| file.tensor(name, &file.shape(name).unwrap()).unwrap())
}

fn write_config(folder: &Path, extension: &str) {
    let text = std::fs::read_to_string(fixture("reference/gemma2_jumprelu/transcoders/config.yaml")).unwrap();
    std::fs::write(folder.join("config.yaml"), text.replace("safetensors", extension)).unwrap();
}

/// A `.npy` file: float32 in C order.
fn npy(tensor: &Tensor) -> Vec<u8> {
    let shape: Vec<String> = tensor.dims().iter().map(|d| format!("{d},")).collect();
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}", shape.concat());
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    bytes
}

#[track_caller]
fn assert_same(actual: &AttributionGraph, expected: &AttributionGraph) {
    assert!(!expected.active_features.is_empty(), "no active features to compare");
    assert_eq!(actual.active_features, expected.active_features);
    assert_eq!(actual.edge_rows.values(), expected.edge_rows.values());
}

#[test]
fn gemma_scope_layouts_give_the_same_graph_as_circuit_tracers() {
    let expected = trace(&fixture("reference/gemma2_jumprelu/transcoders"));
    let folder = tempfile::tempdir().unwrap();

    let first = folder.path().join("gemma-scope-1");
    std::fs::create_dir(&first).unwrap();
    write_config(&first, "npz");
    for index in 0..N_LAYERS {
        let [w_enc, w_dec, b_enc, b_dec, threshold] = layer(index);
        let mut archive = zip::ZipWriter::new(File::create(first.join(format!("layer_{index}.npz"))).unwrap());
        let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        let tensors = [
            ("W_enc", w_enc.t().unwrap().contiguous().unwrap()),
            ("W_dec", w_dec),
            ("b_enc", b_enc),
            ("b_dec", b_dec),
            ("threshold", threshold),
        ];
        for (name, tensor) in tensors {
            archive.start_file(format!("{name}.npy"), stored).unwrap();
            archive.write_all(&npy(&tensor)).unwrap();
        }
        archive.finish().unwrap();
    }
    assert_same(&trace(&first), &expected);

    let second = folder.path().join("gemma-scope-2");
    std::fs::create_dir(&second).unwrap();
    write_config(&second, "safetensors");
    for index in 0..N_LAYERS {
        let [w_enc, w_dec, b_enc, b_dec, threshold] = layer(index);
        let tensors = std::collections::HashMap::from([
            ("w_enc", w_enc.t().unwrap().contiguous().unwrap()),
            ("w_dec", w_dec),
            ("b_enc", b_enc),
            ("b_dec", b_dec),
            ("threshold", threshold),
        ]);
        candle_core::safetensors::save(&tensors, second.join(format!("layer_{index}.safetensors"))).unwrap();
    }
    assert_same(&trace(&second), &expected);
}

#[test]
fn a_skip_connection_is_read_from_either_layout() {
    let folder = fixture("reference/gemma3_jumprelu_skip");
    let temporary = tempfile::tempdir().unwrap();
    let at = |index: usize| folder.join(format!("transcoders/layer_{index}.safetensors"));
    std::fs::copy(folder.join("transcoders/config.yaml"), temporary.path().join("config.yaml")).unwrap();
    for index in 0..6 {
        let file = Checkpoint::open_safetensors(&[at(index)]).unwrap();
        let read = |name: &str| file.tensor(name, &file.shape(name).unwrap()).unwrap();
        let tensors = std::collections::HashMap::from([
            ("w_enc", read("W_enc").t().unwrap().contiguous().unwrap()),
            ("w_dec", read("W_dec")),
            ("b_enc", read("b_enc")),
            ("b_dec", read("b_dec")),
            ("threshold", read("activation_function.threshold")),
            ("affine_skip_connection", read("W_skip").t().unwrap().contiguous().unwrap()),
        ]);
        candle_core::safetensors::save(&tensors, temporary.path().join(format!("layer_{index}.safetensors"))).unwrap();
    }
    let open = |transcoders: &Path| open_replacement(&folder.join("model"), transcoders);
    let skips = |replacement: &Replacement| -> Vec<Vec<f32>> {
        let of =
            |t: &circuitscope::transcoder::Transcoder| t.w_skip().unwrap().flatten_all().unwrap().to_vec1().unwrap();
        replacement.transcoders.layers.iter().map(of).collect()
    };
    assert_eq!(skips(&open(temporary.path())), skips(&open(&folder.join("transcoders"))));
}
