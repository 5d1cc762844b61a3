//! What is shown while something is counted: a bar in a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::note;
use crate::job::{Job, Progress};

/// Time between two lines of progress where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// Shows the phases of a call that count something, one after the other.
pub(super) struct Counted(Arc<Shown>);

struct Shown {
    quiet: bool,
    /// Phases that are shown, and what they count.
    phases: Vec<(&'static str, &'static str)>,
    bar: Option<ProgressBar>,
    start: Instant,
    now: Mutex<Now>,
}

struct Now {
    phase: &'static str,
    last_line: Instant,
}

impl Counted {
    /// Shows those of `phases`, which stand with the units that they count.
    pub fn new(quiet: bool, phases: &[(&'static str, &'static str)]) -> Self {
        let phases = phases.to_vec();
        let bar = (!quiet && std::io::stderr().is_terminal()).then(ProgressBar::no_length);
        let (start, last_line) = (Instant::now(), Instant::now());
        Self(Arc::new(Shown { quiet, phases, bar, start, now: Mutex::new(Now { phase: "", last_line }) }))
    }

    /// A job whose progress is shown.
    pub fn job(&self) -> Job {
        let shown = self.0.clone();
        Job::default().with_progress(move |progress| shown.show(progress))
    }

    /// Says something on stderr while the bar is there.
    pub fn say(&self, text: &str) {
        match &self.0.bar {
            Some(bar) => bar.suspend(|| note(text)),
            None => note(text),
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.0.bar {
            bar.finish_and_clear();
        }
    }
}

impl Shown {
    fn show(&self, Progress { phase, done, total, .. }: Progress) {
        let Some(&(_, unit)) = self.phases.iter().find(|(shown, _)| *shown == phase).filter(|_| !self.quiet) else {
            return;
        };
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = &self.bar {
            if now.phase != phase {
                now.phase = phase;
                begin(bar, unit, total);
            }
            bar.set_position(done as u64);
        } else if now.last_line.elapsed() >= LINE_EVERY {
            now.last_line = Instant::now();
            let of = if total > 0 { format!("{done} of {total}") } else { done.to_string() };
            note(&format!("{of} {unit}, {:.0} s", self.start.elapsed().as_secs_f64()));
        }
    }
}

fn begin(bar: &ProgressBar, unit: &str, total: usize) {
    let template = match total {
        0 => format!("{{spinner}} {{pos}} {unit} {{per_sec}}"),
        _ => format!("{unit} {{bar:40}} {{pos}}/{{len}} {{per_sec}} {{eta}} left"),
    };
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar.reset();
    match total {
        0 => bar.unset_length(),
        total => bar.set_length(total as u64),
    }
}
