//! The two files of one trace, raw graph and JSON graph: under one name, and never those of different traces.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use crate::export::{
    WireGraph, WireMetadata, check_list, check_not_input, check_not_list, list_graphs, lock_folder, raw, write_raw,
    write_wire,
};
use crate::graph::{AttributionGraph, Circuit, GraphMeta};
use crate::prune::PruneSettings;
use crate::text::{check_file_name, slug};
use crate::{Error, Result};

/// Digits of [`GraphMeta::trace_id`] that a name gets where the prompt does not tell it from others.
const ID_DIGITS: usize = 8;

/// Where a trace's files go, and which are written.
#[derive(Debug, Clone, PartialEq)]
pub struct PairPlan {
    /// The folder of both.
    pub folder: PathBuf,
    /// Their name; `None`: from the prompt, with digits of the trace's id where the prompt is longer than a name or the
    /// name is another trace's.
    pub name: Option<String>,
    /// Whether files of another trace are replaced.
    pub replaces_others: bool,
    /// Whether the raw graph is written.
    pub raw: bool,
    /// Whether the JSON graph is written.
    pub json: bool,
    /// Files that are read, and never written over.
    pub inputs: Vec<PathBuf>,
}

/// What is known of a graph file that is in the way.
#[derive(Debug, Clone, Default, PartialEq)]
struct Known {
    trace_id: String,
    prompt: String,
    model: String,
    /// Of JSON graphs.
    thresholds: Option<[Option<f64>; 2]>,
    /// Whether somebody has pinned or grouped nodes in it.
    is_worked_on: bool,
}

impl PairPlan {
    /// Checks before the work that its files may be written: the name is one, and no file of that name is another
    /// trace's. `meta` as [`crate::attribution::requested`] gives it.
    ///
    /// # Errors
    /// [`Error::FileName`], [`Error::OtherGraph`], [`Error::InTheWay`], [`Error::OwnInput`].
    pub fn check(&self, meta: &GraphMeta, prompt: &str, settings: &PruneSettings) -> Result<()> {
        if self.json {
            check_list(&self.folder)?;
        }
        self.check_name(meta, prompt, settings)
    }

    /// As [`PairPlan::check`], for a caller that has looked at the folder's list itself, once for many graphs.
    ///
    /// # Errors
    /// As [`PairPlan::check`].
    pub(crate) fn check_name(&self, meta: &GraphMeta, prompt: &str, settings: &PruneSettings) -> Result<()> {
        self.name_for(meta, prompt, settings).map(drop)
    }

    /// Where what is done of a trace is kept until its files are written: a name that no other trace's files have.
    ///
    /// # Errors
    /// [`Error::FileName`]
    pub fn path_while_tracing(&self, meta: &GraphMeta, prompt: &str, settings: &PruneSettings) -> Result<PathBuf> {
        let name = match &self.name {
            Some(name) => {
                check_file_name(name).map_err(|problem| Error::FileName { name: name.clone(), problem })?;
                name.clone()
            }
            None => automatic_names(meta, prompt, settings).1,
        };
        Ok(self.path(&name, "rows"))
    }

    /// Writes the files and returns their paths. Two programs that write under one name come one after the other, and
    /// the second finds what the first has written.
    ///
    /// # Errors
    /// As [`PairPlan::check`]; a file cannot be written.
    pub fn write(&self, graph: &AttributionGraph, circuit: &Circuit, settings: &PruneSettings) -> Result<Vec<PathBuf>> {
        let _lock = lock_folder(&self.folder);
        let (files, to_list) = self.write_unlisted(graph, circuit, settings)?;
        list_graphs(&self.folder, to_list.as_slice())?;
        Ok(files)
    }

    /// As [`PairPlan::write`], for a caller that keeps others from the names that it writes, and that puts what is to be
    /// listed into the folder's list later ([`list_graphs`]): many graphs at once, since the list is written whole.
    ///
    /// # Errors
    /// As [`PairPlan::write`].
    pub(crate) fn write_unlisted(
        &self,
        graph: &AttributionGraph,
        circuit: &Circuit,
        settings: &PruneSettings,
    ) -> Result<(Vec<PathBuf>, Option<WireMetadata>)> {
        let name = self.name_for(&graph.meta, &graph.meta.prompt, settings)?;
        let (mut files, mut to_list) = (Vec::new(), None);
        if self.raw {
            files.push(self.path(&name, "safetensors"));
            write_raw(graph, &files[files.len() - 1])?;
        }
        if self.json {
            files.push(self.path(&name, "json"));
            let graph = WireGraph::new(circuit, &name)?;
            write_wire(&graph, &files[files.len() - 1])?;
            to_list = Some(graph.metadata);
        }
        Ok((files, to_list))
    }

    fn path(&self, name: &str, extension: &str) -> PathBuf {
        self.folder.join(format!("{name}.{extension}"))
    }

    fn name_for(&self, meta: &GraphMeta, prompt: &str, settings: &PruneSettings) -> Result<String> {
        if let Some(name) = &self.name {
            check_file_name(name)
                .and_then(|()| check_not_list(name))
                .map_err(|problem| Error::FileName { name: name.clone(), problem })?;
            return self.free(name, meta, prompt, settings).map(|()| name.clone());
        }
        let (plain, with_digits) = automatic_names(meta, prompt, settings);
        if let Some(name) = plain.filter(|name| self.free(name, meta, prompt, settings).is_ok()) {
            return Ok(name);
        }
        self.free(&with_digits, meta, prompt, settings).map(|()| with_digits)
    }

