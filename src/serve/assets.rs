//! The page: its files are part of the program; while it is worked on they are read from a folder.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::files::PAGE;
use super::reply::{Answer, Hash, Refusal, matches_tag};

/// The description of the interface, part of the page's files.
pub(super) const OPENAPI: &str = "openapi.json";

/// Where the files of the page come from.
#[derive(Debug, Clone, Default)]
pub(super) enum Assets {
    /// The program itself.
    #[default]
    Embedded,
    /// A folder, read anew for every request.
    Folder(PathBuf),
}

/// An embedded file, with what is made of it once.
#[derive(Debug, Default)]
struct Made {
    etag: OnceLock<String>,
    gzip: OnceLock<Option<Bytes>>,
}

impl Assets {
    /// The file at `path`, `/` being the page itself.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, path: &str, headers: &HeaderMap) -> Answer {
        let name = match path.trim_start_matches('/') {
            "" => "index.html",
            // Pages that the page itself shows by its address.
            name if is_page_of_its_own(name) => "index.html",
            name => name,
        };
        let not_found = || Refusal::not_found("there is nothing at this address");
        match self {
            Assets::Embedded => {
                static MADE: OnceLock<Vec<Made>> = OnceLock::new();
                let made = MADE.get_or_init(|| PAGE.iter().map(|_| Made::default()).collect());
                let at = PAGE.iter().position(|(known, _)| *known == name).ok_or_else(not_found)?;
                let bytes = PAGE[at].1;
                let etag = made[at].etag.get_or_init(|| Hash::new().with(bytes).etag());
                let wants_gzip = headers.get_all(header::ACCEPT_ENCODING).iter().any(accepts_gzip);
                let zipped = if wants_gzip { made[at].gzip.get_or_init(|| gzip(bytes)).clone() } else { None };
                let is_zipped = zipped.is_some();
                let mut response = file(name, zipped.unwrap_or(Bytes::from_static(bytes)), etag, headers);
                if is_zipped && response.status() == StatusCode::OK {
                    response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                }
                response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
                Ok(response)
            }
            Assets::Folder(folder) => {
                let bytes = read_within(folder, name).ok_or_else(not_found)?;
                let etag = Hash::new().with(&bytes).etag();
                Ok(file(name, bytes.into(), &etag, headers))
            }
        }
    }
}

/// `graph`, `features/0/39`: the page reads its own address.
fn is_page_of_its_own(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let feature = name.strip_prefix("features/").and_then(|rest| rest.split_once('/'));
    name == "graph" || feature.is_some_and(|(layer, feature)| is_number(layer) && is_number(feature))
}

fn file(name: &str, bytes: Bytes, etag: &str, headers: &HeaderMap) -> Response {
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let mut response = match known.is_some_and(|known| matches_tag(known, etag)) {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => ([(header::CONTENT_TYPE, HeaderValue::from_static(content_type(name)))], bytes).into_response(),
    };
    // Asked for anew every time, so that a newer program never shows an older page.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(etag) = HeaderValue::from_str(etag) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}

fn content_type(name: &str) -> &'static str {
    match Path::new(name).extension().and_then(|extension| extension.to_str()).unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "json" => "application/json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "webmanifest" => "application/manifest+json",
        "txt" | "md" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

fn accepts_gzip(value: &HeaderValue) -> bool {
    let accepted = |part: &str| {
        let mut parts = part.split(';').map(str::trim);
        parts.next() == Some("gzip") && !parts.any(|weight| ["q=0", "q=0.0", "q=0.00", "q=0.000"].contains(&weight))
    };
    value.to_str().is_ok_and(|value| value.split(',').any(accepted))
}

/// Nothing where the program is built without it, or where it makes nothing smaller.
#[cfg(feature = "compressed")]
pub(super) fn gzip(bytes: &[u8]) -> Option<Bytes> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bytes).ok()?;
    encoder.finish().ok().filter(|zipped| zipped.len() < bytes.len()).map(Bytes::from)
}

#[cfg(not(feature = "compressed"))]
pub(super) fn gzip(_: &[u8]) -> Option<Bytes> {
    None
}

/// A file in a folder by its relative name; nothing that is outside, also by a link.
pub(super) fn read_within(folder: &Path, name: &str) -> Option<Vec<u8>> {
    let is_plain = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(['\\', '\0', ':']);
    if !name.split('/').all(is_plain) {
        return None;
    }
    let folder = folder.canonicalize().ok()?;
    let path = folder.join(name).canonicalize().ok()?;
    (path.starts_with(&folder) && path.is_file()).then(|| std::fs::read(path).ok())?
}
