//! The readers, each with valid files to begin with.

use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::Device;
use circuitscope::attribution::{AttributionOptions, RowChoice, attribute};
use circuitscope::circuits::{SummarySettings, summarize};
use circuitscope::export::{WireGraph, read_raw, stream_wire, write_raw, write_wire};
use circuitscope::graph::influence;
use circuitscope::intervene::{Plan, Supernodes};
use circuitscope::job::Job;
use circuitscope::labels::Labels;
use circuitscope::model::Model;
use circuitscope::picture::{PictureSettings, arrange, svg};
use circuitscope::prune::{PruneSettings, prune};
use circuitscope::replacement::Replacement;
use circuitscope::transcoder::open as open_transcoders;
use circuitscope::weights::{Checkpoint, Folder, ModelFiles, Tokenizer, atlas_model, atlas_transcoders};
use serde_json::Value;

use crate::mutate::Form;

/// Reads an input; whether that went without an error.
type Read = Box<dyn Fn(&[u8]) -> bool>;

/// One reader.
pub struct Target {
    pub name: &'static str,
    pub form: Form,
    pub seeds: Vec<Vec<u8>>,
    /// Memory is taken on the word of the file by code of others: the input is kept before it is read.
    pub may_end_the_process: bool,
    /// Reads an input; whether it was read without an error.
    pub read: Read,
}

/// Elements of a tensor that is read whole.
const MAX_ELEMENTS: usize = 1 << 16;

fn fixture(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reference").join(relative)
}

fn bytes(relative: &str) -> Vec<u8> {
    std::fs::read(fixture(relative)).expect("the repository's own files can be read")
}

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

/// A file in a folder in memory that the reader finds under its name.
fn in_folder(name: &'static str) -> (PathBuf, impl Fn(&[u8])) {
    let root = if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
    let folder = tempfile::tempdir_in(root).expect("a folder can be made").keep();
    let path = folder.join(name);
    let to = path.clone();
    (path, move |input| std::fs::write(&to, input).expect("the folder can be written"))
}

fn copied(relative: &str, folder: &Path) {
    for entry in fixture(relative).read_dir().expect("the repository's own files can be read") {
        let from = entry.expect("an entry").path();
        std::fs::copy(&from, folder.join(from.file_name().expect("a name"))).expect("the folder can be written");
    }
}

fn npz() -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, method) in [("a.npy", zip::CompressionMethod::Stored), ("b.npy", zip::CompressionMethod::Deflated)] {
        let options = zip::write::SimpleFileOptions::default().compression_method(method);
        zip.start_file(name, options).expect("a zip in memory");
        let mut header = String::from("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }");
        header.push_str(&" ".repeat(117 - header.len()));
        header.push('\n');
        let mut array = b"\x93NUMPY\x01\0".to_vec();
        array.extend((header.len() as u16).to_le_bytes());
        array.extend(header.bytes());
        array.extend([1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|v| v.to_le_bytes()));
        zip.write_all(&array).expect("a zip in memory");
    }
    zip.finish().expect("a zip in memory").into_inner()
}

fn gguf() -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let int = |value: u32| [&4u32.to_le_bytes()[..], &value.to_le_bytes()].concat();
    let float = |value: f32| [&6u32.to_le_bytes()[..], &value.to_le_bytes()].concat();
    let word = |value: &str| [&8u32.to_le_bytes()[..], &text(value)].concat();
    let texts = |list: &[&str]| {
        let items: Vec<u8> = list.iter().flat_map(|item| text(item)).collect();
        [&9u32.to_le_bytes()[..], &8u32.to_le_bytes(), &(list.len() as u64).to_le_bytes(), &items].concat()
    };
    let numbers = |kind: u32, list: Vec<[u8; 4]>| {
        [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &(list.len() as u64).to_le_bytes(), &list.concat()].concat()
    };
    let tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab", "\u{2581}", "\u{2581}a"];
    let values = [
        ("general.architecture", word("llama")),
        ("llama.block_count", int(1)),
        ("llama.embedding_length", int(8)),
        ("llama.context_length", int(64)),
        ("llama.feed_forward_length", int(16)),
        ("llama.attention.head_count", int(2)),
        ("llama.attention.head_count_kv", int(2)),
        ("llama.attention.layer_norm_rms_epsilon", float(1e-5)),
        ("tokenizer.ggml.model", word("llama")),
        ("tokenizer.ggml.tokens", texts(&tokens)),
        ("tokenizer.ggml.scores", numbers(6, (0..8).map(|at| (-(at as f32)).to_le_bytes()).collect())),
        ("tokenizer.ggml.token_type", numbers(5, [2i32, 3, 3, 1, 1, 1, 1, 1].map(i32::to_le_bytes).to_vec())),
        ("tokenizer.ggml.bos_token_id", int(1)),
    ];
    let tensors: [(&str, &[u64]); 12] = [
        ("token_embd.weight", &[8, 8]),
        ("output_norm.weight", &[8]),
        ("output.weight", &[8, 8]),
        ("blk.0.attn_norm.weight", &[8]),
        ("blk.0.attn_q.weight", &[8, 8]),
        ("blk.0.attn_k.weight", &[8, 8]),
        ("blk.0.attn_v.weight", &[8, 8]),
        ("blk.0.attn_output.weight", &[8, 8]),
        ("blk.0.ffn_norm.weight", &[8]),
        ("blk.0.ffn_gate.weight", &[8, 16]),
        ("blk.0.ffn_up.weight", &[8, 16]),
        ("blk.0.ffn_down.weight", &[16, 8]),
    ];
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((values.len() as u64).to_le_bytes());
    for (key, value) in values {
        out.extend(text(key));
        out.extend(value);
    }
    let mut n = 0u64;
    for (name, shape) in tensors {
        out.extend(text(name));
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|len| out.extend(len.to_le_bytes()));
        out.extend(0u32.to_le_bytes());
        out.extend(n.to_le_bytes());
        n += shape.iter().product::<u64>() * 4;
    }
    out.resize(out.len().next_multiple_of(32) + n as usize, 0);
    out
}

