//! What features push and feed, against literal versions; labels and their scores.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use circuitscope::features::{
    CollectOptions, FeatureId, FeatureSet, Input, LabelOptions, Settings, Split, TextFormat, VirtualWeights, collect,
    label_features, pushes,
};
use circuitscope::job::Job;
use circuitscope::model::{Activations, ForwardOptions, HookPoint, Norm, NormKind};
use circuitscope::replacement::Replacement;
use circuitscope::transcoder::{InputHook, OutputHook};
use tempfile::TempDir;

use crate::reference::FAMILIES;
use crate::support::{atlas, circuitscope, close, copy_folder, fixture, open_replacement, refused_with, stdout};

fn replacement(family: &str) -> Replacement {
    let folder = fixture("reference").join(family);
    open_replacement(&folder.join("model"), &folder.join("transcoders"))
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

/// Centring (of a LayerNorm) and gain, in f64.
fn through(norm: &Norm, x: &[f64]) -> Vec<f64> {
    let mean = match norm.kind {
        NormKind::Layer => x.iter().sum::<f64>() / x.len() as f64,
        NormKind::Rms => 0.0,
    };
    x.iter().zip(values(&norm.gain)).map(|(x, gain)| (x - mean) * gain).collect()
}

/// What a feature writes to a layer, in the residual stream, without what norms divide by.
fn written(replacement: &Replacement, id: FeatureId, at: usize) -> Vec<f64> {
    let decoder = replacement.transcoders.layers[id.layer].decoder_vecs(&[id.feature], &Device::Cpu).unwrap();
    if at < id.layer || at - id.layer >= decoder.dim(1).unwrap() {
        return vec![0.0; replacement.model.config.d_model];
    }
    let vector = values(&decoder.get(0).unwrap().get(at - id.layer).unwrap());
    match &replacement.model.layer(at).unwrap().post_mlp_norm {
        Some(norm) if replacement.transcoders.output_hook == OutputHook::MlpOut => through(norm, &vector),
        _ => vector,
    }
}

fn ids(replacement: &Replacement) -> impl Iterator<Item = FeatureId> {
    let sizes: Vec<usize> = replacement.transcoders.layers.iter().map(|layer| layer.n_features()).collect();
    sizes.into_iter().enumerate().flat_map(|(layer, n)| (0..n).map(move |feature| FeatureId { layer, feature }))
}

#[test]
fn what_features_push_is_what_a_literal_version_says_on_every_family() {
    for family in FAMILIES {
        let replacement = replacement(family);
        let (n_layers, d_vocab) = (replacement.model.config.n_layers, replacement.model.config.d_vocab);
        let tokens: Vec<u32> = (0..d_vocab as u32).collect();
        let unembedding = values(&replacement.model.unembedding_rows(&tokens).unwrap());
        let d_model = replacement.model.config.d_model;
        let final_norm = replacement.model.final_norm().unwrap();
        for layer in 0..n_layers {
            let features: Vec<usize> = (0..replacement.transcoders.layers[layer].n_features()).step_by(5).collect();
            let found = pushes(&replacement, layer, &features, 7).unwrap();
            assert_eq!(found.len(), features.len());
            for (&feature, found) in features.iter().zip(&found) {
                let mut direction = vec![0.0; d_model];
                for at in layer..n_layers {
                    let part = written(&replacement, FeatureId { layer, feature }, at);
                    direction.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
                }
                let direction = through(&final_norm, &direction);
                let logit = |row: &[f64]| row.iter().zip(&direction).map(|(a, b)| a * b).sum::<f64>();
                let logits: Vec<f64> = unembedding.chunks(d_model).map(logit).collect();
                let mean = logits.iter().sum::<f64>() / d_vocab as f64;
                let mut sorted: Vec<f64> = logits.iter().map(|logit| logit - mean).collect();
                sorted.sort_by(|a, b| b.total_cmp(a));
                let size = sorted[0].abs().max(sorted[d_vocab - 1].abs());
                let name = format!("{family} {layer}_{feature}");
                assert_eq!((found.top.len(), found.bottom.len()), (7, 7), "{name}");
                let ends = found.top.iter().zip(&sorted).chain(found.bottom.iter().zip(sorted.iter().rev()));
                for (push, &expected) in ends {
                    close(push.value.into(), expected, 1e-5 * size, 1e-4, &name);
                    close(push.value.into(), logits[push.token as usize] - mean, 1e-5 * size, 1e-4, &name);
                }
            }
        }
    }
}

#[test]
fn features_feed_and_read_each_other_as_a_literal_version_says_on_every_family() {
    for family in FAMILIES {
        let replacement = replacement(family);
        let tokens = replacement.tokenizer.encode_prompt("The house in the town.").unwrap();
        let weights = VirtualWeights::new(&replacement, &tokens, &Job::default()).unwrap();
        let n_layers = replacement.model.config.n_layers;
        // Means of what norms divide by, from the plain pass.
        let mut kept = Activations::at(HookPoint::all(n_layers));
        replacement
            .model
            .forward(std::slice::from_ref(&tokens), &mut kept, ForwardOptions::of(&Job::default()))
            .unwrap();
        let skipped = replacement.n_excluded(&tokens);
        let inverse = |point: HookPoint| -> f64 {
            let scales = values(kept.need(point).unwrap());
            let scales = &scales[skipped..];
            scales.iter().map(|scale| 1.0 / scale).sum::<f64>() / scales.len() as f64
        };
        let writes_through_norm =
            replacement.transcoders.output_hook == OutputHook::MlpOut && replacement.model.config.post_norms;
        let d_model = replacement.model.config.d_model;
        let identity = Tensor::eye(d_model, DType::F32, &Device::Cpu).unwrap();
        let encoders: Vec<Vec<f64>> = replacement
            .transcoders
            .layers
            .iter()
            .map(|layer| {
                let bias = Tensor::from_vec(
                    (0..layer.n_features()).map(|f| layer.b_enc(f)).collect::<Vec<f32>>(),
                    layer.n_features(),
                    &Device::Cpu,
                )
                .unwrap();
                values(
                    &layer
                        .pre_activations(&identity)
                        .unwrap()
                        .broadcast_sub(&bias)
                        .unwrap()
                        .t()
                        .unwrap()
                        .contiguous()
                        .unwrap(),
                )
            })
            .collect();
        let literal = |from: FeatureId, to: FeatureId| -> f64 {
            let mut residual = vec![0.0; d_model];
            for at in from.layer..to.layer {
                let scale = if writes_through_norm { inverse(HookPoint::Ln2PostScale(at)) } else { 1.0 };
                residual.iter_mut().zip(written(&replacement, from, at)).for_each(|(sum, part)| *sum += part * scale);
            }
            let mut norm = replacement.model.layer(to.layer).unwrap().mlp_norm.clone();
            let input = match replacement.transcoders.input_hook {
                InputHook::ResidMid => residual,
                hook => {
                    if hook == InputHook::Normalized {
                        norm.gain = norm.gain.ones_like().unwrap();
                    }
                    let scale = inverse(HookPoint::Ln2Scale(to.layer));
                    through(&norm, &residual).into_iter().map(|x| x * scale).collect()
                }
            };
            let row = &encoders[to.layer][to.feature * d_model..(to.feature + 1) * d_model];
            row.iter().zip(input).map(|(a, b)| a * b).sum()
        };
        let n_above: usize = replacement.transcoders.layers[1..].iter().map(|layer| layer.n_features()).sum();
        let mut n_checked = 0;
        for id in ids(&replacement).filter(|id| id.layer == 0).step_by(7) {
            let feeds = weights.feeds(id, n_above).unwrap();
            assert_eq!(feeds.len(), n_above, "{family}: every later feature has a weight");
            assert!(feeds.is_sorted_by(|a, b| a.weight.abs() >= b.weight.abs()));
            let size = f64::from(feeds[0].weight.abs());
            for fed in feeds.iter().step_by(11) {
                let name = format!("{family}: {id} to {}", fed.id);
                let exact = literal(id, fed.id);
                close(fed.weight.into(), exact, 1e-5 * size, 1e-4, &name);
                let reads = weights.reads(fed.id, usize::MAX >> 1).unwrap();
                let back = reads.iter().find(|read| read.id == id).unwrap();
                close(back.weight.into(), exact, 1e-5 * size, 1e-4, &name);
                n_checked += 1;
            }
            assert_eq!(weights.feeds(id, 3).unwrap(), feeds[..3]);
        }
        assert!(n_checked > 10, "{family}: {n_checked}");
    }
}

/// Features of the sentences that atlas was made for, with all that labels need.
fn atlas_labels() -> BTreeMap<FeatureId, circuitscope::features::ScoredLabel> {
    let set = FeatureSet::open_named("atlas").unwrap();
    label_features(&atlas(), &set, &LabelOptions::default(), &Job::default()).unwrap()
}

#[test]
fn labels_of_tokens_are_true_of_all_the_text_and_scores_are_of_text_they_were_not_made_from() {
    let set = FeatureSet::open_named("atlas").unwrap();
    let labels = atlas_labels();
    assert!(labels.len() > 2000, "{} labels", labels.len());
    let n_positions = set.manifest().text.n_positions as f64;
    let occurrences = |text: &str| -> usize {
        let is_it: Vec<bool> =
            (0..set.tokens().d_vocab() as u32).map(|t| set.tokens().text(t).trim() == text).collect();
        (0..set.tokens().len()).filter(|&at| is_it[set.tokens().token(at) as usize]).count()
    };
    let mut n_checked = 0;
    for (id, label) in &labels {
        assert!((0.0..=1.0).contains(&label.precision) && (0.0..=1.0).contains(&label.recall), "{id}: {label:?}");
        let mean = 2.0 * label.precision * label.recall / (label.precision + label.recall).max(1e-12);
        close(label.f1, mean, 1e-9, 1e-9, "F1");
        assert_eq!(label.is_clear, label.f1 >= 0.3 && !label.label.starts_with("mixed"), "{id}: {label:?}");
        // A label of one token says where the feature is active, on all of the text too, which was counted when the
        // features were collected.
        let Some(token) = label.label.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else { continue };
        if token.contains('"') || label.n_active < 30 || token.starts_with('…') {
            continue;
        }
        let dashboard = set.dashboard(id.layer, id.feature).unwrap();
        let own = dashboard.tokens.iter().filter(|count| set.tokens().text(count.token).trim() == token);
        let recall = own.map(|count| dashboard.share(count)).sum::<f64>();
        close(label.recall, recall, 0.2, 0.0, &format!("{id} {label:?}: recall on the whole text"));
        let precision = recall * f64::from(dashboard.count) / occurrences(token) as f64;
        close(label.precision, precision, 0.25, 0.0, &format!("{id} {label:?}: precision on the whole text"));
        n_checked += 1;
    }
    assert!(n_checked > 50 && n_positions > 0.0, "{n_checked} labels of one token");
    assert_eq!(labels, atlas_labels(), "the same features have the same labels");
}

/// The pieces of a label in quotes, and what is not.
fn pieces(label: &str) -> (Vec<&str>, String) {
    let parts: Vec<&str> = label.split('"').collect();
    (parts.iter().copied().skip(1).step_by(2).collect(), parts.iter().copied().step_by(2).collect::<Vec<_>>().join(" "))
}

fn words<'a>(texts: &[&'a str]) -> BTreeSet<&'a str> {
    let separators = |c: char| c.is_whitespace() || "/(),".contains(c);
    texts.iter().flat_map(|text| text.split(separators)).filter(|word| !word.is_empty()).collect()
}

