//! Host models in GGUF files.

use std::path::Path;

use super::host::HostFiles;
use crate::error::{Error, Result};

/// Opens a GGUF file as Hugging Face names and layouts.
pub(super) fn open(path: &Path) -> Result<HostFiles> {
    Err(Error::UnknownSource { spec: path.display().to_string() })
}
