//! Training that can go on: everything a step depends on, in `training/N` of the folder; the newest complete one counts.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::layer::{Layer, Moments};
use super::log::LogLine;
use super::options::{Activation, SetSize, TrainOptions};
use crate::corpus::Cursor;
use crate::error::{Error, Result};
use crate::export::{Numbers, replace_file, write_columns};
use crate::weights::{Columns, Folder, Number};

/// Where training keeps what it can go on from.
pub(super) const TRAINING: &str = "training";

const STATE_FILE: &str = "state.json";

/// What two runs must agree on so that one can go on from the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Request {
    pub model: String,
    pub from: String,
    pub files: Vec<(String, u64)>,
    pub sets: Vec<SetSize>,
    pub activation: Activation,
    pub skip: bool,
    pub cross_layer: bool,
    pub n_tokens: Option<u64>,
    pub minutes: Option<f64>,
    pub replay: usize,
    pub batch: usize,
    pub context: usize,
    pub lr: Option<f64>,
    pub memory: u64,
    pub exact: bool,
    pub seed: u64,
    pub dead_window: u64,
    pub field: String,
    pub split: String,
}

impl Request {
    pub(super) fn new(model: &str, from: &str, files: Vec<(String, u64)>, options: &TrainOptions) -> Self {
        Self {
            model: model.to_owned(),
            from: from.to_owned(),
            files,
            sets: options.sets.clone(),
            activation: options.activation,
            skip: options.skip,
            cross_layer: options.cross_layer,
            n_tokens: options.n_tokens,
            minutes: options.minutes,
            replay: options.replay,
            batch: options.batch,
            context: options.context,
            lr: options.lr,
            memory: options.memory,
            exact: options.exact,
            seed: options.seed,
            dead_window: options.dead_window,
            field: options.format.field.clone(),
            split: format!("{:?}", options.format.split),
        }
    }

    /// Where another request is not the same, in words.
    pub(super) fn differs(&self, other: &Request) -> Option<String> {
        let (Ok(kept), Ok(here)) = (serde_json::to_value(self), serde_json::to_value(other)) else { return None };
        let (kept, here) = (kept.as_object()?, here.as_object()?);
        let (name, kept) = kept.iter().find(|(name, value)| here.get(*name) != Some(value))?;
        let here = here.get(name).map(ToString::to_string).unwrap_or_default();
        Some(format!("it holds unfinished training with `{name}` {kept}, here {here}"))
    }
}

/// How far training is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub request: Request,
    /// Where the text of the chunk begins that is being trained on, or the next one.
    pub cursor: Cursor,
    /// Units of that chunk; 0 if it has not been read.
    pub n_units: usize,
    /// Steps taken on it.
    pub chunk_step: usize,
    /// Chunks that are done.
    pub n_chunks: u64,
    /// Tokens of these that have been trained on.
    pub n_used: u64,
    /// Tokens to train on in all, if that is known.
    pub target: Option<u64>,
    /// Steps taken.
    pub step: u32,
    /// Tokens of all steps.
    pub n_stepped: i64,
    /// Share of the run that is done.
    pub done: f64,
    /// Seconds that it took.
    pub secs: f64,
    pub log: Vec<LogLine>,
}

fn layer_file(set: usize, layer: usize) -> String {
    format!("set_{set}_layer_{layer}.safetensors")
}

/// Writes a checkpoint as number `generation`, and removes those before the last.
///
/// # Errors
/// Those of writing; what was there before stays then.
pub(super) fn write(out: &Path, generation: u64, sets: &[Vec<Layer>], state: &State) -> Result<()> {
    let folder = out.join(TRAINING).join(generation.to_string());
    for (set, layers) in sets.iter().enumerate() {
        for (index, layer) in layers.iter().enumerate() {
            write_layer(&folder.join(layer_file(set, index)), layer)?;
        }
    }
    let path = folder.join(STATE_FILE);
    let failed = |e: serde_json::Error| Error::Io { doing: "cannot write", path: path.clone(), source: e.into() };
    let json = serde_json::to_vec(state).map_err(failed)?;
    replace_file(&path, |writer| std::io::Write::write_all(writer, &json))?;
    for (number, folder) in generations(out)? {
        if number + 1 < generation {
            // Of no use any more; if it cannot be removed it does no harm either.
            let _ = std::fs::remove_dir_all(folder);
        }
    }
    Ok(())
}

