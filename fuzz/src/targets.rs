//! The readers, each with valid files to begin with.

use std::path::PathBuf;

use candle_core::Device;
use circuitscope::batch::{PromptLine, TraceSettings, prompt_lines};
use circuitscope::cli::Config;
use circuitscope::intervene::{FeatureSpec, Plan, Positions, Supernodes, Sweep};
use circuitscope::labels::Labels;
use circuitscope::model::{HookPoint, Model};
use circuitscope::tracer::{Setup, Tracer, directions};
use circuitscope::transcoder::open as open_transcoders;
use circuitscope::weights::{Checkpoint, Folder, ModelFiles, Tokenizer, atlas_model};
use serde_json::{Value, json};

use crate::feature_targets;
use crate::foreign_targets;
use crate::graph_targets;
use crate::http;
use crate::hub::HubOnThisMachine;
use crate::mutate::Form;
use crate::seeds::{self, bytes, fixture};
use crate::services;
use crate::tiny::{self, Tiny};

/// What became of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Read without an error.
    Read,
    /// Refused with an error.
    Refused,
    /// Not given to the reader, and of no use to go on from.
    NotTried,
}

impl From<bool> for Reading {
    fn from(is_read: bool) -> Reading {
        if is_read { Reading::Read } else { Reading::Refused }
    }
}

/// One reader.
pub struct Target {
    pub form: Form,
    pub seeds: Vec<Vec<u8>>,
    /// Memory that an input may take.
    pub max_bytes: usize,
    pub read: Box<dyn Fn(&[u8]) -> Reading>,
}

impl Target {
    pub fn new(form: Form, seeds: Vec<Vec<u8>>, read: impl Fn(&[u8]) -> bool + 'static) -> Target {
        Target { form, seeds, max_bytes: MAX_BYTES, read: Box::new(move |input| read(input).into()) }
    }
}

/// Memory that an input may take where nothing else is said.
pub const MAX_BYTES: usize = 64 << 20;

/// Elements of a tensor that is read whole.
const MAX_ELEMENTS: usize = 1 << 16;

/// Reads what is small of a checkpoint, in every way.
fn touch(checkpoint: &Checkpoint) -> bool {
    let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
    let mut is_read = true;
    for name in names {
        let Ok(shape) = checkpoint.shape(&name) else { continue };
        let n = shape.iter().try_fold(1usize, |n, len| n.checked_mul(*len));
        if n.is_some_and(|n| n <= MAX_ELEMENTS) {
            is_read &= checkpoint.tensor(&name, &shape).is_ok();
        }
        let row = shape.iter().skip(1).try_fold(1usize, |n, len| n.checked_mul(*len));
        if row.is_some_and(|n| n <= MAX_ELEMENTS) {
            let _ = checkpoint.gather_rows(&name, &[0]);
        }
    }
    is_read
}

/// A folder in memory, where `fuzz/run` made one.
pub fn folder_in_memory() -> PathBuf {
    let root = std::env::var_os("FUZZ_FOLDER").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(root).expect("a folder can be made").keep()
}

/// A file in a folder in memory that the reader finds under its name.
pub fn in_folder(name: &'static str) -> (PathBuf, impl Fn(&[u8])) {
    let path = folder_in_memory().join(name);
    let to = path.clone();
    (path, move |input| std::fs::write(&to, input).expect("the folder can be written"))
}

/// A target's name, and what makes it.
type Named = (&'static str, fn() -> Target);

const TARGETS: [Named; 39] = [
    ("safetensors", safetensors),
    ("npz", npz),
    ("gguf", gguf),
    ("config", config),
    ("tokenizer", tokenizer),
    ("yaml", yaml),
    ("shards", shards),
    ("raw", graph_targets::raw),
    ("finished_rows", graph_targets::finished_rows),
    ("json", graph_targets::json_graph),
    ("groups", graph_targets::groups),
    ("plan", plan),
    ("spec", spec),
    ("labels", labels),
    ("prompt", prompt),
    ("hub", hub),
    ("setups", setups),
    ("address", graph_targets::address),
    ("direction", direction),
    ("token_sum", token_sum),
    ("prompts", prompts),
    ("text", feature_targets::text),
    ("compressed", feature_targets::compressed),
    ("features", feature_targets::manifest),
    ("features_layer", feature_targets::layer),
    ("features_tokens", feature_targets::tokens),
    ("features_state", feature_targets::state),
    ("features_merged", feature_targets::merged_manifest),
    ("names", foreign_targets::names),
    ("neuronpedia", foreign_targets::neuronpedia),
    ("circuit_tracer", foreign_targets::circuit_tracer),
    ("bundle", foreign_targets::bundle),
    ("site", services::site),
    ("explanations", services::explanations),
    ("kept_explanations", services::kept_explanations),
    ("label_scores", services::label_scores),
    ("index", foreign_targets::index),
    ("listing", foreign_targets::listing),
    ("http", http::requests),
];

/// The names of all targets.
pub fn names() -> Vec<&'static str> {
    TARGETS.iter().map(|(name, _)| *name).collect()
}

