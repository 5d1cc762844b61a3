//! Who may ask, and for what: attacks, one table each.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use circuitscope::serve::Access;
use serde_json::json;

use super::kit::{ID, Kit, graphs, options, viewer, with_access};

fn on_port(port: u16) -> Access {
    Access { port: Some(port), ..Access::default() }
}

#[test]
fn requests_by_another_name_are_refused_whatever_they_ask() {
    let folder = graphs();
    let kit = with_access(folder.path(), on_port(8041));
    for host in ["127.0.0.1:8041", "localhost:8041", "[::1]:8041", "LocalHost:8041"] {
        assert_eq!(kit.request(Method::GET, "/api/v1/health", &[("host", host)], "").status, StatusCode::OK, "{host}");
    }
    for host in [
        "evil.example",
        "evil.example:8041",
        "127.0.0.1",
        "127.0.0.1:8042",
        "127.0.0.1.evil.example:8041",
        "0.0.0.0:8041",
        "localhost.evil.example:8041",
        "[::]:8041",
        "127.0.0.1:8041@evil.example",
        "",
        "127.0.0.1:8041,evil.example",
    ] {
        for path in ["/", "/api/v1/health", "/api/v1/graphs", "/data/graph-metadata.json", "/check-busy"] {
            let answer = kit.request(Method::GET, path, &[("host", host)], "");
            assert_eq!((answer.status, answer.refusal()), (StatusCode::FORBIDDEN, "forbidden".into()), "{host} {path}");
        }
    }
    let without = Request::builder().uri("/api/v1/health").body(Body::empty()).unwrap();
    assert_eq!(kit.send(without).status, StatusCode::FORBIDDEN);
    let twice =
        Request::builder().uri("/api/v1/health").header("host", "127.0.0.1:8041").header("host", "evil.example");
    assert_eq!(kit.send(twice.body(Body::empty()).unwrap()).status, StatusCode::FORBIDDEN);
    // A request for a whole address is for the host that it names.
    let absolute = Request::builder().uri("http://evil.example/api/v1/health").header("host", "127.0.0.1:8041");
    assert_eq!(kit.send(absolute.body(Body::empty()).unwrap()).status, StatusCode::FORBIDDEN);
}

