//! `circuitscope trace`: a prompt to a raw graph and a pruned one.

mod args;
mod coarse;
mod phases;
mod progress;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::Result;
use crate::attribution::{RowStore, requested};
use crate::circuits::{PairPlan, Summary, SummarySettings, summarize_with_raw};
use crate::export::check_writable;
use crate::memory::set_limit;
use crate::text::terminal;
use crate::tracer::{FinishedFile, Tracer};

use super::collected::Wanted;
use super::{Format, note, print_json, print_text, say, summary_text};
pub use args::TraceArgs;
use phases::{Phase, Phases};
use progress::TraceProgress;

/// What `--format json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    summary: &'a Summary,
    files: &'a [PathBuf],
    /// Only where they were asked for: two runs never take the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<&'a [Phase]>,
}

/// Whose features examples are of.
fn wanted(tracer: &Tracer) -> Wanted<'_> {
    let replacement = tracer.replacement();
    Wanted {
        model: tracer.model_name(),
        transcoders: &replacement.transcoder_source,
        scan: tracer.transcoder_name(),
        n_layers: replacement.model.config.n_layers,
    }
}

/// Traces a prompt, prints the summary, writes the files.
///
/// # Errors
/// Options out of range, files that cannot be read or written, prompts and targets that do not fit the model.
pub(super) fn run(args: &TraceArgs) -> Result<()> {
    args.setup.start_threads()?;
    let phases = Arc::new(Mutex::new(Phases::new()));
    let end_phase = |name: &'static str, note: String| {
        phases.lock().unwrap_or_else(PoisonError::into_inner).end(name, note);
    };
    args.check_use()?;
    if let Some(bytes) = args.memory {
        set_limit(bytes);
    }
    let settings = args.limit.of(args.thresholds.settings()?);
    check_writable(&args.out_dir)?;

    let tracer = args.setup.open(args.labels.as_deref())?;
    let prompt = tracer.tokenize(args.prompt.read()?)?;
    let set = match args.collected.wants_examples() {
        true => args.collected.open(wanted(&tracer))?,
        false => None,
    };
    if args.coarse {
        let progress = TraceProgress::new(args.setup.quiet, phases);
        let done = coarse::run(args, &tracer, prompt, &progress.job());
        progress.finish();
        return done;
    }
    let mut options = args.options(&tracer)?;
    let pair = PairPlan {
        folder: args.out_dir.clone(),
        name: args.slug.clone(),
        replaces_others: args.force,
        raw: !args.no_raw,
        json: !args.no_json,
        inputs: args.labels.iter().chain(args.prompt.file()).cloned().collect(),
    };
    let asked = requested(tracer.replacement(), &prompt.tokens, &options);
    pair.check(&asked, &prompt.text, &settings)?;
    let finished = match args.resume {
        true => Some(Arc::new(FinishedFile::new(&pair.path_while_tracing(&asked, &prompt.text, &settings)?))),
        false => None,
    };
    options.finished = finished.clone().map(|file| file as Arc<dyn RowStore>);
    options.check()?;
    end_phase("open", terminal(&format!("{} with {}", tracer.model_name(), tracer.transcoder_name())));

    let progress = TraceProgress::new(args.setup.quiet, phases.clone());
    let job = progress.job();
    let mut graph = tracer.trace_with(prompt, &options, &job)?;
    progress.finish();
    let (n_pos, n_active) = (graph.graph().input_tokens.len(), graph.graph().active_features.len());
    let work = graph.work().unwrap_or_default();
    let rows_per_sec = work.n_rows as f64 / work.rows_secs.max(1e-9);
    let short = if work.short_of_device_memory { "; too little GPU memory to choose features there" } else { "" };
    end_phase("attribute", format!("{} rows, {rows_per_sec:.0} rows/s{short}", work.n_rows));

    let mut circuit = graph.prune(&settings)?;
    end_phase("prune", String::new());
    if args.heads {
        let n_edges = tracer.add_heads(&mut graph, &mut circuit, &job)?;
        progress.finish();
        end_phase("heads", format!("{n_edges} edges"));
    }

    let files = pair.write(graph.graph(), &circuit, &settings)?;
    if let Some(finished) = finished {
        finished.remove()?;
    }
    end_phase("write", String::new());

    let mut phases = phases.lock().unwrap_or_else(PoisonError::into_inner);
    phases.note("forward", format!("{n_pos} positions, {n_active} active features"));
    let settings = SummarySettings { top: args.top, paths: args.paths, ..Default::default() };
    let mut summary = summarize_with_raw(&circuit, graph.graph(), &settings)?;
    args.collected.add_examples(&mut summary, set.as_ref())?;
    match args.format {
        Format::Text => print_text(&summary_text(&summary))?,
        Format::Json => {
            let timings = args.timings.then(|| phases.all());
            print_json(&Report { summary: &summary, files: &files, timings })?;
        }
    }
    if !args.setup.quiet {
        say(&format!("\n{}", phases.text()));
        files.iter().for_each(|file| note(&format!("wrote {}", file.display())));
    }
    #[cfg(feature = "serve")]
    if let Some(file) = files.first().filter(|_| args.open.open) {
        // The graph is in its file, and its memory is wanted for the next ones.
        drop(graph);
        return args.open.show(file, Some(Box::new(move || Ok(tracer))));
    }
    Ok(())
}
