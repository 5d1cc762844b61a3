//! The header of a GGUF file.
//!
//! Own code rather than candle's reader: values are borrowed from the map, nothing is allocated on the word of a length
//! field, and types that candle lacks (MXFP4) are known. Source: ggml's docs/gguf.md, versions 2 and 3.

use std::borrow::Cow;
use std::collections::BTreeMap;

use candle_core::quantized::GgmlDType;

use super::encoding::Encoding;
use crate::error::{Error, Result};

/// Arrays in arrays: deeper nesting is no file that anyone wrote.
const MAX_DEPTH: usize = 4;
const MAX_DIMS: u32 = 4;
const MAX_ALIGNMENT: u64 = 1 << 20;
const DEFAULT_ALIGNMENT: u64 = 32;

/// A metadata value; numbers widened.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    Int(i64),
    Float(f64),
    Bool(bool),
    Text(Cow<'a, str>),
    Array(Vec<Value<'a>>),
    /// A list of numbers or truth values, left where it lies: as values it would be up to thirty times as large.
    Numbers(Numbers<'a>),
}

/// A list of values of one size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Numbers<'a> {
    kind: u32,
    bytes: &'a [u8],
}

impl<'a> Numbers<'a> {
    /// The values, numbers widened; what does not fit an i64 is left out.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let kind = self.kind;
        let size = size_of_kind(kind).unwrap_or(1);
        self.bytes.chunks_exact(size).filter_map(move |bytes| Cursor { bytes, at: 0 }.value(kind, 0).ok())
    }
}

/// Bytes of a value, where all of a type have the same.
fn size_of_kind(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// One tensor: its name, where its bytes lie in the file, and its shape, outermost dimension first.
pub(super) struct TensorInfo {
    pub name: String,
    pub encoding: Encoding,
    pub shape: Vec<usize>,
    pub start: usize,
}

/// Everything before the tensors' data.
pub(super) struct Header<'a> {
    pub file: String,
    metadata: BTreeMap<String, Value<'a>>,
    pub tensors: Vec<TensorInfo>,
}

impl<'a> Header<'a> {
    /// Reads the header of a whole file's bytes; every tensor is checked to lie inside the file.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn parse(file: &str, bytes: &'a [u8]) -> Result<Self> {
        parse(file, bytes).map_err(|reason| Error::Damaged { file: file.to_string(), format: "GGUF", reason })
    }

    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.metadata.get(key)
    }

    pub fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A whole number that is not negative; of a list, the first (some files have one for each layer).
    pub fn int(&self, key: &str) -> Option<usize> {
        let value = match self.get(key)? {
            Value::Numbers(values) => values.iter().next()?,
            value => value.clone(),
        };
        match value {
            Value::Int(v) => usize::try_from(v).ok(),
            _ => None,
        }
    }

    pub fn float(&self, key: &str) -> Option<f64> {
        match self.get(key)? {
            Value::Float(v) => Some(*v),
            Value::Int(v) => Some(*v as f64),
            _ => None,
        }
    }

    pub fn bool(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(v) => Some(*v),
            _ => None,
        }
    }

    pub fn array(&self, key: &str) -> Option<&[Value<'a>]> {
        match self.get(key)? {
            Value::Array(values) => Some(values),
            _ => None,
        }
    }

    /// A list of numbers; empty where there is none.
    pub fn numbers(&self, key: &str) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let list = match self.get(key) {
            Some(Value::Numbers(values)) => Some(*values),
            _ => None,
        };
        list.into_iter().flat_map(|list| list.iter())
    }

    /// The error for a key that must be there.
    pub fn missing(&self, key: &str) -> Error {
        let reason = if self.metadata.contains_key(key) { "wrong type" } else { "it is missing" };
        Error::Metadata { file: self.file.clone(), key: key.to_string(), reason: reason.to_string() }
    }

    /// A whole number that must be there.
    pub fn required_int(&self, key: &str) -> Result<usize> {
        self.int(key).ok_or_else(|| self.missing(key))
    }

    /// The tensor of a name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|t| t.name == name)
    }
}

