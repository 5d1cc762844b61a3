//! `circuitscope features label`.

use std::path::Path;

use clap::Args;

use super::token_count;
use crate::Result;
use crate::cli::note;
use crate::cli::setup::{GraphSource, SetupArgs};
use crate::error::Error;
use crate::export::check_writable;
use crate::features::{FeatureSet, LabelOptions, label_features, write_labels};
use crate::job::Job;

#[derive(Debug, Args)]
pub(super) struct LabelArgs {
    /// The folder of features, or the one of the transcoders that it is in
    folder: String,
    /// Tokens of the collected text that go through the model again: one half to make labels from, the other to score
    /// them on
    #[arg(long, value_name = "N", value_parser = token_count, default_value = "200k")]
    tokens: u64,
    /// Labels of a lower F1 on the other half say "mixed"
    #[arg(long, value_name = "F1", default_value_t = LabelOptions::default().min_f1)]
    min_f1: f64,
    /// Folder to write to [default: that of the features]
    #[arg(long, short, value_name = "FOLDER")]
    out: Option<String>,
    #[command(flatten)]
    setup: SetupArgs,
}

/// Labels, and says how good they are.
///
/// # Errors
/// Those of [`label_features`]; a folder that cannot be written.
pub(super) fn run(args: &LabelArgs) -> Result<()> {
    args.setup.start_threads()?;
    if !(0.0..=1.0).contains(&args.min_f1) {
        return Err(Error::Spec { text: args.min_f1.to_string(), expected: "an F1 from 0 to 1 for --min-f1" });
    }
    let set = FeatureSet::open_named(&args.folder)?;
    let out = match (&args.out, set.folder().path()) {
        (Some(out), _) => Path::new(out),
        (None, Some(path)) => path,
        (None, None) => {
            let problem = "it is part of the program; --out says where to write".to_owned();
            return Err(Error::Collect { folder: set.folder().spec().to_owned(), problem });
        }
    };
    check_writable(out)?;
    let tracer = args.setup.open_with(None, Some(&GraphSource::of_features(&set)))?;
    let options = LabelOptions { max_tokens: args.tokens as usize, min_f1: args.min_f1 };
    let labels = label_features(tracer.replacement(), &set, &options, &Job::default())?;
    write_labels(out, &labels)?;
    if !args.setup.quiet {
        let n_clear = labels.values().filter(|label| label.is_clear).count();
        let n_good = labels.values().filter(|label| label.f1 >= 0.5).count();
        let percent = |n: usize| 100.0 * n as f64 / labels.len().max(1) as f64;
        note(&format!(
            "{} features labelled: {:.0} % with an F1 of 0.5 or more on held-out text, {:.0} % mixed",
            labels.len(),
            percent(n_good),
            percent(labels.len() - n_clear)
        ));
        note(&format!("wrote {}", out.join("feature_labels.json").display()));
    }
    Ok(())
}