fn graphs() -> (Vec<u8>, Vec<u8>) {
    let replacement = Replacement::open(atlas_model().expect("atlas"), &atlas_transcoders(), &Device::Cpu);
    let replacement = replacement.expect("atlas");
    let prompt = "He went";
    let tokens = replacement.tokenizer.encode_prompt(prompt).expect("a prompt");
    let linear = replacement.linearize(&tokens, &Job::default()).expect("a pass");
    let options =
        AttributionOptions { rows: RowChoice::BestFirst { max_features: 8 }, ..AttributionOptions::default() };
    let found = attribute(&replacement, &linear, prompt, &options, &Job::default()).expect("a graph");
    let circuit = prune(&found.graph, &found.influence, &PruneSettings::default()).expect("thresholds");
    let circuit = circuit.circuit(&found.graph).expect("a circuit");
    let folder = tempfile::tempdir().expect("a folder can be made");
    let (raw, wire) = (folder.path().join("a.safetensors"), folder.path().join("a.json"));
    write_raw(&found.graph, &raw).expect("the folder can be written");
    write_wire(&WireGraph::new(&circuit, "a").expect("a circuit"), &wire).expect("the folder can be written");
    (std::fs::read(raw).expect("it was written"), std::fs::read(wire).expect("it was written"))
}

