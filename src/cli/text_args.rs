//! What commands that read text share: which files, and how they are read.

use std::path::PathBuf;

use clap::Args;

use crate::corpus::{Split, TextFormat};

/// The text.
#[derive(Debug, Args)]
pub struct TextArgs {
    /// Text: plain, JSON lines, compressed or not (.gz, .xz, .zst); folders; `-` for the standard input
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    pub text: Vec<PathBuf>,
    /// The field of JSON lines that holds the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    field: String,
    /// What a document is in plain text: file, paragraphs or lines
    #[arg(long, value_name = "WHAT", default_value = "file")]
    split: Split,
}

impl TextArgs {
    /// How files are read.
    pub fn format(&self) -> TextFormat {
        TextFormat { field: self.field.clone(), split: self.split }
    }
}

/// A number of tokens such as `300000`, `300k` or `1.5M`.
pub(super) fn token_count(text: &str) -> Result<u64, String> {
    let expected = || format!("{text:?} is no number of tokens such as 300000, 300k or 1.5M");
    let lower = text.to_ascii_lowercase();
    let (digits, unit) = match lower.strip_suffix(['k', 'm', 'g']) {
        Some(digits) => (
            digits,
            if lower.ends_with('k') {
                1e3
            } else if lower.ends_with('m') {
                1e6
            } else {
                1e9
            },
        ),
        None => (lower.as_str(), 1.0),
    };
    let value = digits.parse::<f64>().map_err(|_| expected())? * unit;
    if (1.0..=1e15).contains(&value) { Ok(value as u64) } else { Err(expected()) }
}

#[cfg(test)]
mod tests {
    use super::token_count;

    #[test]
    fn tokens_are_counted_in_thousands_and_millions() {
        let counts = ["300000", "300k", "1.5M", "2G"].map(|text| token_count(text).unwrap());
        assert_eq!(counts, [300_000, 300_000, 1_500_000, 2_000_000_000]);
        for text in ["", "k", "-3", "0", "1e99", "nan", "3T"] {
            assert!(token_count(text).is_err(), "{text}");
        }
    }
}
