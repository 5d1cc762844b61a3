//! What commands that run a model share: which model and transcoders, which device, how many threads.

use candle_core::Device;
use clap::Args;

use crate::ops::{built_with_cuda, device_name, open_cuda};
use crate::replacement::Replacement;
use crate::weights::{ATLAS, Folder, HostFiles, atlas_model, atlas_transcoders};
use crate::{Error, Result};

/// More than any machine has cores; each takes memory of its own, and systems refuse some thousands.
const MAX_THREADS: i64 = 512;

/// The model and where it runs.
#[derive(Debug, Args)]
pub struct SetupArgs {
    /// Host model: a folder in Hugging Face layout, a .gguf file, a Hub id org/name[@revision], or `atlas`
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
    /// Opens the model and its transcoders.
    ///
    /// # Errors
    /// [`Error::NeedsTranscoders`], [`Error::Device`], and those of opening files.
    pub fn open(&self) -> Result<Replacement> {
        let device = self.device()?;
        let (host, transcoders) = match (self.model.as_str(), &self.transcoders) {
            (ATLAS, None) => (atlas_model()?, atlas_transcoders()),
            (ATLAS, Some(folder)) => (atlas_model()?, Folder::open(folder)?),
            (model, Some(folder)) => (HostFiles::open(model)?, Folder::open(folder)?),
            (model, None) => return Err(Error::NeedsTranscoders { model: model.into() }),
        };
        Replacement::open(host, &transcoders, &device)
    }

    /// The device that `--device` names; with `auto` the first GPU, where it works.
    fn device(&self) -> Result<Device> {
        let name = self.device.as_str();
        let gpu =
            |ordinal: usize| open_cuda(ordinal).map_err(|e| Error::Device { name: name.into(), reason: e.to_string() });
        let device = match (name, name.strip_prefix("cuda:").map(str::parse)) {
            ("cpu", _) => Device::Cpu,
            ("auto", _) if !built_with_cuda() => Device::Cpu,
            ("auto", _) => gpu(0).unwrap_or_else(|error| {
                self.note(&error.to_string());
                Device::Cpu
            }),
            ("cuda", _) => gpu(0)?,
            (_, Some(Ok(ordinal))) => gpu(ordinal)?,
            _ => {
                return Err(Error::Device { name: name.into(), reason: "expected auto, cpu, cuda or cuda:N".into() });
            }
        };
        if built_with_cuda() {
            self.note(&format!("computing on {}", device_name(&device)?));
        }
        Ok(device)
    }

    fn note(&self, text: &str) {
        if !self.quiet {
            super::note(text);
        }
    }

    /// Sets the number of threads. The first thing a command does: nothing else may run yet.
    pub fn start_threads(&self) {
        let Some(threads) = self.threads else { return };
        // SAFETY: called before any other thread of this program exists; candle reads this variable when it
        // multiplies matrices.
        unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
        // The pool can be built once; a second command in one process keeps the first pool.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global();
    }
}
