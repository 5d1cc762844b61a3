//! The pass over a text: sequences go through the model, and what its transcoders find goes into the statistics.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::accumulate::{BatchPlaces, LayerStats, place_hash, sequence_hash};
use super::files::{FeatureSet, MANIFEST_FILE};
use super::manifest::{FEATURES_FORMAT_VERSION, Manifest, Settings, Shard, Subject, TextFile, TextSource};
use super::state::{FolderWriter, read_layer, sequence_hashes};
use super::tokens::{SequenceTable, TokenStore, TokenTexts};
use crate::corpus::{Input, Pieces, Sequence, Sequencer, TextFormat};
use crate::error::{Error, ErrorContext, Result};
use crate::export::{check_writable, replace_file, replace_set};
use crate::job::Job;
use crate::model::{HookPoint, TextPass, TextVisitor};
use crate::replacement::Replacement;
use crate::transcoder::Candidate;

/// The phase of a [`Job`] that counts tokens.
pub const TOKENS_PHASE: &str = "tokens";

/// Where collecting keeps what it can go on from.
const COLLECTING: &str = "collecting";

const PROGRESS_FILE: &str = "progress.json";

/// The folder in it where a set is written that replaces another.
const WHOLE: &str = "whole";

/// Keeping takes at most this share of the time.
const KEEPING_SHARE: f64 = 0.05;

/// Tokens that are held in memory before they are written.
const MAX_HELD_TOKENS: usize = 64 << 20;

/// How to collect.
#[derive(Clone, Debug, PartialEq)]
pub struct CollectOptions {
    /// What is kept of the text.
    pub settings: Settings,
    /// How files are read.
    pub format: TextFormat,
    /// Stop after about so many tokens.
    pub max_tokens: Option<u64>,
    /// Only one of several parts, to be merged with the others.
    pub shard: Option<Shard>,
    /// Whether to write what [`merge`](super::merge) needs; parts have it anyway.
    pub mergeable: bool,
    /// Begin anew where features or unfinished work are in the way.
    pub restart: bool,
    /// Seconds after which work is kept, so that it can go on after an interruption.
    pub keep_every_secs: f64,
}

impl Default for CollectOptions {
    fn default() -> Self {
        Self {
            settings: Settings::default(),
            format: TextFormat::default(),
            max_tokens: None,
            shard: None,
            mergeable: false,
            restart: false,
            keep_every_secs: 120.0,
        }
    }
}

/// What collecting came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Collected {
    /// What is in the folder.
    pub manifest: Manifest,
    /// Tokens that an interrupted run had read, if this one went on from it.
    pub resumed_from: Option<u64>,
    /// Tokens of this run.
    pub n_tokens: u64,
    /// Seconds that they took.
    pub secs: f64,
}

/// What two runs must agree on so that one can go on from the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Request {
    subject: Subject,
    files: Vec<(String, u64)>,
    settings: Settings,
    field: String,
    split: String,
    max_tokens: Option<u64>,
    shard: Option<Shard>,
}

/// How far a run is; between two pieces of text.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Progress {
    request: Request,
    sequencer: Sequencer,
    /// Files that have been read to their end, and their documents.
    files: Vec<TextFile>,
    /// Pieces read of the next file.
    n_pieces: usize,
    n_units: u32,
    n_positions: u64,
    text_hash: u64,
}

/// Collects what the features of a model are active on: reads text, and writes a folder of features.
///
/// A run that was interrupted goes on where it was last kept, when it is asked for again with the same text and
/// settings. The same text gives the same bytes on any number of threads, interrupted or not.
///
/// # Errors
/// Options out of range; [`Error::Text`]; [`Error::Collect`] where features of other settings are in the way; those of
/// the model and of writing; [`Error::Cancelled`].
pub fn collect(
    replacement: &Replacement,
    inputs: &[Input],
    out: &Path,
    options: &CollectOptions,
    job: &Job,
) -> Result<Collected> {
    options.settings.check()?;
    let (context, n_ctx) = (options.settings.context, replacement.model.config.n_ctx);
    if context > n_ctx {
        return Err(Error::PromptTooLong { n_pos: context, n_ctx });
    }
    if !options.restart && out.join(MANIFEST_FILE).exists() {
        let problem = "it holds features already".to_owned();
        return Err(Error::Collect { folder: out.display().to_string(), problem });
    }
    check_writable(out)?;
    let mut run = Run::new(replacement, inputs, out, options)?;
    run.read(inputs, job)?;
    run.finish()
}

