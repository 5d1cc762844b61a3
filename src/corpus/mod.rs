//! `corpus`: text by the file: read document by document, cut into sequences of tokens, gathered into batches. What
//! features are collected over, what transcoders are trained on and measured with comes through here.

mod pieces;
mod sequences;
mod stream;

pub use pieces::{Input, Piece, Pieces, Split, TextFormat, inputs, open_plain};
pub(crate) use sequences::{Sequence, Sequencer, batches};
pub(crate) use stream::{Cursor, Part, Stream};
