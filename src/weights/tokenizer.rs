//! Text to tokens and back.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::foreign::guarded;
use super::tokenizer_check;
use crate::error::{Error, Result};
use crate::text::typing_distance;

/// What every tokenizer is tried on before it is used: letters, a space, digits, several bytes a letter, a line's end.
const PROBE: &str = "a Bc 12\u{e9}\u{2581}\n\u{4e2d}";

/// A model's tokenizer. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    /// Where it came from, for messages.
    file: String,
    tokenizer: tokenizers::Tokenizer,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    special: BTreeSet<u32>,
    /// Token strings to the smallest id that has them; built when first needed.
    id_from_string: OnceLock<HashMap<String, u32>>,
}

/// Ids with a role, where they are known.
#[derive(Debug, Clone, Copy, Default)]
pub struct SpecialIds {
    /// Beginning of a text.
    pub bos: Option<u32>,
    /// End of a text.
    pub eos: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens)", self.vocab_size())
    }
}

impl Tokenizer {
    /// From the text of `tokenizer.json`, with the special tokens that `tokenizer_config.json` names, or else the ids
    /// of `config.json`. `file` is for messages.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn from_json(file: &str, json: &[u8], tokenizer_config: Option<&Value>, config: &Value) -> Result<Self> {
        let failed = |reason: String| Error::Tokenizer { file: file.to_string(), reason };
        tokenizer_check::check(json).map_err(failed)?;
        let tokenizer = guarded(|| tokenizers::Tokenizer::from_bytes(json)).map_err(failed)?;
        let tokenizer = tokenizer.map_err(|e| failed(e.to_string()))?;
        let id = |role: &str| {
            let named = tokenizer_config.and_then(|c| c.get(format!("{role}_token")));
            let named = named.and_then(|t| t.as_str().or_else(|| t.get("content")?.as_str()));
            named.and_then(|t| tokenizer.token_to_id(t)).or_else(|| {
                let id = config.get(format!("{role}_token_id"))?;
                let id = id.as_array().and_then(|ids| ids.first()).unwrap_or(id);
                u32::try_from(id.as_u64()?).ok()
            })
        };
        let ids = SpecialIds { bos: id("bos"), eos: id("eos"), pad: id("pad") };
        Self::new(file, tokenizer, ids)
    }

    pub(super) fn new(file: &str, mut tokenizer: tokenizers::Tokenizer, ids: SpecialIds) -> Result<Self> {
        // Files written by training scripts may still cut or fill texts to the training length.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|e| Error::Tokenizer { file: file.to_string(), reason: e.to_string() })?;
        // What fails on any text fails here, where the file is known, and not in the middle of a run.
        let tried = guarded(|| {
            let encoding = tokenizer.encode_fast(PROBE, false)?;
            let first = encoding.get_ids().iter().take(1).copied().collect::<Vec<_>>();
            tokenizer.decode(encoding.get_ids(), false)?;
            tokenizer.decode(&first, false)
        });
        if let Err(reason) = tried {
            return Err(Error::Tokenizer { file: file.to_string(), reason });
        }
        let added = tokenizer.get_added_tokens_decoder();
        let added = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id);
        let special = added.chain([ids.bos, ids.eos, ids.pad].into_iter().flatten()).collect();
        let SpecialIds { bos, eos, pad } = ids;
        Ok(Self(Arc::new(Inner {
            file: file.to_string(),
            tokenizer,
            bos,
            eos,
            pad,
            special,
            id_from_string: OnceLock::new(),
        })))
    }

    /// A prompt's tokens: tokenised without special tokens; if the first is not a special token, BOS (else PAD, else
    /// EOS) is put before it.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`]; [`Error::Tokenizer`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.encode_plain(text)?;
        let Some(&first) = ids.first() else { return Err(Error::EmptyPrompt) };
        Ok(match self.start() {
            Some(start) if !self.is_special(first) => std::iter::once(start).chain(ids).collect(),
            _ => ids,
        })
    }

    /// A text's tokens, without special tokens around them.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let failed = |reason: String| Error::Tokenizer { file: self.0.file.clone(), reason };
        let encoding = guarded(|| self.0.tokenizer.encode_fast(text, false)).map_err(failed)?;
        Ok(encoding.map_err(|e| failed(e.to_string()))?.get_ids().to_vec())
    }

    /// The text of some tokens; special tokens are shown. `\u{fffd}` where the tokenizer fails on them.
    pub fn decode(&self, ids: &[u32]) -> String {
        guarded(|| self.0.tokenizer.decode(ids, false).unwrap_or_default()).unwrap_or_else(|_| "\u{fffd}".to_string())
    }

    /// The text of one token, leading space included; `\u{fffd}` where its bytes are no whole character.
    pub fn token(&self, id: u32) -> String {
        self.decode(&[id])
    }

    /// The token whose text is exactly `text`.
    ///
    /// # Errors
    /// [`Error::NotOneToken`] with the tokens of the text and near misses.
    pub fn single_token(&self, text: &str) -> Result<u32> {
        if let Some(id) = self.exact_token(text) {
            return Ok(id);
        }
        let ids = self.encode_plain(text)?;
        let first = ids.first().map(|&id| self.token(id)).unwrap_or_default();
        let bare = text.trim_start();
        let capital: String = match bare.chars().next() {
            Some(c) => c.to_uppercase().chain(bare.chars().skip(1)).collect(),
            None => String::new(),
        };
        let candidates = [bare.to_string(), bare.to_lowercase(), capital];
        let candidates = candidates.into_iter().flat_map(|word| [format!(" {word}"), word]);
        let candidates = candidates.chain(self.nearest_tokens(text)).chain([first]);
        let mut near: Vec<String> = Vec::new();
        for candidate in candidates {
            if candidate != text && !near.contains(&candidate) && self.exact_token(&candidate).is_some() {
                near.push(candidate);
            }
        }
        let tokens = ids.iter().map(|&id| self.token(id)).collect();
        Err(Error::NotOneToken { text: text.to_string(), tokens, near })
    }

    /// The tokens that a typing mistake or two away is `text`, nearest first; of short texts none, which are like any other.
    fn nearest_tokens(&self, text: &str) -> Vec<String> {
        const MAX_TOKENS: usize = 3;
        let wanted = text.trim().to_lowercase();
        let allowed = (wanted.chars().count() / 3).min(2);
        if allowed == 0 {
            return Vec::new();
        }
        let mut near: Vec<(usize, bool, u32)> = Vec::new();
        for (token, &id) in self.id_from_string() {
            // Most of a large vocabulary is told apart by its length alone.
            if token.trim().len().abs_diff(wanted.len()) > 4 * allowed || self.is_special(id) {
                continue;
            }
            let distance = typing_distance(&wanted, &token.trim().to_lowercase());
            if distance <= allowed {
                near.push((distance, token.starts_with(' ') != text.starts_with(' '), id));
            }
        }
        near.sort_unstable();
        near.into_iter().take(MAX_TOKENS).map(|(.., id)| self.token(id)).collect()
    }

    fn exact_token(&self, text: &str) -> Option<u32> {
        if text.is_empty() {
            return None;
        }
        if let Ok(ids) = self.encode_plain(text)
            && let [id] = ids[..]
            && self.token(id) == text
        {
            return Some(id);
        }
        // Tokenizers that put a space before every text cannot encode the tokens without one.
        self.id_from_string().get(text).copied()
    }

    /// The tokens by their texts, of equal ones the first: found once, for a vocabulary takes long to decode.
    fn id_from_string(&self) -> &HashMap<String, u32> {
        self.0.id_from_string.get_or_init(|| {
            let mut id_from_string = HashMap::new();
            for id in (0..self.vocab_size() as u32).rev() {
                id_from_string.insert(self.token(id), id);
            }
            id_from_string
        })
    }

    /// Whether a token stands for something other than text.
    pub fn is_special(&self, id: u32) -> bool {
        self.0.special.contains(&id)
    }

    /// What is put before a prompt: BOS, else PAD, else EOS.
    pub fn start(&self) -> Option<u32> {
        self.0.bos.or(self.0.pad).or(self.0.eos)
    }

    /// The bytes of a token's text, where it is no whole character: byte-level tokens (GPT-2's letters for bytes) and
    /// `<0xE2>`. Of all others the bytes of [`Tokenizer::token`].
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let text = self.token(id);
        if !text.contains('\u{fffd}') {
            return text.into_bytes();
        }
        let Some(raw) = self.0.tokenizer.id_to_token(id) else { return text.into_bytes() };
        let hex = raw.strip_prefix("<0x").and_then(|hex| hex.strip_suffix('>'));
        if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            return vec![byte];
        }
        raw.chars().map(byte_of_letter).collect::<Option<Vec<u8>>>().unwrap_or(text.into_bytes())
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.0.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.0.eos
    }

    /// The token that fills up batches.
    pub fn pad(&self) -> Option<u32> {
        self.0.pad
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.0.tokenizer.get_vocab_size(true)
    }

    /// The text of `tokenizer.json` for this tokenizer.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn to_json(&self) -> Result<String> {
        let json = self.0.tokenizer.to_string(false);
        json.map_err(|e| Error::Tokenizer { file: self.0.file.clone(), reason: e.to_string() })
    }
}

/// The byte that a letter of a byte-level vocabulary stands for: printable ones for themselves, the others in order from
/// U+0100 on (GPT-2's `bytes_to_unicode`).
fn byte_of_letter(letter: char) -> Option<u8> {
    let is_itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match u8::try_from(letter) {
        Ok(byte) => is_itself(byte).then_some(byte),
        Err(_) => (0..=u8::MAX).filter(|&byte| !is_itself(byte)).nth((letter as usize).checked_sub(0x100)?),
    }
}

#[cfg(test)]
mod tests {
    use super::byte_of_letter;

    #[test]
    fn letters_of_byte_level_vocabularies_are_bytes() {
        for (letter, byte) in
            [('A', 0x41), ('\u{120}', b' '), ('\u{10a}', b'\n'), ('\u{100}', 0), ('\u{143}', 0xad), ('\u{e2}', 0xe2)]
        {
            assert_eq!(byte_of_letter(letter), Some(byte), "{letter}");
        }
        assert_eq!([byte_of_letter(' '), byte_of_letter('\u{144}'), byte_of_letter('\u{4e2d}')], [None; 3]);
    }
}