struct Run<'a> {
    replacement: &'a Replacement,
    pass: TextPass<'a>,
    options: &'a CollectOptions,
    out: &'a Path,
    progress: Progress,
    /// Tokens that are in a file already.
    written: Option<TokenStore>,
    /// Tokens since.
    held: Vec<u32>,
    table: SequenceTable,
    texts: TokenTexts,
    layers: Vec<LayerStats>,
    resumed_from: Option<u64>,
    started: Instant,
    n_computed: u64,
    /// The number of the folder that work was last kept in.
    generation: u64,
    last_kept: Instant,
    keeping_secs: f64,
}

impl<'a> Run<'a> {
    /// Begins, or goes on from what an interrupted run kept.
    fn new(replacement: &'a Replacement, inputs: &[Input], out: &'a Path, options: &'a CollectOptions) -> Result<Self> {
        let subject = Subject::of(replacement)?;
        let request = Request {
            files: inputs.iter().map(|input| (input.name(), input.size_bytes())).collect(),
            settings: options.settings.clone(),
            field: options.format.field.clone(),
            split: format!("{:?}", options.format.split),
            max_tokens: options.max_tokens,
            shard: options.shard,
            subject,
        };
        let tokenizer = &replacement.tokenizer;
        let ids: Vec<u32> = (0..request.subject.d_vocab as u32).collect();
        let texts: Vec<Vec<u8>> = ids.par_iter().map(|&id| tokenizer.token_bytes(id)).collect();
        let limit = options.max_tokens.unwrap_or(u64::MAX);
        let n_features = request.subject.n_features.clone();
        let mut run = Self {
            replacement,
            pass: TextPass::new(&replacement.model).keeping_if_it_fits(),
            options,
            out,
            progress: Progress {
                request,
                sequencer: Sequencer::new(tokenizer, options.settings.context, limit),
                files: Vec::new(),
                n_pieces: 0,
                n_units: 0,
                n_positions: 0,
                text_hash: 0,
            },
            written: None,
            held: Vec::new(),
            table: SequenceTable::new(),
            texts: TokenTexts::new(texts.into_iter()),
            layers: n_features.iter().enumerate().map(|(layer, &n)| LayerStats::new(layer, n)).collect(),
            resumed_from: None,
            started: Instant::now(),
            n_computed: 0,
            generation: 0,
            last_kept: Instant::now(),
            keeping_secs: 0.0,
        };
        if options.restart {
            run.forget()?;
        } else if let Some((generation, folder)) = latest(&run.collecting())? {
            run.resume(&folder).context(|| format!("cannot go on from `{}`", folder.display()))?;
            run.generation = generation;
        }
        run.started = Instant::now();
        Ok(run)
    }

    fn collecting(&self) -> PathBuf {
        self.out.join(COLLECTING)
    }

