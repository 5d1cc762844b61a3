//! Fetches one file of the Hub into the cache that `huggingface_hub` and every program built on it share.
//!
//! A request for the file's head tells its commit, its etag and its size; then its bytes go to `blobs/ETAG.incomplete`,
//! from where an earlier attempt ended, and the whole file to `blobs/ETAG`, which `snapshots/COMMIT/FILE` links to.
//!
//! Source: huggingface_hub, `file_download.py` and the guide "Manage huggingface_hub cache-system".

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::hub::Hub;

/// Redirects that are followed for one request.
const MAX_REDIRECTS: usize = 10;

/// The path of a file in the cache, after it was fetched; `None` when the repository has no such file. `folder` is the
/// repository's in the cache, `repo` is `owner/name`.
///
/// # Errors
/// What went wrong, in words: no connection, no access, no such repository or revision, a broken download, a full disk.
/// What was fetched so far stays for the next attempt, under a name that no reader takes for the file's.
pub(super) fn fetch(
    hub: &Hub,
    folder: &Path,
    repo: &str,
    revision: &str,
    file: &str,
) -> Result<Option<PathBuf>, String> {
    if !file.split('/').all(is_safe_name) {
        return Err(format!("`{file}` is no path inside of a repository"));
    }
    let client = Client::new(hub);
    let url = format!("{}/{repo}/resolve/{}/{}", hub.endpoint, escaped(revision, ""), escaped(file, "/"));
    let found = match client.look_up(&url)? {
        Lookup::Found(found) => found,
        Lookup::NoSuchFile { commit } => {
            if let Some(commit) = commit {
                let mark = folder.join(".no_exist").join(commit).join(file);
                make_parent(&mark)?;
                File::create(&mark).map_err(failed("cannot write", &mark))?;
            }
            return Ok(None);
        }
    };
    let blob = folder.join("blobs").join(&found.etag);
    make_parent(&blob)?;
    {
        let _lock = lock(hub, folder, &found.etag)?;
        if !blob.is_file() {
            let beside = incomplete(&blob);
            client.download(&found, &beside)?;
            std::fs::rename(&beside, &blob).map_err(failed("cannot write", &blob))?;
        }
    }
    let path = folder.join("snapshots").join(&found.commit).join(file);
    make_parent(&path)?;
    if !path.is_file() {
        link(&found.etag, &blob, &path, file)?;
    }
    // Last, so that a revision never names a snapshot that is not there.
    if revision != found.commit {
        let reference = folder.join("refs").join(revision);
        make_parent(&reference)?;
        put_whole(&reference, |beside| beside.write_all(found.commit.as_bytes()))?;
    }
    Ok(Some(path))
}

/// What the Hub says about a file.
struct Found {
    /// Where its bytes are: often not on the Hub itself.
    url: String,
    commit: String,
    etag: String,
    size_bytes: Option<u64>,
}

enum Lookup {
    Found(Found),
    NoSuchFile { commit: Option<String> },
}

struct Client<'a> {
    hub: &'a Hub,
    agent: Agent,
}

