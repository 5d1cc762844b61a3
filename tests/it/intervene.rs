//! Interventions against circuit-tracer: every `interventions` and `generation` entry of the cases.

use std::collections::BTreeMap;

use circuitscope::graph::FeatureId;
use circuitscope::intervene::{
    Change, CompareOptions, FeatureGroup, GenerateOptions, Intervention, Mode, Original, Outcome, Positions, Sweep,
};
use circuitscope::job::Job;
use circuitscope::replacement::ActiveFeature;
use serde_json::Value;

use crate::reference::{Case, FAMILIES, cases_with_interventions};
use crate::support::{atlas, close, close_all, fixture};

fn intervention(json: &Value) -> Intervention {
    let number = |key: &str| json[key].as_u64().unwrap() as usize;
    let positions = match &json["position"] {
        Value::Array(slice) => match (slice[0].as_u64().unwrap() as usize, slice[1].as_u64()) {
            (start, Some(end)) => Positions::Range { start, end: end as usize },
            (start, None) => Positions::From(start),
        },
        pos => Positions::At(pos.as_u64().unwrap() as usize),
    };
    let change = Change::Set(json["value"].as_f64().unwrap() as f32);
    Intervention { layer: number("layer"), feature: number("feature"), positions, change }
}

pub fn interventions(json: &Value) -> Vec<Intervention> {
    json["interventions"].as_array().unwrap().iter().map(intervention).collect()
}

pub fn mode(json: &Value) -> Mode {
    match (json["constrained_layers"].as_array(), json["freeze_attention"].as_bool()) {
        (Some(range), _) => Mode::Constrained(range[0].as_u64().unwrap() as usize..range[1].as_u64().unwrap() as usize),
        (None, Some(true)) => Mode::FrozenAttention,
        (None, _) => Mode::Free,
    }
}

#[test]
fn interventions_agree_with_the_reference() {
    let mut n_checked: BTreeMap<String, usize> = BTreeMap::new();
    for case in &cases_with_interventions() {
        let replacement = case.replacement();
        let tokens = replacement.tokenizer.encode_prompt(case.prompt()).unwrap();
        let original = Original::run(&replacement, &tokens, &Job::default()).unwrap();
        for json in case.json["interventions"].as_array().unwrap() {
            let name = json["name"].as_str().unwrap();
            let outcome = original.intervene(&[interventions(json)], &mode(json), &Job::default()).unwrap().remove(0);
            let at = format!("{}: {name}", case.name);
            let expected = case.f32s(&format!("intervention.{name}.logits"));
            close_all(&outcome.logits, &expected, 1e-3, 1e-3, &format!("{at}: logits"));
            let expected = case.f32s(&format!("intervention.{name}.preactivations"));
            close_all(&outcome.pre_activations, &expected, 1e-3, 1e-3, &format!("{at}: pre-activations"));
            *n_checked.entry(case.family().to_owned()).or_default() += 1;
        }
    }
    for family in FAMILIES {
        assert!(n_checked.get(family).is_some_and(|&n| n >= 3), "{family}: {n_checked:?} interventions checked");
    }
}

