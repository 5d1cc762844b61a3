//! Long calls: the interpreter is free while they run, an interrupt cancels them, their progress is told.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use circuitscope::{CancelToken, Error, Job, Progress, Result};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::error::{Raise, raise};

/// How often signals are looked for and progress is told.
const POLL: Duration = Duration::from_millis(50);

/// As much as a program's first thread has.
const STACK_BYTES: usize = 8 << 20;

/// Runs `work` in a thread of its own, without the interpreter's lock. This thread meanwhile looks for signals, of which
/// an interrupt ends the work and is raised, and calls `progress(phase, done, total)`; what that raises ends the work too.
pub fn run<T: Send>(
    py: Python<'_>,
    progress: Option<Py<PyAny>>,
    work: impl FnOnce(&Job) -> Result<T> + Send,
) -> PyResult<T> {
    let cancel = CancelToken::default();
    let mut job = Job::default().with_cancel(cancel.clone());
    let latest: Arc<Mutex<Option<Progress>>> = Arc::default();
    if progress.is_some() {
        let latest = latest.clone();
        job = job.with_progress(move |told| *latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(told));
    }
    let mut raised: Option<PyErr> = None;
    let found = py.detach(|| {
        thread::scope(|scope| {
            let (send, receive) = sync_channel::<()>(1);
            let started = thread::Builder::new().name("circuitscope".into()).stack_size(STACK_BYTES).spawn_scoped(
                scope,
                move || {
                    let found = work(&job);
                    let _ = send.send(());
                    found
                },
            );
            let worker = match started {
                Ok(worker) => worker,
                Err(error) => return Ok(Err(Error::Threads { reason: error.to_string() })),
            };
            while let Err(RecvTimeoutError::Timeout) = receive.recv_timeout(POLL) {
                if raised.is_some() {
                    continue;
                }
                let told = latest.lock().unwrap_or_else(PoisonError::into_inner).take();
                let heard = Python::attach(|py| -> PyResult<()> {
                    py.check_signals()?;
                    if let (Some(Progress { phase, done, total, .. }), Some(progress)) = (told, &progress) {
                        progress.call1(py, (phase, done, total))?;
                    }
                    Ok(())
                });
                if let Err(error) = heard {
                    cancel.cancel();
                    raised = Some(error);
                }
            }
            worker.join()
        })
    });
    match (raised, found) {
        (Some(error), _) => Err(error),
        (None, Ok(found)) => found.map_err(|error| raise(py, &error)),
        (None, Err(_)) => Err(PyRuntimeError::new_err("circuitscope has failed where it should not; please report it")),
    }
}

/// Runs what takes a moment, without the interpreter's lock.
pub fn short<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    py.detach(work).raised(py)
}
