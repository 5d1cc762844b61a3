//! Valid files, small ones: what is done to them each time costs time.

use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::Device;
use circuitscope::attribution::{AttributionOptions, OpenChoice, RowChoice, Visits, attribute};
use circuitscope::export::{WireGraph, write_raw, write_wire};
use circuitscope::job::Job;
use circuitscope::prune::{PruneSettings, prune};
use circuitscope::replacement::Replacement;
use circuitscope::weights::{atlas_model, atlas_transcoders};
use serde_json::{Value, json};

use crate::tiny::{N_LAYERS, Tiny};

/// A file of the repository.
pub fn fixture(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/reference").join(relative)
}

/// Its bytes.
pub fn bytes(relative: &str) -> Vec<u8> {
    std::fs::read(fixture(relative)).expect("the repository's own files can be read")
}

/// A tensor of a safetensors file.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// A safetensors file.
pub fn file_of(tensors: &[Tensor], metadata: Option<Value>) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    if let Some(metadata) = metadata {
        header.insert("__metadata__".into(), metadata);
    }
    let mut end = 0;
    for Tensor { name, dtype, shape, bytes } in tensors {
        let begin = end;
        end += bytes.len();
        header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, end] }));
    }
    let mut header = serde_json::to_vec(&Value::Object(header)).expect("JSON");
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header);
    tensors.iter().for_each(|tensor| out.extend(&tensor.bytes));
    out
}

/// The tensors of a safetensors file in their order, and its metadata.
fn tensors_of(file: &[u8]) -> (Vec<Tensor>, Option<Value>) {
    let len = u64::from_le_bytes(*file.first_chunk().expect("a file of ours")) as usize;
    let mut header: serde_json::Map<String, Value> = serde_json::from_slice(&file[8..8 + len]).expect("JSON");
    let metadata = header.remove("__metadata__");
    let numbers = |list: &Value| -> Vec<usize> {
        list.as_array().expect("numbers").iter().map(|n| n.as_u64().expect("a number") as usize).collect()
    };
    let mut found: Vec<(usize, Tensor)> = header
        .iter()
        .map(|(name, tensor)| {
            let at = numbers(&tensor["data_offsets"]);
            let bytes = file[8 + len + at[0]..8 + len + at[1]].to_vec();
            let dtype = tensor["dtype"].as_str().expect("a type").to_owned();
            (at[0], Tensor { name: name.clone(), dtype, shape: numbers(&tensor["shape"]), bytes })
        })
        .collect();
    found.sort_by_key(|(begin, _)| *begin);
    (found.into_iter().map(|(_, tensor)| tensor).collect(), metadata)
}

/// A checkpoint of small tensors, of every kind that one may hold.
pub fn safetensors() -> Vec<u8> {
    let tensors = [
        ("a", "F32", 4, vec![2usize, 3]),
        ("b", "F16", 2, vec![4]),
        ("c", "BF16", 2, vec![2, 2]),
        ("d", "F64", 8, vec![1, 2]),
        ("e", "F32", 4, vec![]),
        ("m_blocks", "U8", 1, vec![1, 2, 1, 16]),
        ("m_scales", "U8", 1, vec![1, 2, 1]),
    ];
    let mut at = 0;
    let tensors = tensors.map(|(name, dtype, size, shape)| {
        let begin = at;
        at += size * shape.iter().product::<usize>();
        // Small bytes are finite numbers of every kind.
        let bytes = (begin..at).map(|at| (at % 48) as u8).collect();
        Tensor { name: name.to_owned(), dtype: dtype.to_owned(), shape, bytes }
    });
    file_of(&tensors, Some(json!({ "format": "pt" })))
}

