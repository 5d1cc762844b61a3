//! A set of files under one name: a folder, a Hub repository, or part of the program.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::checkpoint::Checkpoint;
use super::hub::{Hub, Repo};
use super::source::Source;
use crate::error::{Error, Result};
use crate::input::check_is_file;

/// A set of files: a folder on disk, a Hub repository (files are fetched when asked for), or files in the program.
#[derive(Clone)]
pub struct Folder {
    spec: String,
    hub: Hub,
    place: Place,
}

impl std::fmt::Debug for Folder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Folder({})", self.spec)
    }
}

#[derive(Clone)]
enum Place {
    Disk(PathBuf),
    Hub(Repo),
    Static(&'static [(&'static str, &'static [u8])]),
}

impl Folder {
    /// A folder, a Hub id `org/name[@revision]`, or a folder of a Hub repository, `hf://org/name/folder[@revision]`.
    ///
    /// # Errors
    /// [`Error::UnknownSource`]; [`Error::MissingFile`] is left to reading.
    pub fn open(spec: &str) -> Result<Self> {
        Self::open_with(spec, Hub::from_env())
    }

    /// As [`Folder::open`], with a given cache of the Hub.
    ///
    /// # Errors
    /// As [`Folder::open`].
    pub fn open_with(spec: &str, hub: Hub) -> Result<Self> {
        let path = Path::new(spec);
        let place = if path.is_dir() {
            Place::Disk(path.to_path_buf())
        } else if let Some(repo) = Repo::parse_folder(spec, &hub) {
            Place::Hub(repo)
        } else if let (false, Some(repo)) = (path.exists(), Repo::parse(spec, &hub)) {
            Place::Hub(repo)
        } else if path.is_file() {
            let expected = "a folder or a Hub id: it is a file";
            return Err(Error::Spec { text: spec.to_string(), expected });
        } else {
            return Err(Error::UnknownSource { spec: spec.to_string() });
        };
        Ok(Self { spec: spec.to_string(), hub, place })
    }

    /// A folder on disk, which need not look like anything else.
    pub(crate) fn on_disk(path: &Path) -> Self {
        Self { spec: path.display().to_string(), hub: Hub::from_env(), place: Place::Disk(path.to_path_buf()) }
    }

    /// Files that are part of the program: (name, bytes).
    pub fn from_static(spec: &str, files: &'static [(&'static str, &'static [u8])]) -> Self {
        Self { spec: spec.to_string(), hub: Hub::from_env(), place: Place::Static(files) }
    }

    /// How the folder was named when it was opened.
    pub fn spec(&self) -> &str {
        &self.spec
    }

    /// The folder's path, when it is one on disk.
    pub fn path(&self) -> Option<&Path> {
        match &self.place {
            Place::Disk(path) => Some(path),
            _ => None,
        }
    }

