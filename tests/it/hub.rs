//! Downloads, against a server on this machine that plays the Hub and the store it sends clients to.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use circuitscope::Error;
use circuitscope::weights::{Folder, Hub, Token};
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const ETAG: &str = "c0ffee";

/// A request as the server saw it.
#[derive(Clone, Debug)]
struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first byte that is asked for.
    fn start(&self) -> usize {
        self.header("range").map_or(0, |r| r.strip_prefix("bytes=").unwrap().trim_end_matches('-').parse().unwrap())
    }
}

/// What the server does with a request.
enum Answer {
    /// Status, headers and body, written as they are.
    Send(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// As `Send`, but the connection ends after so many bytes of the body.
    BreakOff(u16, Vec<(&'static str, String)>, Vec<u8>, usize),
    /// Nothing, for longer than the client waits.
    Silence,
}

/// A server on a port of this machine; it ends with the test's process.
struct Server {
    url: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (seen.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, answer) = (log.clone(), answer.clone());
                std::thread::spawn(move || {
                    // Clients that go away early are part of the tests.
                    let _ = serve(stream.unwrap(), &log, answer.as_ref());
                });
            }
        });
        Self { url, seen }
    }

    fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// What was seen, as `METHOD path`.
    fn lines(&self) -> Vec<String> {
        self.seen().iter().map(|r| format!("{} {}", r.method, r.path)).collect()
    }
}

fn serve(stream: TcpStream, log: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Answer) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let request = Request { method, path, headers };
    log.lock().unwrap().push(request.clone());
    let is_head = request.method == "HEAD";
    let (status, headers, body, n_sent) = match answer(&request) {
        Answer::Send(status, headers, body) => (status, headers, body, usize::MAX),
        Answer::BreakOff(status, headers, body, n_sent) => (status, headers, body, n_sent),
        Answer::Silence => {
            // Until the client gives up and closes its side.
            return std::io::copy(&mut &stream, &mut std::io::sink()).map(drop);
        }
    };
    let mut stream = stream;
    let mut head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "Transfer-Encoding") {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    if !is_head {
        stream.write_all(&body[..body.len().min(n_sent)])?;
    }
    Ok(())
}

fn ok(body: &[u8]) -> Answer {
    Answer::Send(200, Vec::new(), body.to_vec())
}

