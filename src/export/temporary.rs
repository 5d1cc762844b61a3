//! Files that are not complete yet: known while they are written, so that a signal that ends the program can remove
//! them, and locked, so that a later run can tell those of a process that was killed from those of one that lives.
//!
//! A lock is the one thing that goes with a process however it ends, in other containers and on other machines too; a
//! process number says nothing there.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempPath;

/// Marks files that are not complete yet.
const PREFIX: &str = ".circuitscope-";

/// New files that are taken for dead by somebody who looks between their making and their locking, in a row.
const MAX_TRIES: usize = 100;

/// What this process has under way.
#[derive(Debug, Default)]
struct UnderWay {
    files: BTreeSet<PathBuf>,
    /// Folders whose dead files were removed.
    tidied: BTreeSet<PathBuf>,
}

static UNDER_WAY: Mutex<UnderWay> = Mutex::new(UnderWay { files: BTreeSet::new(), tidied: BTreeSet::new() });

fn under_way() -> MutexGuard<'static, UnderWay> {
    UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file that is written beside the place that it is for; removed unless [`Temporary::persist`] moves it there.
#[derive(Debug)]
pub(super) struct Temporary {
    /// Its lock is held as long as it is open.
    file: File,
    /// `None` once it was moved or removed.
    path: Option<TempPath>,
}

impl Temporary {
    /// Makes one in `folder`, where those that dead processes left behind are removed first.
    ///
    /// # Errors
    /// Those of the system.
    pub fn new(folder: &Path) -> std::io::Result<Self> {
        // The lock is held until the file is known: whoever ends the program waits for that.
        let mut under_way = under_way();
        if under_way.tidied.insert(folder.to_owned()) {
            remove_dead(folder);
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX);
        // Temporary files are private by default; these become ordinary files, as far as the umask lets them.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        for _ in 0..MAX_TRIES {
            let (file, path) = builder.tempfile_in(folder)?.into_parts();
            // File systems without locks have no dead files removed either.
            let _ = file.lock();
            if is_there(&file)? {
                under_way.files.insert(path.to_path_buf());
                return Ok(Self { file, path: Some(path) });
            }
        }
        Err(std::io::Error::other("new files are removed by somebody else"))
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn set_permissions(&self, permissions: Permissions) -> std::io::Result<()> {
        self.file.set_permissions(permissions)
    }

    /// Moves the file to its place, over what is there.
    ///
    /// # Errors
    /// Those of the system; the file is removed then.
    pub fn persist(mut self, place: &Path) -> std::io::Result<()> {
        let mut under_way = under_way();
        let Some(path) = self.path.take() else { return Ok(()) };
        let known = path.to_path_buf();
        let moved = path.persist(place).map_err(|failed| failed.error);
        under_way.files.remove(&known);
        moved
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            let mut under_way = under_way();
            under_way.files.remove(path.as_ref() as &Path);
            // Nothing can be done where a file cannot be removed.
            let _ = path.close();
        }
    }
}

/// Whether a file still has its name: it has lost it where another process took it for dead before it was locked.
#[cfg(unix)]
fn is_there(file: &File) -> std::io::Result<bool> {
    Ok(std::os::unix::fs::MetadataExt::nlink(&file.metadata()?) > 0)
}

/// Other systems do not remove files that are open.
#[cfg(not(unix))]
fn is_there(_: &File) -> std::io::Result<bool> {
    Ok(true)
}

/// Removes all that is under way, for a program that is about to end, and then calls `end`: no file is begun or moved
/// in between.
pub fn abandon_files(end: impl FnOnce()) {
    let under_way = under_way();
    for path in &under_way.files {
        let _ = std::fs::remove_file(path);
    }
    end();
}

/// Removes the files of dead processes in a folder: those that nobody has locked.
fn remove_dead(folder: &Path) {
    let Ok(entries) = folder.read_dir() else { return };
    for entry in entries.flatten() {
        let is_ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        // A link or a pipe of that name is not of this program.
        if !is_ours || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let path = entry.path();
        // Some file systems lock only what can be written.
        let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else { continue };
        match file.try_lock() {
            // Removed while the lock is held: who has just made it sees that it is gone, and makes another.
            Ok(()) => _ = std::fs::remove_file(&path),
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_dead_go_and_those_of_the_living_stay() {
        let folder = tempfile::tempdir().unwrap();
        let names = || {
            let mut names: Vec<_> = folder.path().read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let living = Temporary::new(folder.path()).unwrap();
        std::fs::write(folder.path().join(".circuitscope-dead"), b"half").unwrap();
        std::fs::write(folder.path().join(".other-file"), b"whole").unwrap();
        std::fs::create_dir(folder.path().join(".circuitscope-folder")).unwrap();
        assert_eq!(names().len(), 4);
        remove_dead(folder.path());
        let left = names();
        assert_eq!(left.len(), 3, "{left:?}");
        assert!(!left.iter().any(|name| name == ".circuitscope-dead"));
        drop(living);
        assert_eq!(names().len(), 2);
    }

    #[test]
    fn what_was_moved_to_its_place_is_no_longer_under_way() {
        let folder = tempfile::tempdir().unwrap();
        let file = Temporary::new(folder.path()).unwrap();
        let path = file.path.as_ref().unwrap().to_path_buf();
        assert!(under_way().files.contains(&path));
        file.persist(&folder.path().join("graph.json")).unwrap();
        assert!(!under_way().files.contains(&path));
        assert!(folder.path().join("graph.json").is_file());
    }
}
