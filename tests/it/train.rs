//! Training: same bytes however it is run, folders that open, and clear errors.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;
use circuitscope::corpus::{Input, Split, TextFormat};
use circuitscope::job::{CancelToken, Job};
use circuitscope::tracer::{BaseModel, DeviceChoice};
use circuitscope::train::{InTheWay, Precision, SetSize, Subject, TrainOptions, Trained, train};
use circuitscope::transcoder::{self, ActivationFunction, Kind, TranscoderSet};
use circuitscope::weights::{Checkpoint, Folder};
use tempfile::TempDir;

use crate::reference::FAMILIES;
use crate::support::{circuitscope, fixture, refused_with};

fn sentences() -> Vec<Input> {
    vec![Input::File(fixture("atlas").join("sentences.txt"))]
}

fn options() -> TrainOptions {
    TrainOptions {
        sets: vec![SetSize { n_features: 48, l0: 4.0 }],
        n_tokens: Some(1500),
        batch: 100,
        context: 32,
        replay: 2,
        format: TextFormat { split: Split::Lines, ..Default::default() },
        ..Default::default()
    }
}

fn atlas() -> BaseModel {
    BaseModel::open("atlas", DeviceChoice::Cpu).unwrap()
}

fn run(
    base: &BaseModel,
    out: &Path,
    in_the_way: InTheWay,
    options: &TrainOptions,
    job: &Job,
) -> circuitscope::Result<Trained> {
    let subject =
        Subject { model: &base.model, tokenizer: &base.tokenizer, source: &base.source, from: None, from_source: "" };
    train(&subject, &sentences(), out, in_the_way, options, job, &mut |_| {})
}

/// Every file of a folder but the log, which tells times.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_file() && !name.starts_with("log") && !name.starts_with("training") {
            all.insert(name, std::fs::read(&path).unwrap());
        } else if path.is_dir() {
            all.extend(files(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        }
    }
    all
}

fn opened(base: &BaseModel, folder: &Path) -> TranscoderSet {
    let folder = Folder::open(folder.to_str().unwrap()).unwrap();
    let config = &base.model.config;
    transcoder::open(&folder, config.n_layers, config.d_model, &Device::Cpu).unwrap()
}

#[test]
fn interrupted_and_resumed_training_writes_the_same_bytes_as_training_in_one_go() {
    let (base, folder) = (atlas(), TempDir::new().unwrap());
    // A small chunk, so that there are several and interruptions fall between and within them.
    let options = TrainOptions { memory: 400 * 1024, keep_every_secs: 1e9, ..options() };
    let whole = folder.path().join("whole");
    let trained = run(&base, &whole, InTheWay::Refuse, &options, &Job::default()).unwrap();
    assert!(trained.n_steps > 20, "{trained:?}");
    let parts = folder.path().join("parts");
    let mut in_the_way = InTheWay::Refuse;
    for stop_at in [7, 8, 19] {
        let (cancel, mut seen) = (CancelToken::default(), 0);
        let job = Job::default().with_cancel(cancel.clone());
        let subject = Subject {
            model: &base.model,
            tokenizer: &base.tokenizer,
            source: &base.source,
            from: None,
            from_source: "",
        };
        // Log lines come every ten steps; cancelled at one of them, the run ends before the next step.
        let stopped = train(&subject, &sentences(), &parts, in_the_way, &options, &job, &mut |progress| {
            seen += 1;
            if progress.line.step >= stop_at || seen > 3 {
                cancel.cancel();
            }
        });
        assert!(matches!(stopped, Err(circuitscope::Error::Cancelled)), "{stopped:?}");
        assert!(!parts.join("config.yaml").exists());
        in_the_way = InTheWay::Resume;
    }
    let resumed = run(&base, &parts, InTheWay::Resume, &options, &Job::default()).unwrap();
    assert!(resumed.resumed_from.is_some());
    assert_eq!(files(&whole).keys().collect::<Vec<_>>(), files(&parts).keys().collect::<Vec<_>>());
    assert!(files(&whole) == files(&parts), "the bytes differ");
    assert!(!parts.join("training").exists(), "checkpoints go when the set is there");
}

