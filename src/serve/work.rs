//! Long work: one thread has the model, one queue leads to it, and every piece of work can be watched and cancelled.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::error::Error;
use crate::job::{CancelToken, Job};
use crate::tracer::Tracer;

use super::OpenModel;
use super::reply::{Answer, Refusal};

/// What a server does for one request, at most.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Jobs that wait.
    pub queue: usize,
    /// Tokens of a prompt.
    pub positions: usize,
    /// Rows that are asked for by number.
    pub rows: usize,
    /// Tokens of a continuation.
    pub tokens: usize,
    /// Points of a sweep.
    pub points: usize,
    /// How long a job may run.
    pub time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { queue: 16, positions: 2048, rows: 50_000, tokens: 256, points: 1000, time: Duration::from_secs(3600) }
    }
}

/// Jobs that ended and are still known.
const MAX_ENDED: usize = 50;

/// Progress is told this often.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);

/// How long a job goes on that nobody has begun to watch, and that nobody watches any more.
const UNWATCHED: Duration = Duration::from_secs(30);
const LEFT: Duration = Duration::from_secs(5);

/// How often it is looked whether a job is still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How long a request waits for the model to be opened.
const OPENING: Duration = Duration::from_secs(60);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Queued,
    Running,
    Done,
    Failed,
    Cancelled,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Running => "running",
            State::Done => "done",
            State::Failed => "failed",
            State::Cancelled => "cancelled",
        }
    }

    pub fn is_over(self) -> bool {
        matches!(self, State::Done | State::Failed | State::Cancelled)
    }
}

/// Something that happened to a job; its number is its place.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub name: &'static str,
    /// One line of JSON.
    pub data: Arc<str>,
}

type Task = Box<dyn FnOnce(&Tracer, &Job, &Record) -> Answer<Value> + Send>;

/// A job from when it was asked for until it is forgotten.
pub(super) struct Record {
    pub id: String,
    pub kind: &'static str,
    cancel: CancelToken,
    told: Mutex<Told>,
    /// Counts the events.
    news: watch::Sender<usize>,
    n_listeners: AtomicUsize,
    /// When a job without listeners is cancelled; `None`: it goes on.
    wanted_until: Mutex<Option<Instant>>,
    task: Mutex<Option<Task>>,
}

/// What is known of a job.
struct Told {
    state: State,
    events: Vec<Event>,
    progress: Option<(&'static str, usize, usize)>,
    told_at: Instant,
    outcome: Option<Result<Value, Refusal>>,
    ahead: usize,
    created: f64,
    started: Option<Instant>,
    elapsed: Option<Duration>,
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Record({} {})", self.kind, self.id)
    }
}

impl Record {
    /// Tells whoever listens.
    pub fn emit(&self, name: &'static str, data: &Value) {
        let mut told = locked(&self.told);
        self.emit_in(&mut told, name, data);
    }

    fn emit_in(&self, told: &mut Told, name: &'static str, data: &Value) {
        told.events.push(Event { name, data: data.to_string().into() });
        self.news.send_replace(told.events.len());
    }

    fn progress(&self, phase: &'static str, done: usize, total: usize) {
        let mut told = locked(&self.told);
        let is_first = told.progress.is_none();
        told.progress = Some((phase, done, total));
        if is_first || told.told_at.elapsed() >= PROGRESS_EVERY {
            told.told_at = Instant::now();
            self.emit_in(&mut told, "progress", &json!({"phase": phase, "done": done, "total": total}));
        }
    }

    fn end(&self, outcome: Result<Value, Refusal>) {
        let mut told = locked(&self.told);
        if told.state.is_over() {
            return;
        }
        told.elapsed = told.started.map(|started| started.elapsed());
        match &outcome {
            Ok(result) => {
                told.state = State::Done;
                self.emit_in(&mut told, "done", &json!({ "result": result }));
            }
            Err(refusal) if refusal.kind == "cancelled" => {
                told.state = State::Cancelled;
                self.emit_in(&mut told, "cancelled", &json!({}));
            }
            Err(refusal) => {
                told.state = State::Failed;
                self.emit_in(&mut told, "failed", &refusal.to_json());
            }
        }
        told.outcome = Some(outcome);
    }

