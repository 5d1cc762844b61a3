//! Requests to the server, handed to its routes without a connection: a line with the method and the address, a line with
//! a type of content and what is accepted, and the body.

use std::cell::Cell;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Method, Request, StatusCode};
use circuitscope::serve::{ServeOptions, Server};
use tokio::runtime::Builder;
use tower::ServiceExt;

use crate::feature_targets;
use crate::mutate::Form;
use crate::seeds;
use crate::targets::{Reading, Target, folder_in_memory};

/// Of an answer that may go on for ever (events of a job) so much is looked at.
const MAX_ANSWER: usize = 16 << 20;
const MAX_TIME: Duration = Duration::from_secs(10);

/// Files that requests have saved are taken away after so many.
const FRESH_AFTER: u32 = 1000;

/// Requests that are answered, one of each kind.
fn answered() -> Vec<Vec<u8>> {
    let view = r#"{"pinned": ["0_1_1"], "groups": [{"name": "a", "members": ["0_1_1"]}], "labels": {"0_1": "b"}, "clicked": null}"#;
    let trace =
        r#"{"kind": "trace", "prompt": "He went", "targets": [{"token": " to"}, {"feature": "0_1_1"}], "rows": 9}"#;
    let intervene = r#"{"kind": "intervene", "graph": "a", "changes": [{"node": "0_1_1", "set": 2}, {"head": "0.1", "ablate": true}], "mode": "direct"}"#;
    let generate = r#"{"kind": "generate", "prompt": "He", "changes": [{"node": "0_1_*", "scale": 0}], "generate": {"n_tokens": 3, "temperature": 0.5}}"#;
    let graph =
        r#"{"prompt": "He went", "model_id": "atlas", "slug_identifier": "b", "batch_size": 8, "max_n_logits": 3}"#;
    let steer = r#"{"prompt": "He", "model_id": "atlas", "features": [{"layer": 0, "index": 1, "token_active_position": 1, "delta": 2.0}], "n_tokens": 2}"#;
    let requests: &[(&str, &str, &str)] = &[
        ("GET", "/api/v1/health", ""),
        ("GET", "/api/v1/graphs", ""),
        ("GET", "/api/v1/graphs/a?node_threshold=0.5&edge_threshold=0.9&summary=true", ""),
        ("GET", "/api/v1/graphs/a/nodes.bin?columns=layer,pos", ""),
        ("GET", "/api/v1/graphs/a/links.bin?node_threshold=0.8&top=9&by=score", ""),
        ("GET", "/api/v1/graphs/a/node/0/links?side=inputs&offset=1&limit=3", ""),
        ("GET", "/api/v1/graphs/a/prune?node_threshold=0.7", ""),
        ("GET", "/api/v1/graphs/a/paths?k=3", ""),
        ("GET", "/api/v1/graphs/a/groups/auto?cut=0.5", ""),
        ("GET", "/api/v1/graphs/a/search?q=He", ""),
        ("GET", "/api/v1/graphs/a/view", ""),
        ("GET", "/api/v1/graphs/a/export.csv?part=pinned", ""),
        ("GET", "/api/v1/graphs/a/export.json", ""),
        ("GET", "/api/v1/graphs/a/diff/a", ""),
        ("GET", "/api/v1/graphs/a/picture.svg?groups=%5B%5D", ""),
        ("POST", "/api/v1/graphs/a/scores", r#"{"nodes": ["0_1_1"], "node_threshold": 0.5}"#),
        ("POST", "/api/v1/graphs/a/picture", r#"{"format": "svg", "groups": [{"name": "a", "members": ["0_1_1"]}]}"#),
        ("PUT", "/api/v1/graphs/a/view", view),
        ("POST", "/api/v1/jobs", trace),
        ("POST", "/api/v1/jobs", intervene),
        ("POST", "/api/v1/jobs", generate),
        ("POST", "/api/v1/jobs", r#"{"kind": "sweep", "prompt": "He went", "sweep": "0_1_1=0..2/1"}"#),
        ("POST", "/api/v1/jobs", r#"{"kind": "verify", "graph": "a", "n_samples": 2}"#),
        ("GET", "/api/v1/jobs", ""),
        ("POST", "/api/v1/tokenize", r#"{"prompt": "He went"}"#),
        ("GET", "/api/v1/features/0/3", ""),
        ("GET", "/api/v1/features/search?q=fox&by=all&n=3", ""),
        ("GET", "/data/a.json", ""),
        ("GET", "/graph_data/a.json?x=1", ""),
        ("POST", "/save_graph/a", r#"{"qParams": {"pinnedIds": []}}"#),
        ("POST", "/forward-pass", r#"{"prompt": "He went"}"#),
        ("POST", "/generate-graph", graph),
        ("POST", "/steer", steer),
    ];
    requests
        .iter()
        .map(|(method, address, body)| format!("{method} {address}\napplication/json\n{body}").into_bytes())
        .collect()
}

/// All routes of a server that knows a graph and features, and has no model: jobs are read and checked up to the model.
pub fn requests() -> Target {
    let root = folder_in_memory();
    let (kept, features) = (root.join("graphs"), feature_targets::collected());
    let (raws, wire) = seeds::graphs();
    let put = move |folder: &std::path::Path| {
        std::fs::write(folder.join("a.safetensors"), &raws[0]).expect("the folder can be written");
        std::fs::write(folder.join("a.json"), &wire).expect("the folder can be written");
    };
    let fresh = move || {
        let _ = std::fs::remove_dir_all(&kept);
        let beside = root.read_dir().expect("it is there").count();
        assert_eq!(beside, 0, "files are saved in the folder of graphs alone");
        std::fs::create_dir_all(&kept).expect("a folder can be made");
        put(&kept);
        let options =
            ServeOptions { folder: Some(kept.clone()), features: Some(features.clone()), ..ServeOptions::default() };
        Server::new(options).expect("threads can be started").router()
    };
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    let (n_asked, router) = (Cell::new(0u32), std::cell::RefCell::new(fresh()));
    let read = move |input: &[u8]| -> Reading {
        let mut lines = input.splitn(3, |byte| *byte == b'\n');
        let (first, kind, body) =
            (lines.next().unwrap_or_default(), lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let Some((method, address)) = std::str::from_utf8(first).ok().and_then(|line| line.split_once(' ')) else {
            return Reading::NotTried;
        };
        let Ok(method) = Method::from_bytes(method.as_bytes()) else { return Reading::NotTried };
        let mut request = Request::builder().method(method).uri(address).header("host", "127.0.0.1");
        if let Ok(kind) = HeaderValue::from_bytes(kind) {
            request = request.header("content-type", kind.clone()).header("accept", kind);
        }
        let Ok(request) = request.body(Body::from(Bytes::copy_from_slice(body))) else { return Reading::NotTried };
        n_asked.set(n_asked.get() + 1);
        if n_asked.get() % FRESH_AFTER == 0 {
            *router.borrow_mut() = fresh();
        }
        let router = router.borrow().clone();
        let status = runtime.block_on(async {
            let answer = router.oneshot(request).await.expect("routes do not fail");
            let status = answer.status();
            let read = tokio::time::timeout(MAX_TIME, axum::body::to_bytes(answer.into_body(), MAX_ANSWER)).await;
            assert!(read.is_ok(), "an answer comes to its end");
            status
        });
        // What is wrong with a request is said of the request.
        assert!(status != StatusCode::INTERNAL_SERVER_ERROR, "{status}");
        // A request that only lacks a model was read and checked.
        Reading::from(status.is_success() || status == StatusCode::CONFLICT)
    };
    Target { form: Form::Text, seeds: answered(), max_bytes: 1 << 30, read: Box::new(read) }
}
