//! Which lines are to be traced, under which names, and which are done.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::index::{Entry, Failure, Index, is_of};
use super::line::{PromptLine, Request};
use super::{BatchOptions, error_with_causes};
use crate::attribution::requested;
use crate::circuits::{PairPlan, automatic_names, is_worked_on};
use crate::graph::GraphMeta;
use crate::hash::{START, fnv1a};
use crate::tracer::Tracer;
use crate::{Error, Result};

/// A line that is to be traced.
#[derive(Debug)]
pub(super) struct Planned {
    pub line: usize,
    pub name: String,
    pub hash: String,
    pub request: Request,
}

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub todo: Vec<Planned>,
    /// Lines of this shard.
    pub n_lines: usize,
    /// Of these, whose files are there.
    pub n_there: usize,
    /// Of these, that ask for what an earlier line asks for.
    pub n_same: usize,
    pub failures: Vec<Failure>,
}

/// The lines of a file of prompts that are not empty, numbered from 1.
pub fn prompt_lines(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
    let lines = text.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).enumerate();
    lines.filter(|(_, line)| !line.is_empty()).map(|(at, line)| (at + 1, line))
}

/// A line that was understood.
struct Understood {
    line: usize,
    request: Request,
    /// `trace_id` and `model` alone.
    meta: GraphMeta,
    hash: String,
}

/// Names that are taken, and the lines that have them. Some systems take names in capitals for the same.
#[derive(Default)]
struct Names(HashMap<String, (usize, String)>);

impl Names {
    fn holder(&self, name: &str) -> Option<&(usize, String)> {
        self.0.get(&name.to_lowercase())
    }

    fn take(&mut self, name: &str, line: usize, hash: &str) {
        self.0.insert(name.to_lowercase(), (line, hash.to_owned()));
    }
}

/// Plans all lines, those of other shards too: their names are taken, whoever traces them. Names depend on the lines and on
/// what is in the folder, not on which shard comes first.
///
/// # Errors
/// [`Error::Prompts`] for a text without lines; those of reading weights.
pub(super) fn plan(tracer: &Tracer, text: &[u8], index: &Index, options: &BatchOptions) -> Result<Plan> {
    let context = context_hash(tracer)?;
    let mut plan = Plan::default();
    let mut understood = Vec::new();
    let mut n_lines = 0;
    for (line, bytes) in prompt_lines(text) {
        n_lines += 1;
        let is_own = is_of(line, options.shard);
        plan.n_lines += usize::from(is_own);
        match understand(line, bytes, tracer, context, options) {
            Ok(found) => understood.push(found),
            Err(error) if is_own => plan.failures.push(failure(line, &error)),
            Err(_) => {}
        }
    }
    if n_lines == 0 {
        return Err(Error::Prompts { problem: "there are no lines: each is a JSON object with a `prompt`".into() });
    }

    let by_hash: HashMap<&str, &Entry> = index.entries.values().map(|entry| (entry.hash.as_str(), entry)).collect();
    let there = |hash: &str| by_hash.get(hash).filter(|entry| files_are_there(&options.folder, entry)).copied();
    let mut names = Names::default();
    // Names that are given come first, since the others can give way.
    let mut chosen: BTreeMap<usize, Result<Option<String>>> = BTreeMap::new();
    let mut requests: HashMap<&str, usize> = HashMap::new();
    for given in [true, false] {
        for found in understood.iter().filter(|found| found.request.slug.is_some() == given) {
            let Understood { line, hash, .. } = found;
            if requests.contains_key(hash.as_str()) {
                chosen.insert(*line, Ok(None));
                continue;
            }
            requests.insert(hash, *line);
            let name = name_of(found, &names, there(hash), options);
            if let Ok(name) = &name {
                names.take(name, *line, hash);
            }
            chosen.insert(*line, name.map(Some));
        }
    }

    for found in understood.into_iter().filter(|found| is_of(found.line, options.shard)) {
        let Understood { line, request, hash, .. } = found;
        match chosen.remove(&line) {
            Some(Ok(Some(_))) if there(&hash).is_some() => plan.n_there += 1,
            Some(Ok(Some(name))) => plan.todo.push(Planned { line, name, hash, request }),
            Some(Err(error)) => plan.failures.push(failure(line, &error)),
            Some(Ok(None)) | None => plan.n_same += 1,
        }
    }
    plan.failures.sort_by_key(|failure| failure.line);
    Ok(plan)
}

