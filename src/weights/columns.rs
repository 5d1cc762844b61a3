//! Columns: a safetensors file of plain numbers, mapped and read in place, a few values at a time.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::folder::Folder;
use super::safetensors_file::header;
use super::source::Source;
use crate::error::{Error, Result};

/// The metadata key under which columns say what they are.
const FORMAT_KEY: &str = "circuitscope";

/// Numbers that columns hold.
pub trait Number: Copy {
    /// How safetensors calls it.
    const DTYPE: Dtype;
    /// The same, for messages.
    const NAME: &'static str;

    /// From as many little-endian bytes as a value has.
    fn from_le(bytes: &[u8]) -> Self;
}

macro_rules! numbers {
    ($($number:ty = $dtype:ident),+) => {
        $(impl Number for $number {
            const DTYPE: Dtype = Dtype::$dtype;
            const NAME: &'static str = stringify!($dtype);

            fn from_le(bytes: &[u8]) -> Self {
                let mut value = [0; size_of::<$number>()];
                value.copy_from_slice(bytes);
                <$number>::from_le_bytes(value)
            }
        })+
    };
}

numbers!(u8 = U8, i8 = I8, u16 = U16, u32 = U32, i64 = I64, f32 = F32, f64 = F64);

/// The columns of one file. Opening reads the header alone.
pub struct Columns {
    source: Arc<Source>,
    /// Where the values begin in the file.
    start: usize,
    metadata: Metadata,
}

/// One column: `len` numbers in a file. Cheap to clone.
pub struct Column<T> {
    source: Arc<Source>,
    bytes: Range<usize>,
    number: PhantomData<T>,
}

impl std::fmt::Debug for Columns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Columns({})", self.source.name)
    }
}

impl<T: Number> std::fmt::Debug for Column<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Column({}, {} of {})", self.source.name, self.len(), T::NAME)
    }
}

impl<T> Clone for Column<T> {
    fn clone(&self) -> Self {
        Self { source: self.source.clone(), bytes: self.bytes.clone(), number: PhantomData }
    }
}

impl Columns {
    /// Opens a file of a folder and reads its header.
    ///
    /// # Errors
    /// [`Error::MissingFile`], [`Error::Io`], [`Error::Damaged`].
    pub fn open(folder: &Folder, name: &str) -> Result<Self> {
        let source = folder.source(name)?;
        let (start, metadata) = header(&source)?;
        Ok(Self { start, metadata, source })
    }

    /// The file's name, for messages.
    pub fn file(&self) -> &str {
        &self.source.name
    }

    /// What the file says that it holds, where it does.
    pub fn format(&self) -> Option<&str> {
        self.metadata.metadata().as_ref()?.get(FORMAT_KEY).map(String::as_str)
    }

    /// The names of all columns.
    pub fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// Whether there is a column of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.metadata.info(name).is_some()
    }

    /// The type of a column's numbers.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]
    pub fn dtype(&self, name: &str) -> Result<Dtype> {
        Ok(self.info(name)?.dtype)
    }

    fn info(&self, name: &str) -> Result<&safetensors::tensor::TensorInfo> {
        let missing = || Error::MissingTensor { name: name.to_owned(), file: self.source.name.clone() };
        self.metadata.info(name).ok_or_else(missing)
    }

    /// A column, of any length.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`Error::Dtype`]; [`Error::Shape`] of a tensor that is no column.
    pub fn column<T: Number>(&self, name: &str) -> Result<Column<T>> {
        let info = self.info(name)?;
        if info.dtype != T::DTYPE {
            let (tensor, file, dtype) = (name.to_owned(), self.source.name.clone(), info.dtype.to_string());
            return Err(Error::Dtype { tensor, file, dtype, expected: T::NAME });
        }
        let [len] = info.shape[..] else {
            let (tensor, file, actual) = (name.to_owned(), self.source.name.clone(), info.shape.clone());
            let expected = vec![info.shape.iter().product()];
            return Err(Error::Shape { tensor, file, actual, expected });
        };
        // safetensors has checked that offsets lie in the file and agree with shape and dtype.
        let begin = self.start + info.data_offsets.0;
        Ok(Column { source: self.source.clone(), bytes: begin..begin + len * size_of::<T>(), number: PhantomData })
    }

    /// A column of known length.
    ///
    /// # Errors
    /// As [`Columns::column`]; [`Error::Shape`] for another length.
    pub fn column_of<T: Number>(&self, name: &str, len: usize) -> Result<Column<T>> {
        let column = self.column(name)?;
        if column.len() == len {
            return Ok(column);
        }
        let (tensor, file, actual) = (name.to_owned(), self.source.name.clone(), vec![column.len()]);
        Err(Error::Shape { tensor, file, actual, expected: vec![len] })
    }
}

impl<T: Number> Column<T> {
    /// How many numbers.
    pub fn len(&self) -> usize {
        self.bytes.len() / size_of::<T>()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn values(&self) -> &[u8] {
        // Files are mapped or part of the program, so that their bytes are there.
        self.source.bytes().map_or(&[], |bytes| &bytes[self.bytes.clone()])
    }

    /// The number at `index`, which must exist.
    pub fn get(&self, index: usize) -> T {
        let size = size_of::<T>();
        T::from_le(&self.values()[index * size..(index + 1) * size])
    }

    /// The numbers of a range, which must exist.
    pub fn range(&self, range: Range<usize>) -> impl ExactSizeIterator<Item = T> + '_ {
        let size = size_of::<T>();
        self.values()[range.start * size..range.end * size].chunks_exact(size).map(T::from_le)
    }

    /// All numbers.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = T> + '_ {
        self.range(0..self.len())
    }
}
