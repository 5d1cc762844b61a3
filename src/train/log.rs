//! What is noted while training goes on.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::export::replace_file;

/// The file that holds a line of JSON for some of the steps.
pub const LOG_FILE: &str = "log.jsonl";

/// One set in a [`LogLine`]: means over layers, over the steps since the last line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SetLog {
    /// Features of each layer.
    pub n_features: usize,
    /// Fraction of variance unexplained, of the batches that were trained on.
    pub fvu: f64,
    /// Active features a token.
    pub l0: f64,
    /// Share of features that are dead.
    pub dead: f64,
    /// Step size.
    pub lr: f64,
}

/// How training was at a step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// Steps taken.
    pub step: u32,
    /// Tokens of the text that were used.
    pub tokens: u64,
    /// Share of the run that is done.
    pub done: f64,
    /// Seconds since the beginning, over all runs that made this one.
    pub secs: f64,
    /// One a set.
    pub sets: Vec<SetLog>,
}

/// Writes the log.
///
/// # Errors
/// Those of writing.
pub(super) fn write(folder: &Path, lines: &[LogLine]) -> Result<()> {
    let path = folder.join(LOG_FILE);
    let failed = |e: serde_json::Error| Error::Io { doing: "cannot write", path: path.clone(), source: e.into() };
    let mut text = String::new();
    for line in lines {
        text.push_str(&serde_json::to_string(line).map_err(failed)?);
        text.push('\n');
    }
    replace_file(&path, |writer| std::io::Write::write_all(writer, text.as_bytes()))
}
