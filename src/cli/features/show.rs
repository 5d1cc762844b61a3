//! `circuitscope features show`.

use clap::Args;

use super::import::provenance_text;
use crate::Result;
use crate::cli::dashboard_text::{ShownParts, dashboard_text};
use crate::cli::setup::{GraphSource, SetupArgs};
use crate::cli::{Format, print_data, print_json};
use crate::features::{FeatureId, FeatureSet, ReportWeights, report, report_weights};

/// Logits and features that weights are shown of.
const N_WEIGHTS: usize = 10;

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// The folder of features, or the one of the transcoders that it is in; `atlas` for those of the embedded model
    folder: String,
    /// The feature, LAYER_FEATURE
    feature: FeatureId,
    /// Strongest examples that are shown
    #[arg(long, value_name = "N", default_value_t = 8)]
    examples: usize,
    /// Sampled examples that are shown of each interval of the activation
    #[arg(long, value_name = "N", default_value_t = 2)]
    per_interval: usize,
    /// Show which features of earlier layers it reads and of later layers it feeds, by weights
    #[arg(long)]
    weights: bool,
    #[command(flatten)]
    setup: SetupArgs,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Shows a feature.
///
/// # Errors
/// A folder that cannot be read, a feature that does not exist.
pub(super) fn run(args: &ShowArgs) -> Result<()> {
    args.setup.start_threads()?;
    let set = FeatureSet::open_named(&args.folder)?;
    let mut report = report(&set, args.feature)?;
    report.weights = weights(args, &set)?;
    match args.format {
        Format::Json => print_json(&report),
        Format::Text => {
            if let Some(imported) = &set.manifest().imported {
                args.setup.note(&format!("from {}", provenance_text(imported)));
            }
            let shown =
                ShownParts { examples: args.examples, per_interval: args.per_interval, ..ShownParts::default() };
            print_data(&dashboard_text(&report, &shown))
        }
    }
}

/// What weights say. The model that features were collected with may be elsewhere: then the rest is shown without it, unless
/// it was asked for.
fn weights(args: &ShowArgs, set: &FeatureSet) -> Result<Option<ReportWeights>> {
    let opened = args.setup.open_with(None, Some(&GraphSource::of_features(set)));
    let found =
        opened.and_then(|tracer| report_weights(tracer.replacement(), set, args.feature, N_WEIGHTS, args.weights));
    match found {
        Err(error) if !args.weights && !args.setup.is_given() => {
            args.setup.note(&format!("what it pushes needs the model: {error}"));
            Ok(None)
        }
        found => found.map(Some),
    }
}
