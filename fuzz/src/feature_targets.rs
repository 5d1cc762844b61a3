//! Features: the text that they are read from, and the files that they are kept in.

use std::path::{Path, PathBuf};

use candle_core::Device;
use circuitscope::features::{
    Bundle, CollectOptions, ExportFormat, FeatureSet, INDEX_FILE, ImportOptions, Input, Pieces, SearchBy, Settings,
    Split, TextFormat, check_state, collect, export, import, merge, read_names, search,
};
use circuitscope::job::Job;
use circuitscope::replacement::Replacement;
use circuitscope::weights::{Folder, ModelFiles};

use crate::mutate::Form;
use crate::seeds::fixture;
use crate::targets::{Target, folder_in_memory, in_folder};

/// Pieces of a text that are looked at.
const MAX_PIECES: usize = 64;

/// `xz` may ask for 512 MB; a line of JSON may be 64 MB long, and a buffer that grows to it is twice that.
const MAX_BYTES_OF_COMPRESSED: usize = 1 << 30;

const TEXT: &str = "The quick brown fox.\n\nOne, two: caf\u{e9}.\n";

/// Text as it is: lines of JSON, and documents of each kind.
pub fn text() -> Target {
    let read = reader();
    let lines = "{\"text\": \"one\"}\n\n{\"text\": \"two\\nthree\", \"id\": 3}\n";
    let seeds = [TEXT, lines, "\u{feff}a\r\nb"].map(|seed| seed.as_bytes().to_vec());
    Target::new(Form::Text, seeds.into(), move |input| {
        let (whole, lines) = read(input);
        if let (Some(pieces), Ok(text)) = (&whole, std::str::from_utf8(input)) {
            let text = text.strip_prefix('\u{feff}').unwrap_or(text);
            assert!(text.trim().is_empty() || pieces == text, "all of the text is given");
        }
        whole.is_some() || lines.is_some()
    })
}

/// The same text compressed: the streams of gzip, xz and zstd.
pub fn compressed() -> Target {
    let read = reader();
    let seeds: [&[u8]; 4] = [
        include_bytes!("compressed/text.gz"),
        include_bytes!("compressed/text.xz"),
        include_bytes!("compressed/text.zst"),
        include_bytes!("compressed/lines.gz"),
    ];
    let target = Target::new(Form::Binary, seeds.map(<[u8]>::to_vec).into(), move |input| {
        let (whole, lines) = read(input);
        whole.is_some() || lines.is_some()
    });
    Target { max_bytes: MAX_BYTES_OF_COMPRESSED, ..target }
}

/// Reads a file as one document and as lines of JSON: all text of it, where it was read and is short.
fn reader() -> impl Fn(&[u8]) -> (Option<String>, Option<String>) {
    let (lines, write_lines) = in_folder("a.jsonl");
    let (text, write_text) = in_folder("a.txt");
    let of = |path: &Path, split: Split| -> Option<String> {
        let format = TextFormat { split, ..TextFormat::default() };
        let mut pieces = Pieces::open(&Input::File(path.to_path_buf()), &format).ok()?;
        let mut whole = String::new();
        for _ in 0..MAX_PIECES {
            match pieces.next_piece().ok()? {
                Some(piece) => whole.push_str(&piece.text),
                None => return Some(whole),
            }
        }
        None
    };
    move |input| {
        write_lines(input);
        write_text(input);
        let _ = (of(&text, Split::Lines), of(&text, Split::Paragraphs));
        (of(&text, Split::File), of(&lines, Split::File))
    }
}

/// Features of a layer: what is read whole each time is to be small.
const N_FEATURES: usize = 8;

/// A small model with [`N_FEATURES`] features a layer.
fn small_model() -> Replacement {
    let open = |folder: &Path| Folder::open(&folder.to_string_lossy()).expect("a folder");
    let (from, transcoders) = (fixture("llama_relu/transcoders"), folder_in_memory());
    for entry in from.read_dir().expect("the repository's own files can be read") {
        let path = entry.expect("an entry").path();
        let to = transcoders.join(path.file_name().expect("a name"));
        if path.extension().is_none_or(|ending| ending != "safetensors") {
            std::fs::copy(&path, to).expect("the folder can be written");
            continue;
        }
        let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).expect("tensors");
        for name in ["W_enc", "W_dec", "b_enc"] {
            let whole = tensors.remove(name).expect("a transcoder has it");
            tensors
                .insert(name.to_owned(), whole.narrow(0, 0, N_FEATURES).expect("a part").contiguous().expect("a copy"));
        }
        candle_core::safetensors::save(&tensors, to).expect("the folder can be written");
    }
    let host = ModelFiles::from_folder(&open(&fixture("llama_relu/model"))).expect("a model");
    Replacement::open(host, &open(&transcoders), &Device::Cpu).expect("a model")
}

