//! The HTTP server with a model, asked without a network: an input is one request or several, as text.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{Method, Request, StatusCode, header};
use circuitscope::circuits::PairPlan;
use circuitscope::export::{node_id_text, stream_wire};
use circuitscope::prune::PruneSettings;
use circuitscope::serve::{Access, Limits, OpenModel, ServeOptions, Server};
use circuitscope::{AttributionOptions, Tracer};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;

use crate::feature_targets::collected;
use crate::mutate::{Form, NEXT, parts};
use crate::n_panics;
use crate::targets::{MAX_BYTES, Reading, Target, folder_in_memory};
use crate::tiny::Tiny;

/// Requests of one input.
const MAX_REQUESTS: usize = 4;

/// What stands for the model's name, which is a path of its own on each machine.
const MODEL: &str = "{model}";

/// No input has this.
const TOKEN: &str = "1d5a9c4f-not-to-be-guessed-8e27";

/// What a fault of the program is among the events of a job; in texts of others quotes are escaped.
const FAULT: &[u8] = b"data: {\"error\":{\"kind\":\"internal\"";

/// An answer is read to its end, which comes: events of a job end with it.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Limits with which every job is short.
fn limits() -> Limits {
    Limits { queue: 4, positions: 12, rows: 64, tokens: 2, points: 2, time: Duration::from_secs(5) }
}

/// Bodies, paths, queries and headers.
pub fn requests() -> Target {
    let server = ServerHere::start();
    let seeds = server.requests();
    Target { form: Form::Requests, seeds, max_bytes: MAX_BYTES, read: Box::new(move |input| server.read(input)) }
}

struct ServerHere {
    runtime: Runtime,
    model: String,
    /// With the model, open to all.
    open: Router,
    /// A viewer of the same folder that wants a token, and one that has nothing: without the token they answer alike.
    guarded: [Router; 2],
    /// What the server's folder of graphs is in, and nothing else.
    root: PathBuf,
    folder: PathBuf,
    /// The files of that folder.
    files: BTreeMap<OsString, Vec<u8>>,
    /// A feature, a token and the target of the first graph.
    nodes: [String; 3],
}

/// An answer.
struct Answer {
    status: StatusCode,
    content_type: Vec<u8>,
    bytes: Bytes,
}

impl ServerHere {
    fn start() -> ServerHere {
        let tiny = Tiny::make();
        let tracer = tiny.tracer();
        let root = folder_in_memory();
        let folder = root.join("graphs");
        std::fs::create_dir(&folder).expect("the folder can be written");
        let mut nodes = [const { String::new() }; 3];
        for (prompt, name) in [("ab a", "b"), ("a b ab", "a")] {
            let graph = tracer.trace(prompt, &AttributionOptions::default()).expect("a graph");
            let settings = PruneSettings::default();
            let circuit = graph.prune(&settings).expect("thresholds");
            let pair = PairPlan {
                folder: folder.clone(),
                name: Some(name.to_owned()),
                replaces_others: false,
                raw: name == "a",
                json: true,
                inputs: Vec::new(),
            };
            pair.write(graph.graph(), &circuit, &settings).expect("the folder can be written");
            let ids: Vec<String> =
                circuit.graph().node_weights().map(|node| node_id_text(circuit.meta.n_layers, node)).collect();
            let feature = circuit.graph().node_weights().position(|node| node.id.feature().is_some());
            let token = circuit.tokens().first().map(|node| ids[node.index()].clone());
            let target = circuit.targets().first().map(|node| ids[node.index()].clone());
            nodes = [feature.map(|at| ids[at].clone()), token, target].map(|id| id.expect("a graph has each"));
        }
        let features = collected();
        let server = |folder: Option<PathBuf>, model: Option<OpenModel>, access: Access| {
            let features = folder.is_some().then(|| features.clone());
            let options = ServeOptions { folder, model, features, limits: limits(), access, ..ServeOptions::default() };
            Server::new(options).expect("a server").router()
        };
        let with_token = || Access { token: Some(TOKEN.to_owned()), ..Access::default() };
        let setup = tiny.setup();
        let model: OpenModel = Box::new(move || Tracer::open(setup));
        ServerHere {
            runtime: Builder::new_current_thread().enable_all().build().expect("a runtime"),
            model: tiny.model,
            open: server(Some(folder.clone()), Some(model), Access::default()),
            guarded: [server(Some(folder.clone()), None, with_token()), server(None, None, with_token())],
            files: contents(&folder),
            root,
            folder,
            nodes,
        }
    }

