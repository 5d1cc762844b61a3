//! Features in the files of other programs: written as their readers want them, read back, and checked against a model;
//! names from files; features and labels that belong to something else.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use circuitscope::features::{
    Agreement, Bundle, CollectOptions, Dashboard, ExportFormat, FeatureId, FeatureSet, ImportOptions, Imported, Input,
    Settings, Split, TextFormat, collect, export, import, pushes,
};
use circuitscope::replacement::Replacement;
use circuitscope::{Error, Job};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    Random, atlas, circuitscope, close, copy_folder, fixture, open_replacement, refused_with, stdout,
};

const FORMATS: [ExportFormat; 3] =
    [ExportFormat::CircuitTracer, ExportFormat::CircuitTracerFiles, ExportFormat::Neuronpedia];

fn embedded() -> FeatureSet {
    FeatureSet::open_named("atlas").unwrap()
}

fn exported(set: &FeatureSet, replacement: Option<&Replacement>, format: ExportFormat) -> TempDir {
    let folder = TempDir::new().unwrap();
    export(set, replacement, folder.path(), format, &Job::default()).unwrap();
    folder
}

fn imported(replacement: &Replacement, from: &Path) -> (TempDir, Imported) {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("features");
    let found = import(replacement, &[from.to_owned()], &out, &ImportOptions::default(), &Job::default()).unwrap();
    (folder, found)
}

