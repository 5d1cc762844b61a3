//! `batch`: many prompts, traced with a model that is opened once.
//!
//! In: the text of a file of prompts, a JSON object a line ([`PromptLine`]), and a [`Tracer`]. Out: in a folder, the two files
//! of each graph, byte for byte those that tracing the prompt alone writes, and the index of the folder ([`Index`]). A line
//! that fails is noted there and the others go on. What the index says is there is not made again. Several programs may
//! write into one folder, each its shard of the lines.

mod index;
mod line;
mod plan;
mod run;

pub use index::{Entry, EntryTarget, Failure, INDEX_FILE, Index, TIMES_FILE, Took};
pub use line::{PromptLine, Request, TraceSettings};
pub use plan::prompt_lines;
pub use run::run;

use std::path::PathBuf;

use crate::Error;
use crate::features::Shard;
#[cfg(doc)]
use crate::tracer::Tracer;

/// The phase of [`run`], as a [`Job`](crate::Job) hears of it.
pub const PROMPTS_PHASE: &str = "prompts";

/// Where the files go, and which lines are traced how.
#[derive(Clone, Debug)]
pub struct BatchOptions {
    /// The folder of all files.
    pub folder: PathBuf,
    /// Which part of the lines; `None`: all.
    pub shard: Option<Shard>,
    /// Whether files of other traces are replaced.
    pub replaces_others: bool,
    /// Whether raw graphs are written.
    pub raw: bool,
    /// Whether JSON graphs are written.
    pub json: bool,
    /// What lines do not say themselves.
    pub settings: TraceSettings,
    /// Files that are read, and never written over.
    pub inputs: Vec<PathBuf>,
}

/// What came of the lines.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Lines of this shard.
    pub n_lines: usize,
    /// Traced now.
    pub n_traced: usize,
    /// Whose files were there.
    pub n_there: usize,
    /// That ask for what an earlier line asks for.
    pub n_same: usize,
    /// That failed, by line.
    pub failures: Vec<Failure>,
    /// Prompts that were traced at the same time.
    pub n_at_once: usize,
    /// Seconds of tracing and writing, without opening the model and planning.
    pub secs: f64,
}

/// What [`run`] says as it happens, from several threads.
#[derive(Clone, Copy, Debug)]
pub enum Told<'a> {
    /// A line failed.
    Failed(&'a Failure),
}

/// An error and its causes, in one line.
fn error_with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
