//! What features are active on: collected over a text, kept in files, shown and searched.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use circuitscope::features::{
    CollectOptions, Dashboard, FeatureSet, Groups, Input, LayerWriter, N_INTERVALS, SMALLEST, SearchBy, Settings,
    Shard, Split, TOKENS_PHASE, TextFormat, WINDOW_AFTER, WINDOW_BEFORE, active_on, bin_of, bin_start, collect, merge,
    search,
};
use circuitscope::replacement::Replacement;
use circuitscope::{CancelToken, Error, Job};
use tempfile::TempDir;

use crate::reference::FAMILIES;
use crate::support::{circuitscope, close, copy_folder, fixture, open_replacement, refused_with, root, shared, stdout};

/// A text of several documents, one of them longer than a sequence, one of them twice, one not in ASCII.
const TEXT: &str = "He went to the house and she went to the shop, and then they both went home again in the rain.\n\
    The quick brown fox jumps over the lazy dog.\n\
    The quick brown fox jumps over the lazy dog.\n\
    One, two, three, four; caf\u{e9} na\u{ef}ve \u{4e2d}\u{6587}.\n\
    a\n\
    In the beginning there was nothing, then there was a house, and in the house there was a fox.\n";

fn replacement(family: &str) -> Replacement {
    let folder = fixture("reference").join(family);
    open_replacement(&folder.join("model"), &folder.join("transcoders"))
}

fn written(folder: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn lines() -> TextFormat {
    TextFormat { split: Split::Lines, ..Default::default() }
}

/// Small numbers, so that everything that can be full is full.
fn small() -> CollectOptions {
    let settings = Settings { context: 12, n_top: 3, n_per_interval: 2, n_sampled: 7, seed: 5 };
    CollectOptions { settings, format: lines(), ..Default::default() }
}

fn files_of(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    entries.map(|path| (name(&path), std::fs::read(&path).unwrap())).collect()
}

#[track_caller]
fn assert_same_files(a: &Path, b: &Path) {
    let (a, b) = (files_of(a), files_of(b));
    assert!(a.len() > 3);
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, bytes) in &a {
        assert!(bytes == &b[name], "{name} differs");
    }
}

// The literal version: every activation of every sequence from the linear model that graphs are made of, one sequence
// at a time, in one list; statistics from the whole list; hashes as docs/formats.md has them.