    fn forget(&self) -> Result<()> {
        let folder = self.collecting();
        match std::fs::remove_dir_all(&folder) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::Io { doing: "cannot remove", path: folder, source })
            }
            _ => Ok(()),
        }
    }

    fn resume(&mut self, folder: &Path) -> Result<()> {
        let path = folder.join(PROGRESS_FILE);
        let bytes =
            std::fs::read(&path).map_err(|source| Error::Io { doing: "cannot read", path: path.clone(), source })?;
        let damaged = |reason: String| Error::Damaged { file: path.display().to_string(), format: "progress", reason };
        let progress: Progress = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if let Some(problem) = progress.request.differs(&self.progress.request) {
            return Err(Error::Collect { folder: self.out.display().to_string(), problem });
        }
        let set = FeatureSet::open(folder)?;
        set.manifest().subject.check_same(&self.progress.request.subject, &folder.display().to_string())?;
        let tokens = set.tokens();
        for sequence in 0..tokens.n_sequences() {
            let (document, unit) = (tokens.document(sequence), tokens.unit(sequence));
            self.table.push(tokens.sequence(sequence).len(), document, unit);
        }
        let hashes = sequence_hashes(tokens);
        self.layers = (0..set.n_layers()).map(|layer| read_layer(&set, layer, &hashes)).collect::<Result<Vec<_>>>()?;
        self.written = Some(tokens.clone());
        self.resumed_from = Some(progress.sequencer.n_tokens);
        self.progress = progress;
        Ok(())
    }

    /// Reads all text that is left.
    fn read(&mut self, inputs: &[Input], job: &Job) -> Result<()> {
        let tokenizer = &self.replacement.tokenizer;
        while let Some(input) = inputs.get(self.progress.files.len()) {
            if self.progress.sequencer.is_full() {
                break;
            }
            let mut pieces = Pieces::open(input, &self.options.format)?;
            for _ in 0..self.progress.n_pieces {
                job.check()?;
                if pieces.next_piece()?.is_none() {
                    let problem = "it is shorter than it was when the interrupted run read it".to_owned();
                    return Err(Error::Text { file: input.name(), problem });
                }
            }
            loop {
                job.check()?;
                let piece = pieces.next_piece()?;
                if let Some(piece) = &piece {
                    self.progress.sequencer.push(piece, tokenizer)?;
                    self.progress.n_pieces += 1;
                }
                let at_end = piece.is_none() || self.progress.sequencer.is_full();
                while let Some(unit) = self.progress.sequencer.next_unit(at_end) {
                    if self.is_ours(self.progress.n_units) {
                        self.compute(&unit, job)?;
                    }
                    self.progress.n_units += 1;
                    let total = self.options.max_tokens.unwrap_or(0) as usize;
                    job.report(TOKENS_PHASE, self.table.n_tokens() as usize, total);
                }
                if at_end {
                    break;
                }
                self.keep_if_due()?;
            }
            let before: u64 = self.progress.files.iter().map(|file| file.n_documents).sum();
            let n_documents = u64::from(self.progress.sequencer.n_documents) - before;
            self.progress.files.push(TextFile { name: input.name(), n_documents });
            self.progress.n_pieces = 0;
            self.keep_if_due()?;
        }
        if self.progress.sequencer.n_tokens == 0 {
            let names = inputs.iter().map(Input::name).collect::<Vec<_>>().join(", ");
            return Err(Error::Text { file: names, problem: "it holds no text".into() });
        }
        Ok(())
    }

    fn is_ours(&self, unit: u32) -> bool {
        self.options.shard.is_none_or(|shard| unit % shard.of == shard.index - 1)
    }

    /// Runs the sequences of a unit.
    fn compute(&mut self, unit: &[Sequence], job: &Job) -> Result<()> {
        let mut starts = Vec::with_capacity(unit.len());
        let mut hashes = Vec::with_capacity(unit.len());
        for sequence in unit {
            let start = self.table.push(sequence.tokens.len(), sequence.document, self.progress.n_units);
            starts.push(start.ok_or_else(|| Error::Collect {
                folder: self.out.display().to_string(),
                problem: format!("a token store holds {} tokens at most; collect parts of the text", u32::MAX),
            })?);
            self.held.extend(&sequence.tokens);
            let hash = sequence_hash(sequence.tokens.iter().copied());
            self.progress.text_hash = self.progress.text_hash.wrapping_add(hash);
            hashes.push((0..sequence.tokens.len()).map(|offset| place_hash(hash, offset)).collect::<Vec<u64>>());
            self.n_computed += sequence.tokens.len() as u64;
        }
        let sequences: Vec<&[u32]> = unit.iter().map(|sequence| &sequence.tokens[..]).collect();
        let excluded: Vec<usize> = sequences.iter().map(|tokens| self.replacement.n_excluded(tokens)).collect();
        let counted: usize = sequences.iter().zip(&excluded).map(|(tokens, n)| tokens.len() - n).sum();
        self.progress.n_positions += counted as u64;
        let mut observer = Observer {
            replacement: self.replacement,
            layers: &mut self.layers,
            places: BatchPlaces { sequences: &sequences, starts: &starts, hashes: &hashes, excluded: &excluded },
            settings: &self.options.settings,
        };
        self.pass.run(self.replacement.model.config.n_layers - 1, &sequences, &mut observer, job)
    }

    fn manifest(&self, mergeable: bool) -> Manifest {
        let progress = &self.progress;
        Manifest {
            format_version: FEATURES_FORMAT_VERSION,
            program: concat!("circuitscope ", env!("CARGO_PKG_VERSION")).to_owned(),
            subject: progress.request.subject.clone(),
            text: TextSource {
                files: progress.files.clone(),
                hash: format!("{:016x}", progress.text_hash),
                n_tokens: self.table.n_tokens().into(),
                n_positions: progress.n_positions,
                n_sequences: self.table.n_sequences() as u64,
                n_documents: progress.sequencer.n_documents.into(),
            },
            settings: self.options.settings.clone(),
            mergeable,
            shard: self.options.shard,
            imported: None,
        }
    }

    fn write(&self, folder: &Path, mergeable: bool) -> Result<Manifest> {
        let manifest = self.manifest(mergeable);
        let each_token = |give: &mut dyn FnMut(u32) -> std::io::Result<()>| {
            if let Some(written) = &self.written {
                (0..written.len()).try_for_each(|position| give(written.token(position)))?;
            }
            self.held.iter().try_for_each(|&token| give(token))
        };
        let writer = FolderWriter::begin(folder, &manifest, &self.table, &self.texts, &each_token)?;
        for (layer, stats) in self.layers.iter().enumerate() {
            writer.layer(layer, stats)?;
        }
        writer.end()?;
        Ok(manifest)
    }

    fn keep_if_due(&mut self) -> Result<()> {
        let due = self.options.keep_every_secs.max(self.keeping_secs / KEEPING_SHARE);
        if self.last_kept.elapsed().as_secs_f64() < due && self.held.len() < MAX_HELD_TOKENS {
            return Ok(());
        }
        let start = Instant::now();
        let folder = self.collecting().join((self.generation + 1).to_string());
        self.write(&folder, true)?;
        let path = folder.join(PROGRESS_FILE);
        let failed = |e: serde_json::Error| Error::Io { doing: "cannot write", path: path.clone(), source: e.into() };
        let json = serde_json::to_vec(&self.progress).map_err(failed)?;
        replace_file(&path, |writer| std::io::Write::write_all(writer, &json))?;
        self.written = Some(FeatureSet::open(&folder)?.tokens().clone());
        self.held.clear();
        // What was kept before is of no use any more; if it cannot be removed it does no harm either.
        let _ = std::fs::remove_dir_all(self.collecting().join(self.generation.to_string()));
        self.generation += 1;
        self.keeping_secs = start.elapsed().as_secs_f64();
        self.last_kept = Instant::now();
        Ok(())
    }

    /// Writes a set that takes the place of another.
    fn replace(&self, mergeable: bool) -> Result<Manifest> {
        let whole = self.collecting().join(WHOLE);
        let replaced = self.write(&whole, mergeable).and_then(|manifest| {
            replace_set(&whole, self.out, MANIFEST_FILE)?;
            Ok(manifest)
        });
        if replaced.is_err() {
            // Each may be missing: making the first may be what failed. Work that was kept stays, since a folder that holds some
            // is not removed.
            let _ = std::fs::remove_dir_all(&whole);
            let _ = std::fs::remove_dir(self.collecting());
        }
        replaced
    }

    fn finish(self) -> Result<Collected> {
        let mergeable = self.options.mergeable || self.options.shard.is_some();
        // Where features are in the way, the new ones are written beside them: a run that ends in between must not leave
        // layers of one set and tokens of another.
        let manifest = match self.out.join(MANIFEST_FILE).exists() {
            false => self.write(self.out, mergeable)?,
            true => self.replace(mergeable)?,
        };
        self.forget()?;
        Ok(Collected {
            manifest,
            resumed_from: self.resumed_from,
            n_tokens: self.n_computed,
            secs: self.started.elapsed().as_secs_f64(),
        })
    }
}

