//! A server in this process, and questions to it.

use std::path::Path;
use std::sync::OnceLock;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use circuitscope::serve::{Access, Limits, ServeOptions, Server};
use circuitscope::{AttributionOptions, PruneSettings, Setup, Tracer};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tower::ServiceExt;

use circuitscope::circuits::PairPlan;

pub const PROMPT: &str = "The capital of the state containing Dallas is";
pub const ID: &str = "the-capital-of-the-state-containing-dallas-is";

/// The files of the graph of [`PROMPT`], traced once for all tests.
fn traced() -> &'static TempDir {
    static TRACED: OnceLock<TempDir> = OnceLock::new();
    TRACED.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let tracer = Tracer::open(Setup::atlas()).unwrap();
        for (prompt, name) in [(PROMPT, ID), ("The capital of the state containing Oakland is", "oakland")] {
            let graph = tracer.trace(prompt, &AttributionOptions::default()).unwrap();
            let settings = PruneSettings::default();
            let pair = PairPlan {
                folder: folder.path().to_owned(),
                name: Some(name.into()),
                replaces_others: false,
                raw: true,
                json: true,
                inputs: Vec::new(),
            };
            pair.write(graph.graph(), &graph.prune(&settings).unwrap(), &settings).unwrap();
        }
        folder
    })
}

/// A folder of its own with both graphs.
pub fn graphs() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in traced().path().read_dir().unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

/// A server and what it runs in.
pub struct Kit {
    pub router: Router,
    pub runtime: Runtime,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub bytes: Bytes,
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The kind of a refusal.
    #[track_caller]
    pub fn refusal(&self) -> String {
        self.json()["error"]["kind"].as_str().unwrap().to_owned()
    }
}

pub fn options(folder: &Path) -> ServeOptions {
    ServeOptions { folder: Some(folder.to_owned()), ..ServeOptions::default() }
}

/// A viewer of a folder.
pub fn viewer(folder: &Path) -> Kit {
    Kit::new(options(folder))
}

/// A server with the embedded model.
pub fn with_model(folder: &Path) -> Kit {
    with_limits(folder, Limits::default())
}

pub fn with_limits(folder: &Path, limits: Limits) -> Kit {
    Kit::new(ServeOptions { model: Some(Box::new(|| Tracer::open(Setup::atlas()))), limits, ..options(folder) })
}

pub fn with_access(folder: &Path, access: Access) -> Kit {
    Kit::new(ServeOptions { access, ..options(folder) })
}

impl Kit {
    pub fn new(options: ServeOptions) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { router: Server::new(options).unwrap().router(), runtime }
    }

    /// Sends a request as it is.
    pub fn send(&self, request: Request<Body>) -> Answer {
        self.runtime.block_on(async {
            let (parts, body) = self.router.clone().oneshot(request).await.unwrap().into_parts();
            let bytes = to_bytes(body, usize::MAX).await.unwrap();
            Answer { status: parts.status, headers: parts.headers, bytes }
        })
    }

    pub fn request(&self, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request = request.header("host", "127.0.0.1");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(body.into()).unwrap())
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path, &[], Body::empty())
    }

    #[track_caller]
    pub fn json(&self, path: &str) -> Value {
        let answer = self.get(path);
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text());
        answer.json()
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.request(Method::POST, path, &[("content-type", "application/json")], body.to_string())
    }
}

/// Columns by name, as bytes, and the metadata.
pub struct Columns {
    header: Value,
    bytes: Vec<u8>,
}

impl Columns {
    pub fn read(answer: &Answer) -> Self {
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        let len = u64::from_le_bytes(answer.bytes[..8].try_into().unwrap()) as usize;
        assert_eq!(len % 8, 0, "columns are aligned");
        // Any reader of such files can read it.
        safetensors::SafeTensors::deserialize(&answer.bytes).unwrap();
        let header = serde_json::from_slice(&answer.bytes[8..8 + len]).unwrap();
        Self { header, bytes: answer.bytes[8 + len..].to_vec() }
    }

    pub fn metadata(&self, key: &str) -> &str {
        self.header["__metadata__"][key].as_str().unwrap()
    }

    pub fn raw(&self, name: &str) -> &[u8] {
        let at = |end: usize| self.header[name]["data_offsets"][end].as_u64().unwrap() as usize;
        &self.bytes[at(0)..at(1)]
    }

    pub fn u32s(&self, name: &str) -> Vec<u32> {
        self.raw(name).chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn f32s(&self, name: &str) -> Vec<f32> {
        self.u32s(name).into_iter().map(f32::from_bits).collect()
    }

    pub fn texts(&self, name: &str) -> Vec<String> {
        let (starts, bytes) = (self.u32s(&format!("{name}_start")), self.raw(&format!("{name}_text")));
        starts.windows(2).map(|e| String::from_utf8(bytes[e[0] as usize..e[1] as usize].to_vec()).unwrap()).collect()
    }
}