/// A folder of its features, with what merging needs.
pub fn collected() -> PathBuf {
    collected_with(&small_model())
}

fn collected_with(replacement: &Replacement) -> PathBuf {
    let (text, write) = in_folder("a.txt");
    write(TEXT.as_bytes());
    let settings = Settings { context: 8, n_top: 2, n_per_interval: 1, n_sampled: 4, seed: 5 };
    let options = CollectOptions { settings, mergeable: true, ..CollectOptions::default() };
    let out = folder_in_memory().join("features");
    collect(replacement, &[Input::File(text)], &out, &options, &Job::default()).expect("features");
    out
}

/// A target that puts its input in place of a file of a folder of features.
fn of_file(name: &str, form: Form, read: impl Fn(&Path) -> bool + 'static) -> Target {
    let folder = collected();
    let path = folder.join(name);
    let seed = std::fs::read(&path).expect("it was written");
    Target::new(form, vec![seed], move |input| {
        std::fs::write(&path, input).expect("the folder can be written");
        read(&folder)
    })
}

/// Opens a folder, and reads all that is known of some features.
fn look_at(folder: &Path) -> bool {
    let Ok(set) = FeatureSet::open(folder) else { return false };
    let mut is_read = true;
    for layer in 0..set.n_layers().min(2) {
        for feature in 0..set.n_features(layer).min(64) {
            let Ok(dashboard) = set.dashboard(layer, feature) else {
                is_read = false;
                continue;
            };
            for example in &dashboard.examples {
                let window = set.window(example, 8, 8);
                assert_eq!(window.tokens.len(), window.activations.len());
            }
            let _ = dashboard.histogram.quantile(0.5, dashboard.min, dashboard.max);
        }
    }
    let _ = search(&set, "fox", SearchBy { label: true, tokens: true }, 3);
    is_read
}

/// `features.json`.
pub fn manifest() -> Target {
    of_file("features.json", Form::Json, look_at)
}

/// A layer's dashboards.
pub fn layer() -> Target {
    of_file("layer_0.safetensors", Form::Safetensors, look_at)
}

/// The sequences that were read, and the texts of tokens.
pub fn tokens() -> Target {
    of_file("tokens.safetensors", Form::Safetensors, look_at)
}

/// What only merging reads, of one layer.
pub fn state() -> Target {
    of_file("state_0.safetensors", Form::Safetensors, |folder| {
        FeatureSet::open(folder).and_then(|set| check_state(&set, 0)).is_ok()
    })
}

/// The same, and the folder is merged with itself: what is written takes its time.
pub fn merged_state() -> Target {
    of_file("state_0.safetensors", Form::Safetensors, merged)
}

/// `features.json`, as merging reads it.
pub fn merged_manifest() -> Target {
    of_file("features.json", Form::Json, merged)
}

fn merged(folder: &Path) -> bool {
    let out = folder.with_file_name("merged");
    let merged = merge(&[folder.to_path_buf(), folder.to_path_buf()], &out, true, &Job::default());
    let is_read = merged.is_ok();
    assert!(!is_read || FeatureSet::open(&out).is_ok(), "what was merged is read");
    let _ = std::fs::remove_dir_all(&out);
    is_read
}

/// Names of features from elsewhere: the same bytes as a table, as lines of JSON, and as one object.
pub fn names() -> Target {
    let table = "layer,feature,label\n0,3,\"a, b\"\n1,7,c\n";
    let lines = concat!(
        r#"{"modelId": "m", "layer": "0-set", "index": "3", "description": "a fox", "explanationModelName": "x", "typeName": "oai_token-act-pair"}"#,
        "\n",
        r#"{"modelId": "m", "layer": "1-set", "index": 7, "explanations": [{"description": "b", "typeName": "np_max-act"}]}"#,
        "\n",
    );
    let object = r#"{"0_3": "a", "1_7": "b"}"#;
    let files = ["a.csv", "a.jsonl", "a.json"].map(in_folder);
    let seeds = [table, lines, object].map(|seed| seed.as_bytes().to_vec());
    Target::new(Form::Text, seeds.into(), move |input| {
        let read = |(path, write): &(PathBuf, _)| {
            let write: &dyn Fn(&[u8]) = write;
            write(input);
            let n_features = [N_FEATURES; 4];
            read_names(path, &n_features).is_ok_and(|names| {
                assert!(
                    names.keys().all(|id| id.layer < 4 && id.feature < N_FEATURES),
                    "names are of features that there are"
                );
                true
            })
        };
        files.iter().filter(|file| read(file)).count() > 0
    })
}

