//! `circuitscope features search`.

use std::path::PathBuf;

use clap::Args;

use crate::Result;

#[derive(Debug, Args)]
pub(super) struct SearchArgs {
    /// The folder of features
    folder: PathBuf,
    /// The feature, LAYER_FEATURE
    feature: String,
}

pub(super) fn run(args: &SearchArgs) -> Result<()> {
    let _ = args;
    Ok(())
}
