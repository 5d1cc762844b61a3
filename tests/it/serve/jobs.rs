//! Jobs: one after the other, told as they go, given up when nobody wants them.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use circuitscope::serve::{Limits, ServeOptions};
use circuitscope::{Setup, Tracer};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::kit::{ID, Kit, PROMPT, graphs, options, viewer, with_limits, with_model};

/// Asks for a job and reads its events to the end.
#[track_caller]
fn events(kit: &Kit, body: &Value) -> Vec<(String, Value)> {
    let headers = [("content-type", "application/json"), ("accept", "text/event-stream")];
    let answer = kit.request(Method::POST, "/api/v1/jobs", &headers, body.to_string());
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert_eq!(answer.header("content-type"), "text/event-stream");
    parsed(&answer.text())
}

fn parsed(text: &str) -> Vec<(String, Value)> {
    let field = |event: &str, name: &str| {
        event.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).unwrap_or_default().to_owned()
    };
    let events: Vec<(String, Value)> = text
        .split("\n\n")
        .filter(|event| event.contains("data: "))
        .map(|event| (field(event, "event"), serde_json::from_str(&field(event, "data")).unwrap()))
        .collect();
    let ids: Vec<usize> = text.lines().filter_map(|line| line.strip_prefix("id: ")?.parse().ok()).collect();
    assert!(ids.windows(2).all(|pair| pair[1] == pair[0] + 1), "{ids:?}");
    events
}

#[track_caller]
fn result(events: &[(String, Value)]) -> Value {
    let (name, data) = events.last().unwrap();
    assert_eq!(name, "done", "{data}");
    data["result"].clone()
}

#[test]
fn a_trace_is_told_written_and_opened() {
    let folder = tempfile::tempdir().unwrap();
    let kit = with_model(folder.path());
    let events = events(&kit, &json!({"kind": "trace", "prompt": PROMPT}));
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[..2], ["queued", "started"]);
    assert!(names.contains(&"progress"));
    let result = result(&events);
    assert_eq!(result["graph"], ID);
    assert_eq!(result["summary"]["predictions"][0]["text"], " Austin");
    assert!(
        folder.path().join(format!("{ID}.safetensors")).is_file() && folder.path().join(format!("{ID}.json")).is_file()
    );
    assert_eq!(kit.json(&format!("/api/v1/graphs/{ID}"))["raw"], true);
    // The same again is the same graph; another under its name is refused.
    let again = super::jobs::events(&kit, &json!({"kind": "trace", "prompt": PROMPT}));
    assert_eq!(super::jobs::result(&again)["graph"], ID);
    let other = super::jobs::events(&kit, &json!({"kind": "trace", "prompt": "Another prompt", "slug": ID}));
    assert_eq!(
        (other.last().unwrap().0.as_str(), &other.last().unwrap().1["error"]["kind"]),
        ("failed", &json!("other_graph"))
    );
}

#[test]
fn targets_of_every_kind_are_traced() {
    let folder = tempfile::tempdir().unwrap();
    let kit = with_model(folder.path());
    for (target, label) in [
        (json!({"token": " Austin"}), " Austin"),
        (json!({"difference": [" Austin", " Sacramento"]}), "\" Austin\" - \" Sacramento\""),
        (json!({"feature": "3_955_8"}), "feature 3_955_8"),
    ] {
        let traced = events(&kit, &json!({"kind": "trace", "prompt": PROMPT, "targets": [target], "save": false}));
        let id = result(&traced)["graph"].as_str().unwrap().to_owned();
        assert_eq!(kit.json(&format!("/api/v1/graphs/{id}"))["targets"][0]["text"], label);
    }
    let wrong = events(&kit, &json!({"kind": "trace", "prompt": PROMPT, "targets": [{"token": "no such token"}]}));
    assert_eq!(wrong.last().unwrap().1["error"]["kind"], "not_found");
    assert!(folder.path().read_dir().unwrap().next().is_none(), "nothing was written");
}

