//! What several rooms' tests share: the device, test data, comparing, running the program.

pub mod gguf;
mod program;
mod random;

pub use program::{PROMPT, answer, circuitscope, copy_folder, program, refused, refused_with, stdout};
pub use random::Random;

use std::path::{Path, PathBuf};

use candle_core::Device;
use circuitscope::ops::open_cuda;
use circuitscope::replacement::Replacement;
use circuitscope::weights::{Folder, ModelFiles};

/// The device that tests compute on: the CPU, or what CIRCUITSCOPE_DEVICE names (`cuda`).
pub fn device() -> Device {
    match std::env::var("CIRCUITSCOPE_DEVICE").as_deref() {
        Err(_) | Ok("cpu") => Device::Cpu,
        Ok("cuda") => {
            // One for all threads of the tests, as in the program.
            static CUDA: std::sync::OnceLock<Device> = std::sync::OnceLock::new();
            CUDA.get_or_init(|| open_cuda(0).expect("the GPU works")).clone()
        }
        Ok(other) => panic!("CIRCUITSCOPE_DEVICE is {other}, expected cpu or cuda"),
    }
}

/// The folder of `Cargo.toml`.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the repository's own test data.
pub fn fixture(relative: &str) -> PathBuf {
    root().join("fixtures").join(relative)
}

/// Where the larger test data is, which is not part of the repository: CIRCUITSCOPE_SHARED, else `../shared`.
pub fn shared_root() -> PathBuf {
    std::env::var_os("CIRCUITSCOPE_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from)
}

/// A file or folder of the larger test data, for tests that are `#[ignore]`d because they need it.
#[track_caller]
pub fn shared(relative: &str) -> PathBuf {
    let path = shared_root().join(relative);
    assert!(path.exists(), "{} is not here: set CIRCUITSCOPE_SHARED", path.display());
    path
}

/// The file that an environment variable names, for tests that are `#[ignore]`d because they need it.
#[track_caller]
pub fn file_named_by(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set"));
    let path = PathBuf::from(path);
    assert!(path.is_file(), "{variable} is {}, which is no file", path.display());
    path
}

/// Tests of what a machine may lack (a compiler, nvcc) end early without it, but not in CI: there it must be.
#[track_caller]
pub fn absent(what: &str) {
    assert!(std::env::var_os("CI").is_none(), "{what} is missing, and CI must have it");
    println!("not checked here: {what} is missing");
}

/// A model with its transcoders, both by path.
pub fn open_replacement(model: &Path, transcoders: &Path) -> Replacement {
    let model = ModelFiles::open(model.to_str().unwrap()).unwrap();
    let transcoders = Folder::open(transcoders.to_str().unwrap()).unwrap();
    Replacement::open(model, &transcoders, &device()).unwrap()
}

/// The small trained model that is part of the program.
pub fn atlas() -> Replacement {
    open_replacement(&fixture("atlas/model"), &fixture("atlas/transcoders"))
}

/// Asserts `|actual - expected| <= atol + rtol·|expected|`.
#[track_caller]
pub fn close(actual: f64, expected: f64, atol: f64, rtol: f64, name: &str) {
    close_all(&[actual], &[expected], atol, rtol, name);
}

/// Asserts `|actual - expected| <= atol + rtol·|expected|` for each pair, and that there are as many of one as of the
/// other; shows the first pairs that are not close.
#[track_caller]
pub fn close_all<A: Copy + Into<f64>, E: Copy + Into<f64>>(
    actual: &[A],
    expected: &[E],
    atol: f64,
    rtol: f64,
    name: &str,
) {
    assert_eq!(actual.len(), expected.len(), "{name}: numbers of values");
    let pairs = actual.iter().zip(expected).map(|(&a, &e)| (a.into(), e.into())).enumerate();
    // Written so that NaN is not close to anything.
    let is_close = |a: f64, e: f64| (a - e).abs() <= atol + rtol * e.abs();
    let bad: Vec<(usize, (f64, f64))> = pairs.filter(|&(_, (a, e))| !is_close(a, e)).collect();
    let first = bad.iter().take(5).map(|(i, (a, e))| format!("\n  [{i}] {a} is not {e}, off by {:e}", (a - e).abs()));
    assert!(bad.is_empty(), "{name}: {} of {} differ:{}", bad.len(), actual.len(), first.collect::<String>());
}

#[test]
#[should_panic(expected = "2 of 3 differ:\n  [1] 2 is not 3, off by 1e0\n  [2] NaN is not 1")]
fn values_that_are_not_close_are_shown() {
    close_all(&[1.0, 2.0, f64::NAN], &[1.0f32, 3.0, 1.0], 0.5, 0.0, "three");
}

#[test]
#[should_panic(expected = "numbers of values")]
fn fewer_values_are_not_close() {
    close_all(&[0f32; 0], &[1.0f32], 9.0, 9.0, "none");
}
