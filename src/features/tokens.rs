//! The token store: every sequence that was read, once, and what each token of the vocabulary looks like. Examples
//! refer to it by position, so that a window costs nothing however wide it is.

use std::io::{Result as IoResult, Write};
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;

use super::accumulate::Tokens;
use crate::error::{Error, Result};
use crate::export::{Numbers, write_columns};
use crate::weights::{Column, Columns, Folder};

/// The name of its file.
pub(super) const TOKENS_FILE: &str = "tokens.safetensors";

/// Token ids in the fewest bytes that hold them.
#[derive(Clone, Debug)]
pub(super) enum Ids {
    Narrow(Column<u16>),
    Wide(Column<u32>),
}

impl Ids {
    pub(super) fn open(columns: &Columns, name: &str) -> Result<Self> {
        match columns.dtype(name)? {
            Dtype::U16 => Ok(Self::Narrow(columns.column(name)?)),
            _ => Ok(Self::Wide(columns.column(name)?)),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Ids::Narrow(ids) => ids.len(),
            Ids::Wide(ids) => ids.len(),
        }
    }

    pub(super) fn get(&self, index: usize) -> u32 {
        match self {
            Ids::Narrow(ids) => ids.get(index).into(),
            Ids::Wide(ids) => ids.get(index),
        }
    }
}

/// Whether ids of a vocabulary fit into 16 bits.
pub(super) fn are_narrow(d_vocab: usize) -> bool {
    d_vocab <= 1 << 16
}

/// Runs of a column: run i is `starts[i]..starts[i + 1]`.
#[derive(Clone, Debug)]
pub(super) struct Runs(Column<u32>);

impl Runs {
    /// The starts of `n` runs that together are `total` long.
    pub(super) fn open(columns: &Columns, name: &str, n: usize, total: usize) -> Result<Self> {
        let starts = columns.column_of::<u32>(name, n.saturating_add(1))?;
        let mut before = 0;
        let ascend = starts.iter().all(|start| std::mem::replace(&mut before, start) <= start);
        if !ascend || starts.get(0) != 0 || starts.get(n) as usize != total {
            let reason = format!("`{name}` does not ascend from 0 to {total}");
            return Err(Error::Damaged { file: columns.file().to_owned(), format: "features", reason });
        }
        Ok(Self(starts))
    }

    pub(super) fn get(&self, run: usize) -> Range<usize> {
        self.0.get(run) as usize..self.0.get(run + 1) as usize
    }

    pub(super) fn len(&self) -> usize {
        self.0.len() - 1
    }

    /// The run that holds `index`, which must be below the total.
    pub(super) fn run_of(&self, index: usize) -> usize {
        let (mut low, mut high) = (0, self.len());
        // Invariant: the start of `low` is at or before `index`, the start of `high` after it.
        while high - low > 1 {
            let middle = low.midpoint(high);
            if self.0.get(middle) as usize <= index { low = middle } else { high = middle }
        }
        low
    }
}

/// Where sequences are, on their way into a token store.
#[derive(Clone, Debug)]
pub(super) struct SequenceTable {
    /// First position of each, and the number of positions. `[n_sequences + 1]`
    pub starts: Vec<u32>,
    /// The document of each. `[n_sequences]`
    pub documents: Vec<u32>,
    /// The unit of each. `[n_sequences]`
    pub units: Vec<u32>,
}

impl SequenceTable {
    pub(super) fn new() -> Self {
        Self { starts: vec![0], documents: Vec::new(), units: Vec::new() }
    }

    /// Adds a sequence; where it begins, or nothing where positions would no longer fit into 32 bits.
    pub(super) fn push(&mut self, n_tokens: usize, document: u32, unit: u32) -> Option<u32> {
        let start = self.n_tokens();
        self.starts.push(u32::try_from(n_tokens).ok().and_then(|n| start.checked_add(n))?);
        self.documents.push(document);
        self.units.push(unit);
        Some(start)
    }

    pub(super) fn n_tokens(&self) -> u32 {
        self.starts[self.starts.len() - 1]
    }

    pub(super) fn n_sequences(&self) -> usize {
        self.documents.len()
    }
}

/// The texts of all tokens of a vocabulary: where each begins, and their bytes.
#[derive(Clone, Debug)]
pub(super) struct TokenTexts {
    starts: Vec<u32>,
    bytes: Vec<u8>,
}

impl TokenTexts {
    pub(super) fn new(texts: impl Iterator<Item = Vec<u8>>) -> Self {
        let mut all = Self { starts: vec![0], bytes: Vec::new() };
        for text in texts {
            all.bytes.extend(text);
            all.starts.push(all.bytes.len() as u32);
        }
        all
    }
}

/// Calls its argument for every token, in order.
pub(super) type EachToken<'a> = dyn Fn(&mut dyn FnMut(u32) -> IoResult<()>) -> IoResult<()> + 'a;

