//! The lines are traced, several at once where that pays, and what came of them is written down.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::index::{Entry, EntryTarget, INDEX_FILE, Index, News, TIMES_FILE, Took, add};
use super::plan::{Plan, Planned, failure, pair, plan};
use super::{Batch, BatchOptions, Failure, PROMPTS_PHASE, Told};
use crate::error::{Error, Result};
use crate::export::{WireMetadata, check_list, check_not_input, check_writable};
use crate::graph::{AttributionGraph, Circuit};
use crate::job::Job;
use crate::memory::share_memory;
use crate::tracer::{TraceWork, Tracer};

/// Time between two writings of the index, at least: what a run that is killed has to do again.
const INDEX_EVERY: Duration = Duration::from_secs(1);

/// And at least so many times what the last writing took: an index of many graphs is written in more than a moment.
const INDEX_SHARE: u32 = 20;

/// Prompts for which it is worth reading all weights into memory first.
const MIN_KEPT: usize = 2;

/// Traces the prompts of a text, a JSON object a line ([`super::PromptLine`]).
///
/// Several prompts are traced at once where the base model's weights are kept in memory, each by one thread: threads that
/// share one prompt wait for each other. The files do not depend on it. Prompts that then do not fit into memory are traced
/// alone, after the others.
///
/// A line that fails is among the failures, in the index, and told to `tell`; the others go on.
///
/// # Errors
/// A text without lines, a folder that cannot be written, an index that is none, files that cannot be written; those of
/// reading weights; [`Error::Cancelled`]. Whatever was reached is in the index.
pub fn run(
    tracer: &Tracer,
    text: &[u8],
    options: &BatchOptions,
    job: &Job,
    tell: &(dyn Fn(Told) + Sync),
) -> Result<Batch> {
    check_writable(&options.folder)?;
    check_list(&options.folder)?;
    let inputs: Vec<_> = options.inputs.iter().map(PathBuf::as_path).collect();
    for name in [INDEX_FILE, TIMES_FILE] {
        check_not_input(&options.folder.join(name), &inputs)?;
    }
    let index = Index::read(&options.folder)?;
    let Plan { todo, n_lines, n_there, n_same, failures } = plan(tracer, text, &index, options)?;
    drop(index);
    failures.iter().for_each(|failure| tell(Told::Failed(failure)));
    let n_done = n_lines - todo.len();
    let keeps = todo.len() >= MIN_KEPT && tracer.replacement().keep_weights()?;
    let n_threads = rayon::current_num_threads();
    let n_at_once = if keeps { n_threads.min(todo.len()) } else { 1 };
    let start = Instant::now();
    let state = State { news: News::default(), failures, last: Instant::now(), took: Duration::ZERO };
    let work = Work {
        tracer,
        options,
        tell,
        job: job.unreported(),
        todo: &todo,
        next: AtomicUsize::new(0),
        too_large: Mutex::default(),
        n_traced: AtomicUsize::new(0),
        is_over: AtomicBool::new(false),
        state: Mutex::new(state),
        told: &|n| job.report(PROMPTS_PHASE, n_done + n, n_lines),
    };
    (work.told)(0);
    let mut result = if n_at_once > 1 { work.at_once(n_at_once, n_threads) } else { work.one_by_one(|| work.next()) };
    if result.is_ok() {
        // Those that did not fit beside others.
        result = work.one_by_one(|| work.too_large.lock().unwrap_or_else(PoisonError::into_inner).pop());
    }
    let written = work.write_down(work.state(), true);
    let n_traced = work.n_traced.load(Ordering::Relaxed);
    let State { mut failures, .. } = work.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    result.and(written)?;
    failures.sort_by_key(|failure| failure.line);
    Ok(Batch { n_lines, n_traced, n_there, n_same, failures, n_at_once, secs: start.elapsed().as_secs_f64() })
}

/// What is not in the index yet.
struct State {
    news: News,
    /// All of this run.
    failures: Vec<Failure>,
    /// When the index was last written, and how long that took.
    last: Instant,
    took: Duration,
}

/// What the threads share.
struct Work<'a> {
    tracer: &'a Tracer,
    options: &'a BatchOptions,
    tell: &'a (dyn Fn(Told) + Sync),
    job: Job,
    todo: &'a [Planned],
    /// Of `todo`.
    next: AtomicUsize,
    /// Places in `todo` of what did not fit into memory beside others.
    too_large: Mutex<Vec<usize>>,
    n_traced: AtomicUsize,
    /// Set where one thread has failed in a way that ends all.
    is_over: AtomicBool,
    state: Mutex<State>,
    told: &'a (dyn Fn(usize) + Sync),
}

/// What tracing a line gave.
struct Traced {
    entry: Entry,
    took: Took,
    listed: Option<WireMetadata>,
}

