//! `weights`: files of tensors, opened, checked and memory-mapped; the tokenizer.
//!
//! In: a path, a Hub id, or bytes in the program. Out: f32 tensors on the CPU, converted when used, under the names and
//! in the layouts of Hugging Face checkpoints whatever the file was. This room knows neither models nor features.

mod atlas;
mod checkpoint;
mod columns;
mod encoding;
mod folder;
mod foreign;
mod gguf;
mod gguf_config;
mod gguf_header;
mod gguf_tokenizer;
mod hub;
#[cfg(feature = "hub")]
mod hub_client;
mod model_files;
mod npz;
mod safetensors_file;
mod source;
mod stored;
mod tokenizer;
mod tokenizer_check;

pub use atlas::{ATLAS, atlas_features, atlas_model, atlas_sentences, atlas_transcoders};
pub use checkpoint::Checkpoint;
pub use columns::{Column, Columns, Number};
pub use folder::Folder;
pub use hub::{Hub, Token};
pub use model_files::ModelFiles;
pub use tokenizer::{SpecialIds, Tokenizer};
