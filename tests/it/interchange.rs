//! Graphs that other programs open: circuit-tracer's server and its classes, and the addresses of graph pages.

use serde_json::{Value, json};

use crate::support::{PROMPT, circuitscope, refused_with, stdout};

fn read(path: &std::path::Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn circuit_tracers_classes_accept_our_json() {
    let schema: Value = serde_json::from_str(include_str!("circuit_tracer_models.json")).unwrap();
    let schema = jsonschema::validator_for(&schema).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let requests: [&[&str]; 3] = [&[], &["--target-diff", " Austin", " TX"], &["--target-feature", "3_955_8"]];
    for request in requests {
        assert!(
            circuitscope(folder, &[&["trace", PROMPT, "--slug", "g", "-q", "--force"], request].concat())
                .status
                .success()
        );
        let save =
            ["inspect", "graphs/g.json", "--subgraph", "0_39_7", "--group", "Texas=0_39_7", "--save", "saved.json"];
        assert!(circuitscope(folder, &save).status.success());
        for path in ["graphs/g.json", "saved.json"] {
            let graph = read(&folder.join(path));
            let errors: Vec<String> = schema.iter_errors(&graph).map(|e| e.to_string()).collect();
            assert!(errors.is_empty(), "{path} of {request:?}: {errors:?}");
        }
    }
    let mut graph = read(&folder.join("graphs/g.json"));
    graph["metadata"].as_object_mut().unwrap().remove("transcoder_list");
    assert!(!schema.is_valid(&graph), "their classes want it");
}

#[test]
fn the_folder_lists_its_graphs_as_circuit_tracers_server_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let listing = folder.join("graphs/graph-metadata.json");
    let trace = |slug: &str, more: &[&str]| {
        assert!(circuitscope(folder, &[&["trace", PROMPT, "--slug", slug, "-q"], more].concat()).status.success());
    };
    trace("first", &[]);
    let theirs = json!({"slug": "theirs", "scan": "x", "title_prefix": "kept"});
    let mut list = read(&listing);
    list["graphs"].as_array_mut().unwrap().push(theirs.clone());
    std::fs::write(&listing, list.to_string()).unwrap();
    trace("second", &[]);
    trace("first", &["--node-threshold", "0.5", "--force"]);
    trace("unlisted", &["--no-json"]);
    let list = read(&listing);
    let graphs = list["graphs"].as_array().unwrap();
    let slugs: Vec<&str> = graphs.iter().map(|graph| graph["slug"].as_str().unwrap()).collect();
    assert_eq!(slugs, ["theirs", "second", "first"]);
    assert_eq!(graphs[0], theirs, "entries of other programs stay");
    let own = &read(&folder.join("graphs/first.json"))["metadata"];
    for key in ["slug", "scan", "transcoder_list", "prompt_tokens", "prompt", "node_threshold", "schema_version"] {
        assert_eq!(graphs[2][key], own[key], "{key}");
    }
    assert_eq!(graphs[2]["node_threshold"], 0.5);

    // A file of that name that is something else stays, and is found before the work.
    std::fs::write(&listing, "[1]").unwrap();
    refused_with(folder, &["trace", PROMPT, "--slug", "third", "-q"], &["graph-metadata.json", "graphs"]);
    assert_eq!(std::fs::read_to_string(&listing).unwrap(), "[1]");
    assert!(!folder.join("graphs/third.json").exists() && !folder.join("graphs/third.safetensors").exists());
}

#[test]
fn the_address_of_a_graphs_page_gives_supernodes_labels_and_pins() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    assert!(circuitscope(folder, &["trace", PROMPT, "--slug", "g", "-q"]).status.success());
    // Feature 39 of layer 0 has the Cantor number 39 · 40 / 2 + 39. The last node is none of this graph.
    let address = "https://www.neuronpedia.org/atlas/graph?slug=g&pinnedIds=0_39_7%2C3_955_8%2C2_7_7\
                   &supernodes=%5B%5B%22Lone+Star%22%2C%220_39_7%22%2C%222_7_7%22%5D%5D\
                   &clerps=%5B%5B%220_819_7%22%2C%22the%20state%20of%20Dallas%22%5D%5D&pruningThreshold=0.6";
    let report =
        stdout(&circuitscope(folder, &["inspect", "graphs/g.json", "--group-url", address, "--format", "json"]));
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["subgraph"]["n_pinned_features"], 2);
    let group = &report["grouping"]["supernodes"][0];
    assert_eq!((&group["name"], &group["members"]), (&json!("Lone Star"), &json!(["0_39_7"])));
    let is_texas = |node: &&Value| node["id"] == "0_39_7";
    let texas = report["strongest"].as_array().unwrap().iter().find(is_texas).unwrap();
    assert_eq!(texas["label"], "the state of Dallas");
    // What it names can be changed.
    let run = stdout(&circuitscope(
        folder,
        &["intervene", "--graph", "graphs/g.json", "--group-url", address, "--ablate", "Lone Star", "--format", "json"],
    ));
    let run: Value = serde_json::from_str(&run).unwrap();
    assert_eq!(run["interventions"], json!(["0_39_7=0"]));

    let other = "https://www.neuronpedia.org/x/graph?supernodes=%5B%5B%22a%22%2C%2211_2_3%22%5D%5D";
    refused_with(folder, &["inspect", "graphs/g.json", "--group-url", other], &["none of its supernodes"]);
    refused_with(folder, &["inspect", "graphs/g.json", "--group-url", "https://x.y/?slug=g"], &["pinnedIds"]);
}