fn fnv(words: impl IntoIterator<Item = u32>) -> u64 {
    let bytes = words.into_iter().flat_map(u32::to_le_bytes);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn sample_hash(seed: u64, layer: usize, feature: usize, sequence: &[u32], offset: usize) -> u64 {
    let of_feature = mix(mix(seed ^ 0x5851_f42d_4c95_7f2d) ^ (((layer as u64) << 32) | feature as u64));
    let place = mix(fnv(sequence.iter().copied()));
    let place = mix(place.wrapping_add((offset as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    mix(place ^ of_feature)
}

/// Half of a doubling, counted from [`SMALLEST`].
fn step(value: f32) -> i32 {
    if value < SMALLEST {
        return 0;
    }
    let exponent = (f64::from(value).log2() + 1e-9).floor();
    let is_upper = f64::from(value) / exponent.exp2() >= 1.5;
    1 + 2 * (exponent as i32 + 16) + i32::from(is_upper)
}

/// One activation of a feature.
#[derive(Clone, Copy, Debug)]
struct Firing {
    sequence: usize,
    offset: usize,
    value: f32,
}

struct Literal {
    sequences: Vec<Vec<u32>>,
    starts: Vec<usize>,
    firings: HashMap<(usize, usize), Vec<Firing>>,
}

impl Literal {
    fn new(replacement: &Replacement, text: &str, context: usize) -> Self {
        let tokenizer = &replacement.tokenizer;
        let start = tokenizer.bos().or(tokenizer.pad()).or(tokenizer.eos());
        let own = context - start.iter().len();
        let mut sequences: Vec<Vec<u32>> = Vec::new();
        for line in text.lines() {
            let tokens = tokenizer.encode_plain(line).unwrap();
            sequences.extend(tokens.chunks(own).map(|chunk| start.into_iter().chain(chunk.iter().copied()).collect()));
        }
        let mut starts = vec![0];
        let mut firings: HashMap<(usize, usize), Vec<Firing>> = HashMap::new();
        for (i, sequence) in sequences.iter().enumerate() {
            starts.push(starts[i] + sequence.len());
            let linear = replacement.linearize(sequence, &Job::default()).unwrap();
            for f in &linear.features.all {
                let firing = Firing { sequence: i, offset: f.pos, value: f.value };
                firings.entry((f.layer, f.feature)).or_default().push(firing);
            }
        }
        for of_feature in firings.values_mut() {
            of_feature.sort_by_key(|f| (f.sequence, f.offset));
        }
        Self { sequences, starts, firings }
    }

    fn position(&self, firing: &Firing) -> usize {
        self.starts[firing.sequence] + firing.offset
    }

    /// Positions of the strongest examples, and of the samples of each interval.
    fn examples(&self, layer: usize, feature: usize, settings: &Settings) -> [BTreeSet<usize>; N_INTERVALS + 1] {
        let mut kept: [BTreeSet<usize>; N_INTERVALS + 1] = Default::default();
        let Some(firings) = self.firings.get(&(layer, feature)) else { return kept };
        // Of each sequence the strongest, the first of equal ones; then strongest first; then without those that stand in
        // the same eight tokens on each side as a stronger one.
        let mut of_sequences: BTreeMap<usize, Firing> = BTreeMap::new();
        for firing in firings {
            let best = of_sequences.entry(firing.sequence).or_insert(*firing);
            if firing.value > best.value {
                *best = *firing;
            }
        }
        let mut strongest: Vec<Firing> = of_sequences.into_values().collect();
        strongest.sort_by(|a, b| b.value.total_cmp(&a.value).then(self.position(a).cmp(&self.position(b))));
        let mut contexts = BTreeSet::new();
        for firing in strongest {
            let tokens = &self.sequences[firing.sequence];
            let (from, to) = (firing.offset.saturating_sub(8), (firing.offset + 9).min(tokens.len()));
            if kept[0].len() < settings.n_top && contexts.insert((firing.offset - from, tokens[from..to].to_vec())) {
                kept[0].insert(self.position(&firing));
            }
        }
        let top_step = firings.iter().map(|f| step(f.value)).max().unwrap();
        for (interval, kept) in kept.iter_mut().enumerate().skip(1) {
            let below = (N_INTERVALS - interval) as i32;
            let mut ranked: Vec<(u64, usize)> = firings
                .iter()
                .filter(|f| top_step - step(f.value) == below || (interval == 1 && top_step - step(f.value) > below))
                .map(|f| {
                    let sequence = &self.sequences[f.sequence];
                    (sample_hash(settings.seed, layer, feature, sequence, f.offset), self.position(f))
                })
                .collect();
            ranked.sort_unstable();
            ranked.dedup_by_key(|(hash, _)| *hash);
            kept.extend(ranked.iter().take(settings.n_per_interval).map(|(_, position)| position));
        }
        kept
    }

    /// Tokens and those before them, with count and mean, on the sampled activations: most frequent first.
    fn tokens(&self, layer: usize, feature: usize, settings: &Settings, back: usize) -> Vec<(u32, usize, f64)> {
        let firings = self.firings.get(&(layer, feature)).map_or(&[][..], Vec::as_slice);
        let mut ranked: Vec<(u64, usize, &Firing)> = firings
            .iter()
            .map(|f| {
                let hash = sample_hash(settings.seed, layer, feature, &self.sequences[f.sequence], f.offset);
                (hash >> 32, self.position(f), f)
            })
            .collect();
        ranked.sort_by_key(|&(hash, position, _)| (hash, position));
        let mut counts: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
        for (_, _, f) in ranked.iter().take(settings.n_sampled) {
            counts.entry(self.sequences[f.sequence][f.offset - back]).or_default().push(f.value.into());
        }
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let mut counts: Vec<_> = counts.iter().map(|(&token, v)| (token, v.len(), mean(v))).collect();
        counts.sort_by_key(|&(token, n, _)| (std::cmp::Reverse(n), token));
        counts
    }
}

#[track_caller]
fn assert_is_literal(set: &FeatureSet, literal: &Literal, settings: &Settings, name: &str) -> usize {
    let mut n_alive = 0;
    for layer in 0..set.n_layers() {
        for feature in 0..set.n_features(layer) {
            let name = format!("{name} {layer}_{feature}");
            let dashboard = set.dashboard(layer, feature).unwrap();
            let firings = literal.firings.get(&(layer, feature)).map_or(&[][..], Vec::as_slice);
            assert_eq!(dashboard.count as usize, firings.len(), "{name}: count");
            if firings.is_empty() {
                assert_eq!(dashboard, Dashboard::default(), "{name}: dead");
                continue;
            }
            n_alive += 1;
            let n_sequences = firings.iter().map(|f| f.sequence).collect::<BTreeSet<_>>().len();
            assert_eq!(dashboard.n_sequences as usize, n_sequences, "{name}: sequences");
            let mut values: Vec<f64> = firings.iter().map(|f| f.value.into()).collect();
            values.sort_by(f64::total_cmp);
            let n = values.len();
            close(dashboard.mean.into(), values.iter().sum::<f64>() / n as f64, 1e-5, 1e-5, &format!("{name}: mean"));
            close(dashboard.min.into(), values[0], 1e-5, 1e-5, &format!("{name}: min"));
            close(dashboard.max.into(), values[n - 1], 1e-5, 1e-5, &format!("{name}: max"));
            assert_histogram(&dashboard, &values, &name);
            assert_examples(set, &dashboard, literal, (layer, feature), settings, &name);
            for (found, back, at_most) in [(&dashboard.tokens, 0, 10), (&dashboard.before, 1, 5)] {
                let expected = literal.tokens(layer, feature, settings, back);
                assert_eq!(found.len(), expected.len().min(at_most), "{name}: tokens {back} back");
                for (found, (token, count, mean)) in found.iter().zip(expected) {
                    assert_eq!((found.token, found.count as usize), (token, count), "{name}: token {back} back");
                    close(found.mean.into(), mean, 1e-5, 1e-5, &format!("{name}: mean of a token"));
                }
            }
        }
    }
    n_alive
}

/// Values within rounding of an edge may be on either side of it.
#[track_caller]
fn assert_histogram(dashboard: &Dashboard, values: &[f64], name: &str) {
    let n_below = |edge: f64| values.iter().filter(|&&v| v < edge).count();
    let mut below = 0;
    for (start, end, count) in dashboard.histogram.bins() {
        below += count as usize;
        // An activation is what is left of sums that are larger than it, and rounded as those are.
        let rounding = 2e-5 * f64::from(end) + 2e-6;
        let (low, high) = (f64::from(end) - rounding, f64::from(end) + rounding);
        assert!((n_below(low)..=n_below(high)).contains(&below), "{name}: bin {start} to {end}");
    }
    assert_eq!(below, values.len(), "{name}: histogram");
    for share in [0.0, 0.25, 0.5, 0.9, 1.0] {
        let exact = values[((share * values.len() as f64).ceil() as usize).clamp(1, values.len()) - 1];
        let found = f64::from(dashboard.quantile(share));
        // A bin is at most a quarter wide; what is below the scale is in one.
        let near = (found - exact).abs() <= 0.26 * exact.abs().max(found.abs()) + f64::from(SMALLEST);
        assert!(near || exact < 0.0, "{name}: quantile {share} is {found}, exactly {exact}");
    }
}

#[track_caller]
fn assert_examples(
    set: &FeatureSet,
    dashboard: &Dashboard,
    literal: &Literal,
    (layer, feature): (usize, usize),
    settings: &Settings,
    name: &str,
) {
    let expected = literal.examples(layer, feature, settings);
    let positions = |groups: Groups| -> BTreeSet<usize> {
        let of_group = dashboard.examples.iter().filter(|e| e.groups.0 & groups.0 != 0);
        of_group.map(|e| e.position as usize).collect()
    };
    assert_eq!(positions(Groups::TOP), expected[0], "{name}: strongest");
    for (interval, expected) in expected.iter().enumerate().skip(1).take(N_INTERVALS) {
        assert_eq!(positions(Groups::of_interval(interval)), *expected, "{name}: interval {interval}");
    }
    assert!(dashboard.examples.is_sorted_by(|a, b| a.value >= b.value), "{name}: strongest first");
    let values: HashMap<usize, f32> =
        literal.firings[&(layer, feature)].iter().map(|f| (literal.position(f), f.value)).collect();
    for example in &dashboard.examples {
        let window = set.window(example, usize::MAX, usize::MAX);
        let position = example.position as usize;
        let sequence = literal.starts.partition_point(|&start| start <= position) - 1;
        let offset = position - literal.starts[sequence];
        let tokens = &literal.sequences[sequence];
        let from = offset.saturating_sub(WINDOW_BEFORE);
        let to = (offset + WINDOW_AFTER + 1).min(tokens.len());
        assert_eq!(window.tokens, tokens[from..to], "{name}: tokens of a window");
        assert_eq!(window.at, offset - from, "{name}: place in a window");
        for (i, &activation) in window.activations.iter().enumerate() {
            let exact = values.get(&(literal.starts[sequence] + from + i)).copied().unwrap_or(0.0);
            close(activation.into(), exact.into(), 1e-5, 1e-5, &format!("{name}: activation in a window"));
        }
    }
}

#[test]
fn statistics_and_examples_are_those_of_a_literal_version_on_every_family() {
    for family in FAMILIES {
        let replacement = replacement(family);
        let folder = TempDir::new().unwrap();
        let text = written(&folder, "text.txt", TEXT);
        let (out, options) = (folder.path().join("features"), small());
        let collected = collect(&replacement, &[Input::File(text)], &out, &options, &Job::default()).unwrap();
        let literal = Literal::new(&replacement, TEXT, options.settings.context);
        assert_eq!(collected.manifest.text.n_documents, 6, "{family}");
        assert_eq!(collected.manifest.text.n_sequences as usize, literal.sequences.len(), "{family}");
        let set = FeatureSet::open(&out).unwrap();
        assert_eq!(set.tokens().len(), literal.starts[literal.sequences.len()], "{family}");
        let n_alive = assert_is_literal(&set, &literal, &options.settings, family);
        assert!(n_alive > 20, "{family}: {n_alive} features are active");
    }
}

#[test]
fn atlas_is_counted_as_literally_and_its_activations_are_those_of_its_graphs() {
    let replacement = crate::support::atlas();
    let folder = TempDir::new().unwrap();
    let text: String = std::fs::read_to_string(fixture("atlas/sentences.txt")).unwrap();
    let text: String = text.lines().take(60).map(|line| format!("{line}\n")).collect();
    let input = Input::File(written(&folder, "text.txt", &text));
    let out = folder.path().join("features");
    let options = CollectOptions { settings: Settings { context: 64, ..small().settings }, ..small() };
    collect(&replacement, &[input], &out, &options, &Job::default()).unwrap();
    let set = FeatureSet::open(&out).unwrap();
    let literal = Literal::new(&replacement, &text, 64);
    assert!(assert_is_literal(&set, &literal, &options.settings, "atlas") > 500);
}

#[test]
fn any_number_of_threads_writes_the_same_bytes() {
    let folder = TempDir::new().unwrap();
    written(&folder, "text.txt", &TEXT.repeat(30));
    let (model, transcoders) = (fixture("reference/llama_relu/model"), fixture("reference/llama_relu/transcoders"));
    for threads in ["1", "2", "5"] {
        let output = circuitscope(
            folder.path(),
            &[
                "features",
                "collect",
                "--text",
                "text.txt",
                "--split",
                "lines",
                "--context",
                "12",
                "--quiet",
                "--model",
                model.to_str().unwrap(),
                "--transcoders",
                transcoders.to_str().unwrap(),
                "--threads",
                threads,
                "--out",
                threads,
            ],
        );
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_same_files(&folder.path().join("1"), &folder.path().join("2"));
    assert_same_files(&folder.path().join("1"), &folder.path().join("5"));
}

/// A text of several units, none of whose lines is the same as another.
fn long_text(n_lines: usize) -> String {
    let line = |i: usize| format!("{i} {} went {} to the house {}.\n", i * 7919 % 1009, i * 31 % 97, i % 13);
    (0..n_lines).map(line).collect()
}

#[test]
fn merged_parts_and_merged_texts_are_what_one_run_writes() {
    for family in ["llama_relu", "llama_clt"] {
        let replacement = replacement(family);
        let folder = TempDir::new().unwrap();
        let at = |name: &str| folder.path().join(name);
        let first = Input::File(written(&folder, "first.txt", &long_text(2500)));
        let second = Input::File(written(&folder, "second.txt", TEXT));
        let run = |inputs: &[Input], out: &str, options: &CollectOptions| {
            collect(&replacement, inputs, &at(out), options, &Job::default()).unwrap()
        };
        let both = [first.clone(), second.clone()];
        let whole = run(&both, "whole", &small());
        assert!(whole.manifest.text.n_tokens > 3 * (1 << 14), "the text has several units");
        for index in 1..=3 {
            let shard = Some(Shard { index, of: 3 });
            run(&both, &format!("part{index}"), &CollectOptions { shard, ..small() });
        }
        let parts = ["part3", "part1", "part2"].map(at);
        merge(&parts, &at("of_parts"), false, &Job::default()).unwrap();
        assert_same_files(&at("of_parts"), &at("whole"));

        let mergeable = CollectOptions { mergeable: true, ..small() };
        run(&[first], "a", &mergeable);
        run(&[second], "b", &mergeable);
        merge(&[at("a"), at("b")], &at("of_texts"), false, &Job::default()).unwrap();
        assert_same_files(&at("of_texts"), &at("whole"));

        // What does not go together.
        let refused = |folders: &[&str], part: &str| {
            let folders: Vec<PathBuf> = folders.iter().map(|name| at(name)).collect();
            let message = merge(&folders, &at("none"), false, &Job::default()).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
            assert!(!at("none").exists());
        };
        refused(&["part1", "part2"], "all 3 are needed");
        refused(&["part1", "a"], "do not go with whole ones");
        refused(&["whole", "a"], "lacks what merging needs");
    }
}

#[test]
fn an_interrupted_run_goes_on_and_ends_in_the_same_files() {
    let replacement = replacement("llama_relu");
    let folder = TempDir::new().unwrap();
    let input = Input::File(written(&folder, "text.txt", &long_text(2500)));
    let at = |name: &str| folder.path().join(name);
    let options = CollectOptions { keep_every_secs: 0.0, ..small() };
    collect(&replacement, std::slice::from_ref(&input), &at("whole"), &options, &Job::default()).unwrap();
    // Cancelled after each of its first units.
    let (token, told) = (CancelToken::default(), Arc::new(Mutex::new(0)));
    let mut n_resumed = 0;
    for stop_at in 1..=2 {
        let (token, told) = (CancelToken::default(), told.clone());
        let cancel = token.clone();
        *told.lock().unwrap() = 0;
        let job = Job::default().with_cancel(token).with_progress(move |progress| {
            if progress.phase == TOKENS_PHASE {
                *told.lock().unwrap() += 1;
                if *told.lock().unwrap() >= stop_at {
                    cancel.cancel();
                }
            }
        });
        let stopped = collect(&replacement, std::slice::from_ref(&input), &at("cut"), &options, &job);
        assert!(matches!(stopped, Err(Error::Cancelled)));
        assert!(!at("cut").join("features.json").exists(), "nothing looks finished");
        n_resumed += usize::from(at("cut").join("collecting").is_dir());
    }
    drop(token);
    assert!(n_resumed > 0, "work was kept");
    let other = CollectOptions { settings: Settings { context: 10, ..options.settings.clone() }, ..options.clone() };
    let message = collect(&replacement, std::slice::from_ref(&input), &at("cut"), &other, &Job::default());
    let message = format!("{:?}", message.unwrap_err());
    assert!(message.contains("context: 12") && message.contains("context: 10"), "{message}");
    let done = collect(&replacement, std::slice::from_ref(&input), &at("cut"), &options, &Job::default()).unwrap();
    assert!(done.resumed_from.is_some_and(|n| n > 0), "{done:?}");
    assert!(!at("cut").join("collecting").exists());
    assert_same_files(&at("cut"), &at("whole"));
    // What is finished is not overwritten by accident.
    let again = collect(&replacement, std::slice::from_ref(&input), &at("cut"), &options, &Job::default());
    assert!(again.unwrap_err().to_string().contains("it holds features already"));
}

#[test]
fn text_is_read_from_json_lines_folders_and_compressed_files_alike() {
    use std::io::Write;
    let replacement = replacement("llama_relu");
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let json: String = TEXT.lines().map(|line| format!("{}\n", serde_json::json!({ "id": 1, "body": line }))).collect();
    let plain = written(&folder, "plain.txt", TEXT);
    let json_lines = written(&folder, "lines.jsonl", &json);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(json.as_bytes()).unwrap();
    std::fs::create_dir_all(at("texts/deep")).unwrap();
    std::fs::write(at("texts/deep/a.jsonl.gz"), gz.finish().unwrap()).unwrap();
    std::fs::write(at("texts/picture.png"), b"\x89PNG\0").unwrap();
    let options = CollectOptions { format: TextFormat { field: "body".into(), split: Split::Lines }, ..small() };
    let mut layers = Vec::new();
    for (name, path) in [("a", &plain), ("b", &json_lines), ("c", &at("texts"))] {
        let inputs = circuitscope::features::inputs(std::slice::from_ref(path)).unwrap();
        collect(&replacement, &inputs, &at(name), &options, &Job::default()).unwrap();
        let mut files = files_of(&at(name));
        files.remove("features.json");
        layers.push(files);
    }
    assert!(layers[0].len() > 2 && layers.iter().all(|files| files == &layers[0]), "the same text, the same features");
    let empty = at("empty");
    std::fs::create_dir_all(&empty).unwrap();
    let message = circuitscope::features::inputs(&[empty]).unwrap_err().to_string();
    assert!(message.contains(".jsonl"), "{message}");
}

const COLLECT: [&str; 5] = ["features", "collect", "--quiet", "--out", "out"];

#[test]
fn what_cannot_be_collected_is_refused_before_anything_is_written() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("picture.txt"), b"\x89PNG\r\n\x1a\n\0\0\0").unwrap();
    std::fs::write(folder.path().join("latin.txt"), b"caf\xe9\n").unwrap();
    std::fs::write(folder.path().join("empty.txt"), "\n \n").unwrap();
    std::fs::write(folder.path().join("text.txt"), "The capital of Texas is Austin.\n").unwrap();
    std::fs::write(folder.path().join("cut.gz"), b"\x1f\x8b\x08\0\0").unwrap();
    std::fs::write(folder.path().join("odd.jsonl"), "{\"body\": \"x\"}\n").unwrap();
    let refuse = |args: &[&str], parts: &[&str]| {
        refused_with(folder.path(), &[&COLLECT, args].concat(), parts);
        assert!(!folder.path().join("out/features.json").exists(), "{args:?}");
    };
    refuse(&["--text", "picture.txt"], &["picture.txt", "line 1 is not UTF-8"]);
    refuse(&["--text", "latin.txt"], &["latin.txt", "line 1 is not UTF-8"]);
    refuse(&["--text", "empty.txt"], &["empty.txt", "no text"]);
    refuse(&["--text", "nowhere.txt"], &["cannot open", "nowhere.txt"]);
    refuse(&["--text", "cut.gz"], &["cannot read", "cut.gz"]);
    refuse(&["--text", "odd.jsonl"], &["odd.jsonl", "no field `text`", "`body`"]);
    refuse(&["--text", "text.txt", "--context", "1"], &["context", "--context"]);
    refuse(&["--text", "text.txt", "--context", "60000"], &["60000"]);
    refuse(&["--text", "text.txt", "--examples", "0"], &["examples"]);
}

#[test]
fn a_full_disk_leaves_nothing_that_looks_finished() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("text.txt"), "The capital of Texas is Austin.\n").unwrap();
    // Files of at most 8 KiB, as if the disk had no more room.
    let mut shell = Command::new("sh");
    shell.current_dir(folder.path()).arg("-c").arg("trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$@\"");
    let args = [&COLLECT[..], &["--text", "text.txt"]].concat();
    let output: Output = shell.arg(env!("CARGO_BIN_EXE_circuitscope")).args(&args).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("cannot write") && message.contains("safetensors"), "{message}");
    assert!(!folder.path().join("out/features.json").exists());
    refused_with(folder.path(), &["features", "show", "out", "0_1"], &["features.json", "missing"]);
    assert!(circuitscope(folder.path(), &args).status.success(), "with room, the same command works");
}

