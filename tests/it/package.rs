//! What `cargo package` would put into the crate.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::root;

/// crates.io takes no larger packages, compressed as they are.
const MAX_BYTES: u64 = 10_000_000;

/// Bytes of a file as it is packed: alone, so that all of them together take no more.
fn packed(bytes: &[u8]) -> u64 {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap().len() as u64
}

#[test]
fn the_package_holds_the_embedded_model_but_no_large_test_data_and_fits_crates_io() {
    let output = Command::new(env!("CARGO"))
        .current_dir(root())
        .args(["package", "--list", "--allow-dirty", "--offline"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let files: Vec<PathBuf> = String::from_utf8(output.stdout).unwrap().lines().map(PathBuf::from).collect();
    let has = |name: &str| files.iter().any(|file| file.as_path() == Path::new(name));
    for name in
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    {
        assert!(has(&format!("fixtures/atlas/model/{name}")), "{name} is embedded, but not packaged");
    }
    for name in ["config.yaml", "feature_labels.json", "layer_0.safetensors", "layer_3.safetensors"] {
        assert!(has(&format!("fixtures/atlas/transcoders/{name}")), "{name} is embedded, but not packaged");
    }
    assert!(has("src/lib.rs") && has("build.rs") && has("README.md"));
    assert!(!files.iter().any(|file| file.starts_with("fixtures/reference")), "test data is packaged");
    // Cargo.toml.orig and the like are made by cargo.
    let sizes = files.iter().filter_map(|file| std::fs::read(root().join(file)).ok()).map(|bytes| packed(&bytes));
    let n_bytes: u64 = sizes.sum();
    assert!(n_bytes > 1_000_000, "{n_bytes} bytes are too few to hold the embedded model");
    assert!(n_bytes < MAX_BYTES, "the package has {n_bytes} bytes, more than {MAX_BYTES}");
}

#[test]
fn every_stage_of_ci_is_a_job_of_the_workflow() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let (script, workflow) = (read(".ci/run"), read(".github/workflows/ci.yml"));
    let stages: Vec<&str> =
        script.lines().filter_map(|line| line.strip_prefix("stage_")?.strip_suffix("() {")).collect();
    assert!(stages.len() >= 5, "{stages:?}");
    let listed = format!("stage: [{}]", stages.join(", "));
    assert!(workflow.contains(&listed), "{listed} is not in ci.yml");
    // The last one fetches gigabytes: who wants it asks for it.
    let usual = &stages[..stages.len() - 1];
    assert!(
        script.contains(&format!("set -- {}\n", usual.join(" "))),
        "all stages but the last run where none is named"
    );
}

#[test]
fn the_release_makes_program_and_wheel_for_the_same_systems() {
    let workflow = std::fs::read_to_string(root().join(".github/workflows/release.yml")).unwrap();
    let targets: Vec<&str> = workflow.lines().filter(|line| line.contains("{ target: ")).map(str::trim).collect();
    assert_eq!(targets.len(), 10);
    assert_eq!(targets[..5], targets[5..]);
    for target in ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "apple-darwin", "pc-windows-msvc"] {
        assert!(targets.iter().any(|line| line.contains(target)), "{target}");
    }
    assert!(workflow.contains("SHA256SUMS"));
}
