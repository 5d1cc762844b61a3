//! Who may ask: the Host and Origin of every request, the token of a server that others can reach, and the headers that
//! tell a browser what the page may do.
//!
//! A page of any site can send requests to 127.0.0.1. It cannot choose the `Host` and `Origin` that its browser sends, and
//! a name that it has pointed at 127.0.0.1 (DNS rebinding) shows in `Host`; so both must be this server's own.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::connection::Connection;
use super::reply::Refusal;

/// What may be asked of a server.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Names and addresses that `Host` may have besides those of the loopback, in lower case, without a port.
    pub hosts: Vec<String>,
    /// The port, where it is known: `Host` and `Origin` must name it.
    pub port: Option<u16>,
    /// What requests must carry, where the server can be reached from elsewhere.
    pub token: Option<String>,
    /// Secret of Neuronpedia's clients, in `x-secret-key`.
    pub secret: Option<String>,
    /// The page is another program's, which may load and run what it wants.
    pub foreign_page: bool,
}

/// The cookie that carries the token.
pub(super) const COOKIE: &str = "circuitscope";

/// The page may load and run what comes from this server, and nothing else; nobody may frame it.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; \
     connect-src 'self'; font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'self'; require-trusted-types-for 'script'; trusted-types 'none'";

/// On every answer.
const HEADERS: [(&str, &str); 7] = [
    ("content-security-policy", CONTENT_SECURITY_POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("x-frame-options", "SAMEORIGIN"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
];

/// Lets a request through, or refuses it; either way the answer gets its headers.
pub(super) async fn guard(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    let _busy = request.extensions().get::<axum::extract::ConnectInfo<Connection>>().map(|info| info.0.busy());
    let is_head = *request.method() == Method::HEAD;
    let is_lax = access.foreign_page && is_page(request.uri().path());
    let mut response = match access.check(request.method(), request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS.iter().filter(|_| !is_lax).copied() {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    // A plain text or empty refusal of the router becomes JSON as all others are.
    if !is_head && response.status().is_client_error() && !response.headers().contains_key(header::CONTENT_TYPE) {
        return plain(response);
    }
    response
}

fn plain(response: Response) -> Response {
    let refusal = match response.status() {
        StatusCode::NOT_FOUND => Refusal::not_found("there is nothing at this address"),
        StatusCode::METHOD_NOT_ALLOWED => {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method", "this address has no such method")
        }
        status => Refusal::new(status, "bad_request", status.canonical_reason().unwrap_or("refused")),
    };
    let (mut parts, _) = response.into_parts();
    let (own, body) = refusal.into_response().into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    for (name, value) in &own.headers {
        parts.headers.insert(name.clone(), value.clone());
    }
    Response::from_parts(parts, body)
}

/// A header's one value; two of them are one too many.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, ()> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(());
    }
    first.map(|value| value.to_str().map_err(|_| ())).transpose()
}

impl Access {
    fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
        let forbidden = |message: String| Refusal::new(StatusCode::FORBIDDEN, "forbidden", message);
        let host = only(headers, &header::HOST).map_err(|()| forbidden("there is more than one Host".into()))?;
        // A request for a whole address names its host there.
        let host = uri.authority().map(|authority| authority.as_str()).or(host);
        let host = host.ok_or_else(|| forbidden("there is no Host".into()))?;
        if !self.is_own_host(host) {
            return Err(forbidden(format!("{host:?} is not this server's address"))
                .hint("open the page by the address that the server printed"));
        }
        let origin = only(headers, &header::ORIGIN).map_err(|()| forbidden("there is more than one Origin".into()))?;
        if let Some(origin) = origin
            && !self.is_own_origin(origin)
        {
            return Err(forbidden(format!("requests from pages of {origin:?} are refused")));
        }
        // Browsers say where a request comes from also where they send no Origin: pictures, scripts, forms.
        let site = only(headers, &HeaderName::from_static("sec-fetch-site"));
        let site = site.map_err(|()| forbidden("there is more than one Sec-Fetch-Site".into()))?;
        let navigates = headers.get("sec-fetch-mode").is_some_and(|mode| mode == "navigate") && method == Method::GET;
        if let Some(site) = site
            && !["same-origin", "none"].contains(&site)
            && !(navigates && is_page(uri.path()))
        {
            return Err(forbidden(format!("requests from other pages are refused (Sec-Fetch-Site: {site})")));
        }
        match &self.token {
            Some(token) if needs_token(uri.path()) && !carries(headers, token) => {
                Err(Refusal::new(StatusCode::UNAUTHORIZED, "unauthorized", "this server wants its token")
                    .hint("open the page by the whole address that the server printed, token included"))
            }
            _ => Ok(()),
        }
    }

    fn is_own_host(&self, host: &str) -> bool {
        let Some((name, port)) = split_port(host) else { return false };
        let is_port = match self.port {
            Some(own) => port.unwrap_or(80) == own,
            None => true,
        };
        let name = name.to_ascii_lowercase();
        let is_loopback = name == "localhost"
            || name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        is_port && (is_loopback || self.hosts.contains(&name))
    }

    fn is_own_origin(&self, origin: &str) -> bool {
        origin
            .strip_prefix("http://")
            .is_some_and(|host| !host.contains(['/', '@', '?', '#']) && self.is_own_host(host))
    }

    /// Whether a token is this server's.
    pub(super) fn is_token(&self, given: &str) -> bool {
        self.token.as_ref().is_none_or(|token| same(token.as_bytes(), given.as_bytes()))
    }
}

/// `name:port` taken apart; IPv6 addresses are in brackets.
fn split_port(host: &str) -> Option<(&str, Option<u16>)> {
    let colon = match host.rfind(']') {
        Some(end) => host[end..].find(':').map(|at| end + at),
        None => host.find(':'),
    };
    match colon {
        Some(colon) => Some((&host[..colon], Some(host[colon + 1..].parse().ok()?))),
        None => Some((host, None)),
    }
}

/// Compares in the same time wherever the difference is.
pub(super) fn same(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b));
    a.len() == b.len() && std::hint::black_box(difference) == 0
}

