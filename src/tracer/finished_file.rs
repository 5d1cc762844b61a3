//! Finished rows of a trace in a file, from which another trace goes on.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use safetensors::Dtype;

use crate::attribution::{FinishedColumn, FinishedRows, RowStore};
use crate::error::{Error, Result};
use crate::export::{Numbers, write_columns};
use crate::weights::{Columns, Folder};

/// A file of finished rows: safetensors, with what they are of as JSON in its metadata.
#[derive(Debug)]
pub struct FinishedFile {
    path: PathBuf,
    every: Duration,
}

impl FinishedFile {
    /// Rows are read from `path`, where there is such a file, and kept there.
    pub fn new(path: &Path) -> Self {
        Self::every(path, Duration::from_secs(10))
    }

    /// As [`FinishedFile::new`], with rows kept no more often than `every` so much time.
    pub fn every(path: &Path, every: Duration) -> Self {
        Self { path: path.to_owned(), every }
    }

    /// Removes the file, if there is one: of a graph that is done.
    ///
    /// # Errors
    /// [`Error::Io`]
    pub fn remove(&self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::Io { doing: "cannot remove", path: self.path.clone(), source })
            }
            _ => Ok(()),
        }
    }

    fn read_file(&self) -> Result<FinishedRows<'static>> {
        let io = |source| Error::Io { doing: "cannot read", path: self.path.clone(), source };
        let damaged = |reason: String| Error::Damaged { file: self.name(), format: FinishedRows::FORMAT, reason };
        let not_a_name = || io(std::io::ErrorKind::InvalidFilename.into());
        let name = self.path.file_name().and_then(|name| name.to_str()).ok_or_else(not_a_name)?;
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let file = Columns::open(&Folder::open(folder.to_str().ok_or_else(not_a_name)?)?, name)?;
        let about = file.format().ok_or_else(|| damaged("it does not say of what".into()))?;
        let about = serde_json::from_str(about).map_err(|error| damaged(error.to_string()))?;
        let column = |name: &String| {
            let values = match file.dtype(name)? {
                Dtype::I64 => FinishedColumn::I64(Cow::Owned(file.column::<i64>(name)?.iter().collect())),
                Dtype::F64 => FinishedColumn::F64(Cow::Owned(file.column::<f64>(name)?.iter().collect())),
                _ => FinishedColumn::F32(Cow::Owned(file.column::<f32>(name)?.iter().collect())),
            };
            Ok((name.clone(), values))
        };
        let columns = file.names().iter().map(column).collect::<Result<_>>()?;
        Ok(FinishedRows { about, columns })
    }
}

impl RowStore for FinishedFile {
    fn read(&self) -> Result<Option<FinishedRows<'static>>> {
        if self.path.exists() { self.read_file().map(Some) } else { Ok(None) }
    }

    fn write(&self, rows: &FinishedRows) -> Result<()> {
        let about = serde_json::to_string(&rows.about).map_err(|source| Error::Io {
            doing: "cannot write",
            path: self.path.clone(),
            source: source.into(),
        })?;
        // What has eight bytes a number comes first, so that all are aligned.
        let is_narrow = |column: &&(String, FinishedColumn)| matches!(column.1, FinishedColumn::F32(_));
        let (narrow, wide): (Vec<_>, Vec<_>) = rows.columns.iter().partition(is_narrow);
        let numbers = |(name, column)| -> (&str, Numbers) {
            let (name, column): (&String, &FinishedColumn) = (name, column);
            let numbers = match column {
                FinishedColumn::I64(values) => Numbers::I64(values),
                FinishedColumn::F64(values) => Numbers::F64(values),
                FinishedColumn::F32(values) => Numbers::F32(values),
            };
            (name, numbers)
        };
        let columns: Vec<(&str, Numbers)> =
            wide.into_iter().chain(narrow).map(|(name, column)| numbers((name, column))).collect();
        write_columns(&self.path, &about, &columns)
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn every(&self) -> Duration {
        self.every
    }
}