    /// Events from number `from` on, and whether there will be no more.
    pub fn events_from(&self, from: usize) -> (Vec<Event>, bool) {
        let told = locked(&self.told);
        (told.events.get(from..).unwrap_or_default().to_vec(), told.state.is_over())
    }

    /// Hears of news.
    pub fn news(&self) -> watch::Receiver<usize> {
        self.news.subscribe()
    }

    /// The outcome, once there is one, for whom alone it is: it may be a whole graph, and is kept for nobody else.
    pub fn take_outcome(&self) -> Option<Result<Value, Refusal>> {
        let mut told = locked(&self.told);
        let outcome = told.outcome.take()?;
        told.events.clear();
        Some(outcome)
    }

    /// The job as the interface gives it; its result in that of one job alone.
    pub fn to_json(&self, with_result: bool) -> Value {
        let told = locked(&self.told);
        let elapsed = told.elapsed.or_else(|| told.started.map(|started| started.elapsed()));
        let progress = told.progress.map(|(phase, done, total)| json!({"phase": phase, "done": done, "total": total}));
        let mut job = json!({
            "id": self.id,
            "kind": self.kind,
            "state": told.state.name(),
            "ahead": told.ahead,
            "progress": progress,
            "created": told.created,
            "elapsed_secs": elapsed.map(|elapsed| elapsed.as_secs_f64()),
        });
        match told.outcome.as_ref().filter(|_| with_result) {
            Some(Ok(result)) => job["result"] = result.clone(),
            Some(Err(refusal)) => job["error"] = refusal.to_json()["error"].take(),
            None => (),
        }
        job
    }

    /// Whoever asks for the job still wants it.
    pub fn touch(&self) {
        if let Some(until) = locked(&self.wanted_until).as_mut() {
            *until = (*until).max(Instant::now() + UNWATCHED);
        }
    }
}

/// As long as this is there, somebody listens to a job.
#[derive(Debug)]
pub(super) struct Listener {
    record: Arc<Record>,
    /// How long the job goes on without anybody.
    grace: Duration,
}

impl Listener {
    /// Listens to a job that others may find again.
    pub fn new(record: Arc<Record>) -> Self {
        Self::with_grace(record, LEFT)
    }

    /// Listens to a job that is for nobody else.
    pub fn alone(record: Arc<Record>) -> Self {
        Self::with_grace(record, Duration::ZERO)
    }

    fn with_grace(record: Arc<Record>, grace: Duration) -> Self {
        record.n_listeners.fetch_add(1, Ordering::AcqRel);
        Self { record, grace }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(until) = locked(&self.record.wanted_until).as_mut() {
            *until = Instant::now() + self.grace;
        }
        self.record.n_listeners.fetch_sub(1, Ordering::AcqRel);
    }
}

/// How far the model is.
#[derive(Debug, Clone)]
pub(super) enum ModelState {
    /// There is none.
    None,
    Opening,
    Open(Arc<Tracer>),
    Failed(Refusal),
}

/// The queue, and what became of its jobs.
struct Queue {
    waiting: VecDeque<Arc<Record>>,
    running: Option<Arc<Record>>,
    ended: VecDeque<Arc<Record>>,
    model: ModelState,
    n_made: u64,
    is_closed: bool,
}

/// The model and its queue.
pub(super) struct Work {
    queue: Mutex<Queue>,
    changed: Condvar,
    pub limits: Limits,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Work")
    }
}

impl Work {
    /// Starts the thread that opens the model and works through the queue.
    ///
    /// # Errors
    /// [`Error::Threads`].
    pub fn start(
        open: Option<OpenModel>,
        limits: Limits,
        at_start: impl FnOnce(&Tracer) + Send + 'static,
    ) -> crate::Result<Arc<Self>> {
        let model = if open.is_some() { ModelState::Opening } else { ModelState::None };
        let queue = Queue {
            waiting: VecDeque::new(),
            running: None,
            ended: VecDeque::new(),
            model,
            n_made: 0,
            is_closed: false,
        };
        let work = Arc::new(Self { queue: Mutex::new(queue), changed: Condvar::new(), limits });
        let failed = |error: std::io::Error| Error::Threads { reason: error.to_string() };
        if let Some(open) = open {
            let own = work.clone();
            let run = move || own.run(open, at_start);
            std::thread::Builder::new().name("model".into()).spawn(run).map_err(failed)?;
        }
        let own = work.clone();
        std::thread::Builder::new().name("jobs".into()).spawn(move || own.look_after()).map_err(failed)?;
        Ok(work)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        locked(&self.queue)
    }

