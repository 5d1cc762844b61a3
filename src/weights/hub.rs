//! Repositories of the Hugging Face Hub, through its ordinary cache.

use std::path::{Path, PathBuf};

use hf_hub::{HFClient, HFError};

use crate::error::{Error, Result};

/// Where the Hub's cache is and whether the network may be used.
#[derive(Debug, Clone, PartialEq)]
pub struct Hub {
    pub cache: PathBuf,
    pub offline: bool,
}

impl Hub {
    /// As the environment says: `HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub`; `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        let offline = std::env::var("HF_HUB_OFFLINE").unwrap_or_default().to_ascii_lowercase();
        Self { cache: hf_hub::resolve_cache_dir(), offline: matches!(offline.as_str(), "1" | "true" | "yes" | "on") }
    }
}

/// A repository at a revision.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Repo {
    hub: Hub,
    owner: String,
    name: String,
    revision: String,
    /// The part of the repository that is meant, empty or ending in `/`.
    folder: String,
}

impl Repo {
    /// `org/name[@revision]`; `None` for anything else.
    pub fn parse(spec: &str, hub: &Hub) -> Option<Self> {
        let (id, revision) = spec.split_once('@').unwrap_or((spec, "main"));
        let (owner, name) = id.split_once('/')?;
        // Words that cannot lead out of the cache folder.
        let word = |s: &str| {
            !s.is_empty() && !s.starts_with('.') && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let is_repo = word(owner) && word(name) && revision.split('/').all(word);
        let [owner, name, revision] = [owner, name, revision].map(str::to_string);
        is_repo.then(|| Self { hub: hub.clone(), owner, name, revision, folder: String::new() })
    }

    /// `hf://org/name/path`, and the path; with a revision as `?revision=R` (as published lists of transcoders have
    /// it) or `@R` at the end.
    pub fn parse_url(url: &str, hub: &Hub) -> Option<(Self, String)> {
        let rest = url.strip_prefix("hf://")?;
        let revised = rest.split_once("?revision=").or_else(|| rest.split_once('@'));
        let (rest, revision) = revised.unwrap_or((rest, "main"));
        let mut words = rest.splitn(3, '/');
        let (owner, name, file) = (words.next()?, words.next()?, words.next()?);
        // Published lists hold paths with doubled slashes; none may lead out of the repository.
        let file = file.trim_start_matches('/');
        let leads_out = file.split('/').any(|word| word == "..");
        let repo = Self::parse(&format!("{owner}/{name}@{revision}"), hub)?;
        (!leads_out).then(|| (repo, file.to_string()))
    }

    /// A folder of a repository, `hf://org/name/folder`, revision as for [`Repo::parse_url`].
    pub fn parse_folder(url: &str, hub: &Hub) -> Option<Self> {
        let (repo, folder) = Self::parse_url(url, hub)?;
        let folder = folder.trim_end_matches('/');
        Some(Self { folder: if folder.is_empty() { String::new() } else { format!("{folder}/") }, ..repo })
    }

    /// The folder of this repository's part in the cache, when it is there.
    pub fn cached_folder(&self) -> Option<PathBuf> {
        self.snapshot().map(|snapshot| snapshot.join(&self.folder)).filter(|folder| folder.is_dir())
    }

    /// The folder of this revision's files, when there is one in the cache.
    pub fn snapshot(&self) -> Option<PathBuf> {
        let repo = self.hub.cache.join(format!("models--{}--{}", self.owner, self.name));
        let is_commit = self.revision.len() == 40 && self.revision.bytes().all(|b| b.is_ascii_hexdigit());
        let commit = if is_commit {
            self.revision.clone()
        } else {
            std::fs::read_to_string(repo.join("refs").join(&self.revision)).ok()?.trim().to_string()
        };
        let snapshot = repo.join("snapshots").join(commit);
        snapshot.is_dir().then_some(snapshot)
    }

    /// Whether the network may be used.
    pub fn is_offline(&self) -> bool {
        self.hub.offline
    }

    /// A file's path in the cache, where it is fetched to if need be; `None` when the repository has no such file.
    /// Offline, a file that is not in the cached snapshot counts as none.
    ///
    /// # Errors
    /// [`Error::NotCached`] offline, when nothing of this revision is cached; [`Error::Hub`].
    pub fn file(&self, file: &str) -> Result<Option<PathBuf>> {
        let file = &format!("{}{file}", self.folder);
        let snapshot = self.snapshot();
        if let Some(path) = snapshot.as_deref().map(|s| s.join(file)).filter(|p| p.is_file()) {
            return Ok(Some(path));
        }
        match (self.hub.offline, snapshot) {
            (_, Some(snapshot)) if is_known_to_lack(&snapshot, file) => Ok(None),
            (true, Some(_)) => Ok(None),
            (true, None) => Err(self.not_cached(file)),
            (false, snapshot) => self.fetch(file, snapshot.as_deref()),
        }
    }

    /// The error for a file that must be there, when the network may not be used.
    pub fn not_cached(&self, file: &str) -> Error {
        Error::NotCached {
            repo: format!("{}/{}", self.owner, self.name),
            revision: self.revision.clone(),
            file: file.to_string(),
            cache: self.hub.cache.display().to_string(),
        }
    }

    fn fetch(&self, file: &str, snapshot: Option<&Path>) -> Result<Option<PathBuf>> {
        let failed = |e: HFError| Error::Hub {
            repo: format!("{}/{}", self.owner, self.name),
            revision: self.revision.clone(),
            file: file.to_string(),
            reason: e.to_string(),
        };
        // Files of one model must come from one commit: once a snapshot is there, the rest is fetched from it.
        let commit = snapshot.and_then(|s| s.file_name()).and_then(|s| s.to_str());
        let revision = commit.unwrap_or(&self.revision).to_string();
        let client = HFClient::builder().cache_dir(self.hub.cache.clone()).build_sync().map_err(failed)?;
        let repo = client.model(self.owner.clone(), self.name.clone());
        match repo.download_file().filename(file).revision(revision).send() {
            Ok(path) => Ok(Some(path)),
            Err(HFError::EntryNotFound { .. }) => Ok(None),
            Err(e) => Err(failed(e)),
        }
    }
}

/// Whether the Hub was asked before and has no such file: the cache keeps a mark.
fn is_known_to_lack(snapshot: &Path, file: &str) -> bool {
    let commit = snapshot.file_name();
    let repo = snapshot.parent().and_then(Path::parent);
    repo.zip(commit).is_some_and(|(repo, commit)| repo.join(".no_exist").join(commit).join(file).exists())
}
