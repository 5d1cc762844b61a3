//! Names of features from a language model behind an HTTP interface as OpenAI's: it sees examples of a feature, and says
//! what the feature is active on, in words and as tokens. The tokens are what is scored, on text that it has not seen.

mod answer;
mod client;
mod prompt;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::files::FeatureSet;
use super::labels::{LabelOptions, Labelled, ScoredLabel, write_json};
use super::pushes::{Pushes, pushes};
use super::report::FeatureId;
use crate::error::{Error, Result};
use crate::job::Job;
use crate::replacement::Replacement;
use crate::text::terminal;

pub use answer::Answer;
pub use client::Secret;

use answer::conditions;
use client::{Client, Failure};
use prompt::{N_LOGITS, messages};

/// The phase of a [`Job`] that counts features which were asked for.
pub const EXPLAIN_PHASE: &str = "explanations";

/// Where answers are kept, so that none is asked for twice.
pub const EXPLANATIONS_FILE: &str = "explanations.json";

/// The version of that file and of the question.
const FORMAT_VERSION: u32 = 1;

/// Features in a row without a usable answer, after which nothing better is expected.
const MAX_UNUSABLE: usize = 5;

/// Time between two savings.
const SAVE_EVERY: Duration = Duration::from_secs(5);

/// Which features a service is asked about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Asked {
    /// Those whose label from the data is not good enough.
    #[default]
    Mixed,
    /// All that are active often enough to be scored.
    All,
}

/// A service, and how it is asked.
#[derive(Clone, Debug)]
pub struct Explainer {
    /// Its address: `http://localhost:11434/v1`, or with `/chat/completions`.
    pub url: String,
    /// The model that it is to use.
    pub model: String,
    /// Sent to it as a bearer token.
    pub key: Option<Secret>,
    /// Which features.
    pub asked: Asked,
    /// How many at most.
    pub max_features: usize,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How often one question is asked, where the service fails.
    pub n_tries: usize,
    /// How long to wait before the second try; before each further one twice as long.
    pub first_wait: Duration,
    /// Questions at once.
    pub n_parallel: usize,
}

impl Explainer {
    /// A service with what is usual.
    pub fn new(url: &str, model: &str) -> Self {
        Self {
            url: url.to_owned(),
            model: model.to_owned(),
            key: None,
            asked: Asked::default(),
            max_features: usize::MAX,
            timeout: Duration::from_secs(60),
            n_tries: 5,
            first_wait: Duration::from_secs(1),
            n_parallel: 4,
        }
    }
}

/// What came of asking.
#[derive(Clone, Debug, PartialEq)]
pub struct Explained {
    /// Labels of all features: of each the better one, by F1.
    pub labels: BTreeMap<FeatureId, ScoredLabel>,
    /// The service's labels.
    pub answers: BTreeMap<FeatureId, ScoredLabel>,
    /// Features that were asked for now.
    pub n_asked: usize,
    /// Those whose answer was kept from before.
    pub n_kept: usize,
    /// Those without a usable answer.
    pub n_unusable: usize,
    /// Labels that are the service's.
    pub n_chosen: usize,
}

/// `explanations.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    format_version: u32,
    model: String,
    /// By `LAYER_FEATURE`.
    features: BTreeMap<String, Answer>,
}

impl Kept {
    /// What an earlier run kept.
    fn read(folder: &Path, model: &str) -> Result<Self> {
        let path = folder.join(EXPLANATIONS_FILE);
        if !path.is_file() {
            return Ok(Self { format_version: FORMAT_VERSION, model: model.to_owned(), features: BTreeMap::new() });
        }
        let damaged =
            |reason: String| Error::Damaged { file: path.display().to_string(), format: "explanations", reason };
        let bytes = std::fs::read(&path);
        let bytes = bytes.map_err(|source| Error::Io { doing: "cannot read", path: path.clone(), source })?;
        let kept: Self = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if kept.format_version != FORMAT_VERSION {
            return Err(damaged(format!("its version is {}, expected {FORMAT_VERSION}", kept.format_version)));
        }
        if kept.model != model {
            let problem = format!(
                "`{}` holds answers of the model `{}`, and `{model}` is asked for now; move it away to begin anew",
                path.display(),
                kept.model
            );
            return Err(Error::Collect { folder: folder.display().to_string(), problem });
        }
        Ok(kept)
    }
}