/// All of them.
pub fn all() -> Vec<Target> {
    let (raw_graph, json_graph) = graphs();
    let mut targets = Vec::new();
    let mut add = |name, form, seeds: Vec<Vec<u8>>, read: Read| {
        let may_end_the_process = matches!(name, "gguf" | "tokenizer" | "config");
        targets.push(Target { name, form, seeds, may_end_the_process, read });
    };

    let (path, write) = in_folder("a.safetensors");
    let seeds = vec![bytes("llama_relu/transcoders/layer_0.safetensors")];
    let read = move |input: &[u8]| {
        write(input);
        Checkpoint::open_safetensors(std::slice::from_ref(&path)).is_ok_and(|checkpoint| touch(&checkpoint))
    };
    add("safetensors", Form::Safetensors, seeds, Box::new(read));

    let (path, write) = in_folder("a.npz");
    let read = move |input: &[u8]| {
        write(input);
        Checkpoint::open_npz(&path).is_ok_and(|checkpoint| touch(&checkpoint))
    };
    add("npz", Form::Binary, vec![npz()], Box::new(read));

    let (path, write) = in_folder("a.gguf");
    let read = move |input: &[u8]| {
        write(input);
        let Ok(host) = ModelFiles::open(&path.to_string_lossy()) else { return false };
        let _ = host.tokenizer.encode_prompt("a b ab");
        let model = Model::open(&host.config, host.checkpoint.clone(), &Device::Cpu);
        model.is_ok_and(|model| model.layer(0).is_ok())
    };
    add("gguf", Form::Binary, vec![gguf()], Box::new(read));

    let families = ["llama_relu", "gpt2_relu", "gemma2_jumprelu", "llama3_topk_skip"];
    let checkpoints: Vec<Checkpoint> = families
        .iter()
        .map(|family| Folder::open(&fixture(&format!("{family}/model")).to_string_lossy()).expect("a folder"))
        .map(|folder| ModelFiles::from_folder(&folder).expect("a model").checkpoint)
        .collect();
    let read = move |input: &[u8]| {
        let Ok(config) = serde_json::from_slice::<Value>(input) else { return false };
        let opened = checkpoints.iter().filter_map(|checkpoint| {
            Model::open(&config, checkpoint.clone(), &Device::Cpu).ok().filter(|model| model.layer(0).is_ok())
        });
        opened.count() > 0
    };
    let seeds = families.iter().map(|family| bytes(&format!("{family}/model/config.json"))).collect();
    add("config", Form::Json, seeds, Box::new(read));

    let read = |input: &[u8]| {
        let Ok(tokenizer) = Tokenizer::from_json("tokenizer.json", input, None, &Value::Null) else { return false };
        let ids = tokenizer.encode_prompt("The capital of Texas is Austin, caf\u{e9} 123").unwrap_or_default();
        let _ = (tokenizer.decode(&ids), tokenizer.single_token(" Austin"));
        true
    };
    let mut seeds = vec![std::fs::read(fixture("../tokenizer/tokenizer.json")).expect("the repository's own file")];
    seeds.push(bytes("llama_relu/model/tokenizer.json"));
    add("tokenizer", Form::Json, seeds, Box::new(read));

    let (path, write) = in_folder("config.yaml");
    let folder = path.parent().expect("it is in a folder").to_path_buf();
    copied("llama_relu/transcoders", &folder);
    let folder = Folder::open(&folder.to_string_lossy()).expect("a folder");
    let d_model = read_d_model("llama_relu");
    let read = move |input: &[u8]| {
        write(input);
        open_transcoders(&folder, 4, d_model, &Device::Cpu).is_ok()
    };
    add("yaml", Form::Text, vec![bytes("llama_relu/transcoders/config.yaml")], Box::new(read));

    let (path, write) = in_folder("a.safetensors");
    let read = move |input: &[u8]| {
        write(input);
        let Ok(graph) = read_raw(&path) else { return false };
        let influence = influence(&graph.edge_rows, graph.layout(), &graph.target_probabilities);
        let pruned = prune(&graph, &influence, &PruneSettings::default()).and_then(|pruned| pruned.circuit(&graph));
        pruned.is_ok_and(|circuit| summarize(&circuit, &SummarySettings::default()).is_ok())
    };
    add("raw", Form::Safetensors, vec![raw_graph], Box::new(read));

    let (path, write) = in_folder("a.json");
    let read = move |input: &[u8]| {
        write(input);
        let Ok(circuit) = stream_wire(&path, None).and_then(|graph| graph.circuit()) else { return false };
        let Ok(view) = circuitscope::circuits::collapse(&circuit, &[]) else { return false };
        let _ = svg(&circuit, &view, &arrange(&circuit, &view, &PictureSettings::default()));
        summarize(&circuit, &SummarySettings::default()).is_ok()
    };
    add("json", Form::Json, vec![json_graph], Box::new(read));

    let plan = br#"{"interventions": [{"node": "0_39_7", "ablate": true}], "alternatives": [{"name": "b",
        "interventions": [{"layer": 0, "feature": 303, "position": "7..", "set": 13.9}]}]}"#;
    let list = br#"[{"node": "0_39_7", "scale": 2}, {"layer": 1, "feature": 2, "position": 3, "ablate": true}]"#;
    let read = |input: &[u8]| {
        let Ok(text) = std::str::from_utf8(input) else { return false };
        Plan::parse(text, "plan.json", &Supernodes::default()).is_ok()
    };
    let seeds = [&plan[..], &list[..]].iter().map(|seed| seed.to_vec()).collect();
    add("plan", Form::Json, seeds, Box::new(read));

    let labels = br#"{"0_39": "a feature", "0_40": "another", "3_955": "asks for a capital"}"#.to_vec();
    let read = |input: &[u8]| Labels::parse(input, "feature_labels.json").is_ok();
    add("labels", Form::Json, vec![labels], Box::new(read));

    let tokenizer = atlas_model().expect("atlas").tokenizer;
    let read = move |input: &[u8]| {
        let text = String::from_utf8_lossy(input);
        tokenizer.encode_prompt(&text).is_ok_and(|ids| {
            let _ = tokenizer.single_token(&text);
            !tokenizer.decode(&ids).is_empty()
        })
    };
    add("prompt", Form::Text, vec![b"The capital of the state containing Dallas is".to_vec()], Box::new(read));
    targets
}

fn read_d_model(family: &str) -> usize {
    let config: Value = serde_json::from_slice(&bytes(&format!("{family}/model/config.json"))).expect("a config");
    config["hidden_size"].as_u64().expect("a size") as usize
}
