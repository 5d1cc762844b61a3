//! Reading features of other programs into a folder of ours. Their examples become the text: each one's tokens are a
//! sequence, after the token that begins a text. What they do not say stays unknown, or is counted on the examples.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::super::accumulate::{most_frequent, sequence_hash};
use super::super::dashboard::{
    Dashboard, Example, Groups, Neighbor, TokenCount, WINDOW_AFTER, WINDOW_BEFORE, interval_of,
};
use super::super::files::{LayerWriter, MANIFEST_FILE, write_manifest};
use super::super::histogram::{Histogram, bin_of};
use super::super::labels::write_names;
use super::super::manifest::{FEATURES_FORMAT_VERSION, Manifest, Provenance, Settings, Subject, TextFile, TextSource};
use super::super::report::FeatureId;
use super::super::tokens::{SequenceTable, TokenTexts, write_tokens};
use super::agreement::{Sample, SampleExample, agreement};
use super::foreign::Foreign;
use super::source::Source;
use super::vocabulary::Vocabulary;
use crate::error::{Error, Result};
use crate::export::check_writable;
use crate::job::Job;
use crate::replacement::Replacement;

/// The phase of a [`Job`] that counts features.
pub const IMPORT_PHASE: &str = "features";

/// Tokens around an example that are looked at for what a feature is active on.
const N_TOKENS: usize = 10;
const N_BEFORE: usize = 5;

/// Examples that count as the strongest, where a file does not say.
const N_TOP: usize = 20;

/// How to import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImportOptions {
    /// Features that are compared with the model here, spread over the layers; 0 for none.
    pub n_checked: usize,
    /// Examples of each of them.
    pub n_checked_examples: usize,
    /// Strongest examples of a feature that are kept at most, and as many others.
    pub max_examples: usize,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self { n_checked: 200, n_checked_examples: 3, max_examples: 40 }
    }
}

/// What was imported.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// What is in the folder; [`Provenance::agreement`] says how true it is.
    pub manifest: Manifest,
    /// Features with examples.
    pub n_alive: usize,
    /// Examples.
    pub n_examples: usize,
    /// Examples that were left out: they have tokens that this vocabulary has not, or no activation at their own token.
    pub n_left_out: usize,
    /// Features with a name.
    pub n_labels: usize,
}

/// Imports what other programs wrote: circuit-tracer's bundle, its files of single features, or Neuronpedia's lines, told
/// by their names. `paths` are files or folders.
///
/// # Errors
/// Files that are missing, damaged, or of features that the set here does not have; [`Error::Collect`] where features are
/// in the way; those of the model and of writing; [`Error::Cancelled`].
pub fn import(
    replacement: &Replacement,
    paths: &[PathBuf],
    out: &Path,
    options: &ImportOptions,
    job: &Job,
) -> Result<Imported> {
    if out.join(MANIFEST_FILE).exists() {
        let problem = "it holds features already".to_owned();
        return Err(Error::Collect { folder: out.display().to_string(), problem });
    }
    let subject = Subject::of(replacement)?;
    let source = Source::find(paths)?;
    source.check(&subject)?;
    check_writable(out)?;
    let mut import = Import::new(replacement, subject, options);
    let n_features = import.subject.n_features.clone();
    for layer in 0..n_features.len() {
        job.check()?;
        let mut features: BTreeMap<usize, Gathered> = BTreeMap::new();
        source.read(layer, &n_features, job, &mut |feature, foreign| {
            // Files may tell of a feature in several pieces.
            import.gather(&mut features, feature, foreign);
        })?;
        let mut writer = LayerWriter::new(import.subject.d_vocab);
        let chosen = import.chosen(&features);
        for feature in 0..n_features[layer] {
            let gathered = features.remove(&feature).unwrap_or_default();
            let is_chosen = chosen.contains(&feature);
            writer.push(&import.dashboard(FeatureId { layer, feature }, gathered, is_chosen)?);
        }
        writer.write(out, layer)?;
    }
    import.write(out, &source, job)
}

/// A folder on its way.
struct Import<'a> {
    replacement: &'a Replacement,
    subject: Subject,
    options: ImportOptions,
    vocabulary: Vocabulary,
    tokens: Vec<u32>,
    table: SequenceTable,
    /// Where the first sequence of each hash begins.
    by_hash: HashMap<u64, u32>,
    /// The sum of the hashes of all sequences.
    text_hash: u64,
    settings: Settings,
    samples: Vec<Sample>,
    labels: BTreeMap<FeatureId, String>,
    /// Positions of the text that each feature's frequency speaks of.
    n_positions: Vec<f64>,
    n_alive: usize,
    n_examples: usize,
    n_left_out: usize,
}

