//! Graphs whose features have names and examples: what is collected of a text is shown wherever a feature is listed.

use std::path::Path;

use circuitscope::attribution::{AttributionOptions, RowChoice};
use circuitscope::circuits::{ClusterSettings, find_supernodes};
use circuitscope::features::{FeatureAt, FeatureId, FeatureSet, pushes_here};
use circuitscope::graph::NodeId;
use circuitscope::job::Job;
use circuitscope::{Setup, Tracer};
use serde_json::Value;

use crate::reference::FAMILIES;
use crate::support::{PROMPT, answer, close, fixture, refused_with};

fn json(folder: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&answer(folder, &[args, &["--format", "json"]].concat())).unwrap()
}

fn trace(folder: &Path) {
    answer(folder, &["trace", PROMPT, "--slug", "dallas", "--quiet"]);
}

#[test]
fn what_a_feature_pushes_in_a_graph_is_its_edge_to_each_target_on_every_family() {
    for family in FAMILIES {
        let folder = fixture("reference").join(family);
        let path = |name: &str| folder.join(name).display().to_string();
        let tracer = Tracer::open(Setup::new(path("model"), path("transcoders"))).unwrap();
        let (replacement, prompt) = (tracer.replacement(), "The house in the town.");
        let options = AttributionOptions { rows: RowChoice::All, ..Default::default() };
        let traced = tracer.trace(prompt, &options).unwrap();
        let graph = traced.graph();
        let tokens: Vec<u32> = graph.input_tokens.iter().map(|&token| token as u32).collect();
        let linear = replacement.linearize(&tokens, &Job::default()).unwrap();
        let (d_vocab, layout) = (replacement.model.config.d_vocab, graph.layout());
        let at = graph.meta.target_positions[0] as usize;
        let mut n_checked = 0;
        for column in (0..layout.n_features()).step_by(3) {
            let Some(NodeId::Feature { layer, pos, feature }) = layout.node(column) else { panic!("a feature") };
            let id = FeatureId { layer: layer as usize, feature: feature as usize };
            let here = FeatureAt { id, pos: pos as usize };
            let (_, pushes) = pushes_here(replacement, &linear, here, at, d_vocab).unwrap().unwrap();
            let sum: f64 = pushes.top.iter().map(|push| f64::from(push.value)).sum();
            let size = f64::from(pushes.top[0].value.abs().max(pushes.bottom[0].value.abs()));
            close(sum, 0.0, 1e-4 * size * d_vocab as f64, 0.0, "what is pushed is less the mean");
            for (target, &token) in graph.target_ids.iter().enumerate().filter(|(_, token)| **token >= 0) {
                let push = pushes.top.iter().find(|push| i64::from(push.token) == token).unwrap();
                let edge = graph.row(layout.n_features() + target)[column];
                close(push.value.into(), edge.into(), 1e-4 * size, 1e-3, &format!("{family}: {id}@{pos} to {token}"));
                n_checked += 1;
            }
        }
        assert!(n_checked > 5, "{family}: {n_checked}");
        // What is not active has no effect.
        let inactive = FeatureAt { id: FeatureId { layer: 0, feature: 0 }, pos: 0 };
        assert_eq!(pushes_here(replacement, &linear, inactive, at, 3).unwrap(), None);
    }
}

#[test]
fn inspect_shows_the_dashboard_of_a_node_below_its_edges() {
    let folder = tempfile::tempdir().unwrap();
    trace(folder.path());
    let text = answer(folder.path(), &["inspect", "graphs/dallas.safetensors", "--node", "0_39_7"]);
    let parts =
        ["negative outputs", "feature 0_39  Texas", "active on", "pushes up", "here ", "up at @8", "feeds, by weights"];
    let parts = [&parts[..], &["strongest examples", "more: circuitscope features show atlas 0_39"]].concat();
    let places: Vec<usize> =
        parts.iter().map(|part| text.find(part).unwrap_or_else(|| panic!("{part}: {text}"))).collect();
    assert!(places.is_sorted(), "{places:?}");
    let is_wide = |line: &&str| line.chars().count() > 80;
    assert_eq!(text.lines().skip_while(|line| !line.starts_with("feature")).find(is_wide), None);
    // The same from the JSON graph, whose prompt is read again.
    let of_json = json(folder.path(), &["inspect", "graphs/dallas.json", "--node", "0_39_7"]);
    let of_raw = json(folder.path(), &["inspect", "graphs/dallas.safetensors", "--node", "0_39_7"]);
    assert_eq!(of_json["dashboards"], of_raw["dashboards"]);
    let dashboard = &of_raw["dashboards"][0];
    let shown = json(folder.path(), &["features", "show", "atlas", "0_39", "--weights"]);
    for key in ["feature", "count", "label", "examples", "weights"] {
        assert_eq!(dashboard[key], shown[key], "{key}");
    }
    // What it does here is what the graph says.
    let outputs = of_raw["nodes"][0]["outputs"]["positive"].as_array().unwrap();
    let target = outputs.iter().find(|edge| edge["node"]["kind"] == "target").unwrap();
    let pushes = dashboard["here"][0]["top"].as_array().unwrap();
    let push = pushes.iter().find(|push| push["text"] == target["node"]["text"]).unwrap();
    close(push["value"].as_f64().unwrap(), target["weight"].as_f64().unwrap(), 1e-3, 1e-3, "the edge to Austin");
    assert_eq!(dashboard["here"][0]["activation"], of_raw["nodes"][0]["node"]["activation"]);
    assert!((0.5..=1.0).contains(&dashboard["here"][0]["share_below"].as_f64().unwrap()));
    let bare = answer(folder.path(), &["inspect", "graphs/dallas.json", "--node", "0_39_7", "--no-dashboard"]);
    assert!(!bare.contains("active on") && text.starts_with(&bare), "{bare}");
    let token = answer(folder.path(), &["inspect", "graphs/dallas.json", "--node", "Dallas@7"]);
    assert!(!token.contains("active on"), "a token is no feature");
}

