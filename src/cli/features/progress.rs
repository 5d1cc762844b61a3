//! How far a long command on features is.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::note;
use crate::job::{Job, Progress};

/// Time between two lines of progress where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// A bar in a terminal, a line now and then elsewhere. Clones show the same.
#[derive(Clone)]
pub(super) struct Shown(Arc<Inner>);

struct Inner {
    quiet: bool,
    /// Phases that are shown, and what they count.
    phases: Vec<(&'static str, &'static str)>,
    bar: Option<ProgressBar>,
    start: Instant,
    last_line: Mutex<Instant>,
    phase: Mutex<Option<&'static str>>,
}

impl Shown {
    /// `phases` are those that are shown, with the units that they count.
    pub(super) fn new(quiet: bool, phases: &[(&'static str, &'static str)]) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(ProgressBar::no_length);
        Self(Arc::new(Inner {
            quiet,
            phases: phases.to_vec(),
            bar,
            start: Instant::now(),
            last_line: Mutex::new(Instant::now()),
            phase: Mutex::new(None),
        }))
    }

    /// A job that is shown.
    pub(super) fn job(&self) -> Job {
        let shown = self.clone();
        Job::default().with_progress(move |progress| shown.show(progress))
    }

    fn show(&self, progress: Progress) {
        let inner = &self.0;
        let Some(&(_, unit)) = inner.phases.iter().find(|(phase, _)| *phase == progress.phase) else { return };
        if inner.quiet {
            return;
        }
        if let Some(bar) = &inner.bar {
            let mut phase = inner.phase.lock().unwrap_or_else(PoisonError::into_inner);
            if phase.replace(progress.phase) != Some(progress.phase) {
                bar.reset();
                let template = match progress.total {
                    0 => format!("{{spinner}} {{pos}} {unit} {{per_sec}}"),
                    _ => format!("{unit} {{bar:40}} {{pos}}/{{len}} {{per_sec}} {{eta}} left"),
                };
                if let Ok(style) = ProgressStyle::with_template(&template) {
                    bar.set_style(style);
                }
                if progress.total > 0 {
                    bar.set_length(progress.total as u64);
                }
            }
            bar.set_position(progress.done as u64);
            return;
        }
        let mut last = inner.last_line.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= LINE_EVERY {
            *last = Instant::now();
            let secs = inner.start.elapsed().as_secs_f64();
            let of = if progress.total > 0 { format!(" of {}", progress.total) } else { String::new() };
            note(&format!("{}{of} {unit}, {secs:.0} s", progress.done));
        }
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.0.bar {
            bar.finish_and_clear();
        }
    }
}