/// What was read of a feature so far.
#[derive(Default)]
struct Gathered {
    /// All but the examples.
    said: Foreign,
    examples: Vec<Known>,
}

/// An example as tokens of this vocabulary.
struct Known {
    ids: Vec<u32>,
    values: Vec<f32>,
    at: usize,
    is_top: Option<bool>,
}

/// An example in the token store, with the token that begins a text.
struct Placed {
    start: u32,
    tokens: Vec<u32>,
    values: Vec<f32>,
    at: usize,
    is_top: bool,
    is_whole: bool,
}

impl<'a> Import<'a> {
    fn new(replacement: &'a Replacement, subject: Subject, options: &ImportOptions) -> Self {
        Self {
            vocabulary: Vocabulary::new(&replacement.tokenizer, subject.d_vocab),
            replacement,
            subject,
            options: *options,
            tokens: Vec::new(),
            table: SequenceTable::new(),
            by_hash: HashMap::new(),
            text_hash: 0,
            settings: Settings { context: 2, ..Settings::default() },
            samples: Vec::new(),
            labels: BTreeMap::new(),
            n_positions: Vec::new(),
            n_alive: 0,
            n_examples: 0,
            n_left_out: 0,
        }
    }

    /// Adds a piece of what is said of a feature.
    fn gather(&mut self, features: &mut BTreeMap<usize, Gathered>, feature: usize, piece: Foreign) {
        let Gathered { said, examples } = features.entry(feature).or_default();
        for example in piece.examples {
            let ids: Option<Vec<u32>> = example.tokens.iter().map(|text| self.vocabulary.id(text)).collect();
            match ids {
                Some(ids) => {
                    examples.push(Known { ids, values: example.values, at: example.at, is_top: example.is_top });
                }
                None => self.n_left_out += 1,
            }
        }
        let or = |a: &mut Vec<String>, b: Vec<String>| {
            if a.is_empty() {
                *a = b;
            }
        };
        or(&mut said.top, piece.top);
        said.max = said.max.or(piece.max);
        said.frequency = said.frequency.or(piece.frequency);
        if said.histogram.is_empty() {
            said.histogram = piece.histogram;
        }
        if let Some(label) = piece.label
            && said.label.as_ref().is_none_or(|old| label.0 < old.0)
        {
            said.label = Some(label);
        }
        let n = self.options.max_examples;
        if examples.len() > 8 * n {
            keep_examples(examples, n);
        }
    }

    /// Features of a layer that are compared with the model: spread evenly over those with examples.
    fn chosen(&self, features: &BTreeMap<usize, Gathered>) -> Vec<usize> {
        let alive: Vec<usize> =
            features.iter().filter(|(_, of)| !of.examples.is_empty()).map(|(&feature, _)| feature).collect();
        let n = self.options.n_checked.div_ceil(self.subject.n_features.len().max(1)).min(alive.len());
        (0..n).map(|i| alive[i * alive.len() / n]).collect()
    }

    /// The dashboard of a feature.
    fn dashboard(&mut self, id: FeatureId, gathered: Gathered, is_chosen: bool) -> Result<Dashboard> {
        let Gathered { said, mut examples } = gathered;
        if let Some((_, label)) = said.label.as_ref().filter(|(_, label)| !label.trim().is_empty()) {
            self.labels.insert(id, label.trim().to_owned());
        }
        keep_examples(&mut examples, self.options.max_examples);
        // Those of files that do not say which are the strongest.
        examples
            .iter_mut()
            .filter(|e| e.is_top.is_none())
            .enumerate()
            .for_each(|(rank, e)| e.is_top = Some(rank < N_TOP));
        let mut placed = Vec::with_capacity(examples.len());
        for example in examples {
            match self.place(example)? {
                Some(example) => placed.push(example),
                None => self.n_left_out += 1,
            }
        }
        if placed.is_empty() {
            return Ok(Dashboard::default());
        }
        self.n_alive += 1;
        self.n_examples += placed.len();
        if is_chosen {
            let of = |example: &Placed| SampleExample {
                tokens: example.tokens.clone(),
                values: example.values.clone(),
                at: example.at,
                is_whole: example.is_whole,
            };
            let tokens = |texts: &[String]| texts.iter().filter_map(|text| self.vocabulary.id(text)).collect();
            let mut strongest: Vec<&Placed> = placed.iter().filter(|example| example.is_top).collect();
            strongest.truncate(self.options.n_checked_examples);
            self.samples.push(Sample {
                layer: id.layer,
                feature: id.feature,
                examples: strongest.into_iter().map(of).collect(),
                top: tokens(&said.top),
            });
        }
        Ok(self.summary(&said, &placed))
    }