    /// Opens the model, then does one job after the other.
    fn run(&self, open: OpenModel, at_start: impl FnOnce(&Tracer)) {
        let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(open));
        let opened = opened.unwrap_or_else(|_| Err(Error::Threads { reason: "opening the model failed".into() }));
        let model = match opened {
            Ok(tracer) => {
                let tracer = Arc::new(tracer);
                at_start(&tracer);
                ModelState::Open(tracer)
            }
            Err(error) => ModelState::Failed(Refusal::from(error)),
        };
        self.lock().model = model.clone();
        self.changed.notify_all();
        loop {
            let Some(record) = self.next() else { return };
            let task = locked(&record.task).take();
            let outcome = match (&model, task) {
                (ModelState::Open(tracer), Some(task)) => {
                    let (heard, cancel) = (Arc::downgrade(&record), record.cancel.clone());
                    let job = Job::default().with_cancel(cancel).with_progress(move |progress| {
                        if let Some(record) = heard.upgrade() {
                            record.progress(progress.phase, progress.done, progress.total);
                        }
                    });
                    // What goes wrong in one job is no reason to lose the others.
                    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| task(tracer, &job, &record)));
                    caught
                        .unwrap_or_else(|_| Err(Refusal::internal("this job failed because of a fault in the program")))
                }
                (ModelState::Failed(refusal), _) => Err(refusal.clone()),
                _ => Err(Refusal::no_model()),
            };
            let mut queue = self.lock();
            queue.running = None;
            queue.ended.push_back(record.clone());
            if queue.ended.len() > MAX_ENDED {
                queue.ended.pop_front();
            }
            drop(queue);
            // Who hears of the end finds the model free.
            record.end(outcome);
            self.changed.notify_all();
        }
    }

    /// The next job, once there is one; nothing when the server has gone.
    fn next(&self) -> Option<Arc<Record>> {
        let mut queue = self.lock();
        loop {
            if queue.is_closed {
                return None;
            }
            if let Some(record) = queue.waiting.pop_front() {
                let mut told = locked(&record.told);
                told.state = State::Running;
                told.started = Some(Instant::now());
                record.emit_in(&mut told, "started", &json!({}));
                drop(told);
                queue.running = Some(record.clone());
                for (ahead, waiting) in queue.waiting.iter().enumerate() {
                    let mut told = locked(&waiting.told);
                    told.ahead = ahead + 1;
                    waiting.emit_in(&mut told, "queued", &json!({ "ahead": ahead + 1 }));
                }
                return Some(record);
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Cancels what nobody wants any more, and what runs too long.
    fn look_after(&self) {
        loop {
            let queue = self.lock();
            if queue.is_closed {
                return;
            }
            let unwanted = |record: &&Arc<Record>| {
                let until = *locked(&record.wanted_until);
                record.n_listeners.load(Ordering::Acquire) == 0 && until.is_some_and(|until| until <= Instant::now())
            };
            let over: Vec<Arc<Record>> = queue.waiting.iter().chain(&queue.running).filter(unwanted).cloned().collect();
            let late = queue.running.iter().find(|record| {
                locked(&record.told).started.is_some_and(|started| started.elapsed() > self.limits.time)
            });
            let late = late.cloned();
            let is_idle = queue.waiting.is_empty() && queue.running.is_none();
            drop(queue);
            over.iter().for_each(|record| self.cancel(record));
            if let Some(record) = late {
                let secs = self.limits.time.as_secs();
                record.end(Err(Refusal::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "timeout",
                    format!("the job took longer than {secs} s"),
                )));
                record.cancel.cancel();
            }
            // While nothing is to be done nothing is looked at.
            let queue = self.lock();
            if is_idle && queue.waiting.is_empty() && queue.running.is_none() && !queue.is_closed {
                drop(self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner));
            } else {
                drop(queue);
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }

    /// Ends both threads, after the job that runs.
    pub fn close(&self) {
        let mut queue = self.lock();
        queue.is_closed = true;
        queue.running.iter().chain(&queue.waiting).for_each(|record| record.cancel.cancel());
        drop(queue);
        self.changed.notify_all();
    }

    /// Puts a job at the end of the queue.
    ///
    /// # Errors
    /// There is no model; the queue is full.
    pub fn ask(
        &self,
        kind: &'static str,
        is_detached: bool,
        task: impl FnOnce(&Tracer, &Job, &Record) -> Answer<Value> + Send + 'static,
    ) -> Answer<Arc<Record>> {
        let mut queue = self.lock();
        match &queue.model {
            ModelState::None => return Err(Refusal::no_model()),
            ModelState::Failed(refusal) => return Err(refusal.clone()),
            ModelState::Opening | ModelState::Open(_) => (),
        }
        if queue.waiting.len() >= self.limits.queue {
            let message = format!("{} jobs are waiting already", queue.waiting.len());
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "queue_full", message)
                .hint("try again when one of them is done"));
        }
        queue.n_made += 1;
        let ahead = queue.waiting.len() + usize::from(queue.running.is_some());
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        let told = Told {
            state: State::Queued,
            events: Vec::new(),
            progress: None,
            told_at: Instant::now(),
            outcome: None,
            ahead,
            created,
            started: None,
            elapsed: None,
        };
        let record = Arc::new(Record {
            id: format!("{}-{kind}", queue.n_made),
            kind,
            cancel: CancelToken::default(),
            told: Mutex::new(told),
            news: watch::Sender::new(0),
            n_listeners: AtomicUsize::new(0),
            wanted_until: Mutex::new((!is_detached).then(|| Instant::now() + UNWATCHED)),
            task: Mutex::new(Some(Box::new(task))),
        });
        record.emit("queued", &json!({ "ahead": ahead }));
        queue.waiting.push_back(record.clone());
        drop(queue);
        self.changed.notify_all();
        Ok(record)
    }

    /// Cancels a job: one that waits ends now, one that runs within a batch or a layer.
    pub fn cancel(&self, record: &Arc<Record>) {
        let mut queue = self.lock();
        let at = queue.waiting.iter().position(|waiting| Arc::ptr_eq(waiting, record));
        if let Some(record) = at.and_then(|at| queue.waiting.remove(at)) {
            locked(&record.task).take();
            record.end(Err(Refusal::from(Error::Cancelled)));
            queue.ended.push_back(record);
        }
        drop(queue);
        record.cancel.cancel();
    }

    /// A job by its id.
    pub fn find(&self, id: &str) -> Option<Arc<Record>> {
        let queue = self.lock();
        queue.waiting.iter().chain(&queue.running).chain(&queue.ended).find(|record| record.id == id).cloned()
    }

    /// All jobs, the newest first.
    pub fn all(&self) -> Vec<Arc<Record>> {
        let queue = self.lock();
        queue.waiting.iter().rev().chain(&queue.running).chain(queue.ended.iter().rev()).cloned().collect()
    }

    /// Jobs that wait, and that run.
    pub fn counts(&self) -> (usize, usize) {
        let queue = self.lock();
        (queue.waiting.len(), usize::from(queue.running.is_some()))
    }

    /// How far the model is.
    pub fn model(&self) -> ModelState {
        self.lock().model.clone()
    }

    /// Waits until the model is open or has failed, for some time at most.
    pub fn wait_open(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut queue = self.lock();
        while matches!(queue.model, ModelState::Opening) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            queue = self.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The model, once it is open.
    ///
    /// # Errors
    /// There is none; it cannot be opened, or takes long.
    pub fn tracer(&self) -> Answer<Arc<Tracer>> {
        let mut queue = self.lock();
        let until = Instant::now() + OPENING;
        loop {
            match &queue.model {
                ModelState::Open(tracer) => return Ok(tracer.clone()),
                ModelState::None => return Err(Refusal::no_model()),
                ModelState::Failed(refusal) => return Err(refusal.clone()),
                ModelState::Opening => (),
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Refusal::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "opening",
                    "the model is still being opened",
                ));
            }
            queue = self.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
