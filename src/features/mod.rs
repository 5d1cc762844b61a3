//! `features`: what features mean. A text goes through the model once, and for each feature of each layer stays what it
//! is active on: how often, how strongly, the strongest and some sampled examples, the tokens and what precedes them.
//!
//! In: a [`Replacement`](crate::replacement::Replacement) and files of text. Out: a folder of features, which
//! [`FeatureSet`] opens: without the model, and one feature in microseconds.

mod accumulate;
mod collect;
mod dashboard;
mod exchange;
mod explainer;
mod files;
mod histogram;
mod label_rules;
mod label_text;
mod label_words;
mod labels;
mod manifest;
mod merge;
mod place_states;
mod pushes;
mod report;
mod search;
mod state;
mod token_classes;
mod tokens;
mod virtual_weights;
mod web;

pub(crate) use accumulate::sequence_hash;
pub use collect::{CollectOptions, Collected, TOKENS_PHASE, collect};
pub use dashboard::{Dashboard, Example, Groups, N_INTERVALS, Neighbor, TokenCount, WINDOW_AFTER, WINDOW_BEFORE};
pub use exchange::{
    Agreement, Bundle, EXPORT_PHASE, ExportFormat, Exported, HostedExample, HostedFeature, IMPORT_PHASE, INDEX_FILE,
    ImportOptions, Imported, NEURONPEDIA, export, hosted_feature, import, read_names,
};
pub use explainer::{Answer, Asked, EXPLAIN_PHASE, EXPLANATIONS_FILE, Explained, Explainer, Secret, explain_features};
pub use files::{FEATURES_FOLDER, FeatureSet, LayerWriter, MANIFEST_FILE, Window, check_labels_beside};
pub use histogram::{Histogram, N_BINS, SMALLEST, bin_of, bin_start};
pub use labels::{LABELS_PHASE, LabelOptions, SCORES_FILE, ScoredLabel, import_labels, label_features, write_labels};
pub use manifest::{FEATURES_FORMAT_VERSION, Manifest, Provenance, Settings, Shard, Subject, TextFile, TextSource};
pub use merge::merge;
pub use pushes::{FeatureAt, Push, Pushes, pushes, pushes_here};
pub use report::{
    FeatureId, FeatureReport, ReportBin, ReportExample, ReportFeature, ReportHere, ReportPush, ReportToken,
    ReportWeights, report, report_here, report_weights,
};
pub use search::{ActiveHere, Found, SearchBy, active_on, search};
pub use state::check_state;
pub use tokens::TokenStore;
pub use virtual_weights::{VirtualWeight, VirtualWeights};

pub use crate::corpus::{Input, Piece, Pieces, Split, TextFormat, inputs};