/// What [`export`] writes of the small model's features, for a program; and the model.
fn exported(format: ExportFormat) -> (PathBuf, Replacement) {
    let (replacement, out) = (small_model(), folder_in_memory().join("exported"));
    let set = FeatureSet::open(&collected_with(&replacement)).expect("features");
    export(&set, Some(&replacement), &out, format, &Job::default()).expect("the folder can be written");
    (out, replacement)
}

/// Imports features; what was imported is read.
fn imports(replacement: &Replacement, from: &Path, out: &Path) -> bool {
    let options = ImportOptions { n_checked: 0, ..ImportOptions::default() };
    let imported = import(replacement, &[from.to_path_buf()], out, &options, &Job::default());
    assert!(imported.is_err() || look_at(out), "what was imported is read");
    let _ = std::fs::remove_dir_all(out);
    imported.is_ok()
}

/// The first file of a folder whose name ends so, below it too.
fn found(folder: &Path, ending: &str) -> PathBuf {
    let mut paths: Vec<PathBuf> = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().expect("it was written") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { folders.push(path) } else { paths.push(path) }
        }
    }
    paths.sort();
    paths.into_iter().find(|path| path.to_string_lossy().ends_with(ending)).expect("it was written")
}

fn inflated(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).expect("it was written");
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(file), &mut bytes).expect("gzip");
    bytes
}

fn deflated(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    std::io::Write::write_all(&mut writer, bytes).and_then(|()| writer.finish()).expect("in memory")
}

/// Neuronpedia's lines.
pub fn neuronpedia() -> Target {
    let (folder, replacement) = exported(ExportFormat::Neuronpedia);
    let mut seed = inflated(&found(&folder, "batch-0.jsonl.gz"));
    // Two features say all that more do.
    let end = seed.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(1).map_or(seed.len(), |(at, _)| at + 1);
    seed.truncate(end);
    let (path, write) = in_folder("batch-0.jsonl");
    let out = folder_in_memory().join("imported");
    Target::new(Form::Text, vec![seed], move |input| {
        write(input);
        imports(&replacement, &path, &out)
    })
}

/// circuit-tracer's file of one feature.
pub fn circuit_tracer() -> Target {
    let (folder, replacement) = exported(ExportFormat::CircuitTracerFiles);
    let from = found(&folder, ".json");
    let seed = std::fs::read(&from).expect("it was written");
    let path = folder_in_memory().join(from.file_name().expect("a name"));
    let out = folder_in_memory().join("imported");
    Target::new(Form::Json, vec![seed], move |input| {
        std::fs::write(&path, input).expect("the folder can be written");
        imports(&replacement, path.parent().expect("it is in a folder"), &out)
    })
}

/// Reads every feature of a bundle.
fn bundle_is_read(folder: &Path) -> bool {
    let Ok(bundle) = Bundle::open(folder) else { return false };
    let mut is_read = true;
    for layer in bundle.layers() {
        for feature in 0..bundle.n_features(layer).min(2 * N_FEATURES) {
            is_read &= bundle.json(layer, feature).is_ok();
        }
    }
    is_read
}

/// The index of circuit-tracer's bundle, which is compressed for the reader.
pub fn bundle() -> Target {
    let (folder, _) = exported(ExportFormat::CircuitTracer);
    let path = folder.join(INDEX_FILE);
    let seed = inflated(&path);
    Target::new(Form::Json, vec![seed], move |input| {
        std::fs::write(&path, deflated(input)).expect("the folder can be written");
        bundle_is_read(&folder)
    })
}

/// A layer's file of such a bundle.
pub fn bundle_layer() -> Target {
    let (folder, _) = exported(ExportFormat::CircuitTracer);
    let path = found(&folder, "layer_0.bin");
    let seed = std::fs::read(&path).expect("it was written");
    Target::new(Form::Binary, vec![seed], move |input| {
        std::fs::write(&path, input).expect("the folder can be written");
        bundle_is_read(&folder)
    })
}
