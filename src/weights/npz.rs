//! Numpy archives: a zip file of `.npy` arrays.

use std::io::{Cursor, Read};
use std::sync::Arc;

use zip::CompressionMethod;
use zip::result::ZipError;

use super::encoding::Encoding;
use super::source::Source;
use super::stored::{Layout, Part, Stored};
use crate::error::{Error, Result};

/// Longest array header that is read; numpy's own are 128 bytes.
const MAX_HEADER_BYTES: u64 = 1 << 16;

/// The arrays of an archive, named as numpy names them (without `.npy`).
pub(super) fn tensors(source: &Arc<Source>) -> Result<Vec<(String, Stored)>> {
    let bytes = source.bytes()?;
    let damaged = |reason: String| Error::Damaged { file: source.name.clone(), format: "npz", reason };
    let zipped = |e: ZipError| damaged(e.to_string());
    let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).map_err(zipped)?;
    let mut tensors = Vec::new();
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).map_err(zipped)?;
        let file_name = entry.name().map_err(zipped)?.into_owned();
        let Some(name) = file_name.strip_suffix(".npy").map(str::to_string) else { continue };
        let size_bytes = entry.size();
        let mut head = Vec::new();
        entry.by_ref().take(MAX_HEADER_BYTES).read_to_end(&mut head).map_err(|e| damaged(format!("`{name}`: {e}")))?;
        let header = Header::parse(&head).map_err(|reason| damaged(format!("`{name}`: {reason}")))?;
        let (source, entry_start) = match entry.compression() {
            CompressionMethod::Stored => {
                let start = entry.data_start().ok_or_else(|| damaged(format!("`{name}` has no data")))?;
                (source.clone(), start)
            }
            _ => (Source::deflated(source, index, size_bytes), 0),
        };
        let n: Option<usize> = header.shape.iter().try_fold(1usize, |n, &len| n.checked_mul(len));
        let data_bytes = n.and_then(|n| header.encoding.size_bytes(n)).unwrap_or(usize::MAX);
        let end = (header.size_bytes as u64).saturating_add(data_bytes as u64);
        let supported = !matches!(header.encoding, Encoding::Unsupported(_));
        if supported && (end != size_bytes || (entry_start > 0 && entry_start.saturating_add(end) > bytes.len() as u64))
        {
            return Err(damaged(format!(
                "`{name}` has shape {:?}, which needs {end} bytes with its header; the archive holds {size_bytes}",
                header.shape
            )));
        }
        let part = Part { source, start: entry_start as usize + header.size_bytes, encoding: header.encoding };
        tensors.push((name, Stored { part, shape: header.shape, layout: header.layout, shift: 0.0 }));
    }
    Ok(tensors)
}

/// What an `.npy` file says before its data.
struct Header {
    size_bytes: usize,
    encoding: Encoding,
    shape: Vec<usize>,
    layout: Layout,
}

impl Header {
    /// Source: numpy.lib.format, versions 1 to 3. `head` is the beginning of the array's file.
    fn parse(head: &[u8]) -> Result<Self, String> {
        let version = match head {
            [0x93, b'N', b'U', b'M', b'P', b'Y', major, _minor, ..] => *major,
            _ => return Err("no numpy header".into()),
        };
        let (begin, len): (usize, usize) = match (version, head) {
            (1, [_, _, _, _, _, _, _, _, a, b, ..]) => (10, usize::from(u16::from_le_bytes([*a, *b]))),
            (2 | 3, [_, _, _, _, _, _, _, _, a, b, c, d, ..]) => (12, u32::from_le_bytes([*a, *b, *c, *d]) as usize),
            _ => return Err(format!("numpy format version {version}")),
        };
        let text = begin.checked_add(len).and_then(|end| head.get(begin..end)).ok_or("truncated header")?;
        let text = std::str::from_utf8(text).map_err(|_| "the header is no text")?;
        let descr = value_of(text, "descr")?;
        let descr = descr.split(['\'', '"']).nth(1).unwrap_or(descr.split(',').next().unwrap_or(""));
        let encoding = match descr {
            "<f4" => Encoding::F32,
            "<f2" => Encoding::F16,
            "<f8" => Encoding::F64,
            other => Encoding::Unsupported(other.to_string()),
        };
        let fortran = value_of(text, "fortran_order")?.starts_with("True");
        let shape = value_of(text, "shape")?;
        let shape = shape.strip_prefix('(').and_then(|s| s.split(')').next()).ok_or("no shape")?;
        let shape = shape.split(',').map(str::trim).filter(|s| !s.is_empty());
        let shape: Vec<usize> = shape.map(|s| s.parse().map_err(|_| format!("shape {s}"))).collect::<Result<_, _>>()?;
        let layout = match (fortran, shape.len()) {
            (false, _) | (true, 0 | 1) => Layout::RowMajor,
            (true, 2) => Layout::Transposed,
            (true, n) => return Err(format!("{n} dimensions in Fortran order")),
        };
        Ok(Self { size_bytes: begin + len, encoding, shape, layout })
    }
}

/// What follows a key of the header's Python dictionary.
fn value_of<'a>(text: &'a str, key: &str) -> Result<&'a str, String> {
    let at = text.find(&format!("'{key}':")).ok_or_else(|| format!("no `{key}` in the header"))?;
    Ok(text[at + key.len() + 3..].trim_start())
}
