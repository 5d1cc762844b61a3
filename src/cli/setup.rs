//! What commands that run a model share: which model and transcoders, which device, how many threads.

use candle_core::Device;
use clap::Args;

use crate::replacement::Replacement;
use crate::weights::{ATLAS, Folder, HostFiles, atlas_model, atlas_transcoders};
use crate::{Error, Result};

/// The model and where it runs.
#[derive(Debug, Args)]
pub struct SetupArgs {
    /// Host model: a folder in Hugging Face layout, a .gguf file, a Hub id org/name[@revision], or `atlas`
    #[arg(long, value_name = "MODEL", default_value = ATLAS)]
    pub model: String,
    /// Transcoders: a folder with a config.yaml, or a Hub id [default: those of `atlas`]
    #[arg(long, value_name = "FOLDER")]
    pub transcoders: Option<String>,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,
    /// Threads to compute with [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
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

    fn device(&self) -> Result<Device> {
        match self.device.as_str() {
            "auto" | "cpu" => Ok(Device::Cpu),
            name if name == "cuda" || name.starts_with("cuda:") => {
                Err(Error::Device { name: name.into(), reason: "this build has no CUDA".into() })
            }
            name => Err(Error::Device { name: name.into(), reason: "expected auto, cpu, cuda or cuda:N".into() }),
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
