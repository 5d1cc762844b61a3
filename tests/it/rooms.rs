//! Who may import whom: the table of rooms in ARCHITECTURE.md, enforced.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A room and the rooms that it may import.
const ROOMS: [(&str, &[&str]); 18] = [
    ("error", &[]),
    ("job", &["error"]),
    ("ops", &["error"]),
    ("weights", &["error"]),
    ("labels", &["error"]),
    ("text", &[]),
    ("model", &["error", "job", "ops", "weights"]),
    ("transcoder", &["error", "job", "ops", "weights", "labels"]),
    ("graph", &["error"]),
    ("replacement", &["error", "job", "ops", "weights", "model", "transcoder"]),
    ("attribution", &["error", "job", "ops", "replacement", "graph"]),
    ("intervene", &["error", "job", "replacement", "graph", "model", "transcoder", "weights"]),
    ("prune", &["error", "graph"]),
    ("circuits", &["error", "labels", "graph", "prune", "export"]),
    ("picture", &["error", "text", "graph", "intervene", "circuits", "export"]),
    ("export", &["error", "graph"]),
    ("train", &["error", "job", "ops", "weights", "model", "transcoder"]),
    ("features", &["error", "job", "ops", "weights", "model", "transcoder"]),
    (
        "serve",
        &[
            "error",
            "job",
            "ops",
            "weights",
            "labels",
            "text",
            "model",
            "transcoder",
            "graph",
            "replacement",
            "attribution",
            "intervene",
            "prune",
            "export",
            "circuits",
            "picture",
            "train",
            "features",
        ],
    ),
];

/// `cli` may import everything; `lib.rs` and `main.rs` are not rooms.
const TOP: [&str; 3] = ["cli", "lib", "main"];

fn sources(folder: &Path, found: &mut Vec<(String, String)>, room: Option<&str>) {
    let mut entries: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let room = room.unwrap_or(&stem).to_owned();
        if path.is_dir() {
            sources(&path, found, Some(&room));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push((room, std::fs::read_to_string(&path).unwrap()));
        }
    }
}

/// The names that follow `crate::` in code, also inside braces.
fn imports(source: &str) -> BTreeSet<String> {
    let code: String =
        source.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let list = match rest.strip_prefix('{') {
            Some(inner) => inner.split('}').next().unwrap_or_default(),
            None => rest.split([';', ':', '(', ')', ' ', '<', '>', ',', '\n']).next().unwrap_or_default(),
        };
        for item in list.split(',') {
            let name: String = item.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            // `crate::{Error, Result}` and macros of the crate are the `error` room's re-exports.
            found.insert(if name == "Error" || name == "Result" { "error".into() } else { name });
        }
    }
    found.remove("");
    found
}

#[test]
fn rooms_import_lower_rooms_only() {
    let allowed: BTreeMap<&str, &[&str]> = ROOMS.into_iter().collect();
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found, None);
    assert!(found.len() > 30, "the sources were found");
    for (room, source) in &found {
        if TOP.contains(&room.as_str()) {
            continue;
        }
        let allowed = allowed.get(room.as_str()).unwrap_or_else(|| panic!("`{room}` is not in the table of rooms"));
        for import in imports(source) {
            let fine = import == *room || allowed.contains(&import.as_str());
            assert!(fine, "`{room}` imports `{import}`, but may import only {allowed:?}");
        }
    }
}

#[test]
fn imports_are_found_in_every_form() {
    let source = "use crate::graph::{A, B};\nuse crate::{Error, prune::x};\nlet y = crate::export::z();\n// crate::cli";
    let expected = ["error", "export", "graph", "prune"].map(str::to_owned);
    assert_eq!(imports(source), expected.into());
}

#[test]
fn the_feature_cuda_is_asked_for_in_the_cuda_folder_and_the_build_script_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let asking = |folder: &str| -> Vec<String> {
        let mut found = Vec::new();
        sources(&root.join(folder), &mut found, None);
        let without_spaces = |source: &str| source.split_whitespace().collect::<String>();
        found.retain(|(_, source)| without_spaces(source).contains("feature=\"cuda\""));
        found.into_iter().map(|(_, source)| source).collect()
    };
    let chooser = std::fs::read_to_string(root.join("src/ops/cuda/mod.rs")).unwrap();
    assert_eq!(asking("src"), [chooser], "src/ops/cuda/mod.rs chooses between enabled and disabled, and nothing else");
}
