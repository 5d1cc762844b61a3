//! What several rooms' tests share.

use std::path::PathBuf;

use candle_core::Device;
use circuitscope::ops::open_cuda;

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

/// A file or folder of the larger test data, which is not part of the repository; `None`, with a printed line, when
/// this machine does not have it.
pub fn shared(relative: &str) -> Option<PathBuf> {
    let root = std::env::var_os("CIRCUITSCOPE_SHARED").map(PathBuf::from);
    let root = root.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared"));
    let path = root.join(relative);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is not here", path.display());
    None
}

/// A file of the repository's own test data.
pub fn fixture(relative: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(relative)
}
