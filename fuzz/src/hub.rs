//! A server on this machine that answers with what it is given.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use circuitscope::weights::{Folder, Hub};

use crate::mutate::{NEXT, parts};
use crate::targets::{Reading, folder_in_memory};

/// The server's own address in an answer; with the slash, so that nothing after it makes another host of it.
const HERE: &str = "http://hub/";

/// A server that gives one answer after the other, whatever is asked.
pub struct Answering {
    pub url: String,
    answers: Arc<Mutex<std::vec::IntoIter<Vec<u8>>>>,
}

impl Answering {
    pub fn start() -> Answering {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of this machine");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let answers = Arc::new(Mutex::new(Vec::<Vec<u8>>::new().into_iter()));
        let given = answers.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let Ok(read) = stream.try_clone() else { continue };
                read_request(BufReader::new(read));
                let next = given.lock().expect("nobody panics with it").next();
                let _ = stream.write_all(&next.unwrap_or_default());
            }
        });
        Answering { url, answers }
    }

    /// What is answered from now on.
    pub fn give(&self, answers: Vec<Vec<u8>>) {
        *self.answers.lock().expect("nobody panics with it") = answers.into_iter();
    }
}

/// Reads a request to its end: a connection that is closed before is reset, and the answer lost.
fn read_request(mut request: impl BufRead) {
    let mut len = 0;
    // The head ends with an empty line.
    for line in request.by_ref().lines() {
        let Ok(line) = line else { return };
        if line.is_empty() {
            break;
        }
        let line = line.to_ascii_lowercase();
        len = line.strip_prefix("content-length:").and_then(|len| len.trim().parse().ok()).unwrap_or(len);
    }
    let _ = request.read_exact(&mut vec![0; len]);
}

pub struct HubOnThisMachine {
    server: Answering,
    cache: PathBuf,
}

impl HubOnThisMachine {
    pub fn start() -> HubOnThisMachine {
        HubOnThisMachine { server: Answering::start(), cache: folder_in_memory().join("cache") }
    }

    /// Answers with which a file is fetched.
    pub fn answers() -> Vec<Vec<u8>> {
        let commit = "X-Repo-Commit: 0123456789abcdef\r\nETag: \"c0ffee\"\r\n";
        let end = "Connection: close\r\n\r\n";
        let head = format!("HTTP/1.1 200 OK\r\n{commit}Content-Length: 5\r\n{end}");
        let body = format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n{end}hello");
        let moved = format!("HTTP/1.1 307 Moved\r\nLocation: {HERE}new\r\nContent-Length: 0\r\n{end}");
        let cut = format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n{end}hel");
        let rest =
            format!("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 3-4/5\r\nContent-Length: 2\r\n{end}lo");
        let chunked = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{end}5\r\nhello\r\n0\r\n\r\n");
        let joined =
            |answers: &[&String]| answers.iter().map(|answer| answer.as_bytes()).collect::<Vec<_>>().join(NEXT);
        vec![
            joined(&[&head, &body]),
            joined(&[&head, &cut, &rest]),
            joined(&[&moved, &head, &body]),
            joined(&[&head, &chunked]),
        ]
    }

    /// Fetches a file from a Hub that gives these answers. One that names another host is not tried: nothing here goes
    /// beyond this machine.
    pub fn read(&self, input: &[u8]) -> Reading {
        let text = String::from_utf8_lossy(input);
        if text.replace(HERE, "").contains("//") {
            return Reading::NotTried;
        }
        let url = format!("{}/", self.server.url);
        let answers = parts(input, NEXT);
        let with_url = answers.iter().map(|answer| parts(answer, HERE.as_bytes()).join(url.as_bytes()));
        self.server.give(with_url.collect());
        let hub = Hub {
            cache: self.cache.clone(),
            offline: false,
            endpoint: self.server.url.clone(),
            token: None,
            timeout: Duration::from_secs(2),
        };
        let file = Folder::open_with("org/model", hub).expect("a name").file("a.json");
        let left: Vec<_> = walk(&self.cache);
        // What has its name is whole: nothing but names that the Hub's cache knows lies about.
        for path in &left {
            let shown = path.strip_prefix(&self.cache).expect("it is below").to_string_lossy().into_owned();
            let is_known = shown.starts_with("models--org--model/") || shown.starts_with(".locks/");
            assert!(is_known, "{shown} is not where the cache has files");
        }
        let _ = std::fs::remove_dir_all(&self.cache);
        Reading::from(file.is_ok())
    }
}

/// All files below a folder.
pub fn walk(folder: &std::path::Path) -> Vec<PathBuf> {
    let Ok(entries) = folder.read_dir() else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.flat_map(|path| if path.is_dir() && !path.is_symlink() { walk(&path) } else { vec![path] }).collect()
}
