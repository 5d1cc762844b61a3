//! `circuitscope features export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli::counted::Counted;
use crate::cli::note;
use crate::cli::setup::{GraphSource, SetupArgs};
use crate::features::{EXPORT_PHASE, ExportFormat, FeatureSet, export};
use crate::{Error, Result};

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// The folder of features, or the one of the transcoders that it is in; `atlas` for those of the embedded model
    folder: String,
    /// For which program
    #[arg(long, value_enum)]
    format: Format,
    /// Folder to write
    #[arg(long, short, value_name = "FOLDER")]
    out: PathBuf,
    /// Leave out the logits that features push, for which the model is needed
    #[arg(long)]
    no_logits: bool,
    #[command(flatten)]
    setup: SetupArgs,
}

/// For which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// circuit-tracer: index.json.gz and layer_N.bin
    CircuitTracer,
    /// circuit-tracer: features/SCAN/NUMBER.json, a file for each feature
    CircuitTracerFiles,
    /// Neuronpedia: LAYER-SET/features/batch-N.jsonl.gz
    Neuronpedia,
}

/// Exports.
///
/// # Errors
/// Those of [`export`] and of opening the model.
pub(super) fn run(args: &ExportArgs) -> Result<()> {
    if args.no_logits && args.setup.is_given() {
        let second = "--no-logits, which leaves out what a model is needed for";
        return Err(Error::Contradiction { first: "--model, --transcoders or --setup", second });
    }
    args.setup.start_threads()?;
    let set = FeatureSet::open_named(&args.folder)?;
    let tracer = match args.no_logits {
        true => None,
        false => Some(args.setup.open_with(None, Some(&GraphSource::of_features(&set)))?),
    };
    let format = match args.format {
        Format::CircuitTracer => ExportFormat::CircuitTracer,
        Format::CircuitTracerFiles => ExportFormat::CircuitTracerFiles,
        Format::Neuronpedia => ExportFormat::Neuronpedia,
    };
    let shown = Counted::new(args.setup.quiet, &[(EXPORT_PHASE, "features")]);
    let exported = export(&set, tracer.as_ref().map(|t| t.replacement()), &args.out, format, &shown.job());
    shown.finish();
    let exported = exported?;
    if !args.setup.quiet {
        let (n, n_alive) = (exported.n_features, exported.n_alive);
        note(&format!("{n} features, {n_alive} of them ever active, in {} files", exported.n_files));
        note(&format!("wrote {}", args.out.display()));
    }
    Ok(())
}