impl<'a> Client<'a> {
    fn new(hub: &'a Hub) -> Self {
        // The system's certificates, so that a company's own are trusted where its other programs trust them.
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Redirects are followed here, where it is known who may see the token.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(hub.timeout))
            .timeout_recv_response(Some(hub.timeout))
            .timeout_per_read(Some(hub.timeout))
            .user_agent(concat!("circuitscope/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls)
            .build();
        Self { hub, agent: config.new_agent() }
    }

    /// Asks for a file's head. The answer is the Hub's own, not that of the store where it may send us for the bytes.
    fn look_up(&self, url: &str) -> Result<Lookup, String> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let request = self.agent.head(&url).header("Accept-Encoding", "identity");
            let request = match self.token_for(&url) {
                Some(token) => request.header("Authorization", token),
                None => request,
            };
            let answer = request.call().map_err(|e| format!("{}: {e}", origin(&url)))?;
            let status = answer.status();
            let headers = answer.headers();
            let commit = header(headers, "x-repo-commit").filter(|c| is_safe_name(c)).map(str::to_owned);
            let target = if status.is_redirection() { Some(redirect_target(&url, headers)?) } else { None };
            if let Some(target) = &target
                && (origin(target) == origin(&url) || commit.is_none())
            {
                // A renamed repository, or a mirror that sends us to the Hub.
                url.clone_from(target);
                continue;
            }
            if status == StatusCode::NOT_FOUND
                && !matches!(header(headers, "x-error-code"), Some("RepoNotFound" | "RevisionNotFound"))
            {
                return Ok(Lookup::NoSuchFile { commit });
            }
            if !status.is_success() && target.is_none() {
                return Err(self.refusal(&url, &answer));
            }
            let length = if target.is_none() { header(headers, "content-length") } else { None };
            let size_bytes = header(headers, "x-linked-size").or(length).and_then(|size| size.parse().ok());
            let etag = header(headers, "x-linked-etag").or(header(headers, "etag"));
            let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
            let (Some(commit), Some(etag)) = (commit, etag.filter(|etag| is_safe_name(etag))) else {
                return Err(format!("{} does not say the file's commit and etag as the Hub does", origin(&url)));
            };
            return Ok(Lookup::Found(Found { url: target.unwrap_or(url), commit, etag, size_bytes }));
        }
        Err(format!("{} redirects more than {MAX_REDIRECTS} times", self.hub.endpoint))
    }

    /// Brings the bytes of a file to `incomplete`, after those that are there. A connection that breaks is replaced as
    /// long as each brings the file further.
    fn download(&self, found: &Found, incomplete: &Path) -> Result<(), String> {
        let options = OpenOptions::new().create(true).append(true).open(incomplete);
        let mut part = options.map_err(failed("cannot write", incomplete))?;
        let mut furthest = 0;
        let mut has_restarted = false;
        loop {
            let mut start = part.metadata().map_err(failed("cannot read", incomplete))?.len();
            if found.size_bytes.is_some_and(|size| start > size) {
                truncate(&part, incomplete)?;
                start = 0;
            }
            if found.size_bytes == Some(start) {
                return part.sync_all().map_err(failed("cannot write", incomplete));
            }
            furthest = furthest.max(start);
            let answer = self.get(&found.url, start)?;
            match answer.status() {
                StatusCode::PARTIAL_CONTENT => {
                    let range = header(answer.headers(), "content-range").unwrap_or_default();
                    if !range.starts_with(&format!("bytes {start}-")) {
                        return Err(format!("{} sends `{range}`, asked for bytes from {start}", origin(&found.url)));
                    }
                }
                StatusCode::OK => {
                    truncate(&part, incomplete)?;
                    start = 0;
                }
                // What is there is of no use to this server: once more from the beginning.
                StatusCode::RANGE_NOT_SATISFIABLE if start > 0 && !has_restarted => {
                    truncate(&part, incomplete)?;
                    (furthest, has_restarted) = (0, true);
                    continue;
                }
                StatusCode::RANGE_NOT_SATISFIABLE => {
                    return Err(format!(
                        "{} has no bytes from {start} on, of {}",
                        origin(&found.url),
                        found.shown_size()
                    ));
                }
                _ => return Err(self.refusal(&found.url, &answer)),
            }
            // One byte more than there must be shows a file that is too long, however long it is.
            let at_most = found.size_bytes.map_or(u64::MAX, |size| size - start + 1);
            let copied = copy(answer, &mut part, at_most);
            let end = part.metadata().map_err(failed("cannot read", incomplete))?.len();
            if found.size_bytes.is_some_and(|size| end > size) {
                truncate(&part, incomplete)?;
                return Err(format!("{} sends more than {}", origin(&found.url), found.shown_size()));
            }
            match (copied, found.size_bytes) {
                (Err(CopyError::Write(e)), _) => return Err(failed("cannot write", incomplete)(e)),
                (Ok(()), None) => return part.sync_all().map_err(failed("cannot write", incomplete)),
                (Ok(()), Some(size)) if end == size => {}
                _ if end > furthest => {}
                (copied, _) => {
                    let reason = match copied {
                        Err(CopyError::Read(e)) => e.to_string(),
                        _ => "the connection was closed".into(),
                    };
                    return Err(format!(
                        "{} broke off after {end} bytes of {}: {reason}; the next attempt goes on from there",
                        origin(&found.url),
                        found.shown_size()
                    ));
                }
            }
        }
    }

    /// Bytes of a file from `start` on, wherever redirects lead.
    fn get(&self, url: &str, start: u64) -> Result<Response<Body>, String> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(&url).header("Accept-Encoding", "identity");
            if start > 0 {
                request = request.header("Range", format!("bytes={start}-"));
            }
            if let Some(token) = self.token_for(&url) {
                request = request.header("Authorization", token);
            }
            let answer = request.call().map_err(|e| format!("{}: {e}", origin(&url)))?;
            if !answer.status().is_redirection() {
                return Ok(answer);
            }
            url = redirect_target(&url, answer.headers())?;
        }
        Err(format!("{} redirects more than {MAX_REDIRECTS} times", origin(&url)))
    }

    /// The token, for the Hub itself alone: stores that it sends us to have their access in the address.
    fn token_for(&self, url: &str) -> Option<String> {
        let token = self.hub.token.as_ref().filter(|_| origin(url) == origin(&self.hub.endpoint))?;
        Some(format!("Bearer {}", token.secret()))
    }

    /// Why a server gave nothing, with its own words where it has some.
    fn refusal(&self, url: &str, answer: &Response<Body>) -> String {
        let status = answer.status();
        let headers = answer.headers();
        let token = if self.hub.token.is_some() { "with the token given" } else { "without a token (HF_TOKEN)" };
        let meaning = match (status, header(headers, "x-error-code")) {
            (_, Some("GatedRepo")) => format!("access must be asked for on the repository's page; {token}"),
            (_, Some("RevisionNotFound")) => "there is no such revision".into(),
            (_, Some("RepoNotFound")) | (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
                format!("there is no such repository, or no access {token}")
            }
            (StatusCode::TOO_MANY_REQUESTS, _) => "too many requests; try again later".into(),
            _ => "it cannot be had now".into(),
        };
        let words = header(headers, "x-error-message").map(|words| format!(" ({words})")).unwrap_or_default();
        format!("{} answers {status}: {meaning}{words}", origin(url))
    }
}

