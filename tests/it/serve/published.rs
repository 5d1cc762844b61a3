//! What another site knows of features of published sets, against one on this machine that plays Neuronpedia's.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;

use axum::http::StatusCode;
use circuitscope::serve::ServeOptions;
use circuitscope::{Setup, Tracer};
use serde_json::{Value, json};

use super::kit::{Kit, graphs, options, with_model};
use crate::support::{copy_folder, fixture};

/// A site that answers each request with what `answer` says of its path.
fn site(answer: impl Fn(&str) -> (u16, String) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let first = lines.next().unwrap().unwrap();
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let (status, body) = answer(first.split(' ').nth(1).unwrap());
            let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let _ = stream.write_all((head + &body).as_bytes());
        }
    });
    address
}

/// The embedded model, with its transcoders under the name of a published set.
fn as_published(folder: &Path, site: Option<String>) -> Kit {
    let transcoders = folder.join("published");
    copy_folder(&fixture("atlas/transcoders"), &transcoders);
    let config = std::fs::read_to_string(transcoders.join("config.yaml")).unwrap();
    let config = config.replace("scan: atlas-plt", "scan: mwhanna/qwen3-4b-transcoders");
    std::fs::write(transcoders.join("config.yaml"), config).unwrap();
    let setup = Setup::new("atlas", transcoders.to_str().unwrap());
    let model = Some(Box::new(move || Tracer::open(setup)) as circuitscope::serve::OpenModel);
    Kit::new(ServeOptions { model, published_site: site, ..options(folder) })
}

fn feature(path: &str) -> Value {
    json!({
        "modelId": "qwen3-4b", "layer": "0-transcoder-hp", "index": path.rsplit('/').next().unwrap(),
        "maxActApprox": 12.5, "frac_nonzero": 0.01, "pos_str": [" TX"], "neg_str": ["<b>"],
        "activations": [{"tokens": ["in", " Dallas"], "values": [0.0, 12.5], "maxValueTokenIndex": 1}],
        "explanations": [{"description": "<script>alert(1)</script>", "typeName": "np_max-act"}],
    })
}

#[test]
fn what_neuronpedia_knows_of_a_feature_is_shown_beside_our_own() {
    let folder = graphs();
    let kit = as_published(folder.path(), Some(site(|path| (200, feature(path).to_string()))));
    kit.post("/api/v1/tokenize", &json!({"prompt": "a"}));
    let page = kit.json("/api/v1/features/0/39")["neuronpedia"].clone();
    assert_eq!(page["url"], "https://www.neuronpedia.org/qwen3-4b/0-transcoder-hp/39");
    assert_eq!(page["online"], true);
    let found = kit.json("/api/v1/features/0/39/published");
    assert_eq!(found["label"], "<script>alert(1)</script>", "text, which the page never takes for anything else");
    assert_eq!((&found["top"], &found["bottom"]), (&json!([" TX"]), &json!(["<b>"])));
    assert_eq!(
        found["examples"],
        json!([{"value": 12.5, "at": 1, "tokens": ["in", " Dallas"], "activations": [0.0, 12.5]}])
    );
}

#[test]
fn a_site_that_fails_is_named_and_nothing_else_is_lost() {
    for (status, body, part) in [
        (404, String::new(), "404"),
        (200, "<html>".to_owned(), "expected value"),
        (200, feature("/40").to_string(), "0_40, not 0_39"),
        (200, " ".repeat((8 << 20) + 1), "longer than"),
        (302, String::new(), "302"),
    ] {
        let folder = graphs();
        let kit = as_published(folder.path(), Some(site(move |_| (status, body.clone()))));
        let answer = kit.get("/api/v1/features/0/39/published");
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{}", answer.text());
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(part) && message.contains("/api/feature/qwen3-4b/0-transcoder-hp/39"), "{message}");
        assert_eq!(kit.get("/api/v1/features/0/39").status, StatusCode::OK);
    }
}

#[test]
fn no_other_site_is_asked_unless_that_was_wanted() {
    let folder = graphs();
    let kit = as_published(folder.path(), None);
    kit.post("/api/v1/tokenize", &json!({"prompt": "a"}));
    assert_eq!(kit.json("/api/v1/features/0/39")["neuronpedia"]["online"], false);
    assert_eq!(kit.get("/api/v1/features/0/39/published").status, StatusCode::NOT_FOUND);
    // A set that no site shows.
    let folder = graphs();
    let own = with_model(folder.path());
    own.post("/api/v1/tokenize", &json!({"prompt": "a"}));
    assert_eq!(own.json("/api/v1/features/0/39")["neuronpedia"], Value::Null);
}