impl Work<'_> {
    fn next(&self) -> Option<usize> {
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        (at < self.todo.len()).then_some(at)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Traces by the threads of this program.
    fn one_by_one(&self, next: impl Fn() -> Option<usize>) -> Result<()> {
        while let Some(at) = next() {
            self.line(at, false)?;
        }
        Ok(())
    }

    /// Traces so many prompts at once, each by threads of its own.
    fn at_once(&self, n_at_once: usize, n_threads: usize) -> Result<()> {
        let pools: Vec<ThreadPool> = (0..n_at_once)
            .map_while(|at| {
                // All of them together as many as there were.
                let n = (n_threads + at) / n_at_once;
                let builder = ThreadPoolBuilder::new().num_threads(n);
                builder.start_handler(move |_| share_memory(n_at_once)).build().ok()
            })
            .collect();
        if pools.len() < 2 {
            // There are no threads to be had for more.
            return self.one_by_one(|| self.next());
        }
        let worker = |pool: &ThreadPool| -> Result<()> {
            let all = || -> Result<()> {
                while let Some(at) = self.next() {
                    if self.is_over.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    self.line(at, true)?;
                }
                Ok(())
            };
            let ended = pool.install(all);
            if ended.is_err() {
                self.is_over.store(true, Ordering::Relaxed);
            }
            ended
        };
        std::thread::scope(|scope| {
            let worker = &worker;
            let spawned: Vec<_> = pools[1..]
                .iter()
                .map_while(|pool| std::thread::Builder::new().spawn_scoped(scope, move || worker(pool)).ok())
                .collect();
            let mut result = worker(&pools[0]);
            for thread in spawned {
                let ended = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                // What went wrong says more than that somebody asked to stop.
                result = match result {
                    Err(error) if !matches!(error.root(), Error::Cancelled) => Err(error),
                    before => ended.and(before),
                };
            }
            result
        })
    }

    /// Traces a line and notes what came of it; `others` where others are traced at the same time.
    ///
    /// # Errors
    /// What ends the whole: cancelled, or files that cannot be written.
    fn line(&self, at: usize, others: bool) -> Result<()> {
        let planned = &self.todo[at];
        let outcome = match self.trace(planned) {
            Err(error) if ends_all(&error) => return Err(error),
            Err(error) if others && matches!(error.root(), Error::OutOfMemory { .. }) => {
                self.too_large.lock().unwrap_or_else(PoisonError::into_inner).push(at);
                return Ok(());
            }
            outcome => outcome,
        };
        let mut state = self.state();
        match outcome {
            Ok(Traced { entry, took, listed }) => {
                state.news.entries.push(entry);
                state.news.times.push(took);
                state.news.listed.extend(listed);
                (self.told)(self.n_traced.fetch_add(1, Ordering::Relaxed) + 1);
            }
            Err(error) => {
                let failure = failure(planned.line, &error);
                (self.tell)(Told::Failed(&failure));
                state.failures.push(failure);
            }
        }
        self.write_down(state, false)
    }

    /// Writes the index, where it is time to.
    fn write_down(&self, mut state: MutexGuard<State>, now: bool) -> Result<()> {
        if !now && state.last.elapsed() < INDEX_EVERY.max(state.took * INDEX_SHARE) {
            return Ok(());
        }
        let start = Instant::now();
        let news = std::mem::take(&mut state.news);
        let written = add(&self.options.folder, &news, &state.failures, self.options.shard);
        if written.is_err() {
            state.news = news;
        }
        (state.last, state.took) = (Instant::now(), start.elapsed());
        written
    }

    fn trace(&self, planned: &Planned) -> Result<Traced> {
        let Planned { name, hash, request, .. } = planned;
        let start = Instant::now();
        let mut traced = self.tracer.trace_with(request.prompt.clone(), &request.options, &self.job)?;
        let mut circuit = traced.prune(&request.pruning)?;
        if request.heads {
            self.tracer.add_heads(&mut traced, &mut circuit, &self.job)?;
        }
        self.job.check()?;
        let pair = pair(self.options, name);
        let (files, listed) = pair.write_unlisted(traced.graph(), &circuit, &request.pruning)?;
        let work = traced.work().unwrap_or_default();
        let entry = entry(name, hash, traced.graph(), &circuit, &files)?;
        let TraceWork { n_rows, rows_secs, .. } = work;
        let took = Took { slug: name.clone(), secs: start.elapsed().as_secs_f64(), n_rows, rows_secs };
        Ok(Traced { entry, took, listed })
    }
}

/// Whether an error is not of one line: everybody's files go to the same place.
fn ends_all(error: &Error) -> bool {
    matches!(error.root(), Error::Cancelled | Error::Io { doing: "cannot write" | "cannot make the folder", .. })
}

fn entry(name: &str, hash: &str, graph: &AttributionGraph, circuit: &Circuit, files: &[PathBuf]) -> Result<Entry> {
    let meta = &graph.meta;
    let size = |path: &PathBuf| {
        let failed = |source| Error::Io { doing: "cannot read", path: path.clone(), source };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok((name, path.metadata().map_err(failed)?.len()))
    };
    let targets = meta.target_labels.iter().zip(&graph.target_probabilities);
    Ok(Entry {
        slug: name.to_owned(),
        hash: hash.to_owned(),
        prompt: meta.prompt.clone(),
        n_tokens: graph.input_tokens.len(),
        n_active: graph.active_features.len(),
        n_nodes: circuit.graph().node_count(),
        n_edges: circuit.graph().edge_count(),
        targets: targets.map(|(label, &weight)| EntryTarget { label: label.clone(), weight }).collect(),
        replacement_score: meta.replacement_score,
        completeness_score: meta.completeness_score,
        row_identity_error: meta.row_identity_error,
        files: files.iter().map(size).collect::<Result<_>>()?,
    })
}
