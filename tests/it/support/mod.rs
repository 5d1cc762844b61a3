//! What several rooms' tests share.

use std::path::PathBuf;

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