    /// Names of the files, sorted, with `/` between folders. For a Hub repository: of those at hand without network.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn list(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        match &self.place {
            Place::Disk(path) => list_into(path, "", 0, &mut names)?,
            Place::Hub(repo) => {
                if let Some(folder) = repo.cached_folder() {
                    list_into(&folder, "", 0, &mut names)?;
                }
            }
            Place::Static(files) => names.extend(files.iter().map(|(name, _)| name.to_string())),
        }
        names.sort();
        Ok(names)
    }

    /// A small file's bytes; `None` when there is no such file.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NotCached`], [`Error::Hub`].
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        if let Place::Static(files) = self.place {
            return Ok(files.iter().find(|(n, _)| *n == name).map(|(_, bytes)| bytes.to_vec()));
        }
        let path = match (self.optional_file(name), &self.place) {
            // No network, but files at hand: what is optional can be done without.
            (Err(Error::Hub { .. }), Place::Hub(repo)) if repo.snapshot().is_some() => None,
            (path, _) => path?,
        };
        let Some(path) = path else { return Ok(None) };
        check_is_file(&path, "a model's or transcoders' file")?;
        std::fs::read(&path).map(Some).map_err(|source| Error::Io { doing: "cannot read", path, source })
    }

    /// A small file's text; `None` when there is no such file.
    ///
    /// # Errors
    /// As [`Folder::read`]; [`Error::Damaged`] when it is not UTF-8.
    pub fn read_text(&self, name: &str) -> Result<Option<String>> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        let text = String::from_utf8(bytes).map_err(|e| self.damaged(name, "text", e.to_string()))?;
        Ok(Some(text))
    }

    /// A small file's JSON; `None` when there is no such file.
    ///
    /// # Errors
    /// As [`Folder::read`]; [`Error::Damaged`] when it is not JSON.
    pub fn read_json(&self, name: &str) -> Result<Option<serde_json::Value>> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        let json = serde_json::from_slice(&bytes).map_err(|e| self.damaged(name, "JSON", e.to_string()))?;
        Ok(Some(json))
    }

    fn damaged(&self, name: &str, format: &'static str, reason: String) -> Error {
        Error::Damaged { file: self.shown(name), format, reason }
    }

    /// A file's name as messages show it.
    pub fn shown(&self, name: &str) -> String {
        match &self.place {
            Place::Disk(path) => path.join(name).display().to_string(),
            _ => format!("{}/{name}", self.spec),
        }
    }

    /// The error for a file that must be there.
    pub fn missing(&self, name: &str) -> Error {
        match &self.place {
            Place::Hub(repo) if repo.is_offline() => repo.not_cached(name),
            _ => Error::MissingFile { file: name.to_string(), folder: self.spec.clone() },
        }
    }

    /// A file's path on disk, fetched if need be. `hf://org/name/path` names a file of another repository, as published
    /// lists of transcoders do.
    ///
    /// # Errors
    /// [`Error::MissingFile`], [`Error::NotCached`], [`Error::Hub`].
    pub fn file(&self, name: &str) -> Result<PathBuf> {
        self.optional_file(name)?.ok_or_else(|| self.missing(name))
    }

    /// A file's bytes: mapped, or part of the program.
    ///
    /// # Errors
    /// As [`Folder::file`].
    pub(super) fn source(&self, name: &str) -> Result<Arc<Source>> {
        if let Place::Static(files) = self.place {
            let file = files.iter().find(|(n, _)| *n == name).ok_or_else(|| self.missing(name))?;
            return Ok(Source::embedded(&self.shown(name), file.1));
        }
        Source::map(&self.file(name)?)
    }

    fn optional_file(&self, name: &str) -> Result<Option<PathBuf>> {
        if let Some((repo, file)) = Repo::parse_url(name, &self.hub) {
            return repo.file(&file);
        }
        match &self.place {
            Place::Disk(folder) => {
                let path = folder.join(name);
                Ok(path.is_file().then_some(path))
            }
            Place::Hub(repo) => repo.file(name),
            Place::Static(_) => Ok(None),
        }
    }

    /// The tensors of one file, `.safetensors` or `.npz`.
    ///
    /// # Errors
    /// As [`Folder::file`], [`Checkpoint::open_safetensors`] and [`Checkpoint::open_npz`].
    pub fn checkpoint(&self, name: &str) -> Result<Checkpoint> {
        self.checkpoints(&[name])
    }

    /// The tensors of several `.safetensors` files, or of one `.npz`.
    ///
    /// # Errors
    /// As [`Folder::checkpoint`].
    pub fn checkpoints(&self, names: &[&str]) -> Result<Checkpoint> {
        if let Place::Static(files) = self.place {
            let found: Vec<(&str, &[u8])> = files.iter().filter(|(n, _)| names.contains(n)).copied().collect();
            return match names.iter().find(|name| !found.iter().any(|(n, _)| n == *name)) {
                Some(name) => Err(self.missing(name)),
                None => Checkpoint::from_static(&found),
            };
        }
        let paths = names.iter().map(|name| self.file(name)).collect::<Result<Vec<_>>>()?;
        match &paths[..] {
            [path] if path.extension().is_some_and(|e| e == "npz") => Checkpoint::open_npz(path),
            _ => Checkpoint::open_safetensors(&paths),
        }
    }
}

/// Folders below a folder that are looked into; links could make a circle.
const MAX_DEPTH: usize = 4;

fn list_into(folder: &Path, prefix: &str, depth: usize, names: &mut Vec<String>) -> Result<()> {
    let io = |source| Error::Io { doing: "cannot list", path: folder.to_path_buf(), source };
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if !entry.path().is_dir() {
            names.push(name);
        } else if depth < MAX_DEPTH {
            list_into(&entry.path(), &format!("{name}/"), depth + 1, names)?;
        }
    }
    Ok(())
}