impl Found {
    fn shown_size(&self) -> String {
        self.size_bytes.map_or("unknown length".into(), |size| format!("{size} bytes"))
    }
}

enum CopyError {
    Read(std::io::Error),
    Write(std::io::Error),
}

/// As `std::io::copy`, but says which side failed: a full disk must not read as a broken connection.
fn copy(answer: Response<Body>, to: &mut File, at_most: u64) -> Result<(), CopyError> {
    let mut from = answer.into_body().into_reader().take(at_most);
    let mut buffer = vec![0; 1 << 17];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => std::io::Write::write_all(to, &buffer[..n]).map_err(CopyError::Write)?,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(CopyError::Read(e)),
        }
    }
}

/// One process at a time fetches a file; the others wait and then find it. The lock is `huggingface_hub`'s.
fn lock(hub: &Hub, folder: &Path, etag: &str) -> Result<File, String> {
    let name = folder.file_name().unwrap_or_default();
    let path = hub.cache.join(".locks").join(name).join(format!("{etag}.lock"));
    make_parent(&path)?;
    let file = OpenOptions::new().create(true).append(true).open(&path).map_err(failed("cannot write", &path))?;
    match file.lock() {
        // A file system without locks.
        Err(e) if e.kind() != std::io::ErrorKind::Unsupported => Err(failed("cannot lock", &path)(e)),
        _ => Ok(file),
    }
}

/// Puts a blob into a snapshot: as a relative link, so that the cache can be moved; where there are none, as a copy.
fn link(etag: &str, blob: &Path, path: &Path, file: &str) -> Result<(), String> {
    // A link to a blob that was deleted.
    if path.is_symlink() {
        std::fs::remove_file(path).map_err(failed("cannot replace", path))?;
    }
    let depth = file.split('/').count() + 1;
    let target = format!("{}blobs/{etag}", "../".repeat(depth));
    #[cfg(unix)]
    let linked = std::os::unix::fs::symlink(target, path);
    #[cfg(not(unix))]
    let linked = Err(std::io::Error::other(target));
    match linked {
        Err(_) if !path.is_file() => put_whole(path, |beside| std::io::copy(&mut File::open(blob)?, beside).map(drop)),
        // Another process was faster.
        _ => Ok(()),
    }
}

