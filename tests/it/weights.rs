//! Promises of the `weights` room: what is read is what was written, and what is damaged is refused.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;

use circuitscope::weights::Checkpoint;
use circuitscope::{Error, Result};
use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

/// One tensor to be written: dtype, shape, little-endian bytes.
type Raw = (Dtype, Vec<usize>, Vec<u8>);

pub fn f32s(shape: &[usize], values: &[f32]) -> Raw {
    (Dtype::F32, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

pub fn safetensors(tensors: &[(&str, Raw)]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name.to_string(), TensorView::new(*dtype, shape.clone(), bytes).expect("a consistent tensor"))
    });
    safetensors::serialize(views.collect::<Vec<_>>(), None).expect("serialises")
}

pub fn written(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
    std::fs::write(&path, bytes).expect("written");
    path
}

/// Values that every dtype of the tests holds exactly.
pub fn ramp(n: usize) -> Vec<f32> {
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
pub fn refused<T>(result: Result<T>) -> Error {
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

pub fn sample_npz(deflated: bool) -> Vec<u8> {
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
