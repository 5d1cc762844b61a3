//! Prompts a minute: one `batch` against one `trace` a prompt, by the clock and by processor time (which others on the
//! machine disturb less), in turns.
//!
//!     cargo bench --bench batch
//!
//! With CIRCUITSCOPE_SMOLLM2_GGUF and CIRCUITSCOPE_SMOLLM2_TRANSCODERS set, also with that model. CIRCUITSCOPE_PROMPTS=20
//! traces fewer than 100, CIRCUITSCOPE_REPEATS=1 measures once.

use std::error::Error;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

const CITIES: [&str; 10] =
    ["Dallas", "Oakland", "Houston", "Miami", "Seattle", "Chicago", "Denver", "Boston", "Atlanta", "Phoenix"];

const TEXTS: [&str; 10] = [
    "The capital of the state containing {} is",
    "The city of {} is in the state of",
    "{} is a large city in",
    "People in {} say that the",
    "I went to {} to see the",
    "The mayor of {} said that",
    "A train from {} to the",
    "In {} there is a",
    "The river near {} is called the",
    "My friend from {} likes",
];

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo test --benches` runs benches as tests, to see that they work.
    let is_test = std::env::args().any(|argument| argument == "--test");
    let number = |name: &str, usual: usize| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(usual);
    let n_prompts = if is_test { 2 } else { number("CIRCUITSCOPE_PROMPTS", 100) };
    let repeats = if is_test { 1 } else { number("CIRCUITSCOPE_REPEATS", 3) };
    let prompts = TEXTS.iter().flat_map(|text| CITIES.iter().map(move |city| text.replace("{}", city)));
    let prompts: Vec<String> = prompts.take(n_prompts).collect();
    measure("atlas", &[], &prompts, repeats)?;
    if let [Ok(model), Ok(transcoders)] =
        ["CIRCUITSCOPE_SMOLLM2_GGUF", "CIRCUITSCOPE_SMOLLM2_TRANSCODERS"].map(std::env::var)
    {
        measure("SmolLM2-135M", &["--model", &model, "--transcoders", &transcoders], &prompts, repeats)?;
    }
    Ok(())
}

fn measure(name: &str, setup: &[&str], prompts: &[String], repeats: usize) -> Result<(), Box<dyn Error>> {
    println!("{name}, {} prompts", prompts.len());
    for _ in 0..repeats {
        let folder = tempfile::tempdir()?;
        let lines: String = prompts.iter().map(|p| serde_json::json!({"prompt": p}).to_string() + "\n").collect();
        std::fs::write(folder.path().join("prompts.jsonl"), lines)?;
        let start = Clock::start();
        program(folder.path(), &[&["batch", "prompts.jsonl", "--out-dir", "a", "-q"], setup].concat())?;
        let together = start.elapsed();
        let start = Clock::start();
        for prompt in prompts {
            program(folder.path(), &[&["trace", prompt, "--out-dir", "b", "-q"], setup].concat())?;
        }
        let alone = start.elapsed();
        let a_minute = |secs: f64| 60.0 * prompts.len() as f64 / secs;
        println!(
            "  prompts a minute: {:.0} together, {:.0} alone: {:.2} times; processor: {:.3} s and {:.3} s a prompt: {:.2} times",
            a_minute(together.0),
            a_minute(alone.0),
            alone.0 / together.0,
            together.1 / prompts.len() as f64,
            alone.1 / prompts.len() as f64,
            alone.1 / together.1,
        );
    }
    Ok(())
}

fn program(folder: &Path, args: &[&str]) -> Result<(), Box<dyn Error>> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_circuitscope"));
    let output = command.current_dir(folder).args(args).stdout(Stdio::null()).output()?;
    if !output.status.success() {
        return Err(format!("{args:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(())
}

/// The clock, and the processor time of programs that have ended.
struct Clock(Instant, f64);

impl Clock {
    fn start() -> Self {
        Clock(Instant::now(), processor_secs())
    }

    fn elapsed(&self) -> (f64, f64) {
        (self.0.elapsed().as_secs_f64(), processor_secs() - self.1)
    }
}

/// Processor time of this process's children so far, on Linux: hundredths of seconds in fields 16 and 17, the name in
/// brackets before them.
fn processor_secs() -> f64 {
    let read = || {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(13).map(|field| field.parse::<f64>().ok());
        Some((fields.next()?? + fields.next()??) / 100.0)
    };
    read().unwrap_or(f64::NAN)
}
