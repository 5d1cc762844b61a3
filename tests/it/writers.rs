//! Files are written in one place, whole or not at all.

use std::path::{Path, PathBuf};

/// Ways to write a file that somebody else can see, as they stand in code.
const WRITES: [&str; 9] = [
    "fs::write",
    "File::create",
    "File::options",
    "OpenOptions",
    ".write(true)",
    "fs::copy",
    "fs::rename",
    "NamedTempFile",
    "tempfile_in",
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The code of a file without its tests and comments.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_writer_of_whole_files_is_the_only_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    assert!(found.len() > 100, "the sources were found");
    let (writer, temporary) = (root.join("export/replace.rs"), root.join("export/temporary.rs"));
    for path in &found {
        let code = code(path);
        for write in WRITES {
            // A download is no file of ours until it is complete: it grows beside its place, goes on where it was cut
            // off, and is renamed (`tests/it/hub.rs`).
            let is_writer = [&writer, &temporary].contains(&path) || *path == root.join("weights/hub_client.rs");
            assert!(is_writer || !code.contains(write), "{} has `{write}`", path.display());
        }
    }
    let code = code(&writer) + &code(&temporary);
    assert!(code.contains("tempfile_in") && code.contains("persist"), "the writer writes beside and renames");
}
