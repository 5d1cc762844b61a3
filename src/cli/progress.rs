//! What long commands show on a terminal while they work.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Work that takes less than this shows no progress bar.
const PROGRESS_AFTER: Duration = Duration::from_secs(1);

/// A spinner on a terminal, with what is being done.
pub(super) fn spinner(quiet: bool, message: &'static str) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner().with_message(message);
    spinner.enable_steady_tick(Duration::from_millis(200));
    spinner
}

/// A bar that appears once the rows have taken a while.
pub(super) struct RowBar {
    quiet: bool,
    start: Instant,
    bar: OnceLock<ProgressBar>,
}

impl RowBar {
    pub(super) fn new(quiet: bool) -> Self {
        Self { quiet: quiet || !std::io::stderr().is_terminal(), start: Instant::now(), bar: OnceLock::new() }
    }

    /// `done` of `all` rows are there.
    pub(super) fn set(&self, done: usize, all: usize) {
        if self.quiet || self.start.elapsed() < PROGRESS_AFTER {
            return;
        }
        let bar = self.bar.get_or_init(|| {
            let bar = ProgressBar::new(all as u64);
            match ProgressStyle::with_template("rows {bar:40} {pos}/{len} {per_sec} {eta} left") {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        });
        bar.set_position(done as u64);
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}
