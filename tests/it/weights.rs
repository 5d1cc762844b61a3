//! Promises of the `weights` room: what is read is what was written, and what is damaged is refused.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use circuitscope::weights::{Checkpoint, Folder, Hub, ModelFiles, Tokenizer};
use circuitscope::{Error, Result};
use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::reference::FAMILIES;
use crate::support::fixture;

/// One tensor to be written: dtype, shape, little-endian bytes.
type Raw = (Dtype, Vec<usize>, Vec<u8>);

fn f32s(shape: &[usize], values: &[f32]) -> Raw {
    (Dtype::F32, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn safetensors(tensors: &[(&str, Raw)]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name.to_string(), TensorView::new(*dtype, shape.clone(), bytes).expect("a consistent tensor"))
    });
    safetensors::serialize(views.collect::<Vec<_>>(), None).expect("serialises")
}

fn written(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
    std::fs::write(&path, bytes).expect("written");
    path
}

/// Values that every dtype of the tests holds exactly.
fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i % 128) as f32 - 64.0).collect()
}

fn flat(tensor: candle_core::Tensor) -> Vec<f32> {
    assert_eq!(tensor.dtype(), candle_core::DType::F32);
    tensor.flatten_all().and_then(|t| t.to_vec1()).expect("f32 values")
}

fn open(folder: &TempDir, tensors: &[(&str, Raw)]) -> Checkpoint {
    let path = written(folder, "model.safetensors", &safetensors(tensors));
    Checkpoint::open_safetensors(&[path]).expect("opens")
}

/// Shows the error; a success is the failure here.
fn refused<T>(result: Result<T>) -> Error {
    match result {
        Ok(_) => panic!("was not refused"),
        Err(e) => e,
    }
}

#[test]
fn every_dtype_is_read_as_f32() {
    let folder = TempDir::new().unwrap();
    // More than one task's elements, and no multiple of anything.
    let (rows, cols) = (331, 253);
    let values = ramp(rows * cols);
    let shape = vec![rows, cols];
    let half: Vec<u8> = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
    let brain: Vec<u8> = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    let double: Vec<u8> = values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect();
    let tensors = [
        ("single", f32s(&shape, &values)),
        ("half", (Dtype::F16, shape.clone(), half)),
        ("brain", (Dtype::BF16, shape.clone(), brain)),
        ("double", (Dtype::F64, shape.clone(), double)),
    ];
    let checkpoint = open(&folder, &tensors);
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["brain", "double", "half", "single"]);
    for name in ["single", "half", "brain", "double"] {
        assert_eq!(checkpoint.shape(name).unwrap(), shape);
        assert_eq!(flat(checkpoint.tensor(name, &shape).unwrap()), values, "{name}");
        let some = checkpoint.rows(name, 7..9).unwrap();
        assert_eq!(some.dims(), [2, cols]);
        assert_eq!(flat(some), values[7 * cols..9 * cols], "{name}");
        let picked = flat(checkpoint.gather_rows(name, &[330, 0, 330]).unwrap());
        assert_eq!(picked[..cols], values[330 * cols..331 * cols]);
        assert_eq!(picked[cols..2 * cols], values[..cols]);
        let columns = checkpoint.columns(name, 3..252).unwrap();
        assert_eq!(columns.dims(), [249, rows]);
        let transpose: Vec<f32> =
            (3..252).flat_map(|c| (0..rows).map(move |r| (r, c))).map(|(r, c)| values[r * cols + c]).collect();
        assert_eq!(flat(columns), transpose, "{name}");
    }
}

#[test]
fn bytes_in_the_program_need_no_alignment() {
    let values = ramp(12);
    let bytes = safetensors(&[("w", f32s(&[3, 4], &values))]);
    for shift in 0..4 {
        let padded: Vec<u8> = std::iter::repeat_n(0, shift).chain(bytes.iter().copied()).collect();
        let bytes: &'static [u8] = &Vec::leak(padded)[shift..];
        let checkpoint = Checkpoint::from_static(&[("embedded", bytes)]).unwrap();
        assert_eq!(flat(checkpoint.tensor("w", &[3, 4]).unwrap()), values);
    }
}

