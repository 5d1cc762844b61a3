//! Clients of other servers: recorded sequences of their calls, answered as those servers answer.

use std::io::Read;

use axum::http::{Method, StatusCode};
use circuitscope::serve::{Access, ServeOptions};
use circuitscope::{Setup, Tracer};
use flate2::read::GzDecoder;
use serde_json::{Value, json};

use super::kit::{Answer, ID, Kit, PROMPT, graphs, options, viewer, with_model};
use super::views::circuitscope_schema;

#[test]
fn circuit_tracers_page_finds_its_graphs_and_saves_them() {
    let folder = graphs();
    let kit = viewer(folder.path());
    // What the page asks for, in its order.
    let list = kit.json("/data/graph-metadata.json");
    let slug =
        list["graphs"].as_array().unwrap().iter().map(|g| g["slug"].as_str().unwrap()).find(|s| *s == ID).unwrap();
    let graph = kit.json(&format!("/graph_data/{slug}.json"));
    assert!(circuitscope_schema().is_valid(&graph));
    let same = kit.json(&format!("/data/{slug}.json?v=1"));
    assert_eq!(graph, same);
    // As its save button sends it: lists as texts.
    let q_params = json!({"pinnedIds": "0_39_7,3_955_8", "supernodes": "[[\"Texas\",\"0_39_7\"]]", "linkType": "both",
        "clickedId": "0_39_7", "sg_pos": "", "pruningThreshold": "0.5", "clerps": "[]"});
    let saved = kit.post(&format!("/save_graph/{slug}"), &json!({"qParams": q_params, "timestamp": 1}));
    assert_eq!((saved.status, saved.bytes.len()), (StatusCode::OK, 0));
    let stored = kit.json(&format!("/graph_data/{slug}.json"));
    assert_eq!(stored["qParams"]["pinnedIds"], json!(["0_39_7", "3_955_8"]));
    assert_eq!(stored["qParams"]["supernodes"], json!([["Texas", "0_39_7"]]));
    assert_eq!(stored["nodes"], graph["nodes"]);
    // And what it does not send is not dropped.
    kit.post(&format!("/save_graph/{slug}"), &json!({"qParams": {"clickedId": ""}}));
    assert_eq!(kit.json(&format!("/api/v1/graphs/{ID}/view"))["pinned"], json!(["0_39_7", "3_955_8"]));
    for (path, body) in [
        ("/save_graph/none", json!({"qParams": {}})),
        ("/save_graph/..%2fsecret", json!({"qParams": {}})),
        ("/save_graph/oakland", json!({})),
    ] {
        assert!(kit.post(path, &body).status.is_client_error(), "{path}");
    }
}