/// Whether an automatic label of atlas says what the known one says; "mixed" never does. The known ones name tokens in
/// quotes, places, what is asked for, tasks, and tokens that come next. They agree where
///
/// 1. a word is in both (a token, a place, what is asked for), whatever its case;
/// 2. the known one says "addition", and the automatic one names a number, "+" or "=";
/// 3. the known one names a place, and the automatic one a name that a sentence has together with it (Dallas, Texas);
/// 4. the known one says or pushes a token, and a sentence has it right after what the automatic one names.
fn agree(label: &str, known: &str, sentences: &[String]) -> bool {
    const NOTES: [&str; 14] = [
        "say", "pushes", "carried", "two-hop", "one-hop", "asks", "for", "at", "state", "country", "answer",
        "position", "-", ",",
    ];
    if label.starts_with("mixed") {
        return false;
    }
    let (phrases, plain) = pieces(label);
    let mut named: BTreeSet<&str> = phrases.iter().flat_map(|phrase| phrase.split(' ')).collect();
    if plain.contains("ends of sentences") {
        named.insert(".");
    }
    if plain.contains("numbers") {
        named.insert("1");
    }
    let (known_tokens, known_plain) = pieces(known);
    let known_words = words(&[&known_plain]);
    let is_sum = |word: &&str| word.chars().all(|c| c.is_ascii_digit() || "+=".contains(c));
    if known_words.contains("addition") && named.iter().any(is_sum) {
        return true;
    }
    let known_tokens: BTreeSet<&str> = known_tokens.iter().flat_map(|token| token.split(' ')).collect();
    let content = known_words.iter().copied().filter(|word| !NOTES.contains(word)).chain(known_tokens);
    let content: BTreeSet<String> = content.map(str::to_lowercase).collect();
    if named.iter().any(|word| content.contains(&word.to_lowercase())) {
        return true;
    }
    let is_name = |word: &&&str| word.starts_with(char::is_uppercase);
    let holds = |phrase: &str| sentences.iter().any(|sentence| sentence.contains(&format!(" {phrase} ")));
    let together =
        |a: &str, b: &str| sentences.iter().any(|s| s.contains(&format!(" {a} ")) && s.contains(&format!(" {b} ")));
    if known_words.iter().filter(is_name).any(|place| named.iter().filter(is_name).any(|name| together(place, name))) {
        return true;
    }
    let next = ["say ", "pushes "].iter().find_map(|verb| known_plain.split_once(verb));
    next.is_some_and(|(_, next)| {
        let next: Vec<&str> = next.split('/').map(str::trim).collect();
        phrases.iter().any(|phrase| next.iter().any(|token| holds(&format!("{phrase} {token}"))))
    })
}

