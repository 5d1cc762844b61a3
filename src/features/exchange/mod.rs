//! Features in the files of other programs: circuit-tracer's bundle of bins and files of single features, Neuronpedia's
//! lines of JSON. Written from a [`FeatureSet`](super::FeatureSet), and read into one, with a check whether what they say
//! is true of the model here.

mod agreement;
mod bundle;
mod circuit_tracer;
mod export;
mod foreign;
mod gzip;
mod hosted;
mod import;
mod lines;
mod names;
mod neuronpedia;
mod source;
mod vocabulary;

pub use agreement::Agreement;
pub use bundle::{Bundle, INDEX_FILE};
pub use export::{EXPORT_PHASE, ExportFormat, Exported, export};
pub use hosted::{HostedExample, HostedFeature, NEURONPEDIA, hosted_feature};
pub use import::{IMPORT_PHASE, ImportOptions, Imported, import};
pub use names::read_names;
