//! `circuitscope features import`.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;

use crate::Result;
use crate::cli::counted::Counted;
use crate::cli::setup::SetupArgs;
use crate::cli::summary::percent;
use crate::cli::{note, print_data};
use crate::features::{Agreement, IMPORT_PHASE, ImportOptions, Imported, Provenance, import};

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// circuit-tracer's folder (index.json.gz and bins, or files NUMBER.json), or Neuronpedia's files (.jsonl, .jsonl.gz)
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Folder to write
    #[arg(long, short, value_name = "FOLDER")]
    out: PathBuf,
    /// Features that are compared with the model; 0 for none
    #[arg(long, value_name = "N", default_value_t = ImportOptions::default().n_checked)]
    check: usize,
    /// Strongest examples of a feature that are kept at most, and as many others
    #[arg(long, value_name = "N", default_value_t = ImportOptions::default().max_examples)]
    examples: usize,
    #[command(flatten)]
    setup: SetupArgs,
}

/// Imports, and says whether what was imported is true of the model here.
///
/// # Errors
/// Those of [`import`] and of opening the model.
pub(super) fn run(args: &ImportArgs) -> Result<()> {
    args.setup.start_threads()?;
    let options =
        ImportOptions { n_checked: args.check, max_examples: args.examples.clamp(1, 10_000), ..Default::default() };
    let tracer = args.setup.open(None)?;
    let shown = Counted::new(args.setup.quiet, &[(IMPORT_PHASE, "features")]);
    let imported = import(tracer.replacement(), &args.files, &args.out, &options, &shown.job());
    shown.finish();
    let imported = imported?;
    print_data(&imported_text(&imported))?;
    if !args.setup.quiet {
        note(&format!("wrote {}", args.out.display()));
    }
    Ok(())
}

fn imported_text(imported: &Imported) -> String {
    let mut text = String::new();
    let from = imported.manifest.imported.as_ref();
    let _ = writeln!(
        text,
        "{} features with {} examples, {} labels, from {}",
        imported.n_alive,
        imported.n_examples,
        imported.n_labels,
        from.map_or("", |from| &from.from)
    );
    if imported.n_left_out > 0 {
        let _ = writeln!(
            text,
            "{} examples left out: tokens that are not in this vocabulary, or no activation at their own token",
            imported.n_left_out
        );
    }
    match from.and_then(|from| from.agreement.as_ref()) {
        Some(agreement) => write_agreement(&mut text, agreement),
        None => text.push_str("nothing was compared with the model here\n"),
    }
    text
}

fn write_agreement(text: &mut String, agreement: &Agreement) {
    let verdict = if agreement.agrees() { "agrees with" } else { "DISAGREES with" };
    let _ = writeln!(
        text,
        "{verdict} the model here, by {} examples of {} features",
        agreement.n_examples, agreement.n_features
    );
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<46}{value:>8}");
    };
    row("same token strongest", percent(agreement.share_same_token));
    row("activation within a tenth of theirs", percent(agreement.share_near));
    if agreement.n_whole > 0 && agreement.n_whole < agreement.n_examples {
        row(&format!("the same of the {} that begin a text", agreement.n_whole), percent(agreement.share_near_whole));
    }
    row("median of activation here over theirs", format!("{:.3}", agreement.median_ratio));
    row("correlation of activations", format!("{:.3}", agreement.correlation));
    if let Some(share) = agreement.share_logits {
        row("logits pushed most that are theirs too", percent(share));
    }
    if agreement.n_whole == 0 {
        text.push_str(
            "  examples are cut out of texts: what stood before them is not known, and changes activations\n",
        );
    }
}

/// One line on where features are from.
pub(super) fn provenance_text(provenance: &Provenance) -> String {
    let verdict = match &provenance.agreement {
        Some(agreement) if agreement.agrees() => ", agrees with this model",
        Some(_) => ", DISAGREES with this model",
        None => ", not compared with this model",
    };
    format!("{}{verdict}", provenance.from)
}