/// Writes a file beside its place under a name of its own, since others may write the same one now, and renames it.
fn put_whole(path: &Path, write: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<(), String> {
    let failed = failed("cannot write", path);
    let folder = path.parent().unwrap_or(Path::new("."));
    let put = || -> std::io::Result<()> {
        let mut builder = tempfile::Builder::new();
        // Ordinary files, as far as the umask lets them.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut beside = builder.tempfile_in(folder)?;
        write(beside.as_file_mut())?;
        beside.persist(path)?;
        Ok(())
    };
    put().map_err(failed)
}

/// Where a download is while it is not whole.
fn incomplete(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".incomplete");
    path.with_file_name(name)
}

fn truncate(part: &File, path: &Path) -> Result<(), String> {
    part.set_len(0).map_err(failed("cannot write", path))
}

fn make_parent(path: &Path) -> Result<(), String> {
    let parent = path.parent().unwrap_or(path);
    std::fs::create_dir_all(parent).map_err(failed("cannot make the folder", parent))
}

fn failed(doing: &'static str, path: &Path) -> impl Fn(std::io::Error) -> String {
    move |e| format!("{doing} `{}`: {e}", path.display())
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// A name that cannot lead out of its folder.
fn is_safe_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with("..") && name != "." && !name.contains(['/', '\\', '\0'])
}

/// Scheme, host and port of an address.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    url[host..].find(['/', '?', '#']).map_or(url, |end| &url[..host + end])
}

/// Where a redirect leads, from `url`.
fn redirect_target(url: &str, headers: &HeaderMap) -> Result<String, String> {
    let location = header(headers, "location").ok_or_else(|| format!("{} redirects to nowhere", origin(url)))?;
    let scheme = url.split_once("://").map_or("https", |(scheme, _)| scheme);
    let target = if location.contains("://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{}{location}", origin(url))
    } else {
        let folder = url.split('?').next().and_then(|path| path.rsplit_once('/')).map_or(url, |(folder, _)| folder);
        format!("{folder}/{location}")
    };
    if scheme == "https" && !target.starts_with("https://") {
        return Err(format!("{} redirects to `{target}`, which is not https", origin(url)));
    }
    Ok(target)
}

/// A part of an address: bytes other than letters, digits, `-._~` and those in `keep` as `%XX`.
fn escaped(text: &str, keep: &str) -> String {
    let is_kept = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b) || keep.as_bytes().contains(&b);
    text.bytes().map(|b| if is_kept(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart_and_put_together() {
        assert_eq!(origin("https://hub:8443/a/b?c"), "https://hub:8443");
        assert_eq!(origin("http://hub"), "http://hub");
        assert_eq!(escaped("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(escaped("a b/ü.bin", "/"), "a%20b/%C3%BC.bin");
        let to = |location: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("location", location.parse().unwrap());
            redirect_target("https://hub/org/old/resolve/main/f?x=1", &headers)
        };
        for (location, target) in [
            ("/org/new/resolve/main/f", "https://hub/org/new/resolve/main/f"),
            ("https://store/blob?sig=1", "https://store/blob?sig=1"),
            ("//store/blob", "https://store/blob"),
            ("g", "https://hub/org/old/resolve/main/g"),
        ] {
            assert_eq!(to(location).as_deref(), Ok(target));
        }
        assert!(to("http://store/blob").unwrap_err().contains("not https"));
    }

    #[test]
    fn names_that_lead_out_of_the_cache_are_none() {
        for name in ["", ".", "..", "../x", "a/b", "a\\b", "..a"] {
            assert!(!is_safe_name(name), "{name}");
        }
        assert!(is_safe_name("config.json") && is_safe_name(".gitattributes") && is_safe_name("0a1b-c"));
    }
}
