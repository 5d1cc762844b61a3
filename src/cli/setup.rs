//! What commands that run a model share: which model and transcoders, which device, how many threads.

use std::path::Path;

use clap::Args;

use crate::Result;
use crate::tracer::{Setup, Tracer};
use crate::weights::ATLAS;

/// More than any machine has cores; each takes memory of its own, and systems refuse some thousands.
const MAX_THREADS: i64 = 512;

/// The model and where it runs.
#[derive(Debug, Args)]
pub struct SetupArgs {
    /// base model: a folder in Hugging Face layout, a .gguf file, a Hub id org/name[@revision], or `atlas`
    #[arg(long, value_name = "MODEL", default_value = ATLAS)]
    pub model: String,
    /// Transcoders: a folder with a config.yaml, or a Hub id [default: those of `atlas`]
    #[arg(long, value_name = "FOLDER")]
    pub transcoders: Option<String>,
    /// Where to compute: auto (a GPU if this build can use one and it works), cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,
    /// Threads to compute with [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MAX_THREADS))]
    pub threads: Option<u16>,
    /// No progress bars and no notes on stderr
    #[arg(long, short)]
    pub quiet: bool,
}

impl SetupArgs {
    /// Opens the model and its transcoders; names of features from `labels` go before those beside the transcoders.
    ///
    /// # Errors
    /// [`Error::NeedsTranscoders`](crate::Error::NeedsTranscoders), [`Error::Device`](crate::Error::Device), and those
    /// of opening files.
    pub fn open(&self, labels: Option<&Path>) -> Result<Tracer> {
        let mut setup = Setup::from_names(&self.model, self.transcoders.as_deref())?.device(self.device.parse()?);
        if let Some(file) = labels {
            setup = setup.labels(file);
        }
        let tracer = Tracer::open(setup)?;
        if let Some(note) = tracer.device_note() {
            self.note(note);
        }
        Ok(tracer)
    }

    fn note(&self, text: &str) {
        if !self.quiet {
            super::note(text);
        }
    }

    /// Sets the number of threads. The first thing a command does: nothing else may run yet.
    pub fn start_threads(&self) {
        let Some(threads) = self.threads else { return };
        // SAFETY: called before any other thread of this program exists but the one that waits for signals, which reads
        // no variable; candle reads this one when it multiplies matrices.
        unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
        // The pool can be built once; a second command in one process keeps the first pool.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global();
    }
}