/// The target of a name.
///
/// # Panics
/// There is none.
pub fn named(name: &str) -> Target {
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    let (_, make) = found.unwrap_or_else(|| panic!("no target `{name}`; there are {}", names().join(", ")));
    make()
}

fn safetensors() -> Target {
    let (path, write) = in_folder("a.safetensors");
    Target::new(Form::Safetensors, vec![seeds::safetensors()], move |input| {
        write(input);
        Checkpoint::open_safetensors(std::slice::from_ref(&path)).is_ok_and(|checkpoint| touch(&checkpoint))
    })
}

fn npz() -> Target {
    let (path, write) = in_folder("a.npz");
    Target::new(Form::Binary, vec![seeds::npz()], move |input| {
        write(input);
        Checkpoint::open_npz(&path).is_ok_and(|checkpoint| touch(&checkpoint))
    })
}

/// A whole model in one file.
fn gguf() -> Target {
    let (path, write) = in_folder("a.gguf");
    Target::new(Form::Binary, vec![seeds::gguf(1, &mut || 0.0)], move |input| {
        write(input);
        let Ok(host) = ModelFiles::open(&path.to_string_lossy()) else { return false };
        let _ = host.tokenizer.encode_prompt("a b ab");
        let model = Model::open(&host.config, host.checkpoint.clone(), &Device::Cpu);
        model.is_ok_and(|model| model.layer(0).is_ok())
    })
}

fn config() -> Target {
    let families = ["llama_relu", "gpt2_relu", "gemma2_jumprelu", "llama3_topk_skip"];
    let checkpoints: Vec<Checkpoint> = families
        .iter()
        .map(|family| Folder::open(&fixture(&format!("{family}/model")).to_string_lossy()).expect("a folder"))
        .map(|folder| ModelFiles::from_folder(&folder).expect("a model").checkpoint)
        .collect();
    let seeds = families.iter().map(|family| bytes(&format!("{family}/model/config.json"))).collect();
    Target::new(Form::Json, seeds, move |input| {
        let Ok(config) = serde_json::from_slice::<Value>(input) else { return false };
        let opened = checkpoints.iter().filter_map(|checkpoint| {
            Model::open(&config, checkpoint.clone(), &Device::Cpu).ok().filter(|model| model.layer(0).is_ok())
        });
        opened.count() > 0
    })
}

fn tokenizer() -> Target {
    Target::new(Form::Json, seeds::tokenizers(), |input| {
        let Ok(tokenizer) = Tokenizer::from_json("tokenizer.json", input, None, &Value::Null) else { return false };
        let ids = tokenizer.encode_prompt("The capital of Texas is Austin, caf\u{e9} 123").unwrap_or_default();
        let _ = (tokenizer.decode(&ids), tokenizer.single_token(" Austin"));
        true
    })
}

/// `config.yaml` of transcoders, their files beside it.
fn yaml() -> Target {
    let (path, write) = in_folder("config.yaml");
    let folder = path.parent().expect("it is in a folder").to_path_buf();
    let d_model = 8;
    for layer in 0..4 {
        std::fs::write(folder.join(format!("layer_{layer}.safetensors")), tiny::transcoder_of_width(d_model))
            .expect("the folder can be written");
    }
    let folder = Folder::open(&folder.to_string_lossy()).expect("a folder");
    Target::new(Form::Text, vec![bytes("llama_relu/transcoders/config.yaml")], move |input| {
        write(input);
        open_transcoders(&folder, 4, d_model, &Device::Cpu).is_ok()
    })
}