impl Request {
    /// Where another request is not the same, in words.
    fn differs(&self, other: &Request) -> Option<String> {
        let unfinished = |what: &str, kept: String, here: String| {
            Some(format!("it holds unfinished work with {what} {kept}, here {here}"))
        };
        let optional = |value: Option<String>| value.unwrap_or_else(|| "none".into());
        if self.subject != other.subject {
            return unfinished("the model and transcoders", self.subject.named(), other.subject.named());
        }
        if self.files != other.files {
            let named = |files: &[(String, u64)]| {
                files.iter().map(|(name, bytes)| format!("{name} ({bytes} bytes)")).collect::<Vec<_>>().join(", ")
            };
            return unfinished("the text", named(&self.files), named(&other.files));
        }
        if self.settings != other.settings {
            return unfinished("the settings", format!("{:?}", self.settings), format!("{:?}", other.settings));
        }
        if (&self.field, &self.split) != (&other.field, &other.split) {
            let named = |r: &Request| format!("{} {}", r.field, r.split);
            return unfinished("the field and documents", named(self), named(other));
        }
        if self.max_tokens != other.max_tokens {
            let named = |r: &Request| optional(r.max_tokens.map(|n| n.to_string()));
            return unfinished("the limit of tokens", named(self), named(other));
        }
        if self.shard != other.shard {
            let named = |r: &Request| optional(r.shard.map(|shard| shard.to_string()));
            return unfinished("the part", named(self), named(other));
        }
        None
    }
}