/// Labels features as [`label_features`](super::label_features) does, and asks a service for names of those that
/// [`Explainer::asked`] says. Of the two labels of a feature the one with the higher F1 stays; where both are below
/// [`LabelOptions::min_f1`], the one that says "mixed". Answers are kept in `folder`, and not asked for again.
///
/// # Errors
/// Those of labelling; [`Error::Explainer`] where the service does not answer, or not in a form that can be used, several
/// times in a row: what it answered until then is kept; [`Error::Cancelled`].
pub fn explain_features(
    replacement: &Replacement,
    set: &FeatureSet,
    options: &LabelOptions,
    explainer: &Explainer,
    folder: &Path,
    job: &Job,
) -> Result<Explained> {
    let client = Client::new(explainer)?;
    let kept = Kept::read(folder, &explainer.model)?;
    let labelled = Labelled::new(replacement, set, options, job)?;
    let is_wanted = |label: &ScoredLabel| explainer.asked == Asked::All || !label.is_clear;
    let wanted: Vec<FeatureId> =
        labelled.labels.iter().filter(|(_, label)| is_wanted(label)).map(|(id, _)| *id).collect();
    let wanted = &wanted[..wanted.len().min(explainer.max_features)];
    let open: Vec<FeatureId> =
        wanted.iter().copied().filter(|id| !kept.features.contains_key(&id.to_string())).collect();
    let n_kept = wanted.len() - open.len();
    let asking = Asking { client: &client, set, labelled: &labelled, explainer, folder, job };
    let (kept, n_unusable) = asking.ask(replacement, &open, kept)?;

    let mut labels = labelled.labels.clone();
    let (mut answers, mut n_chosen) = (BTreeMap::new(), 0);
    for id in wanted {
        let Some(answer) = kept.features.get(&id.to_string()) else { continue };
        let conditions = conditions(answer, set.tokens(), &replacement.tokenizer)?;
        let label = labelled.score(*id, answer.label.clone(), &conditions, options.min_f1);
        let before = labels.get(id).map_or(0.0, |before| before.f1);
        if label.is_clear && label.f1 > before {
            labels.insert(*id, label.clone());
            n_chosen += 1;
        }
        answers.insert(*id, label);
    }
    Ok(Explained { labels, answers, n_asked: open.len(), n_kept, n_unusable, n_chosen })
}

/// What all threads that ask have in common.
struct Asking<'a> {
    client: &'a Client,
    set: &'a FeatureSet,
    labelled: &'a Labelled,
    explainer: &'a Explainer,
    folder: &'a Path,
    job: &'a Job,
}

/// What they change.
struct Progress {
    kept: Kept,
    n_done: usize,
    n_unusable: usize,
    n_unusable_in_a_row: usize,
    last_saved: Instant,
    failed: Option<Error>,
}

impl Asking<'_> {
    /// Asks for all of `open`; what was answered is saved also where that ends early. Also how many answers could not be
    /// used.
    fn ask(&self, replacement: &Replacement, open: &[FeatureId], kept: Kept) -> Result<(Kept, usize)> {
        let progress = Mutex::new(Progress {
            kept,
            n_done: 0,
            n_unusable: 0,
            n_unusable_in_a_row: 0,
            last_saved: Instant::now(),
            failed: None,
        });
        // What they push, layer by layer: one product with the unembedding for many.
        for of_layer in open.chunk_by(|a, b| a.layer == b.layer) {
            let features: Vec<usize> = of_layer.iter().map(|id| id.feature).collect();
            let pushed = pushes(replacement, of_layer[0].layer, &features, N_LOGITS)?;
            let (next, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
            let work = || {
                while !is_over.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(id) = of_layer.get(at) else { break };
                    let found = self.one(*id, &pushed[at]);
                    if !self.note(&progress, *id, found, open.len()) {
                        is_over.store(true, Ordering::Relaxed);
                    }
                }
            };
            std::thread::scope(|scope| {
                (0..self.explainer.n_parallel.clamp(1, of_layer.len().max(1))).for_each(|_| drop(scope.spawn(work)));
            });
            if is_over.load(Ordering::Relaxed) {
                break;
            }
        }
        let mut progress = progress.into_inner().unwrap_or_else(PoisonError::into_inner);
        if !open.is_empty() {
            write_json(&self.folder.join(EXPLANATIONS_FILE), &progress.kept)?;
        }
        match progress.failed.take() {
            Some(error) => Err(error),
            None => Ok((progress.kept, progress.n_unusable)),
        }
    }

    fn one(&self, id: FeatureId, pushed: &Pushes) -> Result<Answer, Failure> {
        let messages = messages(self.set, id, pushed, self.labelled).map_err(Failure::Other)?;
        self.client.ask(&messages, self.job)
    }

    /// Takes in what came of one question; whether to go on.
    fn note(&self, progress: &Mutex<Progress>, id: FeatureId, found: Result<Answer, Failure>, total: usize) -> bool {
        let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.n_done += 1;
        self.job.report(EXPLAIN_PHASE, progress.n_done, total);
        let failed = match found {
            Ok(answer) => {
                progress.kept.features.insert(id.to_string(), answer);
                progress.n_unusable_in_a_row = 0;
                None
            }
            Err(Failure::Unusable(reason)) => {
                progress.n_unusable += 1;
                progress.n_unusable_in_a_row += 1;
                (progress.n_unusable_in_a_row >= MAX_UNUSABLE).then(|| {
                    let problem =
                        format!("{MAX_UNUSABLE} answers in a row cannot be used; the last: {}", terminal(&reason));
                    Error::Explainer { url: self.explainer.url.clone(), problem }
                })
            }
            Err(Failure::Service(problem)) => {
                Some(Error::Explainer { url: self.explainer.url.clone(), problem: terminal(&problem) })
            }
            Err(Failure::Other(error)) => Some(error),
        };
        if let Some(error) = failed {
            // Of several the first.
            progress.failed.get_or_insert(error);
            return false;
        }
        if progress.last_saved.elapsed() >= SAVE_EVERY {
            progress.last_saved = Instant::now();
            if let Err(error) = write_json(&self.folder.join(EXPLANATIONS_FILE), &progress.kept) {
                progress.failed.get_or_insert(error);
                return false;
            }
        }
        progress.failed.is_none()
    }
}
