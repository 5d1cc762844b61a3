//! `circuitscope features`: what features are active on, collected from a text and looked at.

mod collect;
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
    }
}
