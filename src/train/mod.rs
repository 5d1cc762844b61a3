//! `train`: transcoders for every layer of a model, made from plain text.
//!
//! The model runs over the text and what its MLPs read and write is held in memory, a chunk at a time (`activations`);
//! batches of single tokens are drawn from it, each token several times. A step (`step`) chooses the active features
//! and moves their rows alone. At the end scales are folded into the weights and thresholds set on held-out text
//! (`fold`). Recipe: BatchTopK (Bussmann et al. 2024) with k annealed, dead features revived (Gao et al. 2024), decoders
//! begun by pushing encoder rows through the MLP.
//!
//! In: a [`Model`](crate::model::Model) and files of text. Out: a folder that [`crate::transcoder::open`] reads.

mod activations;
mod checkpoint;
mod fold;
mod gradient;
mod init;
mod layer;
mod log;
mod measure;
mod options;
mod plan;
mod rehearsal;
mod rows;
mod run;
mod schedule;
mod select;
mod step;
#[cfg(test)]
mod tests;

pub use log::{LOG_FILE, LogLine, SetLog};
pub use options::{Activation, FolderFormat, Precision, SetSize, TrainOptions};
pub use rehearsal::Rehearsal;
pub use run::{
    ACTIVATIONS_PHASE, COUNTING_PHASE, InTheWay, Subject, TrainProgress, Trained, TrainedSet, options_of, train,
};
