//! Fuzzing of every reader of foreign files, in one process:
//! `cargo run --release --example fuzz -- TARGET [--seconds N] [--seed N]`; without a target, all, one after the other.
//!
//! Valid files are changed and read. A panic, more than two seconds, or much more memory than the file is large, is a
//! finding: it is printed, and the input kept in `target/fuzz`. Exit code 1 if there was one.

mod mutate;
mod targets;

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mutate::Random;

/// Longest that one input may take.
const MAX_TIME: Duration = Duration::from_secs(2);
/// Memory that one input may take, and on top for each of its bytes.
const MAX_BYTES: usize = 64 << 20;
const MAX_BYTES_PER_BYTE: usize = 64;

/// Counts what is in use and the most that was.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator; only sizes are counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(IN_USE.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(IN_USE.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() {
    let (mut names, mut seconds, mut seed) = (Vec::new(), 10.0f64, 1u64);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|text| text.parse::<f64>().ok()).expect("a number follows");
        match arg.as_str() {
            "--seconds" => seconds = number(),
            "--seed" => seed = number() as u64,
            name => names.push(name.to_owned()),
        }
    }
    let targets = targets::all();
    for name in &names {
        assert!(targets.iter().any(|target| target.name == name.as_str()), "no target `{name}`");
    }
    std::panic::set_hook(Box::new(|_| ()));
    let mut n_findings = 0;
    for target in targets.iter().filter(|target| names.is_empty() || names.iter().any(|name| name == target.name)) {
        n_findings += fuzz(target, Duration::from_secs_f64(seconds), seed);
    }
    std::process::exit(i32::from(n_findings > 0));
}

/// Reads changed inputs until time is up. Returns how many findings there were.
fn fuzz(target: &targets::Target, time: Duration, seed: u64) -> usize {
    let folder = std::path::Path::new("target/fuzz");
    std::fs::create_dir_all(folder).expect("target/fuzz can be made");
    // Kept before it is read: what ends the process is the input that lies here.
    let current = folder.join(format!("{}-current", target.name));
    let mut random = Random(seed);
    let (start, mut n, mut n_read, mut n_findings, mut most) = (Instant::now(), 0usize, 0usize, 0, 0);
    while start.elapsed() < time {
        // The seeds themselves come first: they must be read.
        let seed_at = if n < target.seeds.len() { n } else { random.below(target.seeds.len()) };
        let mut input = target.seeds[seed_at].clone();
        if n >= target.seeds.len() {
            mutate::change(&mut input, target.form, &target.seeds, &mut random);
        }
        if target.may_end_the_process {
            std::fs::write(&current, &input).expect("target/fuzz can be written");
        }
        let before = IN_USE.load(Relaxed);
        PEAK.store(before, Relaxed);
        let began = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| (target.read)(&input)));
        let (took, grew) = (began.elapsed(), PEAK.load(Relaxed).saturating_sub(before));
        most = most.max(grew);
        let finding = match result {
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                Some(text.or(panic.downcast_ref::<&str>().map(|text| text.to_string())).unwrap_or_default())
            }
            Ok(_) if took > MAX_TIME => Some(format!("took {took:.1?}")),
            Ok(_) if grew > MAX_BYTES + MAX_BYTES_PER_BYTE * input.len() => {
                Some(format!("took {} MB for {} bytes", grew >> 20, input.len()))
            }
            Ok(false) if n < target.seeds.len() => Some(format!("seed {n} is not read")),
            Ok(is_read) => {
                n_read += usize::from(is_read);
                None
            }
        };
        if let Some(finding) = finding {
            n_findings += 1;
            let kept = folder.join(format!("{}-{n_findings}", target.name));
            if n_findings <= 20 {
                let _ = std::fs::write(&kept, &input);
                println!("{}: input {n}: {finding} ({})", target.name, kept.display());
            }
        }
        n += 1;
    }
    println!(
        "{}: {n} inputs, {n_read} of them read without an error, {n_findings} findings, at most {} KB more memory",
        target.name,
        most >> 10
    );
    n_findings
}
