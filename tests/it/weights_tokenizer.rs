//! Promises of the `weights` room about tokenizers: texts become the tokens that were recorded.

use std::path::Path;

use circuitscope::Error;
use circuitscope::weights::{ModelFiles, Tokenizer};
use serde_json::{Value, json};

use crate::reference::FAMILIES;
use crate::support::fixture;
use crate::weights::refused;

fn reference_tokenizer() -> Tokenizer {
    let json = std::fs::read(fixture("tokenizer/tokenizer.json")).unwrap();
    let config: Value =
        serde_json::from_slice(&std::fs::read(fixture("tokenizer/tokenizer_config.json")).unwrap()).unwrap();
    Tokenizer::from_json("tokenizer.json", &json, Some(&config), &Value::Null).unwrap()
}

#[test]
fn prompts_and_targets_of_the_reference_cases_are_tokenised_the_same() {
    let tokenizer = reference_tokenizer();
    let cases: Value = serde_json::from_slice(&std::fs::read(fixture("tokenizer/cases.json")).unwrap()).unwrap();
    for case in cases.as_array().unwrap() {
        let expected: Vec<u32> = serde_json::from_value(case["input_tokens"].clone()).unwrap();
        assert_eq!(tokenizer.encode_prompt(case["prompt"].as_str().unwrap()).unwrap(), expected);
        for target in case["targets"].as_array().unwrap() {
            assert_eq!(tokenizer.token(target["id"].as_u64().unwrap() as u32), target["token"].as_str().unwrap());
        }
    }
}

/// `cases.json` of a case: prompts with names, targets with ids. Returns how many prompts were compared; a fixture
/// folder may hold some only.
pub fn check_cases(host: &ModelFiles, expected: &Path) -> usize {
    let cases: Value = serde_json::from_slice(&std::fs::read(expected.join("cases.json")).unwrap()).unwrap();
    let cases = cases.get("cases").unwrap_or(&cases).as_array().unwrap().clone();
    let mut n_checked = 0;
    for case in cases {
        let file = expected.join(format!("{}.safetensors", case["name"].as_str().unwrap()));
        let Ok(bytes) = std::fs::read(file) else { continue };
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let ids = tensors.tensor("input_tokens").unwrap();
        let ids: Vec<u32> = ids.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect();
        assert_eq!(host.tokenizer.encode_prompt(case["prompt"].as_str().unwrap()).unwrap(), ids);
        for target in case.get("targets").and_then(Value::as_array).into_iter().flatten() {
            assert_eq!(host.tokenizer.token(target["id"].as_u64().unwrap() as u32), target["token"].as_str().unwrap());
        }
        n_checked += 1;
    }
    n_checked
}

#[test]
fn every_reference_model_opens_and_tokenises_as_recorded() {
    let mut folders: Vec<_> = FAMILIES.map(|family| fixture("reference").join(family)).into();
    folders.push(fixture("atlas"));
    for folder in folders {
        let host = ModelFiles::open(&folder.join("model").display().to_string()).unwrap();
        assert!(check_cases(&host, &folder.join("expected")) > 0, "{}: no prompt", folder.display());
        assert!(host.checkpoint.names().count() > 0);
        for name in host.checkpoint.names() {
            host.checkpoint.tensor(name, &host.checkpoint.shape(name).unwrap()).unwrap();
        }
    }
}

#[test]
fn a_prompt_gets_one_special_token_first_and_none_is_refused() {
    let tokenizer = reference_tokenizer();
    let ids = tokenizer.encode_prompt("the man").unwrap();
    assert_eq!(ids[0], 2);
    assert_eq!(tokenizer.encode_prompt("<bos>the man").unwrap(), ids);
    assert_eq!(tokenizer.encode_prompt("<eos>the man").unwrap()[0], 1, "any special token will do");
    assert!(matches!(refused(tokenizer.encode_prompt("")), Error::EmptyPrompt));
    assert_eq!(tokenizer.decode(&ids[1..]), "the man");
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(ids[1]));
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.vocab_size()), (Some(2), Some(1), 512));
    let config = json!({ "bos_token_id": [2], "eos_token_id": 1 });
    let again = Tokenizer::from_json("again", tokenizer.to_json().unwrap().as_bytes(), None, &config).unwrap();
    assert_eq!(again.encode_prompt("the man").unwrap(), ids);
}

#[test]
fn text_that_is_not_one_token_gets_its_tokens_and_near_misses() {
    let tokenizer = reference_tokenizer();
    let id = tokenizer.single_token(" man").unwrap();
    assert_eq!((id, tokenizer.token(id).as_str()), (470, " man"));
    match refused(tokenizer.single_token(" Man")) {
        e @ Error::NotOneToken { .. } => {
            assert!(e.to_string().contains("\" Man\""));
            assert!(e.hint().unwrap().contains("\" man\""), "{:?}", e.hint());
        }
        e => panic!("{e}"),
    }
    assert!(matches!(refused(tokenizer.single_token("")), Error::NotOneToken { tokens, .. } if tokens.is_empty()));
    assert!(
        matches!(refused(tokenizer.single_token("unspeakably long")), Error::NotOneToken { tokens, .. } if tokens.len() > 1)
    );
    for id in 4..512 {
        let text = tokenizer.token(id);
        if !text.contains('\u{fffd}') {
            assert_eq!(tokenizer.token(tokenizer.single_token(&text).unwrap()), text);
        }
    }
}

#[test]
fn tokens_that_end_a_text_come_from_the_generation_config_too() {
    let folder = tempfile::tempdir().unwrap();
    for entry in fixture("reference/llama_relu/model").read_dir().unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let ends = |text: &str| {
        std::fs::write(folder.path().join("generation_config.json"), text).unwrap();
        ModelFiles::open(folder.path().to_str().unwrap()).unwrap().end_tokens()
    };
    assert_eq!(ends("{}"), [1]);
    assert_eq!(ends(r#"{"eos_token_id": 7}"#), [1, 7]);
    assert_eq!(ends(r#"{"eos_token_id": [9, 1, 7, -1, "x"]}"#), [1, 7, 9]);
}