fn carries(headers: &HeaderMap, token: &str) -> bool {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| value.strip_prefix("Bearer "));
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let cookies = cookies.flat_map(|value| value.split(';'));
    let cookie = cookies.filter_map(|pair| pair.trim().split_once('=')).filter(|(name, _)| *name == COOKIE);
    bearer.into_iter().chain(cookie.map(|(_, value)| value)).any(|given| same(token.as_bytes(), given.as_bytes()))
}

/// What is no secret: the files of the page, which need no token so that it can ask for it.
fn needs_token(path: &str) -> bool {
    let is_data = ["/api/", "/data/", "/graph_data/", "/features/", "/dashboards/", "/save_graph/"]
        .iter()
        .any(|start| path.starts_with(start));
    let is_call = ["/generate-graph", "/forward-pass", "/steer", "/check-busy", "/parse-chat-prompt"].contains(&path);
    (is_data || is_call) && path != "/api/v1/session"
}

/// Where a link on another page may lead.
fn is_page(path: &str) -> bool {
    !needs_token(path) && path != "/api/v1/session"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_apart_to_the_port() {
        let access = Access { port: Some(8041), hosts: vec!["lab.example".into()], ..Access::default() };
        for host in
            ["127.0.0.1:8041", "localhost:8041", "LOCALHOST:8041", "[::1]:8041", "127.0.0.2:8041", "lab.example:8041"]
        {
            assert!(access.is_own_host(host), "{host}");
            assert!(access.is_own_origin(&format!("http://{host}")), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8041",
            "127.0.0.1",
            "127.0.0.1:80",
            "127.0.0.1:8042",
            "127.0.0.1.evil.example:8041",
            "localhost.evil.example:8041",
            "0.0.0.0:8041",
            "10.0.0.1:8041",
            "[::2]:8041",
            "",
            ":8041",
            "127.0.0.1:x",
            "127.0.0.1:8041:8041",
            "user@127.0.0.1:8041",
            "2130706433:8041",
        ] {
            assert!(!access.is_own_host(host), "{host}");
        }
        for origin in [
            "null",
            "https://127.0.0.1:8041",
            "http://127.0.0.1:8041/",
            "http://127.0.0.1:8041@evil.example",
            "file://",
            "",
        ] {
            assert!(!access.is_own_origin(origin), "{origin}");
        }
    }
}