/// The features of the reference text, with room to change their files.
fn collected(folder: &TempDir) -> PathBuf {
    let out = folder.path().join("features");
    let input = Input::File(written(folder, "text.txt", TEXT));
    collect(&replacement("llama_relu"), &[input], &out, &small(), &Job::default()).unwrap();
    out
}

#[test]
fn damaged_files_are_refused_or_read_but_never_end_in_a_panic() {
    let folder = TempDir::new().unwrap();
    let good = collected(&folder);
    let bad = folder.path().join("bad");
    let read_all = |folder: &Path| -> circuitscope::Result<()> {
        let set = FeatureSet::open(folder)?;
        for layer in 0..set.n_layers() {
            for feature in 0..set.n_features(layer) {
                let dashboard = set.dashboard(layer, feature)?;
                dashboard.examples.iter().for_each(|example| {
                    set.window(example, 8, 8);
                });
                circuitscope::features::report(&set, circuitscope::features::FeatureId { layer, feature })?;
            }
        }
        search(&set, "the", SearchBy { label: true, tokens: true }, 5).map(|_| ())
    };
    read_all(&good).unwrap();
    let mut random = crate::support::Random::new(7);
    let mut n_refused = 0;
    for name in ["features.json", "tokens.safetensors", "layer_0.safetensors"] {
        let bytes = std::fs::read(good.join(name)).unwrap();
        for round in 0..60 {
            copy_folder(&good, &bad);
            let mut damaged = bytes.clone();
            match round % 3 {
                0 => damaged.truncate(random.below(bytes.len())),
                1 => {
                    let at = random.below(bytes.len());
                    damaged[at] ^= 1 << random.below(8);
                }
                _ => {
                    let at = random.below(bytes.len().saturating_sub(64).max(1));
                    damaged[at..].iter_mut().take(64).for_each(|byte| *byte = 0xff);
                }
            }
            std::fs::write(bad.join(name), damaged).unwrap();
            n_refused += usize::from(read_all(&bad).is_err());
        }
        std::fs::remove_file(bad.join(name)).unwrap();
        assert!(matches!(read_all(&bad), Err(Error::MissingFile { .. })), "{name} is missing");
    }
    assert!(n_refused > 80, "{n_refused} of 180 damages were seen");
}

