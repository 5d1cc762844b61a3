//! `circuitscope features show`.

use std::path::PathBuf;

use clap::Args;

use crate::Result;

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// The folder of features
    folder: PathBuf,
    /// The feature, LAYER_FEATURE
    feature: String,
}

pub(super) fn run(args: &ShowArgs) -> Result<()> {
    let _ = args;
    Ok(())
}