#[test]
fn a_graph_in_memory_has_a_view_and_is_written_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let kit = with_model(folder.path());
    let id = result(&events(&kit, &json!({"kind": "trace", "prompt": PROMPT, "save": false})))["graph"]
        .as_str()
        .unwrap()
        .to_owned();
    let view = format!("/api/v1/graphs/{id}/view");
    let seen = kit.get(&view).header("etag").to_owned();
    let headers = [("content-type", "application/json"), ("if-match", seen.as_str())];
    let saved = kit.request(Method::PUT, &view, &headers, json!({"pinned": ["0_39_7"]}).to_string());
    assert_eq!(saved.status, StatusCode::OK);
    assert_eq!(kit.json("/api/v1/graphs")["graphs"][0]["in_memory"], true);
    let entry = kit.post(&format!("/api/v1/graphs/{id}/save"), &json!({"slug": "kept"})).json();
    assert_eq!((&entry["id"], &entry["in_memory"], &entry["raw"]), (&json!("kept"), &json!(false), &json!(true)));
    assert_eq!(viewer(folder.path()).json("/api/v1/graphs/kept/view")["pinned"], json!(["0_39_7"]));
    assert_eq!(kit.post("/api/v1/graphs/kept/save", &json!({})).status, StatusCode::CONFLICT);
}

