//! JSON graphs read as a stream: pruned on the way, nothing else lost.

use std::io::Write;

use circuitscope::Error;
use circuitscope::export::{WireGraph, stream_wire};
use circuitscope::prune::{nodes_within, prune_links};

use crate::circuits::four_alike;

#[test]
fn a_file_of_many_links_is_pruned_as_a_stream() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.json");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    let n_features = 900u32;
    let target = "8_5_3";
    write!(file, r#"{{"metadata":{{"slug":"s","scan":null,"prompt_tokens":["a","b","c","d"],"prompt":"abcd"}},"qParams":{{}},"nodes":["#).unwrap();
    for at in 0..n_features {
        // Each step is smaller than the one before: no two nodes are equal.
        let (layer, part) = (at / 150, f64::from(at + 1) / f64::from(n_features));
        let share = 1.0 - (1.0 - part).powi(2);
        write!(file, r#"{{"node_id":"{layer}_{at}_3","feature":0,"layer":"{layer}","ctx_idx":3,"feature_type":"cross layer transcoder","jsNodeId":"","clerp":"","influence":{share}}},"#).unwrap();
    }
    write!(file, r#"{{"node_id":"E_1_3","feature":3,"layer":"E","ctx_idx":3,"feature_type":"embedding","jsNodeId":"","clerp":""}},"#).unwrap();
    write!(file, r#"{{"node_id":"{target}","feature":5,"layer":"8","ctx_idx":3,"feature_type":"logit","token_prob":0.9,"jsNodeId":"","clerp":"x"}}],"links":["#).unwrap();
    let mut n_links = 0;
    for to in 0..n_features {
        for from in (0..to / 150 * 150).map(|from| format!("{}_{from}_3", from / 150)).chain(["E_1_3".to_owned()]) {
            write!(file, r#"{{"source":"{from}","target":"{}_{to}_3","weight":0.125}},"#, to / 150).unwrap();
            n_links += 1;
        }
        write!(file, r#"{{"source":"{}_{to}_3","target":"{target}","weight":-0.5}}"#, to / 150).unwrap();
        n_links += 1;
        file.write_all(if to + 1 < n_features { b"," } else { b"]}" }).unwrap();
    }
    file.flush().unwrap();
    assert!(std::fs::metadata(&path).unwrap().len() > 15_000_000);
    let streamed = stream_wire(&path, Some(&|nodes| nodes_within(nodes, 0.189))).unwrap();
    assert_eq!(streamed.n_links_read, n_links);
    assert_eq!(streamed.nodes.len(), 90 + 2);
    // 90 features of the lowest layer: one link from the token, one to the target.
    assert_eq!(streamed.links.len(), 180);
}

#[test]
fn what_cannot_be_streamed_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("graph.json");
    let feature = |id: &str, layer: u32| {
        format!(
            r#"{{"node_id":"{id}","feature":0,"layer":"{layer}","ctx_idx":0,"feature_type":"cross layer transcoder","jsNodeId":"","clerp":""}}"#
        )
    };
    let error_of = |nodes: &[String], links: &str| {
        let nodes = nodes.join(",");
        let meta = r#"{"slug":"s","scan":null,"prompt_tokens":["a"],"prompt":"a"}"#;
        std::fs::write(&path, format!(r#"{{"metadata":{meta},"qParams":{{}},"nodes":[{nodes}],"links":[{links}]}}"#))
            .unwrap();
        stream_wire(&path, Some(&|nodes| nodes_within(nodes, 0.8))).unwrap_err()
    };
    let two = [feature("0_1_0", 0), feature("1_2_0", 1)];
    let link = |a: &str, b: &str, w: &str| format!(r#"{{"source":"{a}","target":"{b}","weight":{w}}}"#);
    assert!(matches!(error_of(&two, &link("0_1_0", "9_9_9", "1")), Error::LinkToNowhere { .. }));
    assert!(matches!(error_of(&two, &link("1_2_0", "0_1_0", "1")), Error::CircuitCycle { .. }));
    assert!(matches!(error_of(&two, &link("0_1_0", "1_2_0", "null")), Error::GraphNotFinite { .. }));
    assert!(matches!(error_of(&two, &link("0_1_0", "1_2_0", "NaN")), Error::Damaged { .. }));
    assert!(matches!(error_of(&[two[0].clone(), two[0].clone()], ""), Error::CircuitDuplicate { .. }));
    std::fs::write(&path, "{}").unwrap();
    assert!(matches!(stream_wire(&path, Some(&|nodes| nodes_within(nodes, 0.8))), Err(Error::Damaged { .. })));
}

#[test]
fn fields_of_links_and_nodes_that_nobody_knows_survive_a_stream() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("graph.json");
    let circuit = four_alike();
    let mut value = serde_json::to_value(WireGraph::new(&circuit, "slug").unwrap()).unwrap();
    for (at, link) in value["links"].as_array_mut().unwrap().iter_mut().enumerate() {
        if at % 2 == 0 {
            link["weight_by_head"] = serde_json::json!([at, {"why": "\u{e9} \\ \""}]);
        }
    }
    value["nodes"][1]["streetView"] = serde_json::json!({"x": 1.5});
    value["metadata"]["feature_details"] = serde_json::json!({"neuronpedia_source_set": "s"});
    value["qk_only_nodes"] = serde_json::json!({"a": 1});
    std::fs::write(&path, value.to_string()).unwrap();
    let mut graph = stream_wire(&path, Some(&|nodes| nodes_within(nodes, 1.0))).unwrap();
    let is_kept = prune_links(&graph.nodes, &mut graph.links, 1.0).unwrap();
    graph.keep_nodes(&is_kept);
    let mut back = serde_json::to_value(graph.to_wire()).unwrap();
    for value in [&mut value, &mut back] {
        value["links"].as_array_mut().unwrap().sort_by_key(|link| format!("{} {}", link["target"], link["source"]));
    }
    assert_eq!(back, value);
}
