//! What a terminal shows while a prompt is traced.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use super::phases::Phases;
use crate::attribution::TARGETS_PHASE;
use crate::job::{Job, Progress};

/// Work that takes less than this shows no progress bar.
const PROGRESS_AFTER: Duration = Duration::from_secs(1);

/// A spinner while the model runs, a bar once the rows have taken a while, and the end of the phase between them.
#[derive(Clone)]
pub(super) struct TraceProgress(Arc<Shown>);

struct Shown {
    quiet: bool,
    phases: Arc<Mutex<Phases>>,
    spinner: ProgressBar,
    model_has_run: AtomicBool,
    start: Instant,
    bar: OnceLock<ProgressBar>,
}

impl TraceProgress {
    pub(super) fn new(quiet: bool, phases: Arc<Mutex<Phases>>) -> Self {
        let quiet = quiet || !std::io::stderr().is_terminal();
        let spinner = if quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        spinner.set_message("running the model");
        if !quiet {
            spinner.enable_steady_tick(Duration::from_millis(200));
        }
        let (model_has_run, start) = (AtomicBool::new(false), Instant::now());
        Self(Arc::new(Shown { quiet, phases, spinner, model_has_run, start, bar: OnceLock::new() }))
    }

    /// A job whose progress is shown.
    pub(super) fn job(&self) -> Job {
        let shown = self.clone();
        Job::default().with_progress(move |progress| shown.show(progress))
    }

    /// Called from several threads.
    fn show(&self, progress: Progress) {
        let shown = &self.0;
        if progress.phase == TARGETS_PHASE && !shown.model_has_run.swap(true, Ordering::Relaxed) {
            shown.spinner.finish_and_clear();
            shown.phases.lock().unwrap_or_else(PoisonError::into_inner).end("forward", String::new());
        }
        if shown.quiet || !shown.model_has_run.load(Ordering::Relaxed) || shown.start.elapsed() < PROGRESS_AFTER {
            return;
        }
        let bar = shown.bar.get_or_init(|| {
            let bar = ProgressBar::new(progress.total as u64);
            match ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {per_sec} {msg}") {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        });
        bar.set_prefix(progress.phase);
        if let Some(left) = progress.left {
            bar.set_message(format!("{} left", HumanDuration(left)));
        }
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
    }

    pub(super) fn finish(&self) {
        self.0.spinner.finish_and_clear();
        if let Some(bar) = self.0.bar.get() {
            bar.finish_and_clear();
        }
    }
}
