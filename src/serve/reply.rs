//! Answers: JSON, and refusals with a status, a kind, one sentence and a hint.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::{Error, ErrorKind};
use crate::hash::{PRIME, START, fnv1a};

/// Why a request gets no answer of its own.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Refusal {
    pub status: StatusCode,
    /// Stable, for programs.
    pub kind: &'static str,
    /// One sentence that names the thing.
    pub message: String,
    pub hint: Option<String>,
}

/// What handlers give.
pub(super) type Answer<T = Response> = Result<T, Refusal>;

impl Refusal {
    pub fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), hint: None }
    }

    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    pub fn no_model() -> Self {
        Self::new(StatusCode::CONFLICT, "no_model", "this server has no model")
            .hint("start it with --setup NAME, or --model and --transcoders")
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }

    /// As it stands in answers and events.
    pub fn to_json(&self) -> Value {
        let mut error = json!({"kind": self.kind, "message": self.message});
        if let Some(hint) = &self.hint {
            error["hint"] = json!(hint);
        }
        json!({ "error": error })
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let (status, kind) = match (error.kind(), error.root()) {
            (_, Error::Io { source, .. }) => match source.kind() {
                std::io::ErrorKind::NotFound => (StatusCode::NOT_FOUND, "not_found"),
                std::io::ErrorKind::StorageFull
                | std::io::ErrorKind::QuotaExceeded
                | std::io::ErrorKind::FileTooLarge
                | std::io::ErrorKind::PermissionDenied
                | std::io::ErrorKind::ReadOnlyFilesystem => (StatusCode::INSUFFICIENT_STORAGE, "disk"),
                _ => (StatusCode::INTERNAL_SERVER_ERROR, "disk"),
            },
            (_, Error::OtherGraph { .. } | Error::InTheWay { .. } | Error::WorkedOn { .. }) => {
                (StatusCode::CONFLICT, "other_graph")
            }
            (ErrorKind::Io, _) => (StatusCode::INTERNAL_SERVER_ERROR, "disk"),
            (ErrorKind::Format, Error::Plan { .. }) | (ErrorKind::Request, _) => {
                (StatusCode::BAD_REQUEST, "bad_request")
            }
            (ErrorKind::Format, _) => (StatusCode::UNPROCESSABLE_ENTITY, "damaged"),
            (ErrorKind::Mismatch, _) => (StatusCode::CONFLICT, "mismatch"),
            (ErrorKind::NotFound, _) => (StatusCode::NOT_FOUND, "not_found"),
            (ErrorKind::TooLarge, _) => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            (ErrorKind::Network, _) => (StatusCode::BAD_GATEWAY, "network"),
            (ErrorKind::Device, _) => (StatusCode::INTERNAL_SERVER_ERROR, "device"),
            (ErrorKind::Cancelled, _) => (StatusCode::CONFLICT, "cancelled"),
        };
        let mut message = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            message.push_str(": ");
            message.push_str(&error.to_string());
            cause = error.source();
        }
        Self { status, kind, message, hint: error.hint() }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, json_response(&self.to_json())).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        response
    }
}

/// A value as JSON.
pub(super) fn json_response(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => bytes_response("application/json", bytes),
        Err(error) => Refusal::internal(format!("the answer is no JSON: {error}")).into_response(),
    }
}

/// Bytes of a type.
pub(super) fn bytes_response(content_type: &'static str, bytes: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))], bytes.into()).into_response()
}

/// A file to be stored under `name`, which is of our own making: letters, digits, dots and hyphens.
pub(super) fn download(content_type: &'static str, name: &str, bytes: impl Into<Body>) -> Response {
    let safe: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "-._".contains(c) { c } else { '-' }).collect();
    let mut response = bytes_response(content_type, bytes);
    if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename=\"{safe}\"")) {
        response.headers_mut().insert(header::CONTENT_DISPOSITION, value);
    }
    response
}

/// Puts an ETag on an answer, or gives 304 in its place where the client has it.
pub(super) fn tagged(etag: &str, if_none_match: Option<&HeaderValue>, answer: impl FnOnce() -> Answer) -> Answer {
    let has_it = if_none_match.and_then(|value| value.to_str().ok()).is_some_and(|known| matches_tag(known, etag));
    let mut response = if has_it { StatusCode::NOT_MODIFIED.into_response() } else { answer()? };
    if let Ok(value) = HeaderValue::from_str(etag) {
        response.headers_mut().insert(header::ETAG, value);
    }
    Ok(response)
}

/// Whether a list of ETags has this one.
pub(super) fn matches_tag(list: &str, etag: &str) -> bool {
    list.split(',').map(str::trim).any(|tag| tag == "*" || tag == etag || tag.strip_prefix("W/") == Some(etag))
}

/// A short name of some content: FNV-1a, the same for ever.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hash(u64);

impl Hash {
    pub fn new() -> Self {
        Self(START)
    }

    pub fn with(self, bytes: &[u8]) -> Self {
        Self(fnv1a(self.0, bytes.iter().copied()))
    }

    /// Eight bytes in one step, for what is long.
    pub fn with_number(self, number: u64) -> Self {
        Self((self.0 ^ number).wrapping_mul(PRIME).rotate_left(29))
    }

    /// In quotes, as a header has it.
    pub fn etag(self) -> String {
        format!("\"{:016x}\"", self.0)
    }
}
