//! What ptxas says of the kernels: no spills, and enough thread blocks on a multiprocessor. Needs nvcc (NVCC, or on PATH).

use std::path::{Path, PathBuf};
use std::process::Command;

/// A kernel's figures on one architecture.
#[derive(Clone, Debug, PartialEq)]
struct Figures {
    kernel: String,
    n_threads: usize,
    n_registers: usize,
    shared_bytes: usize,
    spill_bytes: usize,
    stack_bytes: usize,
}

/// What a multiprocessor has.
struct Architecture {
    name: &'static str,
    shared_bytes: usize,
}

/// Both have 64 warps, 32 thread blocks and 65,536 registers in four parts.
const ARCHITECTURES: [Architecture; 2] =
    [Architecture { name: "80", shared_bytes: 164 << 10 }, Architecture { name: "90", shared_bytes: 228 << 10 }];

/// The version of nvcc that the table in `docs/kernels.md` is from.
const TABLE_NVCC: &str = "V13.0.88";

impl Architecture {
    /// Warps at a time on a multiprocessor, of 64, in percent.
    fn occupancy(&self, figures: &Figures) -> usize {
        let warps = figures.n_threads / 32;
        // A warp takes registers from one of four parts, 256 at a time; a thread block some shared memory for itself.
        let of_warp = (figures.n_registers * 32).next_multiple_of(256);
        let by_registers = 16_384 / of_warp * 4 / warps;
        let by_shared = self.shared_bytes / (figures.shared_bytes + 1024).next_multiple_of(128);
        let n_segments = by_registers.min(by_shared).min(64 / warps).min(32);
        n_segments * warps * 100 / 64
    }
}

fn nvcc() -> Option<String> {
    let nvcc = std::env::var("NVCC").unwrap_or_else(|_| "nvcc".into());
    if Command::new(&nvcc).arg("--version").output().is_ok_and(|output| output.status.success()) {
        return Some(nvcc);
    }
    crate::support::absent("nvcc (set NVCC)");
    None
}

/// The number before or after a word.
fn number(line: &str, before: &str, after: &str) -> Option<usize> {
    let (_, rest) = if before.is_empty() { ("", line) } else { line.split_once(before)? };
    let (head, _) = rest.split_once(after)?;
    head.split_whitespace().next_back()?.parse().ok()
}

/// Threads of a thread block, the one constant of a kernel file that ends in `_THREADS`.
fn n_threads(source: &Path) -> usize {
    let text = std::fs::read_to_string(source).unwrap();
    number(&text, "_THREADS = ", ";").expect("a kernel file says how many threads a thread block has")
}

/// Compiles a file to a cubin and reads what ptxas says.
fn compile(nvcc: &str, source: &Path, architecture: &Architecture, folder: &Path) -> Vec<Figures> {
    let name = architecture.name;
    let output = Command::new(nvcc)
        .args(["-std=c++17", "-O3", "-cubin", "-Xptxas", "-v", "-Werror", "all-warnings"])
        .arg(format!("-gencode=arch=compute_{name},code=sm_{name}"))
        .arg(source)
        .arg("-o")
        .arg(folder.join("kernel.cubin"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {said}", source.display());
    let mut all: Vec<Figures> = Vec::new();
    for line in said.lines() {
        if let Some(kernel) = line.split("Compiling entry function '").nth(1) {
            all.push(Figures {
                kernel: kernel.split('\'').next().unwrap().into(),
                n_threads: n_threads(source),
                n_registers: 0,
                shared_bytes: 0,
                spill_bytes: usize::MAX,
                stack_bytes: usize::MAX,
            });
        }
        let Some(last) = all.last_mut() else { continue };
        if let Some(stack) = number(line, "", " bytes stack frame") {
            let spills = |what| number(line, "", what).expect("ptxas names stores and loads");
            last.stack_bytes = stack;
            last.spill_bytes = spills(" bytes spill stores") + spills(" bytes spill loads");
        }
        if let Some(n_registers) = number(line, "", " registers") {
            last.n_registers = n_registers;
            last.shared_bytes = number(line, "", " bytes smem").unwrap_or(0);
        }
    }
    all
}

#[test]
fn kernels_do_not_spill_and_fill_half_of_a_multiprocessor() {
    let Some(nvcc) = nvcc() else { return };
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let mut sources: Vec<PathBuf> = root.join("kernels").read_dir().unwrap().map(|e| e.unwrap().path()).collect();
    sources.retain(|path| path.extension().is_some_and(|e| e == "cu"));
    sources.sort();
    let mut table = Vec::new();
    for source in &sources {
        let [a100, h100] =
            ARCHITECTURES.map(|a| (compile(&nvcc, source, &a, folder.path()), a)).map(|(mut figures, a)| {
                figures.sort_by(|a, b| a.kernel.cmp(&b.kernel));
                for f in &figures {
                    assert_eq!((f.spill_bytes, f.stack_bytes), (0, 0), "{} on sm_{}", f.kernel, a.name);
                    assert!(a.occupancy(f) >= 50, "{} on sm_{}: {} %", f.kernel, a.name, a.occupancy(f));
                }
                figures.into_iter().map(|f| (a.occupancy(&f), f)).collect::<Vec<_>>()
            });
        for ((of_a100, a), (of_h100, h)) in a100.iter().zip(&h100) {
            table.push(format!(
                "| `{}` | {} | {} / {} | {} | {} % / {} % |",
                a.kernel, a.n_threads, a.n_registers, h.n_registers, h.shared_bytes, of_a100, of_h100
            ));
        }
    }
    let version = Command::new(&nvcc).arg("--version").output().unwrap();
    if String::from_utf8_lossy(&version.stdout).contains(TABLE_NVCC) {
        let docs = std::fs::read_to_string(root.join("docs/kernels.md")).unwrap();
        let stale: Vec<&String> = table.iter().filter(|row| !docs.contains(row.as_str())).collect();
        assert!(stale.is_empty(), "docs/kernels.md has other figures than\n{}", table.join("\n"));
    }
}