#[test]
fn empty_and_scalar_tensors_are_read() {
    let folder = TempDir::new().unwrap();
    let checkpoint = open(&folder, &[("none", f32s(&[0, 5], &[])), ("one", f32s(&[], &[3.0]))]);
    assert_eq!(checkpoint.tensor("none", &[0, 5]).unwrap().dims(), [0, 5]);
    assert_eq!(flat(checkpoint.tensor("one", &[]).unwrap()), [3.0]);
    assert_eq!(checkpoint.columns("none", 0..2).unwrap().dims(), [2, 0]);
    assert_eq!(checkpoint.gather_rows("none", &[]).unwrap().dims(), [0, 5]);
}

#[test]
fn errors_name_tensor_file_and_both_sides() {
    let folder = TempDir::new().unwrap();
    let mut values = ramp(6);
    values[4] = f32::NAN;
    let tensors =
        [("w", f32s(&[2, 3], &ramp(6))), ("nan", f32s(&[2, 3], &values)), ("count", (Dtype::I64, vec![1], vec![0; 8]))];
    let checkpoint = open(&folder, &tensors);
    let shown = |e: Error| e.to_string();
    assert!(
        matches!(refused(checkpoint.tensor("x", &[1])), Error::MissingTensor { name, file } if name == "x" && file.contains("model.safetensors"))
    );
    match refused(checkpoint.tensor("w", &[3, 2])) {
        Error::Shape { tensor, actual, expected, .. } => {
            assert_eq!((tensor.as_str(), actual, expected), ("w", vec![2, 3], vec![3, 2]))
        }
        e => panic!("{e}"),
    }
    match refused(checkpoint.tensor("nan", &[2, 3])) {
        Error::NotFinite { tensor, index, value, .. } => assert!(tensor == "nan" && index == [1, 1] && value.is_nan()),
        e => panic!("{e}"),
    }
    assert!(matches!(refused(checkpoint.rows("nan", 1..2)), Error::NotFinite { index, .. } if index == [1, 1]));
    assert!(matches!(refused(checkpoint.columns("nan", 1..2)), Error::NotFinite { index, .. } if index == [1, 1]));
    assert!(
        matches!(refused(checkpoint.gather_rows("nan", &[0, 1])), Error::NotFinite { index, .. } if index == [1, 1])
    );
    assert!(checkpoint.rows("nan", 0..1).is_ok(), "what was not asked for is not judged");
    assert!(checkpoint.columns("nan", 2..3).is_ok(), "what was not asked for is not judged");
    assert!(shown(refused(checkpoint.tensor("count", &[1]))).contains("I64"));
    assert!(matches!(refused(checkpoint.rows("w", 1..3)), Error::OutOfRange { index: 2, len: 2, .. }));
    assert!(matches!(refused(checkpoint.columns("w", 0..4)), Error::OutOfRange { dim: 1, .. }));
    assert!(matches!(refused(checkpoint.gather_rows("w", &[0, 2])), Error::OutOfRange { index: 2, .. }));
    assert!(matches!(refused(checkpoint.gather_rows("w", &[usize::MAX])), Error::OutOfRange { .. }));
    let missing = folder.path().join("none.safetensors");
    assert!(shown(refused(Checkpoint::open_safetensors(&[missing]))).contains("none.safetensors"));
    assert!(refused(Checkpoint::open_safetensors(&[folder.path().to_path_buf()])).to_string().contains("cannot read"));
}