#[test]
fn the_demonstration_is_there_where_nothing_else_is() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Tracer::open(Setup::atlas());
    let kit = Kit::new(ServeOptions { model: Some(Box::new(open)), demo: true, ..options(folder.path()) });
    assert_eq!(kit.json("/api/v1/graphs")["graphs"][0]["id"], ID);
    assert_eq!(kit.json(&format!("/api/v1/graphs/{ID}"))["in_memory"], true);
    // Another trace of that name takes its place, and the demonstration moves; the same one takes its view along.
    let target = json!([{"difference": [" Austin", " Sacramento"]}]);
    let traced = events(&kit, &json!({"kind": "trace", "prompt": PROMPT, "targets": target}));
    let id = result(&traced)["graph"].as_str().unwrap().to_owned();
    assert_eq!(kit.json(&format!("/api/v1/graphs/{id}"))["targets"][0]["text"], "\" Austin\" - \" Sacramento\"");
    let list = kit.json("/api/v1/graphs");
    let mut ids: Vec<&str> = list["graphs"].as_array().unwrap().iter().map(|g| g["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, [ID.to_owned(), format!("{ID}-2")]);
}

#[test]
fn an_intervention_tells_what_the_command_line_tells() {
    let folder = graphs();
    let kit = with_model(folder.path());
    let body = json!({"kind": "intervene", "graph": ID, "changes": [{"supernode": "Texas", "ablate": true}],
        "groups": [{"name": "Texas", "members": ["0_39_7", "E_2859_7"]}], "features": ["0_39_7", "3_955_8"],
        "generate": {"n_tokens": 2}});
    let told = events(&kit, &body);
    let result = result(&told);
    assert_eq!(result["target"]["text"], " Austin");
    assert!(
        result["target"]["probability_after"].as_f64().unwrap()
            < result["target"]["probability_before"].as_f64().unwrap()
    );
    assert_eq!((&result["groups"][0]["name"], &result["groups"][0]["percent_after"]), (&json!("Texas"), &json!(0.0)));
    // Both continuations came token by token.
    let tokens = |which: &str| told.iter().filter(|(name, data)| name == "token" && data["which"] == which).count();
    assert_eq!((tokens("original"), tokens("changed")), (2, 2));
    let command = result["command"].as_str().unwrap();
    assert_eq!(command, format!("circuitscope intervene '{PROMPT}' --ablate 0_39_7 --generate 2"));
    let run = crate::support::circuitscope(
        folder.path(),
        &["intervene", PROMPT, "--ablate", "0_39_7", "--generate", "2", "--format", "json"],
    );
    let of_command: Value = serde_json::from_slice(&run.stdout).unwrap();
    for key in ["target", "kl_divergence", "continuation"] {
        assert_eq!(result[key], of_command[key], "{key}");
    }
    for (changes, kind) in [
        (json!([]), "bad_request"),
        (json!([{"node": "0_39_7", "abalte": true}]), "bad_request"),
        (json!([{"supernode": "Ohio", "ablate": true}]), "bad_request"),
        (json!([{"node": "0_39", "set": 1}]), "bad_request"),
    ] {
        let refused = kit.post("/api/v1/jobs", &json!({"kind": "intervene", "prompt": PROMPT, "changes": changes}));
        assert_eq!(refused.refusal(), kind, "{changes}");
    }
    // What would be passed over is refused.
    let changes = json!([{"node": "0_39_7", "ablate": true}]);
    for (kind, more) in
        [("intervene", json!({"seed": 3})), ("generate", json!({"n_tokens": 3})), ("sweep", json!({"plan": []}))]
    {
        let mut body = json!({"kind": kind, "prompt": PROMPT, "changes": changes, "sweep": "0_39_7=0..1/1"});
        if kind != "sweep" {
            body.as_object_mut().unwrap().remove("sweep");
        }
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let refused = kit.post("/api/v1/jobs", &body);
        let field = more.as_object().unwrap().keys().next().unwrap();
        assert_eq!(refused.refusal(), "bad_request", "{body}");
        assert!(refused.text().contains("unknown field") && refused.text().contains(field), "{}", refused.text());
    }
}

#[test]
fn sweeps_continuations_and_verifications_run() {
    let folder = graphs();
    let kit = with_model(folder.path());
    let swept = result(&events(
        &kit,
        &json!({"kind": "sweep", "prompt": PROMPT, "sweep": "0_39_7=0..20/10", "target": " Austin"}),
    ));
    assert_eq!(swept["points"].as_array().unwrap().len(), 3);
    assert!(swept["svg"].as_str().unwrap().starts_with("<svg"));
    let groups = json!([{"name": "Texas", "members": ["0_39_7"]}]);
    let swept =
        result(&events(&kit, &json!({"kind": "sweep", "prompt": PROMPT, "sweep": "Texas=0..2/1", "groups": groups})));
    assert_eq!(swept["points"][2]["value"], 2.0);
    let body = json!({"kind": "generate", "prompt": PROMPT, "changes": [{"node": "0_39_*", "ablate": true}], "generate": {"n_tokens": 1}});
    assert_eq!(result(&events(&kit, &body))["original"], " Austin");
    let found = result(&events(&kit, &json!({"kind": "verify", "graph": ID, "n_samples": 4, "n_ablated": 2})));
    assert_eq!(found["passed"], true, "{found}");
    assert_eq!(kit.json(&format!("/api/v1/graphs/{ID}"))["verification"]["passed"], true);
}

#[test]
fn what_is_above_the_limits_is_refused_before_it_waits() {
    let folder = graphs();
    let limits = Limits { positions: 5, rows: 100, tokens: 4, points: 10, ..Limits::default() };
    let kit = with_limits(folder.path(), limits);
    for body in [
        json!({"kind": "trace", "prompt": "a", "rows": 101}),
        json!({"kind": "generate", "prompt": "a", "changes": [], "generate": {"n_tokens": 5}}),
        json!({"kind": "sweep", "prompt": "a", "sweep": "0_39_0=0..100/1"}),
        json!({"kind": "verify", "graph": ID, "n_samples": 100_000}),
    ] {
        assert_eq!(kit.post("/api/v1/jobs", &body).status, StatusCode::PAYLOAD_TOO_LARGE, "{body}");
    }
    let long = events(&kit, &json!({"kind": "trace", "prompt": PROMPT}));
    assert_eq!(long.last().unwrap().1["error"]["kind"], "too_large");
    for body in [
        json!({"kind": "none"}),
        json!({"kind": "trace"}),
        json!({"kind": "trace", "prompt": "a", "slgu": "b"}),
        json!(3),
    ] {
        assert_eq!(kit.post("/api/v1/jobs", &body).status, StatusCode::BAD_REQUEST, "{body}");
    }
}

/// A prompt that takes a while: as long as the model allows.
fn long_job() -> Value {
    json!({"kind": "generate", "prompt": PROMPT, "changes": [{"node": "0_39_*", "ablate": true}], "generate": {"n_tokens": 250, "temperature": 5.0}})
}

#[test]
fn jobs_wait_in_a_queue_with_an_end_and_can_be_cancelled() {
    let folder = graphs();
    let kit = with_limits(folder.path(), Limits { queue: 2, ..Limits::default() });
    // Before the model is open none of them runs.
    let mut asked = Vec::new();
    let mut is_full = false;
    for _ in 0..40 {
        let answer = kit.post("/api/v1/jobs", &long_job());
        match answer.status {
            StatusCode::ACCEPTED => asked.push(answer.json()["id"].as_str().unwrap().to_owned()),
            status => {
                assert_eq!(
                    (status, answer.refusal(), answer.header("retry-after")),
                    (StatusCode::SERVICE_UNAVAILABLE, "queue_full".into(), "5")
                );
                is_full = true;
                break;
            }
        }
    }
    assert!(is_full && asked.len() >= 2);
    let last = asked.last().unwrap();
    let cancelled = kit.request(Method::DELETE, &format!("/api/v1/jobs/{last}"), &[], "");
    assert_eq!(cancelled.json()["state"], "cancelled");
    let told = kit.get(&format!("/api/v1/jobs/{last}/events"));
    assert_eq!(parsed(&told.text()).last().unwrap().0, "cancelled");
    let list = kit.json("/api/v1/jobs");
    assert!(list["jobs"].as_array().unwrap().iter().all(|job| job.get("result").is_none()));
    asked.iter().for_each(|id| drop(kit.request(Method::DELETE, &format!("/api/v1/jobs/{id}"), &[], "")));
    // And the server goes on.
    assert_eq!(result(&events(&kit, &json!({"kind": "trace", "prompt": "Texas", "save": false})))["files"], json!([]));
}

/// Waits for what must come, however slow the machine is.
fn wait_for(what: &str, is_there: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_there() {
        assert!(start.elapsed() < Duration::from_secs(120), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn who_goes_away_takes_the_work_along() {
    let folder = graphs();
    let kit = with_limits(folder.path(), Limits { tokens: 4000, ..Limits::default() });
    let request = Request::builder()
        .method(Method::POST)
        .uri("/api/v1/jobs")
        .header("host", "127.0.0.1")
        .header("content-type", "application/json")
        .header("accept", "text/event-stream")
        .body(Body::from(long_job().to_string()))
        .unwrap();
    kit.runtime.block_on(async {
        let answer = kit.router.clone().oneshot(request).await.unwrap();
        // One event, and the connection is gone.
        let mut stream = answer.into_body().into_data_stream();
        stream.next().await.unwrap().unwrap();
    });
    wait_for("the job ends", || {
        kit.json("/api/v1/jobs")["jobs"][0]["state"] == "cancelled"
            || kit.json("/api/v1/jobs")["jobs"][0]["state"] == "done"
    });
    assert_eq!(kit.json("/api/v1/health")["jobs"]["running"], 0);
}

#[test]
fn events_go_on_after_the_last_one_that_was_heard() {
    let folder = graphs();
    let kit = with_model(folder.path());
    let body = json!({"kind": "generate", "prompt": PROMPT, "changes": [], "generate": {"n_tokens": 3}});
    let id = kit.post("/api/v1/jobs", &body).json()["id"].as_str().unwrap().to_owned();
    let all = parsed(&kit.get(&format!("/api/v1/jobs/{id}/events")).text());
    let path = format!("/api/v1/jobs/{id}/events");
    let rest = kit.request(Method::GET, &path, &[("last-event-id", "1")], "");
    assert_eq!(parsed(&rest.text()), all[2..]);
    assert_eq!(kit.json(&format!("/api/v1/jobs/{id}"))["result"], all.last().unwrap().1["result"]);
}

#[test]
fn a_model_that_cannot_be_opened_is_told_and_graphs_are_shown_all_the_same() {
    let folder = graphs();
    let open = || Tracer::open(Setup::new("/no/such/model", "/no/such/transcoders"));
    let kit = Kit::new(ServeOptions { model: Some(Box::new(open)), ..options(folder.path()) });
    let answer = kit.post("/api/v1/tokenize", &json!({"prompt": "a"}));
    assert!(answer.status.is_client_error() && answer.text().contains("/no/such/model"), "{}", answer.text());
    assert_eq!(kit.json("/api/v1/health")["model"]["state"], "failed");
    assert_eq!(kit.json(&format!("/api/v1/graphs/{ID}"))["id"], ID);
}

#[test]
fn short_questions_are_answered() {
    let folder = graphs();
    let kit = with_model(folder.path());
    let tokens = kit.post("/api/v1/tokenize", &json!({"prompt": "The\n capital"})).json();
    assert_eq!(tokens["n_pos"], tokens["tokens"].as_array().unwrap().len());
    let top = kit.post("/api/v1/top-tokens", &json!({"prompt": PROMPT, "k": 3})).json();
    assert_eq!((&top["position"], &top["tokens"][0]["text"]), (&json!(8), &json!(" Austin")));
    assert_eq!(top["tokens"].as_array().unwrap().len(), 3);
    let earlier = kit.post("/api/v1/top-tokens", &json!({"prompt": PROMPT, "position": 2})).json();
    assert_eq!(earlier["position"], 2);
    assert_eq!(kit.post("/api/v1/top-tokens", &json!({"prompt": PROMPT, "position": 9})).status, StatusCode::NOT_FOUND);
    assert!(
        kit.post("/api/v1/top-tokens", &json!({"prompt": ""})).status.is_client_error()
            || kit.post("/api/v1/top-tokens", &json!({"prompt": ""})).status == StatusCode::OK
    );
}

/// Numbers as the program has them: of these JSON has more than one form.
fn in_f32(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64().unwrap() as f32),
        Value::Array(list) => list.iter().map(in_f32).collect(),
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), in_f32(value))).collect(),
        other => other.clone(),
    }
}