/// The list of a checkpoint's files, the checkpoint itself beside it under another name.
fn shards() -> Target {
    let (path, write) = in_folder("model.safetensors.index.json");
    let folder = path.parent().expect("it is in a folder").to_path_buf();
    let config = bytes("llama_relu/model/config.json");
    let tokenizer = seeds::tokenizers().swap_remove(0);
    let embedding = seeds::Tensor {
        name: "model.embed_tokens.weight".to_owned(),
        dtype: "F32".to_owned(),
        shape: vec![2, 2],
        bytes: vec![0; 16],
    };
    let checkpoint = seeds::file_of(&[embedding], None);
    for (name, bytes) in [("config.json", config), ("tokenizer.json", tokenizer), ("a.safetensors", checkpoint)] {
        std::fs::write(folder.join(name), bytes).expect("the folder can be written");
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": {"model.embed_tokens.weight": "a.safetensors"}});
    Target::new(Form::Json, vec![serde_json::to_vec(&index).expect("JSON")], move |input| {
        write(input);
        let folder = Folder::open(&folder.to_string_lossy()).expect("a folder");
        ModelFiles::from_folder(&folder).is_ok_and(|host| host.checkpoint.names().next().is_some())
    })
}

fn plan() -> Target {
    let plan = br#"{"interventions": [{"node": "0_39_7", "ablate": true}], "alternatives": [{"name": "b",
        "interventions": [{"layer": 0, "feature": 303, "position": "7..", "set": 13.9}, {"supernode": "s", "scale": 2}]}]}"#;
    let list = br#"[{"node": "0_39_7", "scale": 2}, {"layer": 1, "feature": 2, "position": 3, "ablate": true}]"#;
    let member = FeatureSpec { layer: 1, feature: 2, positions: Positions::All };
    let supernodes = Supernodes::from([("s".to_owned(), vec![member])]);
    let seeds = [&plan[..], &list[..]].iter().map(|seed| seed.to_vec()).collect();
    Target::new(Form::Json, seeds, move |input| {
        let Ok(text) = std::str::from_utf8(input) else { return false };
        Plan::parse(text, "plan.json", &supernodes).is_ok()
    })
}

/// Words of the command line: what is read prints as it was written, up to leading zeros and signs.
fn spec() -> Target {
    let seeds =
        ["5_123_4..7", "5_123_*", "4..", "0_39_7=-1..2.5/0.5", "blocks.3.hook_resid_pre", "ln_final.hook_scale"];
    let seeds = seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect();
    Target::new(Form::Text, seeds, |input| {
        let Ok(text) = std::str::from_utf8(input) else { return false };
        let spec = text.parse::<FeatureSpec>().ok().inspect(|spec| {
            assert_eq!(spec.to_string().parse::<FeatureSpec>().ok(), Some(*spec), "it is read as it is printed");
        });
        let positions = text.parse::<Positions>().ok().inspect(|positions| {
            assert_eq!(
                positions.to_string().parse::<Positions>().ok(),
                Some(*positions),
                "it is read as it is printed"
            );
            let _ = (positions.within(0..9, 9, 1), positions.check(9));
        });
        spec.is_some() || positions.is_some() || text.parse::<Sweep>().is_ok() || text.parse::<HookPoint>().is_ok()
    })
}

fn labels() -> Target {
    let labels = br#"{"0_39": "a feature", "0_40": "another", "3_955": "asks for a capital"}"#.to_vec();
    Target::new(Form::Json, vec![labels], |input| Labels::parse(input, "feature_labels.json").is_ok())
}

/// Text of a prompt. One token is looked for among five hundred: what is near it is looked for in all of them.
fn prompt() -> Target {
    let tokenizer = atlas_model().expect("atlas").tokenizer;
    let folder = Folder::open(&fixture("llama_relu/model").to_string_lossy()).expect("a folder");
    let small = ModelFiles::from_folder(&folder).expect("a model").tokenizer;
    Target::new(Form::Text, vec![b"The capital of the state containing Dallas is".to_vec()], move |input| {
        let text = String::from_utf8_lossy(input);
        tokenizer.encode_prompt(&text).is_ok_and(|ids| {
            let _ = small.single_token(&text);
            !tokenizer.decode(&ids).is_empty()
        })
    })
}

/// `circuitscope.toml`, of the folder and of the user at once.
fn setups() -> Target {
    let (own, write_own) = in_folder("circuitscope.toml");
    let (other, write_other) = in_folder("circuitscope.toml");
    write_other(b"default = \"b\"\n[setup.b]\nmodel = \"atlas\"\n");
    let seed = b"default = \"a\"\n\n[setup.a]\nmodel = \"./model\"\ntranscoders = \"org/name\"\nlabels = \"~/labels.json\"\ndevice = \"cpu\"\n";
    Target::new(Form::Text, vec![seed.to_vec()], move |input| {
        write_own(input);
        Config::from_files([own.clone(), other.clone()]).is_ok_and(|config| {
            let default = config.default.as_deref().map(|name| config.get(name));
            let _ = config.get("c");
            default.is_none_or(|setup| setup.is_ok() || config.default.as_deref() == Some("atlas"))
        })
    })
}

