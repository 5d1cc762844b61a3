//! Bytes of one file: mapped, embedded in the program, or inflated once.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use memmap2::Mmap;

use crate::error::{Error, Result};
use crate::input::check_is_file;

/// One file's bytes and the name that messages show.
pub(super) struct Source {
    pub name: String,
    bytes: Bytes,
}

enum Bytes {
    Mapped(Mmap),
    Static(&'static [u8]),
    Deflated { archive: Arc<Source>, index: usize, size_bytes: u64, inflated: OnceLock<Result<Mmap, String>> },
}

impl Source {
    /// Maps a file for reading.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened, or is not a file.
    pub fn map(path: &Path) -> Result<Arc<Self>> {
        check_is_file(path, "a checkpoint")?;
        let io = |doing| move |source| Error::Io { doing, path: path.to_path_buf(), source };
        let file = File::open(path).map_err(io("cannot open"))?;
        let metadata = file.metadata().map_err(io("cannot read"))?;
        if !metadata.is_file() {
            return Err(io("cannot read")(std::io::Error::other("not a file")));
        }
        let bytes = if metadata.len() == 0 {
            Bytes::Static(&[])
        } else {
            // SAFETY: the map is read-only. Another process that shortens the file while it is mapped could end this
            // one with SIGBUS; that is the accepted price of not copying checkpoints into memory.
            Bytes::Mapped(unsafe { Mmap::map(&file) }.map_err(io("cannot map"))?)
        };
        Ok(Arc::new(Self { name: path.display().to_string(), bytes }))
    }

    /// Bytes that are part of the program.
    pub fn embedded(name: &str, bytes: &'static [u8]) -> Arc<Self> {
        Arc::new(Self { name: name.to_string(), bytes: Bytes::Static(bytes) })
    }

    /// A compressed entry of a zip archive, inflated when its bytes are first asked for.
    pub fn deflated(archive: &Arc<Source>, index: usize, size_bytes: u64) -> Arc<Self> {
        let inflated = OnceLock::new();
        let bytes = Bytes::Deflated { archive: archive.clone(), index, size_bytes, inflated };
        Arc::new(Self { name: archive.name.clone(), bytes })
    }

    /// The bytes.
    ///
    /// # Errors
    /// [`Error::Damaged`] when a compressed entry does not inflate to its declared size.
    pub fn bytes(&self) -> Result<&[u8]> {
        match &self.bytes {
            Bytes::Mapped(map) => Ok(map),
            Bytes::Static(bytes) => Ok(bytes),
            Bytes::Deflated { archive, index, size_bytes, inflated } => {
                match inflated.get_or_init(|| inflate(archive, *index, *size_bytes)) {
                    Ok(map) => Ok(map),
                    Err(reason) => {
                        Err(Error::Damaged { file: self.name.clone(), format: "npz", reason: reason.clone() })
                    }
                }
            }
        }
    }
}

/// Inflates into an unlinked temporary file: compressed checkpoints then cost page cache, not memory of ours.
fn inflate(archive: &Source, index: usize, size_bytes: u64) -> Result<Mmap, String> {
    let bytes = archive.bytes().map_err(|e| e.to_string())?;
    let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).map_err(|e| e.to_string())?;
    let entry = zip.by_index(index).map_err(|e| e.to_string())?;
    let mut file = tempfile::tempfile().map_err(|e| e.to_string())?;
    let copied = std::io::copy(&mut entry.take(size_bytes.saturating_add(1)), &mut file).map_err(|e| e.to_string())?;
    if copied != size_bytes {
        return Err(format!("a compressed entry inflates to {copied} bytes or more, expected {size_bytes}"));
    }
    // SAFETY: nobody else can reach the unlinked file, so it does not change while it is mapped.
    unsafe { Mmap::map(&file) }.map_err(|e| e.to_string())
}
