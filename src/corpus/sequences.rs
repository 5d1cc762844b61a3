//! From text to sequences: every document is cut into runs of `context` tokens, each after the token that begins a
//! text; sequences are grouped into units, which are computed together.

use serde::{Deserialize, Serialize};

use super::pieces::Piece;
use crate::error::Result;
use crate::weights::Tokenizer;

/// Tokens of a unit. Files begin new units, so that the units of several files are those of each alone: what is computed
/// together does not depend on what else was read.
const UNIT_TOKENS: usize = 1 << 14;

/// Tokens, padding included, that go through the model at once.
const BATCH_TOKENS: usize = 1 << 12;

/// A batch this large need not take much shorter sequences in.
const ENOUGH_TOKENS: usize = 1 << 10;

/// A run of tokens of one document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sequence {
    pub tokens: Vec<u32>,
    /// The document, counted over all files.
    pub document: u32,
}

/// Cuts documents into sequences and gathers them into units.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sequencer {
    context: usize,
    /// Begins every sequence.
    start: Option<u32>,
    /// Tokens at most, over all sequences.
    limit: u64,
    /// Tokens of all sequences so far.
    pub n_tokens: u64,
    /// Documents that have ended.
    pub n_documents: u32,
    /// Whether the document that is being read has given a token.
    has_begun: bool,
    rest: Vec<u32>,
    pending: Vec<Sequence>,
}

impl Sequencer {
    pub(crate) fn new(tokenizer: &Tokenizer, context: usize, limit: u64) -> Self {
        let (rest, pending) = (Vec::new(), Vec::new());
        let start = tokenizer.start();
        Self { context, start, limit, n_tokens: 0, n_documents: 0, has_begun: false, rest, pending }
    }

    /// Whether as many tokens were read as were asked for.
    pub(crate) fn is_full(&self) -> bool {
        self.n_tokens >= self.limit
    }

    /// Adds the next piece of text.
    pub(crate) fn push(&mut self, piece: &Piece, tokenizer: &Tokenizer) -> Result<()> {
        if self.is_full() {
            return Ok(());
        }
        let tokens = tokenizer.encode_plain(&piece.text)?;
        self.has_begun |= !tokens.is_empty();
        self.rest.extend(tokens);
        let own = self.context - usize::from(self.start.is_some());
        let mut at = 0;
        while self.rest.len() - at >= own || (piece.ends_document && at < self.rest.len()) {
            let end = (at + own).min(self.rest.len());
            let tokens: Vec<u32> = self.start.into_iter().chain(self.rest[at..end].iter().copied()).collect();
            at = end;
            if self.is_full() {
                break;
            }
            self.n_tokens += tokens.len() as u64;
            self.pending.push(Sequence { tokens, document: self.n_documents });
        }
        self.rest.drain(..at);
        if piece.ends_document || self.is_full() {
            self.rest.clear();
            self.n_documents += u32::from(self.has_begun);
            self.has_begun = false;
        }
        Ok(())
    }

    /// The next unit, if there are enough sequences for one; at the end of a file any sequences are.
    pub(crate) fn next_unit(&mut self, at_end: bool) -> Option<Vec<Sequence>> {
        let mut n_tokens = 0;
        let full = self.pending.iter().position(|sequence| {
            n_tokens += sequence.tokens.len();
            n_tokens >= UNIT_TOKENS
        });
        let n = match full {
            Some(last) => last + 1,
            None if at_end && !self.pending.is_empty() => self.pending.len(),
            None => return None,
        };
        Some(self.pending.drain(..n).collect())
    }
}

/// Groups sequences of a unit into batches of similar length: indices into the unit.
pub(crate) fn batches(unit: &[Sequence]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..unit.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(unit[i].tokens.len()));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for i in order {
        let len = unit[i].tokens.len();
        match batches.last_mut() {
            Some(batch) if has_room(unit[batch[0]].tokens.len(), batch.len(), len) => batch.push(i),
            _ => batches.push(vec![i]),
        }
    }
    batches
}

/// Whether a batch of `n` sequences of up to `longest` tokens takes in one of `len`.
fn has_room(longest: usize, n: usize, len: usize) -> bool {
    let is_similar = 4 * len >= 3 * longest || longest * n < ENOUGH_TOKENS;
    is_similar && longest * (n + 1) <= BATCH_TOKENS
}
