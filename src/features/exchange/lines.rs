//! Files of one JSON value a line, compressed or not.

use std::io::{BufRead, Read};
use std::path::Path;

use crate::corpus::open_plain;
use crate::error::{Error, Result};

/// Lines of features are some hundred kilobytes.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// The lines of a file, numbered from 1; empty ones are left out.
pub(super) struct Lines {
    reader: Box<dyn BufRead>,
    file: String,
    number: usize,
}

impl Lines {
    /// # Errors
    /// A file that cannot be read; a compressed one in a build without compression.
    pub(super) fn open(path: &Path) -> Result<Self> {
        Ok(Self { reader: open_plain(path)?, file: path.display().to_string(), number: 0 })
    }

    /// The next line with its number.
    ///
    /// # Errors
    /// [`Error::Damaged`] for what is no text or has no end.
    pub(super) fn next(&mut self) -> Result<Option<(usize, String)>> {
        loop {
            let mut line = Vec::new();
            let read = self.reader.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut line);
            let n = read.map_err(|e| self.damaged(e.to_string()))?;
            self.number += 1;
            if n == 0 {
                return Ok(None);
            }
            if n as u64 > MAX_LINE_BYTES {
                return Err(self.damaged(format!("line {} has more than {} MB", self.number, MAX_LINE_BYTES >> 20)));
            }
            let line = String::from_utf8(line).map_err(|e| self.damaged(format!("line {}: {e}", self.number)))?;
            if !line.trim().is_empty() {
                return Ok(Some((self.number, line)));
            }
        }
    }

    /// An error about this file.
    pub(super) fn damaged(&self, reason: String) -> Error {
        Error::Damaged { file: self.file.clone(), format: "JSON lines", reason }
    }
}
