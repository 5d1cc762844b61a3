//! Where commands write what is asked for: what an output may be called and lie, before the work.

use std::io::{Error as IoError, ErrorKind, Write};
use std::path::Path;

use crate::export::{check_not_list, raw, replace_file};
use crate::input::is_stream;
use crate::{Error, Result};

/// Checks that a JSON graph may be written to a file: its ending is `.json` or it has none, it is not the list of a
/// folder's graphs, and no raw graph, which holds more, is there.
///
/// # Errors
/// [`Error::Spec`], [`Error::FileName`], [`Error::RawInTheWay`].
pub fn check_json_output(path: &Path) -> Result<()> {
    // The summary goes to standard output, and the two would be one text there.
    if path.as_os_str() == "-" {
        let expected = "a file to write to: standard output has the summary";
        return Err(Error::Spec { text: "-".to_owned(), expected });
    }
    // A pipe or a device is called as the system likes.
    if is_stream(path) {
        return Ok(());
    }
    if path.extension().is_some_and(|ending| !ending.eq_ignore_ascii_case("json")) {
        let expected = "a name that ends in .json: a JSON graph is written";
        return Err(Error::Spec { text: path.display().to_string(), expected });
    }
    let stem = path.file_stem().map(|stem| stem.to_string_lossy()).unwrap_or_default();
    if path.extension().is_some() {
        check_not_list(&stem).map_err(|problem| Error::FileName { name: path.display().to_string(), problem })?;
    }
    match raw::looks_raw(path) {
        Some(true) => Err(Error::RawInTheWay { file: path.to_owned() }),
        _ => Ok(()),
    }
}

/// Checks that a drawing goes into a file that is called one, in a folder that is there.
///
/// # Errors
/// [`Error::Spec`]; as [`check_folder`].
pub(super) fn check_drawing(path: &Path) -> Result<()> {
    let is_drawing = |ending: &std::ffi::OsStr| ["svg", "png"].iter().any(|known| ending.eq_ignore_ascii_case(known));
    let is_device = is_stream(path) && path.exists();
    if !is_device && !path.extension().is_some_and(is_drawing) {
        let expected = "a name whose ending says what to draw: .svg, .png";
        return Err(Error::Spec { text: path.display().to_string(), expected });
    }
    check_folder(path)
}

/// Checks that the folder of a picture or a table is there: unlike those of graphs it is not made, so that a mistyped
/// path makes none.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn check_folder(path: &Path) -> Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
        let source = IoError::new(ErrorKind::NotFound, format!("no folder `{}`", folder.display()));
        return Err(Error::Io { doing: "cannot write", path: path.to_owned(), source });
    }
    Ok(())
}

/// Writes a picture or a table.
///
/// # Errors
/// As [`check_folder`]; the file cannot be written.
pub(super) fn write_picture(path: &Path, bytes: &[u8]) -> Result<()> {
    check_folder(path)?;
    replace_file(path, |writer| writer.write_all(bytes))
}
