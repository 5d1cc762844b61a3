//! `serve`: graphs, features and interventions over HTTP, and the page that shows them.
//!
//! In go a folder of graphs, a way to open a model, and requests; out come JSON and columns of numbers
//! (`web/openapi.json`), pictures, and the page's own files from `web/`. Graphs are opened once and cut as they are asked
//! for; long work goes through one queue to the one thread that has the model. Two dialects besides let the clients of
//! circuit-tracer's local server and of Neuronpedia's graph server work unchanged. Nothing is written but what is saved.

mod app;
mod assets;
mod columns;
mod connection;
mod cut;
mod extract;
mod files;
mod guard;
mod json_span;
mod library;
mod reply;
mod requests;
mod routes;
mod running;
mod saving;
mod view;
mod whole;
mod work;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;

use crate::error::{Error, Result};
use crate::tracer::Tracer;
use crate::weights::ATLAS;

use app::{App, DEMO_PROMPT};
use assets::Assets;
use connection::{Bounded, Connection};
use library::Library;
use requests::trace_demo;
use work::Work;

pub use connection::Patience;
pub use guard::Access;
pub use running::{graph_url, is_serving};
pub use work::Limits;

/// Opens the model of a server, on the thread that works with it.
pub type OpenModel = Box<dyn FnOnce() -> Result<Tracer> + Send>;

/// What a server works with.
#[derive(Default)]
pub struct ServeOptions {
    /// The folder of graphs; need not be there yet.
    pub folder: Option<PathBuf>,
    /// How its model is opened; `None`: a viewer.
    pub model: Option<OpenModel>,
    /// What features are active on: a folder of features, or one of transcoders that has one; `None`: beside the
    /// transcoders of the model.
    pub features: Option<PathBuf>,
    /// A site with Neuronpedia's interface, that is asked about features of published sets when somebody wants to know;
    /// `None`: nobody is asked.
    pub published_site: Option<String>,
    /// Whether the embedded model traces a demonstration where the folder has no graph.
    pub demo: bool,
    /// What is done for one request, at most.
    pub limits: Limits,
    /// The files of the page are read from here, and not from the program.
    pub page: Option<PathBuf>,
    /// Who may ask.
    pub access: Access,
    /// How long connections may take.
    pub patience: Patience,
}

/// A server, not listening yet.
#[derive(Debug, Clone)]
pub struct Server {
    app: Arc<App>,
    access: Access,
    patience: Patience,
}

impl Server {
    /// Makes a server.
    ///
    /// # Errors
    /// [`Error::Threads`].
    pub fn new(options: ServeOptions) -> Result<Self> {
        let ServeOptions { folder, model, features, published_site, demo, limits, page, access, patience } = options;
        let assets = page.map_or(Assets::Embedded, Assets::Folder);
        let library = Arc::new(Library::new(folder));
        let shown = library.clone();
        let work = Work::start(model, limits, move |tracer| {
            if demo && tracer.model_name() == ATLAS && shown.files().is_empty() {
                // Without it the page begins with an empty list.
                let _ = trace_demo(&shown, tracer, DEMO_PROMPT);
            }
        })?;
        Ok(Self {
            app: Arc::new(App::new(library, assets, access.clone(), work, features, published_site)),
            access,
            patience,
        })
    }

    /// All routes, behind the guard: what tests call without a network.
    pub fn router(&self) -> Router {
        routes::router(self.app.clone(), Arc::new(self.access.clone()))
    }

    /// Listens at `address` until the program ends; `listening` hears where, before the first request.
    ///
    /// # Errors
    /// The address is taken, or is none of this machine's.
    pub fn run(mut self, address: SocketAddr, listening: impl FnOnce(SocketAddr)) -> Result<()> {
        let failed = |source| Error::Io { doing: "cannot listen at", path: address.to_string().into(), source };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(MAX_BLOCKING_THREADS)
            .thread_name("serve")
            .enable_all()
            .build()
            .map_err(|error| Error::Threads { reason: error.to_string() })?;
        runtime.block_on(async {
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            let local = listener.local_addr().map_err(failed)?;
            self.access.port = Some(local.port());
            if !is_loopback(local.ip()) {
                self.access.hosts.push(local.ip().to_string());
            }
            listening(local);
            let service = self.router().into_make_service_with_connect_info::<Connection>();
            axum::serve(Bounded::new(listener, self.patience), service).await.map_err(failed)
        })
    }
}

/// Threads that compute answers; more would only take each other's time.
const MAX_BLOCKING_THREADS: usize = 8;

/// Whether only this machine reaches an address.
pub fn is_loopback(ip: IpAddr) -> bool {
    ip.is_loopback()
}

/// What tells a server's folder from others of its name, without telling its path.
pub fn folder_key(folder: &std::path::Path) -> String {
    reply::Hash::new().with(folder.as_os_str().as_encoded_bytes()).etag().trim_matches('"').to_owned()
}
