//! What the server is, its description, and the token of one that has it.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::super::app::App;
use super::super::assets::OPENAPI;
use super::super::extract::Body;
use super::super::guard::COOKIE;
use super::super::reply::{Answer, Refusal, json_response};

pub(in super::super) async fn health(State(app): State<Arc<App>>) -> Response {
    let folder = app.library.folder().and_then(|folder| folder.file_name()).map(|name| name.to_string_lossy().into_owned());
    json_response(&json!({
        "name": "circuitscope",
        "version": env!("CARGO_PKG_VERSION"),
        "model": null,
        "features": false,
        "folder": folder,
        "can_save": app.library.folder().is_some(),
        "demo_prompt": null,
        "jobs": {"waiting": 0, "running": 0, "limit": 0},
        "uptime_secs": app.started.elapsed().as_secs_f64(),
    }))
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
