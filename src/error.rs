//! `error`: what can go wrong, one variant per way to be wrong.
//!
//! A variant holds the name of the thing and both sides that disagree. Only `cli` prints errors; it follows the
//! [`std::error::Error::source`] chain for the `caused by` lines and shows [`Error::hint`] last.

use std::path::PathBuf;

/// Everything that can go wrong in this library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What was being done when `source` happened, e.g. `cannot load the transcoder of layer 7`.
    #[error("{doing}")]
    Context {
        doing: String,
        #[source]
        source: Box<Error>,
    },

    /// An operation on a file or folder failed. `doing` is a verb phrase without the path: `cannot read`.
    #[error("{doing} `{}`", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    // weights
    /// A file does not have the structure of its format: truncated, a length that lies, an unknown version.
    #[error("`{file}` is not a valid {format} file: {reason}")]
    Damaged { file: String, format: &'static str, reason: String },

    /// A tensor that must be there is not.
    #[error("`{file}` has no tensor `{name}`")]
    MissingTensor { name: String, file: String },

    /// A tensor has another shape than its use needs.
    #[error("`{tensor}` in `{file}` has shape {actual:?}, expected {expected:?}")]
    Shape { tensor: String, file: String, actual: Vec<usize>, expected: Vec<usize> },

    /// A tensor's elements have a type that is not read.
    #[error("`{tensor}` in `{file}` has dtype {dtype}, expected {expected}")]
    Dtype { tensor: String, file: String, dtype: String, expected: &'static str },

    // graph, prune, export
    /// Two parts of a graph disagree about their size.
    #[error("`{name}` of the graph has shape {actual:?}, expected {expected:?}")]
    GraphShape { name: &'static str, expected: Vec<usize>, actual: Vec<usize> },

    /// An index in a graph points outside of what it indexes.
    #[error("{name} {index} of the graph is {value}, must be below {limit}")]
    GraphIndex { name: &'static str, index: usize, value: usize, limit: usize },

    /// A list of a graph is not strictly ascending at `index`.
    #[error("{name} of the graph are not in ascending order at entry {index}")]
    GraphOrder { name: &'static str, index: usize },

    /// A number of a graph is NaN or infinite.
    #[error("`{name}` of the graph holds a value at {index} that is not finite")]
    GraphNotFinite { name: &'static str, index: usize },

    /// A number of a graph is negative that must not be.
    #[error("`{name}` of the graph holds a negative value at {index}")]
    GraphNegative { name: &'static str, index: usize },

    /// A node is in a circuit twice.
    #[error("the graph holds {node} twice")]
    CircuitDuplicate { node: String },

    /// The edges of a circuit go round in a circle.
    #[error("the graph has a cycle through {node}")]
    CircuitCycle { node: String },

    /// A node of a JSON graph whose id or layer makes no sense.
    #[error("node `{id}` of the graph cannot be read: {reason}")]
    WireNode { id: String, reason: String },

    /// A link of a JSON graph names a node that is not there.
    #[error("the link from `{source_id}` to `{target_id}` names node `{missing}`, which is not in the graph")]
    LinkToNowhere { source_id: String, target_id: String, missing: String },

    /// A node was asked for that is not in the circuit.
    #[error("there is no node `{id}` in the graph")]
    UnknownNode { id: String, near: Vec<String> },

    /// A raw graph of another format version.
    #[error("`{}` has format version {actual}, expected {expected}", path.display())]
    GraphVersion { path: PathBuf, actual: u32, expected: u32 },

    /// A pruning threshold is no share.
    #[error("{name} is {value}, must be in 0..=1")]
    Threshold { name: &'static str, value: f64 },

    /// A tensor operation failed: out of memory, a device error, or a bug of ours.
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),
}

/// The result of every fallible function of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Context { source, .. } => source.hint(),
            // graph, prune, export
            Error::GraphVersion { .. } => {
                Some("trace the prompt again, or read the file with the version of the program that wrote it".into())
            }
            Error::UnknownNode { near, .. } if !near.is_empty() => {
                Some(format!("there are {}; `inspect` lists the strongest nodes", near.join(", ")))
            }
            Error::Threshold { .. } => Some("0.8 for nodes and 0.98 for edges are usual".into()),
            _ => None,
        }
    }
}

/// Adds what was being done to an error, on its way up.
pub trait Doing<T> {
    /// Wraps the error in [`Error::Context`]; `doing` is evaluated only when there is one.
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::Context { doing: doing(), source: Box::new(e.into()) })
    }
}
