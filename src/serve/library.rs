//! The graphs that a server has: those in its folder, and those that were traced and not written.
//!
//! Nothing that a request says becomes part of a path: ids are looked up in the list that the folder itself gives. Links
//! that lead out of the folder are not in it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::export::raw;
use crate::tracer::TracedGraph;
use crate::{Error, Result};

use super::json_span::early_member;
use super::whole::Whole;

/// Graphs that stay open; the one that was asked for longest ago is closed.
const MAX_OPEN: usize = 8;

/// Graphs that are kept without being written.
const MAX_IN_MEMORY: usize = 16;

/// Bytes that their rows may take, those of the last one apart.
const MAX_IN_MEMORY_BYTES: usize = 2 << 30;

/// The first bytes of a JSON graph, in which its metadata are looked for before all of it is read.
const HEAD_BYTES: u64 = 1 << 20;

/// The ending of what is saved beside a graph.
pub(super) const VIEW_ENDING: &str = ".view.json";

/// A graph of the list.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Entry {
    pub id: String,
    pub prompt: String,
    pub prompt_tokens: Vec<String>,
    pub scan: Option<String>,
    pub model: Option<String>,
    pub title: Option<String>,
    /// Whether the raw graph is there.
    pub raw: bool,
    /// Whether the JSON graph is there.
    pub json: bool,
    pub in_memory: bool,
    pub size_bytes: u64,
    /// Seconds since 1970.
    pub modified: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Where the files of a graph are.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Files {
    pub raw: Option<PathBuf>,
    pub json: Option<PathBuf>,
}

/// What tells one state of a file from the next.
type Stamp = (u64, f64);

/// What is known of a file's graph without opening it.
#[derive(Debug, Clone, Default)]
struct Head {
    prompt: String,
    prompt_tokens: Vec<String>,
    scan: Option<String>,
    model: Option<String>,
    title: Option<String>,
}

/// A graph that was traced and not written, and what was saved of its page.
#[derive(Debug)]
pub(super) struct InMemory {
    pub whole: Arc<Whole>,
    pub q_params: Mutex<Map<String, Value>>,
    modified: f64,
}

#[derive(Debug)]
struct Open {
    id: String,
    path: PathBuf,
    stamp: Stamp,
    whole: Arc<Whole>,
}

/// All graphs of a server.
#[derive(Debug, Default)]
pub(super) struct Library {
    folder: Option<PathBuf>,
    /// Heads of files that were looked at; `None`: no graph.
    heads: Mutex<BTreeMap<PathBuf, (Stamp, Option<Head>)>>,
    in_memory: Mutex<Vec<(String, Arc<InMemory>)>>,
    open: Mutex<Vec<Open>>,
    /// One graph is opened at a time: two requests for one graph open it once.
    opening: Mutex<()>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = path.metadata().ok().filter(std::fs::Metadata::is_file)?;
    let modified = file.modified().ok()?.duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
    Some((file.len(), modified))
}