    /// # Errors
    /// [`Error::OtherGraph`] where a file of this name is another trace's, and those are not replaced;
    /// [`Error::InTheWay`] where it is no graph, [`Error::OwnInput`] where it is read.
    fn free(&self, name: &str, meta: &GraphMeta, prompt: &str, settings: &PruneSettings) -> Result<()> {
        let here = Known {
            trace_id: meta.trace_id.clone(),
            prompt: prompt.to_owned(),
            model: meta.model.clone(),
            thresholds: Some([Some(settings.node_threshold), Some(settings.edge_threshold)]),
            is_worked_on: false,
        };
        // Also the file that is not written now: it would stay beside one of another trace.
        for (extension, read) in [("safetensors", known_raw as fn(&Path) -> Option<Known>), ("json", known_json)] {
            let path = self.path(name, extension);
            if path.is_dir() {
                return Err(Error::InTheWay { file: path });
            }
            // What is written through, a pipe or a device, holds nothing.
            if !path.metadata().is_ok_and(|file| file.is_file()) {
                continue;
            }
            let inputs: Vec<&Path> = self.inputs.iter().map(PathBuf::as_path).collect();
            check_not_input(&path, &inputs)?;
            // Weights, say: what no program of this kind has written is for nobody to replace.
            let Some(there) = read(&path) else { return Err(Error::InTheWay { file: path }) };
            if let Some(difference) = difference(&there, &here).filter(|_| !self.replaces_others) {
                return Err(Error::OtherGraph { file: path, difference });
            }
        }
        Ok(())
    }
}

/// The names of a trace's files where none is given: the one from the prompt, where all of that fits into a name, and the
/// one with digits that tell the trace from others of the same prompt.
pub(crate) fn automatic_names(meta: &GraphMeta, prompt: &str, settings: &PruneSettings) -> (Option<String>, String) {
    let (name, is_whole) = slug(prompt);
    let digits = &meta.trace_id[..ID_DIGITS.min(meta.trace_id.len())];
    let with_digits = match settings == &PruneSettings::default() {
        true => format!("{name}-{digits}"),
        // The thresholds are no part of the trace, but of its JSON graph.
        false => format!("{name}-{digits}-{}-{}", settings.node_threshold, settings.edge_threshold),
    };
    let plain = (is_whole && check_not_list(&name).is_ok()).then_some(name);
    (plain, with_digits)
}

/// How a file differs from the trace that is to take its place; `None` where it is of the same.
fn difference(there: &Known, here: &Known) -> Option<String> {
    // The same tokens are the same prompt, whatever text they were given as.
    if there.trace_id != here.trace_id {
        return Some(if there.prompt != here.prompt {
            format!("its prompt is {:?}, here {:?}", there.prompt, here.prompt)
        } else if there.model != here.model {
            format!("its model is `{}`, here `{}`", there.model, here.model)
        } else {
            "the prompt is the same, targets or settings are not".to_owned()
        });
    }
    if there.thresholds.is_some() && there.thresholds != here.thresholds {
        return Some("the trace is the same, its thresholds are not".to_owned());
    }
    there.is_worked_on.then(|| "it holds pinned nodes or supernodes".to_owned())
}

fn known_raw(path: &Path) -> Option<Known> {
    let meta = raw::read_meta_of(path).ok()?;
    Some(Known { trace_id: meta.trace_id, prompt: meta.prompt, model: meta.model, ..Known::default() })
}

fn known_json(path: &Path) -> Option<Known> {
    /// Of the rest nothing is kept.
    #[derive(Deserialize)]
    struct Head {
        metadata: Map<String, Value>,
        #[serde(rename = "qParams", default)]
        q_params: Map<String, Value>,
        #[serde(rename = "nodes")]
        _nodes: IgnoredAny,
    }
    let head: Head = serde_json::from_reader(BufReader::new(File::open(path).ok()?)).ok()?;
    let text = |key: &str| head.metadata.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let pruning = head.metadata.get("pruning_settings");
    let threshold = |key: &str| pruning.and_then(|pruning| pruning.get(key)).and_then(Value::as_f64);
    let is_filled = |key: &str| head.q_params.get(key).and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    Some(Known {
        trace_id: text("trace_id"),
        prompt: text("prompt"),
        model: text("model"),
        thresholds: Some([threshold("node_threshold"), threshold("edge_threshold")]),
        is_worked_on: is_filled("pinnedIds") || is_filled("supernodes"),
    })
}

/// Whether a file is a JSON graph in which somebody has pinned or grouped nodes.
pub fn is_worked_on(path: &Path) -> bool {
    path.is_file() && known_json(path).is_some_and(|known| known.is_worked_on)
}

/// Whether the raw graph beside a JSON graph of the same name, or the other way round, is of another trace.
pub fn has_strange_partner(path: &Path) -> Option<PathBuf> {
    let is_raw = raw::looks_raw(path)?;
    let partner = path.with_extension(if is_raw { "json" } else { "safetensors" });
    if partner == path || !partner.is_file() {
        return None;
    }
    let (raw, json) = if is_raw { (path, partner.as_path()) } else { (partner.as_path(), path) };
    let (raw, json) = (known_raw(raw)?, known_json(json)?);
    let are_known = !raw.trace_id.is_empty() && !json.trace_id.is_empty();
    (are_known && raw.trace_id != json.trace_id).then_some(partner)
}
