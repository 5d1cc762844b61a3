//! Repositories of the Hugging Face Hub, through its ordinary cache.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};

/// Where the Hub is when HF_ENDPOINT does not say.
const ENDPOINT: &str = "https://huggingface.co";

/// How long the Hub may stay silent when HF_HUB_DOWNLOAD_TIMEOUT does not say.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Where the Hub and its cache are, and whether the network may be used.
#[derive(Debug, Clone, PartialEq)]
pub struct Hub {
    /// Folder of the cache, as `huggingface_hub` lays it out.
    pub cache: PathBuf,
    /// Use nothing but the cache.
    pub offline: bool,
    /// Scheme and host, as `https://huggingface.co`.
    pub endpoint: String,
    /// Sent to `endpoint` and nowhere else.
    pub token: Option<Token>,
    /// Longest silence of a server before a request fails.
    pub timeout: Duration,
}

/// An access token of the Hub; messages never show it.
#[derive(Clone, PartialEq)]
pub struct Token(String);

impl Token {
    /// `None` for one of white space alone.
    pub fn new(token: &str) -> Option<Self> {
        let token = token.trim();
        (!token.is_empty()).then(|| Self(token.to_owned()))
    }

    /// The token itself.
    #[cfg(feature = "hub")]
    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Hub {
    /// As the environment says, in the words of `huggingface_hub`: `HF_HUB_CACHE`, else `HF_HOME/hub`, else
    /// `~/.cache/huggingface/hub`; `HF_HUB_OFFLINE`; `HF_ENDPOINT`; `HF_TOKEN`, else the file `HF_TOKEN_PATH` or
    /// `HF_HOME/token`, unless `HF_HUB_DISABLE_IMPLICIT_TOKEN`; `HF_HUB_DOWNLOAD_TIMEOUT` in seconds.
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// As [`Hub::from_env`], with given variables.
    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let given = |name: &str| variable(name).filter(|value| !value.is_empty());
        let is_on = |name: &str| {
            let value = given(name).unwrap_or_default().to_ascii_lowercase();
            matches!(value.as_str(), "1" | "true" | "yes" | "on")
        };
        let home = given("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
            let home = given("HOME").map(PathBuf::from).or_else(std::env::home_dir).unwrap_or_default();
            given("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from).join("huggingface")
        });
        let cache = given("HF_HUB_CACHE").or_else(|| given("HUGGINGFACE_HUB_CACHE"));
        let token = || {
            let named = given("HF_TOKEN").as_deref().and_then(Token::new);
            let path = given("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
            named.or_else(|| Token::new(&std::fs::read_to_string(path).ok()?))
        };
        let timeout = given("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|secs| secs.parse().ok()).filter(|&secs| secs > 0);
        Self {
            cache: cache.map_or_else(|| home.join("hub"), PathBuf::from),
            offline: is_on("HF_HUB_OFFLINE"),
            endpoint: given("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into()).trim_end_matches('/').to_owned(),
            token: if is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") { None } else { token() },
            timeout: timeout.map_or(TIMEOUT, Duration::from_secs),
        }
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
        let repo = self.cache_folder();
        let is_commit = self.revision.len() == 40 && self.revision.bytes().all(|b| b.is_ascii_hexdigit());
        let commit = if is_commit {
            self.revision.clone()
        } else {
            std::fs::read_to_string(repo.join("refs").join(&self.revision)).ok()?.trim().to_string()
        };
        let snapshot = repo.join("snapshots").join(commit);
        snapshot.is_dir().then_some(snapshot)
    }

    /// The repository's folder in the cache: `refs/REVISION`, `snapshots/COMMIT/FILE`, `blobs/ETAG`.
    fn cache_folder(&self) -> PathBuf {
        self.hub.cache.join(format!("models--{}--{}", self.owner, self.name))
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
        // Files of one model must come from one commit: once a snapshot is there, the rest is fetched from it.
        let commit = snapshot.and_then(|s| s.file_name()).and_then(|s| s.to_str());
        let repo = format!("{}/{}", self.owner, self.name);
        let revision = commit.unwrap_or(&self.revision);
        #[cfg(feature = "hub")]
        let fetched = super::hub_client::fetch(&self.hub, &self.cache_folder(), &repo, revision, file);
        #[cfg(not(feature = "hub"))]
        let fetched = Err(format!(
            "revision `{revision}` has no such file in the cache, and this build cannot download (feature `hub`)"
        ));
        fetched.map_err(|reason| Error::Hub { repo, revision: self.revision.clone(), file: file.to_string(), reason })
    }
}

/// Whether the Hub was asked before and has no such file: the cache keeps a mark.
fn is_known_to_lack(snapshot: &Path, file: &str) -> bool {
    let commit = snapshot.file_name();
    let repo = snapshot.parent().and_then(Path::parent);
    repo.zip(commit).is_some_and(|(repo, commit)| repo.join(".no_exist").join(commit).join(file).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(variables: &[(&str, &str)]) -> Hub {
        Hub::from_variables(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn the_environment_is_read_as_huggingface_hub_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        let plain = hub(&[("HOME", "/home/me")]);
        assert_eq!(plain.cache, Path::new("/home/me/.cache/huggingface/hub"));
        assert_eq!((plain.endpoint.as_str(), plain.offline, plain.token), (ENDPOINT, false, None));
        assert_eq!(hub(&[("XDG_CACHE_HOME", "/x")]).cache, Path::new("/x/huggingface/hub"));
        assert_eq!(hub(&[("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).cache, Path::new("/h/hub"));
        assert_eq!(hub(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")]).cache, Path::new("/c"));
        assert_eq!(hub(&[("HF_HOME", home)]).token, Token::new("hf_file"));
        assert_eq!(hub(&[("HF_HOME", home), ("HF_TOKEN", " hf_named ")]).token, Token::new("hf_named"));
        assert_eq!(hub(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).token, None);
        assert_eq!(hub(&[("HF_TOKEN_PATH", &format!("{home}/token"))]).token, Token::new("hf_file"));
        assert_eq!(hub(&[("HF_ENDPOINT", "http://mirror/")]).endpoint, "http://mirror");
        assert_eq!(hub(&[("HF_HUB_DOWNLOAD_TIMEOUT", "7")]).timeout, Duration::from_secs(7));
        for (value, offline) in [("1", true), ("True", true), ("on", true), ("0", false), ("", false)] {
            assert_eq!(hub(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value}");
        }
    }

    #[test]
    fn messages_never_show_the_token() {
        let shown = format!("{:?}", hub(&[("HF_TOKEN", "hf_secret")]));
        assert!(shown.contains("Token(..)") && !shown.contains("secret"), "{shown}");
    }
}