/// Tokenizers of each kind of model, with the steps that files have before and after it.
pub fn tokenizers() -> Vec<Vec<u8>> {
    let bpe = json!({
        "added_tokens": [{"id": 6, "content": "<s>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}, {"type": "NFC"}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "u", "fuse_unk": true, "byte_fallback": true,
            "vocab": {"u": 0, "a": 1, "b": 2, "ab": 3, "\u{2581}": 4, "<0x41>": 5}, "merges": ["a b"]}});
    let byte_level = json!({
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}|\\s+(?!\\S)"}, "behavior": "Isolated", "invert": false},
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "e", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"e": {"id": "e", "ids": [2], "tokens": ["e"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "continuing_subword_prefix": "", "end_of_word_suffix": "",
            "vocab": {"\u{120}": 0, "t": 1, "e": 2, "te": 3, "\u{120}te": 4}, "merges": [["t", "e"], ["\u{120}", "te"]]}});
    let word_piece = json!({
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["s", 1], "cls": ["c", 2]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "u", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": {"u": 0, "s": 1, "c": 2, "the": 3, "##xas": 4, "te": 5}}});
    let unigram = json!({
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true},
        "decoder": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true},
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false,
            "vocab": [["u", 0.0], ["\u{2581}", -1.5], ["t", -2.0], ["te", -3.25], ["x", -4.0]]}});
    let word_level = json!({
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "u"},
        "model": {"type": "WordLevel", "unk_token": "u", "vocab": {"u": 0, "the": 1, "capital": 2}}});
    let mut all: Vec<Vec<u8>> = Vec::new();
    for mut tokenizer in [bpe, byte_level, word_piece, unigram, word_level] {
        for part in ["truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"] {
            if tokenizer.get(part).is_none() {
                tokenizer[part] = Value::Null;
            }
        }
        if tokenizer.get("added_tokens").is_none() {
            tokenizer["added_tokens"] = json!([]);
        }
        tokenizer["version"] = json!("1.0");
        all.push(serde_json::to_vec(&tokenizer).expect("JSON"));
    }
    all.push(bytes("llama_relu/model/tokenizer.json"));
    all
}

pub fn npz() -> Vec<u8> {
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

/// A Llama of width 8; its matrices are filled with numbers, those of norms with ones.
pub fn gguf(n_layers: usize, number: &mut dyn FnMut() -> f32) -> Vec<u8> {
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
        ("llama.block_count", int(n_layers as u32)),
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
    let mut tensors: Vec<(String, &[u64])> = vec![
        ("token_embd.weight".to_owned(), &[8, 8]),
        ("output_norm.weight".to_owned(), &[8]),
        ("output.weight".to_owned(), &[8, 8]),
    ];
    for layer in 0..n_layers {
        let parts: [(&str, &[u64]); 9] = [
            ("attn_norm", &[8]),
            ("attn_q", &[8, 8]),
            ("attn_k", &[8, 8]),
            ("attn_v", &[8, 8]),
            ("attn_output", &[8, 8]),
            ("ffn_norm", &[8]),
            ("ffn_gate", &[8, 16]),
            ("ffn_up", &[8, 16]),
            ("ffn_down", &[16, 8]),
        ];
        tensors.extend(parts.map(|(part, shape)| (format!("blk.{layer}.{part}.weight"), shape)));
    }
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((values.len() as u64).to_le_bytes());
    for (key, value) in values {
        out.extend(text(key));
        out.extend(value);
    }
    let mut data: Vec<u8> = Vec::new();
    for (name, shape) in tensors {
        out.extend(text(&name));
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|len| out.extend(len.to_le_bytes()));
        out.extend(0u32.to_le_bytes());
        out.extend((data.len() as u64).to_le_bytes());
        for _ in 0..shape.iter().product() {
            let value = if name.contains("norm") { 1.0 } else { number() };
            data.extend(value.to_le_bytes());
        }
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    out
}

/// Graphs with what only some have: heads behind edges, closed positions, features and errors without a place of their
/// own. Raw ones, and JSON ones.
pub fn graphs_of_every_kind() -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let tracer = Tiny::make().tracer();
    let folder = tempfile::tempdir().expect("a folder can be made");
    let (raw, wire) = (folder.path().join("a.safetensors"), folder.path().join("a.json"));
    let (mut raws, mut wires) = (Vec::new(), Vec::new());
    let closed = OpenChoice::Spans(vec![[2, 4]]);
    for (open, rows, has_heads) in [
        (OpenChoice::All, RowChoice::All, true),
        (closed, RowChoice::BestFirst { max_features: 4 }, false),
        (OpenChoice::All, RowChoice::Sampled { visits: Visits::Theta(0.0), nodes: Some(3) }, false),
    ] {
        let options = AttributionOptions { rows, open, ..AttributionOptions::default() };
        let mut traced = tracer.trace("a b ab", &options).expect("a graph");
        let mut circuit = traced.prune(&PruneSettings::default()).expect("thresholds");
        if has_heads {
            tracer.add_heads(&mut traced, &mut circuit, &Job::default()).expect("heads");
        }
        write_raw(traced.graph(), &raw).expect("the folder can be written");
        write_wire(&WireGraph::new(&circuit, "a").expect("a circuit"), &wire).expect("the folder can be written");
        raws.push(std::fs::read(&raw).expect("it was written"));
        wires.push(std::fs::read(&wire).expect("it was written"));
    }
    let sampled = raws.last().expect("three were made");
    raws.push(with_fewer_errors(sampled));
    (raws, wires)
}

