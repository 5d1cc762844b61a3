//! Graphs: what is told of them is what is in them, at every threshold.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use circuitscope::circuits::{Opening, circuit_scores, open_graph};
use circuitscope::export::node_id_text;
use circuitscope::graph::strongest_paths;
use petgraph::visit::EdgeRef;
use serde_json::{Value, json};

use super::kit::{Columns, ID, graphs, viewer};

fn path(rest: &str) -> String {
    format!("/api/v1/graphs/{ID}{rest}")
}

#[test]
fn the_list_has_every_graph_of_the_folder_and_nothing_else() {
    let folder = graphs();
    for (name, text) in [
        ("other.json", "{\"a\": 1}"),
        ("broken.json", "{\"metadata\": {\"slug\": \"x\""),
        ("broken.safetensors", "not a graph"),
        ("notes.txt", "text"),
        (".hidden.json", "{}"),
        ("a.view.json", "{\"qParams\": {}}"),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    std::fs::create_dir(folder.path().join("folder.json")).unwrap();
    let kit = viewer(folder.path());
    let list = kit.json("/api/v1/graphs");
    let mut ids: Vec<&str> = list["graphs"].as_array().unwrap().iter().map(|g| g["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["oakland", ID]);
    let first = list["graphs"].as_array().unwrap().iter().find(|g| g["id"] == ID).unwrap();
    assert_eq!((&first["raw"], &first["json"], &first["in_memory"]), (&json!(true), &json!(true), &json!(false)));
    assert_eq!(first["prompt_tokens"].as_array().unwrap().len(), 9);
    // What goes is gone, what comes is there.
    std::fs::remove_file(folder.path().join("oakland.json")).unwrap();
    std::fs::remove_file(folder.path().join("oakland.safetensors")).unwrap();
    assert_eq!(kit.json("/api/v1/graphs")["graphs"].as_array().unwrap().len(), 1);
    assert_eq!(kit.get("/api/v1/graphs/oakland").status, StatusCode::NOT_FOUND);
}

/// A cut, through the interface: id pairs and weights.
fn cut_of(kit: &super::kit::Kit, query: &str) -> (Columns, BTreeMap<(String, String), f32>) {
    let ids = Columns::read(&kit.get(&path("/nodes.bin"))).texts("id");
    let columns = Columns::read(&kit.get(&path(&format!("/links.bin?top=1000000&{query}"))));
    let (nodes, starts) = (columns.u32s("node"), columns.u32s("row_start"));
    let (sources, weights) = (columns.u32s("source"), columns.f32s("weight"));
    let mut links = BTreeMap::new();
    for (row, &node) in nodes.iter().enumerate() {
        for at in starts[row] as usize..starts[row + 1] as usize {
            links.insert((ids[sources[at] as usize].clone(), ids[node as usize].clone()), weights[at]);
            assert!(at == starts[row] as usize || weights[at - 1].abs() >= weights[at].abs(), "strongest first");
        }
    }
    (columns, links)
}

#[test]
fn a_cut_is_what_the_command_line_prunes_to_scores_and_shares_too() {
    let folder = graphs();
    let kit = viewer(folder.path());
    for (file, query, nodes, edges) in [
        ("safetensors", "", None, None),
        ("safetensors", "node_threshold=0.5&edge_threshold=0.9", Some(0.5), Some(0.9)),
        ("safetensors", "node_threshold=1&edge_threshold=1", Some(1.0), Some(1.0)),
        ("safetensors", "node_threshold=0&edge_threshold=0", Some(0.0), Some(0.0)),
        ("json", "", None, None),
        ("json", "node_threshold=0.5&edge_threshold=0.9", Some(0.5), Some(0.9)),
    ] {
        let folder = graphs();
        // The other file of the pair is taken away.
        let other = if file == "json" { "safetensors" } else { "json" };
        std::fs::remove_file(folder.path().join(format!("{ID}.{other}"))).unwrap();
        let own = viewer(folder.path());
        let opened =
            open_graph(&folder.path().join(format!("{ID}.{file}")), &Opening::new(nodes, edges).unwrap()).unwrap();
        let circuit = &opened.circuit;
        let id = |n| node_id_text(circuit.meta.n_layers, circuit.node(n));
        let expected: BTreeMap<(String, String), f32> = circuit
            .graph()
            .edge_references()
            .map(|edge| ((id(edge.source()), id(edge.target())), edge.weight().weight))
            .collect();
        let (columns, links) = cut_of(&own, query);
        assert_eq!(links, expected, "{file} {query}");
        let cut: Value = serde_json::from_str(columns.metadata("cut")).unwrap();
        let twin = circuit_scores(circuit);
        for (name, expected) in [("replacement", twin.replacement), ("completeness", twin.completeness)] {
            assert!((cut["scores"][name].as_f64().unwrap() - expected).abs() < 1e-9, "{file} {query} {name}");
        }
        let influence = circuit.node_influence();
        let all_ids = Columns::read(&own.get(&path("/nodes.bin"))).texts("id");
        let shares: BTreeMap<String, f32> =
            columns.u32s("node").iter().map(|&n| all_ids[n as usize].clone()).zip(columns.f32s("node_share")).collect();
        assert_eq!(shares.len(), circuit.graph().node_count());
        for index in circuit.graph().node_indices() {
            let expected = influence[index.index()] / circuit.whole_weight().max(f64::MIN_POSITIVE);
            assert!((f64::from(shares[&id(index)]) - expected).abs() < 1e-6, "{}", id(index));
        }
        assert_eq!(own.json(&path(&format!("/prune?{query}")))["n_nodes"], json!(circuit.graph().node_count()));
    }
    // A node keeps its number whatever the thresholds are, and asking again changes nothing.
    let (a, _) = cut_of(&kit, "node_threshold=0.5");
    let (b, _) = cut_of(&kit, "node_threshold=0.9");
    let (a, b) = (a.u32s("node"), b.u32s("node"));
    assert!(a.len() < b.len() && a.iter().all(|n| b.contains(n)));
}

#[test]
fn the_strongest_links_are_given_and_how_much_they_are_of_all() {
    let folder = graphs();
    let kit = viewer(folder.path());
    let (_, all) = cut_of(&kit, "");
    for by in ["weight", "score"] {
        let columns = Columns::read(&kit.get(&path(&format!("/links.bin?top=5&by={by}"))));
        assert_eq!((columns.metadata("n_links"), columns.metadata("n_shown")), (all.len().to_string().as_str(), "5"));
        let weights = columns.f32s("weight");
        if by == "weight" {
            let mut strongest: Vec<f32> = all.values().map(|w| w.abs()).collect();
            strongest.sort_by(|a, b| b.total_cmp(a));
            let mut given: Vec<f32> = weights.iter().map(|w| w.abs()).collect();
            given.sort_by(|a, b| b.total_cmp(a));
            assert_eq!(given, strongest[..5]);
        }
        let shown: f64 = columns.metadata("weight_shown").parse().unwrap();
        assert!((shown - weights.iter().map(|w| f64::from(w.abs())).sum::<f64>()).abs() < 1e-6);
        let total: f64 = columns.metadata("weight_total").parse().unwrap();
        assert!((total - all.values().map(|w| f64::from(w.abs())).sum::<f64>()).abs() < 1e-4);
    }
    let none = Columns::read(&kit.get(&path("/links.bin?top=0")));
    assert!(none.u32s("source").is_empty() && !none.u32s("node").is_empty());
    let answer = kit.get(&path("/links.bin"));
    let again =
        kit.request(axum::http::Method::GET, &path("/links.bin"), &[("if-none-match", answer.header("etag"))], "");
    assert_eq!((again.status, again.bytes.len()), (StatusCode::NOT_MODIFIED, 0));
}

#[test]
fn links_of_a_node_come_in_pages_and_its_row_adds_up() {
    let folder = graphs();
    let kit = viewer(folder.path());
    let links = kit.json(&path("/node/0_39_7/links"));
    assert_eq!((&links["kind"], &links["label"]), (&json!("feature"), &json!("Texas")));
    assert_eq!(links["inputs"]["links"][0]["label"], " Dallas");
    let proof = &links["proof"];
    let part = |name: &str| proof[name].as_f64().unwrap();
    let sum = part("from_features") + part("from_errors") + part("from_tokens") + part("bias");
    assert!((sum - part("pre_activation")).abs() < 1e-4 && part("relative_error") < 1e-5);
    let total = links["outputs"]["total"].as_u64().unwrap() as usize;
    let mut paged = Vec::new();
    for offset in 0..total {
        let page = kit.json(&path(&format!("/node/70/links?side=outputs&limit=1&offset={offset}")));
        assert_eq!(page["inputs"]["links"], json!([]));
        paged.push(page["outputs"]["links"][0].clone());
    }
    assert_eq!(json!(paged), links["outputs"]["links"]);
    // All links of the raw graph are more, and hold those of the cut.
    let whole = kit.json(&path("/node/0_39_7/links?whole=true&limit=5000"));
    for side in ["inputs", "outputs"] {
        let ids = |links: &Value| -> Vec<String> {
            links[side]["links"].as_array().unwrap().iter().map(|l| l["id"].to_string()).collect()
        };
        let (of_cut, of_whole) = (ids(&links), ids(&whole));
        assert!(of_whole.len() > of_cut.len() && of_cut.iter().all(|id| of_whole.contains(id)), "{side}");
    }
    let token = kit.json(&path("/node/E_2859_7/links"));
    assert_eq!((&token["proof"], &token["inputs"]["total"]), (&Value::Null, &json!(0)));
    for wrong in ["99999", "0_39_99", "x", "-1"] {
        assert_eq!(kit.get(&path(&format!("/node/{wrong}/links"))).status, StatusCode::NOT_FOUND, "{wrong}");
    }
    assert_eq!(kit.get(&path("/node/0_39_7/links?limit=0")).status, StatusCode::BAD_REQUEST);
}

#[test]
fn paths_are_the_strongest_between_two_selections() {
    let folder = graphs();
    let kit = viewer(folder.path());
    let opened = open_graph(&folder.path().join(format!("{ID}.safetensors")), &Opening::default()).unwrap();
    let circuit = &opened.circuit;
    let twin = strongest_paths(circuit, &circuit.tokens(), &circuit.targets()[..1], 4);
    let found = kit.json(&path("/paths?k=4"));
    assert_eq!(found["total"], json!(twin.total));
    for (found, expected) in found["paths"].as_array().unwrap().iter().zip(&twin.paths) {
        let ids: Vec<String> =
            expected.nodes.iter().map(|&n| node_id_text(circuit.meta.n_layers, circuit.node(n))).collect();
        assert_eq!((&found["ids"], &found["strength"]), (&json!(ids), &json!(expected.strength)));
    }
    let some = kit.json(&path("/paths?from=Texas&to=3_260_8,3_955_8&k=3"));
    assert!(some["paths"].as_array().unwrap().iter().all(|p| p["ids"][0] == "0_39_7"));
    assert_eq!(kit.get(&path("/paths?from=nowhere")).status, StatusCode::NOT_FOUND);
    assert_eq!(kit.get(&path("/paths?k=0")).status, StatusCode::BAD_REQUEST);
}

#[test]
fn search_finds_labels_tokens_and_ids() {
    let folder = graphs();
    let kit = viewer(folder.path());
    let first = |query: &str| kit.json(&path(&format!("/search?q={query}")))["found"][0].clone();
    assert_eq!((&first("texas")["id"], &first("texas")["why"]), (&json!("0_39_7"), &json!("label")));
    assert_eq!((&first("dallas")["id"], &first("dallas")["why"]), (&json!("E_2859_7"), &json!("token")));
    assert_eq!((&first("0_39")["id"], &first("0_39")["why"]), (&json!("0_39_7"), &json!("id")));
    assert_eq!(kit.json(&path("/search?q=no%20such%20thing"))["total"], 0);
    assert_eq!(kit.get(&path("/search?q=%20")).status, StatusCode::BAD_REQUEST);
    assert_eq!(kit.get(&path("/search")).status, StatusCode::BAD_REQUEST);
}

#[test]
fn groups_scores_and_differences_are_told() {
    let folder = graphs();
    let kit = viewer(folder.path());
    let groups = kit.json(&path("/groups/auto"));
    assert!(groups["groups"].as_array().unwrap().iter().all(|g| g["members"].as_array().unwrap().len() > 1));
    let scores = kit.post(&path("/scores"), &json!({"nodes": ["0_39_7", "3_955_8", "no"]})).json();
    assert_eq!(
        (&scores["n_features"], &scores["over_all_edges"], &scores["unknown"]),
        (&json!(2), &json!(true), &json!(["no"]))
    );
    let all = kit.json(&path("/prune?node_threshold=1&edge_threshold=1"));
    let header = kit.json(&path(""));
    // Everything on a path pinned explains nearly what the graph explains.
    for name in ["replacement", "completeness"] {
        let (of_all, of_graph) = (all["of_whole"][name].as_f64().unwrap(), header["scores"][name].as_f64().unwrap());
        assert!((of_all - of_graph).abs() < 0.01, "{name}: {of_all} {of_graph}");
    }
    assert!(header["proof"]["row_identity_error"].as_f64().unwrap() < 1e-5);
    assert_eq!(header["summary"]["predictions"][0]["text"], " Austin");
    let diff = kit.json(&path("/diff/oakland"));
    assert_eq!((&diff["left"], &diff["right"]), (&json!(ID), &json!("oakland")));
    assert!(!diff["shared"].as_array().unwrap().is_empty());
    assert_eq!(kit.get(&path("/diff/nothing")).status, StatusCode::NOT_FOUND);
}

#[test]
fn pictures_layouts_and_downloads_are_of_what_is_pinned() {
    let folder = graphs();
    let kit = viewer(folder.path());
    let svg = kit.get(&path("/picture.svg"));
    assert!(svg.text().starts_with("<svg") && svg.header("content-type") == "image/svg+xml");
    assert_eq!(&kit.get(&path("/picture.png?scale=1")).bytes[1..4], b"PNG");
    let part = json!({"pinned": ["0_39_7"], "groups": [{"name": "<b>&", "members": ["0_39_7", "3_955_8", "gone"]}]});
    let layout = kit.post(&path("/layout"), &part).json();
    let group = layout["boxes"].as_array().unwrap().iter().find(|b| b["kind"] == "group").unwrap();
    assert_eq!((&group["name"], &group["ids"]), (&json!("<b>&"), &json!(["0_39_7", "3_955_8"])));
    let n_boxes = layout["boxes"].as_array().unwrap().len() as u64;
    for edge in layout["edges"].as_array().unwrap() {
        assert!(edge["source"].as_u64().unwrap() < n_boxes && edge["target"].as_u64().unwrap() < n_boxes);
        assert!(edge["curve"][0].as_array().unwrap().len() == 4);
    }
    let mut drawn = part.clone();
    drawn["format"] = json!("svg");
    let text = kit.post(&path("/picture"), &drawn).text();
    assert!(text.contains("&lt;b&gt;&amp;") && !text.contains("<b>"));
    for (format, start) in
        [("json", "{"), ("graphml", "<?xml"), ("dot", "digraph"), ("csv", "source,"), ("nodes.csv", "")]
    {
        let answer = kit.get(&path(&format!("/export.{format}")));
        assert_eq!(answer.status, StatusCode::OK, "{format}");
        assert!(answer.text().starts_with(start), "{format}");
        assert!(answer.header("content-disposition").starts_with("attachment"), "{format}");
    }
    for wrong in ["/export.exe", "/export.", "/export", "/nothing"] {
        assert_eq!(kit.get(&path(wrong)).status, StatusCode::NOT_FOUND, "{wrong}");
    }
    assert_eq!(kit.get(&path("/picture.png?scale=1000")).status, StatusCode::BAD_REQUEST);
}

#[test]
fn requests_that_make_no_sense_are_refused_in_json() {
    let folder = graphs();
    let kit = viewer(folder.path());
    for query in
        ["node_threshold=2", "node_threshold=-1", "edge_threshold=x", "node_threshold=NaN", "edge_threshold=inf"]
    {
        for route in ["", "/prune", "/links.bin", "/paths", "/groups/auto", "/picture.svg"] {
            let answer = kit.get(&path(&format!("{route}?{query}")));
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{route}?{query}: {}", answer.text());
            assert_eq!(answer.refusal(), "bad_request");
        }
    }
    assert_eq!(kit.get(&path("/links.bin?top=99999999999")).status, StatusCode::PAYLOAD_TOO_LARGE);
    for route in ["/api/v1/jobs/1", "/api/v1/graphs/none", "/api/v1/none", "/api/v2/graphs"] {
        assert_eq!(kit.get(route).refusal(), "not_found", "{route}");
    }
    assert_eq!(kit.post("/api/v1/tokenize", &json!({"prompt": "a"})).refusal(), "no_model");
    assert_eq!(kit.post("/api/v1/jobs", &json!({"kind": "trace", "prompt": "a"})).refusal(), "no_model");
}

#[test]
fn every_route_of_the_description_is_there_and_every_answer_it_names() {
    let folder = graphs();
    let kit = viewer(folder.path());
    let openapi = kit.json("/api/v1/openapi.json");
    assert_eq!(openapi["openapi"], "3.1.0");
    for (route, methods) in openapi["paths"].as_object().unwrap() {
        let route = route.replace("{id}", ID).replace("{other}", "oakland").replace("{n}", "0");
        let route = route.replace("{format}", "csv").replace("{layer}", "0").replace("{i}", "39").replace("{job}", "1");
        for method in methods.as_object().unwrap().keys() {
            let method: axum::http::Method = method.to_uppercase().parse().unwrap();
            let answer = kit.request(method.clone(), &route, &[("content-type", "application/json")], "{}");
            // There, whatever it thinks of an empty request.
            assert_ne!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {route}");
            let is_missing =
                answer.status == StatusCode::NOT_FOUND && answer.text().contains("nothing at this address");
            assert!(!is_missing, "{method} {route}");
            assert!(!answer.status.is_server_error(), "{method} {route}: {}", answer.text());
        }
    }
}
