//! Features: the text that they are read from, and the files that they are kept in.

use std::path::{Path, PathBuf};

use circuitscope::features::{
    CollectOptions, FeatureSet, Input, Pieces, SearchBy, Settings, Split, TextFormat, check_state, collect, merge,
    search,
};
use circuitscope::job::Job;

use crate::mutate::Form;
use crate::targets::{Target, folder_in_memory, in_folder};
use crate::tiny::Tiny;

/// Pieces of a text that are looked at.
const MAX_PIECES: usize = 64;

/// `xz` may ask for 512 MB; a line of JSON may be 64 MB long, and a buffer that grows to it is twice that.
const MAX_BYTES_OF_COMPRESSED: usize = 1 << 30;

/// What features are collected on, in the tokens of [`Tiny`].
const FEATURES_TEXT: &str = "a b ab a\n\nab b a ab b b a a ab\n\na\n";

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

/// A folder of features of a model as small as can be, with what merging needs.
pub fn collected() -> PathBuf {
    let replacement = Tiny::make().replacement();
    let (text, write) = in_folder("a.txt");
    write(FEATURES_TEXT.as_bytes());
    let settings = Settings { context: 8, n_top: 2, n_per_interval: 1, n_sampled: 4, seed: 5 };
    let options = CollectOptions { settings, mergeable: true, ..CollectOptions::default() };
    let out = folder_in_memory().join("features");
    collect(&replacement, &[Input::File(text)], &out, &options, &Job::default()).expect("features");
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
pub fn look_at(folder: &Path) -> bool {
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
    let _ = search(&set, "ab", SearchBy { label: true, tokens: true }, 3);
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

/// What only merging reads: a folder is merged with itself, unless it is known before that it cannot be. Of what is
/// refused so, one in sixteen is merged all the same, and must be refused then too: writing takes most of the time.
pub fn state() -> Target {
    of_file("state_0.safetensors", Form::Safetensors, |folder| {
        let is_known = FeatureSet::open(folder).is_ok_and(|set| check_state(&set, 0).is_ok());
        let size = folder.join("state_0.safetensors").metadata().map_or(0, |file| file.len());
        if !is_known && size % 16 != 0 {
            return false;
        }
        let is_merged = merged(folder);
        assert_eq!(is_merged, is_known, "what can be merged is known before");
        is_merged
    })
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
