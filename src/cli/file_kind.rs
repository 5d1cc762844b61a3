//! What a file is that is not what it should be, and which file was meant that is not there.

use std::io::Read;
use std::path::Path;

use crate::text::typing_distance;

/// As much of a file as tells what it is.
const START_BYTES: u64 = 4096;

/// What the file at `path` is, by its first bytes: a phrase with its article. `None` where it cannot be read or told.
pub(super) fn kind_of_file(path: &Path) -> Option<&'static str> {
    let mut start = Vec::new();
    std::fs::File::open(path).ok()?.take(START_BYTES).read_to_end(&mut start).ok()?;
    let starts: [(&[u8], &str); 9] = [
        (b"\x89PNG", "a PNG picture"),
        (b"\xff\xd8\xff", "a JPEG picture"),
        (b"%PDF", "a PDF"),
        (b"PK\x03\x04", "a ZIP archive, as PyTorch's .pt and NumPy's .npz files are"),
        (b"\x1f\x8b", "a gzip archive"),
        (b"GGUF", "a GGUF model"),
        (b"\x93NUMPY", "a NumPy array"),
        (b"\x80\x02", "a Python pickle, as older .pt files are"),
        (b"version https://git-lfs", "a pointer of Git LFS: the file itself was not fetched"),
    ];
    if start.is_empty() {
        return Some("empty");
    }
    if let Some((_, kind)) = starts.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Some(kind);
    }
    if start.len() > 8 && start[7] == 0 && start[8] == b'{' {
        let is_graph = start.windows(b"circuitscope".len()).any(|window| window == b"circuitscope");
        return Some(if is_graph { "a raw graph" } else { "a safetensors file" });
    }
    let text = String::from_utf8_lossy(&start);
    match text.trim_start().chars().next()? {
        '{' | '[' => Some("JSON"),
        '<' => Some("HTML, XML or SVG"),
        _ if text.chars().any(|c| c.is_control() && !c.is_whitespace()) => None,
        _ => Some("plain text"),
    }
}

/// The name in the same folder that a mistyped path comes nearest to.
pub(super) fn nearest_path(path: &Path) -> Option<std::path::PathBuf> {
    let name = path.file_name()?.to_str()?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let entries = std::fs::read_dir(folder.unwrap_or(Path::new("."))).ok()?;
    let mut near: Vec<(usize, String)> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .map(|other| (typing_distance(name, &other), other))
        .filter(|(distance, _)| *distance <= (name.chars().count() / 4).max(1))
        .collect();
    near.sort();
    near.into_iter().next().map(|(_, other)| path.with_file_name(other))
}
