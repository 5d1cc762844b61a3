//! Columns of plain numbers as a safetensors file (read by [`crate::weights::Columns`]).

use std::collections::HashMap;
use std::io::{Result as IoResult, Write};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::raw::META_KEY;
use super::replace::replace_file;
use crate::{Error, Result};

/// The numbers of a column. `[len]`
#[derive(Clone)]
pub enum Numbers<'a> {
    /// Bytes.
    U8(&'a [u8]),
    /// Small signed numbers.
    I8(&'a [i8]),
    /// 16 bits.
    U16(&'a [u16]),
    /// 32 bits.
    U32(&'a [u32]),
    /// 64 bits, signed.
    I64(&'a [i64]),
    /// Floats.
    F32(&'a [f32]),
    /// Floats of 64 bits.
    F64(&'a [f64]),
    /// `len` numbers that are not in memory at once: `write` gives their little-endian bytes.
    Streamed {
        /// Their type.
        dtype: Dtype,
        /// How many.
        len: usize,
        /// Writes all of them.
        write: &'a dyn Fn(&mut dyn Write) -> IoResult<()>,
    },
}

/// Numbers that are made bytes of at once.
const CHUNK: usize = 1 << 14;

impl Numbers<'_> {
    fn dtype_and_len(&self) -> (Dtype, usize) {
        match self {
            Numbers::U8(values) => (Dtype::U8, values.len()),
            Numbers::I8(values) => (Dtype::I8, values.len()),
            Numbers::U16(values) => (Dtype::U16, values.len()),
            Numbers::U32(values) => (Dtype::U32, values.len()),
            Numbers::I64(values) => (Dtype::I64, values.len()),
            Numbers::F32(values) => (Dtype::F32, values.len()),
            Numbers::F64(values) => (Dtype::F64, values.len()),
            Numbers::Streamed { dtype, len, .. } => (*dtype, *len),
        }
    }

    fn write(&self, writer: &mut dyn Write) -> IoResult<()> {
        fn all<T: Copy, const N: usize>(w: &mut dyn Write, values: &[T], bytes: fn(T) -> [u8; N]) -> IoResult<()> {
            for chunk in values.chunks(CHUNK) {
                w.write_all(&chunk.iter().flat_map(|&value| bytes(value)).collect::<Vec<u8>>())?;
            }
            Ok(())
        }
        match self {
            Numbers::U8(values) => writer.write_all(values),
            Numbers::I8(values) => all(writer, values, i8::to_le_bytes),
            Numbers::U16(values) => all(writer, values, u16::to_le_bytes),
            Numbers::U32(values) => all(writer, values, u32::to_le_bytes),
            Numbers::I64(values) => all(writer, values, i64::to_le_bytes),
            Numbers::F32(values) => all(writer, values, f32::to_le_bytes),
            Numbers::F64(values) => all(writer, values, f64::to_le_bytes),
            Numbers::Streamed { write, .. } => write(writer),
        }
    }
}

/// Writes columns to `path`, all of them or nothing; `format` goes into the file's metadata.
///
/// # Errors
/// The file cannot be written.
pub fn write_columns(path: &Path, format: &str, columns: &[(&str, Numbers)]) -> Result<()> {
    let shapes = columns.iter().map(|(_, numbers)| vec![numbers.dtype_and_len().1]).collect();
    write_shaped(path, Some(format), columns, shapes)
}

/// Writes tensors of plain numbers, row-major, to `path`, all of them or nothing.
///
/// # Errors
/// The file cannot be written.
pub fn write_tensors(path: &Path, tensors: &[(&str, &[usize], Numbers)]) -> Result<()> {
    let shapes: Vec<Vec<usize>> = tensors.iter().map(|(_, shape, _)| shape.to_vec()).collect();
    let columns: Vec<(&str, Numbers)> = tensors.iter().map(|(name, _, numbers)| (*name, numbers.clone())).collect();
    write_shaped(path, None, &columns, shapes)
}

fn write_shaped(path: &Path, format: Option<&str>, columns: &[(&str, Numbers)], shapes: Vec<Vec<usize>>) -> Result<()> {
    let failed = |source: std::io::Error| Error::Io { doing: "cannot write", path: path.to_owned(), source };
    let mut offset = 0;
    let infos = columns.iter().zip(shapes).map(|((name, numbers), shape)| {
        let (dtype, len) = numbers.dtype_and_len();
        debug_assert_eq!(shape.iter().product::<usize>(), len, "{name}");
        let start = offset;
        offset += len * dtype.bitsize() / 8;
        ((*name).to_owned(), TensorInfo { dtype, shape, data_offsets: (start, offset) })
    });
    let infos: Vec<_> = infos.collect();
    let meta = format.map(|format| HashMap::from([(META_KEY.to_owned(), format.to_owned())]));
    let header = Metadata::new(meta, infos).map_err(|e| failed(std::io::Error::other(e)))?;
    let mut header = serde_json::to_vec(&header).map_err(|e| failed(e.into()))?;
    header.resize(header.len().next_multiple_of(align_of::<i64>()), b' ');
    replace_file(path, |writer| {
        writer.write_all(&(header.len() as u64).to_le_bytes())?;
        writer.write_all(&header)?;
        columns.iter().try_for_each(|(_, numbers)| numbers.write(writer))
    })
}