    /// Numbers and lists of a feature, from what is said of it and from its examples.
    fn summary(&mut self, said: &Foreign, placed: &[Placed]) -> Dashboard {
        // Every place where it is known to be active, once.
        let mut active: BTreeMap<u32, f32> = BTreeMap::new();
        for example in placed {
            for (offset, &value) in example.values.iter().enumerate().filter(|(_, value)| **value > 0.0) {
                active.insert(example.start + offset as u32, value);
            }
        }
        let largest = active.values().copied().fold(0.0f32, f32::max);
        let max = said.max.filter(|max| max.is_finite()).unwrap_or(0.0).max(largest);
        let mut histogram = Histogram::default();
        let mut sum = 0.0;
        for &(start, end, n) in &said.histogram {
            let (middle, n) = (start.midpoint(end), n.round());
            if n >= 1.0 && n < f64::from(u32::MAX) && middle.is_finite() {
                histogram.add_to(bin_of(middle), n as u32);
                sum += n * f64::from(middle);
            }
        }
        let counted: u64 = histogram.counts.iter().map(|&n| u64::from(n)).sum();
        // Shares instead of counts say how activations are spread, and not how many there are.
        if counted < active.len() as u64 || counted > u64::from(u32::MAX) {
            histogram = Histogram::default();
            active.values().for_each(|&value| histogram.add(value));
            sum = active.values().map(|&value| f64::from(value)).sum();
        }
        let count = histogram.counts.iter().map(|&n| u64::from(n)).sum::<u64>() as u32;
        if let Some(frequency) = said.frequency.filter(|&frequency| frequency > 0.0) {
            self.n_positions.push(f64::from(count) / frequency);
        }
        let token = |position: u32| self.tokens[position as usize];
        let on = active.iter().map(|(&position, &value)| (token(position), value)).collect();
        let before = active.iter().filter(|(position, _)| **position > 0);
        let before = before.map(|(&position, &value)| (token(position - 1), value)).collect();
        // Shares are of what was sampled: as many as are said to have been.
        let n_sampled = count.min(self.settings.n_sampled as u32);
        let scale = f64::from(n_sampled) / active.len() as f64;
        let scaled = |mut counts: Vec<TokenCount>| {
            counts.iter_mut().for_each(|c| c.count = ((f64::from(c.count) * scale) as u32).max(1));
            counts
        };
        let mut examples: Vec<Example> = Vec::new();
        for example in placed {
            let position = example.start + example.at as u32;
            let value = example.values[example.at];
            let groups = if example.is_top { Groups::TOP } else { Groups::of_interval(interval_of(max, value)) };
            match examples.iter_mut().find(|other| other.position == position) {
                Some(same) => same.groups.0 |= groups.0,
                None => examples.push(Example { position, value, groups, neighbors: neighbors(example) }),
            }
        }
        examples.sort_by(|a, b| b.value.total_cmp(&a.value).then(a.position.cmp(&b.position)));
        let mut sequences: Vec<u32> = placed.iter().map(|example| example.start).collect();
        sequences.sort_unstable();
        sequences.dedup();
        Dashboard {
            count,
            n_sequences: sequences.len() as u32,
            mean: (sum / f64::from(count.max(1))) as f32,
            min: active.values().copied().fold(f32::INFINITY, f32::min).min(max),
            max,
            histogram,
            examples,
            n_sampled,
            tokens: scaled(most_frequent(on, N_TOKENS)),
            before: scaled(most_frequent(before, N_BEFORE)),
        }
    }