#[test]
fn dashboards_are_those_of_the_command_line() {
    let folder = graphs();
    let kit = with_model(folder.path());
    let about = kit.json("/api/v1/features");
    assert_eq!((&about["available"], &about["n_layers"]), (&json!(true), &json!(4)));
    let shown = kit.json("/api/v1/features/0/39?neighbors=true");
    let run = crate::support::circuitscope(
        folder.path(),
        &["features", "show", "atlas", "0_39", "--weights", "--format", "json"],
    );
    let of_command: Value = serde_json::from_slice(&run.stdout).unwrap();
    for (key, value) in of_command.as_object().unwrap() {
        assert_eq!(in_f32(&shown[key]), in_f32(value), "{key}");
    }
    let found = kit.json("/api/v1/features/search?q=texas");
    assert!(found["found"].as_array().unwrap().iter().any(|f| f["feature"] == "0_39"), "{found}");
    let on_text = kit.post("/api/v1/features/0/39/on-text", &json!({"text": PROMPT})).json();
    let graph = kit.json(&format!("/api/v1/graphs/{ID}/node/3_260_8/links"));
    let texas = graph["inputs"]["links"].as_array().unwrap().iter().find(|l| l["id"] == "0_39_7").unwrap();
    let (here, there) = (on_text["activations"][7].as_f64().unwrap(), texas["activation"].as_f64().unwrap());
    assert!((here - there).abs() < 1e-3, "{here} {there}");
    for wrong in ["9/0", "0/99999", "0/x", "-1/0"] {
        assert!(kit.get(&format!("/api/v1/features/{wrong}")).status.is_client_error(), "{wrong}");
    }
    assert!(viewer(folder.path()).get("/api/v1/features/0/39").text().contains("features collect"));
}
