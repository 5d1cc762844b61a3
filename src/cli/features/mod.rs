//! `circuitscope features`: what features are active on, collected from a text and looked at.

mod collect;
mod export;
mod import;
mod label;
mod merge;
mod search;
mod show;

use clap::{Args, Subcommand};

use crate::Result;

/// What features are active on.
#[derive(Debug, Args)]
pub struct FeaturesArgs {
    #[command(subcommand)]
    command: FeaturesCommand,
}

#[derive(Debug, Subcommand)]
enum FeaturesCommand {
    /// Read a text with the model, and keep what each feature is active on
    Collect(collect::CollectArgs),
    /// Show a feature: how often it is active, on what, and examples
    Show(show::ShowArgs),
    /// Find features by the tokens they are active on, or by a text
    Search(search::SearchArgs),
    /// Name features by what they are active on, with scores on held-out text
    Label(label::LabelArgs),
    /// Make one folder of features of several
    Merge(merge::MergeArgs),
    /// Write features for circuit-tracer's or Neuronpedia's pages
    Export(export::ExportArgs),
    /// Read features of circuit-tracer or Neuronpedia, and check them against the model
    Import(import::ImportArgs),
}

/// Runs a subcommand.
///
/// # Errors
/// Those of the subcommands.
pub(super) fn run(args: &FeaturesArgs) -> Result<()> {
    match &args.command {
        FeaturesCommand::Collect(args) => collect::run(args),
        FeaturesCommand::Show(args) => show::run(args),
        FeaturesCommand::Search(args) => search::run(args),
        FeaturesCommand::Label(args) => label::run(args),
        FeaturesCommand::Merge(args) => merge::run(args),
        FeaturesCommand::Export(args) => export::run(args),
        FeaturesCommand::Import(args) => import::run(args),
    }
}

/// A number of tokens such as `300000`, `300k` or `1.5M`.
pub(super) fn token_count(text: &str) -> Result<u64, String> {
    let expected = || format!("{text:?} is no number of tokens such as 300000, 300k or 1.5M");
    let lower = text.to_ascii_lowercase();
    let (digits, unit) = match lower.strip_suffix(['k', 'm', 'g']) {
        Some(digits) => (
            digits,
            if lower.ends_with('k') {
                1e3
            } else if lower.ends_with('m') {
                1e6
            } else {
                1e9
            },
        ),
        None => (lower.as_str(), 1.0),
    };
    let value = digits.parse::<f64>().map_err(|_| expected())? * unit;
    if (1.0..=1e15).contains(&value) { Ok(value as u64) } else { Err(expected()) }
}

#[cfg(test)]
mod tests {
    use super::token_count;

    #[test]
    fn tokens_are_counted_in_thousands_and_millions() {
        let counts = ["300000", "300k", "1.5M", "2G"].map(|text| token_count(text).unwrap());
        assert_eq!(counts, [300_000, 300_000, 1_500_000, 2_000_000_000]);
        for text in ["", "k", "-3", "0", "1e99", "nan", "3T"] {
            assert!(token_count(text).is_err(), "{text}");
        }
    }
}