/// The newest folder of kept work that is complete.
fn latest(collecting: &Path) -> Result<Option<(u64, PathBuf)>> {
    let entries = match std::fs::read_dir(collecting) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        entries => entries.map_err(|source| Error::Io { doing: "cannot list", path: collecting.to_owned(), source })?,
    };
    let kept = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let generation = path.file_name()?.to_str()?.parse().ok()?;
        path.join(PROGRESS_FILE).exists().then_some((generation, path))
    });
    Ok(kept.max())
}

/// Looks at what transcoders read, and encodes it.
struct Observer<'a> {
    replacement: &'a Replacement,
    layers: &'a mut [LayerStats],
    /// Of all sequences.
    places: BatchPlaces<'a>,
    settings: &'a Settings,
}

impl TextVisitor for Observer<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        point.layer().is_some_and(|layer| self.replacement.input_point(layer) == point)
    }

    fn see(&mut self, point: HookPoint, rows: Vec<f32>, sequences: Range<usize>) -> Result<()> {
        let Some(layer) = point.layer() else { return Ok(()) };
        let active = active_on_rows(self.replacement, layer, rows)?;
        let BatchPlaces { sequences: tokens, starts, hashes, excluded } = self.places;
        let places = BatchPlaces {
            sequences: &tokens[sequences.clone()],
            starts: &starts[sequences.clone()],
            hashes: &hashes[sequences.clone()],
            excluded: &excluded[sequences],
        };
        self.layers[layer].observe(&active, &places, self.settings);
        Ok(())
    }
}

/// The active features of every row of what the transcoder of a layer reads. `[n_rows]`
pub(super) fn active_on_rows(replacement: &Replacement, layer: usize, rows: Vec<f32>) -> Result<Vec<Vec<Candidate>>> {
    let d_model = replacement.model.config.d_model;
    let n_rows = rows.len() / d_model;
    let rows = Tensor::from_vec(rows, (n_rows, d_model), &Device::Cpu)?;
    let active = replacement.transcoders.layers[layer].active(&rows.to_device(replacement.model.device())?);
    active.context(|| format!("cannot encode layer {layer}"))
}