fn write_layer(path: &Path, layer: &Layer) -> Result<()> {
    let moments = &layer.moments;
    let scalars = [layer.scale_in, layer.scale_out, layer.floor, layer.mean_floor, layer.sparsity];
    let mut columns = vec![
        ("scalars", Numbers::F32(&scalars)),
        ("dec_norms", Numbers::F32(&layer.dec_norms)),
        ("least_kept", Numbers::F32(&layer.least_kept)),
        ("n_least_kept", Numbers::U32(&layer.n_least_kept)),
        ("last_moved", Numbers::U32(&layer.last_moved)),
    ];
    let parameters = [
        ["w_enc", "w_enc.first", "w_enc.second"],
        ["b_enc", "b_enc.first", "b_enc.second"],
        ["w_dec", "w_dec.first", "w_dec.second"],
        ["b_dec", "b_dec.first", "b_dec.second"],
        ["w_skip", "w_skip.first", "w_skip.second"],
    ];
    let values = [
        (&layer.w_enc, &moments.w_enc),
        (&layer.b_enc, &moments.b_enc),
        (&layer.w_dec, &moments.w_dec),
        (&layer.b_dec, &moments.b_dec),
        (&layer.w_skip, &moments.w_skip),
    ];
    for (names, (value, moments)) in parameters.iter().zip(values) {
        columns.push((names[0], Numbers::F32(value)));
        columns.push((names[1], Numbers::F32(&moments.first)));
        columns.push((names[2], Numbers::F32(&moments.second)));
    }
    // Last, since its numbers are longer and are to lie where such numbers may.
    columns.insert(0, ("last_active", Numbers::I64(&layer.last_active)));
    write_columns(path, "training", &columns)
}

/// Fills a layer of the right sizes.
fn read_layer(folder: &Folder, file: &str, layer: &mut Layer) -> Result<()> {
    let columns = Columns::open(folder, file)?;
    fn fill<T: Number>(columns: &Columns, name: &str, into: &mut [T]) -> Result<()> {
        let column = columns.column_of::<T>(name, into.len())?;
        into.iter_mut().zip(column.iter()).for_each(|(into, value)| *into = value);
        Ok(())
    }
    let mut scalars = [0f32; 5];
    fill(&columns, "scalars", &mut scalars)?;
    [layer.scale_in, layer.scale_out, layer.floor, layer.mean_floor, layer.sparsity] = scalars;
    fill(&columns, "dec_norms", &mut layer.dec_norms)?;
    fill(&columns, "least_kept", &mut layer.least_kept)?;
    fill(&columns, "n_least_kept", &mut layer.n_least_kept)?;
    fill(&columns, "last_moved", &mut layer.last_moved)?;
    fill(&columns, "last_active", &mut layer.last_active)?;
    let of = |name: &str, value: &mut Vec<f32>, moments: &mut Moments| -> Result<()> {
        fill(&columns, name, value)?;
        fill(&columns, &format!("{name}.first"), &mut moments.first)?;
        fill(&columns, &format!("{name}.second"), &mut moments.second)
    };
    let moments = &mut layer.moments;
    of("w_enc", &mut layer.w_enc, &mut moments.w_enc)?;
    of("b_enc", &mut layer.b_enc, &mut moments.b_enc)?;
    of("w_dec", &mut layer.w_dec, &mut moments.w_dec)?;
    of("b_dec", &mut layer.b_dec, &mut moments.b_dec)?;
    of("w_skip", &mut layer.w_skip, &mut moments.w_skip)
}

/// Folders of checkpoints that are complete, by number.
fn generations(out: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let training = out.join(TRAINING);
    let entries = match std::fs::read_dir(&training) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|source| Error::Io { doing: "cannot list", path: training, source })?,
    };
    let mut found: Vec<(u64, PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let generation = path.file_name()?.to_str()?.parse().ok()?;
            path.join(STATE_FILE).is_file().then_some((generation, path))
        })
        .collect();
    found.sort();
    Ok(found)
}

/// Whether there is something to go on from.
pub(super) fn latest(out: &Path) -> Result<Option<(u64, PathBuf)>> {
    Ok(generations(out)?.pop())
}

/// Reads a checkpoint into layers of the right sizes.
///
/// # Errors
/// [`Error::Damaged`], [`Error::Train`] for one of another request, those of reading.
pub(super) fn read(folder: &Path, request: &Request, sets: &mut [Vec<Layer>]) -> Result<State> {
    let path = folder.join(STATE_FILE);
    let bytes =
        std::fs::read(&path).map_err(|source| Error::Io { doing: "cannot read", path: path.clone(), source })?;
    let damaged = |e: serde_json::Error| Error::Damaged {
        file: path.display().to_string(),
        format: "state of training",
        reason: e.to_string(),
    };
    let state: State = serde_json::from_slice(&bytes).map_err(damaged)?;
    if let Some(problem) = state.request.differs(request) {
        return Err(Error::Train { problem });
    }
    let files = Folder::on_disk(folder);
    for (set, layers) in sets.iter_mut().enumerate() {
        for (index, layer) in layers.iter_mut().enumerate() {
            read_layer(&files, &layer_file(set, index), layer)?;
        }
    }
    Ok(state)
}

/// Removes all checkpoints.
///
/// # Errors
/// They cannot be removed.
pub(super) fn forget(out: &Path) -> Result<()> {
    let folder = out.join(TRAINING);
    match std::fs::remove_dir_all(&folder) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Io { doing: "cannot remove", path: folder, source })
        }
        _ => Ok(()),
    }
}
