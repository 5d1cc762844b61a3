//! Input that means harm: numbers that no model has, files that change, requests without measure. The program answers
//! with a message, in little time and memory.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use circuitscope::circuits::neighborhood;
use circuitscope::circuits::{SummarySettings, collapse, summarize};
use circuitscope::export::read_raw;
use circuitscope::graph::{Circuit, CircuitMeta, Link, MAX_PATHS, Node, NodeId, strongest_paths};
use circuitscope::model::ModelConfig;
use circuitscope::picture::{PictureSettings, arrange, png, svg};
use circuitscope::weights::{ModelFiles, Tokenizer};
use petgraph::graph::NodeIndex;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::fixture;
use crate::support::{circuitscope, refused_with};

/// Memory that a refused command may take, KiB: the program's own pages and threads, not what a file claims.
const MEMORY_KIB: u64 = 2 << 20;

/// As [`refused_with`], under a limit of memory and in a few seconds.
#[track_caller]
fn refused_in_little_memory(folder: &Path, args: &[&str], parts: &[&str]) {
    let mut shell = Command::new("sh");
    shell.current_dir(folder).arg("-c").arg(format!("ulimit -v {MEMORY_KIB}; exec \"$0\" \"$@\""));
    let output: Output = shell.arg(env!("CARGO_BIN_EXE_circuitscope")).args(args).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {message}");
    assert!(message.starts_with("error: ") && !message.contains("panicked"), "{args:?}: {message}");
    for part in parts {
        assert!(message.contains(part), "{args:?}: {part:?} is not in {message}");
    }
}

