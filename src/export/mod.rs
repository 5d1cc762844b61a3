//! `export`: the files that graphs live in, and what is said about them in words.
//!
//! Raw graphs go to and from safetensors ([`raw`]), circuits to and from the JSON that the field's viewers read
//! ([`wire`]). [`Summary`] is a circuit boiled down to what fits a screen. String ids of
//! nodes exist in here only.

mod link_seed;
mod load;
pub mod raw;
mod replace;
mod summary;
pub mod wire;
mod wire_read;
mod wire_stream;

pub use raw::{read_raw, write_raw};
pub use replace::{check_writable, replace_file};
pub use summary::{
    Counts, Neighbors, NodeKind, NodeSummary, Prediction, SharedEdge, Summary, SummaryNode, SummaryPath, SummaryScores,
    SummarySettings, find_node, summarize,
};
pub use wire::{WireGraph, node_id_text, read_wire, write_wire};
pub use wire_stream::{StreamedGraph, stream_wire};
