//! Named tensors of one checkpoint.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::encoding::Encoding;
use super::source::Source;
use super::stored::{Stored, Values};
use super::{npz, safetensors_file};
use crate::error::{Error, Result};
use crate::hash::{START, fnv1a};

/// Named tensors of one checkpoint, memory-mapped; f32 on the CPU when read. Cheap to clone.
#[derive(Clone)]
pub struct Checkpoint(Arc<Inner>);

struct Inner {
    /// The files, for messages about tensors that are in none.
    files: String,
    stored_from_name: BTreeMap<String, Stored>,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checkpoint({}, {} tensors)", self.0.files, self.0.stored_from_name.len())
    }
}

impl Checkpoint {
    /// One safetensors file, or the shards of one checkpoint.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Damaged`], [`Error::DuplicateTensor`].
    pub fn open_safetensors(files: &[PathBuf]) -> Result<Self> {
        let sources = files.iter().map(|file| Source::map(file)).collect::<Result<Vec<_>>>()?;
        Self::from_safetensors(&sources)
    }

    /// Safetensors files that are part of the program: (file name, bytes). The bytes need no alignment.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::DuplicateTensor`].
    pub fn from_static(files: &[(&'static str, &'static [u8])]) -> Result<Self> {
        let sources: Vec<_> = files.iter().map(|(name, bytes)| Source::embedded(name, bytes)).collect();
        Self::from_safetensors(&sources)
    }

    fn from_safetensors(sources: &[Arc<Source>]) -> Result<Self> {
        let mut tensors = Vec::new();
        for source in sources {
            tensors.extend(safetensors_file::tensors(source)?);
        }
        let files = sources.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
        Self::from_tensors(files, tensors)
    }

    /// A numpy archive (Gemma Scope 1). Stored entries are mapped where they lie; deflated ones are inflated once, when
    /// first read. f16, f32, f64, in C or Fortran order.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Damaged`].
    pub fn open_npz(file: &Path) -> Result<Self> {
        let source = Source::map(file)?;
        Self::from_tensors(source.name.clone(), npz::tensors(&source)?)
    }

    pub(super) fn from_tensors(files: String, tensors: Vec<(String, Stored)>) -> Result<Self> {
        let mut stored_from_name: BTreeMap<String, Stored> = BTreeMap::new();
        for (name, stored) in tensors {
            let second = stored.part.source.name.clone();
            if let Some(first) = stored_from_name.insert(name.clone(), stored) {
                return Err(Error::DuplicateTensor { name, first: first.part.source.name.clone(), second });
            }
        }
        Ok(Self(Arc::new(Inner { files, stored_from_name })))
    }

    /// The same tensors under other names; those for which `rename` gives none are left out.
    pub(super) fn renamed(&self, rename: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let tensors = self.0.stored_from_name.iter();
        let tensors = tensors.filter_map(|(name, stored)| rename(name).map(|name| (name, stored.clone())));
        Self::from_tensors(self.0.files.clone(), tensors.collect())
    }

