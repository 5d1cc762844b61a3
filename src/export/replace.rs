//! Files that are there whole or not at all: with `temporary`, the one place where this program opens a file for
//! writing.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::temporary::Temporary;
use crate::{Error, Result};

const BUFFER_BYTES: usize = 1 << 20;

/// Links to links that are followed; the systems themselves stop there.
const MAX_LINKS: usize = 40;

/// Checks that files can be made in a folder, before hours of work; makes the folder.
///
/// # Errors
/// The folder cannot be made or written.
pub fn check_writable(folder: &Path) -> Result<()> {
    make_folder(folder)?;
    Temporary::new(folder).map(drop).map_err(|source| Error::Io {
        doing: "cannot write to",
        path: folder.to_owned(),
        source,
    })
}

fn make_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|source| Error::Io {
        doing: "cannot make the folder",
        path: folder.to_owned(),
        source,
    })
}

/// Checks that a file which is to be written is none of those that are read: not by another name, a symbolic or a hard
/// link either. Pipes, devices and what is not there yet overwrite nothing.
///
/// # Errors
/// [`Error::OwnInput`].
pub fn check_not_input(output: &Path, inputs: &[&Path]) -> Result<()> {
    for input in inputs {
        if is_same_file(output, input) {
            return Err(Error::OwnInput { output: output.to_owned(), input: (*input).to_owned() });
        }
    }
    Ok(())
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    let (Ok(found_a), Ok(found_b)) = (a.metadata(), b.metadata()) else { return false };
    if !found_a.is_file() || !found_b.is_file() {
        return false;
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        (found_a.dev(), found_a.ino()) == (found_b.dev(), found_b.ino())
    }
    #[cfg(not(unix))]
    {
        matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
    }
}

/// Holds off other programs that write files which belong together into `folder`, until the lock is dropped or this
/// program ends. `None` where the system or the file system has no such locks: what a lock would tell apart, the ids in
/// the files still do.
pub fn lock_folder(folder: &Path) -> Option<File> {
    let lock = File::open(folder).ok()?;
    lock.lock().ok()?;
    Some(lock)
}

/// Moves the files of a folder to another one of the same file system, over those of their names. `seal` says that the
/// others are there: it is removed first and comes last, so that files of two sets are never taken for one.
///
/// # Errors
/// A file cannot be moved.
pub fn replace_set(from: &Path, to: &Path, seal: &str) -> Result<()> {
    let failed = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { doing, path, source }
    };
    let entries = std::fs::read_dir(from).and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>());
    let mut names: Vec<_> = entries.map_err(failed("cannot list", from))?.iter().map(|e| e.file_name()).collect();
    names.sort_by_key(|name| (name == seal, name.clone()));
    match std::fs::remove_file(to.join(seal)) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed("cannot replace", &to.join(seal))(source));
        }
        _ => {}
    }
    for name in names {
        std::fs::rename(from.join(&name), to.join(&name)).map_err(failed("cannot replace", &to.join(&name)))?;
    }
    Ok(())
}

/// Writes `path` with `write`: first beside it, then renamed, so that a reader never sees half a file and a file that
/// was there stays until the new one is complete. Folders that are missing are made.
///
/// A link stays a link and the file that it leads to is written; a file that was there keeps its permissions; a pipe or
/// a device (`/dev/stdout`) is written through, since nothing can take its place.
///
/// # Errors
/// The folder cannot be made or written, or `write` fails; nothing is left behind then.
pub fn replace_file(path: &Path, write: impl FnOnce(&mut BufWriter<&File>) -> std::io::Result<()>) -> Result<()> {
    let failed = |source| Error::Io { doing: "cannot write", path: path.to_owned(), source };
    let before = std::fs::metadata(path).ok();
    if let Some(before) = before.as_ref().filter(|before| !is_replaceable(path, before)) {
        // What leads to a file (`/dev/stdout >> log`) is written after what the file holds, not over it.
        let device = OpenOptions::new().write(true).append(before.is_file()).open(path).map_err(failed)?;
        return fill(&device, write).map_err(failed);
    }
    let path = end_of_links(path);
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    make_folder(folder)?;
    let file = Temporary::new(folder).map_err(failed)?;
    fill(file.file(), write).map_err(failed)?;
    if let Some(before) = before {
        file.set_permissions(before.permissions()).map_err(failed)?;
    }
    file.persist(&path).map_err(failed)
}

fn fill(file: &File, write: impl FnOnce(&mut BufWriter<&File>) -> std::io::Result<()>) -> std::io::Result<()> {
    let mut writer = BufWriter::with_capacity(BUFFER_BYTES, file);
    write(&mut writer).and_then(|()| writer.flush())
}

/// Whether another file can take the place of what is at `path`. What the system lists among its devices cannot be
/// replaced, even where it leads to a file: the program that opened that file would not see the new one. Below `/dev/shm`
/// are ordinary files, in memory. A folder is no file either, but renaming says so.
fn is_replaceable(path: &Path, before: &Metadata) -> bool {
    let is_listed = (path.starts_with("/dev") && !path.starts_with("/dev/shm")) || path.starts_with("/proc");
    (before.is_file() && !is_listed) || before.is_dir()
}

/// Where a chain of symbolic links ends, also where no file is there yet.
fn end_of_links(path: &Path) -> PathBuf {
    let mut end = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(next) = std::fs::read_link(&end) else { break };
        // A relative link is meant from its own folder.
        end = end.parent().map_or_else(|| next.clone(), |folder| folder.join(&next));
    }
    end
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
        assert!(matches!(replace_file(folder.path(), |_| Ok(())), Err(Error::Io { .. })));
    }

    #[test]
    #[cfg(unix)]
    fn links_are_followed_and_permissions_kept() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let (file, link, dangling) =
            (folder.path().join("file"), folder.path().join("link"), folder.path().join("dangling"));
        std::fs::write(&file, b"old").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
        symlink("file", &link).unwrap();
        symlink("later", &dangling).unwrap();
        replace_file(&link, |w| w.write_all(b"new")).unwrap();
        replace_file(&dangling, |w| w.write_all(b"there")).unwrap();
        assert!(link.is_symlink() && dangling.is_symlink());
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(std::fs::read(folder.path().join("later")).unwrap(), b"there");
    }

    #[test]
    #[cfg(unix)]
    fn devices_are_written_through() {
        replace_file(Path::new("/dev/null"), |w| w.write_all(b"gone")).unwrap();
        assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn files_in_shared_memory_are_replaced_whole() {
        // Some containers have none.
        let Ok(folder) = tempfile::tempdir_in("/dev/shm") else { return };
        let path = folder.path().join("graph.json");
        replace_file(&path, |w| w.write_all(b"an old file that is longer")).unwrap();
        let reader = File::open(&path).unwrap();
        replace_file(&path, |w| w.write_all(b"new")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::io::read_to_string(reader).unwrap(), "an old file that is longer");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_leads_to_an_open_file_is_written_after_what_that_holds() {
        use std::os::fd::AsRawFd;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, b"what was said before\n").unwrap();
        let file = File::open(&path).unwrap();
        let listed = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        replace_file(&listed, |w| w.write_all(b"new\n")).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "what was said before\nnew\n");
    }
}