    /// An example in the token store; nothing where that cannot be.
    fn place(&mut self, example: Known) -> Result<Option<Placed>> {
        let Known { ids, values, at, is_top } = example;
        // A text begins with the token for it, which windows out of one do not have.
        let is_whole = self.vocabulary.start.is_none_or(|start| ids.first() == Some(&start));
        let start = self.vocabulary.start.filter(|_| !is_whole);
        let tokens: Vec<u32> = start.into_iter().chain(ids).collect();
        let values: Vec<f32> = start.map(|_| 0.0).into_iter().chain(values).collect();
        let at = at + usize::from(start.is_some());
        let n_ctx = self.replacement.model.config.n_ctx.min(Settings::MAX_CONTEXT);
        let is_counted = at >= self.replacement.n_excluded(&tokens) && at > 0;
        if values[at] <= 0.0 || !is_counted || tokens.len() > n_ctx {
            return Ok(None);
        }
        let hash = sequence_hash(tokens.iter().copied());
        let known = self.by_hash.get(&hash).copied().filter(|&start| {
            let same = self.tokens.get(start as usize..).is_some_and(|rest| rest.starts_with(&tokens));
            same && self.ends_at(start, tokens.len())
        });
        let start = match known {
            Some(start) => start,
            None => {
                let number = self.table.n_sequences() as u32;
                let start = self.table.push(tokens.len(), number, 0).ok_or_else(|| Error::FeatureFiles {
                    path: "examples".into(),
                    problem: format!("they have more than {} tokens; keep fewer of each feature", u32::MAX),
                })?;
                self.tokens.extend(&tokens);
                self.by_hash.entry(hash).or_insert(start);
                self.text_hash = self.text_hash.wrapping_add(hash);
                self.settings.context = self.settings.context.max(tokens.len());
                start
            }
        };
        Ok(Some(Placed { start, tokens, values, at, is_top: is_top == Some(true), is_whole }))
    }

    /// Whether the sequence at `start` has so many tokens.
    fn ends_at(&self, start: u32, n_tokens: usize) -> bool {
        self.table.starts.binary_search(&(start + n_tokens as u32)).is_ok()
    }

    /// Writes what all layers have in common; the manifest last.
    fn write(mut self, out: &Path, source: &Source, job: &Job) -> Result<Imported> {
        let ids = 0..self.subject.d_vocab as u32;
        let texts = TokenTexts::new(ids.map(|id| self.replacement.tokenizer.token_bytes(id)));
        write_tokens(out, &self.table, &texts, &|give| self.tokens.iter().try_for_each(|&token| give(token)))?;
        let agreement = agreement(self.replacement, &self.samples, job)?;
        self.n_positions.sort_by(f64::total_cmp);
        let n_counted = self.tokens.len().saturating_sub(self.table.n_sequences());
        let n_positions = self.n_positions.get(self.n_positions.len() / 2).map_or(n_counted as u64, |&n| n as u64);
        let n_sequences = self.table.n_sequences() as u64;
        let manifest = Manifest {
            format_version: FEATURES_FORMAT_VERSION,
            program: concat!("circuitscope ", env!("CARGO_PKG_VERSION")).to_owned(),
            subject: self.subject,
            text: TextSource {
                files: source.names().into_iter().map(|name| TextFile { name, n_documents: 0 }).collect(),
                hash: format!("{:016x}", self.text_hash),
                n_tokens: self.tokens.len() as u64,
                n_positions,
                n_sequences,
                n_documents: n_sequences,
            },
            settings: self.settings,
            mergeable: false,
            shard: None,
            imported: Some(Provenance { from: source.program().to_owned(), agreement }),
        };
        if !self.labels.is_empty() {
            write_names(out, &self.labels)?;
        }
        write_manifest(&manifest, out)?;
        Ok(Imported {
            manifest,
            n_alive: self.n_alive,
            n_examples: self.n_examples,
            n_left_out: self.n_left_out,
            n_labels: self.labels.len(),
        })
    }
}

/// The other activations near an example's own token.
fn neighbors(example: &Placed) -> Vec<Neighbor> {
    let from = example.at.saturating_sub(WINDOW_BEFORE);
    let to = (example.at + WINDOW_AFTER + 1).min(example.values.len());
    (from..to)
        .filter(|&i| i != example.at && example.values[i] != 0.0)
        .map(|i| Neighbor { offset: (i as i64 - example.at as i64) as i8, value: example.values[i] })
        .collect()
}

/// Keeps the `n` strongest examples, and `n` that are spread over the others; strongest first.
fn keep_examples(examples: &mut Vec<Known>, n: usize) {
    let value = |example: &Known| example.values[example.at];
    examples.sort_by(|a, b| value(b).total_cmp(&value(a)));
    if examples.len() > 2 * n {
        let rest = examples.split_off(n);
        let n_rest = rest.len();
        let spread = rest.into_iter().enumerate().filter(|(i, _)| i * n / n_rest != (i + 1) * n / n_rest);
        examples.extend(spread.map(|(_, example)| example));
    }
}
