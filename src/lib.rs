//! circuitscope: attribution graphs of language models, on one machine, in one binary.
//!
//! The front door is the [`Tracer`]; `ARCHITECTURE.md` has the rooms behind it and the way of the data. With the model
//! that is part of the program:
//!
//! ```
//! use circuitscope::{AttributionOptions, FeatureSpec, PruneSettings, RunOptions, Setup, Tracer};
//!
//! # fn main() -> circuitscope::Result<()> {
//! let tracer = Tracer::open(Setup::atlas())?;
//! let prompt = "The capital of the state containing Dallas is";
//! let graph = tracer.trace(prompt, &AttributionOptions::default())?;
//! let circuit = graph.prune(&PruneSettings::default())?;
//! for (index, share) in circuit.strongest_nodes(5) {
//!     println!("{:5.1} %  {}", 100.0 * share, circuit.node(index).id);
//! }
//! let run = tracer.intervene(prompt, &["0_39_7".parse::<FeatureSpec>()?.ablated()], &RunOptions::default())?;
//! println!("{:?} {:.3} -> {:.3}", run.target.text, run.target.probability_before, run.target.probability_after);
//! # assert_eq!(circuit.graph().node_count(), 24);
//! # assert!(run.target.probability_after < run.target.probability_before);
//! # Ok(())
//! # }
//! ```
//!
//! # Prune and query
//!
//! A [`Circuit`](graph::Circuit) is a [`petgraph`] `DiGraph` with an index of its nodes, so petgraph's algorithms work
//! on it; [`circuits`] chooses parts, groups and summarises.
//!
//! ```
//! use circuitscope::graph::NodeId;
//! use circuitscope::{AttributionOptions, PruneSettings, Setup, Tracer};
//!
//! # fn main() -> circuitscope::Result<()> {
//! # let tracer = Tracer::open(Setup::atlas())?;
//! let graph = tracer.trace("The capital of the state containing Dallas is", &AttributionOptions::default())?;
//! // Only what carries half of the influence.
//! let circuit = graph.prune(&PruneSettings { node_threshold: 0.5, ..PruneSettings::default() })?;
//! let texas = circuit.find(NodeId::Feature { layer: 0, pos: 7, feature: 39 }).expect("it is the strongest of its layer");
//! for output in circuit.outputs(texas) {
//!     println!("{:+.3} to {}", output.edge.weight, circuit.node(output.node).id);
//! }
//! assert!(circuit.graph().edge_count() < graph.prune(&PruneSettings::default())?.graph().edge_count());
//! # Ok(())
//! # }
//! ```
//!
//! # A target of one's own
//!
//! Anything that the unembedding reads can be explained: a direction of `d_model` values, used as it is.
//!
//! ```
//! use circuitscope::attribution::TargetRequest;
//! use circuitscope::{AttributionOptions, Setup, Tracer};
//!
//! # fn main() -> circuitscope::Result<()> {
//! # let tracer = Tracer::open(Setup::atlas())?;
//! let tokens = [tracer.token(" Austin")?, tracer.token(" Sacramento")?];
//! let rows = tracer.replacement().model.unembedding_rows(&tokens)?.to_vec2::<f32>()?;
//! let vec = rows[0].iter().zip(&rows[1]).map(|(austin, sacramento)| austin - sacramento).collect();
//! let target = TargetRequest::Direction { vec, label: "Austin over Sacramento".into() };
//! let options = AttributionOptions { targets: vec![target], ..Default::default() };
//! let graph = tracer.trace("The capital of the state containing Dallas is", &options)?;
//! assert_eq!(graph.graph().meta.target_labels, ["Austin over Sacramento"]);
//! # Ok(())
//! # }
//! ```
//!
//! # Files
//!
//! ```
//! use circuitscope::{AttributionOptions, PruneSettings, Setup, TracedGraph, Tracer};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("dallas.safetensors");
//! let tracer = Tracer::open(Setup::atlas())?;
//! tracer.trace("The capital of the state containing Dallas is", &AttributionOptions::default())?.save(&path)?;
//! // No model from here on.
//! let graph = TracedGraph::read(&path)?;
//! assert_eq!(graph.prompt(), "The capital of the state containing Dallas is");
//! assert!(graph.graph().meta.row_identity_error < 1e-5);
//! # Ok(())
//! # }
//! ```
//!
//! # Progress and cancelling
//!
//! ```
//! use circuitscope::{AttributionOptions, CancelToken, Error, Job, Setup, Tracer};
//!
//! # fn main() -> circuitscope::Result<()> {
//! # let tracer = Tracer::open(Setup::atlas())?;
//! let cancel = CancelToken::default();
//! let job = Job::default().with_cancel(cancel.clone());
//! cancel.cancel(); // from any thread, at any time
//! let stopped = tracer.trace_with("The capital of Texas is", &AttributionOptions::default(), &job);
//! assert!(matches!(stopped, Err(Error::Cancelled)));
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs)]

pub mod attribution;
pub mod batch;
pub mod circuits;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
pub mod corpus;
pub mod error;
pub mod evaluate;
pub mod export;
pub mod features;
pub mod graph;
mod hash;
pub mod heads;
mod input;
pub mod intervene;
pub mod job;
pub mod labels;
pub mod memory;
pub mod model;
#[doc(hidden)]
pub mod ops;
pub mod picture;
pub mod prune;
pub mod replacement;
#[cfg(feature = "serve")]
pub mod serve;
// Without the command line nothing prints to a terminal or makes up file names.
#[cfg_attr(not(feature = "cli"), allow(dead_code))]
mod text;
pub mod tracer;
pub mod train;
pub mod transcoder;
pub mod weights;

pub use attribution::{AttributionOptions, RowChoice, Visits};
pub use candle_core as candle;
pub use error::{Error, ErrorKind, Result};
pub use intervene::{FeatureSpec, Intervention};
pub use job::{CancelToken, Job, Progress};
pub use petgraph;
pub use prune::PruneSettings;
pub use tracer::{DeviceChoice, Prompt, RunOptions, Setup, TracedGraph, Tracer};
