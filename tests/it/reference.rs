//! The reference cases: graphs that circuit-tracer 0.4.1 computed, and what it says about them.

use std::path::{Path, PathBuf};

use circuitscope::attribution::{AttributionOptions, TargetRequest};
use circuitscope::graph::{AttributionGraph, EdgeRows, FeatureId, GraphData, GraphMeta, GraphSettings};
use circuitscope::replacement::Replacement;
use circuitscope::weights::{Folder, HostFiles};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::support::device;

/// One prompt of one case.
pub struct Case {
    pub name: String,
    /// `expected/` of the case.
    folder: PathBuf,
    /// Its entry in `cases.json`.
    pub json: Value,
    tensors: Vec<u8>,
}

/// All cases of the shared folder and of `fixtures/reference`; the latter alone where there is no shared folder.
pub fn cases() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut cases = cases_below(&root.join("fixtures/reference"));
    assert!(!cases.is_empty(), "fixtures/reference holds cases");
    cases.extend(cases_in(&root.join("fixtures/atlas")));
    let shared = std::env::var_os("CIRCUITSCOPE_SHARED").map_or_else(|| root.join("../shared"), PathBuf::from);
    if shared.join("reference").is_dir() {
        cases.extend(cases_below(&shared.join("reference")));
        cases.extend(cases_in(&shared.join("atlas")));
    } else {
        println!("skipped: no reference cases at {}", shared.display());
    }
    cases
}

fn cases_below(folder: &Path) -> Vec<Case> {
    let mut models: Vec<PathBuf> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    models.sort();
    models.iter().filter(|model| model.is_dir()).flat_map(|model| cases_in(model)).collect()
}

fn cases_in(model: &Path) -> Vec<Case> {
    let folder = model.join("expected");
    let json: Value = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
    let case_of = |json: &Value| {
        let prompt = json["name"].as_str().unwrap();
        Some(Case {
            name: format!("{}/{prompt}", model.file_name().unwrap().to_string_lossy()),
            folder: folder.clone(),
            json: json.clone(),
            // A fixture folder may hold some of the prompts only.
            tensors: std::fs::read(folder.join(format!("{prompt}.safetensors"))).ok()?,
        })
    };
    json["cases"].as_array().unwrap().iter().filter_map(case_of).collect()
}