#[test]
fn damaged_state_is_refused_or_merged_but_never_ends_in_a_panic() {
    let folder = TempDir::new().unwrap();
    let (good, bad) = (folder.path().join("good"), folder.path().join("bad"));
    let input = Input::File(written(&folder, "text.txt", TEXT));
    let options = CollectOptions { mergeable: true, ..small() };
    collect(&replacement("llama_relu"), &[input], &good, &options, &Job::default()).unwrap();
    let bytes = std::fs::read(good.join("state_0.safetensors")).unwrap();
    let mut random = crate::support::Random::new(3);
    let mut n_refused = 0;
    for round in 0..40 {
        copy_folder(&good, &bad);
        let mut damaged = bytes.clone();
        let at = random.below(bytes.len() - 64);
        match round % 3 {
            0 => damaged.truncate(at),
            1 => damaged[at..at + 64].fill(0xff),
            _ => damaged[at..at + 64].fill(0),
        }
        std::fs::write(bad.join("state_0.safetensors"), damaged).unwrap();
        let out = folder.path().join(round.to_string());
        n_refused += usize::from(merge(&[good.clone(), bad.clone()], &out, false, &Job::default()).is_err());
    }
    assert!(n_refused > 15, "{n_refused} of 40 damages were seen");
}

#[test]
fn features_of_another_version_model_or_set_are_refused_with_both_named() {
    let folder = TempDir::new().unwrap();
    let out = collected(&folder);
    let set = FeatureSet::open(&out).unwrap();
    let message = active_on(&replacement("llama_clt"), &set, "The house", 3, &Job::default()).unwrap_err().to_string();
    assert!(message.contains("another transcoder set") && message.contains("per-layer"), "{message}");
    assert!(message.contains("cross-layer"), "{message}");
    let json = std::fs::read_to_string(out.join("features.json")).unwrap();
    std::fs::write(out.join("features.json"), json.replace("\"format_version\": 1", "\"format_version\": 9")).unwrap();
    refused_with(folder.path(), &["features", "show", "features", "0_1"], &["format version 9", "expected 1"]);
    refused_with(folder.path(), &["features", "show", "atlas", "0_5000"], &["0_5000", "1024 features"]);
    refused_with(folder.path(), &["features", "show", "atlas", "99_99"], &["layer 99", "4 layers, 0..=3"]);
    refused_with(folder.path(), &["features", "show", "atlas", "x"], &["29_189"]);
    refused_with(folder.path(), &["features", "show", "nowhere", "0_1"], &["features.json", "nowhere"]);
}