/// Writes a token store; `write` gives the tokens of all sequences.
pub(super) fn write_tokens(folder: &Path, table: &SequenceTable, texts: &TokenTexts, write: &EachToken) -> Result<()> {
    let narrow = are_narrow(texts.starts.len() - 1);
    let stream = |writer: &mut dyn Write| {
        write(&mut |token: u32| match narrow {
            true => writer.write_all(&(token as u16).to_le_bytes()),
            false => writer.write_all(&token.to_le_bytes()),
        })
    };
    let dtype = if narrow { Dtype::U16 } else { Dtype::U32 };
    write_columns(
        &folder.join(TOKENS_FILE),
        "features",
        &[
            ("sequence_starts", Numbers::U32(&table.starts)),
            ("sequence_documents", Numbers::U32(&table.documents)),
            ("sequence_units", Numbers::U32(&table.units)),
            ("text_starts", Numbers::U32(&texts.starts)),
            ("tokens", Numbers::Streamed { dtype, len: table.n_tokens() as usize, write: &stream }),
            ("text_bytes", Numbers::U8(&texts.bytes)),
        ],
    )
}

/// All sequences, one after another, and the texts of the tokens.
#[derive(Clone, Debug)]
pub struct TokenStore {
    tokens: Ids,
    sequences: Runs,
    /// `[n_sequences]`
    documents: Column<u32>,
    /// `[n_sequences]`
    units: Column<u32>,
    /// Where the text of each token is. `[d_vocab]`
    texts: Runs,
    text_bytes: Column<u8>,
    d_vocab: usize,
}

impl TokenStore {
    pub(super) fn open(folder: &Folder, d_vocab: usize) -> Result<Self> {
        let columns = Columns::open(folder, TOKENS_FILE)?;
        let tokens = Ids::open(&columns, "tokens")?;
        let documents = columns.column::<u32>("sequence_documents")?;
        let sequences = Runs::open(&columns, "sequence_starts", documents.len(), tokens.len())?;
        let text_bytes = columns.column::<u8>("text_bytes")?;
        let texts = Runs::open(&columns, "text_starts", d_vocab, text_bytes.len())?;
        let units = columns.column_of("sequence_units", documents.len())?;
        Ok(Self { tokens, sequences, documents, units, texts, text_bytes, d_vocab })
    }

    /// Number of tokens, those that begin sequences included.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether no text was read.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of sequences.
    pub fn n_sequences(&self) -> usize {
        self.sequences.len()
    }

    /// The id of the token at a position, which must exist.
    pub fn token(&self, position: usize) -> u32 {
        self.tokens.get(position)
    }

    /// Which sequence a position is in.
    pub fn sequence_of(&self, position: usize) -> usize {
        self.sequences.run_of(position)
    }

    /// The positions of a sequence, which must exist.
    pub fn sequence(&self, sequence: usize) -> Range<usize> {
        self.sequences.get(sequence)
    }

    /// The document that a sequence is part of, counted over all files.
    pub fn document(&self, sequence: usize) -> u32 {
        self.documents.get(sequence)
    }

    /// The unit that a sequence was computed in, counted over all files.
    pub(super) fn unit(&self, sequence: usize) -> u32 {
        self.units.get(sequence)
    }

    /// The bytes of a token's text: some tokens are parts of a character. Of ids that are no token, none.
    pub fn bytes(&self, token: u32) -> Vec<u8> {
        if token as usize >= self.d_vocab {
            return Vec::new();
        }
        self.text_bytes.range(self.texts.get(token as usize)).collect()
    }

    /// A token's text, `\u{fffd}` for what is no whole character.
    pub fn text(&self, token: u32) -> String {
        String::from_utf8_lossy(&self.bytes(token)).into_owned()
    }

    /// The texts of tokens that follow each other. The bytes of a character can be spread over several tokens: it is with
    /// the last of them, and the others have none.
    pub fn texts(&self, tokens: impl IntoIterator<Item = u32>) -> Vec<String> {
        let mut pending = Vec::new();
        let mut texts: Vec<String> = tokens
            .into_iter()
            .map(|token| {
                pending.extend(self.bytes(token));
                match std::str::from_utf8(&pending) {
                    Err(e) if e.error_len().is_none() => String::new(),
                    _ => String::from_utf8_lossy(&std::mem::take(&mut pending)).into_owned(),
                }
            })
            .collect();
        if let (false, Some(last)) = (pending.is_empty(), texts.last_mut()) {
            *last = String::from_utf8_lossy(&pending).into_owned();
        }
        texts
    }

    /// The number of tokens that the store has texts of.
    pub fn d_vocab(&self) -> usize {
        self.d_vocab
    }
}

impl Tokens for TokenStore {
    fn token(&self, position: usize) -> u32 {
        TokenStore::token(self, position)
    }
}
