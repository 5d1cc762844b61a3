//! Files that are there whole or not at all.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::{Error, Result};

/// Marks files that are not complete yet.
const TEMPORARY_PREFIX: &str = ".circuitscope-";

const BUFFER_BYTES: usize = 1 << 20;

/// Checks that files can be made in a folder, before hours of work; makes the folder.
///
/// # Errors
/// The folder cannot be made or written.
pub fn check_writable(folder: &Path) -> Result<()> {
    make_folder(folder)?;
    let probe = tempfile::Builder::new().prefix(TEMPORARY_PREFIX).tempfile_in(folder);
    probe.map(drop).map_err(|source| Error::Io { doing: "cannot write to", path: folder.to_owned(), source })
}

fn make_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|source| Error::Io {
        doing: "cannot make the folder",
        path: folder.to_owned(),
        source,
    })
}

/// Writes `path` with `write`: first beside it, then renamed, so that a reader never sees half a file and a file that
/// was there stays until the new one is complete. Folders that are missing are made.
///
/// # Errors
/// The folder cannot be made or written, or `write` fails; nothing is left behind then.
pub fn replace_file(path: &Path, write: impl FnOnce(&mut BufWriter<&File>) -> std::io::Result<()>) -> Result<()> {
    let failed = |doing: &'static str| move |source| Error::Io { doing, path: path.to_owned(), source };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    make_folder(folder)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY_PREFIX);
    // Temporary files are private by default; these become ordinary files, as far as the umask lets them.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let file = builder.tempfile_in(folder).map_err(failed("cannot write"))?;
    let mut writer = BufWriter::with_capacity(BUFFER_BYTES, file.as_file());
    write(&mut writer).and_then(|()| writer.flush()).map_err(failed("cannot write"))?;
    drop(writer);
    file.persist(path).map_err(|e| failed("cannot write")(e.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_write_leaves_the_old_file_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/graph.json");
        replace_file(&path, |w| w.write_all(b"old")).unwrap();
        let interrupted = replace_file(&path, |w| {
            w.write_all(b"half")?;
            Err(std::io::Error::other("interrupted"))
        });
        assert!(matches!(interrupted, Err(Error::Io { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(path.parent().unwrap().read_dir().unwrap().count(), 1);
        replace_file(&path, |w| w.write_all(b"new")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn an_unwritable_folder_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert!(matches!(replace_file(&file.join("graph.json"), |_| Ok(())), Err(Error::Io { .. })));
    }
}
