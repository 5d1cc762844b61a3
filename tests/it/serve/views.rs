//! Views: saved into the graph's file, and never lost.

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use super::kit::{Answer, ID, Kit, graphs, viewer};

fn view_path(id: &str) -> String {
    format!("/api/v1/graphs/{id}/view")
}

fn put(kit: &Kit, id: &str, etag: Option<&str>, view: &Value) -> Answer {
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(etag.map(|etag| ("if-match", etag)));
    kit.request(Method::PUT, &view_path(id), &headers, view.to_string())
}

fn etag(kit: &Kit, id: &str) -> String {
    kit.get(&view_path(id)).header("etag").to_owned()
}

fn a_view() -> Value {
    json!({"pinned": ["0_39_7", "3_955_8"], "hidden": ["0_68_2"], "clicked": "0_39_7",
        "groups": [{"name": "Texas, \"and\" <b>", "members": ["0_39_7"]}], "labels": {"0_39": "Lone Star"},
        "positions": {"0_39_7": [1.5, 2.5], "group:Texas, \"and\" <b>": [3.0, 4.0]}, "node_threshold": 0.6,
        "edge_threshold": 0.9, "link_type": "both", "note": "a note\nof two lines", "other": {"sg_pos": "kept"}})
}

#[test]
fn a_view_comes_back_as_it_was_saved_and_nothing_else_in_the_file_changes() {
    let folder = graphs();
    let file = folder.path().join(format!("{ID}.json"));
    let before: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let kit = viewer(folder.path());
    let graph_etag = kit.json(&format!("/api/v1/graphs/{ID}"))["etag"].clone();
    let saved = put(&kit, ID, Some(&etag(&kit, ID)), &a_view());
    assert_eq!((saved.status, saved.json()), (StatusCode::OK, a_view()));
    // Another server finds it.
    let read = viewer(folder.path()).get(&view_path(ID));
    assert_eq!((read.json(), read.header("etag")), (a_view(), saved.header("etag")));
    let after: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    for (key, value) in before.as_object().unwrap() {
        assert!(key == "qParams" || after[key] == *value, "{key}");
    }
    assert_eq!(after["qParams"]["pinnedIds"], json!(["0_39_7", "3_955_8"]));
    assert_eq!(after["qParams"]["supernodes"], json!([["Texas, \"and\" <b>", "0_39_7"]]));
    assert_eq!(kit.json(&format!("/api/v1/graphs/{ID}"))["etag"], graph_etag);
    // What is drawn and downloaded has it.
    assert!(kit.get(&format!("/api/v1/graphs/{ID}/picture.svg")).text().contains("Texas"));
    let exported = kit.json(&format!("/api/v1/graphs/{ID}/export.json"));
    assert_eq!(exported["qParams"], after["qParams"]);
    assert!(exported["nodes"].as_array().unwrap().iter().any(|node| node["clerp"] == "Lone Star"));
}

#[test]
fn the_published_schema_holds_for_a_graph_with_a_saved_view() {
    let schema = circuitscope_schema();
    let folder = graphs();
    let kit = viewer(folder.path());
    put(&kit, ID, Some(&etag(&kit, ID)), &a_view());
    let graph: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join(format!("{ID}.json"))).unwrap()).unwrap();
    assert!(schema.is_valid(&graph));
    assert!(schema.is_valid(&kit.json(&format!("/graph_data/{ID}.json"))));
}

/// The published schema, as the other tests have it.
pub fn circuitscope_schema() -> jsonschema::Validator {
    let text = std::fs::read_to_string(crate::support::fixture("graph-schema.json")).unwrap();
    jsonschema::validator_for(&serde_json::from_str(&text).unwrap()).unwrap()
}

#[test]
fn who_has_not_seen_the_last_view_cannot_replace_it() {
    let folder = graphs();
    let (one, two) = (viewer(folder.path()), viewer(folder.path()));
    let seen = etag(&one, ID);
    assert_eq!(put(&one, ID, None, &a_view()).status, StatusCode::PRECONDITION_REQUIRED);
    assert_eq!(put(&one, ID, Some(&seen), &a_view()).status, StatusCode::OK);
    let mut other = a_view();
    other["note"] = json!("another");
    let refused = put(&two, ID, Some(&seen), &other);
    assert_eq!(refused.status, StatusCode::PRECONDITION_FAILED);
    assert_eq!(refused.json()["view"], a_view());
    assert_eq!(put(&two, ID, Some(refused.header("etag")), &other).status, StatusCode::OK);
    assert_eq!(one.json(&view_path(ID))["note"], "another");
}

