//! With the feature `cuda`: compiles `kernels/*.cu` to PTX, which `src/ops/cuda/enabled.rs` embeds. With `serve`: lists the
//! files of the page in `web/`, which `src/serve/files.rs` embeds as they are.

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    list_page();
    compile_kernels();
}

/// Writes `page.rs`: name and bytes of every file that a browser asks for. Nothing is changed on the way.
fn list_page() {
    if std::env::var_os("CARGO_FEATURE_SERVE").is_none() {
        return;
    }
    println!("cargo:rerun-if-changed=web");
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("web");
    let mut files = Vec::new();
    list(&root, "", &mut files);
    files.sort();
    let lines =
        files.iter().map(|(name, path)| format!("    ({name:?}, include_bytes!({:?})),\n", path.display().to_string()));
    let table = format!("&[\n{}]\n", lines.collect::<String>());
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it")).join("page.rs");
    std::fs::write(&out, table).unwrap_or_else(|error| panic!("cannot write {}: {error}", out.display()));
}

/// The files below `folder` that a browser reads; tests, types and tools are none.
fn list(folder: &Path, before: &str, files: &mut Vec<(String, PathBuf)>) {
    const ENDINGS: [&str; 8] = ["html", "css", "js", "svg", "png", "ico", "webmanifest", "txt"];
    let entries = folder.read_dir().unwrap_or_else(|error| panic!("cannot list {}: {error}", folder.display()));
    for entry in entries.flatten() {
        let (path, Ok(name)) = (entry.path(), entry.file_name().into_string()) else { continue };
        let full = format!("{before}{name}");
        if path.is_dir() {
            if !["node_modules", "test", "tests"].contains(&name.as_str()) && !name.starts_with('.') {
                list(&path, &format!("{full}/"), files);
            }
            continue;
        }
        let is_read = path.extension().and_then(|e| e.to_str()).is_some_and(|ending| ENDINGS.contains(&ending));
        if full == "openapi.json" || (is_read && !name.ends_with(".test.js") && !name.ends_with(".d.ts")) {
            files.push((full, path));
        }
    }
}

#[cfg(feature = "cuda")]
fn compile_kernels() {
    // Embeddable on any GPU from compute capability 8.0 on: the driver compiles PTX for the one it finds.
    const COMPUTE_CAPABILITY: &str = "80";

    let out_dir = PathBuf::from(std::env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    let built = cudaforge::KernelBuilder::new()
        .source_dir("kernels")
        .watch(["kernels/common.cuh"])
        .compute_cap_arch(COMPUTE_CAPABILITY)
        .args(["-std=c++17", "-O3"])
        .build_ptx()
        .and_then(|ptx| ptx.write(out_dir.join("ptx.rs")));
    if let Err(error) = built {
        eprintln!("cannot compile the CUDA kernels: {error}");
        eprintln!(
            "the feature `cuda` needs nvcc 12 or newer: put it on PATH, or set NVCC or CUDA_HOME (see docs/gpu.md)"
        );
        std::process::exit(1);
    }
}

#[cfg(not(feature = "cuda"))]
fn compile_kernels() {}
