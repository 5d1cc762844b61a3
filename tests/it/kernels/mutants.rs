//! Kernels with a planted fault: the checks that the kernels pass must catch every one.

use std::path::Path;

use candle_core::Result;

use super::agreement::{WRONG_RESULT, attention_case, edge_rows_case, encode_case, influence_case, norm_case};
use super::on_cpu::{self, Build, OnCpu};
use crate::transpose::Random;

/// A change of one kernel's source, and under which build the checks must fail.
struct Mutant {
    name: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
    build: Build,
    case: fn(&OnCpu, &mut Random) -> Result<()>,
}

fn edge_rows(gpu: &OnCpu, random: &mut Random) -> Result<()> {
    edge_rows_case(gpu, random, vec![1; 40], 70, 70)
}

fn attention_short(gpu: &OnCpu, random: &mut Random) -> Result<()> {
    attention_case(gpu, random, vec![9, 9, 4], [4, 2, 20])
}

fn attention_long(gpu: &OnCpu, random: &mut Random) -> Result<()> {
    attention_case(gpu, random, vec![40, 17], [4, 2, 20])
}

fn norm(gpu: &OnCpu, random: &mut Random) -> Result<()> {
    norm_case(gpu, random, vec![3, 2, 2], 40)
}

fn encode(gpu: &OnCpu, random: &mut Random) -> Result<()> {
    encode_case(gpu, random, 2, 1100)
}

fn influence(gpu: &OnCpu, random: &mut Random) -> Result<()> {
    influence_case(gpu, random, &[20, 45], 3)
}

const MUTANTS: [Mutant; 17] = [
    Mutant {
        name: "edge_rows uses a slice before it is loaded",
        file: "edge_rows.cu",
        from: "        __syncthreads();\n#pragma unroll 8",
        to: "#pragma unroll 8",
        build: Build::Threads,
        case: edge_rows,
    },
    Mutant {
        name: "edge_rows overwrites a slice that is in use",
        file: "edge_rows.cu",
        from: "        __syncthreads();  // the next slice",
        to: "        // the next slice",
        build: Build::Threads,
        case: edge_rows,
    },
    Mutant {
        name: "edge_rows reads one vector too many",
        file: "edge_rows.cu",
        from: "first_row + row < end_row &&",
        to: "first_row + row <= end_row &&",
        build: Build::Addresses,
        case: edge_rows,
    },
    Mutant {
        name: "edge_rows reads a dimension too many",
        file: "edge_rows.cu",
        from: "first_dim + group + d < width",
        to: "first_dim + group + d <= width",
        build: Build::Addresses,
        case: edge_rows,
    },
    Mutant {
        name: "edge_rows reads targets where they were not stored",
        file: "edge_rows.cu",
        from: "grads[dim][(own_target ^ group) + t]",
        to: "grads[dim][own_target + t]",
        build: Build::Plain,
        case: edge_rows,
    },
    Mutant {
        name: "edge_rows writes a target too many",
        file: "edge_rows.cu",
        from: "if (target >= n_targets) continue;",
        to: "if (target > n_targets) continue;",
        build: Build::Addresses,
        case: edge_rows,
    },
    Mutant {
        name: "frozen_attention looks at a key after the query",
        file: "frozen_attention.cu",
        from: "q <= last && k <= q ?",
        to: "q <= last && k <= q + 1 ?",
        build: Build::Plain,
        case: attention_short,
    },
    Mutant {
        name: "frozen_attention leaves out the last query",
        file: "frozen_attention.cu",
        from: "first <= last; first += QUERIES",
        to: "first < last; first += QUERIES",
        build: Build::Plain,
        case: attention_long,
    },
    Mutant {
        name: "frozen_attention overwrites a head that is in use",
        file: "frozen_attention.cu",
        from: "            __syncthreads();  // the next head",
        to: "            // the next head",
        build: Build::Threads,
        case: attention_long,
    },
    Mutant {
        name: "frozen_attention writes a dimension too many",
        file: "frozen_attention.cu",
        from: "if (dim < d_head) out",
        to: "if (dim <= d_head) out",
        build: Build::Addresses,
        case: attention_short,
    },
    Mutant {
        name: "norm_pullback computes a row too many",
        file: "norm_pullback.cu",
        from: "if (row >= n_rows) return;",
        to: "if (row > n_rows) return;",
        build: Build::Addresses,
        case: norm,
    },
    Mutant {
        name: "norm_pullback takes half of the mean",
        file: "common.cuh",
        from: "u32 offset = WARP / 2;",
        to: "u32 offset = WARP / 4;",
        build: Build::Plain,
        case: norm,
    },
    Mutant {
        name: "ranks are read before all warps have counted",
        file: "common.cuh",
        from: "    __syncthreads();\n    Rank rank",
        to: "    Rank rank",
        build: Build::Threads,
        case: encode,
    },
    Mutant {
        name: "encode_active keeps one equal value too many",
        file: "common.cuh",
        from: "seen + rank.before + 1 == wanted",
        to: "seen + rank.before == wanted",
        build: Build::Plain,
        case: encode,
    },
    Mutant {
        name: "a thread leaves before a barrier",
        file: "encode_active.cu",
        from: "    u32 before = 0;\n",
        to: "    u32 before = 0;\n    if (threadIdx.x >= n) return;\n",
        build: Build::Plain,
        case: encode,
    },
    Mutant {
        name: "encode_scan reads sums that are being written",
        file: "encode_active.cu",
        from: "            from = 1 - from;\n            __syncthreads();",
        to: "            from = 1 - from;",
        build: Build::Threads,
        case: encode,
    },
    Mutant {
        name: "influence_sweep adds up before all lanes are done",
        file: "influence.cu",
        from: "    __syncthreads();\n    if (warp_of_thread() == 0",
        to: "    if (warp_of_thread() == 0",
        build: Build::Threads,
        case: influence,
    },
];