#[test]
fn pages_of_other_sites_read_nothing_and_change_nothing() {
    let folder = graphs();
    let kit = with_access(folder.path(), on_port(8041));
    let view = format!("/api/v1/graphs/{ID}/view");
    let own = [("host", "127.0.0.1:8041")];
    for (name, value) in [
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("origin", "http://127.0.0.1:8042"),
        ("origin", "http://127.0.0.1"),
        ("origin", "https://127.0.0.1:8041"),
        ("origin", "http://127.0.0.1:8041.evil.example"),
        ("origin", "file://"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("sec-fetch-site", "?"),
    ] {
        for (method, path) in [
            (Method::GET, "/api/v1/graphs"),
            (Method::GET, view.as_str()),
            (Method::PUT, view.as_str()),
            (Method::POST, "/api/v1/jobs"),
            (Method::POST, "/save_graph/oakland"),
            (Method::POST, "/steer"),
            (Method::DELETE, "/api/v1/jobs/1"),
            (Method::OPTIONS, "/api/v1/jobs"),
        ] {
            let headers =
                [&own[..], &[(name, value), ("content-type", "application/json"), ("if-match", "*")]].concat();
            let answer = kit.request(method.clone(), path, &headers, "{}");
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{name}: {value} {method} {path}");
            assert!(!answer.headers.contains_key("access-control-allow-origin"));
        }
    }
    for headers in
        [vec![("origin", "http://127.0.0.1:8041"), ("sec-fetch-site", "same-origin")], vec![("sec-fetch-site", "none")]]
    {
        let headers = [&own[..], &headers].concat();
        assert_eq!(kit.request(Method::GET, "/api/v1/graphs", &headers, "").status, StatusCode::OK);
    }
    // What a form can send is no JSON, whatever the browser says of where it comes from.
    for kind in
        ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonx", ""]
    {
        for path in ["/api/v1/jobs", "/save_graph/oakland", "/steer", "/forward-pass", "/api/v1/tokenize"] {
            let answer = kit.request(Method::POST, path, &[own[0], ("content-type", kind)], "{\"qParams\": {}}");
            assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{kind} {path}");
        }
    }
}

#[test]
fn nothing_outside_its_folders_is_ever_read() {
    let root = tempfile::tempdir().unwrap();
    let (folder, page) = (root.path().join("graphs"), root.path().join("page"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::create_dir_all(page.join("sub")).unwrap();
    let secret = "{\"metadata\": {\"slug\": \"secret\", \"prompt_tokens\": []}, \"nodes\": [], \"links\": []}";
    for name in ["secret.json", "secret.html", "secret"] {
        std::fs::write(root.path().join(name), secret).unwrap();
    }
    std::fs::write(page.join("index.html"), "the page").unwrap();
    std::fs::write(page.join(".hidden"), secret).unwrap();
    std::fs::write(page.join("sub/a.js"), "a").unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        symlink(root.path().join("secret.json"), folder.join("link.json")).unwrap();
        symlink(root.path(), folder.join("up.json")).unwrap();
        symlink(root.path().join("secret.html"), page.join("link.html")).unwrap();
        symlink(root.path(), page.join("up")).unwrap();
    }
    let kit = Kit::new(circuitscope::serve::ServeOptions { page: Some(page), ..options(&folder) });
    assert_eq!(kit.get("/").text(), "the page");
    assert_eq!(kit.get("/sub/a.js").text(), "a");
    assert_eq!(kit.json("/api/v1/graphs"), json!({"graphs": []}));
    let ups = [
        "..",
        "%2e%2e",
        "%2E.",
        ".%2e",
        "..%2f",
        "%2e%2e%2f",
        "..%5c",
        "..\\",
        "%c0%ae%c0%ae",
        "%252e%252e",
        "....//",
        "%00",
        "up",
        "link",
    ];
    let bases = [
        "/",
        "/sub/",
        "/data/",
        "/graph_data/",
        "/features/",
        "/dashboards/",
        "/api/v1/graphs/",
        "/save_graph/",
        "//",
        "/./",
        "/page/../",
    ];
    for base in bases {
        for up in ups {
            for name in [
                "secret.json",
                "secret.html",
                "secret",
                "etc/passwd",
                "link.json",
                "link.html",
                ".hidden",
                "up/secret.json",
            ] {
                for path in [
                    format!("{base}{up}/{name}"),
                    format!("{base}{up}%2f{name}"),
                    format!("{base}{name}"),
                    format!("{base}/{name}"),
                ] {
                    let Ok(request) = Request::builder().uri(&path).header("host", "127.0.0.1").body(Body::empty())
                    else {
                        continue;
                    };
                    let answer = kit.send(request);
                    assert_ne!(answer.status, StatusCode::OK, "{path}");
                    assert!(
                        !answer.text().contains("slug") && !answer.text().contains("root:"),
                        "{path}: {}",
                        answer.text()
                    );
                }
            }
        }
    }
    for path in [
        "/data//etc/hostname",
        "/graph_data/../../../../etc/hostname",
        "/data/%2fetc%2fhostname",
        "/features//etc/passwd",
    ] {
        assert!(kit.get(path).status.is_client_error(), "{path}");
    }
}

#[test]
fn every_answer_tells_the_browser_what_the_page_may_do() {
    let folder = graphs();
    let kit = viewer(folder.path());
    for path in [
        "/",
        "/api/v1/graphs",
        "/api/v1/none",
        "/nothing.html",
        "/data/graph-metadata.json",
        "/check-busy",
        "/api/v1/openapi.json",
    ] {
        let answer = kit.get(path);
        let policy = answer.header("content-security-policy");
        for part in [
            "default-src 'none'",
            "script-src 'self'",
            "require-trusted-types-for 'script'",
            "base-uri 'none'",
            "frame-ancestors 'self'",
        ] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.header("referrer-policy"), "no-referrer");
        assert_eq!(answer.header("cross-origin-resource-policy"), "same-origin");
        assert!(!answer.headers.contains_key("access-control-allow-origin") && !answer.headers.contains_key("server"));
        assert!(!answer.header("content-type").is_empty(), "{path}");
    }
}

#[test]
fn a_server_that_others_reach_wants_its_token() {
    let folder = graphs();
    let access = Access {
        token: Some("the token".into()),
        hosts: vec!["lab.example".into()],
        port: Some(8041),
        ..Access::default()
    };
    let kit = with_access(folder.path(), access);
    let host = ("host", "lab.example:8041");
    let get = |path: &str, headers: &[(&str, &str)]| kit.request(Method::GET, path, &[&[host], headers].concat(), "");
    for path in [
        "/api/v1/graphs",
        "/api/v1/health",
        "/data/graph-metadata.json",
        "/graph_data/oakland.json",
        "/features/0/39.json",
        "/check-busy",
    ] {
        for headers in [
            vec![],
            vec![("authorization", "Bearer the toke")],
            vec![("authorization", "Bearer the token ")],
            vec![("authorization", "the token")],
            vec![("cookie", "circuitscope=the toke")],
            vec![("cookie", "other=the token")],
            vec![("authorization", "Basic the token")],
        ] {
            assert_eq!(get(path, &headers).status, StatusCode::UNAUTHORIZED, "{path} {headers:?}");
        }
        for headers in [vec![("authorization", "Bearer the token")], vec![("cookie", "a=b; circuitscope=the token")]] {
            assert_ne!(get(path, &headers).status, StatusCode::UNAUTHORIZED, "{path} {headers:?}");
        }
    }
    let session = |token: &str| {
        let body = json!({ "token": token }).to_string();
        kit.request(Method::POST, "/api/v1/session", &[host, ("content-type", "application/json")], body)
    };
    assert_eq!(session("wrong").status, StatusCode::UNAUTHORIZED);
    let cookie = session("the token");
    assert_eq!(cookie.status, StatusCode::NO_CONTENT);
    let cookie = cookie.header("set-cookie");
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    // The page itself is no secret: it asks for the token.
    assert_ne!(get("/", &[]).status, StatusCode::UNAUTHORIZED);
}

#[test]
fn bodies_and_headers_have_an_end() {
    let folder = graphs();
    let kit = viewer(folder.path());
    for path in ["/api/v1/jobs", "/save_graph/oakland", "/steer", "/generate-graph", "/api/v1/graphs/oakland/scores"] {
        let answer =
            kit.request(Method::POST, path, &[("content-type", "application/json")], vec![b' '; (1 << 20) + 1]);
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "{path}");
        let claimed = [("content-type", "application/json"), ("content-length", "99999999999")];
        assert_eq!(kit.request(Method::POST, path, &claimed, "").status, StatusCode::PAYLOAD_TOO_LARGE, "{path}");
        // Depth is no recursion.
        let deep = "[".repeat(500_000);
        let status = kit.request(Method::POST, path, &[("content-type", "application/json")], deep).status;
        assert!(status.is_client_error(), "{path}: {status}");
    }
}

