//! The dialect of circuit-tracer's local server, which its page speaks.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use serde_json::{Value, json};

use super::super::app::{App, away};
use super::super::reply::{Answer, json_response};

pub(super) fn router() -> Router<Arc<App>> {
    Router::new().route("/data/graph-metadata.json", get(list))
}

async fn list(State(app): State<Arc<App>>) -> Answer {
    away(move || {
        let entry = |entry: super::super::library::Entry| -> Value {
            json!({"slug": entry.id, "scan": entry.scan, "prompt_tokens": entry.prompt_tokens, "prompt": entry.prompt, "schema_version": 1})
        };
        Ok(json_response(&json!({"graphs": app.library.list().into_iter().map(entry).collect::<Vec<_>>()})))
    })
    .await
}