impl Library {
    /// The graphs of a folder, which need not be there yet.
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self { folder, ..Self::default() }
    }

    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The files of every graph in the folder, by id.
    pub fn files(&self) -> BTreeMap<String, Files> {
        let mut found: BTreeMap<String, Files> = BTreeMap::new();
        let Some(folder) = self.folder.as_ref().and_then(|folder| folder.canonicalize().ok()) else { return found };
        let Ok(entries) = folder.read_dir() else { return found };
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            // Links are followed as long as they stay in the folder.
            let Ok(path) = entry.path().canonicalize() else { continue };
            if !path.starts_with(&folder) || !path.is_file() || name.ends_with(VIEW_ENDING) {
                continue;
            }
            let shown = folder.join(&name);
            if let Some(id) = name.strip_suffix(".safetensors") {
                found.entry(id.to_owned()).or_default().raw = Some(shown);
            } else if let Some(id) = name.strip_suffix(".json") {
                found.entry(id.to_owned()).or_default().json = Some(shown);
            }
        }
        found.retain(|id, _| is_id(id));
        let mut heads = locked(&self.heads);
        found.retain(|_, files| {
            files.raw.take_if(|path| self.head_in(&mut heads, path).is_none());
            files.json.take_if(|path| self.head_in(&mut heads, path).is_none());
            files.raw.is_some() || files.json.is_some()
        });
        heads.retain(|path, _| {
            found.values().any(|files| files.raw.as_ref() == Some(path) || files.json.as_ref() == Some(path))
        });
        found
    }

    /// What is known of a file, looked at once for every state of it.
    fn head_in(&self, heads: &mut BTreeMap<PathBuf, (Stamp, Option<Head>)>, path: &Path) -> Option<Head> {
        let now = stamp(path)?;
        if let Some((stamp, head)) = heads.get(path)
            && *stamp == now
        {
            return head.clone();
        }
        let head = read_head(path);
        heads.insert(path.to_owned(), (now, head.clone()));
        head
    }

    /// All graphs, newest first.
    pub fn list(&self) -> Vec<Entry> {
        let files = self.files();
        let mut heads = locked(&self.heads);
        let mut entries: Vec<Entry> = Vec::new();
        for (id, files) in files {
            let paths = [files.raw.as_ref(), files.json.as_ref()];
            let Some(head) = paths.iter().flatten().find_map(|path| self.head_in(&mut heads, path)) else { continue };
            let stamps: Vec<Stamp> = paths.iter().flatten().filter_map(|path| stamp(path)).collect();
            entries.push(Entry {
                id,
                prompt: head.prompt,
                prompt_tokens: head.prompt_tokens,
                scan: head.scan,
                model: head.model,
                title: head.title,
                raw: files.raw.is_some(),
                json: files.json.is_some(),
                in_memory: false,
                size_bytes: stamps.iter().map(|stamp| stamp.0).sum(),
                modified: stamps.iter().map(|stamp| stamp.1).fold(0.0, f64::max),
                problem: None,
            });
        }
        drop(heads);
        for (id, graph) in locked(&self.in_memory).iter() {
            let meta = &graph.whole.meta;
            entries.push(Entry {
                id: id.clone(),
                prompt: meta.prompt.clone(),
                prompt_tokens: meta.prompt_tokens.clone(),
                scan: Some(meta.scan.clone()),
                model: Some(meta.model.clone()),
                title: None,
                raw: true,
                json: false,
                in_memory: true,
                size_bytes: 0,
                modified: graph.modified,
                problem: None,
            });
        }
        entries.sort_by(|a, b| b.modified.total_cmp(&a.modified).then_with(|| a.id.cmp(&b.id)));
        entries
    }

    /// A graph that is in memory alone.
    pub fn in_memory(&self, id: &str) -> Option<Arc<InMemory>> {
        locked(&self.in_memory).iter().find(|(name, _)| name == id).map(|(_, graph)| graph.clone())
    }

    /// Keeps a graph without writing it, under `id` or what is free next; the oldest of too many goes.
    ///
    /// # Errors
    /// As [`Whole::traced`].
    pub fn keep(&self, id: &str, traced: TracedGraph) -> Result<String> {
        let whole = Arc::new(Whole::traced(traced)?);
        let taken = self.files();
        let mut graphs = locked(&self.in_memory);
        // The same trace again is the same graph.
        if let Some((id, _)) = graphs
            .iter()
            .find(|(_, graph)| graph.whole.etag == whole.etag && graph.whole.meta.trace_id == whole.meta.trace_id)
        {
            return Ok(id.clone());
        }
        let is_free = |name: &str| !taken.contains_key(name) && graphs.iter().all(|(id, _)| id != name);
        let names = std::iter::once(id.to_owned()).chain((2..).map(|number| format!("{id}-{number}")));
        let name = names.into_iter().find(|name| is_free(name)).unwrap_or_default();
        let modified = std::time::SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        graphs.push((name.clone(), Arc::new(InMemory { whole, q_params: Mutex::default(), modified })));
        let rows = |graph: &InMemory| graph.whole.raw().map_or(0, |traced| 4 * traced.graph().edge_rows.values().len());
        let size = |graphs: &[(String, Arc<InMemory>)]| graphs.iter().map(|(_, graph)| rows(graph)).sum::<usize>();
        while graphs.len() > 1 && (graphs.len() > MAX_IN_MEMORY || size(&graphs) > MAX_IN_MEMORY_BYTES) {
            graphs.remove(0);
        }
        Ok(name)
    }

    /// Lets a graph go that has been written.
    pub fn forget(&self, id: &str) {
        locked(&self.in_memory).retain(|(name, _)| name != id);
    }

    /// Makes room for a graph that is written under `id`. A graph of another trace that has it in memory gets another; the
    /// same trace goes, and what was saved of its page is given.
    pub fn make_room(&self, id: &str, trace_id: Option<&str>) -> Option<Map<String, Value>> {
        let mut graphs = locked(&self.in_memory);
        let at = graphs.iter().position(|(name, _)| name == id)?;
        if graphs[at].1.whole.meta.trace_id.as_deref() == trace_id {
            let (_, graph) = graphs.remove(at);
            let q_params = graph.q_params.lock().unwrap_or_else(PoisonError::into_inner).clone();
            return Some(q_params);
        }
        let is_free = |name: &str| graphs.iter().all(|(id, _)| id != name);
        if let Some(name) = (2..1000).map(|number| format!("{id}-{number}")).find(|name| is_free(name)) {
            graphs[at].0 = name;
        }
        None
    }

    /// The files of one graph.
    ///
    /// A list that is read while a file in it is replaced may lack that file: what was there a moment ago is looked for again.
    pub fn files_of(&self, id: &str) -> Option<Files> {
        const LOOKS: usize = 4;
        let was_there = || locked(&self.open).iter().any(|open| open.id == id);
        let mut found = self.files().remove(id);
        for _ in 1..LOOKS {
            if found.is_some() || !was_there() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(3));
            found = self.files().remove(id);
        }
        found
    }

    /// A graph, opened; the raw one where there are both.
    ///
    /// # Errors
    /// Those of reading it; `None` where there is none of this id.
    pub fn open(&self, id: &str) -> Result<Option<Arc<Whole>>> {
        if let Some(graph) = self.in_memory(id) {
            return Ok(Some(graph.whole.clone()));
        }
        // The folder is read only where no open graph of this state is known.
        if let Some(whole) = self.known(id) {
            return Ok(Some(whole));
        }
        let _one = locked(&self.opening);
        if let Some(whole) = self.known(id) {
            return Ok(Some(whole));
        }
        let Some(files) = self.files_of(id) else {
            locked(&self.open).retain(|open| open.id != id);
            return Ok(None);
        };
        let (path, whole) = match (files.raw, files.json) {
            (Some(path), _) => (path.clone(), Whole::read_raw(&path)?),
            (None, Some(path)) => (path.clone(), Whole::read_json(&path)?),
            (None, None) => return Ok(None),
        };
        let whole = Arc::new(whole);
        let mut all = locked(&self.open);
        all.retain(|open| open.id != id);
        if let Some(stamp) = stamp(&path) {
            all.push(Open { id: id.to_owned(), path, stamp, whole: whole.clone() });
        }
        if all.len() > MAX_OPEN {
            all.remove(0);
        }
        Ok(Some(whole))
    }

    fn known(&self, id: &str) -> Option<Arc<Whole>> {
        let mut all = locked(&self.open);
        // A raw graph that has come since is the one to open.
        let is_best = |path: &Path| {
            path.extension().is_some_and(|e| e == "safetensors") || !path.with_extension("safetensors").is_file()
        };
        let at = all
            .iter()
            .position(|open| open.id == id && stamp(&open.path) == Some(open.stamp) && is_best(&open.path))?;
        let open = all.remove(at);
        let whole = open.whole.clone();
        all.push(open);
        Some(whole)
    }

    /// Notes that this program has changed nothing but `qParams` of a file.
    pub fn touched(&self, path: &Path) {
        let Some(now) = stamp(path) else { return };
        for open in locked(&self.open).iter_mut().filter(|open| open.path == path) {
            open.stamp = now;
        }
        if let Some((stamp, _)) = locked(&self.heads).get_mut(path) {
            *stamp = now;
        }
    }

    /// # Errors
    /// [`Error::Io`] where there is no folder to write to.
    pub fn need_folder(&self) -> Result<&Path> {
        let source =
            || std::io::Error::new(std::io::ErrorKind::ReadOnlyFilesystem, "this server has no folder of graphs");
        self.folder().ok_or_else(|| Error::Io { doing: "cannot write to", path: "the folder".into(), source: source() })
    }
}

