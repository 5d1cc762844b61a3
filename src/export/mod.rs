//! `export`: the files that graphs live in.
//!
//! Raw graphs go to and from safetensors ([`read_raw`], [`write_raw`]), circuits to and from the JSON that the field's viewers read
//! ([`wire`]). String ids of nodes are made here ([`node_id_text`]). Every file of this program is written by
//! `replace_file`: whole or not at all.

mod columns;
mod link_heads;
mod link_seed;
mod listing;
mod load;
pub(crate) mod raw;
mod replace;
mod temporary;
pub mod wire;
mod wire_read;
mod wire_stream;

pub use columns::{Numbers, write_columns, write_tensors};
pub use listing::{check_list, check_not_list, list_graphs};
pub use raw::{raw_contents, read_raw, write_raw};
pub use replace::{check_not_input, check_writable, lock_folder, replace_file, replace_set};
pub use temporary::abandon_files;
pub(crate) use wire::cantor_pairing;
pub use wire::{WireGraph, WireMetadata, node_id_text, read_wire, write_wire};
pub use wire_stream::{KeepNodes, StreamedGraph, stream_wire};
