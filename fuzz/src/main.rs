//! Coverage-guided fuzzing of every reader of foreign files, with libFuzzer. `fuzz/run` builds and runs it.
//!
//! A finding is a panic, an input that takes longer than libFuzzer's `-timeout`, or much more memory than the input is
//! large. One program has all [`targets`]; the environment variable `FUZZ_TARGET` says which.

#![no_main]

mod coverage;
mod feature_targets;
mod foreign_targets;
mod graph_targets;
mod http;
mod hub;
mod memory;
mod mutate;
mod seeds;
mod services;
mod targets;
mod tiny;

use std::cell::OnceCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use libfuzzer_sys::{Corpus, fuzzer_mutate};
use mutate::Random;
use targets::{Reading, Target};

/// Memory that one input may take for each of its bytes, on top of [`Target::max_bytes`].
const MAX_BYTES_PER_BYTE: usize = 64;

/// The reader to fuzz.
const TARGET_NAME: &str = "FUZZ_TARGET";

/// Where `fuzz/run` asks for the valid files of a target: they are written there and the program ends.
const SEEDS_FOLDER: &str = "FUZZ_SEEDS_FOLDER";

/// Panics so far, of any thread, also those that were caught.
static N_PANICS: AtomicUsize = AtomicUsize::new(0);

/// How many panics there were so far, of any thread.
fn n_panics() -> usize {
    N_PANICS.load(Relaxed)
}

thread_local! {
    static TARGET: OnceCell<Target> = const { OnceCell::new() };
}

libfuzzer_sys::fuzz_target!(init: start(), |input: &[u8]| -> libfuzzer_sys::Corpus { read(input) });
libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    change(data, size, max_size, seed)
});

/// Makes the target that `FUZZ_TARGET` names, and with `FUZZ_SEEDS_FOLDER` writes its valid files. Without a name it
/// prints all names.
///
/// # Panics
/// There is no such target, or a valid file is not read.
fn start() {
    let Ok(name) = std::env::var(TARGET_NAME) else {
        println!("{}", targets::names().join("\n"));
        std::process::exit(0);
    };
    // libFuzzer's own hook ends the process, also where a panic of foreign code is caught and becomes an error.
    std::panic::set_hook(Box::new(|panic| {
        N_PANICS.fetch_add(1, Relaxed);
        eprintln!("{panic}\n{}", std::backtrace::Backtrace::force_capture());
    }));
    let target = targets::named(&name);
    if let Some(folder) = std::env::var_os(SEEDS_FOLDER) {
        let folder = Path::new(&folder);
        std::fs::create_dir_all(folder).expect("the folder of seeds can be made");
        for (at, seed) in target.seeds.iter().enumerate() {
            assert!((target.read)(seed) == Reading::Read, "seed {at} of `{name}` is read");
            std::fs::write(folder.join(format!("seed-{at}")), seed).expect("the folder of seeds can be written");
        }
        std::process::exit(0);
    }
    coverage::start();
    TARGET.with(|cell| assert!(cell.set(target).is_ok(), "there is one target"));
}

/// Reads an input. Ends the process, for libFuzzer to keep the input, where that is a finding.
fn read(input: &[u8]) -> Corpus {
    TARGET.with(|cell| {
        let target = cell.get().expect("`start` made it");
        let before = memory::start();
        let result = catch_unwind(AssertUnwindSafe(|| (target.read)(input)));
        let grew = memory::grown_since(before);
        coverage::note();
        if grew > target.max_bytes + MAX_BYTES_PER_BYTE * input.len() {
            eprintln!("{} MB of memory for {} bytes of input", grew >> 20, input.len());
            std::process::abort();
        }
        match result {
            Err(_) => std::process::abort(),
            Ok(Reading::NotTried) => Corpus::Reject,
            Ok(_) => Corpus::Keep,
        }
    })
}

/// Changes an input: half of the time by its form, half of the time as libFuzzer does.
fn change(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    if seed % 2 == 0 {
        return fuzzer_mutate(data, size, max_size);
    }
    TARGET.with(|cell| {
        let target = cell.get().expect("`start` made it");
        let mut input = data[..size].to_vec();
        mutate::change(&mut input, target.form, &target.seeds, &mut Random(u64::from(seed)));
        let size = input.len().min(max_size);
        data[..size].copy_from_slice(&input[..size]);
        size
    })
}