/// A file of directions.
fn direction() -> Target {
    let tracer = Tracer::open(Setup::atlas()).expect("atlas");
    let (path, write) = in_folder("a.safetensors");
    let name = path.to_string_lossy().into_owned();
    let d_model = tracer.replacement().model.config.d_model;
    let header = json!({
        "a": { "dtype": "F32", "shape": [d_model], "data_offsets": [0, 4 * d_model] },
        "b": { "dtype": "F16", "shape": [d_model], "data_offsets": [4 * d_model, 6 * d_model] },
    });
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut seed = (header.len() as u64).to_le_bytes().to_vec();
    seed.extend(header);
    seed.extend((0..6 * d_model).map(|at| (at % 48) as u8));
    Target::new(Form::Safetensors, vec![seed], move |input| {
        write(input);
        let _ = directions(&format!("{name}:a"), &tracer);
        directions(&name, &tracer).is_ok_and(|found| {
            assert!(
                found.iter().all(|direction| direction.vec.len() == d_model),
                "directions are as long as the model is wide"
            );
            true
        })
    })
}

/// A file of prompts, each line up to the request that would be traced. What names files is not tried: `direction` and
/// `safetensors` are targets of their own.
fn prompts() -> Target {
    let tracer = Tiny::make().tracer();
    let lines = [
        r#"{"prompt": "a b ab", "slug": "t", "targets": ["ab", {"token_id": 7}], "rows": 50}"#,
        r#"{"tokens": [1, 5, 3], "targets": [{"difference": ["a", "b"]}, {"feature": "0_3_2"}]}"#,
        r#"{"prompt": "A", "targets": [{"attention": "1.0@2:1", "versus": 0}, {"direction": "2 * \"ab\""}]}"#,
        r#"{"prompt": "A", "position": 0, "max_logits": 2, "logit_prob": 0.5, "theta": 0.1, "nodes": 9, "heads": true}"#,
        r#"{"prompt": "A", "max_features": "all", "batch_size": 3, "node_threshold": 0.5, "edge_threshold": 1}"#,
    ];
    let seeds = lines.iter().map(|line| line.as_bytes().to_vec()).chain([lines.join("\r\n\n").into_bytes()]);
    let target = Target::new(Form::Lines, seeds.collect(), move |input| {
        let usual = TraceSettings::default();
        let mut is_read = false;
        for (number, line) in prompt_lines(input) {
            assert!(number > 0 && !line.is_empty());
            let request = PromptLine::parse(line).and_then(|line| line.request(&tracer, &usual));
            if let Ok(request) = &request {
                assert!(!request.prompt.tokens.is_empty());
            }
            is_read |= request.is_ok();
        }
        is_read
    });
    let Target { read, .. } = target;
    let read = Box::new(move |input: &[u8]| match input.contains(&b'/') || input.windows(2).any(|two| two == b"\\u") {
        true => Reading::NotTried,
        false => read(input),
    });
    Target { read, ..target }
}

/// A sum of tokens. What could be a file is not tried: it may be one.
fn token_sum() -> Target {
    let tracer = Tracer::open(Setup::atlas()).expect("atlas");
    let seeds =
        [r#"" Austin" - " Dallas""#, r#"-2.5*" the"+ "\n" + 1e3 * "\u0061""#].map(|seed| seed.as_bytes().to_vec());
    let target = Target::new(Form::Text, seeds.into(), move |input| {
        std::str::from_utf8(input).is_ok_and(|text| directions(text, &tracer).is_ok())
    });
    let Target { read, .. } = target;
    let read = Box::new(move |input: &[u8]| match input.contains(&b'"') && !input.contains(&b'/') {
        true => read(input),
        false => Reading::NotTried,
    });
    Target { read, ..target }
}

/// What the Hub, or the store that it sends to, answers.
fn hub() -> Target {
    let hub = HubOnThisMachine::start();
    let seeds = HubOnThisMachine::answers();
    Target { form: Form::Text, seeds, max_bytes: MAX_BYTES, read: Box::new(move |input| hub.read(input)) }
}
