//! What only a network shows: slow and many connections, and a server that goes on.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use circuitscope::serve::{Patience, ServeOptions, Server};

use super::kit::{graphs, options};

/// A server that listens for as long as the test program runs.
fn listening(options: ServeOptions) -> SocketAddr {
    let server = Server::new(options).unwrap();
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        server.run(address, move |address| send.send(address).unwrap()).unwrap();
    });
    receive.recv().unwrap()
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = connect(address);
    // A server that has heard enough may close before all is sent.
    let _ = stream.write_all(request.as_bytes());
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

fn get(address: SocketAddr, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"))
}

fn is_well(address: SocketAddr) -> bool {
    get(address, "/api/v1/health").starts_with("HTTP/1.1 200")
}

fn hasty(folder: &std::path::Path) -> SocketAddr {
    let patience = Patience { head: Duration::from_millis(300), idle: Duration::from_millis(300) };
    listening(ServeOptions { patience, ..options(folder) })
}

#[test]
fn another_name_or_port_is_refused_on_the_network_too() {
    let folder = graphs();
    let address = listening(options(folder.path()));
    assert!(is_well(address));
    for host in ["evil.example", "127.0.0.1", "127.0.0.1:1"] {
        let answer = ask(address, &format!("GET /api/v1/graphs HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 403"), "{host}: {answer}");
    }
    assert!(ask(address, "GET / HTTP/1.0\r\n\r\n").contains(" 403 "));
}

#[test]
fn what_is_no_http_is_refused_and_the_server_goes_on() {
    let folder = graphs();
    let address = hasty(folder.path());
    let long = "x".repeat(1 << 20);
    for request in [
        "\r\n\r\n".to_owned(),
        "GET\r\n\r\n".to_owned(),
        "\u{16}\u{3}\u{1}\u{2}".to_owned(),
        format!("GET /{long} HTTP/1.1\r\nhost: {address}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nhost: {address}\r\nx: {long}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nhost: {address}\r\n{}\r\n", "x: y\r\n".repeat(1000)),
        format!("POST /api/v1/jobs HTTP/1.1\r\nhost: {address}\r\ncontent-length: -1\r\n\r\n"),
        format!("POST /api/v1/jobs HTTP/1.1\r\nhost: {address}\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello"),
        format!("POST /api/v1/jobs HTTP/1.1\r\nhost: {address}\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"),
        format!("GET /../../../../etc/passwd HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"),
        format!("GET http://evil.example/ HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"),
    ] {
        let answer = ask(address, &request);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{request:.60}: {answer:.200}");
        assert!(!answer.contains("root:"));
        assert!(is_well(address), "{request:.60}");
    }
}

#[test]
fn a_request_that_comes_too_slowly_ends() {
    let folder = graphs();
    let address = hasty(folder.path());
    for start in ["", "GET / HT", "GET / HTTP/1.1\r\nhost: a\r\nx: "] {
        let mut stream = connect(address);
        stream.write_all(start.as_bytes()).unwrap();
        // One byte now and then does not help.
        let mut writer = stream.try_clone().unwrap();
        std::thread::spawn(move || {
            while writer.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        // The end of the connection, and not of our patience.
        match stream.read_to_end(&mut Vec::new()) {
            Ok(_) => (),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{start:?}"),
        }
    }
    assert!(is_well(address));
}

#[test]
#[cfg(target_os = "linux")]
fn five_hundred_connections_that_say_nothing_keep_nobody_out() {
    let folder = graphs();
    // With files of its own to open.
    let program = Program::start(folder.path(), None);
    let address = program.address;
    let mut held = Vec::new();
    for _ in 0..500 {
        // A system may allow fewer.
        match TcpStream::connect(address) {
            Ok(stream) => held.push(stream),
            Err(_) => break,
        }
    }
    assert!(is_well(address));
    drop(held);
    assert!(is_well(address));
}

#[test]
fn many_at_once_are_all_answered() {
    let folder = graphs();
    let address = listening(options(folder.path()));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(move || {
                for threshold in 1..20 {
                    let path = format!("/api/v1/graphs/oakland/links.bin?node_threshold=0.{threshold:02}");
                    assert!(get(address, &path).starts_with("HTTP/1.1 200"));
                }
            });
        }
    });
}

