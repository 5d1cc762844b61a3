//! Long prompts: how time and memory of a trace grow with the tokens, with all positions open and with some, and with the
//! open positions; the exponents are those of the best straight line through the logarithms.
//!
//!     cargo bench --bench long_prompts             # up to 2,048 tokens of SmolLM2-135M's shape
//!     cargo bench --bench long_prompts -- large    # 4,096 tokens of Llama-3.2-1B's shape, cut to 8 layers; 10 GB of disk
//!
//! With CIRCUITSCOPE_SMOLLM2_GGUF and CIRCUITSCOPE_SMOLLM2_TRANSCODERS set the real model is traced, on a text of words; else
//! a random one. Each case runs in a process of its own, whose largest resident memory is what the system says it was.

#[path = "../examples/synthesize/synthetic.rs"]
#[allow(dead_code)]
mod synthetic;

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use circuitscope::attribution::{AttributionOptions, OpenChoice, RowChoice, Visits};
use circuitscope::job::Job;
use circuitscope::{DeviceChoice, Setup, Tracer};
use synthetic::{Shape, write_model, write_transcoders};

/// What a case's process is told: model, transcoders, tokens and open positions.
const CASE: &str = "CIRCUITSCOPE_LONG_PROMPT";

const WORDS: &str = "The report of the committee on the state of the river was read before the council in the old hall. \
                     It said that the water had been rising since the spring, that two of the bridges could not be \
                     trusted, and that the people who live beside the mill should be asked to leave before winter. ";

type AnyError = Box<dyn Error>;

fn main() -> Result<(), AnyError> {
    if let Ok(case) = std::env::var(CASE) {
        return run_case(&case);
    }
    let has = |word: &str| std::env::args().any(|argument| argument == word);
    let folder = tempfile::tempdir()?;
    let source = source(folder.path(), has("large"))?;
    let all = |tokens: &[usize]| tokens.iter().map(|&n| (n, OpenChoice::All)).collect::<Vec<_>>();
    let strongest = |number: usize| OpenChoice::Strongest(number);
    let curves: Vec<(&str, Vec<(usize, OpenChoice)>)> = if has("--test") {
        vec![("tokens, all open", all(&[16, 32]))]
    } else if has("large") {
        vec![("tokens, 256 open", vec![(1024, strongest(256)), (2048, strongest(256)), (4096, strongest(256))])]
    } else {
        vec![
            ("tokens, all open", all(&[64, 128, 256, 512, 1024])),
            ("tokens, 64 open", [128, 256, 512, 1024, 2000].map(|n| (n, strongest(64))).to_vec()),
            ("open positions, 1,024 tokens", [32, 64, 128, 256, 512].map(|n| (1024, strongest(n))).to_vec()),
        ]
    };
    println!("{} rows visited, {} kept", ROWS.0, ROWS.1);
    for (what, cases) in curves {
        println!("\n{what}\n{:>8} {:>6} {:>9} {:>10} {:>9}", "tokens", "open", "time", "processor", "memory");
        let mut points = Vec::new();
        for (n_tokens, open) in cases {
            let case = format!("{}\n{}\n{n_tokens}\n{open}", source.0, source.1);
            let output = Command::new(std::env::current_exe()?).env(CASE, case).output()?;
            if !output.status.success() {
                return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
            }
            let text = String::from_utf8(output.stdout)?;
            let numbers: Vec<f64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
            let [secs, cpu_secs, bytes] = numbers[..] else { return Err(text.into()) };
            let n_open = if let OpenChoice::Strongest(number) = open { number } else { n_tokens };
            println!("{n_tokens:>8} {n_open:>6} {secs:>7.1} s {cpu_secs:>8.1} s {:>6.0} MB", bytes / 1e6);
            let x = if what.starts_with("open") { n_open } else { n_tokens };
            points.push((x as f64, [secs, cpu_secs, bytes]));
        }
        let of = |at: usize| exponent(&points.iter().map(|(x, values)| (*x, values[at])).collect::<Vec<_>>());
        println!("{:>15} {:>9.2} {:>10.2} {:>9.2}", "exponents", of(0), of(1), of(2));
    }
    Ok(())
}

/// Rows that are visited, and nodes that are kept.
const ROWS: (usize, usize) = (300, 300);

/// Model and transcoders.
fn source(folder: &Path, is_large: bool) -> Result<(String, String), AnyError> {
    let of = |name: &str| std::env::var(name).ok().filter(|_| !is_large);
    if let Some(real) = of("CIRCUITSCOPE_SMOLLM2_GGUF").zip(of("CIRCUITSCOPE_SMOLLM2_TRANSCODERS")) {
        return Ok(real);
    }
    let name = if is_large { "llama-3.2-1b" } else { "smollm2-135m" };
    let mut shape = Shape::named(name).ok_or("no such shape")?;
    shape.n_layers = if is_large { 8 } else { shape.n_layers };
    let [model, transcoders] = ["model", "transcoders"].map(|name| folder.join(name));
    write_model(&shape, &model)?;
    write_transcoders(&shape, shape.l0, &transcoders)?;
    Ok((model.display().to_string(), transcoders.display().to_string()))
}

/// Traces, and prints seconds, seconds of processors, and bytes.
fn run_case(case: &str) -> Result<(), AnyError> {
    let [model, transcoders, n_tokens, open] = case.split('\n').collect::<Vec<_>>()[..] else {
        return Err(case.into());
    };
    let tracer = Tracer::open(Setup::new(model, transcoders).device(DeviceChoice::Cpu))?;
    let mut tokens = tracer.tokenize(WORDS)?.tokens;
    let rest = tokens.split_off(1);
    tokens.extend(rest.iter().cycle().take(n_tokens.parse::<usize>()? - 1));
    let options = AttributionOptions {
        rows: RowChoice::Sampled { visits: Visits::Rows(ROWS.0), nodes: Some(ROWS.1) },
        open: OpenChoice::parse(open).ok_or("open positions")?,
        ..Default::default()
    };
    let start = Instant::now();
    let graph = tracer.trace_with(tokens, &options, &Job::default())?;
    let secs = start.elapsed().as_secs_f64();
    assert!(graph.graph().meta.row_identity_error < 1e-3);
    println!("{secs} {} {}", processor_secs()?, most_bytes()?);
    Ok(())
}

/// Seconds of all threads.
fn processor_secs() -> Result<f64, AnyError> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // Fields 14 and 15 of proc(5), in ticks of a hundredth of a second.
    let ticks = |field: usize| fields.get(field - 3).ok_or("/proc/self/stat")?.parse::<f64>().map_err(AnyError::from);
    Ok((ticks(14)? + ticks(15)?) / 100.0)
}

/// The largest resident memory.
fn most_bytes() -> Result<f64, AnyError> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("/proc/self/status")?;
    Ok(1024.0 * line.trim().trim_end_matches(" kB").parse::<f64>()?)
}

/// The slope of the best line through the logarithms.
fn exponent(points: &[(f64, f64)]) -> f64 {
    let logs: Vec<(f64, f64)> = points.iter().map(|(x, y)| (x.ln(), y.ln())).collect();
    let n = logs.len() as f64;
    let (mean_x, mean_y) = logs.iter().fold((0.0, 0.0), |(a, b), (x, y)| (a + x / n, b + y / n));
    let sum = |of: &dyn Fn(f64, f64) -> f64| logs.iter().map(|(x, y)| of(x - mean_x, y - mean_y)).sum::<f64>();
    sum(&|x, y| x * y) / sum(&|x, _| x * x)
}