#[test]
fn of_many_who_save_at_once_each_change_is_there_or_refused() {
    let folder = graphs();
    let n_saved = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (folder, n_saved) = (&folder, &n_saved);
            scope.spawn(move || {
                let kit = viewer(folder.path());
                let mut left = 5;
                while left > 0 {
                    let read = kit.get(&view_path(ID));
                    let mut view = read.json();
                    view["pinned"].as_array_mut().unwrap().push(json!(format!("{writer}_{left}_0")));
                    let answer = put(&kit, ID, Some(read.header("etag")), &view);
                    if answer.status == StatusCode::OK {
                        left -= 1;
                        n_saved.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    } else {
                        assert_eq!(answer.status, StatusCode::PRECONDITION_FAILED, "{}", answer.text());
                    }
                }
            });
        }
    });
    let pinned = viewer(folder.path()).json(&view_path(ID))["pinned"].as_array().unwrap().len();
    assert_eq!((n_saved.into_inner(), pinned), (20, 20));
}

#[test]
fn a_graph_without_json_has_its_view_beside_it() {
    let folder = graphs();
    std::fs::remove_file(folder.path().join(format!("{ID}.json"))).unwrap();
    let kit = viewer(folder.path());
    assert_eq!(put(&kit, ID, Some(&etag(&kit, ID)), &a_view()).status, StatusCode::OK);
    assert!(folder.path().join(format!("{ID}.view.json")).is_file());
    assert_eq!(viewer(folder.path()).json(&view_path(ID)), a_view());
    assert_eq!(kit.json("/api/v1/graphs")["graphs"].as_array().unwrap().len(), 2);
}

#[test]
#[cfg(unix)]
fn a_link_in_the_place_of_a_view_is_not_followed() {
    let (folder, outside) = (graphs(), tempfile::tempdir().unwrap());
    std::fs::remove_file(folder.path().join(format!("{ID}.json"))).unwrap();
    let secret = outside.path().join("secret");
    std::fs::write(&secret, "{\"qParams\": {\"pinnedIds\": [\"secret\"]}}").unwrap();
    std::os::unix::fs::symlink(&secret, folder.path().join(format!("{ID}.view.json"))).unwrap();
    let kit = viewer(folder.path());
    assert_eq!(kit.get(&view_path(ID)).status, StatusCode::FORBIDDEN);
    assert_eq!(put(&kit, ID, Some("*"), &a_view()).status, StatusCode::FORBIDDEN);
    assert!(std::fs::read_to_string(&secret).unwrap().contains("secret"));
}

#[test]
fn what_is_no_view_is_refused_and_nothing_is_written() {
    let folder = graphs();
    let kit = viewer(folder.path());
    let bytes = std::fs::read(folder.path().join(format!("{ID}.json"))).unwrap();
    let seen = etag(&kit, ID);
    for (view, status) in [
        (json!({"pinned": 3}), 400),
        (json!({"pined": []}), 400),
        (json!([]), 400),
        (json!({"labels": {"x": "a"}}), 400),
        (json!({"labels": {"0_-1": "a"}}), 400),
        (json!({"node_threshold": 7}), 400),
        (json!({"link_type": "all"}), 400),
        (json!({"pinned": vec!["a"; 20_000]}), 413),
    ] {
        assert_eq!(put(&kit, ID, Some(&seen), &view).status.as_u16(), status, "{view:.80}");
    }
    let path = view_path(ID);
    let raw = |body: Vec<u8>| {
        kit.request(Method::PUT, &path, &[("content-type", "application/json"), ("if-match", "*")], body)
    };
    for body in [&b"{"[..], b"", b"\xff\xfe", b"null", b"{\"pinned\": [\"a\"]", &[b'['; 100_000]] {
        assert_eq!(raw(body.to_vec()).status, StatusCode::BAD_REQUEST);
    }
    assert_eq!(raw(vec![b' '; 2 << 20]).status, StatusCode::PAYLOAD_TOO_LARGE);
    let typed = kit.request(Method::PUT, &path, &[("content-type", "text/plain"), ("if-match", "*")], "{}");
    assert_eq!(typed.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(put(&kit, "none", Some("*"), &a_view()).status, StatusCode::NOT_FOUND);
    assert_eq!(std::fs::read(folder.path().join(format!("{ID}.json"))).unwrap(), bytes);
}

#[test]
#[cfg(target_os = "linux")]
fn a_folder_that_cannot_be_written_loses_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let folder = graphs();
    let kit = viewer(folder.path());
    let bytes = std::fs::read(folder.path().join(format!("{ID}.json"))).unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o555)).unwrap();
    // Who may do everything is not held up by permissions.
    let is_held_up = std::fs::write(folder.path().join("probe"), "").is_err();
    let answer = put(&kit, ID, Some(&etag(&kit, ID)), &a_view());
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    if is_held_up {
        assert_eq!((answer.status.as_u16(), answer.refusal()), (507, "disk".to_owned()));
        assert_eq!(std::fs::read(folder.path().join(format!("{ID}.json"))).unwrap(), bytes);
    }
    assert_eq!(kit.get(&view_path(ID)).status, StatusCode::OK);
}