#[test]
fn experts_in_two_byte_tensors_are_read_as_one() {
    let folder = TempDir::new().unwrap();
    // Two experts, three rows, two blocks of 32: element i of a row has code i % 16, exponents differ.
    let (n_experts, n_rows, n_blocks) = (2, 3, 2);
    let nibbles: Vec<u8> =
        (0..n_experts * n_rows * n_blocks * 16).map(|i| ((2 * i % 16) | (((2 * i + 1) % 16) << 4)) as u8).collect();
    let exponents: Vec<u8> = (0..n_experts * n_rows * n_blocks).map(|i| 120 + i as u8).collect();
    let checkpoint = open(
        &folder,
        &[
            ("experts.down_proj_blocks", (Dtype::U8, vec![n_experts, n_rows, n_blocks, 16], nibbles)),
            ("experts.down_proj_scales", (Dtype::U8, vec![n_experts, n_rows, n_blocks], exponents)),
        ],
    );
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["experts.down_proj"]);
    let levels = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
    let shape = [n_experts, n_blocks * 32, n_rows];
    let mut expected = Vec::new();
    for expert in 0..n_experts {
        for i in 0..n_blocks * 32 {
            for row in 0..n_rows {
                let exponent = 120 + (expert * n_rows + row) * n_blocks + i / 32;
                expected.push(levels[i % 16] * 2f32.powi(exponent as i32 - 127));
            }
        }
    }
    assert_eq!(flat(checkpoint.tensor("experts.down_proj", &shape).unwrap()), expected);
    assert_eq!(flat(checkpoint.rows("experts.down_proj", 1..2).unwrap()), expected[expected.len() / 2..]);
    assert_eq!(flat(checkpoint.gather_rows("experts.down_proj", &[1]).unwrap()), expected[expected.len() / 2..]);
}

#[test]
fn truncated_safetensors_are_refused() {
    let folder = TempDir::new().unwrap();
    let bytes = safetensors(&[("w", f32s(&[2, 3], &ramp(6)))]);
    for len in 0..bytes.len() {
        let path = written(&folder, "cut.safetensors", &bytes[..len]);
        assert!(matches!(refused(Checkpoint::open_safetensors(&[path])), Error::Damaged { .. }), "{len} bytes");
    }
    let mut huge = bytes.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let path = written(&folder, "huge.safetensors", &huge);
    assert!(matches!(refused(Checkpoint::open_safetensors(&[path])), Error::Damaged { .. }));
}

#[test]
fn shards_are_one_checkpoint_and_share_no_name() {
    let folder = TempDir::new().unwrap();
    let a = written(&folder, "a.safetensors", &safetensors(&[("x", f32s(&[1], &[1.0]))]));
    let b = written(&folder, "b.safetensors", &safetensors(&[("y", f32s(&[1], &[2.0]))]));
    let both = Checkpoint::open_safetensors(&[a.clone(), b.clone()]).unwrap();
    assert_eq!(flat(both.tensor("y", &[1]).unwrap()), [2.0]);
    assert!(both.file_of("y").ends_with("b.safetensors"));
    let c = written(&folder, "c.safetensors", &safetensors(&[("x", f32s(&[1], &[3.0]))]));
    assert!(
        matches!(refused(Checkpoint::open_safetensors(&[a, b, c])), Error::DuplicateTensor { name, .. } if name == "x")
    );
}

