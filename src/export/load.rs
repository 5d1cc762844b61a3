//! A file's bytes as a memory map: a copy where that is cheap, else the file itself.

use std::fs::File;
use std::io::{Read, Result, Seek, SeekFrom};
use std::ops::Range;

use memmap2::{Mmap, MmapMut, MmapOptions};

/// Files up to this size are copied, in some tens of milliseconds. What is copied stays as it was read; a mapped file
/// that another program shortens ends this one with SIGBUS when it reaches past the new end.
const MAX_COPIED_BYTES: u64 = 256 << 20;

/// The bytes of `range` of `file`, which has `file_bytes` of them.
///
/// # Errors
/// A file that cannot be read, or has become shorter.
pub(super) fn load(mut file: &File, file_bytes: u64, range: Range<u64>) -> Result<Mmap> {
    let len = range.end.saturating_sub(range.start) as usize;
    if file_bytes > MAX_COPIED_BYTES || len == 0 {
        // SAFETY: files of ours are replaced by renaming, never written in place, so that the map does not change. The
        // program ends with a message where another one shortens a file of this size while it is read.
        return unsafe { MmapOptions::new().offset(range.start).len(len).map(file) };
    }
    let mut copy = MmapMut::map_anon(len)?;
    file.seek(SeekFrom::Start(range.start))?;
    file.read_exact(&mut copy)?;
    copy.make_read_only()
}
