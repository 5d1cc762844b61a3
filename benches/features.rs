//! Collecting against the machine: tokens a second of `features collect`, as a share of those of the plain forward pass
//! with one encoder product a layer, on the same sequences in the same run, by the clock and by processor time (which
//! others on the machine disturb less); the peak of memory; and how long it takes to read one feature of what was
//! collected.
//!
//!     cargo bench --bench features
//!
//! CIRCUITSCOPE_TOKENS=8192 reads fewer tokens than the 32,768 of the longer of the two runs that are compared.
//! The model is random, in the shape of SmolLM2-135M, with 2,048 features a layer. With CIRCUITSCOPE_SMOLLM2_GGUF and
//! CIRCUITSCOPE_SMOLLM2_TRANSCODERS set, the real one is measured, and with CIRCUITSCOPE_TEXT on a text of yours.

#[path = "../examples/synthesize/synthetic.rs"]
#[allow(dead_code)]
mod synthetic;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{Device, Tensor};
use circuitscope::features::{CollectOptions, FeatureSet, Input, collect};
use circuitscope::job::Job;
use circuitscope::model::{ForwardOptions, HookPoint, Hooks};
use circuitscope::replacement::Replacement;
use circuitscope::weights::{Folder, ModelFiles};
use synthetic::{Shape, write_model, write_transcoders};

/// Measurements, of which the best counts: others on the machine only ever slow it down.
const REPEATS: usize = 3;