/// Sentences with spaces around every mark, as tokens have them.
fn spaced_sentences() -> Vec<String> {
    let text = std::fs::read_to_string(fixture("atlas/sentences.txt")).unwrap();
    let spaced = |line: &str| {
        let spaced: String =
            line.chars().flat_map(|c| if ".,?!=+:".contains(c) { vec![' ', c, ' '] } else { vec![c] }).collect();
        format!(" {} ", spaced.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    text.lines().map(spaced).collect()
}

#[test]
fn automatic_labels_of_atlas_agree_with_the_known_ones_for_four_in_five_features() {
    let bytes = std::fs::read(fixture("atlas/transcoders/feature_labels.json")).unwrap();
    let known: BTreeMap<String, String> = serde_json::from_slice(&bytes).unwrap();
    let sentences = spaced_sentences();
    let pairs: Vec<(String, String, &String)> = atlas_labels()
        .into_iter()
        .filter_map(|(id, label)| Some((id.to_string(), label.label, known.get(&id.to_string())?)))
        .collect();
    let n = pairs.len();
    assert!(n > 2500, "{n} features have both labels");
    let differ: Vec<String> = pairs
        .iter()
        .filter(|(_, label, known)| !agree(label, known, &sentences))
        .map(|(id, label, known)| format!("{id}: {label} against {known}"))
        .collect();
    assert!(5 * (n - differ.len()) >= 4 * n, "{} of {n} do not agree:\n{}", differ.len(), differ.join("\n"));
    // The rule tells labels apart: those of other features seldom agree.
    let chance = (0..n).filter(|&i| agree(&pairs[i].1, pairs[(i + n / 2) % n].2, &sentences)).count();
    assert!(chance * 6 < n, "{chance} of {n} agree with another feature's label");
}

const LLAMA: &str = "reference/llama_relu";

/// A model's transcoders with features collected beside them.
fn set_with_features(folder: &TempDir) -> PathBuf {
    let transcoders = folder.path().join("transcoders");
    copy_folder(&fixture(LLAMA).join("transcoders"), &transcoders);
    let line = |i: usize| format!("{i} {} went {} to the house {}.\n", i * 7919 % 1009, i * 31 % 97, i % 13);
    std::fs::write(folder.path().join("text.txt"), (0..400).map(line).collect::<String>()).unwrap();
    let replacement = open_replacement(&fixture(LLAMA).join("model"), &transcoders);
    let options = CollectOptions {
        settings: Settings { context: 32, ..Default::default() },
        format: TextFormat { split: Split::Lines, ..Default::default() },
        ..Default::default()
    };
    let input = Input::File(folder.path().join("text.txt"));
    collect(&replacement, &[input], &transcoders.join("features"), &options, &Job::default()).unwrap();
    transcoders
}

fn json(path: &Path) -> BTreeMap<String, serde_json::Value> {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn labels_beside_the_transcoders_are_found_and_those_by_hand_go_first() {
    let folder = TempDir::new().unwrap();
    let transcoders = set_with_features(&folder);
    let model = fixture(LLAMA).join("model");
    let output = circuitscope(
        folder.path(),
        &["features", "label", "transcoders", "--model", model.to_str().unwrap(), "--min-f1", "0.2"],
    );
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && message.contains("features labelled"), "{message}");
    let labels = json(&transcoders.join("features/feature_labels.json"));
    let scores = json(&transcoders.join("features/label_scores.json"));
    assert!(labels.len() > 10, "{labels:?}");
    assert_eq!(labels.keys().collect::<Vec<_>>(), scores.keys().collect::<Vec<_>>());
    for (id, label) in &labels {
        assert_eq!(&scores[id]["label"], label);
    }
    let (first, label) = labels.first_key_value().unwrap();
    let id: FeatureId = first.parse().unwrap();
    let opened = open_replacement(&model, &transcoders);
    let found = |replacement: &Replacement| {
        replacement.transcoders.labels.get(id.layer as u32, id.feature as u32).map(str::to_owned)
    };
    assert_eq!(found(&opened).as_deref(), label.as_str());
    let shown = stdout(&circuitscope(folder.path(), &["features", "show", "transcoders", first]));
    assert!(shown.contains(label.as_str().unwrap()) && shown.contains("on held-out text"), "{shown}");
    std::fs::write(transcoders.join("feature_labels.json"), format!("{{\"{first}\": \"by hand\"}}")).unwrap();
    assert_eq!(found(&open_replacement(&model, &transcoders)).as_deref(), Some("by hand"));
    let shown = stdout(&circuitscope(folder.path(), &["features", "show", "transcoders", first]));
    assert!(shown.contains("by hand") && !shown.contains("held-out"), "{shown}");
    // Another model's features.
    let other = fixture("reference/llama_clt");
    let (model, set) = (other.join("model"), other.join("transcoders"));
    let args = ["--model", model.to_str().unwrap(), "--transcoders", set.to_str().unwrap()];
    let label = ["features", "label", "transcoders"];
    refused_with(folder.path(), &[&label[..], &args].concat(), &["another transcoder set", "cross-layer"]);
    refused_with(folder.path(), &["features", "label", "atlas"], &["--out"]);
    refused_with(folder.path(), &["features", "label", "atlas", "--out", "o", "--min-f1", "3"], &["--min-f1"]);
}

#[test]
fn show_says_what_a_feature_pushes_reads_and_feeds() {
    let folder = TempDir::new().unwrap();
    let output = circuitscope(folder.path(), &["features", "show", "atlas", "1_224", "--weights"]);
    let text = stdout(&output);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for part in ["pushes up", "pushes down", "reads, by weights", "feeds, by weights"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    let json = stdout(&circuitscope(folder.path(), &["features", "show", "atlas", "1_224", "--format", "json"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["weights"]["top"].as_array().unwrap().len(), 10);
    assert!(json["weights"].get("reads").is_none(), "only where asked for");
    // Features whose model is gone are shown without.
    let transcoders = set_with_features(&folder);
    std::fs::remove_file(transcoders.join("config.yaml")).unwrap();
    let output = circuitscope(folder.path(), &["features", "show", "transcoders/features", "0_1"]);
    assert!(output.status.success() && !stdout(&output).contains("pushes up"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("needs the model"));
    refused_with(folder.path(), &["features", "show", "transcoders/features", "0_1", "--weights"], &["transcoders"]);
}