    /// Whether the other one is a clone of this.
    pub(crate) fn is_same(&self, other: &Checkpoint) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.stored_from_name.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.0.stored_from_name.contains_key(name)
    }

    /// A tensor's shape.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        Ok(self.stored(name)?.shape.clone())
    }

    /// The file that holds a tensor, or all files when none does. For messages.
    pub fn file_of(&self, name: &str) -> String {
        self.0.stored_from_name.get(name).map_or_else(|| self.0.files.clone(), |s| s.part.source.name.clone())
    }

    fn stored(&self, name: &str) -> Result<&Stored> {
        self.0
            .stored_from_name
            .get(name)
            .ok_or_else(|| Error::MissingTensor { name: name.to_string(), file: self.0.files.clone() })
    }

    /// A whole tensor. `shape`, f32.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Shape`] when the file has another shape, [`Error::Dtype`],
    /// [`Error::NotFinite`].
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let stored = self.readable(name)?;
        if stored.shape != shape {
            return Err(Error::Shape {
                tensor: name.to_string(),
                file: self.file_of(name),
                actual: stored.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        let n_rows = stored.shape.first().copied().unwrap_or(1);
        let values = stored.rows(0..n_rows)?;
        self.checked(name, values, shape, |flat| coordinates(flat, shape))
    }

    /// A slice of the first dimension; only its bytes are touched. `[rows.len(), shape[1..]]`, f32.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::OutOfRange`], [`Error::Dtype`], [`Error::NotFinite`].
    pub fn rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor> {
        let stored = self.readable(name)?;
        let n_rows = stored.shape.first().copied().unwrap_or(0);
        self.in_range(name, &rows, 0, n_rows)?;
        let values = stored.rows(rows.clone())?;
        let first = rows.start * stored.row_len();
        self.checked(name, values, &sliced(rows.len(), stored), |flat| coordinates(first + flat, &stored.shape))
    }

    /// Chosen indices of the first dimension, in the given order. `[rows.len(), shape[1..]]`, f32.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::OutOfRange`], [`Error::Dtype`], [`Error::NotFinite`].
    pub fn gather_rows(&self, name: &str, rows: &[usize]) -> Result<Tensor> {
        let stored = self.readable(name)?;
        let n_rows = stored.shape.first().copied().unwrap_or(0);
        for &row in rows {
            self.in_range(name, &(row..row.saturating_add(1)), 0, n_rows)?;
        }
        let values = stored.gather_rows(rows)?;
        let row_len = stored.row_len();
        self.checked(name, values, &sliced(rows.len(), stored), |flat| {
            coordinates(rows[flat / row_len] * row_len + flat % row_len, &stored.shape)
        })
    }

    /// The transpose of a block of columns of a matrix `[a, b]`. `[columns.len(), a]`, f32.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Shape`] when it is no matrix, [`Error::OutOfRange`], [`Error::Dtype`],
    /// [`Error::NotFinite`].
    pub fn columns(&self, name: &str, columns: Range<usize>) -> Result<Tensor> {
        let stored = self.readable(name)?;
        let [a, b] = stored.shape[..] else {
            return Err(Error::Shape {
                tensor: name.to_string(),
                file: self.file_of(name),
                actual: stored.shape.clone(),
                expected: vec![0, 0],
            });
        };
        self.in_range(name, &columns, 1, b)?;
        let values = stored.columns(columns.clone())?;
        self.checked(name, values, &[columns.len(), a], |flat| vec![flat % a, columns.start + flat / a])
    }

    /// A hash of names, shapes and some of the values: of vectors all, of larger tensors the first, the middle and the last
    /// row. Other weights of the same shapes have another one; reading it takes as long as reading a few pages a tensor.
    ///
    /// # Errors
    /// Those of reading.
    pub fn fingerprint(&self) -> Result<u64> {
        let mut hash = START;
        for (name, stored) in &self.0.stored_from_name {
            hash = fnv1a(hash, name.bytes().chain([0]));
            hash = fnv1a(hash, stored.shape.iter().flat_map(|&n| (n as u64).to_le_bytes()));
            let n_rows = stored.shape.first().copied().unwrap_or(0);
            // What this program cannot read it does not compute with either.
            if n_rows == 0 || matches!(stored.part.encoding, Encoding::Unsupported(_)) {
                continue;
            }
            let values = match stored.shape.len() {
                1 => self.rows(name, 0..n_rows)?,
                _ => self.gather_rows(name, &[0, n_rows / 2, n_rows - 1])?,
            };
            let values: Vec<f32> = values.flatten_all()?.to_vec1()?;
            hash = fnv1a(hash, values.iter().flat_map(|value| value.to_bits().to_le_bytes()));
        }
        Ok(hash)
    }

    /// The tensor, if its elements have a type that can be read.
    fn readable(&self, name: &str) -> Result<&Stored> {
        let stored = self.stored(name)?;
        if let Encoding::Unsupported(dtype) = &stored.part.encoding {
            return Err(Error::Dtype {
                tensor: name.to_string(),
                file: self.file_of(name),
                dtype: dtype.clone(),
                expected: "f32, f16, bf16 or a block type of ggml",
            });
        }
        Ok(stored)
    }

    fn in_range(&self, name: &str, range: &Range<usize>, dim: usize, len: usize) -> Result<()> {
        if range.start <= range.end && range.end <= len {
            return Ok(());
        }
        let index = range.end.max(range.start).saturating_sub(1);
        Err(Error::OutOfRange { tensor: name.to_string(), file: self.file_of(name), dim, index, len })
    }

    fn checked(
        &self,
        name: &str,
        values: Values,
        shape: &[usize],
        index_of: impl Fn(usize) -> Vec<usize>,
    ) -> Result<Tensor> {
        if !values.finite {
            // A block that is not finite may lie beside what was asked for: then nothing here is wrong.
            if let Some(flat) = values.data.iter().position(|v| !v.is_finite()) {
                return Err(Error::NotFinite {
                    tensor: name.to_string(),
                    file: self.file_of(name),
                    index: index_of(flat),
                    value: values.data[flat],
                });
            }
        }
        Ok(Tensor::from_vec(values.data, shape, &Device::Cpu)?)
    }
}

/// The shape of `n` rows.
fn sliced(n: usize, stored: &Stored) -> Vec<usize> {
    std::iter::once(n).chain(stored.shape.iter().skip(1).copied()).collect()
}

/// Index of each dimension from the row-major position.
fn coordinates(mut flat: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (i, &len) in index.iter_mut().zip(shape).rev() {
        *i = flat % len;
        flat /= len;
    }
    index
}