fn status(code: u16, headers: &[(&'static str, &str)]) -> Answer {
    Answer::Send(code, headers.iter().map(|(name, value)| (*name, value.to_string())).collect(), Vec::new())
}

/// The Hub's answer about a small file that it keeps itself.
fn kept(body: &[u8]) -> Answer {
    let headers = vec![("X-Repo-Commit", COMMIT.to_owned()), ("ETag", format!("\"{ETAG}\""))];
    Answer::Send(200, headers, body.to_vec())
}

/// The Hub's answer about a large file: where it is stored.
fn stored(size: usize, location: &str) -> Answer {
    let headers = vec![
        ("X-Repo-Commit", COMMIT.to_owned()),
        ("X-Linked-Etag", format!("\"{ETAG}\"")),
        ("X-Linked-Size", size.to_string()),
        ("ETag", "\"of the redirect\"".to_owned()),
        ("Location", location.to_owned()),
    ];
    Answer::Send(302, headers, Vec::new())
}

/// A store's answer to a request for some of the bytes.
fn part(request: &Request, body: &[u8]) -> (Vec<(&'static str, String)>, Vec<u8>) {
    let start = request.start();
    let range = format!("bytes {start}-{}/{}", body.len() - 1, body.len());
    (vec![("Content-Range", range)], body[start..].to_vec())
}

/// 5000 bytes that differ from each other.
fn body() -> Vec<u8> {
    (0..5000u32).map(|i| (i * i % 251) as u8).collect()
}

fn hub(cache: &TempDir, endpoint: &str) -> Hub {
    Hub {
        cache: cache.path().to_owned(),
        offline: false,
        endpoint: endpoint.to_owned(),
        token: None,
        timeout: Duration::from_secs(20),
    }
}

fn open(hub: &Hub) -> Folder {
    Folder::open_with("org/model", hub.clone()).unwrap()
}

fn repo_folder(cache: &TempDir) -> PathBuf {
    cache.path().join("models--org--model")
}

/// Files and links below a folder, relative to it, sorted; locks and folders left out.
fn files(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, prefix: &str, found: &mut Vec<String>) {
        for entry in folder.read_dir().unwrap().map(Result::unwrap) {
            let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            match entry.file_type().unwrap().is_dir() {
                true => walk(&entry.path(), &format!("{name}/"), found),
                false => found.push(name),
            }
        }
    }
    let mut found = Vec::new();
    if folder.is_dir() {
        walk(folder, "", &mut found);
    }
    found.sort();
    found
}

/// The error of fetching `weights.safetensors` with `answer` as the Hub.
fn refused(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> (String, TempDir, Server) {
    let cache = TempDir::new().unwrap();
    let server = Server::start(answer);
    let error = open(&hub(&cache, &server.url)).file("weights.safetensors").unwrap_err();
    assert!(matches!(error, Error::Hub { .. }), "{error:?}");
    let shown = error.to_string();
    for named in ["weights.safetensors", "org/model", "main"] {
        assert!(shown.contains(named), "{named} in {shown}");
    }
    (shown, cache, server)
}

#[test]
fn a_file_lands_in_the_cache_as_huggingface_hub_lays_it_out() {
    let cache = TempDir::new().unwrap();
    let server = Server::start(|request| match request.path.as_str() {
        "/org/model/resolve/refs%2Fpr%2F1/onnx/a%20b.json" => kept(b"{}"),
        _ => status(404, &[("X-Error-Code", "EntryNotFound"), ("X-Repo-Commit", COMMIT)]),
    });
    let folder = Folder::open_with("org/model@refs/pr/1", hub(&cache, &server.url)).unwrap();
    let path = folder.file("onnx/a b.json").unwrap();
    assert_eq!(path, repo_folder(&cache).join(format!("snapshots/{COMMIT}/onnx/a b.json")));
    assert_eq!(std::fs::read(&path).unwrap(), b"{}");
    #[cfg(unix)]
    assert_eq!(std::fs::read_link(&path).unwrap(), Path::new("../../../blobs/c0ffee"));
    let snapshot = format!("snapshots/{COMMIT}/onnx/a b.json");
    assert_eq!(files(&repo_folder(&cache)), ["blobs/c0ffee", "refs/refs/pr/1", &snapshot]);
    assert_eq!(std::fs::read_to_string(repo_folder(&cache).join("refs/refs/pr/1")).unwrap(), COMMIT);

    // From then on the cache answers, and the rest of the repository comes from the same commit.
    let n_requests = server.seen().len();
    assert_eq!(folder.file("onnx/a b.json").unwrap(), path);
    assert_eq!(server.seen().len(), n_requests);
    assert!(matches!(folder.file("weights.safetensors"), Err(Error::MissingFile { .. })));
    assert_eq!(server.lines().last().unwrap(), &format!("HEAD /org/model/resolve/{COMMIT}/weights.safetensors"));
    // What is not there is remembered.
    assert!(repo_folder(&cache).join(format!(".no_exist/{COMMIT}/weights.safetensors")).is_file());
    let n_requests = server.seen().len();
    assert!(folder.read("weights.safetensors").unwrap().is_none());
    assert_eq!(server.seen().len(), n_requests);
}

#[test]
fn the_token_goes_to_the_hub_and_to_no_other_host() {
    let cache = TempDir::new().unwrap();
    let bytes = body();
    let store = Server::start(move |request| match request.path.as_str() {
        "/blob?signature=1" => status(307, &[("Location", "/moved")]),
        "/moved" => ok(&body()),
        _ => status(404, &[]),
    });
    let location = format!("{}/blob?signature=1", store.url);
    let server = Server::start(move |request| match request.path.as_str() {
        // A repository that was renamed: on the same host.
        "/org/model/resolve/main/weights.safetensors" => {
            status(307, &[("Location", "/org/renamed/resolve/main/weights.safetensors")])
        }
        _ => stored(body().len(), &location),
    });
    let hub = Hub { token: Token::new("hf_secret"), ..hub(&cache, &server.url) };
    let path = open(&hub).file("weights.safetensors").unwrap();
    assert_eq!(std::fs::read(path).unwrap(), bytes);
    let blob = repo_folder(&cache).join("blobs").join(ETAG);
    assert!(blob.is_file(), "named by the linked etag, not by the redirect's");
    let of_hub = server.seen();
    assert_eq!(of_hub.len(), 2);
    assert!(of_hub.iter().all(|r| r.header("authorization") == Some("Bearer hf_secret")), "{of_hub:?}");
    let of_store = store.seen();
    assert_eq!(of_store.len(), 2);
    assert!(of_store.iter().all(|r| !r.headers.contains_key("authorization")), "{of_store:?}");
    assert!(of_store.iter().all(|r| !format!("{r:?}").contains("hf_secret")));
}

#[test]
fn refusals_say_what_to_do_and_leave_no_file() {
    let gated = [("X-Error-Code", "GatedRepo"), ("X-Error-Message", "Access to model org/model is restricted")];
    type Headers<'a> = &'a [(&'static str, &'a str)];
    let cases: [(u16, Headers, &[&str]); 6] = [
        (401, &[("X-Error-Code", "RepoNotFound")], &["401", "no such repository, or no access", "HF_TOKEN"]),
        (403, &gated, &["403", "must be asked for", "Access to model org/model is restricted"]),
        (404, &[("X-Error-Code", "RepoNotFound")], &["404", "no such repository"]),
        (404, &[("X-Error-Code", "RevisionNotFound")], &["404", "no such revision"]),
        (429, &[], &["429", "too many requests"]),
        (503, &[], &["503", "cannot be had now"]),
    ];
    for (code, headers, parts) in cases {
        let headers: Vec<(&'static str, String)> = headers.iter().map(|(n, v)| (*n, v.to_string())).collect();
        let (shown, cache, server) = refused(move |_| Answer::Send(code, headers.clone(), Vec::new()));
        for part in parts {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        assert!(shown.contains(&server.url), "{shown}");
        assert_eq!(files(cache.path()), [""; 0]);
        assert_eq!(server.seen().len(), 1, "asked once");
    }
    // Without the Hub's word for it, a 404 is about the file.
    let cache = TempDir::new().unwrap();
    let server = Server::start(|_| status(404, &[]));
    let missing = open(&hub(&cache, &server.url)).file("weights.safetensors").unwrap_err();
    assert!(matches!(&missing, Error::MissingFile { file, .. } if file == "weights.safetensors"), "{missing}");
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_ended() {
    let cache = TempDir::new().unwrap();
    let store = Server::start(|request| {
        let (headers, rest) = part(request, &body());
        let code = if request.start() > 0 { 206 } else { 200 };
        Answer::BreakOff(code, headers, rest, 2000)
    });
    let location = store.url.clone();
    let server = Server::start(move |_| stored(body().len(), &location));
    let path = open(&hub(&cache, &server.url)).file("weights.safetensors").unwrap();
    assert_eq!(std::fs::read(path).unwrap(), body());
    let starts: Vec<usize> = store.seen().iter().map(Request::start).collect();
    assert_eq!(starts, [0, 2000, 4000]);
    assert!(files(cache.path()).iter().all(|file| !file.contains("incomplete")));
}

#[test]
fn a_dead_store_leaves_what_came_for_the_next_attempt() {
    let location = Arc::new(Mutex::new(String::new()));
    let store = Server::start(|request| match request.start() {
        0 => Answer::BreakOff(200, Vec::new(), body(), 1234),
        _ => Answer::BreakOff(206, part(request, &body()).0, body()[1234..].to_vec(), 0),
    });
    location.lock().unwrap().clone_from(&store.url);
    let shared = location.clone();
    let (shown, cache, server) = refused(move |_| stored(body().len(), &shared.lock().unwrap()));
    assert!(shown.contains("1234 bytes of 5000 bytes") && shown.contains("goes on from there"), "{shown}");
    assert_eq!(files(&repo_folder(&cache)), ["blobs/c0ffee.incomplete"]);

    // Later, with a store that works: the rest alone is fetched.
    let healthy = Server::start(|request| {
        let (headers, rest) = part(request, &body());
        Answer::Send(206, headers, rest)
    });
    location.lock().unwrap().clone_from(&healthy.url);
    let path = open(&hub(&cache, &server.url)).file("weights.safetensors").unwrap();
    assert_eq!(std::fs::read(path).unwrap(), body());
    assert_eq!(healthy.seen().iter().map(Request::start).collect::<Vec<_>>(), [1234]);
}

/// A cache in which an earlier attempt left bytes that are not the file's.
fn with_leftover(n_bytes: usize) -> TempDir {
    let cache = TempDir::new().unwrap();
    let blobs = repo_folder(&cache).join("blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join("c0ffee.incomplete"), vec![0xEE; n_bytes]).unwrap();
    cache
}

#[test]
fn leftovers_that_a_server_cannot_continue_are_fetched_anew() {
    // A server that refuses ranges, one that ignores them, and a leftover that is longer than the file.
    for (n_bytes, refusal) in [(100, Some(416)), (100, None), (6000, None)] {
        let cache = with_leftover(n_bytes);
        let store = Server::start(move |request| match (request.start(), refusal) {
            (1.., Some(code)) => status(code, &[]),
            _ => ok(&body()),
        });
        let location = store.url.clone();
        let server = Server::start(move |_| stored(body().len(), &location));
        let path = open(&hub(&cache, &server.url)).file("weights.safetensors").unwrap();
        assert_eq!(std::fs::read(path).unwrap(), body(), "{n_bytes} {refusal:?}");
        let starts: Vec<usize> = store.seen().iter().map(Request::start).collect();
        match (n_bytes, refusal) {
            (100, Some(_)) => assert_eq!(starts, [100, 0]),
            (100, None) => assert_eq!(starts, [100]),
            _ => assert_eq!(starts, [0]),
        }
    }
}

#[test]
fn a_file_of_a_wrong_length_never_gets_its_name() {
    // Too short, with an honest and with a missing length; too long; another part than the one that was asked for.
    let cut = |n: usize| move |_: &Request| ok(&body()[..n]);
    let unmeasured = |_: &Request| {
        let chunked = [b"bb8\r\n", &body()[..3000], b"\r\n0\r\n\r\n"].concat();
        Answer::Send(200, vec![("Transfer-Encoding", "chunked".into())], chunked)
    };
    let longer = |_: &Request| ok(&[body(), body()].concat());
    let other = |request: &Request| {
        Answer::Send(206, vec![("Content-Range", "bytes 7-4999/5000".into())], {
            assert_eq!(request.start(), 100);
            body()[7..].to_vec()
        })
    };
    type Store = Box<dyn Fn(&Request) -> Answer + Send + Sync>;
    let cases: [(&str, usize, Store, &str); 4] = [
        ("short", 0, Box::new(cut(3000)), "3000 bytes of 5000 bytes"),
        ("unmeasured", 0, Box::new(unmeasured), "3000 bytes of 5000 bytes"),
        ("long", 0, Box::new(longer), "more than 5000 bytes"),
        ("other part", 100, Box::new(other), "asked for bytes from 100"),
    ];
    for (name, leftover, store, part) in cases {
        let cache = with_leftover(leftover);
        let store = Server::start(store);
        let location = store.url.clone();
        let server = Server::start(move |_| stored(5000, &location));
        let error = open(&hub(&cache, &server.url)).file("weights.safetensors").unwrap_err().to_string();
        assert!(error.contains(part), "{name}: {error}");
        assert_eq!(files(&repo_folder(&cache)), ["blobs/c0ffee.incomplete"], "{name}");
        assert!(store.seen().len() < 5, "{name}: does not go on for ever");
    }
}

#[test]
fn a_silent_hub_is_given_up() {
    for silent_store in [false, true] {
        let cache = TempDir::new().unwrap();
        let store = Server::start(|_| Answer::Silence);
        let location = store.url.clone();
        let server = Server::start(move |_| if silent_store { stored(10, &location) } else { Answer::Silence });
        let hub = Hub { timeout: Duration::from_millis(200), ..hub(&cache, &server.url) };
        let error = open(&hub).file("weights.safetensors").unwrap_err().to_string();
        assert!(error.contains("timeout"), "{error}");
    }
    // Nobody listens there any more.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let cache = TempDir::new().unwrap();
    let error = open(&hub(&cache, &format!("http://{port}"))).file("weights.safetensors").unwrap_err().to_string();
    assert!(error.contains(&port.to_string()) && error.contains("refused"), "{error}");
}

#[test]
fn answers_that_are_not_the_hubs_are_errors() {
    let (shown, cache, _) = refused(|_| ok(b"<html>please log in</html>"));
    assert!(shown.contains("does not say the file's commit and etag"), "{shown}");
    assert_eq!(files(cache.path()), [""; 0]);
    let (shown, ..) = refused(|_| status(302, &[("Location", "/again")]));
    assert!(shown.contains("redirects more than 10 times"), "{shown}");
    // Names that would lead out of the cache.
    for (commit, etag) in [("../../x", ETAG), (COMMIT, "../../x")] {
        let answer = move |_: &Request| {
            let headers = vec![("X-Repo-Commit", commit.to_owned()), ("ETag", format!("\"{etag}\""))];
            Answer::Send(200, headers, b"x".to_vec())
        };
        let (shown, cache, _) = refused(answer);
        assert!(shown.contains("does not say"), "{shown}");
        assert_eq!(files(cache.path()), [""; 0]);
    }
    let cache = TempDir::new().unwrap();
    let server = Server::start(|_| kept(b"x"));
    let error = open(&hub(&cache, &server.url)).file("../x").unwrap_err().to_string();
    assert!(error.contains("no path inside of a repository"), "{error}");
    assert!(server.seen().is_empty());
}

#[test]
fn two_at_once_fetch_a_file_once() {
    let cache = TempDir::new().unwrap();
    let store = Server::start(|_| ok(&body()));
    let location = store.url.clone();
    let server = Server::start(move |_| stored(body().len(), &location));
    let hub = hub(&cache, &server.url);
    std::thread::scope(|scope| {
        let fetches: Vec<_> = (0..4).map(|_| scope.spawn(|| open(&hub).file("weights.safetensors").unwrap())).collect();
        for fetch in fetches {
            assert_eq!(std::fs::read(fetch.join().unwrap()).unwrap(), body());
        }
    });
    assert_eq!(store.seen().len(), 1);
}

#[test]
fn the_program_reads_its_environment() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(|_| status(401, &[("X-Error-Code", "RepoNotFound")]));
    let trace = |variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_circuitscope"));
        for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE"] {
            command.env_remove(name);
        }
        command.env("HF_HOME", folder.path()).env("HF_ENDPOINT", &server.url).envs(variables.iter().copied());
        command.args(["trace", "Hello", "--model", "org/model", "--transcoders", "org/transcoders"]);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let offline = trace(&[("HF_HUB_OFFLINE", "1")]);
    assert!(offline.contains("HF_HUB_OFFLINE") && offline.contains("org/"), "{offline}");
    assert!(server.seen().is_empty());
    let online = trace(&[("HF_TOKEN", "hf_secret")]);
    assert!(online.contains("no such repository, or no access") && online.contains(&server.url), "{online}");
    assert!(!online.contains("hf_secret"), "{online}");
    let seen = server.seen();
    assert!(!seen.is_empty() && seen.iter().all(|r| r.header("authorization") == Some("Bearer hf_secret")), "{seen:?}");
}