#[test]
fn training_writes_the_same_bytes_with_any_number_of_threads() {
    let folder = TempDir::new().unwrap();
    let mut all = Vec::new();
    for threads in ["1", "2", "3"] {
        let out = folder.path().join(threads);
        let args = ["train", "--model", "atlas", "--features", "40", "--l0", "4", "--tokens", "900", "--batch", "100"];
        let rest =
            ["--replay", "1", "--context", "32", "--quiet", "--threads", threads, "--out", out.to_str().unwrap()];
        let output = circuitscope(folder.path(), &[&args[..], &rest[..]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(out.join("training.svg").is_file());
        all.push(files(&out));
    }
    assert!(all[0] == all[1] && all[1] == all[2]);
}

#[test]
fn trained_sets_open_and_as_many_features_are_active_as_were_wanted() {
    let (base, folder) = (atlas(), TempDir::new().unwrap());
    let options = TrainOptions {
        sets: vec![SetSize { n_features: 48, l0: 4.0 }, SetSize { n_features: 64, l0: 6.0 }],
        n_tokens: Some(4000),
        ..options()
    };
    let trained = run(&base, folder.path(), InTheWay::Refuse, &options, &Job::default()).unwrap();
    assert_eq!(trained.sets.len(), 2);
    for set in &trained.sets {
        let opened = opened(&base, &set.folder);
        assert_eq!((opened.kind, opened.model_name.as_str()), (Kind::PerLayer, "atlas"));
        for (layer, transcoder) in opened.layers.iter().enumerate() {
            assert_eq!(transcoder.n_features(), set.size.n_features);
            let ActivationFunction::JumpRelu { threshold } = transcoder.activation() else { panic!() };
            assert!(threshold.iter().all(|&threshold| threshold > 0.0));
            // Decoder rows have length 1, as far as 16 bits say.
            let rows = transcoder.decoder_vecs(&[0, 1, 2], &Device::Cpu).unwrap().squeeze(1).unwrap();
            for row in rows.to_vec2::<f32>().unwrap() {
                let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
                assert!((norm - 1.0).abs() < 0.01, "{norm}");
            }
            // Thresholds were set on other tokens of the same documents, some 450 of them.
            assert!((set.l0[layer] - set.size.l0).abs() < 0.15 * set.size.l0, "{:?}", set.l0);
            assert!(set.fvu[layer] > 0.0 && set.fvu[layer] < 1.0, "{:?}", set.fvu);
        }
    }
}

#[test]
fn every_kind_of_set_is_trained_on_every_family_and_opens() {
    let folder = TempDir::new().unwrap();
    for family in FAMILIES {
        let model = fixture("reference").join(family).join("model");
        let base = BaseModel::open(model.to_str().unwrap(), DeviceChoice::Cpu).unwrap();
        let text = folder.path().join("text.txt");
        std::fs::write(&text, &std::fs::read(fixture("atlas").join("sentences.txt")).unwrap()[..12_000]).unwrap();
        let subject = Subject {
            model: &base.model,
            tokenizer: &base.tokenizer,
            source: &base.source,
            from: None,
            from_source: "",
        };
        let small = TrainOptions {
            sets: vec![SetSize { n_features: 16, l0: 3.0 }],
            n_tokens: Some(150),
            batch: 50,
            context: 12,
            replay: 1,
            precision: Precision::F32,
            ..options()
        };
        use circuitscope::train::Activation::{JumpRelu, Relu, TopK};
        for (at, (activation, skip, cross_layer)) in
            [(JumpRelu, false, false), (TopK, true, false), (Relu, false, false), (JumpRelu, false, true)]
                .into_iter()
                .enumerate()
        {
            let out = folder.path().join(format!("{family}-{at}"));
            let options = TrainOptions { activation, skip, cross_layer, ..small.clone() };
            train(
                &subject,
                &[Input::File(text.clone())],
                &out,
                InTheWay::Refuse,
                &options,
                &Job::default(),
                &mut |_| {},
            )
            .unwrap_or_else(|e| panic!("{family} {activation:?}: {e}"));
            let set = opened(&base, &out);
            assert_eq!(set.kind, if cross_layer { Kind::CrossLayer } else { Kind::PerLayer });
            assert_eq!(set.layers[0].w_skip().is_some(), skip);
            let right = match (activation, set.layers[0].activation()) {
                (JumpRelu, ActivationFunction::JumpRelu { .. }) | (Relu, ActivationFunction::Relu) => true,
                (TopK, ActivationFunction::TopK { k }) => *k == 3,
                _ => false,
            };
            assert!(right, "{family}");
        }
    }
}

#[test]
fn a_set_goes_on_being_itself_when_training_begins_with_it() {
    let (base, folder) = (atlas(), TempDir::new().unwrap());
    let out = folder.path().join("from");
    let args = ["train", "--from", "atlas", "--l0", "10", "--tokens", "600", "--batch", "100", "--replay", "1"];
    let rest = ["--lr", "1e-6", "--precision", "f32", "--quiet", "--out", out.to_str().unwrap()];
    let output = circuitscope(folder.path(), &[&args[..], &rest[..]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let before = transcoder::open(
        &circuitscope::weights::atlas_transcoders(),
        base.model.config.n_layers,
        base.model.config.d_model,
        &Device::Cpu,
    )
    .unwrap();
    let after = opened(&base, &out);
    assert_eq!((before.input_hook, before.output_hook), (after.input_hook, after.output_hook));
    let row = |set: &TranscoderSet| {
        set.layers[0].decoder_vecs(&[39], &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let (before, after) = (row(&before), row(&after));
    let scale = before.iter().map(|v| v.abs()).fold(0.0, f32::max);
    assert!(before.iter().zip(&after).all(|(a, b)| (a - b).abs() < 1e-3 * scale), "{before:?} {after:?}");
    // What is active are the features that were, and they explain what they did.
    let log = std::fs::read_to_string(out.join("log.jsonl")).unwrap();
    let first: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert!(first["sets"][0]["fvu"].as_f64().unwrap() < 0.1, "{first}");
    assert!((first["sets"][0]["l0"].as_f64().unwrap() - 10.0).abs() < 0.1, "{first}");
}

#[test]
fn sae_lens_folders_have_its_names_and_shapes() {
    let (base, folder) = (atlas(), TempDir::new().unwrap());
    let options = TrainOptions { folder: circuitscope::train::FolderFormat::SaeLens, ..options() };
    run(&base, folder.path(), InTheWay::Refuse, &options, &Job::default()).unwrap();
    let d = base.model.config.d_model;
    for layer in 0..base.model.config.n_layers {
        let folder = folder.path().join(format!("layer_{layer}"));
        let config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.join("cfg.json")).unwrap()).unwrap();
        assert_eq!(config["architecture"], "jumprelu_transcoder");
        assert_eq!((config["d_in"].as_u64(), config["d_sae"].as_u64()), (Some(d as u64), Some(48)));
        let weights = Checkpoint::open_safetensors(&[folder.join("sae_weights.safetensors")]).unwrap();
        for (name, shape) in
            [("W_enc", vec![d, 48]), ("W_dec", vec![48, d]), ("b_enc", vec![48]), ("threshold", vec![48])]
        {
            assert_eq!(weights.shape(name).unwrap(), shape, "{name}");
        }
    }
}

#[test]
fn what_cannot_be_trained_is_refused_with_both_sides_named() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("empty.txt"), "").unwrap();
    std::fs::write(path("binary.txt"), [0xff, 0xfe, 0xff]).unwrap();
    std::fs::write(path("one.txt"), "One sentence.").unwrap();
    let text = fixture("atlas").join("sentences.txt").to_str().unwrap().to_owned();
    let out = path("out");
    for (args, parts) in [
        (vec!["--text", &path("empty.txt")], vec!["empty.txt", "held out"]),
        (vec!["--text", &path("binary.txt")], vec!["binary.txt", "not UTF-8"]),
        (vec!["--text", &path("one.txt")], vec!["one.txt", "--split"]),
        (vec!["--text", &path("missing.txt")], vec!["missing.txt"]),
        (vec!["--text", &text, "--features", "0"], vec!["0 features"]),
        (vec!["--text", &text, "--l0", "2000"], vec!["2000", "2048"]),
        (vec!["--text", &text, "--activation", "topk", "--l0", "3.5"], vec!["3.5", "whole"]),
        (vec!["--text", &text, "--context", "100000"], vec!["100000"]),
        (vec!["--text", &text, "--memory", "1KB", "--split", "lines"], vec!["MB", "2048"]),
        (vec!["--text", &text, "--minutes", "0"], vec!["0 minutes"]),
        (vec!["--text", &text, "--clt", "--skip"], vec!["skip"]),
        (vec!["--text", &text, "--format", "sae-lens", "--activation", "topk"], vec!["topk", "SAELens"]),
        (vec!["--text", &text, "--format", "sae-lens", "--clt"], vec!["cross-layer", "SAELens"]),
        (vec!["--text", &text, "--resume"], vec!["no unfinished training"]),
        (vec!["--text", &text, "--transcoders", "x"], vec!["--from"]),
        (vec!["--text", &text, "--features", "9000000"], vec!["9000000"]),
    ] {
        let all: Vec<&str> = ["train", "--out", &out].into_iter().chain(args.iter().copied()).collect();
        refused_with(folder.path(), &all, &parts);
        assert!(!folder.path().join("out").join("config.yaml").exists());
    }
    std::fs::create_dir_all(&out).unwrap();
    std::fs::write(folder.path().join("out").join("config.yaml"), "x").unwrap();
    refused_with(folder.path(), &["train", "--out", &out], &["holds transcoders", "--restart"]);
}

#[test]
fn training_is_not_resumed_with_other_settings() {
    let (base, folder) = (atlas(), TempDir::new().unwrap());
    let cancel = CancelToken::default();
    let job = Job::default().with_cancel(cancel.clone());
    let subject =
        Subject { model: &base.model, tokenizer: &base.tokenizer, source: &base.source, from: None, from_source: "" };
    let stopped =
        train(&subject, &sentences(), folder.path(), InTheWay::Refuse, &options(), &job, &mut |_| cancel.cancel());
    assert!(matches!(stopped, Err(circuitscope::Error::Cancelled)));
    let other = TrainOptions { seed: 5, ..options() };
    let message = run(&base, folder.path(), InTheWay::Resume, &other, &Job::default()).unwrap_err();
    let text = circuitscope::cli::error_text(&message);
    assert!(text.contains("seed") && text.contains('5'), "{text}");
    let message = run(&base, folder.path(), InTheWay::Refuse, &options(), &Job::default()).unwrap_err().to_string();
    assert!(message.contains("--resume"), "{message}");
    run(&base, folder.path(), InTheWay::Restart, &options(), &Job::default()).unwrap();
}