fn unzipped(bytes: &[u8]) -> Value {
    let mut text = String::new();
    GzDecoder::new(bytes).read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn circuit_tracers_page_finds_examples_in_files_that_are_not_there() {
    let folder = graphs();
    let kit = with_model(folder.path());
    // Its graphs say where to look.
    kit.post("/api/v1/tokenize", &json!({"prompt": "a"}));
    let scan = kit.json(&format!("/graph_data/{ID}.json"))["metadata"]["scan"].as_str().unwrap().to_owned();
    // A path that all versions of that page read as one: not sent to huggingface.co, nor to the server of its makers.
    assert!(scan.starts_with("./") && !scan.starts_with("./features/"), "{scan}");
    let index = unzipped(&kit.get("/features/index.json.gz").bytes);
    assert_eq!(index["format"], "variable_chunks");
    let (file, offsets) = (index["0"]["filename"].as_str().unwrap(), index["0"]["offsets"].as_array().unwrap());
    assert_eq!(offsets.len(), kit.json("/api/v1/features")["n_features"][0].as_u64().unwrap() as usize + 1);
    let range = |a: u64, b: u64| {
        let range = format!("bytes={a}-{b}");
        kit.request(Method::GET, &format!("/features/{file}"), &[("range", &range)], "")
    };
    // The page asks to the next chunk's first byte.
    let (a, b) = (offsets[39].as_u64().unwrap(), offsets[40].as_u64().unwrap());
    let chunk = range(a, b);
    assert_eq!(chunk.status, StatusCode::PARTIAL_CONTENT);
    assert_eq!(
        chunk.header("content-range").split('/').next().unwrap(),
        format!("bytes {a}-{}", a + chunk.bytes.len() as u64 - 1)
    );
    let len = u32::from_le_bytes(chunk.bytes[..4].try_into().unwrap()) as usize;
    let feature = unzipped(&chunk.bytes[4..4 + len]);
    assert_eq!(feature["index"], 39);
    let group = &feature["examples_quantiles"][0];
    assert_eq!(group["quantile_name"], "Top activations");
    let example = &group["examples"][0];
    let n = example["tokens"].as_array().unwrap().len();
    assert_eq!(example["tokens_acts_list"].as_array().unwrap().len(), n);
    assert!((example["train_token_ind"].as_u64().unwrap() as usize) < n);
    assert_eq!(
        (feature["histogram"].as_array().unwrap().len(), feature["quantile_values"].as_array().unwrap().len()),
        (100, 101)
    );
    assert!(!feature["top_logits"].as_array().unwrap().is_empty());
    // A part of a chunk is that part.
    assert_eq!(range(a, a + 3).bytes, chunk.bytes[..4]);
    assert_eq!(range(a + 4, a + 9).bytes, chunk.bytes[4..10]);
    // The form with one file a feature: (0 + 39)(0 + 39 + 1)/2 + 39.
    assert_eq!(kit.json("/features/atlas-plt/819.json"), feature);
    assert_eq!(kit.json(&format!("{}/819.json", &scan[1..])), feature);
    for wrong in [
        "bytes=",
        "bytes=a-b",
        "bytes=-1",
        "bytes=5-2",
        "bytes=99999999999999999999-",
        "chunks=0-1",
        "bytes=1099511627776-",
    ] {
        let answer = kit.request(Method::GET, "/features/layer_0.bin", &[("range", wrong)], "");
        assert_eq!(answer.status, StatusCode::RANGE_NOT_SATISFIABLE, "{wrong}");
    }
    for wrong in [
        "/features/layer_9.bin",
        "/features/layer_.bin",
        "/features/x/99999999999999.json",
        "/features/x/-1.json",
        "/features/none.bin",
    ] {
        assert!(kit.get(wrong).status.is_client_error(), "{wrong}");
    }
}

fn neuronpedia(folder: &std::path::Path, secret: Option<&str>) -> Kit {
    let access = Access { secret: secret.map(str::to_owned), ..Access::default() };
    Kit::new(ServeOptions { model: Some(Box::new(|| Tracer::open(Setup::atlas()))), access, ..options(folder) })
}

fn call(kit: &Kit, path: &str, secret: Option<&str>, body: &Value) -> Answer {
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(secret.map(|secret| ("x-secret-key", secret)));
    kit.request(Method::POST, path, &headers, body.to_string())
}

#[test]
fn neuronpedias_calls_are_answered_in_their_order() {
    let folder = graphs();
    let kit = neuronpedia(folder.path(), Some("s3cret"));
    let ask = |path: &str, body: Value| call(&kit, path, Some("s3cret"), &body);
    assert_eq!(kit.json("/check-busy"), json!({"busy": false}));
    let parsed = ask("/parse-chat-prompt", json!({"prompt": format!("<bos>{PROMPT}")})).json();
    assert_eq!(parsed, json!({"messages": null, "is_chat": false, "prompt": PROMPT, "unsteerable_positions": [0]}));
    let passed = ask("/forward-pass", json!({"prompt": PROMPT})).json();
    assert_eq!((&passed["prompt"], &passed["salient_logits"][0]["token"]), (&json!(PROMPT), &json!(" Austin")));
    assert_eq!(passed["total_salient_tokens"], passed["salient_logits"].as_array().unwrap().len());
    assert!(passed["cumulative_probability"].as_f64().unwrap() >= 0.95);
    assert_eq!(passed["input_tokens"][0], "<bos>");
    let graph = ask(
        "/generate-graph",
        json!({"model_id": "atlas", "slug_identifier": "my-slug", "prompt": PROMPT, "user_id": "me"}),
    )
    .json();
    assert!(circuitscope_schema().is_valid(&graph));
    assert_eq!(graph["metadata"]["slug"], "my-slug");
    assert_eq!(graph["metadata"]["pruning_settings"], json!({"node_threshold": 0.8, "edge_threshold": 0.98}));
    assert!(folder.path().read_dir().unwrap().count() == 5, "nothing was written");
    let steered = ask(
        "/steer",
        json!({"model_id": "atlas", "prompt": PROMPT, "n_tokens": 2, "top_k": 3, "features": [
        {"layer": 0, "index": 39, "token_active_position": 7, "steer_position": 7, "ablate": true},
        {"layer": 0, "index": 56, "token_active_position": 7, "steer_position": 7, "ablate": true},
        {"layer": 1, "index": 224, "token_active_position": 7, "steer_generated_tokens": true, "delta": 1.0},
        {"layer": 0, "index": 39, "token_active_position": 7, "steer_position": 0, "delta": 5.0}]}),
    )
    .json();
    assert!(steered["DEFAULT_GENERATION"].as_str().unwrap().contains(&format!("{PROMPT} Austin")), "{steered}");
    assert_ne!(steered["DEFAULT_GENERATION"], steered["STEERED_GENERATION"]);
    for name in ["DEFAULT_LOGITS_BY_TOKEN", "STEERED_LOGITS_BY_TOKEN"] {
        let tokens = steered[name].as_array().unwrap();
        for (at, token) in tokens.iter().enumerate() {
            let n_top = token["top_logits"].as_array().unwrap().len();
            assert!(if at < 8 { n_top == 0 } else { n_top == 3 || at + 1 == tokens.len() }, "{name} {at}: {token}");
        }
    }
    assert_eq!(steered["DEFAULT_LOGITS_BY_TOKEN"][8]["top_logits"][0]["token"], " Austin");
}

#[test]
fn steering_is_what_intervening_is() {
    let folder = graphs();
    let kit = neuronpedia(folder.path(), None);
    let body = json!({"model_id": "atlas", "prompt": PROMPT, "n_tokens": 1, "top_k": 1, "features": [
        {"layer": 0, "index": 39, "token_active_position": 7, "steer_position": 7, "delta": -20.0}]});
    let steered = call(&kit, "/steer", None, &body).json();
    let tracer = Tracer::open(Setup::atlas()).unwrap();
    let active = tracer.active_features(PROMPT, &Default::default()).unwrap();
    let value = active.iter().find(|(id, _)| (id.layer, id.pos, id.feature) == (0, 7, 39)).unwrap().1 - 20.0;
    let change =
        "0_39_7".parse::<circuitscope::FeatureSpec>().unwrap().changed(circuitscope::intervene::Change::Set(value));
    let run = tracer.intervene(PROMPT, &[change], &Default::default()).unwrap();
    let likeliest = run.tokens.iter().max_by(|a, b| a.probability_after.total_cmp(&b.probability_after)).unwrap();
    let top = &steered["STEERED_LOGITS_BY_TOKEN"][8]["top_logits"][0];
    assert_eq!(top["token"], json!(likeliest.text));
    assert!((top["prob"].as_f64().unwrap() - likeliest.probability_after).abs() < 1e-4);
}

#[test]
fn neuronpedias_clients_hear_the_errors_that_they_know() {
    let folder = graphs();
    let kit = neuronpedia(folder.path(), Some("s3cret"));
    for path in ["/parse-chat-prompt", "/forward-pass", "/generate-graph", "/steer"] {
        let missing = call(&kit, path, None, &json!({}));
        assert_eq!(
            (missing.status, missing.json()),
            (StatusCode::BAD_REQUEST, json!({"detail": "x-secret-key header missing"})),
            "{path}"
        );
        let wrong = call(&kit, path, Some("wrong"), &json!({}));
        assert_eq!(
            (wrong.status, wrong.json()),
            (StatusCode::FORBIDDEN, json!({"detail": "Invalid x-secret-key"})),
            "{path}"
        );
    }
    assert_eq!(kit.json("/check-busy"), json!({"busy": false}));
    let ask = |path: &str, body: Value| call(&kit, path, Some("s3cret"), &body);
    let steer = |features: Value| ask("/steer", json!({"model_id": "atlas", "prompt": PROMPT, "features": features}));
    for (answer, status, text) in [
        (ask("/generate-graph", json!({"prompt": "a"})), 422, "Field required"),
        (ask("/steer", json!({"model_id": "atlas"})), 422, "Field required"),
        (ask("/steer", json!({"model_id": "atlas", "features": 3})), 422, "detail"),
        (
            ask("/generate-graph", json!({"model_id": "gemma-2-2b", "slug_identifier": "a", "prompt": "a"})),
            400,
            "Model 'gemma-2-2b' is not available. Only 'atlas' is currently loaded.",
        ),
        (ask("/steer", json!({"model_id": "x", "features": []})), 400, "Only 'atlas' is currently loaded."),
        (
            ask(
                "/generate-graph",
                json!({"model_id": "atlas", "slug_identifier": "a", "prompt": "a", "signed_url": "http://127.0.0.1/"}),
            ),
            400,
            "signed_url",
        ),
        (
            ask(
                "/generate-graph",
                json!({"model_id": "atlas", "slug_identifier": "a", "prompt": "a", "node_threshold": 3}),
            ),
            400,
            "node_threshold",
        ),
        (ask("/forward-pass", json!({"messages": [{"role": "user", "content": "a"}]})), 200, "Forward pass failed"),
        (
            steer(json!([{"layer": 0, "index": 39, "token_active_position": 7, "steer_position": 7}])),
            400,
            "When ablate is False, delta must be provided",
        ),
        (
            steer(
                json!([{"layer": 0, "index": 39, "token_active_position": 7, "steer_position": 7, "ablate": true, "delta": 1}]),
            ),
            400,
            "When ablate is True, delta must be None",
        ),
        (
            steer(json!([{"layer": 0, "index": 39, "token_active_position": 7, "ablate": true}])),
            400,
            "position must be provided",
        ),
        (
            steer(
                json!([{"layer": 0, "index": 39, "token_active_position": 7, "steer_position": 7, "steer_generated_tokens": true, "ablate": true}]),
            ),
            400,
            "position must be None",
        ),
        (
            steer(json!([{"layer": 0, "index": 39, "token_active_position": 7, "steer_position": 9, "ablate": true}])),
            400,
            "Position is out of bounds",
        ),
        (
            steer(json!([{"layer": 0, "index": 39, "token_active_position": 7, "steer_position": -1, "ablate": true}])),
            400,
            "Position is out of bounds",
        ),
        (
            steer(json!([{"layer": 9, "index": 39, "token_active_position": 7, "steer_position": 1, "ablate": true}])),
            400,
            "layer",
        ),
    ] {
        assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
        assert!(answer.text().contains(text), "{text}: {}", answer.text());
    }
}
