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
    if file_bytes > MAX_COPIED_BYTES || range.is_empty() {
        return map(file, range);
    }
    let mut copy = MmapMut::map_anon((range.end - range.start) as usize)?;
    file.seek(SeekFrom::Start(range.start))?;
    file.read_exact(&mut copy)?;
    copy.make_read_only()
}

/// The bytes of `range` of `file`, as they are there.
fn map(file: &File, range: Range<u64>) -> Result<Mmap> {
    let len = range.end.saturating_sub(range.start) as usize;
    // SAFETY: files of ours are replaced by renaming, never written in place, so that the map does not change. The
    // program ends with a message where another one shortens a file of this size while it is read.
    unsafe { MmapOptions::new().offset(range.start).len(len).map(file) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_holds_what_a_copy_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let bytes: Vec<u8> = (0..20_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = File::open(&path).unwrap();
        // Ranges that begin and end where pages do not, and one that is empty.
        for range in [0..20_000, 0..1, 4096..8192, 5000..19_999, 7..7] {
            let expected = &bytes[range.start as usize..range.end as usize];
            assert_eq!(&load(&file, bytes.len() as u64, range.clone()).unwrap()[..], expected, "{range:?}, copied");
            assert_eq!(&load(&file, MAX_COPIED_BYTES + 1, range.clone()).unwrap()[..], expected, "{range:?}, mapped");
        }
        assert!(load(&file, bytes.len() as u64, 0..20_001).is_err(), "a file that has become shorter");
    }
}