/// Runs of a mutant before it counts as not caught.
const ATTEMPTS: u64 = 5;

/// Copies the kernels with one change.
fn plant(mutant: &Mutant, folder: &Path) {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    for entry in kernels.read_dir().unwrap() {
        let path = entry.unwrap().path();
        let mut source = std::fs::read_to_string(&path).unwrap();
        if path.ends_with(mutant.file) {
            assert_eq!(source.matches(mutant.from).count(), 1, "{}: the place to change is there once", mutant.name);
            source = source.replace(mutant.from, mutant.to);
        }
        std::fs::write(folder.join(path.file_name().unwrap()), source).unwrap();
    }
}

#[test]
fn planted_faults_are_caught() {
    if !on_cpu::available() {
        return;
    }
    for mutant in &MUTANTS {
        let folder = tempfile::tempdir().unwrap();
        plant(mutant, folder.path());
        let program = folder.path().join("replay");
        on_cpu::compile(folder.path(), mutant.build, &program).unwrap();
        // A race shows when threads meet, which they may happen not to do in one run.
        let caught = (0..ATTEMPTS).find_map(|seed| (mutant.case)(&OnCpu::new(&program), &mut Random::new(seed)).err());
        let Some(reason) = caught.map(|error| error.to_string()) else { panic!("not caught: {}", mutant.name) };
        // By the build's own check, by a wrong result, or by a crash that follows from one; not by something that fails
        // for another reason.
        let own = match mutant.build {
            Build::Plain => "a barrier that not all threads of the block reach",
            Build::Threads => "ThreadSanitizer",
            Build::Addresses => "AddressSanitizer",
        };
        let expected = [own, WRONG_RESULT, "signal: "];
        assert!(expected.iter().any(|text| reason.contains(text)), "{}: {reason}", mutant.name);
        println!("caught: {}", mutant.name);
    }
}
