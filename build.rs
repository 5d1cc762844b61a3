//! With the feature `cuda`: compiles `kernels/*.cu` to PTX, which `src/ops/cuda/enabled.rs` embeds. Otherwise nothing.

#[cfg(feature = "cuda")]
fn main() {
    use std::path::PathBuf;

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
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
}
