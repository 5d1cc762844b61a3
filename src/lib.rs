//! circuitscope: attribution graphs of language models, on one machine, in one binary.
//!
//! `ARCHITECTURE.md` has the rooms and the way of the data. In code, with the model that is part of the program:
//!
//! ```
//! use candle_core::Device;
//! use circuitscope::attribution::{AttributionOptions, attribute};
//! use circuitscope::prune::{PruneSettings, prune};
//! use circuitscope::replacement::Replacement;
//! use circuitscope::weights::{atlas_model, atlas_transcoders};
//!
//! # fn main() -> circuitscope::Result<()> {
//! let replacement = Replacement::open(atlas_model()?, &atlas_transcoders(), &Device::Cpu)?;
//! let prompt = "The capital of the state containing Dallas is";
//! let linear = replacement.linearize(&replacement.tokenizer.encode_prompt(prompt)?)?;
//! let found = attribute(&replacement, &linear, prompt, &AttributionOptions::default(), &|_, _| ())?;
//! assert!(found.graph.meta.row_identity_error < 1e-5);
//! let circuit = prune(&found.graph, &found.influence, &PruneSettings::default())?.circuit(&found.graph)?;
//! assert_eq!(circuit.graph().node_count(), 24);
//! # Ok(())
//! # }
//! ```

pub mod attribution;
pub mod circuits;
#[cfg(feature = "cli")]
pub mod cli;
pub mod error;
pub mod export;
pub mod graph;
pub mod intervene;
pub mod labels;
pub mod model;
pub mod ops;
pub mod picture;
pub mod prune;
pub mod replacement;
pub mod transcoder;
pub mod weights;

pub use error::{Error, Result};
