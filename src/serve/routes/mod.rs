//! Addresses and what answers at each.

mod circuit_tracer;
mod features;
mod graphs;
mod health;
mod jobs;
mod links;
mod neuronpedia;
mod parts;
mod pictures;
mod views;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};

use super::app::{App, away};
use super::extract::MAX_BODY_BYTES;
use super::guard::{Access, guard};
use super::reply::{Answer, Refusal};

/// All routes, behind the guard.
pub(super) fn router(app: Arc<App>, access: Arc<Access>) -> Router {
    let api = Router::new()
        .route("/health", get(health::health))
        .route("/session", post(health::session))
        .route("/openapi.json", get(health::openapi))
        .route("/graphs", get(graphs::list))
        .route("/graphs/{id}", get(graphs::header))
        .route("/graphs/{id}/nodes.bin", get(graphs::nodes))
        .route("/graphs/{id}/links.bin", get(links::links))
        .route("/graphs/{id}/node/{n}/links", get(links::of_node))
        .route("/graphs/{id}/prune", get(graphs::prune))
        .route("/graphs/{id}/paths", get(parts::paths))
        .route("/graphs/{id}/groups/auto", get(parts::groups))
        .route("/graphs/{id}/scores", post(parts::scores))
        .route("/graphs/{id}/diff/{other}", get(parts::diff))
        .route("/graphs/{id}/search", get(parts::search))
        .route("/graphs/{id}/picture.svg", get(pictures::svg_of_view))
        .route("/graphs/{id}/picture.png", get(pictures::png_of_view))
        .route("/graphs/{id}/picture", post(pictures::picture))
        .route("/graphs/{id}/layout", post(pictures::layout))
        .route("/graphs/{id}/{export}", get(pictures::export))
        .route("/graphs/{id}/view", get(views::read).put(views::save))
        .route("/graphs/{id}/save", post(jobs::save_graph))
        .route("/tokenize", post(jobs::tokenize))
        .route("/top-tokens", post(jobs::top_tokens))
        .route("/jobs", get(jobs::list).post(jobs::ask))
        .route("/jobs/{job}", get(jobs::one).delete(jobs::cancel))
        .route("/jobs/{job}/events", get(jobs::events))
        .route("/features", get(features::about))
        .route("/features/search", get(features::search))
        .route("/features/{layer}/{i}", get(features::dashboard))
        .route("/features/{layer}/{i}/on-text", post(features::on_text))
        .route("/features/{layer}/{i}/published", get(features::on_site))
        .fallback(nothing);
    Router::new()
        .nest("/api/v1", api)
        .merge(circuit_tracer::router())
        .merge(neuronpedia::router())
        .fallback(get(page))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(from_fn_with_state(access, guard))
        .with_state(app)
}

async fn nothing() -> Refusal {
    Refusal::not_found("there is nothing at this address").hint("GET /api/v1/openapi.json describes the interface")
}

async fn page(State(app): State<Arc<App>>, uri: Uri, headers: HeaderMap) -> Answer {
    let path = uri.path().to_owned();
    away(move || app.assets.get(&path, &headers)).await
}
