//! `circuitscope features label`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::token_count;
use crate::Result;
use crate::cli::counted::Counted;
use crate::cli::note;
use crate::cli::setup::{GraphSource, SetupArgs};
use crate::error::Error;
use crate::export::check_writable;
use crate::features::{
    Asked, EXPLAIN_PHASE, Explainer, FeatureId, FeatureSet, LABELS_PHASE, LabelOptions, ScoredLabel, Secret,
    explain_features, import_labels, label_features, write_labels,
};

/// The environment's name of the explainer's key.
const KEY_VARIABLE: &str = "CIRCUITSCOPE_EXPLAINER_KEY";

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
    /// Take labels from files instead: Neuronpedia's explanations (.jsonl, .csv), or your own (.csv, .json)
    // What belongs to --explainer is a conflict of its own: beside what conflicts with it, the parser would not ask for it.
    #[arg(
        long,
        value_name = "FILE",
        num_args = 1..,
        conflicts_with_all = [
            "explainer", "explainer_model", "explain", "explain_at_most", "explainer_timeout", "explainer_tries",
            "explainer_parallel", "tokens", "min_f1",
        ],
        help_heading = "Labels from elsewhere"
    )]
    import: Vec<PathBuf>,
    /// Ask a language model for labels: the address of a service with OpenAI's interface, such as
    /// http://localhost:11434/v1. Its key is taken from CIRCUITSCOPE_EXPLAINER_KEY
    #[arg(long, value_name = "URL", requires = "explainer_model", help_heading = "Labels from elsewhere")]
    explainer: Option<String>,
    /// The model that the service is to use
    #[arg(long, value_name = "NAME", requires = "explainer", help_heading = "Labels from elsewhere")]
    explainer_model: Option<String>,
    /// Which features it is asked about
    #[arg(long, value_enum, default_value_t, requires = "explainer", help_heading = "Labels from elsewhere")]
    explain: Which,
    /// How many features at most [default: all]
    #[arg(long, value_name = "N", requires = "explainer", help_heading = "Labels from elsewhere")]
    explain_at_most: Option<usize>,
    /// Seconds that an answer may take
    #[arg(
        long,
        value_name = "SECS",
        default_value_t = 60.0,
        requires = "explainer",
        help_heading = "Labels from elsewhere"
    )]
    explainer_timeout: f64,
    /// Times that a question is asked, where the service fails
    #[arg(
        long,
        value_name = "N",
        default_value_t = 5,
        value_parser = clap::value_parser!(u16).range(1..=100),
        requires = "explainer",
        help_heading = "Labels from elsewhere"
    )]
    explainer_tries: u16,
    /// Questions at once
    #[arg(
        long,
        value_name = "N",
        default_value_t = 4,
        value_parser = clap::value_parser!(u16).range(1..=64),
        requires = "explainer",
        help_heading = "Labels from elsewhere"
    )]
    explainer_parallel: u16,
    #[command(flatten)]
    setup: SetupArgs,
}

/// Which features a service is asked about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Which {
    /// Those without a good label from the data
    #[default]
    Mixed,
    /// All
    All,
}

/// Labels, and says how good they are.
///
/// # Errors
/// Those of [`label_features`], [`explain_features`] and [`import_labels`]; a folder that cannot be written.
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
    if !args.import.is_empty() {
        let (n_read, n_all) = import_labels(&set, &args.import, out)?;
        args.setup.note(&format!("{n_read} labels read, {n_all} in all"));
        args.setup.note(&format!("wrote {}", out.join("feature_labels.json").display()));
        return Ok(());
    }
    let explainer = args.explainer()?;
    check_writable(out)?;
    let tracer = args.setup.open_with(None, Some(&GraphSource::of_features(&set)))?;
    let options = LabelOptions { max_tokens: args.tokens as usize, min_f1: args.min_f1 };
    let shown = Counted::new(args.setup.quiet, &[(LABELS_PHASE, "tokens"), (EXPLAIN_PHASE, "explanations")]);
    let job = shown.job();
    let (labels, explained) = match &explainer {
        None => (label_features(tracer.replacement(), &set, &options, &job), None),
        Some(explainer) => match explain_features(tracer.replacement(), &set, &options, explainer, out, &job) {
            Ok(mut explained) => (Ok(std::mem::take(&mut explained.labels)), Some(explained)),
            Err(error) => (Err(error), None),
        },
    };
    shown.finish();
    let labels = labels?;
    write_labels(out, &labels)?;
    if !args.setup.quiet {
        if let Some(explained) = explained {
            note(&format!(
                "{} features explained, {} kept from before, {} answers unusable; {} labels are the explainer's",
                explained.n_asked - explained.n_unusable,
                explained.n_kept,
                explained.n_unusable,
                explained.n_chosen
            ));
        }
        note(&quality(&labels));
        note(&format!("wrote {}", out.join("feature_labels.json").display()));
    }
    Ok(())
}

fn quality(labels: &BTreeMap<FeatureId, ScoredLabel>) -> String {
    let n_clear = labels.values().filter(|label| label.is_clear).count();
    let n_good = labels.values().filter(|label| label.f1 >= 0.5).count();
    let percent = |n: usize| 100.0 * n as f64 / labels.len().max(1) as f64;
    format!(
        "{} features labelled: {:.0} % with an F1 of 0.5 or more on held-out text, {:.0} % mixed",
        labels.len(),
        percent(n_good),
        percent(labels.len() - n_clear)
    )
}

impl LabelArgs {
    /// The service to ask, if there is one.
    fn explainer(&self) -> Result<Option<Explainer>> {
        let (Some(url), Some(model)) = (&self.explainer, &self.explainer_model) else { return Ok(None) };
        if !(0.01..=3600.0).contains(&self.explainer_timeout) {
            let text = self.explainer_timeout.to_string();
            return Err(Error::Spec { text, expected: "a time from 0.01 to 3600 seconds for --explainer-timeout" });
        }
        Ok(Some(Explainer {
            key: std::env::var(KEY_VARIABLE).ok().as_deref().and_then(Secret::new),
            asked: if self.explain == Which::All { Asked::All } else { Asked::Mixed },
            max_features: self.explain_at_most.unwrap_or(usize::MAX),
            timeout: Duration::from_secs_f64(self.explainer_timeout),
            n_tries: self.explainer_tries.into(),
            n_parallel: self.explainer_parallel.into(),
            ..Explainer::new(url, model)
        }))
    }
}
