//! What the service answers, and what that says of a text.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::label_text::{Key, View};
use super::super::tokens::TokenStore;
use crate::error::Result;
use crate::text::shortened;
use crate::weights::Tokenizer;

/// Characters of a label, entries of a list and characters of each: more are cut.
const MAX_LABEL_CHARS: usize = 80;
const MAX_ENTRIES: usize = 64;
const MAX_ENTRY_CHARS: usize = 80;

/// A name, and where the feature is said to be active.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// What the feature is called.
    pub label: String,
    /// It is active on the last token of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on: Vec<String>,
    /// It is active right after these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    /// It is active within eight tokens after these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub soon_after: Vec<String>,
    /// It is active right before these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<String>,
}

/// Finds the answer in a text: the first JSON object with a label, after whatever a model thinks aloud or puts around it.
///
/// # Errors
/// Why there is none, in words.
pub(super) fn parse(content: &str) -> Result<Answer, String> {
    let said = content.rsplit_once("</think>").map_or(content, |(_, after)| after);
    let mut reason = "there is no JSON object in it".to_owned();
    for (at, _) in said.match_indices('{') {
        let Some(Ok(json)) = serde_json::Deserializer::from_str(&said[at..]).into_iter::<Value>().next() else {
            continue;
        };
        match of_json(&json) {
            Ok(answer) => return Ok(answer),
            Err(problem) => reason = problem,
        }
    }
    Err(format!("{reason}: {:?}", shortened(said.trim(), MAX_LABEL_CHARS)))
}

fn of_json(json: &Value) -> Result<Answer, String> {
    let label = json.get("label").and_then(Value::as_str).map(one_line).unwrap_or_default();
    if label.is_empty() {
        return Err("it has no `label`".into());
    }
    let list = |name: &str| -> Result<Vec<String>, String> {
        let texts = match json.get(name) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::String(text)) => vec![text.as_str()],
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
            Some(other) => return Err(format!("`{name}` is {other}, expected a list of texts")),
        };
        let is_fine = |text: &&str| !text.trim().is_empty() && text.chars().count() <= MAX_ENTRY_CHARS;
        Ok(texts.into_iter().filter(is_fine).take(MAX_ENTRIES).map(str::to_owned).collect())
    };
    Ok(Answer {
        label: shortened(&label, MAX_LABEL_CHARS),
        on: list("on")?,
        after: list("after")?,
        soon_after: list("soon_after")?,
        before: list("before")?,
    })
}

/// A text without line breaks and control characters, its spaces single.
fn one_line(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The answer as conditions on positions. A text stands for its tokens at the start of a text and after a space.
pub(super) fn conditions(answer: &Answer, store: &TokenStore, tokenizer: &Tokenizer) -> Result<Vec<(View, Vec<Key>)>> {
    let encode = |text: &str| -> Result<Vec<Vec<u32>>> {
        let word = text.trim();
        let mut all = vec![tokenizer.encode_plain(word)?, tokenizer.encode_plain(&format!(" {word}"))?];
        all.retain(|tokens| !tokens.is_empty() && tokens.iter().all(|&token| (token as usize) < store.d_vocab()));
        all.dedup();
        Ok(all)
    };
    let mut found: Vec<(View, Vec<Key>)> = Vec::new();
    let mut add = |view: View, key: Key| match found.iter_mut().find(|(other, _)| *other == view) {
        Some((_, keys)) => keys.push(key),
        None => found.push((view, vec![key])),
    };
    for text in &answer.on {
        for tokens in encode(text)? {
            match tokens[..] {
                [token] => add(View::Token, [token, 0, 0]),
                [first, second] => add(View::Pair, [first, second, 0]),
                [.., first, second, third] => add(View::Triple, [first, second, third]),
                [] => {}
            }
        }
    }
    for (texts, view) in [(&answer.after, View::After), (&answer.soon_after, View::Soon)] {
        for text in texts {
            encode(text)?.iter().filter_map(|tokens| tokens.last()).for_each(|&last| add(view, [last, 0, 0]));
        }
    }
    for text in &answer.before {
        encode(text)?.iter().filter_map(|tokens| tokens.first()).for_each(|&first| add(View::Next, [first, 0, 0]));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_found_in_what_models_put_around_it() {
        let expected =
            Answer { label: "month names".into(), on: vec!["May".into(), " June".into()], ..Default::default() };
        for content in [
            r#"{"label":"month names","on":["May"," June"]}"#,
            "```json\n{\"label\": \" month\\n names\", \"on\": [\"May\", \" June\", 3, \"\"], \"after\": null}\n```",
            "<think>{\"label\":\"wrong\"}</think> Sure! {} {\"label\":\"month names\",\"on\":[\"May\",\" June\"]} Done.",
        ] {
            assert_eq!(parse(content).as_ref(), Ok(&expected), "{content}");
        }
        let word = Answer { label: "a".into(), before: vec!["x".into()], ..Default::default() };
        assert_eq!(parse(r#"{"label":"a","before":"x"}"#), Ok(word));
    }

    #[test]
    fn what_is_no_answer_is_said_to_be_none() {
        for (content, part) in [
            ("", "no JSON object"),
            ("I cannot help with that.", "no JSON object"),
            (r#"{"labels":"x"}"#, "no `label`"),
            (r#"{"label":"\u0000 \n"}"#, "no `label`"),
            (r#"{"label":"x","on":7}"#, "`on` is 7"),
            (r#"{"label":"x","on":["#, "no JSON object"),
        ] {
            let reason = parse(content).unwrap_err();
            assert!(reason.contains(part), "{content}: {reason}");
        }
        let long = format!(r#"{{"label":"{}","on":[{}"x"]}}"#, "a".repeat(500), r#""y","#.repeat(500));
        let answer = parse(&long).unwrap();
        assert!(answer.label.chars().count() <= MAX_LABEL_CHARS && answer.on.len() == MAX_ENTRIES);
        assert!(parse(&"{".repeat(100_000)).is_err());
    }
}