    /// Requests that are answered, to every address.
    fn requests(&self) -> Vec<Vec<u8>> {
        let [feature, token, target] = &self.nodes;
        let name = feature.rsplit_once('_').expect("LAYER_FEATURE_POSITION").0;
        let get =
            |paths: &[&str]| paths.iter().map(|path| format!("GET {path}\n")).collect::<Vec<_>>().join("\n----\n");
        let post = |path: &str, body: &str| format!("POST {path}\n\n{body}");
        let job = |body: &str| post("/api/v1/jobs", body);
        let view = format!(
            r#"{{"pinned":["{feature}","{target}"],"hidden":["{token}"],"clicked":"{feature}","groups":[{{"name":"g","members":["{feature}"]}}],
            "labels":{{"{name}":"a label"}},"positions":{{"group:g":[1.5,2]}},"node_threshold":0.9,"edge_threshold":0.99,"link_type":"both","note":"n","other":{{"x":1}}}}"#
        );
        let saved = format!(
            r#"{{"qParams":{{"pinnedIds":"{feature},{token}","supernodes":"[[\"s\",\"{feature}\"]]","clerps":[["0_1_2","x"],[3,"y"]],"pruningThreshold":"0.5"}}}}"#
        );
        let part = format!(
            r#"{{"pinned":["{feature}"],"groups":[{{"name":"g","members":["{feature}","{token}"]}}],"labels":{{"{name}":"l"}},"max_nodes":20,"scale":2.0}}"#
        );
        let changes =
            format!(r#"[{{"node":"{feature}","ablate":true}},{{"layer":1,"feature":2,"position":"1..","scale":2}}]"#);
        let requests = [
            // The first job that there is.
            job(r#"{"kind":"trace","prompt":"b","rows":2,"save":false}"#)
                + "\n----\n"
                + &get(&["/api/v1/jobs", "/api/v1/jobs/1-trace"])
                + "\n----\nGET /api/v1/jobs/1-trace/events\nlast-event-id: 1\n",
            "DELETE /api/v1/jobs/1-trace\n".to_owned(),
            get(&["/", "/api/v1/health", "/api/v1/openapi.json", "/api/v1/graphs"]),
            get(&["/api/v1/graphs/a", "/api/v1/graphs/a/nodes.bin", "/api/v1/graphs/b/links.bin?top=5&by=score"]),
            get(&[
                "/api/v1/graphs/a/node/3/links?limit=4",
                "/api/v1/graphs/b/prune?node_threshold=0.5&edge_threshold=0.9",
            ]),
            get(&[
                &format!("/api/v1/graphs/a/paths?from={token}&to={target}&k=3"),
                "/api/v1/graphs/a/groups/auto?cut=0.2",
            ]),
            get(&["/api/v1/graphs/a/diff/b", "/api/v1/graphs/b/search?q=a%20b&limit=3", "/api/v1/graphs/a/view"]),
            get(&[&format!("/api/v1/graphs/a/picture.svg?pinned={feature},{target}&max_nodes=9&scale=1.5")]),
            get(&[
                "/api/v1/graphs/a/export.dot",
                "/api/v1/graphs/a/export.graphml?part=pinned",
                "/api/v1/graphs/b/export.csv",
            ]),
            get(&["/api/v1/graphs/a/export.nodes.csv", "/api/v1/graphs/b/export.json?node_threshold=0.6"]),
            get(&[
                "/api/v1/features",
                "/api/v1/features/search?q=a&by=tokens&limit=3",
                "/api/v1/features/0/1?neighbors=true",
            ]),
            get(&["/data/graph-metadata.json", "/graph_data/a.json", "/features/index.json.gz", "/dashboards/4.json"]),
            "GET /features/layer_1.bin\nrange: bytes=1048576-2097152\n".to_owned(),
            get(&["/features/x/4.json", "/check-busy"]),
            format!("PUT /api/v1/graphs/a/view\nif-match: *\n\n{view}"),
            post("/save_graph/b", &saved),
            post("/api/v1/graphs/a/picture", &part),
            post("/api/v1/graphs/b/layout", r#"{"max_nodes":12,"node_threshold":0.9,"format":"svg"}"#),
            post("/api/v1/graphs/a/scores", &format!(r#"{{"nodes":["{feature}","3"],"node_threshold":0.8}}"#)),
            post("/api/v1/tokenize", r#"{"prompt":"a b\nab"}"#),
            post("/api/v1/top-tokens", r#"{"prompt":"a b","position":1,"k":3}"#),
            post("/api/v1/session", r#"{"token":"x"}"#),
            post("/api/v1/features/0/1/on-text", r#"{"text":"ab a"}"#),
            job(
                r#"{"kind":"trace","prompt":"a b","targets":[{"token":"a"},{"token_id":5},{"difference":["a","b"]}],"rows":8,"slug":"m","save":false}"#,
            ) + "\n----\n"
                + &post("/api/v1/graphs/m/save", r#"{"slug":"m"}"#),
            job(&format!(
                r#"{{"kind":"trace","prompt":"a b ab","targets":[{{"feature":"{feature}"}}],"slug":"c","replace":true,"node_threshold":0.5,"max_logits":2,"logit_prob":0.5,"rows":"all"}}"#
            )),
            job(&format!(
                r#"{{"kind":"intervene","graph":"a","changes":{changes},"groups":[{{"name":"g","members":["{feature}"]}}],"mode":"constrained:0..1","target":"a","top":3,"features":["{feature}"],"detached":true}}"#
            )),
            job(&format!(
                r#"{{"kind":"intervene","prompt":"a b ab","changes":{changes},"generate":{{"n_tokens":2,"temperature":0.5,"top_p":0.9,"seed":3,"keep_frozen":true}}}}"#
            )),
            job(
                r#"{"kind":"generate","prompt":"a b","changes":[{"head":"0.1","ablate":true}],"mode":"frozen_attention","generate":{"n_tokens":2}}"#,
            ),
            job(&format!(
                r#"{{"kind":"sweep","prompt":"a b ab","sweep":"g=0..1/1","groups":[{{"name":"g","members":["{feature}"]}}],"mode":"direct"}}"#
            )),
            job(&format!(
                r#"{{"kind":"sweep","graph":"a","sweep":"0_1_*=-1..0/1","changes":[{{"node":"{feature}","set":1.5}}]}}"#
            )),
            job(r#"{"kind":"verify","graph":"a","n_samples":2,"n_ablated":1,"seed":5,"node_threshold":0.7}"#),
            post("/forward-pass", r#"{"prompt":"a b","max_n_logits":3,"desired_logit_prob":0.9}"#),
            post(
                "/generate-graph",
                r#"{"model_id":"{model}","slug_identifier":"s","prompt":"a b","max_feature_nodes":8,"batch_size":4,"user_id":"u"}"#,
            ),
            post(
                "/steer",
                r#"{"model_id":"{model}","prompt":"a b","features":[{"layer":0,"index":1,"token_active_position":1,"steer_position":1,"delta":1.5},{"layer":1,"index":2,"token_active_position":2,"steer_generated_tokens":true,"ablate":true}],"n_tokens":2,"top_k":2,"temperature":0.7,"seed":1}"#,
            ),
            post("/parse-chat-prompt", r#"{"prompt":"a"}"#),
        ];
        requests.into_iter().map(String::into_bytes).collect()
    }

    /// Sends all requests of an input. An answer is never a fault of the program, whatever is asked; who has no token hears
    /// nothing of what is there; and nothing is written but graphs, which can be read.
    fn read(&self, input: &[u8]) -> Reading {
        let texts = parts(input, NEXT);
        if texts.len() > MAX_REQUESTS {
            return Reading::NotTried;
        }
        let n_panics_before = n_panics();
        let (mut n_sent, mut n_answered, mut may_write) = (0, 0, false);
        for text in &texts {
            let Some(request) = self.request(text) else { continue };
            may_write |= *request.method() != Method::GET;
            n_sent += 1;
            let answer = self.send(&self.open, request);
            check(&answer);
            let has_failed = answer.bytes.windows(14).any(|window| window == b"event: failed\n");
            n_answered += usize::from(!answer.status.is_client_error() && !has_failed);
            let [guarded, empty] = self.guarded.each_ref().map(|router| {
                let answer = self.send(router, self.request(text).expect("it was one before"));
                (answer.status, answer.bytes)
            });
            assert_eq!(guarded, empty, "without the token an answer says nothing of what is there");
        }
        if may_write {
            self.wait();
            self.restore();
        }
        assert_eq!(n_panics(), n_panics_before, "no thread panics");
        match n_sent {
            0 => Reading::NotTried,
            _ => Reading::from(n_answered == texts.len()),
        }
    }

    /// A request of `METHOD ADDRESS`, lines of headers, an empty line, a body.
    fn request(&self, text: &[u8]) -> Option<Request<Body>> {
        let (head, body) = match text.windows(2).position(|window| window == b"\n\n") {
            Some(at) => (&text[..at], &text[at + 2..]),
            None => (text, &b""[..]),
        };
        let mut lines = head.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let mut words = lines.next()?.splitn(2, |&byte| byte == b' ');
        let (method, address) = (words.next()?, words.next()?);
        let mut request = Request::builder().method(method).uri(address);
        for line in lines {
            let at = line.iter().position(|&byte| byte == b':')?;
            request = request.header(&line[..at], line[at + 1..].trim_ascii());
        }
        let headers = request.headers_mut()?;
        headers.entry(header::HOST).or_insert("127.0.0.1".parse().ok()?);
        if !body.is_empty() {
            headers.entry(header::CONTENT_TYPE).or_insert("application/json".parse().ok()?);
        }
        if address == b"/api/v1/jobs" && method == b"POST" {
            // Its events end with it, so that the next input finds the model free.
            headers.entry(header::ACCEPT).or_insert("text/event-stream".parse().ok()?);
        }
        request.body(Body::from(parts(body, MODEL.as_bytes()).join(self.model.as_bytes()))).ok()
    }

    fn send(&self, router: &Router, request: Request<Body>) -> Answer {
        self.runtime.block_on(async {
            let Ok(response) = router.clone().oneshot(request).await;
            let (parts, body) = response.into_parts();
            let content_type = parts.headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes().to_vec());
            let bytes = to_bytes(body, MAX_ANSWER_BYTES).await.expect("an answer is no longer than any graph here");
            Answer { status: parts.status, content_type: content_type.unwrap_or_default(), bytes }
        })
    }

    /// Waits until no job is left.
    fn wait(&self) {
        loop {
            let asked = self.request(b"GET /check-busy").expect("a request");
            if self.send(&self.open, asked).bytes == br#"{"busy":false}"#[..] {
                return;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Looks at what was written, and makes the folder what it was.
    fn restore(&self) {
        let beside: Vec<OsString> = contents_names(&self.root);
        assert_eq!(beside, ["graphs"], "nothing is written outside of the folder");
        for (name, bytes) in contents(&self.folder) {
            let path = self.folder.join(&name);
            let text = name.to_string_lossy();
            assert!(!text.starts_with('.'), "{text} is left");
            if self.files.get(&name) == Some(&bytes) {
                continue;
            }
            if text.ends_with(".json") && !text.ends_with(".view.json") && text != "graph-metadata.json" {
                let graph = stream_wire(&path, None).and_then(|graph| graph.circuit());
                assert!(graph.is_ok(), "a graph that was saved is read: {:?}", graph.err());
            }
            std::fs::remove_file(&path).expect("the folder can be written");
        }
        for (name, bytes) in &self.files {
            let path = self.folder.join(name);
            if !path.exists() {
                std::fs::write(path, bytes).expect("the folder can be written");
            }
        }
    }
}

/// What is wrong with an answer whatever was asked.
fn check(answer: &Answer) {
    let Answer { status, content_type, bytes } = answer;
    let shown = || String::from_utf8_lossy(&bytes[..bytes.len().min(500)]).into_owned();
    // What is busy says so; all else that goes wrong is wrong with the request.
    let is_wrong = status.is_server_error() && *status != StatusCode::SERVICE_UNAVAILABLE;
    let has_fault = || bytes.windows(FAULT.len()).any(|window| window == FAULT);
    let is_fault = is_wrong || (content_type == b"text/event-stream" && has_fault());
    assert!(!is_fault, "{status}: {}", shown());
    let is_json = content_type == b"application/json";
    assert!(!is_json || bytes.is_empty() || serde_json::from_slice::<Value>(bytes).is_ok(), "no JSON: {}", shown());
}

fn contents_names(folder: &std::path::Path) -> Vec<OsString> {
    let entries = folder.read_dir().expect("the folder is there");
    entries.map(|entry| entry.expect("an entry").file_name()).collect()
}

fn contents(folder: &std::path::Path) -> BTreeMap<OsString, Vec<u8>> {
    let read = |name: OsString| {
        let bytes = std::fs::read(folder.join(&name)).expect("files alone are there");
        (name, bytes)
    };
    contents_names(folder).into_iter().map(read).collect()
}
