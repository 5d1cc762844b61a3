//! What all handlers share.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use serde_json::Value;

use crate::circuits::PairPlan;
use crate::features::FeatureSet;
use crate::prune::PruneSettings;
use crate::tracer::Tracer;

use super::assets::Assets;
use super::guard::Access;
use super::library::Library;
use super::reply::{Answer, Refusal};
use super::requests::Verifications;
use super::saving::Saving;
use super::whole::Whole;
use super::work::{ModelState, Work};

/// Verifications that are remembered.
const MAX_VERIFICATIONS: usize = 64;

/// How long the first list of graphs waits for the demonstration.
const DEMO_TIME: Duration = Duration::from_secs(3);

/// The prompt of the demonstration.
pub(super) const DEMO_PROMPT: &str = "The capital of the state containing Dallas is";

/// The state of a server.
#[derive(Debug)]
pub(super) struct App {
    pub library: Arc<Library>,
    pub saving: Saving,
    pub assets: Assets,
    pub access: Access,
    pub work: Arc<Work>,
    pub started: Instant,
    /// A site with Neuronpedia's interface that may be asked.
    pub published_site: Option<String>,
    features_folder: Option<PathBuf>,
    features: OnceLock<Option<Arc<FeatureSet>>>,
    verifications: Mutex<Verifications>,
    /// What uses the model beside the queue comes one after the other.
    aside: Mutex<()>,
}

impl Drop for App {
    fn drop(&mut self) {
        self.work.close();
    }
}

impl App {
    pub fn new(
        library: Arc<Library>,
        assets: Assets,
        access: Access,
        work: Arc<Work>,
        features: Option<PathBuf>,
        published_site: Option<String>,
    ) -> Self {
        Self {
            library,
            saving: Saving::default(),
            assets,
            access,
            work,
            started: Instant::now(),
            published_site,
            features_folder: features,
            features: OnceLock::new(),
            verifications: Mutex::default(),
            aside: Mutex::default(),
        }
    }

    /// The graph with this id, opened.
    ///
    /// # Errors
    /// There is none; it cannot be read.
    pub fn graph(&self, id: &str) -> Answer<Arc<Whole>> {
        let mut found = self.library.open(id)?;
        if found.is_none() && self.wait_for_demo() {
            found = self.library.open(id)?;
        }
        found.ok_or_else(|| {
            Refusal::not_found(format!("there is no graph {id:?}")).hint("GET /api/v1/graphs lists them")
        })
    }

    /// Waits a moment where the demonstration may be on its way; whether there was something to wait for.
    pub fn wait_for_demo(&self) -> bool {
        let is_opening = matches!(self.work.model(), ModelState::Opening);
        if is_opening {
            self.work.wait_open(DEMO_TIME);
        }
        is_opening
    }

    /// What features are active on, where that was collected: the folder that was named, else the one beside the
    /// transcoders.
    ///
    /// # Errors
    /// There is none.
    pub fn feature_set(&self) -> Answer<Arc<FeatureSet>> {
        let open = || {
            let folder = self.features_folder.as_ref().map(|folder| folder.display().to_string());
            let name = folder.or_else(|| Some(self.work.tracer().ok()?.replacement().transcoder_source.clone()))?;
            FeatureSet::open_named(&name).ok().map(Arc::new)
        };
        let none = || {
            Refusal::not_found("what features are active on was not collected")
                .hint("`circuitscope features collect` makes a folder, which `serve --features` reads")
        };
        // The model that it may lie beside is on its way.
        if self.features.get().is_none()
            && self.features_folder.is_none()
            && matches!(self.work.model(), ModelState::None)
        {
            return Err(none());
        }
        self.features.get_or_init(open).clone().ok_or_else(none)
    }

    /// Whether there are features, as far as that is known without waiting.
    pub fn has_features(&self) -> bool {
        match self.work.model() {
            ModelState::Opening if self.features_folder.is_none() => false,
            _ => self.feature_set().is_ok(),
        }
    }

    /// Uses the model for something short, beside the queue.
    ///
    /// # Errors
    /// There is no model; those of `compute`.
    pub fn aside<T>(&self, compute: impl FnOnce(&Tracer) -> Answer<T>) -> Answer<T> {
        let tracer = self.work.tracer()?;
        let _one = self.aside.lock().unwrap_or_else(PoisonError::into_inner);
        compute(&tracer)
    }

    /// Remembers what `verify` found of a graph.
    pub fn keep_verification(&self, etag: &str, found: &Value) {
        let mut all = self.verifications.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_VERIFICATIONS {
            all.pop_first();
        }
        all.insert(etag.to_owned(), found.clone());
    }

    /// What `verify` found of a graph last.
    pub fn verification(&self, etag: &str) -> Option<Value> {
        self.verifications.lock().unwrap_or_else(PoisonError::into_inner).get(etag).cloned()
    }

    /// Writes a graph that is in memory alone, its saved view with it. Gives the id that it has from then on.
    ///
    /// # Errors
    /// There is none; files of that name are another graph's; they cannot be written.
    pub fn save_in_memory(&self, id: &str, name: Option<String>) -> Answer<String> {
        let graph = self.library.in_memory(id).ok_or_else(|| match self.library.files_of(id) {
            Some(_) => Refusal::new(StatusCode::CONFLICT, "other_graph", format!("{id:?} is written already")),
            None => Refusal::not_found(format!("there is no graph {id:?}")),
        })?;
        let settings = PruneSettings::default();
        let whole = &graph.whole;
        let traced = whole.raw().ok_or_else(|| Refusal::internal("a graph in memory has its rows"))?;
        let circuit = whole.cut(Some(settings))?.circuit(whole)?;
        let pair = PairPlan {
            folder: self.library.need_folder()?.to_owned(),
            name,
            replaces_others: false,
            raw: true,
            json: true,
            inputs: Vec::new(),
        };
        let files = pair.write(traced.graph(), &circuit, &settings)?;
        let saved = files.first().and_then(|file| file.file_stem()).unwrap_or_default().to_string_lossy().into_owned();
        self.library.forget(id);
        let q_params = graph.q_params.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if !q_params.is_empty() {
            drop(self.saving.save(&self.library, &saved, None, |_| q_params)?);
        }
        Ok(saved)
    }
}

/// Computes an answer away from the threads that listen.
///
/// # Errors
/// Those of `compute`; a panic in it, which is this program's fault.
pub(super) async fn away<T: Send + 'static>(compute: impl FnOnce() -> Answer<T> + Send + 'static) -> Answer<T> {
    match tokio::task::spawn_blocking(compute).await {
        Ok(answer) => answer,
        Err(_) => Err(Refusal::internal("this request cannot be answered because of a fault in the program")),
    }
}