/// A Hugging Face folder with one tensor in each of two shards.
fn host_folder(root: &Path) {
    std::fs::create_dir_all(root).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixture("tokenizer").join(name), root.join(name)).unwrap();
    }
    std::fs::write(root.join("config.json"), r#"{"model_type": "llama", "bos_token_id": 2}"#).unwrap();
    std::fs::write(root.join("1.safetensors"), safetensors(&[("x", f32s(&[1], &[1.0]))])).unwrap();
    std::fs::write(root.join("2.safetensors"), safetensors(&[("y", f32s(&[1], &[2.0]))])).unwrap();
    let index = json!({ "weight_map": { "x": "1.safetensors", "y": "2.safetensors" } });
    std::fs::write(root.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn a_host_folder_opens_with_all_its_shards() {
    let folder = TempDir::new().unwrap();
    host_folder(folder.path());
    let spec = folder.path().display().to_string();
    let host = ModelFiles::open(&spec).unwrap();
    assert_eq!(host.config["model_type"], "llama");
    assert!(host.generation_config.is_none());
    assert_eq!(host.checkpoint.names().count(), 2);
    assert_eq!(host.tokenizer.bos(), Some(2));

    std::fs::remove_file(folder.path().join("2.safetensors")).unwrap();
    assert!(matches!(refused(ModelFiles::open(&spec)), Error::MissingFile { file, .. } if file == "2.safetensors"));
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    assert!(matches!(refused(ModelFiles::open(&spec)), Error::MissingFile { file, .. } if file == "config.json"));
    assert!(matches!(refused(ModelFiles::open("no/such/folder")), Error::UnknownSource { .. }));
}

#[test]
fn names_of_base_models_and_text_parts_become_those_of_language_models() {
    let folder = TempDir::new().unwrap();
    let tokenizer = |folder: &TempDir| {
        host_folder(folder.path());
        std::fs::remove_file(folder.path().join("model.safetensors.index.json")).unwrap();
    };
    tokenizer(&folder);
    let one = || f32s(&[1], &[1.0]);
    let spec = folder.path().display().to_string();
    for (from, to) in [
        (
            [("h.0.ln_1.weight", one()), ("wte.weight", one())],
            ["transformer.h.0.ln_1.weight", "transformer.wte.weight"],
        ),
        (
            [("language_model.model.norm.weight", one()), ("vision_tower.x", one())],
            ["model.norm.weight", "model.norm.weight"],
        ),
        (
            [("model.language_model.norm.weight", one()), ("lm_head.weight", one())],
            ["lm_head.weight", "model.norm.weight"],
        ),
    ] {
        written(&folder, "model.safetensors", &safetensors(&from));
        let host = ModelFiles::open(&spec).unwrap();
        for name in to {
            assert!(host.checkpoint.contains(name), "{name}");
        }
    }
    std::fs::write(
        folder.path().join("config.json"),
        r#"{"eos_token_id": 5, "text_config": {"model_type": "gemma3_text"}}"#,
    )
    .unwrap();
    let config = ModelFiles::open(&spec).unwrap().config;
    assert_eq!((&config["model_type"], &config["eos_token_id"]), (&json!("gemma3_text"), &json!(5)));
}

#[test]
fn a_hub_model_is_read_from_the_cache_on_disk() {
    let cache = TempDir::new().unwrap();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repo = cache.path().join("models--org--tiny.model");
    host_folder(&repo.join("snapshots").join(commit));
    std::fs::create_dir_all(repo.join("refs")).unwrap();
    std::fs::write(repo.join("refs/main"), commit).unwrap();
    let hub = Hub { cache: cache.path().to_path_buf(), offline: true, ..Hub::from_env() };
    for spec in ["org/tiny.model", "org/tiny.model@main", &format!("org/tiny.model@{commit}")] {
        let host = ModelFiles::from_folder(&Folder::open_with(spec, hub.clone()).unwrap()).unwrap();
        assert_eq!((host.source.as_str(), host.checkpoint.names().count()), (spec, 2));
    }
    let other = Folder::open_with("org/tiny.model", hub.clone()).unwrap();
    assert!(other.checkpoint("hf://org/tiny.model/1.safetensors").unwrap().contains("x"));
    assert!(other.read_text("README.md").unwrap().is_none());

    // What the Hub was asked for before and does not have is not asked for again, offline or not.
    let mark = repo.join(".no_exist").join(commit).join("generation_config.json");
    std::fs::create_dir_all(mark.parent().unwrap()).unwrap();
    std::fs::write(mark, "").unwrap();
    let online = Folder::open_with("org/tiny.model", Hub { offline: false, ..hub.clone() }).unwrap();
    assert!(online.read_json("generation_config.json").unwrap().is_none());

    // Another revision, another repository, a file that the snapshot lacks.
    for (spec, file) in
        [("org/tiny.model@v2", "config.json"), ("org/other", "config.json"), ("org/tiny.model", "w.npz")]
    {
        let folder = Folder::open_with(spec, hub.clone()).unwrap();
        let e = refused(folder.checkpoint(file));
        let shown = format!("{e} {}", e.hint().unwrap());
        assert!(matches!(e, Error::NotCached { .. }), "{shown}");
        for part in [file, "org/", "HF_HUB_OFFLINE", &cache.path().display().to_string(), "hf download"] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
    }
    for spec in ["../org/x", "org/../x", "a/b/c", "org", "org/x@../../y", "org/"] {
        assert!(matches!(refused(Folder::open_with(spec, hub.clone())), Error::UnknownSource { .. }), "{spec}");
    }
}

fn npy(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn npz(entries: &[(&str, Vec<u8>)], deflated: bool) -> Vec<u8> {
    let method = if deflated { zip::CompressionMethod::Deflated } else { zip::CompressionMethod::Stored };
    let options = zip::write::SimpleFileOptions::default().compression_method(method);
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        zip.start_file(format!("{name}.npy"), options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn sample_npz(deflated: bool) -> Vec<u8> {
    let le = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
    let values = ramp(6);
    // [[0, 1, 2], [3, 4, 5]] by columns.
    let fortran: Vec<f32> = [0, 3, 1, 4, 2, 5].iter().map(|&i| values[i]).collect();
    let half: Vec<u8> = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
    let double: Vec<u8> = values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect();
    let entries = [
        ("c", npy("<f4", "False", "(2, 3)", &le(&values))),
        ("f", npy("<f4", "True", "(2, 3)", &le(&fortran))),
        ("half", npy("<f2", "False", "(6,)", &half)),
        ("double", npy("<f8", "False", "(3, 2)", &double)),
        ("scalar", npy("<f4", "False", "()", &le(&[2.5]))),
        ("count", npy("<i8", "False", "(1,)", &[0; 8])),
    ];
    npz(&entries, deflated)
}

#[test]
fn npz_arrays_are_read_stored_deflated_and_in_both_orders() {
    let folder = TempDir::new().unwrap();
    let values = ramp(6);
    for deflated in [false, true] {
        let path = written(&folder, "params.npz", &sample_npz(deflated));
        let checkpoint = Checkpoint::open_npz(&path).unwrap();
        for name in ["c", "f"] {
            assert_eq!(flat(checkpoint.tensor(name, &[2, 3]).unwrap()), values, "{name} {deflated}");
            assert_eq!(flat(checkpoint.rows(name, 1..2).unwrap()), values[3..]);
            assert_eq!(flat(checkpoint.gather_rows(name, &[1, 0]).unwrap()), [&values[3..], &values[..3]].concat());
            assert_eq!(flat(checkpoint.columns(name, 1..3).unwrap()), [values[1], values[4], values[2], values[5]]);
        }
        assert_eq!(flat(checkpoint.tensor("half", &[6]).unwrap()), values);
        assert_eq!(flat(checkpoint.tensor("double", &[3, 2]).unwrap()), values);
        assert_eq!(flat(checkpoint.tensor("scalar", &[]).unwrap()), [2.5]);
        assert!(matches!(refused(checkpoint.tensor("count", &[1])), Error::Dtype { dtype, .. } if dtype == "<i8"));
    }
}

#[test]
fn npz_shapes_that_lie_are_refused() {
    let folder = TempDir::new().unwrap();
    for shape in ["(7,)", "(5,)", "(99999999999999999999,)", "(4294967296, 4294967296)", "(-1,)", "6"] {
        let bytes = npz(&[("w", npy("<f4", "False", shape, &[0; 24]))], true);
        let path = written(&folder, "lie.npz", &bytes);
        assert!(matches!(refused(Checkpoint::open_npz(&path)), Error::Damaged { .. }), "{shape}");
    }
}

fn reference_tokenizer() -> Tokenizer {
    let json = std::fs::read(fixture("tokenizer/tokenizer.json")).unwrap();
    let config: Value =
        serde_json::from_slice(&std::fs::read(fixture("tokenizer/tokenizer_config.json")).unwrap()).unwrap();
    Tokenizer::from_json("tokenizer.json", &json, Some(&config), &Value::Null).unwrap()
}

#[test]
fn prompts_and_targets_of_the_reference_cases_are_tokenised_the_same() {
    let tokenizer = reference_tokenizer();
    let cases: Value = serde_json::from_slice(&std::fs::read(fixture("tokenizer/cases.json")).unwrap()).unwrap();
    for case in cases.as_array().unwrap() {
        let expected: Vec<u32> = serde_json::from_value(case["input_tokens"].clone()).unwrap();
        assert_eq!(tokenizer.encode_prompt(case["prompt"].as_str().unwrap()).unwrap(), expected);
        for target in case["targets"].as_array().unwrap() {
            assert_eq!(tokenizer.token(target["id"].as_u64().unwrap() as u32), target["token"].as_str().unwrap());
        }
    }
}

/// `cases.json` of a case: prompts with names, targets with ids. Returns how many prompts were compared; a fixture
/// folder may hold some only.
pub fn check_cases(host: &ModelFiles, expected: &Path) -> usize {
    let cases: Value = serde_json::from_slice(&std::fs::read(expected.join("cases.json")).unwrap()).unwrap();
    let cases = cases.get("cases").unwrap_or(&cases).as_array().unwrap().clone();
    let mut n_checked = 0;
    for case in cases {
        let file = expected.join(format!("{}.safetensors", case["name"].as_str().unwrap()));
        let Ok(bytes) = std::fs::read(file) else { continue };
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let ids = tensors.tensor("input_tokens").unwrap();
        let ids: Vec<u32> = ids.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect();
        assert_eq!(host.tokenizer.encode_prompt(case["prompt"].as_str().unwrap()).unwrap(), ids);
        for target in case.get("targets").and_then(Value::as_array).into_iter().flatten() {
            assert_eq!(host.tokenizer.token(target["id"].as_u64().unwrap() as u32), target["token"].as_str().unwrap());
        }
        n_checked += 1;
    }
    n_checked
}

#[test]
fn every_reference_model_opens_and_tokenises_as_recorded() {
    let mut folders: Vec<_> = FAMILIES.map(|family| fixture("reference").join(family)).into();
    folders.push(fixture("atlas"));
    for folder in folders {
        let host = ModelFiles::open(&folder.join("model").display().to_string()).unwrap();
        assert!(check_cases(&host, &folder.join("expected")) > 0, "{}: no prompt", folder.display());
        assert!(host.checkpoint.names().count() > 0);
        for name in host.checkpoint.names() {
            host.checkpoint.tensor(name, &host.checkpoint.shape(name).unwrap()).unwrap();
        }
    }
}

#[test]
fn a_prompt_gets_one_special_token_first_and_none_is_refused() {
    let tokenizer = reference_tokenizer();
    let ids = tokenizer.encode_prompt("the man").unwrap();
    assert_eq!(ids[0], 2);
    assert_eq!(tokenizer.encode_prompt("<bos>the man").unwrap(), ids);
    assert_eq!(tokenizer.encode_prompt("<eos>the man").unwrap()[0], 1, "any special token will do");
    assert!(matches!(refused(tokenizer.encode_prompt("")), Error::EmptyPrompt));
    assert_eq!(tokenizer.decode(&ids[1..]), "the man");
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(ids[1]));
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.vocab_size()), (Some(2), Some(1), 512));
    let config = json!({ "bos_token_id": [2], "eos_token_id": 1 });
    let again = Tokenizer::from_json("again", tokenizer.to_json().unwrap().as_bytes(), None, &config).unwrap();
    assert_eq!(again.encode_prompt("the man").unwrap(), ids);
}

#[test]
fn text_that_is_not_one_token_gets_its_tokens_and_near_misses() {
    let tokenizer = reference_tokenizer();
    let id = tokenizer.single_token(" man").unwrap();
    assert_eq!((id, tokenizer.token(id).as_str()), (470, " man"));
    match refused(tokenizer.single_token(" Man")) {
        e @ Error::NotOneToken { .. } => {
            assert!(e.to_string().contains("\" Man\""));
            assert!(e.hint().unwrap().contains("\" man\""), "{:?}", e.hint());
        }
        e => panic!("{e}"),
    }
    assert!(matches!(refused(tokenizer.single_token("")), Error::NotOneToken { tokens, .. } if tokens.is_empty()));
    assert!(
        matches!(refused(tokenizer.single_token("unspeakably long")), Error::NotOneToken { tokens, .. } if tokens.len() > 1)
    );
    for id in 4..512 {
        let text = tokenizer.token(id);
        if !text.contains('\u{fffd}') {
            assert_eq!(tokenizer.token(tokenizer.single_token(&text).unwrap()), text);
        }
    }
}

#[test]
fn folders_list_and_read_files_wherever_they_are() {
    let folder = TempDir::new().unwrap();
    written(&folder, "layer_0/params.npz", &sample_npz(false));
    written(&folder, "config.yaml", b"model_name: x\n");
    let disk = Folder::open(&folder.path().display().to_string()).unwrap();
    assert_eq!(disk.list().unwrap(), ["config.yaml", "layer_0/params.npz"]);
    assert_eq!(disk.read_text("config.yaml").unwrap().as_deref(), Some("model_name: x\n"));
    assert!(disk.read_text("none").unwrap().is_none());
    assert!(disk.checkpoint("layer_0/params.npz").unwrap().contains("c"));
    assert!(matches!(refused(disk.checkpoint("layer_1/params.npz")), Error::MissingFile { .. }));

    let bytes: &'static [u8] = Vec::leak(safetensors(&[("w", f32s(&[1], &[1.0]))]));
    let files: &'static [(&'static str, &'static [u8])] = Vec::leak(vec![("a.safetensors", bytes), ("b.txt", b"b")]);
    let embedded = Folder::from_static("atlas", files);
    assert_eq!(embedded.read_text("b.txt").unwrap().as_deref(), Some("b"));
    assert!(embedded.checkpoint("a.safetensors").unwrap().contains("w"));
    assert!(matches!(refused(embedded.checkpoint("c.safetensors")), Error::MissingFile { .. }));
}

/// Reads everything that a file claims to hold; errors are fine, panics are not.
pub fn read_all(checkpoint: Result<Checkpoint>) {
    let Ok(checkpoint) = checkpoint else { return };
    for name in checkpoint.names() {
        let shape = checkpoint.shape(name).expect("it was listed");
        let _ = checkpoint.tensor(name, &shape);
        let _ = checkpoint.rows(name, 0..1);
        let _ = checkpoint.gather_rows(name, &[0, 1]);
        let _ = checkpoint.columns(name, 0..1);
    }
}

/// Overwrites, and maybe cuts, a file.
pub fn damage(mut bytes: Vec<u8>, changes: &HashMap<usize, u8>, cut: usize) -> Vec<u8> {
    let len = bytes.len();
    for (&at, &byte) in changes {
        bytes[at % len] = byte;
    }
    bytes.truncate(len - cut % len);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damaged_safetensors_never_panic(changes in prop::collection::hash_map(0usize..400, any::<u8>(), 1..6), cut in prop_oneof![Just(0usize), 0usize..200]) {
        let folder = TempDir::new().unwrap();
        let bytes = safetensors(&[("a", f32s(&[2, 3], &ramp(6))), ("b", (Dtype::BF16, vec![4], vec![0; 8]))]);
        let path = written(&folder, "x.safetensors", &damage(bytes, &changes, cut));
        read_all(Checkpoint::open_safetensors(&[path]));
    }

    #[test]
    fn damaged_npz_never_panic(deflated in any::<bool>(), changes in prop::collection::hash_map(any::<usize>(), any::<u8>(), 1..6), cut in prop_oneof![Just(0usize), 0usize..2000]) {
        let folder = TempDir::new().unwrap();
        let path = written(&folder, "x.npz", &damage(sample_npz(deflated), &changes, cut));
        read_all(Checkpoint::open_npz(&path));
    }
}

#[test]
fn tokens_that_end_a_text_come_from_the_generation_config_too() {
    let folder = tempfile::tempdir().unwrap();
    for entry in fixture("reference/llama_relu/model").read_dir().unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let ends = |text: &str| {
        std::fs::write(folder.path().join("generation_config.json"), text).unwrap();
        ModelFiles::open(folder.path().to_str().unwrap()).unwrap().end_tokens()
    };
    assert_eq!(ends("{}"), [1]);
    assert_eq!(ends(r#"{"eos_token_id": 7}"#), [1, 7]);
    assert_eq!(ends(r#"{"eos_token_id": [9, 1, 7, -1, "x"]}"#), [1, 7, 9]);
}

#[test]
fn checkpoints_of_the_base_model_alone_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    let from = fixture("reference/llama_relu/model");
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let _ = std::fs::copy(from.join(name), folder.path().join(name));
    }
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let renamed =
        tensors.tensors().into_iter().map(|(name, view)| (name.trim_start_matches("model.").to_owned(), view));
    std::fs::write(folder.path().join("model.safetensors"), safetensors::serialize(renamed, None).unwrap()).unwrap();
    let names = |folder: &Path| -> Vec<String> {
        let host = ModelFiles::open(folder.to_str().unwrap()).unwrap();
        let mut names: Vec<String> = host.checkpoint.names().map(str::to_owned).collect();
        names.sort();
        names
    };
    assert_eq!(names(folder.path()), names(&from));
}
