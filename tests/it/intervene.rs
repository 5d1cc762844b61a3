//! Interventions against circuit-tracer: every `interventions` and `generation` entry of the cases.

use circuitscope::intervene::{Change, GenerateOptions, Intervention, Mode, Original, Positions};
use serde_json::Value;

use crate::reference::{cases, close};

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
    let mut n_checked = 0;
    for case in cases().iter().filter(|case| case.has_model() && case.json["interventions"].is_array()) {
        let replacement = case.replacement();
        let tokens = replacement.tokenizer.encode_prompt(case.json["prompt"].as_str().unwrap()).unwrap();
        let original = Original::run(&replacement, &tokens).unwrap();
        for json in case.json["interventions"].as_array().unwrap() {
            let name = json["name"].as_str().unwrap();
            let outcome = original.intervene(&[interventions(json)], &mode(json)).unwrap().remove(0);
            let at = format!("{}: {name}", case.name);
            let expected = case.f32s(&format!("intervention.{name}.logits"));
            assert_eq!(outcome.logits.len(), expected.len(), "{at}");
            for (i, (a, e)) in outcome.logits.iter().zip(expected).enumerate() {
                close(f64::from(*a), f64::from(e), 1e-3, 1e-3, &format!("{at}: logit {i}"));
            }
            let expected = case.f32s(&format!("intervention.{name}.preactivations"));
            assert_eq!(outcome.pre_activations.len(), expected.len(), "{at}");
            for (i, (a, e)) in outcome.pre_activations.iter().zip(expected).enumerate() {
                close(f64::from(*a), f64::from(e), 1e-3, 1e-3, &format!("{at}: pre-activation {i}"));
            }
            n_checked += 1;
        }
    }
    println!("{n_checked} interventions checked");
}

#[test]
fn continuations_agree_with_the_reference_token_by_token() {
    for case in cases().iter().filter(|case| case.has_model() && case.json["generation"].is_array()) {
        let replacement = case.replacement();
        let tokens = replacement.tokenizer.encode_prompt(case.json["prompt"].as_str().unwrap()).unwrap();
        let original = Original::run(&replacement, &tokens).unwrap();
        for json in case.json["generation"].as_array().unwrap() {
            let expected: Vec<u32> =
                json["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect();
            let options = GenerateOptions { n_tokens: expected.len() - tokens.len(), ..Default::default() };
            let generated = original.generate(&interventions(json), &mode(json), &options).unwrap();
            assert_eq!([tokens.clone(), generated].concat(), expected, "{}: {}", case.name, json["name"]);
        }
    }
}