/// Sequences that go through the model at once, in the plain pass.
const BATCH: usize = 32;

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo test --benches` runs benches as tests, to see that they work.
    let is_test = std::env::args().any(|argument| argument == "--test");
    let asked: Option<u64> = std::env::var("CIRCUITSCOPE_TOKENS").ok().and_then(|tokens| tokens.parse().ok());
    let many = if is_test { 600 } else { asked.unwrap_or(32_768) };
    let few = many / 2;
    let folder = tempfile::tempdir()?;
    let real = ["CIRCUITSCOPE_SMOLLM2_GGUF", "CIRCUITSCOPE_SMOLLM2_TRANSCODERS"].map(std::env::var);
    let replacement = match real {
        [Ok(model), Ok(transcoders)] => open(&model, &transcoders)?,
        _ => {
            let shape = Shape::named("smollm2-135m").ok_or("no such shape")?;
            let (model, transcoders) = (folder.path().join("model"), folder.path().join("transcoders"));
            write_model(&shape, &model)?;
            write_transcoders(&shape, 28.0, &transcoders)?;
            open(&model.display().to_string(), &transcoders.display().to_string())?
        }
    };
    let text = match std::env::var_os("CIRCUITSCOPE_TEXT") {
        Some(path) => PathBuf::from(path),
        None => {
            let path = folder.path().join("text.txt");
            let d_vocab = replacement.model.config.d_vocab as u32;
            let tokens: Vec<u32> =
                (0..2 * many as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 7) % d_vocab).collect();
            std::fs::write(
                &path,
                tokens.chunks(64).map(|c| replacement.tokenizer.decode(c) + "\n").collect::<String>(),
            )?;
            path
        }
    };
    let endless = Secs { wall: f64::INFINITY, processor: f64::INFINITY };
    let (mut plain, mut secs_few, mut secs_many, mut n_plain, mut n_more) = (endless, endless, endless, 0, 0);
    let encoders = encoders(&replacement)?;
    for repeat in 0..if is_test { 1 } else { REPEATS } {
        let out = |name: &str| folder.path().join(format!("{name}{repeat}"));
        let (secs, n_few) = collecting(&replacement, &text, few, &out("few"))?;
        secs_few = secs_few.least(secs);
        let set = FeatureSet::open(&out("few"))?;
        let store = set.tokens();
        let sequences: Vec<Vec<u32>> = (0..store.n_sequences())
            .map(|sequence| store.sequence(sequence).map(|position| store.token(position)).collect())
            .collect();
        let start = Clock::start();
        for batch in sequences.chunks(BATCH) {
            let mut product = Product { replacement: &replacement, encoders: &encoders };
            replacement.model.forward(batch, &mut product, ForwardOptions::default())?;
        }
        plain = plain.least(start.elapsed());
        let (secs, n_many) = collecting(&replacement, &text, many, &out("many"))?;
        secs_many = secs_many.least(secs);
        (n_plain, n_more) = (n_few, n_many - n_few);
    }
    // What does not grow with the text, the writing of the files, is in both runs and not in their difference.
    for (name, secs) in [("clock", (|secs| secs.wall) as fn(Secs) -> f64), ("processor time", |secs| secs.processor)] {
        let collected = n_more as f64 / (secs(secs_many) - secs(secs_few));
        let plain = n_plain as f64 / secs(plain);
        println!("by {name}: forward pass and encoder products {plain:.0} tokens/s");
        println!("by {name}: collecting {collected:.0} tokens/s, {:.0} % of that", 100.0 * collected / plain);
    }
    println!("peak memory {}", peak());
    reading(&folder.path().join("many0"))
}

/// How long one feature takes that was not read before, and opening the folder.
fn reading(features: &Path) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let set = FeatureSet::open(features)?;
    let opening = start.elapsed().as_secs_f64();
    let n = 2000.min(set.n_layers() * set.n_features(0));
    let (mut longest, mut sum) = (0.0f64, 0.0);
    for i in 0..n {
        // All over the files.
        let at = i.wrapping_mul(2_654_435_761) % (set.n_layers() * set.n_features(0));
        let start = Instant::now();
        std::hint::black_box(set.dashboard(at / set.n_features(0), at % set.n_features(0))?);
        let secs = start.elapsed().as_secs_f64();
        (longest, sum) = (longest.max(secs), sum + secs);
    }
    println!(
        "opening {:.1} ms; reading a feature {:.1} µs on average, {:.1} µs at most",
        1e3 * opening,
        1e6 * sum / n as f64,
        1e6 * longest
    );
    Ok(())
}

fn open(model: &str, transcoders: &str) -> Result<Replacement, Box<dyn Error>> {
    Ok(Replacement::open(ModelFiles::open(model)?, &Folder::open(transcoders)?, &Device::Cpu)?)
}

/// What something took.
#[derive(Clone, Copy)]
struct Secs {
    wall: f64,
    /// Of all threads together; as the clock's where the system does not say.
    processor: f64,
}

impl Secs {
    fn least(self, other: Secs) -> Secs {
        Secs { wall: self.wall.min(other.wall), processor: self.processor.min(other.processor) }
    }
}

struct Clock(Instant, Option<f64>);

impl Clock {
    fn start() -> Self {
        Clock(Instant::now(), processor_secs())
    }

    fn elapsed(&self) -> Secs {
        let wall = self.0.elapsed().as_secs_f64();
        let processor = processor_secs().zip(self.1).map_or(wall, |(now, before)| now - before);
        Secs { wall, processor }
    }
}

/// Processor time of this process so far, on Linux: hundredths of seconds in fields 14 and 15, the name in brackets before
/// them.
fn processor_secs() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11).map(|field| field.parse::<f64>().ok());
    Some((fields.next()?? + fields.next()??) / 100.0)
}

/// Time, and tokens that were read.
fn collecting(replacement: &Replacement, text: &Path, n: u64, out: &Path) -> Result<(Secs, u64), Box<dyn Error>> {
    let options = CollectOptions { max_tokens: Some(n), ..Default::default() };
    let start = Clock::start();
    let found = collect(replacement, &[Input::File(text.to_owned())], out, &options, &Job::default())?;
    Ok((start.elapsed(), found.manifest.text.n_tokens))
}

/// Encoders in memory. `[n_layers]` of `[d_model, n_features]`
fn encoders(replacement: &Replacement) -> Result<Vec<Tensor>, Box<dyn Error>> {
    let d_model = replacement.model.config.d_model;
    let (eye, zero) = (
        Tensor::eye(d_model, candle_core::DType::F32, &Device::Cpu)?,
        Tensor::zeros((1, d_model), candle_core::DType::F32, &Device::Cpu)?,
    );
    let of = |layer: &circuitscope::transcoder::Transcoder| -> Result<Tensor, Box<dyn Error>> {
        Ok(layer.pre_activations(&eye)?.broadcast_sub(&layer.pre_activations(&zero)?)?)
    };
    replacement.transcoders.layers.iter().map(of).collect()
}

/// One product with the encoder of each layer.
struct Product<'a> {
    replacement: &'a Replacement,
    encoders: &'a [Tensor],
}

impl Hooks for Product<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        point.layer().is_some_and(|layer| self.replacement.input_point(layer) == point)
    }

    fn see(&mut self, point: HookPoint, tensor: &Tensor) -> circuitscope::Result<Option<Tensor>> {
        let layer = point.layer().unwrap_or(0);
        std::hint::black_box(tensor.flatten_to(1)?.matmul(&self.encoders[layer])?);
        Ok(None)
    }
}

/// The peak of this process's memory, where the system says so.
fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.map_or_else(|| "unknown".to_owned(), |kib| kib.trim().to_owned())
}
