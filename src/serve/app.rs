//! What all handlers share.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::assets::Assets;
use super::guard::Access;
use super::library::Library;
use super::reply::{Answer, Refusal};
use super::saving::Saving;
use super::whole::Whole;

/// The state of a server.
#[derive(Debug)]
pub(super) struct App {
    pub library: Library,
    pub saving: Saving,
    pub assets: Assets,
    pub access: Access,
    pub started: Instant,
}

impl App {
    pub fn new(folder: Option<PathBuf>, assets: Assets, access: Access) -> Self {
        Self { library: Library::new(folder), saving: Saving::default(), assets, access, started: Instant::now() }
    }

    /// The graph with this id, opened.
    ///
    /// # Errors
    /// There is none; it cannot be read.
    pub fn graph(&self, id: &str) -> Answer<Arc<Whole>> {
        let found = self.library.open(id)?;
        found.ok_or_else(|| Refusal::not_found(format!("there is no graph {id:?}")).hint("GET /api/v1/graphs lists them"))
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
