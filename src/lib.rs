//! circuitscope: attribution graphs of language models, on one machine, in one binary.

pub mod attribution;
pub mod circuits;
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