#[test]
fn whatever_a_body_holds_the_answer_is_no_fault_of_the_server() {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    let folder = graphs();
    let kit = viewer(folder.path());
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|v| json!(v)),
        any::<i64>().prop_map(|v| json!(v)),
        any::<f64>().prop_map(|v| json!(v)),
        ".{0,12}".prop_map(|v| json!(v)),
        prop_oneof![Just("0_39_7"), Just("0_39"), Just("*"), Just("trace"), Just("intervene")].prop_map(|v| json!(v)),
    ];
    let key = prop_oneof![
        Just("kind".to_owned()),
        Just("prompt".to_owned()),
        Just("graph".to_owned()),
        Just("changes".to_owned()),
        Just("pinned".to_owned()),
        Just("groups".to_owned()),
        Just("nodes".to_owned()),
        Just("qParams".to_owned()),
        Just("labels".to_owned()),
        Just("node".to_owned()),
        Just("features".to_owned()),
        Just("model_id".to_owned()),
        Just("slug_identifier".to_owned()),
        Just("name".to_owned()),
        ".{0,5}",
    ];
    let value = leaf.prop_recursive(4, 32, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(|v| json!(v)),
            prop::collection::btree_map(key.clone(), inner, 0..6).prop_map(|v| json!(v)),
        ]
    });
    let bytes =
        prop_oneof![value.prop_map(|v| v.to_string().into_bytes()), prop::collection::vec(any::<u8>(), 0..200),];
    let paths = [
        "/api/v1/jobs",
        "/api/v1/tokenize",
        "/api/v1/top-tokens",
        "/api/v1/graphs/oakland/scores",
        "/api/v1/graphs/oakland/layout",
        "/api/v1/graphs/oakland/picture",
        "/api/v1/features/0/39/on-text",
        "/save_graph/oakland",
        "/steer",
        "/forward-pass",
        "/generate-graph",
        "/parse-chat-prompt",
        "/api/v1/session",
    ];
    let mut runner = TestRunner::new(Config { cases: 300, ..Config::default() });
    runner
        .run(&(bytes, 0..paths.len()), |(body, path)| {
            let answer = kit.request(Method::POST, paths[path], &[("content-type", "application/json")], body);
            prop_assert!(!answer.status.is_server_error(), "{} {}: {}", paths[path], answer.status, answer.text());
            Ok(())
        })
        .unwrap();
    assert_eq!(kit.json("/api/v1/graphs")["graphs"].as_array().unwrap().len(), 2);
}

