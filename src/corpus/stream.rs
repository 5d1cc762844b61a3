//! A text as a stream of units of sequences, with a part of its documents held out.

use serde::{Deserialize, Serialize};

use super::pieces::{Input, Pieces, TextFormat};
use super::sequences::{Sequence, Sequencer};
use crate::error::{Error, Result};
use crate::hash::{START, fnv1a};
use crate::job::Job;
use crate::weights::Tokenizer;

/// One document of so many is held out.
const HELD_OUT_OF: u64 = 20;

/// Which documents of a text are read. Whether one is held out is told by a hash of its first piece, whatever
/// else the text holds and in whatever order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Part {
    /// All.
    Whole,
    /// All but those held out.
    Learnt,
    /// One of twenty.
    HeldOut,
}

/// How far a stream is; with the same files, [`Stream::at`] goes on from here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    /// Files that have been read to their end.
    n_files: usize,
    /// Pieces read of the next one.
    n_pieces: usize,
    /// Whether the document that is being read is in the part that is wanted.
    is_wanted: bool,
    sequencer: Sequencer,
}

impl Cursor {
    /// Tokens given so far, and in the next unit.
    pub(crate) fn n_tokens(&self) -> u64 {
        self.sequencer.n_tokens
    }

    /// Documents that have ended, of the part that is wanted.
    pub(crate) fn n_documents(&self) -> u32 {
        self.sequencer.n_documents
    }
}

/// Reads files of text as units of sequences of at most `context` tokens.
pub(crate) struct Stream<'a> {
    inputs: &'a [Input],
    format: &'a TextFormat,
    part: Part,
    tokenizer: &'a Tokenizer,
    cursor: Cursor,
    pieces: Option<Pieces<'a>>,
    /// Whether the next piece begins a document.
    at_start: bool,
    file_has_ended: bool,
    /// Documents that have begun, wanted or not.
    n_begun: u64,
}

impl<'a> Stream<'a> {
    /// From the beginning; ends after about `limit` tokens.
    pub(crate) fn new(
        inputs: &'a [Input],
        format: &'a TextFormat,
        part: Part,
        tokenizer: &'a Tokenizer,
        context: usize,
        limit: u64,
    ) -> Self {
        let sequencer = Sequencer::new(tokenizer, context, limit);
        let cursor = Cursor { n_files: 0, n_pieces: 0, is_wanted: false, sequencer };
        Self::between_files(inputs, format, part, tokenizer, cursor)
    }

    /// As a cursor says, with no file open.
    fn between_files(
        inputs: &'a [Input],
        format: &'a TextFormat,
        part: Part,
        tokenizer: &'a Tokenizer,
        cursor: Cursor,
    ) -> Self {
        Self {
            inputs,
            format,
            part,
            tokenizer,
            cursor,
            pieces: None,
            at_start: true,
            file_has_ended: false,
            n_begun: 0,
        }
    }

    /// From where another stream of the same text was.
    ///
    /// # Errors
    /// As [`Stream::next_unit`]; [`Error::Text`] for a file that has become shorter.
    pub(crate) fn at(
        inputs: &'a [Input],
        format: &'a TextFormat,
        part: Part,
        tokenizer: &'a Tokenizer,
        cursor: Cursor,
        job: &Job,
    ) -> Result<Self> {
        let mut stream = Self::between_files(inputs, format, part, tokenizer, cursor);
        let n_pieces = stream.cursor.n_pieces;
        if let Some(input) = inputs.get(stream.cursor.n_files).filter(|_| n_pieces > 0) {
            let mut pieces = Pieces::open(input, format)?;
            for _ in 0..n_pieces {
                job.check()?;
                match pieces.next_piece()? {
                    Some(piece) => stream.at_start = piece.ends_document,
                    None => {
                        let problem = "it is shorter than it was when the interrupted run read it".to_owned();
                        return Err(Error::Text { file: input.name(), problem });
                    }
                }
            }
            stream.pieces = Some(pieces);
        }
        Ok(stream)
    }

    /// How far it is.
    pub(crate) fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// Documents that this stream has come by, those of other parts included.
    pub(crate) fn n_begun(&self) -> u64 {
        self.n_begun
    }

    /// The next unit: sequences of some 16,000 tokens in all, or fewer at a file's end; `None` at the end of the text.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Text`], [`Error::Cancelled`], those of the tokenizer.
    pub(crate) fn next_unit(&mut self, job: &Job) -> Result<Option<Vec<Sequence>>> {
        loop {
            job.check()?;
            let at_end = self.file_has_ended || self.cursor.sequencer.is_full();
            if let Some(unit) = self.cursor.sequencer.next_unit(at_end) {
                return Ok(Some(unit));
            }
            if self.cursor.sequencer.is_full() {
                return Ok(None);
            }
            if self.file_has_ended {
                self.cursor.n_files += 1;
                self.cursor.n_pieces = 0;
                self.pieces = None;
                self.file_has_ended = false;
                self.at_start = true;
            }
            let Some(input) = self.inputs.get(self.cursor.n_files) else { return Ok(None) };
            let pieces = match &mut self.pieces {
                Some(pieces) => pieces,
                none => none.insert(Pieces::open(input, self.format)?),
            };
            let Some(piece) = pieces.next_piece()? else {
                self.file_has_ended = true;
                continue;
            };
            self.cursor.n_pieces += 1;
            if self.at_start {
                self.n_begun += 1;
                self.cursor.is_wanted = is_in(self.part, &piece.text);
            }
            self.at_start = piece.ends_document;
            if self.cursor.is_wanted {
                self.cursor.sequencer.push(&piece, self.tokenizer)?;
            }
        }
    }
}

/// Whether a document that begins so is in a part of the text.
fn is_in(part: Part, start: &str) -> bool {
    // The low bits alone would be those of the last bytes.
    let hash = fnv1a(START, start.bytes());
    let is_held_out = (hash >> 32).is_multiple_of(HELD_OUT_OF);
    match part {
        Part::Whole => true,
        Part::Learnt => !is_held_out,
        Part::HeldOut => is_held_out,
    }
}
