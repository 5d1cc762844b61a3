//! Tokens by the texts that other programs write for them.

use std::collections::HashMap;

use crate::weights::Tokenizer;

/// What stands for a space or a line break at other places.
const MARKS: [(&str, &str); 6] =
    [("\u{2581}", " "), ("\u{120}", " "), ("\u{10a}", "\n"), ("⏎", "\n"), ("↵", "\n"), ("\u{109}", "\t")];

/// Ids by text.
pub(super) struct Vocabulary {
    /// Of several ids of one text the smallest.
    ids: HashMap<Vec<u8>, u32>,
    pub start: Option<u32>,
}

impl Vocabulary {
    pub(super) fn new(tokenizer: &Tokenizer, d_vocab: usize) -> Self {
        let mut ids = HashMap::with_capacity(d_vocab);
        for id in (0..d_vocab as u32).rev() {
            ids.insert(tokenizer.token_bytes(id), id);
        }
        Self { ids, start: tokenizer.start() }
    }

    /// The token that a text stands for: as it is, with bytes as `\xNN`, or with other marks for spaces.
    pub(super) fn id(&self, text: &str) -> Option<u32> {
        let find = |bytes: &[u8]| self.ids.get(bytes).copied().filter(|_| !bytes.is_empty());
        find(text.as_bytes()).or_else(|| find(&unescaped(text)?)).or_else(|| {
            let plain = MARKS.iter().fold(text.to_owned(), |text, (mark, plain)| text.replace(mark, plain));
            if plain == text { None } else { find(plain.as_bytes()) }
        })
    }
}

/// A token's text as circuit-tracer's page reads it: bytes that are no whole character as `\xNN`.
pub(super) fn escaped(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect(),
    }
}

/// The bytes of a text that is `\xNN` throughout.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(4) || text.is_empty() {
        return None;
    }
    let byte = |escape: &[u8]| {
        let digits = std::str::from_utf8(escape.strip_prefix(b"\\x")?).ok()?;
        u8::from_str_radix(digits, 16).ok()
    };
    text.as_bytes().chunks(4).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_half_characters_read_back() {
        for bytes in [&b"\xe4\xb8"[..], b"\xff", b"a\xc3"] {
            assert_eq!(unescaped(&escaped(bytes)).as_deref(), Some(bytes));
        }
        assert_eq!(escaped("né".as_bytes()), "né");
        for text in ["", "abcd", "\\xzz", "\\x4", "é\\x41"] {
            assert_eq!(unescaped(text), None, "{text}");
        }
    }
}
