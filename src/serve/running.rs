//! Whether a server runs already that shows a folder.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::folder_key;

/// A server on this machine answers at once, or is none.
const PATIENCE: Duration = Duration::from_secs(2);

/// The largest answer that is read.
const MAX_BYTES: u64 = 1 << 16;

/// Whether a server of this program listens at `address` and shows `folder`.
pub fn is_serving(address: SocketAddr, folder: &Path) -> bool {
    let Ok(folder) = folder.canonicalize() else { return false };
    health(address)
        .is_some_and(|health| health["name"] == "circuitscope" && health["folder_key"] == folder_key(&folder))
}

fn health(address: SocketAddr) -> Option<Value> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET /api/v1/health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.take(MAX_BYTES).read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200").then(|| serde_json::from_str(body).ok())?
}

/// The address of a graph's page.
pub fn graph_url(address: SocketAddr, id: &str) -> String {
    let mut url = format!("http://{address}/?slug=");
    for byte in id.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => url.push(byte.into()),
            byte => url.push_str(&format!("%{byte:02X}")),
        }
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_hold_any_id() {
        let address = "127.0.0.1:8041".parse().unwrap();
        assert_eq!(graph_url(address, "dallas-1"), "http://127.0.0.1:8041/?slug=dallas-1");
        assert_eq!(graph_url(address, "a b/ü&x"), "http://127.0.0.1:8041/?slug=a%20b%2F%C3%BC%26x");
    }

    #[test]
    fn nobody_listens_where_nobody_listens() {
        // A port that was free a moment ago.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(!is_serving(free, Path::new(".")));
    }
}