fn parse<'a>(file: &str, bytes: &'a [u8]) -> Result<Header<'a>, String> {
    let mut cursor = Cursor { bytes, at: 0 };
    if cursor.take(4)? != b"GGUF" {
        return Err("it does not begin with `GGUF`".into());
    }
    let version = cursor.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("version {version}, expected 2 or 3"));
    }
    let (n_tensors, n_values) = (cursor.u64()?, cursor.u64()?);
    let mut metadata = BTreeMap::new();
    for _ in 0..n_values {
        let key = cursor.text()?.into_owned();
        let kind = cursor.u32()?;
        let value = cursor.value(kind, 0).map_err(|reason| format!("metadata key `{key}`: {reason}"))?;
        metadata.insert(key, value);
    }
    let mut tensors = Vec::new();
    for _ in 0..n_tensors {
        let name = cursor.text()?.into_owned();
        let n_dims = cursor.u32()?;
        if n_dims > MAX_DIMS {
            return Err(format!("tensor `{name}` has {n_dims} dimensions, at most {MAX_DIMS} are possible"));
        }
        let mut shape = Vec::new();
        for _ in 0..n_dims {
            shape.push(usize::try_from(cursor.u64()?).map_err(|e| e.to_string())?);
        }
        shape.reverse();
        let encoding = encoding_from_code(cursor.u32()?);
        let start = usize::try_from(cursor.u64()?).map_err(|e| e.to_string())?;
        tensors.push(TensorInfo { name, encoding, shape, start });
    }
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(Value::Int(v)) => u64::try_from(*v).ok().filter(|a| (1..=MAX_ALIGNMENT).contains(a)).ok_or("alignment")?,
        Some(_) => return Err("`general.alignment` is no number".into()),
    };
    let data_start = cursor.at.next_multiple_of(alignment as usize);
    for tensor in &mut tensors {
        tensor.start = tensor.start.checked_add(data_start).ok_or("an offset overflows")?;
        tensor.check(bytes.len())?;
    }
    Ok(Header { file: file.to_string(), metadata, tensors })
}

impl TensorInfo {
    fn check(&self, file_bytes: usize) -> Result<(), String> {
        if matches!(self.encoding, Encoding::Unsupported(_)) {
            return Ok(());
        }
        let Self { name, shape, .. } = self;
        let (block_elements, _) = self.encoding.block();
        if !shape.last().copied().unwrap_or(1).is_multiple_of(block_elements) {
            return Err(format!(
                "tensor `{name}` has shape {shape:?}, its rows are no whole blocks of {block_elements}"
            ));
        }
        let n = shape.iter().try_fold(1usize, |n, &len| n.checked_mul(len));
        let end = n.and_then(|n| self.encoding.size_bytes(n)).and_then(|size| self.start.checked_add(size));
        match end {
            Some(end) if end <= file_bytes => Ok(()),
            _ => Err(format!("tensor `{name}` of shape {shape:?} reaches beyond the end, at {file_bytes} bytes")),
        }
    }
}

/// ggml's type codes.
fn encoding_from_code(code: u32) -> Encoding {
    match code {
        0 => Encoding::F32,
        1 => Encoding::F16,
        2 => Encoding::Ggml(GgmlDType::Q4_0),
        3 => Encoding::Ggml(GgmlDType::Q4_1),
        6 => Encoding::Ggml(GgmlDType::Q5_0),
        7 => Encoding::Ggml(GgmlDType::Q5_1),
        8 => Encoding::Ggml(GgmlDType::Q8_0),
        10 => Encoding::Ggml(GgmlDType::Q2K),
        11 => Encoding::Ggml(GgmlDType::Q3K),
        12 => Encoding::Ggml(GgmlDType::Q4K),
        13 => Encoding::Ggml(GgmlDType::Q5K),
        14 => Encoding::Ggml(GgmlDType::Q6K),
        28 => Encoding::F64,
        30 => Encoding::Bf16,
        39 => Encoding::Mxfp4,
        other => Encoding::Unsupported(format!("ggml type {other}")),
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("truncated: {n} bytes at {} of {}", self.at, self.bytes.len()))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| "truncated".to_string())
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<Cow<'a, str>, String> {
        let len = usize::try_from(self.u64()?).map_err(|e| e.to_string())?;
        Ok(String::from_utf8_lossy(self.take(len)?))
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value<'a>, String> {
        Ok(match kind {
            0 => Value::Int(i64::from(self.array::<1>()?[0])),
            1 => Value::Int(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Value::Int(i64::from(u16::from_le_bytes(self.array()?))),
            3 => Value::Int(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Value::Int(i64::from(self.u32()?)),
            5 => Value::Int(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            8 => Value::Text(self.text()?),
            9 if depth < MAX_DEPTH => {
                let (kind, len) = (self.u32()?, self.u64()?);
                // Every element takes at least a byte, so that a lie about the length ends at the file's end.
                if len > (self.bytes.len() - self.at) as u64 {
                    return Err(format!("a list of {len} values, with {} bytes left", self.bytes.len() - self.at));
                }
                if let Some(size) = size_of_kind(kind) {
                    let n_bytes = (len as usize).checked_mul(size).ok_or("a list's length overflows")?;
                    return Ok(Value::Numbers(Numbers { kind, bytes: self.take(n_bytes)? }));
                }
                let mut values = Vec::new();
                for _ in 0..len {
                    values.push(self.value(kind, depth + 1)?);
                }
                Value::Array(values)
            }
            10 => Value::Int(i64::try_from(self.u64()?).map_err(|e| e.to_string())?),
            11 => Value::Int(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("value type {other}")),
        })
    }
}