#[test]
fn continuations_agree_with_the_reference_token_by_token() {
    let mut n_checked = 0;
    for case in cases_with_interventions().iter().filter(|case| case.json["generation"].is_array()) {
        let replacement = case.replacement();
        let tokens = replacement.tokenizer.encode_prompt(case.prompt()).unwrap();
        let original = Original::run(&replacement, &tokens, &Job::default()).unwrap();
        for json in case.json["generation"].as_array().unwrap() {
            let expected: Vec<u32> =
                json["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect();
            let options = GenerateOptions { n_tokens: expected.len() - tokens.len(), ..Default::default() };
            let generated = original.generate(&interventions(json), &mode(json), &options, &Job::default()).unwrap();
            assert_eq!([&tokens[..], &generated].concat(), expected, "{}: {}", case.name, json["name"]);
            assert!(!generated.is_empty(), "{}: {}", case.name, json["name"]);
            n_checked += 1;
        }
    }
    assert!(n_checked >= 1, "no continuation was compared");
}

/// Runs `check` on the first prompt of every family, with an intervention on a few of its features.
fn with_each_family(check: impl Fn(&str, &Original, &[Intervention])) {
    for case in &cases_with_interventions() {
        let replacement = case.replacement();
        let tokens = replacement.tokenizer.encode_prompt(case.prompt()).unwrap();
        let original = Original::run(&replacement, &tokens, &Job::default()).unwrap();
        let mut changes = three_features(case);
        // The last one is open-ended, so that generated tokens are changed too.
        changes[2].positions = Positions::From(tokens.len() - 3);
        check(&case.name, &original, &changes);
    }
}

fn three_features(case: &Case) -> Vec<Intervention> {
    let all = case.json["interventions"].as_array().unwrap();
    interventions(all.iter().find(|json| json["name"] == "negate_three_free").unwrap())
}

fn all_modes(original: &Original) -> [Mode; 4] {
    let n_layers = original.replacement.model.config.n_layers;
    [Mode::Free, Mode::FrozenAttention, Mode::Constrained(1..n_layers - 1), Mode::Direct]
}

fn likeliest(outcome: &Outcome) -> u32 {
    let top = outcome.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    outcome.logits.iter().position(|&l| l == top).unwrap() as u32
}

#[test]
fn alternatives_of_a_batch_do_not_see_each_other() {
    with_each_family(|name, original, changes| {
        let alternatives = [changes.to_vec(), vec![changes[0]], vec![], vec![changes[2], changes[1]]];
        for mode in all_modes(original) {
            let together = original.intervene(&alternatives, &mode, &Job::default()).unwrap();
            for (i, outcome) in together.iter().enumerate() {
                let alone = original.intervene(&alternatives[i..=i], &mode, &Job::default()).unwrap().remove(0);
                let at = format!("{name}: {mode}, alternative {i}");
                close_all(&outcome.logits, &alone.logits, 1e-4, 1e-4, &at);
                close_all(&outcome.pre_activations, &alone.pre_activations, 1e-4, 1e-4, &at);
            }
        }
    });
}

/// The table of features reads activations off the pre-activations of all; groups are read one by one, from the encoder.
#[test]
fn activations_after_a_change_are_read_in_two_ways_alike() {
    with_each_family(|name, original, changes| {
        let id = |f: &ActiveFeature| FeatureId { layer: f.layer as u32, pos: f.pos as u32, feature: f.feature as u32 };
        let step = original.features.all.len().div_ceil(40);
        let groups: Vec<FeatureGroup> = original
            .features
            .all
            .iter()
            .step_by(step)
            .map(|f| FeatureGroup { name: String::new(), members: vec![(id(f), None)] })
            .collect();
        let (mut n_off, mut n_on) = (0, 0);
        for mode in all_modes(original) {
            let alternatives = [vec![], changes.to_vec()];
            let outcomes = original.intervene_reading(&alternatives, &mode, &groups, &Job::default()).unwrap();
            for (alternative, outcome) in outcomes.iter().enumerate() {
                for (group, (feature, (&activation, &z))) in outcome.groups.iter().zip(
                    original
                        .features
                        .all
                        .iter()
                        .zip(outcome.activations.iter().zip(&outcome.pre_activations))
                        .step_by(step),
                ) {
                    let at = format!("{name}: {mode}, alternative {alternative}, {:?}", id(feature));
                    close(f64::from(group.before), f64::from(feature.value), 1e-3, 1e-3, &at);
                    assert!(
                        activation == 0.0 || (activation - z).abs() <= 1e-3 + 1e-3 * z.abs(),
                        "{at}: {activation} of {z}"
                    );
                    // A feature at its threshold may be on for one and off for the other.
                    let is_at_threshold = (group.after == 0.0) != (activation == 0.0);
                    if !group.is_changed && !is_at_threshold {
                        close(f64::from(group.after), f64::from(activation), 1e-3, 1e-3, &at);
                        if activation == 0.0 { n_off += 1 } else { n_on += 1 }
                    }
                }
            }
        }
        assert!(n_on >= 50, "{name}: {n_on} on, {n_off} off");
    });
}

#[test]
fn no_change_changes_nothing_in_any_mode() {
    with_each_family(|name, original, changes| {
        let unchanged = Intervention { change: Change::Scale(1.0), positions: Positions::All, ..changes[0] };
        for mode in all_modes(original) {
            for outcome in original.intervene(&[vec![], vec![unchanged]], &mode, &Job::default()).unwrap() {
                close_all(&outcome.logits, &original.logits, 1e-4, 1e-4, &format!("{name}: {mode}"));
            }
        }
    });
}

#[test]
fn later_changes_replace_earlier_ones_at_the_same_place() {
    with_each_family(|name, original, changes| {
        let other = Intervention { change: Change::Set(7.0), positions: Positions::All, ..changes[0] };
        let outcomes = original
            .intervene(&[vec![other, changes[0]], vec![changes[0], other], vec![other]], &Mode::Free, &Job::default())
            .unwrap();
        let mut both = Vec::new();
        // All positions but the one that the later change takes.
        for pos in (1..original.n_pos()).filter(|&pos| changes[0].positions != Positions::At(pos)) {
            both.push(Intervention { positions: Positions::At(pos), ..other });
        }
        both.push(changes[0]);
        let expected = original.intervene(&[both], &Mode::Free, &Job::default()).unwrap().remove(0);
        close_all(&outcomes[0].logits, &expected.logits, 1e-4, 1e-4, name);
        close_all(&outcomes[1].logits, &outcomes[2].logits, 1e-4, 1e-4, name);
    });
}

/// Continues one token at a time, each from a whole run over everything so far: what a cache must not change.
fn continued_slowly(original: &Original, n_tokens: usize, next: impl Fn(&Original) -> u32) -> Vec<u32> {
    let mut tokens = original.tokens.clone();
    for _ in 0..n_tokens {
        tokens.push(next(&Original::run(original.replacement, &tokens, &Job::default()).unwrap()));
    }
    tokens.split_off(original.n_pos())
}

#[test]
fn continuations_with_a_cache_are_those_without_one() {
    with_each_family(|name, original, changes| {
        let options = GenerateOptions { n_tokens: 5, ..Default::default() };
        let fast = original.generate(changes, &Mode::Free, &options, &Job::default()).unwrap();
        let slow = continued_slowly(original, fast.len(), |run| {
            likeliest(&run.intervene(&[changes.to_vec()], &Mode::Free, &Job::default()).unwrap()[0])
        });
        assert_eq!(fast, slow, "{name}");
    });
}

#[test]
fn kept_holds_are_those_of_the_unchanged_model_over_the_same_tokens() {
    with_each_family(|name, original, changes| {
        let options = GenerateOptions { n_tokens: 5, keep_frozen: true, ..Default::default() };
        for mode in &all_modes(original)[1..] {
            let fast = original.generate(changes, mode, &options, &Job::default()).unwrap();
            let slow = continued_slowly(original, fast.len(), |run| {
                likeliest(&run.intervene(&[changes.to_vec()], mode, &Job::default()).unwrap()[0])
            });
            assert_eq!(fast, slow, "{name}: {mode}");
        }
    });
}

#[test]
fn sampling_repeats_with_its_seed_and_is_greedy_at_temperature_zero() {
    let replacement = atlas();
    let tokens = replacement.tokenizer.encode_prompt("The bird of the state containing").unwrap();
    let original = Original::run(&replacement, &tokens, &Job::default()).unwrap();
    let generate = |temperature, top_p, seed| {
        let options = GenerateOptions { n_tokens: 8, temperature, top_p, seed, keep_frozen: false };
        original.generate(&[], &Mode::Free, &options, &Job::default()).unwrap()
    };
    assert_eq!(generate(Some(5.0), Some(0.9), 3), generate(Some(5.0), Some(0.9), 3));
    assert!((0..8).any(|seed| generate(Some(5.0), None, seed) != generate(None, None, 0)));
    assert_eq!(generate(Some(0.0), None, 1), generate(None, None, 2));
}

/// `[[layer, position, feature, value], ..]`
fn settings(json: &Value) -> Vec<Intervention> {
    let number = |entry: &Value, i: usize| entry[i].as_u64().unwrap() as usize;
    let setting = |entry: &Value| Intervention {
        layer: number(entry, 0),
        positions: Positions::At(number(entry, 1)),
        feature: number(entry, 2),
        change: Change::Set(entry[3].as_f64().unwrap() as f32),
    };
    json.as_array().unwrap().iter().map(setting).collect()
}

#[test]
fn swapped_places_answer_as_often_as_reported() {
    let replacement = atlas();
    let json: Value = serde_json::from_slice(&std::fs::read(fixture("atlas/swaps.json")).unwrap()).unwrap();
    for swap in json["swaps"].as_array().unwrap() {
        let name = swap["name"].as_str().unwrap();
        let mode = if name.contains("frozen attention") { Mode::FrozenAttention } else { Mode::Free };
        let (mut n_success, mut n_gone, mut n_gone_reported) = (0, 0, 0);
        for result in swap["results"].as_array().unwrap() {
            // An answer of several words shows by its first.
            let word = |key: &str| result[key].as_str().unwrap().split(' ').next().unwrap().to_owned();
            let tokens = replacement.tokenizer.encode_prompt(result["prompt"].as_str().unwrap()).unwrap();
            let original = Original::run(&replacement, &tokens, &Job::default()).unwrap();
            let (off, on) = (settings(&result["off"]), settings(&result["on"]));
            let outcomes = original.intervene(&[[off.clone(), on].concat(), off], &mode, &Job::default()).unwrap();
            let [swapped, off_only] = [0, 1].map(|i| replacement.tokenizer.token(likeliest(&outcomes[i])));
            n_success += usize::from(swapped.trim() == word("want"));
            n_gone += usize::from(off_only.trim() != word("before"));
            n_gone_reported += usize::from(result["top3_off_only"][0][0].as_str().unwrap() != word("before"));
            assert_eq!(swapped.trim(), result["top3"][0][0].as_str().unwrap(), "{name}: {}", result["prompt"]);
        }
        assert_eq!(n_success, swap["success"].as_u64().unwrap() as usize, "{name}");
        assert_eq!(n_gone, n_gone_reported, "{name}: answers gone");
        println!("{name}: {n_success}/{} swapped, {n_gone} gone with the own features off", swap["n"]);
    }
}

#[test]
fn a_comparison_follows_the_target_and_counts_the_distance() {
    let replacement = atlas();
    let prompt = "The capital of the state containing Dallas is";
    let tokens = replacement.tokenizer.encode_prompt(prompt).unwrap();
    let original = Original::run(&replacement, &tokens, &Job::default()).unwrap();
    let off: Vec<Intervention> = ["0_39_7", "1_224_7"]
        .map(|spec| spec.parse::<circuitscope::intervene::FeatureSpec>().unwrap().changed(Change::Set(0.0)))
        .to_vec();
    let outcomes = original.intervene(&[off, vec![]], &Mode::Free, &Job::default()).unwrap();
    let austin = original.compare(&outcomes[0], &CompareOptions::default()).unwrap();
    assert_eq!(austin.target.text, " Austin");
    assert!(austin.target.probability_before > 0.99 && austin.target.probability_after < 0.01);
    assert!(austin.target.rank_before == 1 && austin.target.rank_after > 1 && austin.kl_divergence > 1.0);
    let sum: f64 = austin.tokens.iter().map(|t| t.probability_after).sum();
    assert!(sum > 0.5 && sum <= 1.0 + 1e-9);
    let texas = austin.features.iter().find(|f| (f.id.layer, f.id.feature, f.id.pos) == (1, 224, 7)).unwrap();
    assert!(texas.after < texas.before && texas.label.as_deref() == Some("Texas"));
    let same = original.compare(&outcomes[1], &CompareOptions::default()).unwrap();
    // The other alternative changes the shape of the batch, and with it the rounding.
    assert!(same.kl_divergence < 1e-6 && same.features.iter().all(|f| (f.after - f.before).abs() < 1e-3));
}

#[test]
fn a_sweep_is_its_points_run_alone() {
    let replacement = atlas();
    let prompt = "The capital of the state containing Dallas is";
    let tokens = replacement.tokenizer.encode_prompt(prompt).unwrap();
    let original = Original::run(&replacement, &tokens, &Job::default()).unwrap();
    let sweep: Sweep = "0_39_7=0..20/5".parse().unwrap();
    let result =
        original.sweep(&sweep.alternatives(&[]), &Mode::Free, &CompareOptions::default(), &Job::default()).unwrap();
    assert_eq!(result.points.len(), 5);
    for (point, value) in result.points.iter().zip([0.0, 5.0, 10.0, 15.0, 20.0]) {
        let alone = original
            .intervene(&[vec![sweep.feature.changed(Change::Set(value))]], &Mode::Free, &Job::default())
            .unwrap();
        let alone = original.compare(&alone[0], &CompareOptions::default()).unwrap();
        assert_eq!(point.value, Some(value));
        close(point.target_probability, alone.target.probability_after, 1e-6, 1e-4, &point.name);
        close(point.kl_divergence, alone.kl_divergence, 1e-6, 1e-3, &point.name);
    }
    assert!(result.points.is_sorted_by(|a, b| a.target_probability <= b.target_probability));
}
