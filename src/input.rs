//! `input`: where what is read from start to end comes from: a file, a pipe, or standard input (`-`).
//!
//! Plans, labels, groups, prompts and JSON graphs can come from anything that can be read once. What is mapped into
//! memory, or read in parts, must be a file: asked whether it is one before it is opened, since opening a pipe waits for
//! somebody who writes into it.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::memory::MemoryPlan;
use crate::{Error, Result};

/// The name of standard input.
const STDIN: &str = "-";

/// The largest JSON that is taken from a pipe, and the largest text of any other kind, from files too: what comes from a
/// device may have no end, and a plan or a prompt of this size is none.
const MAX_JSON_BYTES: u64 = 1 << 30;
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// Files beyond this are held against the memory that is left before they are read.
const LARGE_FILE_BYTES: u64 = 64 << 20;

/// Whether `path` can be read only once, from start to end: standard input, a pipe, a device.
pub fn is_stream(path: &Path) -> bool {
    path == Path::new(STDIN) || path.metadata().is_ok_and(|found| !found.is_file() && !found.is_dir())
}

/// Everything that is in a file, or comes through a pipe, as UTF-8.
///
/// # Errors
/// What cannot be read, standard input that was read before, more than 64 MB, what is no text.
pub fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read_if(path, MAX_TEXT_BYTES, |_| Ok(()))?).map_err(|e| {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidData, e.utf8_error());
        Error::Io { doing: "cannot read", path: path.to_owned(), source }
    })
}

/// The bytes of JSON in a file or from a pipe. What a pipe sends that begins like nothing in JSON is refused at once, so
/// that one without end (`/dev/zero`) is.
///
/// # Errors
/// What cannot be read, standard input that was read before, more than 1 GB through a pipe, a file that does not fit into
/// memory; [`Error::MustBeFile`] for a raw graph.
pub fn read_json(path: &Path, format: &'static str) -> Result<Vec<u8>> {
    read_if(path, MAX_JSON_BYTES, |start| {
        // Eight bytes of a header's length, then the header.
        if start.len() > 8 && start[7] == 0 && start[8] == b'{' {
            return Err(Error::MustBeFile { path: path.to_owned(), what: "a raw graph" });
        }
        let first = start.iter().find(|byte| !byte.is_ascii_whitespace());
        match first {
            None | Some(b'{' | b'[') => Ok(()),
            Some(&byte) => Err(Error::Damaged {
                file: path.display().to_string(),
                format,
                reason: format!("it begins with {:?}, JSON of this kind with {{ or [", char::from(byte)),
            }),
        }
    })
}

/// The bytes of lines that are understood one by one: whatever is wrong with one of them is not wrong with the others.
///
/// # Errors
/// What cannot be read, standard input that was read before, more than 1 GB through a pipe, a file that does not fit into
/// memory.
#[cfg(feature = "cli")]
pub fn read_lines(path: &Path) -> Result<Vec<u8>> {
    read_if(path, MAX_JSON_BYTES, |_| Ok(()))
}

/// Reads a file whole, or a stream of at most `most` bytes after `check` has seen its first ones. What a text may have at
/// most holds for files too.
fn read_if(path: &Path, most: u64, check: impl FnOnce(&[u8]) -> Result<()>) -> Result<Vec<u8>> {
    const START_BYTES: u64 = 64;
    let failed = |source| Error::Io { doing: "cannot read", path: path.to_owned(), source };
    let too_long = |what: &str| Err(failed(std::io::Error::other(format!("{what} {} MB at most", most >> 20))));
    if !is_stream(path) {
        let n_bytes = path.metadata().map_err(failed)?.len();
        if n_bytes > most && most == MAX_TEXT_BYTES {
            return too_long(&format!("it has {} MB, a text of this kind", n_bytes >> 20));
        }
        if n_bytes > LARGE_FILE_BYTES {
            MemoryPlan::new()
                .with("the file", n_bytes)
                .check(|| format!("reading `{}`", path.display()), |_| "a smaller file is needed".to_owned())?;
        }
        return std::fs::read(path).map_err(failed);
    }
    let mut reader = open_stream(path)?;
    let mut bytes = Vec::new();
    reader.by_ref().take(START_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    check(&bytes)?;
    reader.take(most + 1 - bytes.len() as u64).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > most {
        return too_long("it does not end; through a pipe come");
    }
    Ok(bytes)
}

fn open_stream(path: &Path) -> Result<Box<dyn Read>> {
    /// Whether somebody has read standard input: there is nothing left of it then.
    static IS_READ: AtomicBool = AtomicBool::new(false);
    let failed = |source| Error::Io { doing: "cannot read", path: path.to_owned(), source };
    let is_stdin = [STDIN, "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"].iter().any(|name| path == Path::new(name));
    if is_stdin && IS_READ.swap(true, Ordering::Relaxed) {
        return Err(failed(std::io::Error::other("standard input is read once, and two inputs name it")));
    }
    if path == Path::new(STDIN) {
        return Ok(Box::new(std::io::stdin()));
    }
    Ok(Box::new(File::open(path).map_err(failed)?))
}

/// Refuses what cannot be mapped or read in parts, without opening it. `what` is to be read, in words.
///
/// # Errors
/// [`Error::MustBeFile`]. What is not there at all is left to who opens it.
pub fn check_is_file(path: &Path, what: &'static str) -> Result<()> {
    if is_stream(path) { Err(Error::MustBeFile { path: path.to_owned(), what }) } else { Ok(()) }
}