fn copied_model(folder: &Path, family: &str) -> PathBuf {
    for part in ["model", "transcoders"] {
        let (from, to) = (fixture(&format!("reference/{family}/{part}")), folder.join(part));
        std::fs::create_dir_all(&to).unwrap();
        for entry in from.read_dir().unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
    folder.join("model")
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

const TRACE: [&str; 8] = ["trace", "--tokens", "2,17,4", "--model", "model", "--transcoders", "transcoders", "--quiet"];

#[test]
fn sizes_of_a_config_are_checked_before_anything_is_allocated() {
    let folder = TempDir::new().unwrap();
    let path = copied_model(folder.path(), "llama_relu").join("config.json");
    let good = read(&path);
    for (key, value) in [
        ("num_hidden_layers", json!(1_000_000_000u64)),
        ("num_hidden_layers", json!(1_000_000_000_000_000_000u64)),
        ("num_hidden_layers", json!(4_000)),
        ("head_dim", json!(2_147_483_648u64)),
        ("hidden_size", json!(1u64 << 40)),
        ("intermediate_size", json!(1u64 << 40)),
        ("vocab_size", json!(1u64 << 40)),
        ("num_attention_heads", json!(1u64 << 40)),
        ("num_key_value_heads", json!(1u64 << 40)),
        ("max_position_embeddings", json!(1u64 << 60)),
        ("max_position_embeddings", json!(0)),
        ("intermediate_size", json!(0)),
    ] {
        let mut config = good.clone();
        config[key] = value.clone();
        std::fs::write(&path, config.to_string()).unwrap();
        refused_in_little_memory(folder.path(), &TRACE, &[key, &value.to_string()]);
    }
}

#[test]
fn numbers_that_no_model_can_compute_with_are_refused_when_the_config_is_read() {
    let refused = |family: &str, key: &str, value: Value| {
        let mut config = read(&fixture(&format!("reference/{family}/model/config.json")));
        match key.split_once('.') {
            Some((outer, inner)) => config[outer][inner] = value.clone(),
            None => config[key] = value.clone(),
        }
        let message = ModelConfig::from_json(&config).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains(key) && message.contains(&value.to_string()), "{family} {key} {value}: {message}");
    };
    for (family, key) in [
        ("llama_relu", "rms_norm_eps"),
        ("llama_relu", "rope_theta"),
        ("gpt2_relu", "layer_norm_epsilon"),
        ("gemma2_jumprelu", "attn_logit_softcapping"),
        ("gemma2_jumprelu", "final_logit_softcapping"),
        ("gemma2_jumprelu", "query_pre_attn_scalar"),
        ("llama3_topk_skip", "rope_scaling.factor"),
        ("llama3_topk_skip", "rope_scaling.low_freq_factor"),
        ("llama3_topk_skip", "rope_scaling.original_max_position_embeddings"),
    ] {
        let config = read(&fixture(&format!("reference/{family}/model/config.json")));
        ModelConfig::from_json(&config).unwrap();
        refused(family, key, json!(0));
        refused(family, key, json!(-1.0));
    }
    refused("llama_relu", "rms_norm_eps", json!(1e30));
    refused("gemma2_jumprelu", "sliding_window", json!(0));
}

#[test]
fn a_checkpoint_has_the_layers_that_its_config_names_neither_fewer_nor_more() {
    let folder = TempDir::new().unwrap();
    let path = copied_model(folder.path(), "gpt2_relu").join("config.json");
    let good = read(&path);
    for n_layers in [3, 5] {
        let mut config = good.clone();
        config["n_layer"] = json!(n_layers);
        std::fs::write(&path, config.to_string()).unwrap();
        refused_with(folder.path(), &TRACE, &["n_layer", &n_layers.to_string(), "4 layers"]);
    }
}

/// A GGUF file of metadata alone: (key, type, bytes of the value).
fn gguf(values: &[(&str, u32, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(0u64.to_le_bytes());
    bytes.extend((values.len() as u64).to_le_bytes());
    for (key, kind, value) in values {
        bytes.extend((key.len() as u64).to_le_bytes());
        bytes.extend(key.as_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(value);
    }
    bytes
}

fn gguf_text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

#[test]
fn lists_of_small_numbers_in_a_gguf_file_take_no_more_memory_than_the_file() {
    let folder = TempDir::new().unwrap();
    let n = 100usize << 20;
    let list = [&0u32.to_le_bytes()[..], &(n as u64).to_le_bytes(), &vec![7u8; n]].concat();
    let values = [("general.architecture", 8, gguf_text("llama")), ("tokenizer.ggml.token_type", 9, list)];
    std::fs::write(folder.path().join("model.gguf"), gguf(&values)).unwrap();
    let mut args = TRACE;
    args[4] = "model.gguf";
    refused_in_little_memory(folder.path(), &args, &["model.gguf"]);
}

#[test]
fn replacements_bombs_and_cuts_in_a_tokenizer_are_errors_that_name_the_file() {
    let folder = TempDir::new().unwrap();
    let path = copied_model(folder.path(), "llama_relu").join("tokenizer.json");
    let good = read(&path);
    let text = good.to_string();
    let decoder = text.find("\"decoder\"").unwrap();
    for cut in [decoder + 8, decoder + 12, decoder + 20, decoder + 30] {
        std::fs::write(&path, &text[..cut]).unwrap();
        refused_in_little_memory(folder.path(), &TRACE, &["tokenizer.json"]);
    }
    let doubling = json!({ "type": "Replace", "pattern": { "String": "a" }, "content": "aa" });
    let everywhere = json!({ "type": "Replace", "pattern": { "Regex": "x*" }, "content": "yy" });
    let chain = vec![doubling; 40];
    let bytes = vec![json!({ "type": "ByteLevel" }); 40];
    for (key, value, part) in [
        ("normalizer", json!({ "type": "Sequence", "normalizers": chain }), "longer"),
        ("normalizer", json!({ "type": "Sequence", "normalizers": bytes }), "longer"),
        ("normalizer", json!({ "type": "Replace", "pattern": { "String": "" }, "content": "b" }), "pattern"),
        ("normalizer", everywhere, "pattern"),
        ("normalizer", json!({ "type": "Precompiled", "precompiled_charsmap": "/////w==" }), "table"),
        ("normalizer", json!({ "type": "Prepend", "prepend": "x".repeat(1 << 20) }), "prepend"),
        ("pre_tokenizer", json!({ "type": "FixedLength", "length": 0 }), "length"),
        ("decoder", json!({ "type": "Strip", "content": " ", "start": 0, "stop": 1u64 << 40 }), "stop"),
    ] {
        let mut tokenizer = good.clone();
        tokenizer[key] = value;
        std::fs::write(&path, tokenizer.to_string()).unwrap();
        refused_in_little_memory(folder.path(), &TRACE, &["tokenizer.json", part]);
    }
    // A prefix that is longer than the parts of a merge.
    let mut tokenizer = good.clone();
    tokenizer["model"]["continuing_subword_prefix"] = json!("a long prefix that no token has");
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let prompt = ["trace", "He went", "--model", "model", "--transcoders", "transcoders", "--quiet"];
    let output = circuitscope(folder.path(), &prompt);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!message.contains("panicked") && output.status.code().is_some(), "{message}");
    // And what is not hostile is built as before.
    let good = serde_json::to_vec(&good).unwrap();
    Tokenizer::from_json("tokenizer.json", &good, None, &Value::Null).unwrap();
}

/// A graph of layers, everything in one fed by everything in the layer before.
fn layered(n_layers: u32, width: u32) -> Circuit {
    let feature = |layer: u32, at: u32| NodeId::Feature { layer, pos: at, feature: at };
    let mut ids: Vec<NodeId> = (0..width).map(|pos| NodeId::Token { pos }).collect();
    ids.extend((0..n_layers).flat_map(|layer| (0..width).map(move |at| feature(layer, at))));
    ids.push(NodeId::Target { index: 0 });
    let node = |id: NodeId| Node {
        id,
        pos: id.pos().unwrap_or(0),
        token_id: None,
        text: String::new(),
        label: None,
        activation: None,
        influence: None,
        probability: None,
        estimate: None,
    };
    let (width, last) = (width as usize, ids.len() - 1);
    let mut links = Vec::new();
    let mut state = 1u64;
    for target in width..last {
        let first = (target / width - 1) * width;
        for source in first..first + width {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            links.push(Link { source, target, weight: (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0 });
        }
    }
    links.extend((last - width..last).map(|source| Link { source, target: last, weight: 1.0 }));
    let meta = CircuitMeta { n_layers: n_layers as usize, ..CircuitMeta::default() };
    Circuit::new(meta, ids.into_iter().map(node).collect(), links).unwrap()
}

#[test]
fn a_hundred_thousand_paths_are_found_strongest_first_each_once() {
    // Every node would have its own list of as many ways: 1,100 lists of 100,000.
    let circuit = layered(10, 100);
    let found = strongest_paths(&circuit, &circuit.tokens(), &circuit.targets(), 100_000);
    assert_eq!(found.paths.len(), 100_000);
    assert!(found.paths.windows(2).all(|two| two[0].strength >= two[1].strength));
    let distinct: std::collections::HashSet<&Vec<NodeIndex>> = found.paths.iter().map(|path| &path.nodes).collect();
    assert_eq!(distinct.len(), found.paths.len());
    let few = strongest_paths(&circuit, &circuit.tokens(), &circuit.targets(), 1_000);
    assert_eq!(few.paths[..], found.paths[..1_000]);
}

#[test]
fn more_paths_than_anybody_reads_are_refused() {
    let settings = SummarySettings { paths: MAX_PATHS + 1, ..SummarySettings::default() };
    let message = summarize(&layered(2, 2), &settings).unwrap_err().to_string();
    assert!(message.contains("paths") && message.contains("1000001"), "{message}");
}

#[test]
fn a_neighbourhood_ends_where_it_no_longer_grows() {
    let circuit = layered(3, 4);
    let start = Instant::now();
    let all = neighborhood(&circuit, &circuit.targets(), usize::MAX);
    assert_eq!(all.len(), circuit.graph().node_count());
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[test]
fn thousands_of_threads_are_refused() {
    let folder = TempDir::new().unwrap();
    for threads in ["4096", "65535"] {
        refused_in_little_memory(folder.path(), &["trace", "He", "--threads", threads], &["--threads", threads, "512"]);
    }
}

#[test]
fn pictures_too_large_to_be_read_are_refused_with_what_to_do() {
    let wide = r#"<svg xmlns="http://www.w3.org/2000/svg" width="9000000" height="400"></svg>"#;
    let message = png(wide, 2.0).unwrap_err().to_string();
    assert!(message.contains("9000000") && message.contains("fewer nodes"), "{message}");
    let texts = "<text>token</text>".repeat(1 << 20);
    let many = format!(r#"<svg xmlns="http://www.w3.org/2000/svg" width="900" height="400">{texts}</svg>"#);
    let message = png(&many, 2.0).unwrap_err().to_string();
    assert!(message.contains("as SVG"), "{message}");
}

#[test]
fn a_picture_of_a_hundred_thousand_tokens_is_drawn_as_large_as_others() {
    let mut ids: Vec<NodeId> = (0..100_000).map(|pos| NodeId::Token { pos }).collect();
    ids.extend((0..14_000).map(|at| NodeId::Feature { layer: at % 30, pos: at * 7, feature: at }));
    ids.push(NodeId::Target { index: 0 });
    let (first, last) = (100_000, ids.len() - 1);
    let mut links: Vec<Link> = (first..last).map(|source| Link { source, target: last, weight: 1.0 }).collect();
    links.extend((first..last).map(|target| Link { source: (target - first) * 7, target, weight: 1.0 }));
    let nodes = ids.into_iter().map(|id| {
        let text = if matches!(id, NodeId::Token { .. }) { "token" } else { "" };
        let pos = id.pos().unwrap_or(99_999);
        let (token_id, text) = (None, text.to_owned());
        Node {
            id,
            pos,
            token_id,
            text,
            label: None,
            activation: None,
            influence: None,
            probability: None,
            estimate: None,
        }
    });
    let meta = CircuitMeta { n_layers: 30, prompt: "token".repeat(100_000), ..CircuitMeta::default() };
    let circuit = Circuit::new(meta, nodes.collect(), links).unwrap();
    let start = Instant::now();
    let view = collapse(&circuit, &[]).unwrap();
    let arranged = arrange(&circuit, &view, &PictureSettings::default());
    let picture = svg(&circuit, &view, &arranged);
    assert!(png(&picture, 1.0).unwrap().starts_with(b"\x89PNG"));
    assert!(arranged.width < 2_000.0 && arranged.height < 4_000.0, "{} x {}", arranged.width, arranged.height);
    assert!(arranged.boxes.iter().map(|drawn| drawn.n_nodes).sum::<usize>() > 100_000, "all tokens are in boxes");
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}

#[cfg(target_os = "linux")]
#[test]
fn what_has_no_end_is_refused() {
    let folder = TempDir::new().unwrap();
    let output = circuitscope(folder.path(), &["trace", "He went", "--out-dir", ".", "--slug", "in", "--quiet"]);
    assert!(output.status.success());
    let change = ["intervene", "He went", "--ablate", "0_26_3"];
    let text = ["/dev/zero", "64 MB at most"];
    let json = ["/dev/zero", "begins with"];
    refused_in_little_memory(folder.path(), &["intervene", "He went", "--plan", "/dev/zero"], &text);
    refused_in_little_memory(folder.path(), &["trace", "--prompt-file", "/dev/zero"], &text);
    refused_in_little_memory(folder.path(), &[&change[..], &["--graph", "/dev/zero"]].concat(), &json);
    refused_in_little_memory(folder.path(), &["inspect", "/dev/zero"], &json);
    for option in ["--labels", "--group-file"] {
        refused_in_little_memory(folder.path(), &["inspect", "in.json", option, "/dev/zero"], &json);
    }
    // What begins as JSON is read to the limit, or to that of memory.
    let script = format!("ulimit -v {MEMORY_KIB}; yes '[' | \"$0\" inspect in.json --labels -");
    let mut shell = Command::new("sh");
    shell.current_dir(folder.path()).args(["-c", &script, env!("CARGO_BIN_EXE_circuitscope")]);
    let output = shell.output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("1024 MB at most") || message.contains("memory"), "{message}");
    // A set-up file is read without being named.
    std::os::unix::fs::symlink("/dev/zero", folder.path().join("circuitscope.toml")).unwrap();
    refused_in_little_memory(folder.path(), &["setups"], &["circuitscope.toml", "64 MB at most"]);
}

#[test]
fn a_raw_graph_that_was_read_does_not_change_with_its_file() {
    let folder = TempDir::new().unwrap();
    let output = circuitscope(folder.path(), &["trace", "He went", "--out-dir", ".", "--slug", "he", "--quiet"]);
    assert!(output.status.success());
    let path = folder.path().join("he.safetensors");
    let graph = read_raw(&path).unwrap();
    let before: Vec<f32> = read_raw(&path).unwrap().edge_rows.values().to_vec();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(100).unwrap();
    // Were this a map of the file, the next line would be a SIGBUS.
    assert!(graph.edge_rows.values() == before);
    assert!(read_raw(&path).is_err());
}

/// Adds a tensor of zeros to a safetensors file: a hole, which takes no room on the disk.
fn enlarge(path: &Path, n_bytes: usize) {
    let bytes = std::fs::read(path).unwrap();
    let start = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..start]).unwrap();
    let data = &bytes[start..];
    header["hole"] = json!({"dtype": "U8", "shape": [n_bytes], "data_offsets": [data.len(), data.len() + n_bytes]});
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    file.write_all(data).unwrap();
    file.set_len((8 + header.len() + data.len() + n_bytes) as u64).unwrap();
}

/// Such a file is mapped, which a smaller one is not.
#[cfg(target_os = "linux")]
#[test]
fn a_large_raw_graph_is_read_from_a_map_and_shortening_it_is_a_message() {
    let folder = TempDir::new().unwrap();
    let trace = ["trace", "He went", "--out-dir", ".", "--slug", "he", "--quiet"];
    assert!(circuitscope(folder.path(), &trace).status.success());
    let path = folder.path().join("he.safetensors");
    let inspect = ["inspect", "he.safetensors", "--format", "json"];
    let small = circuitscope(folder.path(), &inspect);
    enlarge(&path, 257 << 20);
    let large = circuitscope(folder.path(), &inspect);
    assert!(large.status.success() && large.stdout == small.stdout, "{large:?}");
    // The program has read and pruned the graph when it waits for the labels; then it reads the rows again.
    let pipe = folder.path().join("labels.json");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let program = Command::new(env!("CARGO_BIN_EXE_circuitscope"))
        .args(["inspect", "he.safetensors", "--labels", "labels.json"])
        .current_dir(folder.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut writer = std::fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
    writer.write_all(b"{}").unwrap();
    drop(writer);
    let output = program.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("became shorter"), "{output:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_that_is_shortened_under_the_program_is_a_message() {
    let folder = TempDir::new().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // The program waits for the pipe, with its handler in place.
    let program = Command::new(env!("CARGO_BIN_EXE_circuitscope"))
        .args(["inspect", "pipe"])
        .current_dir(folder.path())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let writer = std::fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    assert!(Command::new("kill").args(["-BUS", &program.id().to_string()]).status().unwrap().success());
    let output = program.wait_with_output().unwrap();
    drop(writer);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("became shorter"), "{output:?}");
}

#[test]
fn a_gguf_file_that_claims_layers_which_it_has_not_is_refused() {
    let folder = TempDir::new().unwrap();
    let int = |value: u32| value.to_le_bytes().to_vec();
    let values = [
        ("general.architecture", 8, gguf_text("llama")),
        ("llama.block_count", 4, int(1_000_000_000)),
        ("llama.attention.head_count", 4, int(4)),
        ("llama.embedding_length", 4, int(32)),
        ("llama.context_length", 4, int(128)),
    ];
    let path = folder.path().join("model.gguf");
    std::fs::File::create(&path).unwrap().write_all(&gguf(&values)).unwrap();
    let message = ModelFiles::open(path.to_str().unwrap()).map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("llama.block_count") && message.contains("1000000000"), "{message}");
    let mut args = TRACE;
    args[4] = "model.gguf";
    refused_in_little_memory(folder.path(), &args, &["llama.block_count", "1000000000"]);
}

#[test]
fn requests_without_measure_end_in_little_memory_with_an_answer_or_a_message() {
    let folder = TempDir::new().unwrap();
    let trace = ["trace", "The capital of the state containing Dallas is", "--slug", "g", "--out-dir", ".", "--quiet"];
    assert!(circuitscope(folder.path(), &trace).status.success());
    refused_in_little_memory(folder.path(), &["inspect", "g.json", "--paths", "1000001"], &["paths", "1000001"]);
    let limit = format!("ulimit -v {MEMORY_KIB}; exec \"$0\" \"$@\"");
    let most = usize::MAX.to_string();
    for args in [["--paths", "100000"], ["--hops", most.as_str()]] {
        let mut shell = Command::new("sh");
        shell.current_dir(folder.path()).arg("-c").arg(&limit).arg(env!("CARGO_BIN_EXE_circuitscope"));
        let whole = ["--node-threshold", "1", "--edge-threshold", "1", "--around", "0_39_7"];
        let output = shell.args(["inspect", "g.safetensors"]).args(whole).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
