//! `job`: what goes with every long call: where its progress is told, and whether it is still wanted.
//!
//! In: a callback and a [`CancelToken`] of the caller. Out: [`Error::Cancelled`] from whatever runs, within a batch or
//! a layer of when the token was set.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::{Error, Result};

/// How far a phase of a call is. Phases follow one another; `done` never falls within one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done, as a noun: `rows`, `layers`.
    pub phase: &'static str,
    /// Units done so far.
    pub done: usize,
    /// Units in all.
    pub total: usize,
    /// How long the call goes on, as far as can be told: of work whose units are not alike.
    pub left: Option<Duration>,
}

type Report = dyn Fn(Progress) + Send + Sync;

/// Asks calls to end early, from any thread. Clones ask the same calls.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// Asks every call whose job has this token to end; it cannot be taken back.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether [`CancelToken::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Progress and cancellation of a call. [`Job::default`] tells nobody and is never cancelled; clones share both.
#[derive(Clone, Default)]
pub struct Job {
    report: Option<Arc<Report>>,
    cancel: CancelToken,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (reports, cancelled) = (self.report.is_some(), self.cancel.is_cancelled());
        f.debug_struct("Job").field("reports", &reports).field("cancelled", &cancelled).finish()
    }
}

impl Job {
    /// The same job, its progress told to `report`, which is called from several threads and should return quickly.
    pub fn with_progress(self, report: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        Self { report: Some(Arc::new(report)), ..self }
    }

    /// The same job, ended by `cancel`.
    pub fn with_cancel(self, cancel: CancelToken) -> Self {
        Self { cancel, ..self }
    }

    /// Whether to go on.
    ///
    /// # Errors
    /// [`Error::Cancelled`]
    pub fn check(&self) -> Result<()> {
        if self.cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// A job that ends with this one and tells nobody: for parts of a call whose phases are not the call's own.
    pub(crate) fn unreported(&self) -> Self {
        Self { report: None, cancel: self.cancel.clone() }
    }

    /// Tells how far a phase is.
    pub fn report(&self, phase: &'static str, done: usize, total: usize) {
        self.report_with(phase, done, total, None);
    }

    /// As [`Job::report`], with how long the call goes on.
    pub fn report_with(&self, phase: &'static str, done: usize, total: usize, left: Option<Duration>) {
        if let Some(report) = &self.report {
            report(Progress { phase, done, total, left });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn a_token_cancels_every_clone_of_its_job_and_the_default_job_never_ends() {
        let token = CancelToken::default();
        let job = Job::default().with_cancel(token.clone());
        let clone = job.clone();
        assert!(clone.check().is_ok());
        std::thread::spawn(move || token.cancel()).join().unwrap();
        assert!(matches!(clone.check(), Err(Error::Cancelled)));
        assert!(matches!(job.check(), Err(Error::Cancelled)));
        assert!(Job::default().check().is_ok());
    }

    #[test]
    fn progress_arrives_as_it_was_told() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let seen = told.clone();
        let job = Job::default().with_progress(move |progress| seen.lock().unwrap().push(progress));
        job.report("rows", 3, 10);
        assert_eq!(*told.lock().unwrap(), [Progress { phase: "rows", done: 3, total: 10, left: None }]);
    }
}
