//! What the server is, its description, and the token of one that has it.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::weights::ATLAS;

use super::super::app::{App, DEMO_PROMPT, away};
use super::super::assets::OPENAPI;
use super::super::extract::Body;
use super::super::folder_key;
use super::super::guard::COOKIE;
use super::super::reply::{Answer, Refusal, json_response};
use super::super::work::ModelState;

pub(in super::super) async fn health(State(app): State<Arc<App>>) -> Answer {
    away(move || {
        let folder = app.library.folder();
        let name = folder.and_then(|folder| folder.file_name()).map(|name| name.to_string_lossy().into_owned());
        // Who asks whether this server has their folder knows its path.
        let key = folder.and_then(|folder| folder.canonicalize().ok()).map(|folder| folder_key(&folder));
        let (waiting, running) = app.work.counts();
        let limits = app.work.limits;
        let model = match app.work.model() {
            ModelState::None => Value::Null,
            ModelState::Opening => json!({"name": "", "transcoders": "", "state": "opening"}),
            ModelState::Failed(refusal) => json!({"name": "", "transcoders": "", "state": "failed", "error": refusal.message}),
            ModelState::Open(tracer) => {
                let config = &tracer.replacement().model.config;
                json!({
                    "name": tracer.model_name(),
                    "transcoders": tracer.transcoder_name(),
                    "n_layers": config.n_layers,
                    "state": "open",
                    "error": null,
                    "max_positions": limits.positions.min(config.n_ctx),
                })
            }
        };
        let is_atlas = matches!(app.work.model(), ModelState::Open(tracer) if tracer.model_name() == ATLAS);
        Ok(json_response(&json!({
            "name": "circuitscope",
            "version": env!("CARGO_PKG_VERSION"),
            "model": model,
            "features": app.has_features(),
            "folder": name,
            "folder_key": key,
            "can_save": folder.is_some(),
            "demo_prompt": is_atlas.then_some(DEMO_PROMPT),
            "jobs": {"waiting": waiting, "running": running, "limit": limits.queue},
            "limits": {"positions": limits.positions, "rows": limits.rows, "tokens": limits.tokens, "points": limits.points, "secs": limits.time.as_secs()},
            "uptime_secs": app.started.elapsed().as_secs_f64(),
        })))
    })
    .await
}

pub(in super::super) async fn openapi(State(app): State<Arc<App>>, headers: HeaderMap) -> Answer {
    app.assets.get(OPENAPI, &headers)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Token {
    token: String,
}

/// The token for a cookie, which pictures and event streams of a page carry too.
pub(in super::super) async fn session(State(app): State<Arc<App>>, Body(body): Body<Token>) -> Answer {
    if !app.access.is_token(&body.token) {
        return Err(Refusal::new(StatusCode::UNAUTHORIZED, "unauthorized", "this is not the token of this server"));
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    if let Some(token) = &app.access.token
        && let Ok(cookie) = HeaderValue::from_str(&format!("{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/"))
    {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    Ok(response)
}