/// A sampled graph whose errors are not all nodes, as one of a long prompt: every second one is left out.
fn with_fewer_errors(raw: &[u8]) -> Vec<u8> {
    let (mut tensors, metadata) = tensors_of(raw);
    let shape = |tensors: &[Tensor], name: &str| -> Vec<usize> {
        tensors.iter().find(|tensor| tensor.name == name).expect("graphs have it").shape.clone()
    };
    let n_pos = shape(&tensors, "input_tokens")[0];
    let n_targets = shape(&tensors, "target_ids")[0];
    let n_features = shape(&tensors, "selected_features")[0];
    let n_rows = n_features + n_targets;
    let n_errors = N_LAYERS * n_pos;
    let edges = tensors.iter_mut().find(|tensor| tensor.name == "edge_rows").expect("graphs have it");
    let (mut kept, mut at, mut lost, mut lost_at) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for cell in (0..n_errors).step_by(2) {
        at.extend([(cell / n_pos) as i64, (cell % n_pos) as i64].map(i64::to_le_bytes).concat());
    }
    for (row, values) in edges.bytes.chunks_exact(4 * edges.shape[1]).enumerate() {
        let values: Vec<f32> = values.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let is_left_out = |column: usize| {
            let cell = column.wrapping_sub(n_features);
            cell < n_errors && cell % 2 == 1
        };
        let of_row = |column: usize| if is_left_out(column) { values[column] } else { 0.0 };
        lost.push((0..values.len()).map(of_row).sum::<f32>());
        if row >= n_features {
            lost_at.extend((n_features..n_features + n_errors).map(of_row));
        }
        kept.extend((0..values.len()).filter(|column| !is_left_out(*column)).map(|column| values[column]));
    }
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    edges.shape = vec![n_rows, kept.len() / n_rows];
    edges.bytes = bytes(&kept);
    let mut add = |name: &str, dtype: &str, shape: Vec<usize>, bytes: Vec<u8>| {
        tensors.push(Tensor { name: name.to_owned(), dtype: dtype.to_owned(), shape, bytes });
    };
    add("error_nodes", "I64", vec![n_errors.div_ceil(2), 2], at);
    add("unselected_error_effect", "F32", vec![n_rows], bytes(&lost));
    add("unselected_errors_at", "F32", vec![n_targets, N_LAYERS, n_pos], bytes(&lost_at));
    // Wide values first, so that each is where its type may be.
    tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype[1..].parse::<usize>().unwrap_or(0)));
    file_of(&tensors, metadata)
}

/// Raw graphs and a JSON graph: of rows best first, and of sampled rows.
pub fn graphs() -> (Vec<Vec<u8>>, Vec<u8>) {
    let replacement = Replacement::open(atlas_model().expect("atlas"), &atlas_transcoders(), &Device::Cpu);
    let replacement = replacement.expect("atlas");
    let prompt = "He went";
    let tokens = replacement.tokenizer.encode_prompt(prompt).expect("a prompt");
    let linear = replacement.linearize(&tokens, &Job::default()).expect("a pass");
    let folder = tempfile::tempdir().expect("a folder can be made");
    let (raw, wire) = (folder.path().join("a.safetensors"), folder.path().join("a.json"));
    let best_first = RowChoice::BestFirst { max_features: 8 };
    let sampled = RowChoice::Sampled { visits: Visits::Rows(4), nodes: Some(8) };
    let raws = [sampled, best_first].map(|rows| {
        let options = AttributionOptions { rows, ..AttributionOptions::default() };
        let found = attribute(&replacement, &linear, prompt, &options, &Job::default()).expect("a graph");
        let circuit = prune(&found.graph, &found.influence, &PruneSettings::default()).expect("thresholds");
        let circuit = circuit.circuit(&found.graph).expect("a circuit");
        write_raw(&found.graph, &raw).expect("the folder can be written");
        write_wire(&WireGraph::new(&circuit, "a").expect("a circuit"), &wire).expect("the folder can be written");
        std::fs::read(&raw).expect("it was written")
    });
    (raws.into(), std::fs::read(&wire).expect("it was written"))
}