impl Case {
    pub fn f32s(&self, name: &str) -> Vec<f32> {
        let tensors = SafeTensors::deserialize(&self.tensors).unwrap();
        let data = tensors.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn i64s(&self, name: &str) -> Vec<i64> {
        let tensors = SafeTensors::deserialize(&self.tensors).unwrap();
        let data = tensors.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn bools(&self, name: &str) -> Vec<bool> {
        let tensors = SafeTensors::deserialize(&self.tensors).unwrap();
        tensors.tensor(name).unwrap().data().iter().map(|&b| b != 0).collect()
    }

    pub fn number(&self, name: &str) -> f64 {
        self.json[name].as_f64().unwrap()
    }

    /// The folder of the case's model: `model/` and `transcoders/` are in it.
    pub fn root(&self) -> &Path {
        self.folder.parent().unwrap()
    }

    /// Whether the model and its transcoders are at hand; fixtures may hold the expected values only.
    pub fn has_model(&self) -> bool {
        self.root().join("model").is_dir()
    }

    /// The base model with its transcoders.
    pub fn replacement(&self) -> Replacement {
        let host = HostFiles::open(self.root().join("model").to_str().unwrap()).unwrap();
        let transcoders = Folder::open(self.root().join("transcoders").to_str().unwrap()).unwrap();
        Replacement::open(host, &transcoders, &device()).unwrap()
    }

    /// The options that the reference was computed with.
    pub fn options(&self) -> AttributionOptions {
        let parameters = &self.json["parameters"];
        let number = |key: &str| parameters[key].as_u64().unwrap() as usize;
        AttributionOptions {
            targets: match self.json["requested_targets"].is_null() {
                true => Vec::new(),
                false => self.json["targets"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|t| TargetRequest::Token(t["id"].as_u64().unwrap() as u32))
                    .collect(),
            },
            max_logits: number("max_n_logits"),
            logit_prob: parameters["desired_logit_prob"].as_f64().unwrap(),
            max_features: parameters["max_feature_nodes"].as_u64().map(|n| n as usize),
            batch_size: number("batch_size"),
            ..AttributionOptions::default()
        }
    }

    /// Where the pruned graph is that circuit-tracer wrote for this prompt.
    pub fn wire_path(&self) -> PathBuf {
        self.folder.join("graph").join(format!("{}.json", self.json["name"].as_str().unwrap()))
    }

    /// The graph of this case, its rows taken from the reference's adjacency matrix.
    pub fn graph(&self) -> AttributionGraph {
        let adjacency = self.f32s("adjacency");
        let input_tokens = self.i64s("input_tokens");
        let target_probabilities = self.f32s("target_probabilities");
        let selected_features: Vec<usize> = self.i64s("selected_features").iter().map(|&i| i as usize).collect();
        let active_features: Vec<FeatureId> = self
            .i64s("active_features")
            .chunks_exact(3)
            .map(|f| FeatureId { layer: f[0] as u32, pos: f[1] as u32, feature: f[2] as u32 })
            .collect();
        let (n_pos, n_targets, n_features) = (input_tokens.len(), target_probabilities.len(), selected_features.len());
        let n_nodes = adjacency.len().isqrt();
        let n_layers = (n_nodes - n_features - n_pos - n_targets) / n_pos;

        let mut rows = adjacency[..n_features * n_nodes].to_vec();
        rows.extend_from_slice(&adjacency[(n_nodes - n_targets) * n_nodes..]);
        let n_rows = n_features + n_targets;
        let targets = self.json["targets"].as_array().unwrap();
        let wire: Value = serde_json::from_slice(&std::fs::read(self.wire_path()).unwrap()).unwrap();
        let prompt_tokens = wire["metadata"]["prompt_tokens"].as_array().unwrap();
        AttributionGraph::new(GraphData {
            active_features,
            activation_values: self.f32s("activation_values"),
            edge_rows: EdgeRows::from_vec(rows, n_rows, n_nodes).unwrap(),
            bias_effect: vec![0.0; n_rows],
            unselected_effect: Vec::new(),
            row_values: vec![0.0; n_rows],
            target_ids: targets.iter().map(|t| t["id"].as_i64().unwrap()).collect(),
            logits: self.f32s("logits"),
            meta: GraphMeta {
                format_version: circuitscope::graph::RAW_FORMAT_VERSION,
                prompt: self.json["prompt"].as_str().unwrap().to_owned(),
                prompt_tokens: prompt_tokens.iter().map(|t| t.as_str().unwrap().to_owned()).collect(),
                target_labels: targets.iter().map(|t| t["token"].as_str().unwrap().to_owned()).collect(),
                target_positions: vec![n_pos as u32 - 1; n_targets],
                model: self.name.clone(),
                scan: wire["metadata"]["scan"].as_str().unwrap_or_default().to_owned(),
                n_layers,
                settings: GraphSettings { max_logits: 10, logit_prob: 0.95, max_features: None, batch_size: 64 },
                ..GraphMeta::default()
            },
            input_tokens,
            selected_features,
            target_probabilities,
        })
        .unwrap()
    }
}

/// Asserts `|actual - expected| <= atol + rtol·|expected|`.
#[track_caller]
pub fn close(actual: f64, expected: f64, atol: f64, rtol: f64, name: &str) {
    let difference = (actual - expected).abs();
    assert!(difference <= atol + rtol * expected.abs(), "{name}: {actual} is not {expected}, off by {difference:e}");
}
