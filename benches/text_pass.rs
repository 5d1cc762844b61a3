//! The pass over much text that training and collecting read with, against the forward pass of everything else on the same
//! sequences, and against what the machine's products alone would take: tokens a second, best of several in turns.
//!
//!     cargo bench --bench text_pass
//!
//! The model is random, in the shape of SmolLM2-135M; with CIRCUITSCOPE_SMOLLM2_GGUF set the real one is measured.

#[path = "../examples/synthesize/synthetic.rs"]
#[allow(dead_code)]
mod synthetic;

use std::error::Error;
use std::ops::Range;
use std::time::Instant;

use candle_core::Device;
use circuitscope::job::Job;
use circuitscope::model::{HookPoint, Hooks, Model, TextPass, TextVisitor};
use circuitscope::weights::ModelFiles;
use synthetic::{Shape, write_model};

const ROUNDS: usize = 3;

/// Looks at what training looks at.
struct Looks(f32);

fn is_wanted(point: HookPoint) -> bool {
    matches!(point, HookPoint::MlpIn(_) | HookPoint::MlpOut(_))
}

impl TextVisitor for Looks {
    fn wants(&self, point: HookPoint) -> bool {
        is_wanted(point)
    }

    fn see(&mut self, _: HookPoint, rows: Vec<f32>, _: Range<usize>) -> circuitscope::Result<()> {
        self.0 += rows[rows.len() / 2];
        Ok(())
    }
}

impl Hooks for Looks {
    fn wants(&self, point: HookPoint) -> bool {
        is_wanted(point)
    }

    fn see(&mut self, _: HookPoint, tensor: &candle_core::Tensor) -> circuitscope::Result<Option<candle_core::Tensor>> {
        self.0 += tensor.flatten_all()?.get(0)?.to_scalar::<f32>()?;
        Ok(None)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let is_test = std::env::args().any(|argument| argument == "--test");
    let (context, n_sequences) = if is_test { (16, 2) } else { (128, 64) };
    let folder = tempfile::tempdir()?;
    let source = match std::env::var("CIRCUITSCOPE_SMOLLM2_GGUF") {
        Ok(path) => path,
        Err(_) => {
            let path = folder.path().join("model");
            write_model(&Shape::named("smollm2-135m").ok_or("no such shape")?, &path)?;
            path.display().to_string()
        }
    };
    let files = ModelFiles::open(&source)?;
    let model = Model::open(&files.config, files.checkpoint, &Device::Cpu)?;
    model.keep_layers()?;
    let (d_vocab, last) = (model.config.d_vocab as u32, model.config.n_layers - 1);
    let token = |i: usize| (i as u32).wrapping_mul(2_654_435_761) % d_vocab;
    let sequences: Vec<Vec<u32>> =
        (0..n_sequences).map(|s| (0..context).map(|i| token(s * context + i)).collect()).collect();
    let borrowed: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let n_tokens = (n_sequences * context) as f64;
    let flops = n_tokens * 2.0 * model.layer_bytes() as f64 / 4.0;
    let (exact, rounded) = (TextPass::new(&model).keeping(), TextPass::new(&model).keeping().rounding());
    let job = Job::default();
    let mut best = [f64::INFINITY; 3];
    for round in 0..=ROUNDS {
        let mut timed = |which: usize, run: &mut dyn FnMut() -> circuitscope::Result<()>| -> circuitscope::Result<()> {
            let start = Instant::now();
            run()?;
            // The first round reads weights.
            if round > 0 || is_test {
                best[which] = best[which].min(start.elapsed().as_secs_f64());
            }
            Ok(())
        };
        timed(0, &mut || {
            for batch in sequences.chunks(32) {
                model.forward_through(last, batch, &mut Looks(0.0), &job)?;
            }
            Ok(())
        })?;
        timed(1, &mut || exact.run(last, &borrowed, &mut Looks(0.0), &job))?;
        timed(2, &mut || rounded.run(last, &borrowed, &mut Looks(0.0), &job))?;
    }
    println!("{n_sequences} sequences of {context} tokens, {} threads, best of {ROUNDS}", rayon::current_num_threads());
    for (name, secs) in ["forward pass, f32", "text pass, f32", "text pass, bf16 where there is"].iter().zip(best) {
        println!(
            "{name:<32} {:>6.0} tokens/s {:>6.1} GFLOP/s of products {:>5.2} times",
            n_tokens / secs,
            1e-9 * flops / secs,
            best[0] / secs
        );
    }
    Ok(())
}