/// The program itself, serving a folder.
#[cfg(target_os = "linux")]
struct Program {
    child: std::process::Child,
    address: SocketAddr,
}

#[cfg(target_os = "linux")]
impl Program {
    /// Runs it with a largest size of files in blocks of 512 bytes, if one is given.
    fn start(folder: &std::path::Path, block_limit: Option<usize>) -> Self {
        let limit = block_limit.map(|blocks| format!("ulimit -f {blocks}; ")).unwrap_or_default();
        let script = format!("{limit}exec \"$0\" serve . --port 0 --no-model");
        let mut child = std::process::Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_circuitscope")])
            .current_dir(folder)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = std::io::BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut said, &mut line).unwrap();
        let address = line.split("http://").nth(1).unwrap_or_else(|| panic!("{line}"));
        let address = address.trim().trim_end_matches('/').parse().unwrap();
        // Its further words have somewhere to go.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self { child, address }
    }

    /// Memory that it holds, in pages.
    fn pages(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap();
        statm.split(' ').nth(1).unwrap().parse().unwrap()
    }
}

#[cfg(target_os = "linux")]
impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[cfg(target_os = "linux")]
fn memory_stays_where_it_is() {
    let folder = graphs();
    let program = Program::start(folder.path(), None);
    let requests = |n: usize| {
        // One connection for all of them, as a browser has it.
        let mut stream = connect(program.address);
        let mut reader = std::io::BufReader::new(stream.try_clone().unwrap());
        for at in 0..n {
            let path = match at % 4 {
                0 => "/api/v1/graphs".to_owned(),
                1 => format!("/api/v1/graphs/oakland/links.bin?node_threshold=0.{:03}", at % 1000),
                2 => "/api/v1/graphs/oakland/nodes.bin".to_owned(),
                _ => format!("/api/v1/graphs/none-{at}"),
            };
            write!(stream, "GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", program.address).unwrap();
            let mut len = 0;
            loop {
                let mut line = String::new();
                std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
                if let Some(stated) = line.strip_prefix("content-length: ") {
                    len = stated.trim().parse().unwrap();
                }
                if line == "\r\n" {
                    break;
                }
            }
            std::io::copy(&mut (&mut reader).take(len), &mut std::io::sink()).unwrap();
        }
    };
    requests(400);
    let before = program.pages();
    requests(2000);
    let after = program.pages();
    assert!(after < before + 4096, "{before} pages of memory became {after}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_loses_nothing_and_is_told() {
    let folder = graphs();
    let file = folder.path().join("oakland.json");
    let before = std::fs::read(&file).unwrap();
    assert!(before.len() > 8 * 512);
    let program = Program::start(folder.path(), Some(8));
    let body = r#"{"pinned": ["0_39_7"]}"#;
    let put = |body: &str| {
        let head =
            format!("PUT /api/v1/graphs/oakland/view HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", program.address);
        ask(
            program.address,
            &format!(
                "{head}if-match: *\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            ),
        )
    };
    let answer = put(body);
    assert!(answer.starts_with("HTTP/1.1 507") && answer.contains("\"disk\""), "{answer}");
    assert_eq!(std::fs::read(&file).unwrap(), before);
    assert_eq!(
        folder.path().read_dir().unwrap().count(),
        graphs().path().read_dir().unwrap().count(),
        "nothing is left behind"
    );
    assert!(is_well(program.address));
}

#[test]
#[cfg(target_os = "linux")]
fn a_running_server_is_found_by_its_folder() {
    let (folder, other) = (graphs(), graphs());
    let program = Program::start(folder.path(), None);
    assert!(circuitscope::serve::is_serving(program.address, folder.path()));
    assert!(!circuitscope::serve::is_serving(program.address, other.path()));
    // A server that is there already is used: the command ends.
    let port = program.address.port().to_string();
    let args = ["inspect", "oakland.json", "--open", "--port", &port];
    // There is no browser for the test to open.
    let output = crate::support::program(folder.path()).args(args).env("PATH", "").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && said.contains(&format!("open http://{}/?slug=oakland", program.address)),
        "{said}"
    );
}
