//! The reference cases: graphs that circuit-tracer 0.4.1 computed, and what it says about them.

use std::path::{Path, PathBuf};

use circuitscope::attribution::{AttributionOptions, RowChoice, TargetRequest};
use circuitscope::graph::{AttributionGraph, EdgeRows, FeatureId, GraphData, GraphMeta, GraphSettings};
use circuitscope::replacement::Replacement;
use safetensors::SafeTensors;
use serde_json::Value;

use crate::support::{fixture, open_replacement, shared_root};

/// One prompt of one case.
pub struct Case {
    pub name: String,
    /// `expected/` of the case.
    folder: PathBuf,
    /// Its entry in `cases.json`.
    pub json: Value,
    tensors: Vec<u8>,
}

/// The families of models and transcoders that `fixtures/reference` holds, one folder each.
pub const FAMILIES: [&str; 8] = [
    "gemma2_jumprelu",
    "gemma3_jumprelu_skip",
    "gpt2_relu",
    "gpt_oss_relu",
    "llama3_topk_skip",
    "llama_clt",
    "llama_relu",
    "qwen3_relu",
];

/// Cases with a whole graph.
pub fn cases() -> Vec<Case> {
    prompts().into_iter().filter(|case| case.has("adjacency")).collect()
}

/// Cases with interventions; of some, `fixtures/reference` holds these alone.
pub fn cases_with_interventions() -> Vec<Case> {
    prompts().into_iter().filter(|case| case.json["interventions"].is_array()).collect()
}

/// All prompts of `fixtures/reference` and of `atlas`, then those of the larger test data, where that is at hand.
fn prompts() -> Vec<Case> {
    let mut cases = prompts_of_the_repository();
    let shared = shared_root();
    if shared.join("reference").is_dir() {
        cases.extend(prompts_below(&shared.join("reference")));
        cases.extend(prompts_in(&shared.join("atlas")));
    }
    cases
}

fn prompts_of_the_repository() -> Vec<Case> {
    let mut cases = prompts_below(&fixture("reference"));
    cases.extend(prompts_in(&fixture("atlas")));
    cases
}

fn prompts_below(folder: &Path) -> Vec<Case> {
    let mut models: Vec<PathBuf> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    models.sort();
    models.iter().filter(|model| model.is_dir()).flat_map(|model| prompts_in(model)).collect()
}

fn prompts_in(model: &Path) -> Vec<Case> {
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

#[test]
fn the_repository_alone_holds_a_graph_and_interventions_of_every_family() {
    let prompts = prompts_of_the_repository();
    for family in FAMILIES {
        let mut of_family = prompts.iter().filter(|case| case.name.starts_with(&format!("{family}/")));
        assert!(of_family.clone().any(|case| case.has("adjacency")), "{family}: no graph");
        let has_interventions = |case: &Case| case.json["interventions"].as_array().is_some_and(|all| all.len() >= 3);
        assert!(of_family.any(has_interventions), "{family}: no interventions");
    }
    assert!(prompts.iter().any(|case| case.json["generation"].is_array()), "no continuation");
    assert!(prompts.iter().any(|case| !case.json["parameters"]["max_feature_nodes"].is_null()), "no capped graph");
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

    /// The name of the folder: a family, or `atlas`.
    pub fn family(&self) -> &str {
        self.name.split('/').next().unwrap()
    }

    pub fn has(&self, tensor: &str) -> bool {
        SafeTensors::deserialize(&self.tensors).unwrap().tensor(tensor).is_ok()
    }

    pub fn prompt(&self) -> &str {
        self.json["prompt"].as_str().unwrap()
    }

    /// The base model with its transcoders.
    pub fn replacement(&self) -> Replacement {
        open_replacement(&self.root().join("model"), &self.root().join("transcoders"))
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
            rows: match parameters["max_feature_nodes"].as_u64() {
                Some(n) => RowChoice::BestFirst { max_features: n as usize },
                None => RowChoice::All,
            },
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
            error_nodes: None,
            unselected_error_effect: Vec::new(),
            row_values: vec![0.0; n_rows],
            target_ids: targets.iter().map(|t| t["id"].as_i64().unwrap()).collect(),
            logits: self.f32s("logits"),
            meta: GraphMeta {
                format_version: circuitscope::graph::RAW_FORMAT_VERSION,
                prompt: self.prompt().to_owned(),
                prompt_tokens: prompt_tokens.iter().map(|t| t.as_str().unwrap().to_owned()).collect(),
                target_labels: targets.iter().map(|t| t["token"].as_str().unwrap().to_owned()).collect(),
                target_positions: vec![n_pos as u32 - 1; n_targets],
                model: self.name.clone(),
                scan: wire["metadata"]["scan"].as_str().unwrap_or_default().to_owned(),
                n_layers,
                settings: GraphSettings {
                    max_logits: 10,
                    logit_prob: 0.95,
                    max_features: None,
                    batch_size: 64,
                    ..GraphSettings::default()
                },
                ..GraphMeta::default()
            },
            input_tokens,
            selected_features,
            target_probabilities,
        })
        .unwrap()
    }
}
