//! What a `tokenizer.json` may say, before it is built.
//!
//! The `tokenizers` crate takes every file at its word: a chain of replacements that doubles a text twenty times, a
//! table that claims gigabytes. Panics can be caught where it runs; memory that was asked for cannot be given back.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

/// How many times longer than the text its steps may make it; real ones stay below 20.
const MAX_GROWTH: f64 = 4096.0;
/// Bytes of a text that a step puts in; real ones have a few.
const MAX_CONTENT_BYTES: usize = 1 << 10;
/// Steps before and after the model, those inside of others included.
const MAX_STEPS: usize = 256;
/// Bytes of a compiled character map; real ones have 300 to 500 thousand.
const MAX_CHARS_MAP_BYTES: usize = 1 << 26;
/// Largest number of characters or ids.
const MAX_LENGTH: u64 = 1 << 20;

/// The parts of a `tokenizer.json` that are looked at. Reading it checks the syntax of all of it.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    post_processor: Value,
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(rename = "vocab")]
    _vocab: IgnoredAny,
}

#[derive(Deserialize)]
struct Added {
    content: String,
}

/// Checks a `tokenizer.json`.
///
/// # Errors
/// What is wrong: no JSON of this form, a step that may make texts thousands of times longer, a length of 0.
pub(super) fn check(json: &[u8]) -> Result<(), String> {
    let file: File = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    // What comes before the model acts on one text, step by step; so does what comes after it.
    let mut before = Steps::default();
    before.add("normalizer", &file.normalizer)?;
    before.add("pre_tokenizer", &file.pre_tokenizer)?;
    before.check()?;
    for (at, part) in [("decoder", &file.decoder), ("post_processor", &file.post_processor)] {
        let mut steps = Steps::default();
        steps.add(at, part)?;
        steps.check()?;
    }
    for (key, text) in [
        ("continuing_subword_prefix", &file.model.continuing_subword_prefix),
        ("end_of_word_suffix", &file.model.end_of_word_suffix),
        ("unk_token", &file.model.unk_token),
    ] {
        check_content(&format!("model.{key}"), text.as_deref().unwrap_or_default())?;
    }
    match file.added_tokens.iter().position(|token| token.content.is_empty()) {
        Some(at) => Err(format!("`added_tokens[{at}].content` is empty")),
        None => Ok(()),
    }
}

/// What a chain of steps does to the length of a text.
struct Steps {
    n: usize,
    growth: f64,
}

impl Default for Steps {
    fn default() -> Steps {
        Steps { n: 0, growth: 1.0 }
    }
}

impl Steps {
    fn check(&self) -> Result<(), String> {
        if self.n > MAX_STEPS {
            return Err(format!("it has {} steps before or after the model, expected at most {MAX_STEPS}", self.n));
        }
        if self.growth > MAX_GROWTH {
            return Err(format!(
                "its steps may make a text {:.0} times longer, expected at most {MAX_GROWTH}",
                self.growth
            ));
        }
        Ok(())
    }

    /// Adds a step or a sequence of them; `at` is where it stands.
    fn add(&mut self, at: &str, step: &Value) -> Result<(), String> {
        let text = |key: &str| step.get(key).and_then(Value::as_str).unwrap_or_default();
        for list in ["normalizers", "pretokenizers", "decoders", "processors"] {
            for (index, inner) in step.get(list).and_then(Value::as_array).into_iter().flatten().enumerate() {
                self.add(&format!("{at}.{list}[{index}]"), inner)?;
            }
        }
        self.n += 1;
        for key in ["content", "prepend", "prefix", "suffix", "replacement", "pad_token", "word_delimiter_token"] {
            check_content(&format!("{at}.{key}"), text(key))?;
        }
        for key in ["start", "stop", "length"] {
            let least = u64::from(key == "length");
            match step.get(key).and_then(Value::as_u64) {
                Some(value) if !(least..=MAX_LENGTH).contains(&value) => {
                    return Err(format!("`{at}.{key}` is {value}, expected {least}..={MAX_LENGTH}"));
                }
                _ => {}
            }
        }
        self.growth *= match text("type") {
            "Replace" => replace_growth(at, step, text("content"))?,
            // Every byte becomes a letter, most often one of two bytes.
            "ByteLevel" => 2.0,
            "BertNormalizer" => 3.0,
            "Metaspace" => 3.0,
            "Precompiled" => precompiled_growth(at, text("precompiled_charsmap"))?,
            _ => 1.0,
        };
        Ok(())
    }
}

fn check_content(at: &str, text: &str) -> Result<(), String> {
    if text.len() <= MAX_CONTENT_BYTES {
        return Ok(());
    }
    Err(format!("`{at}` has {} bytes, expected at most {MAX_CONTENT_BYTES}", text.len()))
}

/// How many times longer replacing makes a text at most.
fn replace_growth(at: &str, step: &Value, content: &str) -> Result<f64, String> {
    let pattern = step.get("pattern");
    let string = pattern.and_then(|pattern| pattern.get("String")).and_then(Value::as_str);
    let regex = pattern.and_then(|pattern| pattern.get("Regex")).and_then(Value::as_str);
    let empty = || Err(format!("`{at}.pattern` is found in a text without letters, so that it is found everywhere"));
    let shortest = match (string, regex) {
        (Some(""), _) => return empty(),
        (Some(string), _) => string.len(),
        (None, Some(regex)) => {
            let regex = tokenizers::utils::SysRegex::new(regex).map_err(|e| format!("`{at}.pattern.Regex`: {e}"))?;
            // With a text of one letter beside, for patterns that are nothing before or after something.
            for probe in ["", "a", " ", "\u{2581}"] {
                if super::foreign::guarded(|| regex.find_iter(probe).any(|(start, end)| start == end))? {
                    return empty();
                }
            }
            1
        }
        _ => return Ok(1.0),
    };
    // Between letters there may be matches of no letter that no probe shows: at most one for each letter.
    Ok((content.len() as f64 / shortest as f64).max(1.0) + if regex.is_some() { content.len() as f64 } else { 0.0 })
}

/// How many times longer a compiled character map makes a text at most; checks the length of its table.
fn precompiled_growth(at: &str, base64: &str) -> Result<f64, String> {
    if base64.len() > MAX_CHARS_MAP_BYTES {
        return Err(format!("`{at}.precompiled_charsmap` has {} letters", base64.len()));
    }
    let bytes = from_base64(base64).ok_or_else(|| format!("`{at}.precompiled_charsmap` is no base64"))?;
    let (size, rest) = bytes.split_first_chunk::<4>().ok_or(format!("`{at}.precompiled_charsmap` is empty"))?;
    let size = u32::from_le_bytes(*size) as usize;
    // Its own reader makes room for as many entries as it says, and divides by this size.
    if size > rest.len() || size == 0 || !size.is_multiple_of(4) {
        return Err(format!(
            "`{at}.precompiled_charsmap` says that its table has {size} bytes, but {} follow",
            rest.len()
        ));
    }
    let longest = rest[size..].split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or(0);
    Ok((longest as f64).max(1.0))
}

/// The bytes of a text in base64; `None` where it is none.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=').as_bytes();
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for letters in text.chunks(4) {
        let mut bits = 0u32;
        for letter in letters {
            let value = match letter {
                b'A'..=b'Z' => letter - b'A',
                b'a'..=b'z' => letter - b'a' + 26,
                b'0'..=b'9' => letter - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * (4 - letters.len());
        bytes.extend_from_slice(&bits.to_be_bytes()[1..letters.len().max(1)]);
    }
    Some(bytes)
}