#[test]
fn examples_stand_below_each_listed_feature() {
    let folder = tempfile::tempdir().unwrap();
    let text = answer(folder.path(), &["trace", PROMPT, "--slug", "dallas", "--quiet", "--examples"]);
    let set = FeatureSet::open_named("atlas").unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().position(|line| line.contains(" 0_39_7 ")).unwrap();
    assert!(lines[at + 1].contains('«') && lines[at + 1].chars().count() <= 80, "{}", lines[at + 1]);
    let told = json(folder.path(), &["inspect", "graphs/dallas.json", "--examples"]);
    for node in told["strongest"].as_array().unwrap().iter().filter(|node| node["kind"] == "feature") {
        let id: Vec<usize> = node["id"].as_str().unwrap().split('_').map(|part| part.parse().unwrap()).collect();
        let dashboard = set.dashboard(id[0], id[1]).unwrap();
        let strongest = dashboard.top().next().unwrap();
        close(node["example"]["value"].as_f64().unwrap(), strongest.value.into(), 1e-6, 1e-6, "the strongest");
        let own = set.tokens().text(set.tokens().token(strongest.position as usize));
        assert_eq!(node["example"]["tokens"][node["example"]["at"].as_u64().unwrap() as usize], own.as_str());
    }
    let edges = answer(folder.path(), &["inspect", "graphs/dallas.json", "--node", "3_955_8", "--examples"]);
    assert!(edges.lines().filter(|line| line.starts_with("  ") && line.contains('«')).count() > 10, "{edges}");
    let plain = json(folder.path(), &["inspect", "graphs/dallas.json"]);
    assert!(plain["strongest"][0].get("example").is_none(), "only where asked for");
}

#[test]
fn examples_need_features_of_the_same_transcoders() {
    let folder = tempfile::tempdir().unwrap();
    let place = fixture("reference/llama_relu");
    let path = |name: &str| place.join(name).display().to_string();
    let (model, transcoders) = (path("model"), path("transcoders"));
    let trace = ["trace", "The house", "--model", &model, "--transcoders", &transcoders, "--slug", "house", "--quiet"];
    refused_with(
        folder.path(),
        &[&trace[..], &["--examples"]].concat(),
        &["no collected features", "features collect"],
    );
    answer(folder.path(), &trace);
    let inspect = ["inspect", "graphs/house.json", "--examples"];
    refused_with(folder.path(), &inspect, &["no collected features", "--features"]);
    refused_with(
        folder.path(),
        &[&inspect[..], &["--features", "atlas"]].concat(),
        &["another transcoder set", "atlas"],
    );
    refused_with(folder.path(), &[&inspect[..], &["--features", "nowhere"]].concat(), &["features.json"]);
}

#[test]
fn names_are_taken_as_they_are_printed() {
    let folder = tempfile::tempdir().unwrap();
    trace(folder.path());
    let node = |name: &str| {
        let told = json(folder.path(), &["inspect", "graphs/dallas.json", "--no-dashboard", "--node", name]);
        told["nodes"][0]["node"]["id"].as_str().unwrap().to_owned()
    };
    for name in ["\" Dallas\"@7", "\" Dallas\"", "\"Dallas\"@7"] {
        assert_eq!(node(name), "E_2859_7", "{name}");
    }
    assert_eq!(node("\"Texas\""), "0_39_7");
}

#[test]
fn heat_maps_say_what_they_are_about() {
    let folder = tempfile::tempdir().unwrap();
    trace(folder.path());
    let map = ["inspect", "graphs/dallas.safetensors", "--heat-map", "--format", "svg"];
    let of_node = answer(folder.path(), &[&map[..], &["--to", "3_955_8"]].concat());
    assert!(of_node.contains("Effects on 3_955_8 (asks for capital"), "{}", &of_node[..2000]);
    assert!(answer(folder.path(), &map).contains("Effects on"));
    refused_with(folder.path(), &[&map[..], &["--from", "Dallas"]].concat(), &["--heat-map", "--from"]);
}

#[test]
fn supernodes_that_are_found_are_named_by_what_their_members_share() {
    let tracer = Tracer::open(Setup::atlas()).unwrap();
    let traced = tracer.trace(PROMPT, &AttributionOptions::default()).unwrap();
    let circuit = traced.prune(&Default::default()).unwrap();
    let groups = find_supernodes(&circuit, &ClusterSettings { cut: 0.3, ..Default::default() }, None);
    assert!(!groups.is_empty());
    for group in &groups {
        let labels: Vec<&str> = group.members.iter().filter_map(|&m| circuit.node(m).label.as_deref()).collect();
        let name = group.name.trim_end_matches(" …").split(" (").next().unwrap().to_lowercase();
        let n_sharing = labels.iter().filter(|label| label.to_lowercase().contains(&name)).count();
        let is_of_first = group.name.contains('…');
        let is_shared = 2 * n_sharing > group.members.len() || group.name.starts_with("pushes ");
        assert!(is_shared || is_of_first, "{}: {labels:?}", group.name);
    }
}