pub(super) fn failure(line: usize, error: &Error) -> Failure {
    Failure { line, error: error_with_causes(error) }
}

fn understand(line: usize, bytes: &[u8], tracer: &Tracer, context: u64, options: &BatchOptions) -> Result<Understood> {
    let request = PromptLine::parse(bytes)?.request(tracer, &options.settings)?;
    let Request { prompt, options: asked, pruning, heads, slug } = &request;
    let meta = requested(tracer.replacement(), &prompt.tokens, asked);
    // The program's version is part of the metadata.
    let all = (
        &meta,
        &prompt.text,
        &prompt.tokens,
        (pruning.node_threshold, pruning.edge_threshold, heads, asked.keep_decoders),
        (slug, options.raw, options.json),
    );
    // Numbers and texts always have a form in JSON.
    let hash = format!("{:016x}", fnv1a(context, serde_json::to_vec(&all).unwrap_or_default()));
    // What files are told apart by, and no more: there may be a hundred thousand lines.
    let meta = GraphMeta { trace_id: meta.trace_id, model: meta.model, ..GraphMeta::default() };
    Ok(Understood { line, request, meta, hash })
}

/// A hash of all that the files of every line depend on, beside what metadata tells: weights, labels, texts of tokens.
fn context_hash(tracer: &Tracer) -> Result<u64> {
    let replacement = tracer.replacement();
    let mut hash = fnv1a(START, replacement.fingerprint()?.to_le_bytes());
    for ((layer, feature), label) in replacement.transcoders.labels.iter() {
        hash = fnv1a(hash, layer.to_le_bytes().into_iter().chain(feature.to_le_bytes()));
        hash = fnv1a(hash, label.bytes().chain([0]));
    }
    let d_vocab = replacement.model.config.d_vocab as u32;
    for token in (0..d_vocab).step_by((d_vocab as usize / 64).max(1)) {
        hash = fnv1a(hash, replacement.tokenizer.token(token).bytes().chain([0]));
    }
    Ok(hash)
}

/// The name of a line's files.
///
/// # Errors
/// A name that is another line's, or that of files which are not to be replaced.
fn name_of(found: &Understood, names: &Names, there: Option<&Entry>, options: &BatchOptions) -> Result<String> {
    let Understood { request, meta, .. } = found;
    let is_taken = |name: &str| match names.holder(name) {
        Some((line, _)) => {
            let problem = format!("its name `{name}` is that of line {line}: name it with `slug`");
            Err(Error::Prompts { problem })
        }
        None => Ok(()),
    };
    if let Some(entry) = there.filter(|entry| names.holder(&entry.slug).is_none()) {
        return Ok(entry.slug.clone());
    }
    let is_free = |name: &str| {
        is_taken(name)?;
        pair(options, name).check_name(meta, &request.prompt.text, &request.pruning)
    };
    if let Some(slug) = &request.slug {
        return is_free(slug).map(|()| slug.clone());
    }
    let (plain, with_digits) = automatic_names(meta, &request.prompt.text, &request.pruning);
    match plain.filter(|name| is_free(name).is_ok()) {
        Some(name) => Ok(name),
        None => is_free(&with_digits).map(|()| with_digits),
    }
}

/// Where the files of one line go.
pub(super) fn pair(options: &BatchOptions, name: &str) -> PairPlan {
    PairPlan {
        folder: options.folder.clone(),
        name: Some(name.to_owned()),
        replaces_others: options.replaces_others,
        raw: options.raw,
        json: options.json,
        inputs: options.inputs.clone(),
    }
}

/// Whether the files of an entry are there as they were written, or are graphs that somebody has worked on since.
fn files_are_there(folder: &Path, entry: &Entry) -> bool {
    !entry.files.is_empty()
        && entry.files.iter().all(|(name, n_bytes)| {
            let path: PathBuf = folder.join(name);
            path.metadata().is_ok_and(|file| file.is_file() && file.len() == *n_bytes) || is_worked_on(&path)
        })
}