#[test]
fn the_embedded_features_are_what_collecting_its_sentences_gives() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("features");
    let options = CollectOptions {
        settings: Settings { context: 64, n_top: 6, n_per_interval: 1, ..Default::default() },
        format: lines(),
        ..Default::default()
    };
    let tracer = circuitscope::Tracer::open(circuitscope::Setup::atlas()).unwrap();
    let input = Input::File(fixture("atlas/sentences.txt"));
    collect(tracer.replacement(), &[input], &out, &options, &Job::default()).unwrap();
    let (embedded, here) = (FeatureSet::open_named("atlas").unwrap(), FeatureSet::open(&out).unwrap());
    assert_eq!(embedded.manifest().text, here.manifest().text);
    let (mut n_activations, mut n_different) = (0, 0);
    for layer in 0..4 {
        for feature in 0..embedded.n_features(layer) {
            let (a, b) = (embedded.dashboard(layer, feature).unwrap(), here.dashboard(layer, feature).unwrap());
            // Whether an activation within rounding of its threshold counts depends on the processor.
            assert!(a.count.abs_diff(b.count) <= 1, "{layer}_{feature}: {} and {}", a.count, b.count);
            assert!(a.n_sequences.abs_diff(b.n_sequences) <= 1, "{layer}_{feature}");
            n_activations += a.count;
            n_different += a.count.abs_diff(b.count);
            close(a.max.into(), b.max.into(), 1e-5, 1e-5, "largest activation");
        }
    }
    assert!(n_different * 100_000 < n_activations, "{n_different} of {n_activations}");
}

