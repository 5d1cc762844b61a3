//! circuitscope: attribution graphs of language models, on one machine, in one binary.

pub mod cli;
pub mod error;
pub mod export;
pub mod graph;
pub mod prune;
pub mod weights;

pub use error::{Error, Result};
