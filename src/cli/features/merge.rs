//! `circuitscope features merge`.

use std::path::PathBuf;

use clap::Args;

use crate::Result;
use crate::cli::{note, start_threads};
use crate::features::merge;
use crate::job::Job;

#[derive(Debug, Args)]
pub(super) struct MergeArgs {
    /// Folders that were collected with --shard, all parts; or with --mergeable, in the order of their texts
    #[arg(value_name = "FOLDER", required = true, num_args = 2..)]
    folders: Vec<PathBuf>,
    /// Folder to write
    #[arg(long, short, value_name = "FOLDER")]
    out: PathBuf,
    /// Keep what merging needs, to merge the result once more
    #[arg(long)]
    mergeable: bool,
    /// No notes on stderr
    #[arg(long, short)]
    quiet: bool,
}

/// Merges folders.
///
/// # Errors
/// Those of [`merge`]; [`crate::Error::Threads`].
pub(super) fn run(args: &MergeArgs) -> Result<()> {
    start_threads(None)?;
    let manifest = merge(&args.folders, &args.out, args.mergeable, &Job::default())?;
    if !args.quiet {
        let text = manifest.text;
        note(&format!("{} tokens of {} documents", text.n_tokens, text.n_documents));
        note(&format!("wrote {}", args.out.display()));
    }
    Ok(())
}