#[test]
fn foreign_text_in_graphs_comes_out_as_text() {
    let folder = graphs();
    let file = folder.path().join("oakland.json");
    let evil = "</script><img src=x onerror=alert(1)>\u{2028}\"'&`${1}";
    let mut graph: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    graph["metadata"]["prompt"] = json!(evil);
    graph["metadata"]["scan"] = json!(evil);
    graph["metadata"]["prompt_tokens"][1] = json!(evil);
    for node in graph["nodes"].as_array_mut().unwrap() {
        node["clerp"] = json!(evil);
    }
    std::fs::remove_file(folder.path().join("oakland.safetensors")).unwrap();
    std::fs::remove_file(&file).unwrap();
    // In the slug too, as far as a file's name can hold it.
    let slug = "<img src=x onerror=alert(1)>";
    std::fs::write(folder.path().join(format!("{slug}.json")), graph.to_string()).unwrap();
    let kit = viewer(folder.path());
    let listed = kit.json("/api/v1/graphs");
    let entry = listed["graphs"].as_array().unwrap().iter().find(|g| g["id"] == slug).unwrap();
    assert_eq!(entry["prompt"], evil);
    let at = "/api/v1/graphs/%3Cimg%20src=x%20onerror=alert(1)%3E";
    for (path, kind) in [
        (at.to_owned(), "application/json"),
        (format!("{at}/nodes.bin"), "application/octet-stream"),
        (format!("{at}/search?q=img"), "application/json"),
        (format!("{at}/picture.svg"), "image/svg+xml"),
        (format!("{at}/export.graphml"), "application/xml"),
        ("/graph_data/%3Cimg%20src=x%20onerror=alert(1)%3E.json".to_owned(), "application/json"),
        ("/api/v1/graphs/%3Cscript%3Ealert(1)%3C%2Fscript%3E".to_owned(), "application/json"),
        ("/%3Cscript%3Ealert(1)%3C%2Fscript%3E".to_owned(), "application/json"),
    ] {
        let answer = kit.get(&path);
        assert_eq!(answer.header("content-type"), kind, "{path}");
        assert!(!answer.header("content-disposition").contains('<'), "{path}");
        if kind.contains("xml") {
            assert!(!answer.text().contains("<img"), "{path}");
        }
    }
}