/// What circuit-tracer's page does to show a feature (`loadFeatureFromBinary`, `util.getFile`): the whole index, then
/// bytes of the bin from one offset to the next, both included; their first four are a length.
fn read_as_the_page(folder: &Path, layer: usize, feature: usize) -> Value {
    let mut json = String::new();
    let index = std::fs::File::open(folder.join("index.json.gz")).unwrap();
    flate2::read::GzDecoder::new(index).read_to_string(&mut json).unwrap();
    let index: Value = serde_json::from_str(&json).unwrap();
    let of_layer = &index[layer.to_string()];
    let offset = |i: usize| of_layer["offsets"][i].as_u64().unwrap();
    let mut file = std::fs::File::open(folder.join(of_layer["filename"].as_str().unwrap())).unwrap();
    file.seek(SeekFrom::Start(offset(feature))).unwrap();
    let mut bytes = Vec::new();
    file.take(offset(feature + 1) - offset(feature) + 1).read_to_end(&mut bytes).unwrap();
    let len = u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
    let mut text = String::new();
    flate2::read::GzDecoder::new(&bytes[4..4 + len]).read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_bundle_is_what_circuit_tracers_page_reads_features_that_are_never_active_too() {
    let (set, replacement) = (embedded(), atlas());
    let folder = exported(&set, Some(&replacement), ExportFormat::CircuitTracer);
    let bundle = Bundle::open(folder.path()).unwrap();
    assert_eq!(bundle.layers().collect::<Vec<_>>(), [0, 1, 2, 3]);
    let mut n_dead = 0;
    for layer in 0..4 {
        let n_features = set.n_features(layer);
        assert_eq!(bundle.n_features(layer), n_features, "an offset for each feature, and one more");
        let pushed = pushes(&replacement, layer, &(0..n_features).collect::<Vec<_>>(), 10).unwrap();
        for (feature, pushed) in pushed.iter().enumerate() {
            let name = format!("{layer}_{feature}");
            let dashboard = set.dashboard(layer, feature).unwrap();
            let json: Value =
                serde_json::from_slice(&bundle.json(layer, feature).unwrap().expect("every feature is there")).unwrap();
            assert_eq!(json["index"], feature, "{name}");
            if feature % 128 == 5 {
                assert_eq!(read_as_the_page(folder.path(), layer, feature), json, "{name}: as the page reads it");
            }
            n_dead += usize::from(dashboard.is_dead());
            let quantiles = json["examples_quantiles"].as_array().unwrap();
            assert_eq!(quantiles.is_empty(), dashboard.is_dead(), "{name}");
            let frequency = f64::from(dashboard.count) / set.manifest().text.n_positions as f64;
            close(json["activation_frequency"].as_f64().unwrap(), frequency, 1e-12, 0.0, &name);
            let top: Vec<String> = pushed.top.iter().map(|push| set.tokens().text(push.token)).collect();
            assert_eq!(texts(&json["top_logits"]), top, "{name}");
            if dashboard.is_dead() {
                continue;
            }
            let n_counted: u64 = json["histogram"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
            assert_eq!(n_counted, u64::from(dashboard.count), "{name}: the histogram counts every activation");
            assert_eq!(json["act_max"].as_f64().unwrap() as f32, dashboard.max);
            let values = floats(&json["quantile_values"]);
            assert!(values.len() == 101 && values.is_sorted(), "{name}");
            assert_eq!(quantiles[0]["quantile_name"], "Top activations");
            let examples = quantiles[0]["examples"].as_array().unwrap();
            assert_eq!(examples.len(), dashboard.top().count(), "{name}");
            for (written, example) in examples.iter().zip(dashboard.top()) {
                let window = set.window(example, usize::MAX, usize::MAX);
                assert_eq!(floats(&written["tokens_acts_list"]), window.activations, "{name}");
                assert_eq!(texts(&written["tokens"]), window.texts, "{name}");
                assert_eq!(written["train_token_ind"], window.at, "{name}");
            }
            let n_sampled: usize =
                quantiles[1..].iter().map(|quantile| quantile["examples"].as_array().unwrap().len()).sum();
            let expected: usize = (1..=5).map(|interval| dashboard.samples(interval).count()).sum();
            assert_eq!(n_sampled, expected, "{name}: samples of intervals");
        }
    }
    assert!(n_dead > 0, "some features of the embedded set are never active");
}

#[test]
fn the_same_features_export_to_the_same_bytes() {
    let set = embedded();
    for format in FORMATS {
        let (a, b) = (exported(&set, None, format), exported(&set, None, format));
        let files = |folder: &TempDir| {
            let mut found = BTreeMap::new();
            let mut open = vec![folder.path().to_owned()];
            while let Some(path) = open.pop() {
                for entry in path.read_dir().unwrap().map(|entry| entry.unwrap().path()) {
                    match entry.is_dir() {
                        true => open.push(entry),
                        false => {
                            let name = entry.strip_prefix(folder.path()).unwrap().to_owned();
                            found.insert(name, std::fs::read(&entry).unwrap());
                        }
                    }
                }
            }
            found
        };
        let (a, b) = (files(&a), files(&b));
        assert!(a.len() >= 5 && a == b, "{format:?}");
    }
}

/// An example by its tokens, without the one that begins a text, and the activations on them.
type Plain = (Vec<u32>, Vec<f32>, usize);

/// Examples of a feature, whatever their order.
fn plain_examples(set: &FeatureSet, dashboard: &Dashboard) -> Vec<Plain> {
    let mut all: Vec<Plain> = dashboard
        .examples
        .iter()
        .map(|example| {
            let window = set.window(example, usize::MAX, usize::MAX);
            let skipped = usize::from(window.starts_sequence);
            (window.tokens[skipped..].to_vec(), window.activations[skipped..].to_vec(), window.at - skipped)
        })
        .collect();
    all.sort_by(|a, b| a.partial_cmp(b).unwrap());
    // Windows of the same tokens are one text where they come back.
    all.dedup();
    all
}

#[test]
fn what_was_exported_is_imported_with_the_same_examples_and_agrees_with_its_model() {
    let (set, replacement) = (embedded(), atlas());
    for format in FORMATS {
        let from = exported(&set, Some(&replacement), format);
        let (folder, found) = imported(&replacement, from.path());
        let back = FeatureSet::open(&folder.path().join("features")).unwrap();
        assert_eq!((found.n_left_out, back.manifest() == &found.manifest), (0, true), "{format:?}");
        let mut n_alive = 0;
        for (layer, feature) in (0..4).flat_map(|layer| (0..set.n_features(layer)).map(move |f| (layer, f))) {
            let name = format!("{format:?} {layer}_{feature}");
            let (a, b) = (set.dashboard(layer, feature).unwrap(), back.dashboard(layer, feature).unwrap());
            assert_eq!((a.is_dead(), a.max), (b.is_dead(), b.max), "{name}");
            assert_eq!(plain_examples(&set, &a), plain_examples(&back, &b), "{name}");
            if a.is_dead() {
                continue;
            }
            n_alive += 1;
            assert_eq!(a.count, b.count, "{name}: the histogram says how many activations there are");
            // A bin of ours is a quarter of its start wide, one of theirs a fiftieth of the largest activation; the middle
            // stands for all of it.
            close(b.mean.into(), a.mean.into(), 0.02 * f64::from(a.max), 0.13, &format!("{name}: mean"));
            let most = b.tokens.first().expect("examples have tokens").token;
            let is_active_on =
                |(tokens, values, _): &Plain| tokens.iter().zip(values).any(|(&t, &v)| t == most && v > 0.0);
            assert!(plain_examples(&set, &a).iter().any(is_active_on), "{name}: a token that it is active on");
            assert!(b.tokens.iter().map(|count| b.share(count)).sum::<f64>() <= 1.05, "{name}");
        }
        assert_eq!(found.n_alive, n_alive);
        let n_positions = set.manifest().text.n_positions as f64;
        close(back.manifest().text.n_positions as f64, n_positions, 1.0, 1e-3, "positions, from frequencies");
        let provenance = found.manifest.imported.as_ref().unwrap();
        let agreement = provenance.agreement.as_ref().unwrap();
        assert!(agreement.agrees(), "{format:?}: {agreement:?}");
        assert!(agreement.n_features >= 190 && agreement.n_whole > 50, "{agreement:?}");
        assert_eq!(agreement.share_near_whole, 1.0, "what begins a text is the same text: {agreement:?}");
        assert_eq!(agreement.share_logits, Some(1.0), "{agreement:?}");
        // Only Neuronpedia's form has names.
        let has_label = back.labels().get(0, 39) == Some("Texas");
        assert_eq!(has_label, format == ExportFormat::Neuronpedia);
        assert_eq!(found.n_labels > 0, has_label);
    }
}

/// Neuronpedia's files of a set with every line changed, imported.
fn changed(replacement: &Replacement, change: impl Fn(&mut Value)) -> Agreement {
    let from = exported(&embedded(), Some(replacement), ExportFormat::Neuronpedia);
    let mut n_lines = 0;
    for layer in from.path().read_dir().unwrap().map(|entry| entry.unwrap().path()) {
        for path in layer.join("features").read_dir().unwrap().map(|entry| entry.unwrap().path()) {
            let mut text = String::new();
            flate2::read::GzDecoder::new(std::fs::File::open(&path).unwrap()).read_to_string(&mut text).unwrap();
            let lines = text.lines().map(|line| {
                let mut json: Value = serde_json::from_str(line).unwrap();
                change(&mut json);
                n_lines += 1;
                format!("{json}\n")
            });
            let lines: String = lines.collect();
            // Plain lines are read too.
            std::fs::write(path.with_extension(""), lines).unwrap();
            std::fs::remove_file(&path).unwrap();
        }
    }
    assert_eq!(n_lines, 4096);
    let (_folder, found) = imported(replacement, from.path());
    found.manifest.imported.unwrap().agreement.unwrap()
}

#[test]
fn dashboards_of_other_activations_or_other_features_are_said_to_disagree() {
    let replacement = atlas();
    // As the hosted ones of the default Gemma set: several times too high.
    let scaled = changed(&replacement, |line| {
        for activation in line["activations"].as_array_mut().unwrap() {
            for value in activation["values"].as_array_mut().unwrap() {
                *value = Value::from(12.0 * value.as_f64().unwrap());
            }
        }
    });
    assert!(!scaled.agrees(), "{scaled:?}");
    close(scaled.median_ratio, 1.0 / 12.0, 0.01, 0.0, "median ratio");
    assert!(scaled.share_same_token > 0.9, "{scaled:?}");
    // Features of another order.
    let moved = changed(&replacement, |line| {
        let index: usize = line["index"].as_str().unwrap().parse().unwrap();
        line["index"] = Value::from(((index + 7) % 1024).to_string());
    });
    assert!(!moved.agrees() && moved.median_ratio < 0.1, "{moved:?}");
    assert!(moved.share_logits.unwrap() < 0.3, "{moved:?}");
}

fn llama() -> Replacement {
    let folder = fixture("reference/llama_relu");
    open_replacement(&folder.join("model"), &folder.join("transcoders"))
}

#[test]
fn features_of_another_set_and_what_is_no_feature_file_are_refused_with_both_named() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("out");
    let refused = |replacement: &Replacement, from: &Path, parts: &[&str]| {
        let error =
            import(replacement, &[from.to_owned()], &out, &ImportOptions::default(), &Job::default()).unwrap_err();
        let shown = format!("{error}: {}", error.root());
        parts.iter().for_each(|part| assert!(shown.contains(part), "{part:?} is not in {shown}"));
        assert!(!out.join("features.json").exists());
    };
    let bundle = exported(&embedded(), None, ExportFormat::CircuitTracer);
    refused(&llama(), bundle.path(), &["transcoder set", "layer 0 has 1024 features", "here it has"]);
    let lines = exported(&embedded(), None, ExportFormat::Neuronpedia);
    refused(&llama(), lines.path(), &["does not exist"]);
    let empty = TempDir::new().unwrap();
    refused(&llama(), empty.path(), &["neither a bundle", "index.json.gz", ".jsonl"]);
    for (name, text, parts) in [
        ("18.json", "{}", &["18.json", "examples_quantiles"][..]),
        ("a.jsonl", "{\"layer\":\"0-x\",\"index\":\"5000\"}\n", &["a.jsonl", "line 1", "0_5000"]),
        ("a.jsonl", "{\"layer\":\"77-x\",\"index\":\"0\"}\n", &["layer 77", "layers"]),
        ("a.jsonl", "{\"layer\":0,\"index\":1}\n{\"layer\":1,\"index\":1}\n", &["line 2", "layer 1"]),
        ("a.jsonl", "not JSON\n", &["a.jsonl", "line 1"]),
        ("a.jsonl.gz", "no gzip", &["a.jsonl.gz"]),
    ] {
        let wrong = TempDir::new().unwrap();
        std::fs::write(wrong.path().join(name), text).unwrap();
        refused(&llama(), wrong.path(), parts);
    }
    // Not over features that are there.
    let (there, _) = imported(&atlas(), bundle.path());
    let from = [bundle.path().to_owned()];
    let out = there.path().join("features");
    let error = import(&atlas(), &from, &out, &ImportOptions::default(), &Job::default()).unwrap_err();
    assert!(matches!(error, Error::Collect { .. }), "{error}");
}

#[test]
fn damaged_bundles_are_refused_or_read_but_never_end_in_a_panic() {
    let good = exported(&embedded(), None, ExportFormat::CircuitTracer);
    let bad = TempDir::new().unwrap();
    copy_folder(good.path(), bad.path());
    let read_all = || -> circuitscope::Result<()> {
        let bundle = Bundle::open(bad.path())?;
        (0..bundle.n_features(1)).step_by(7).try_for_each(|feature| bundle.json(1, feature).map(drop))
    };
    read_all().unwrap();
    let mut random = Random::new(11);
    let mut n_refused = 0;
    for name in ["index.json.gz", "layer_1.bin"] {
        let bytes = std::fs::read(good.path().join(name)).unwrap();
        for round in 0..60 {
            let mut damaged = bytes.clone();
            let at = random.below(bytes.len() - 64);
            match round % 3 {
                0 => damaged.truncate(at),
                1 => damaged[at..at + 64].fill(0xff),
                _ => damaged[at..at + 64].fill(0),
            }
            std::fs::write(bad.path().join(name), damaged).unwrap();
            n_refused += usize::from(read_all().is_err());
        }
        std::fs::write(bad.path().join(name), bytes).unwrap();
    }
    assert!(n_refused > 50, "{n_refused} of 120 damages were seen");
    // An index that leads out of its folder, lies about a length, or inflates without end.
    let index = |json: &str| {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut writer, json.as_bytes()).unwrap();
        std::fs::write(bad.path().join("index.json.gz"), writer.finish().unwrap()).unwrap();
    };
    for (json, part) in [
        (r#"{"0":{"filename":"../layer_0.bin","offsets":[0,4]}}"#, "../layer_0.bin"),
        (r#"{"0":{"filename":"layer_0.bin","offsets":[0,99999999999]}}"#, "99999999999"),
        (r#"{"0":{"filename":"layer_0.bin","offsets":[4,0]}}"#, "ascend"),
        (r#"{"0":{"filename":"layer_0.bin","offsets":[]}}"#, "ascend"),
        (r#"{"0":{"filename":"layer_9.bin","offsets":[0,4]}}"#, "layer_9.bin"),
        (r#"{"0":{"offsets":[0,4]}}"#, "filename"),
        (r#"{"format":"other","0":{}}"#, "other"),
    ] {
        index(json);
        let message = Bundle::open(bad.path()).unwrap_err().to_string();
        assert!(message.contains(part), "{part:?} is not in {message}");
    }
    let mut zeros = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    (0..64).for_each(|_| std::io::Write::write_all(&mut zeros, &vec![b' '; 1 << 20]).unwrap());
    let zeros = zeros.finish().unwrap();
    let chunk = [&(zeros.len() as u32).to_le_bytes()[..], &zeros].concat();
    std::fs::write(bad.path().join("layer_0.bin"), &chunk).unwrap();
    index(&format!(r#"{{"0":{{"filename":"layer_0.bin","offsets":[0,{}]}}}}"#, chunk.len()));
    let message = Bundle::open(bad.path()).unwrap().json(0, 0).unwrap_err().to_string();
    assert!(message.contains("more than 8 MB"), "{message}");
}

#[test]
fn export_and_import_run_from_the_command_line_and_leave_nothing_half_done() {
    let folder = TempDir::new().unwrap();
    let run = |args: &[&str]| {
        let output = circuitscope(folder.path(), args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (stdout(&output), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (_, notes) = run(&["features", "export", "atlas", "--format", "circuit-tracer", "--out", "bundle"]);
    assert!(notes.contains("4096 features") && notes.contains("5 files"), "{notes}");
    let (text, _) = run(&["features", "import", "bundle", "--out", "features"]);
    assert!(text.contains("agrees with the model here") && text.contains("same token strongest"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    let (text, notes) = run(&["features", "show", "features", "0_39", "--model", "atlas"]);
    assert!(text.contains("Dallas") && notes.contains("from circuit-tracer, agrees"), "{text}{notes}");
    let (found, _) = run(&["features", "search", "features", "dallas"]);
    assert!(found.contains("0_39"), "{found}");
    refused_with(folder.path(), &["features", "import", "bundle", "--out", "features"], &["holds features already"]);
    refused_with(folder.path(), &["features", "import", "nowhere", "--out", "x"], &["nowhere"]);
    refused_with(folder.path(), &["features", "export", "atlas", "--format", "np", "--out", "x"], &["neuronpedia"]);
    assert!(!folder.path().join("x/features.json").exists());
    // What cannot be written leaves nothing.
    std::fs::write(folder.path().join("file"), b"").unwrap();
    let into_file = ["features", "export", "atlas", "--format", "neuronpedia", "--no-logits", "--out", "file"];
    refused_with(folder.path(), &into_file, &["file"]);
}

#[test]
fn labels_from_files_go_over_those_that_are_there_and_must_be_of_features_that_exist() {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let bundle = exported(&embedded(), None, ExportFormat::CircuitTracer);
    let out = folder.path().join("features");
    import(
        &atlas(),
        &[bundle.path().to_owned()],
        &out,
        &ImportOptions { n_checked: 0, ..Default::default() },
        &Job::default(),
    )
    .unwrap();
    let label = |args: &[&str]| {
        let args: Vec<&str> = ["features", "label", "features", "--import"].iter().chain(args).copied().collect();
        let output = circuitscope(folder.path(), &args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    write("np.csv", "layer,index,description\n0-atlas,39,Dallas and Houston\n3-atlas,955,\"asks, for capital\"\n");
    write("mine.json", r#"{"0_39": "Texan towns"}"#);
    assert!(label(&["np.csv"]).contains("2 labels read, 2 in all"));
    assert!(label(&["mine.json"]).contains("1 labels read, 2 in all"));
    let set = FeatureSet::open(&out).unwrap();
    assert_eq!((set.labels().get(0, 39), set.labels().get(3, 955)), (Some("Texan towns"), Some("asks, for capital")));
    write("wrong.csv", "feature,label\n0_39,fine\n2_1024,nothing\n");
    let before = std::fs::read(out.join("feature_labels.json")).unwrap();
    refused_with(
        folder.path(),
        &["features", "label", "features", "--import", "wrong.csv"],
        &["wrong.csv", "line 3", "2_1024", "1024 features"],
    );
    write("wrong.json", r#"{"4_0": "nothing"}"#);
    refused_with(
        folder.path(),
        &["features", "label", "features", "--import", "wrong.json"],
        &["wrong.json", "layer 4", "4 layers"],
    );
    assert_eq!(std::fs::read(out.join("feature_labels.json")).unwrap(), before, "nothing was written");
    // Wherever labels are read.
    refused_with(
        folder.path(),
        &["trace", "The capital of the state containing Dallas is", "--labels", "wrong.json"],
        &["wrong.json", "layer 4", "4 layers"],
    );
    std::fs::copy(folder.path().join("wrong.json"), out.join("feature_labels.json")).unwrap();
    refused_with(folder.path(), &["features", "show", "features", "0_39"], &["feature_labels.json", "layer 4"]);
}

/// Features of a small model on a few lines, with a label.
fn collected(replacement: &Replacement, out: &Path) {
    let text = out.parent().unwrap().join("text.txt");
    std::fs::write(&text, "He went to the house and she went to the shop.\n".repeat(3)).unwrap();
    let options = CollectOptions {
        settings: Settings { context: 12, ..Settings::default() },
        format: TextFormat { split: Split::Lines, ..Default::default() },
        ..Default::default()
    };
    collect(replacement, &[Input::File(text)], out, &options, &Job::default()).unwrap();
    std::fs::write(out.join("feature_labels.json"), r#"{"0_1": "something"}"#).unwrap();
}

#[test]
fn labels_of_features_of_another_set_beside_the_transcoders_are_refused_with_both_named() {
    let folder = TempDir::new().unwrap();
    let (model, own) = (fixture("reference/llama_relu/model"), fixture("reference/llama_relu/transcoders"));
    let transcoders = folder.path().join("transcoders");
    copy_folder(&own, &transcoders);
    let features = transcoders.join("features");
    let arguments = |prompt: &'static str| -> Vec<String> {
        let path = |path: &PathBuf| path.display().to_string();
        let slug = ["--slug".to_owned(), "x".to_owned()];
        let names = ["--model".to_owned(), path(&model), "--transcoders".to_owned(), path(&transcoders)];
        [&["trace".to_owned(), prompt.to_owned()][..], &names, &slug].concat()
    };
    let args = arguments("The house");
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    collected(&llama(), &features);
    let output = circuitscope(folder.path(), &args);
    assert!(output.status.success(), "its own: {}", String::from_utf8_lossy(&output.stderr));
    // Of a set of the same shape, by one bias.
    let json = std::fs::read_to_string(features.join("features.json")).unwrap();
    let parsed: Value = serde_json::from_str(&json).unwrap();
    let hash = parsed["subject"]["transcoder_hash"].as_str().unwrap();
    std::fs::write(features.join("features.json"), json.replace(hash, "0123456789abcdef")).unwrap();
    refused_with(folder.path(), &args, &["another transcoder set", "0123456789abcdef", hash]);
    // Of another shape, and without labels: then there is nothing to belong.
    std::fs::remove_dir_all(&features).unwrap();
    let clt = fixture("reference/llama_clt");
    collected(&open_replacement(&clt.join("model"), &clt.join("transcoders")), &features);
    refused_with(folder.path(), &args, &["another transcoder set", "cross-layer", "per-layer"]);
    std::fs::remove_file(features.join("feature_labels.json")).unwrap();
    assert!(circuitscope(folder.path(), &args).status.success());
    // Commands on features say so too, of the model as well.
    let own_features = folder.path().join("own");
    collected(&llama(), &own_features);
    for command in ["show", "search", "label", "export"] {
        let mut args = vec!["features", command, "own"];
        match command {
            "show" => args.extend(["0_1", "--weights"]),
            "search" => args.extend(["The house", "--on-text"]),
            "export" => args.extend(["--format", "neuronpedia", "--out", "out"]),
            _ => {}
        }
        args.extend(["--model", "atlas"]);
        refused_with(folder.path(), &args, &["another transcoder set", "1024 features"]);
    }
    assert_eq!(FeatureId { layer: 0, feature: 1 }.to_string(), "0_1");
}