/// Whether a file's name can be an id: no path, nothing hidden.
pub(super) fn is_id(id: &str) -> bool {
    !id.is_empty()
        && !id.starts_with('.')
        && id.len() <= 200
        && !id.contains(['/', '\\', '\0'])
        && id != "graph-metadata"
}

fn read_head(path: &Path) -> Option<Head> {
    if raw::looks_raw(path)? {
        let meta = raw::read_meta_of(path).ok()?;
        return Some(Head {
            prompt: meta.prompt,
            prompt_tokens: meta.prompt_tokens,
            scan: Some(meta.scan),
            model: Some(meta.model),
            title: None,
        });
    }
    let file = File::open(path).ok()?;
    let mut text = Vec::new();
    (&file).take(HEAD_BYTES).read_to_end(&mut text).ok()?;
    let span = match early_member(&text, "metadata") {
        Some(span) => span,
        None if text.len() as u64 == HEAD_BYTES => {
            (&file).read_to_end(&mut text).ok()?;
            early_member(&text, "metadata")?
        }
        None => return None,
    };
    let metadata: Map<String, Value> = serde_json::from_slice(&text[span]).ok()?;
    let text_of = |key: &str| metadata.get(key).and_then(Value::as_str).map(str::to_owned);
    text_of("slug")?;
    let tokens = metadata.get("prompt_tokens").and_then(Value::as_array)?;
    Some(Head {
        prompt: text_of("prompt").unwrap_or_default(),
        prompt_tokens: tokens.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        scan: text_of("scan"),
        model: text_of("model"),
        title: text_of("title_prefix").filter(|title| !title.is_empty()),
    })
}