#[test]
fn a_feature_is_shown_in_80_columns_and_found_by_token_and_by_text() {
    let folder = TempDir::new().unwrap();
    for color in ["never", "always"] {
        let output = circuitscope(folder.path(), &["features", "show", "atlas", "0_39", "--color", color]);
        let text = stdout(&output);
        assert!(output.status.success());
        for part in ["feature 0_39", "active on", "strongest examples", "sampled from interval", "Dallas"] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert_eq!(text.contains("\x1b["), color == "always");
        for line in text.lines() {
            let mut plain = String::new();
            let mut pieces = line.split('\x1b');
            plain.push_str(pieces.next().unwrap_or_default());
            pieces.for_each(|piece| plain.push_str(piece.split_once('m').map_or("", |(_, rest)| rest)));
            assert!(plain.chars().count() <= 80, "{plain}");
        }
    }
    let json = stdout(&circuitscope(folder.path(), &["features", "show", "atlas", "0_39", "--format", "json"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["feature"], "0_39");
    let example = &json["examples"][0];
    let (at, n) = (example["at"].as_u64().unwrap() as usize, example["tokens"].as_array().unwrap().len());
    assert_eq!(example["activations"].as_array().unwrap().len(), n);
    assert_eq!(example["activations"][at], example["value"]);

    let found = stdout(&circuitscope(folder.path(), &["features", "search", "atlas", "dallas", "--by", "tokens"]));
    assert!(found.lines().any(|line| line.trim_start().starts_with("0_39 ")), "{found}");
    let text = ["features", "search", "atlas", "The capital of the state containing Dallas is", "--on-text"];
    let active = stdout(&circuitscope(folder.path(), &text));
    assert!(active.contains("\" Dallas\"") && active.contains("0_39"), "{active}");
}

/// Writes numbers over the beginning of a column.
fn overwrite(path: &Path, column: &str, bytes: &[u8]) {
    let mut file = std::fs::read(path).unwrap();
    let start = 8 + u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&file[8..start]).unwrap();
    let at = start + header[column]["data_offsets"][0].as_u64().unwrap() as usize;
    file[at..at + bytes.len()].copy_from_slice(bytes);
    std::fs::write(path, file).unwrap();
}

#[test]
fn numbers_that_no_text_has_are_refused_when_folders_are_merged() {
    let folder = TempDir::new().unwrap();
    let (good, bad) = (folder.path().join("good"), folder.path().join("bad"));
    let input = Input::File(written(&folder, "text.txt", TEXT));
    let options = CollectOptions { mergeable: true, ..small() };
    collect(&replacement("llama_relu"), &[input], &good, &options, &Job::default()).unwrap();
    let most = u64::MAX.to_string();
    let set = |key: &str, value: &str| {
        let (path, key) = (bad.join("features.json"), key.to_owned());
        let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        json["text"][key] = serde_json::from_str(value).unwrap();
        std::fs::write(path, json.to_string()).unwrap();
    };
    let tokens = bad.join("tokens.safetensors");
    let changes: [(&dyn Fn(), &[&str]); 8] = [
        (&|| set("n_tokens", &most), &["features.json", &most, "tokens"]),
        (&|| set("n_positions", &most), &["features.json", &most, "positions"]),
        (&|| set("n_sequences", &most), &["features.json", &most, "sequences"]),
        // The documents of a text that comes first are before those of the next.
        (&|| set("n_documents", "4294967296"), &["tokens.safetensors", "documents"]),
        (&|| overwrite(&tokens, "sequence_documents", &[0xff; 4]), &["tokens.safetensors", "documents"]),
        (&|| overwrite(&tokens, "sequence_units", &[0xff; 4]), &["tokens.safetensors", "units"]),
        (&|| overwrite(&bad.join("state_0.safetensors"), "sums", &[0x7f; 16]), &["state_0.safetensors", "the sums of"]),
        (&|| overwrite(&bad.join("layer_0.safetensors"), "mean", &[0x7f; 3]), &["state_0.safetensors", "the sums of"]),
    ];
    for (i, (change, parts)) in changes.into_iter().enumerate() {
        copy_folder(&good, &bad);
        change();
        // In either place: as the first, what comes after it is moved; as the last, it is moved itself.
        let refused = [[&good, &bad], [&bad, &good]].map(|folders| {
            let out = folder.path().join("out");
            let merged = merge(&folders.map(Clone::clone), &out, true, &Job::default());
            assert!(!out.join("features.json").exists() || merged.is_ok());
            let _ = std::fs::remove_dir_all(&out);
            merged.err().map(|error| error.to_string())
        });
        let messages: Vec<String> = refused.into_iter().flatten().collect();
        assert!(!messages.is_empty(), "change {i} is refused in some place");
        for message in messages {
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
    }
}

#[test]
fn every_column_of_the_files_is_in_the_documentation() {
    let folder = TempDir::new().unwrap();
    let input = Input::File(written(&folder, "text.txt", TEXT));
    let out = folder.path().join("features");
    let options = CollectOptions { mergeable: true, ..small() };
    collect(&replacement("llama_relu"), &[input], &out, &options, &Job::default()).unwrap();
    let page = std::fs::read_to_string(root().join("docs/formats.md")).unwrap();
    let mut n_named = 0;
    for (name, bytes) in files_of(&out) {
        if let Ok(tensors) = safetensors::SafeTensors::deserialize(&bytes) {
            for tensor in tensors.names() {
                assert!(page.contains(&format!("`{tensor}`")), "{tensor} of {name} is not in docs/formats.md");
                n_named += 1;
            }
        }
    }
    assert!(n_named > 30);
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("features.json")).unwrap()).unwrap();
    for (key, value) in json.as_object().unwrap() {
        let inner = value.as_object().map(|inner| inner.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
        for key in inner.iter().chain([key]) {
            assert!(page.contains(&format!("`{key}`")), "{key} of features.json is not in docs/formats.md");
        }
    }
}

#[test]
fn an_empty_layer_has_edges_that_ascend() {
    // The scale of the histogram, and a layer without features.
    assert!((0..255).all(|bin| bin_start(bin) < bin_start(bin + 1)));
    assert_eq!(bin_of(1.0) + 4, bin_of(2.0));
    let folder = TempDir::new().unwrap();
    LayerWriter::new(10).write(folder.path(), 0).unwrap();
    assert!(folder.path().join("layer_0.safetensors").is_file());
}

/// The most anonymous memory that a command has, in KiB, looked at while it runs.
#[cfg(target_os = "linux")]
fn peak_kib(command: &mut Command) -> u64 {
    let mut child = command.spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        if let Some(ended) = child.try_wait().unwrap() {
            assert!(ended.success());
            return peak;
        }
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let figure = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = figure.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok());
        peak = peak.max(kib.unwrap_or(0));
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
#[cfg(target_os = "linux")]
fn collecting_from_four_times_the_text_takes_no_more_memory() {
    let folder = TempDir::new().unwrap();
    let (model, transcoders) = (fixture("reference/llama_relu/model"), fixture("reference/llama_relu/transcoders"));
    let mut n_tokens = Vec::new();
    let peaks: Vec<u64> = [2500, 10_000]
        .into_iter()
        .map(|n_lines| {
            let (text, out) = (format!("{n_lines}.txt"), format!("of_{n_lines}"));
            written(&folder, &text, &long_text(n_lines));
            let mut command = crate::support::program(folder.path());
            command.args(["features", "collect", "--text", &text, "--out", &out, "--quiet", "--threads", "1"]);
            // Little is kept of a feature, so that all of it is there after the shorter text.
            command.args(["--split", "lines", "--sampled", "16", "--examples", "3", "--per-interval", "1"]);
            // Neither run takes so long that it keeps its work, which takes memory of its own.
            command.args(["--keep-every", "100000"]);
            let peak = peak_kib(command.arg("--model").arg(&model).arg("--transcoders").arg(&transcoders));
            n_tokens.push(FeatureSet::open(&folder.path().join(out)).unwrap().tokens().len());
            peak
        })
        .collect();
    let more = (n_tokens[1] - n_tokens[0]) as u64;
    assert!(more > 150_000, "{more} tokens more");
    // Of a token its number is held, of a sequence three, in lists that double as they grow, by an allocator that keeps
    // what was freed. The activations at a position have some kilobytes.
    let allowed = peaks[0] + peaks[0] / 20 + 64 * more / 1024;
    assert!(peaks[1] <= allowed, "{} KiB after {} KiB, for {more} tokens more", peaks[1], peaks[0]);
}

#[test]
#[ignore = "needs the larger test data"]
fn smollm2_features_are_literal_too() {
    let model = crate::support::file_named_by("CIRCUITSCOPE_SMOLLM2_GGUF");
    let replacement = open_replacement(&model, &shared("smollm2/transcoders"));
    let folder = TempDir::new().unwrap();
    let input = Input::File(written(&folder, "text.txt", TEXT));
    let out = folder.path().join("features");
    let options = CollectOptions { settings: Settings { context: 32, ..small().settings }, ..small() };
    collect(&replacement, &[input], &out, &options, &Job::default()).unwrap();
    let literal = Literal::new(&replacement, TEXT, 32);
    let set = FeatureSet::open(&out).unwrap();
    assert!(assert_is_literal(&set, &literal, &options.settings, "SmolLM2") > 10_000);
}
