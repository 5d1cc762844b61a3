//! A folder of features: `features.json`, `tokens.safetensors`, and `layer_{l}.safetensors` for each layer, mapped
//! (docs/formats.md).

use std::path::Path;

use super::dashboard::{Dashboard, Example, Groups, N_INTERVALS, Neighbor, TokenCount, WINDOW_AFTER, WINDOW_BEFORE};
use super::histogram::{Histogram, N_BINS};
use super::manifest::{FEATURES_FORMAT_VERSION, Manifest, Subject};
use super::tokens::{Ids, Runs, TokenStore, are_narrow};
use crate::error::{Error, Result};
use crate::export::{Numbers, replace_file, write_columns};
use crate::labels::Labels;
use crate::replacement::Replacement;
use crate::weights::{ATLAS, Column, Columns, Folder, atlas_features, atlas_transcoders};

/// The name of the folder beside a transcoder set's `config.yaml`.
pub const FEATURES_FOLDER: &str = Labels::FEATURES_FOLDER;

/// The file that says what the others are; written last.
pub const MANIFEST_FILE: &str = "features.json";

const FORMAT: &str = "features";

pub(super) fn layer_file(layer: usize) -> String {
    format!("layer_{layer}.safetensors")
}

/// The features of a model on a text, opened: headers are read and checked, the rest is mapped.
#[derive(Debug)]
pub struct FeatureSet {
    folder: Folder,
    manifest: Manifest,
    tokens: TokenStore,
    layers: Vec<LayerFile>,
    labels: Labels,
}

impl FeatureSet {
    /// Opens a folder that [`collect`](super::collect) or [`merge`](super::merge) wrote.
    ///
    /// # Errors
    /// [`Error::MissingFile`]; [`Error::FeaturesVersion`]; [`Error::Damaged`], [`Error::MissingTensor`],
    /// [`Error::Dtype`], [`Error::Shape`] where files do not agree.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Err(Error::MissingFile { file: MANIFEST_FILE.into(), folder: path.display().to_string() });
        }
        Self::open_folder(&Folder::on_disk(path))
    }

    /// Opens a folder of features, the one in a folder of transcoders, or those of the embedded model by their name.
    ///
    /// # Errors
    /// As [`FeatureSet::open`].
    pub fn open_named(name: &str) -> Result<Self> {
        let path = Path::new(name);
        if name == ATLAS && !path.exists() {
            let mut set = Self::open_folder(&atlas_features())?;
            let transcoders = atlas_transcoders();
            if let Some(bytes) = transcoders.read(Labels::FILE)? {
                set.labels = Labels::parse(&bytes, &transcoders.shown(Labels::FILE))?;
            }
            return Ok(set);
        }
        let within = path.join(FEATURES_FOLDER);
        match !path.join(MANIFEST_FILE).exists() && within.join(MANIFEST_FILE).exists() {
            true => Self::open(&within),
            false => Self::open(path),
        }
    }

    /// As [`FeatureSet::open`], of a folder that may be part of the program.
    ///
    /// # Errors
    /// As [`FeatureSet::open`].
    pub fn open_folder(folder: &Folder) -> Result<Self> {
        let manifest = read_manifest(folder)?;
        let tokens = TokenStore::open(folder, manifest.subject.d_vocab)?;
        let layers = manifest.subject.n_features.iter().enumerate();
        let layers = layers.map(|(layer, &n_features)| LayerFile::open(folder, layer, n_features));
        let layers = layers.collect::<Result<_>>()?;
        let labels = read_labels(folder, &manifest.subject.n_features)?;
        Ok(Self { folder: folder.clone(), manifest, tokens, layers, labels })
    }

    /// What these features are of, and how they were collected.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The folder that they were opened from.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// The text.
    pub fn tokens(&self) -> &TokenStore {
        &self.tokens
    }

    /// Number of layers.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// Number of features of a layer, which must exist.
    pub fn n_features(&self, layer: usize) -> usize {
        self.manifest.subject.n_features[layer]
    }

    /// What is known of one feature. Touches its own bytes alone.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`], [`Error::NoSuchFeature`]; [`Error::Damaged`] for values that cannot be.
    pub fn dashboard(&self, layer: usize, feature: usize) -> Result<Dashboard> {
        let n_layers = self.n_layers();
        let Some(&n_features) = self.manifest.subject.n_features.get(layer) else {
            return Err(Error::NoSuchLayer { layer, n_layers });
        };
        if feature >= n_features {
            return Err(Error::NoSuchFeature { layer, feature, n_layers, n_features });
        }
        self.layers[layer].dashboard(feature, &self.tokens, self.manifest.settings.n_sampled)
    }

    /// How often a feature is active, and its largest activation, without the rest: for going through all of them.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`], [`Error::NoSuchFeature`]
    pub fn count_and_max(&self, layer: usize, feature: usize) -> Result<(u32, f32)> {
        match self.layers.get(layer) {
            Some(file) if feature < file.count.len() => Ok((file.count.get(feature), file.max.get(feature))),
            _ => self.dashboard(layer, feature).map(|dashboard| (dashboard.count, dashboard.max)),
        }
    }

    /// The tokens that a feature is active on, without the rest: for going through all features.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`], [`Error::NoSuchFeature`]
    pub fn tokens_of(&self, layer: usize, feature: usize) -> Result<Vec<TokenCount>> {
        match self.layers.get(layer) {
            Some(file) if feature < file.count.len() => Ok(file.tokens.get(feature)),
            _ => self.dashboard(layer, feature).map(|dashboard| dashboard.tokens),
        }
    }

    /// How many activations the tokens of a feature were counted on.
    pub(super) fn n_sampled(&self, layer: usize, feature: usize) -> Result<u32> {
        let (count, _) = self.count_and_max(layer, feature)?;
        Ok(count.min(self.manifest.settings.n_sampled as u32))
    }

    /// What features are called, where `feature_labels.json` in this folder or beside it says so.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// The tokens around an example, with the activations that are stored: at most [`WINDOW_BEFORE`] tokens before it
    /// and [`WINDOW_AFTER`] after, all of its sequence.
    pub fn window(&self, example: &Example, before: usize, after: usize) -> Window {
        let position = example.position as usize;
        let sequence = self.tokens.sequence_of(position);
        let whole = self.tokens.sequence(sequence);
        let start = position.saturating_sub(before.min(WINDOW_BEFORE)).max(whole.start);
        let end = (position + after.min(WINDOW_AFTER) + 1).min(whole.end);
        let activation = |at: usize| match at as i64 - position as i64 {
            0 => example.value,
            offset => {
                example.neighbors.iter().find(|n| i64::from(n.offset) == offset).map_or(0.0, |neighbor| neighbor.value)
            }
        };
        Window {
            texts: self.tokens.texts((start..end).map(|at| self.tokens.token(at))),
            tokens: (start..end).map(|at| self.tokens.token(at)).collect(),
            activations: (start..end).map(activation).collect(),
            at: position - start,
            document: self.tokens.document(sequence),
            starts_sequence: start == whole.start,
        }
    }
}

/// The tokens around an example.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Their texts. A character of several tokens is with the last of them.
    pub texts: Vec<String>,
    /// The feature's activation on each; 0 where it is not active. As many as tokens.
    pub activations: Vec<f32>,
    /// Which of them is the example's own.
    pub at: usize,
    /// The document, counted over all files.
    pub document: u32,
    /// Whether the first token is the first of its sequence, which stands for no text.
    pub starts_sequence: bool,
}

/// Labels beside the folder, where the transcoders are and somebody may have put their own, and those in it.
fn read_labels(folder: &Folder, n_features: &[usize]) -> Result<Labels> {
    let shown = folder.shown(Labels::FILE);
    let within = match folder.read(Labels::FILE)? {
        Some(bytes) => Labels::parse(&bytes, &shown)?,
        None => Labels::default(),
    };
    within.check(n_features, &shown)?;
    let beside = folder.path().and_then(Path::parent).map(|parent| parent.join(Labels::FILE));
    match beside.filter(|path| path.is_file()) {
        Some(path) => {
            let labels = Labels::read(&path)?;
            labels.check(n_features, &path.display().to_string())?;
            Ok(labels.or(within))
        }
        None => Ok(within),
    }
}

/// Checks that the labels which a set of transcoders takes from the features beside it are of this set. Which form of the
/// model they were collected with does not matter: names are of the features.
///
/// # Errors
/// [`Error::FeaturesMismatch`]; those of reading `features.json`.
pub fn check_labels_beside(replacement: &Replacement, transcoders: &Path) -> Result<()> {
    let path = transcoders.join(FEATURES_FOLDER);
    let is_there = |file: &str| path.join(file).is_file();
    if !is_there(Labels::FILE) || !is_there(MANIFEST_FILE) {
        return Ok(());
    }
    let manifest = read_manifest(&Folder::on_disk(&path))?;
    manifest.subject.check_same_set(&Subject::of(replacement)?, &path.display().to_string())
}

pub(super) fn read_manifest(folder: &Folder) -> Result<Manifest> {
    let damaged = |reason: String| Error::Damaged { file: folder.shown(MANIFEST_FILE), format: FORMAT, reason };
    let json = folder.read_json(MANIFEST_FILE)?.ok_or_else(|| folder.missing(MANIFEST_FILE))?;
    // The version first: another version may have other fields.
    match json.get("format_version").and_then(serde_json::Value::as_u64) {
        Some(version) if version == u64::from(FEATURES_FORMAT_VERSION) => {}
        Some(actual) => {
            let (path, expected) = (folder.shown(MANIFEST_FILE).into(), FEATURES_FORMAT_VERSION);
            return Err(Error::FeaturesVersion { path, actual, expected });
        }
        None => return Err(damaged("it has no `format_version`".into())),
    }
    let manifest: Manifest = serde_json::from_value(json).map_err(|e| damaged(e.to_string()))?;
    manifest.settings.check().map_err(|e| damaged(format!("its settings: {e}")))?;
    Ok(manifest)
}

/// Writes `features.json`; the last file of a folder.
pub(super) fn write_manifest(manifest: &Manifest, folder: &Path) -> Result<()> {
    let path = folder.join(MANIFEST_FILE);
    let failed = |e: serde_json::Error| Error::Io { doing: "cannot write", path: path.clone(), source: e.into() };
    let json = serde_json::to_vec_pretty(manifest).map_err(failed)?;
    replace_file(&path, |writer| std::io::Write::write_all(writer, &json))
}

/// One layer's columns.
#[derive(Debug)]
struct LayerFile {
    file: String,
    count: Column<u32>,
    n_sequences: Column<u32>,
    mean: Column<f32>,
    min: Column<f32>,
    max: Column<f32>,
    histogram_first: Column<u8>,
    histogram: Runs,
    histogram_counts: Column<u32>,
    examples: Runs,
    example_positions: Column<u32>,
    example_values: Column<f32>,
    example_groups: Column<u8>,
    example_neighbors: Column<u8>,
    neighbors: Runs,
    neighbor_offsets: Column<i8>,
    neighbor_values: Column<f32>,
    tokens: Listed,
    before: Listed,
}

/// Tokens with counts and means, a run for each feature.
#[derive(Debug)]
struct Listed {
    runs: Runs,
    ids: Ids,
    counts: Column<u16>,
    means: Column<f32>,
}

impl Listed {
    fn open(columns: &Columns, name: &str, n_features: usize) -> Result<Self> {
        let ids = Ids::open(columns, &format!("{name}_ids"))?;
        Ok(Self {
            runs: Runs::open(columns, &format!("{name}_starts"), n_features, ids.len())?,
            counts: columns.column_of(&format!("{name}_counts"), ids.len())?,
            means: columns.column_of(&format!("{name}_means"), ids.len())?,
            ids,
        })
    }

    fn get(&self, feature: usize) -> Vec<TokenCount> {
        let of = |i| TokenCount { token: self.ids.get(i), count: self.counts.get(i).into(), mean: self.means.get(i) };
        self.runs.get(feature).map(of).collect()
    }
}

impl LayerFile {
    fn open(folder: &Folder, layer: usize, n_features: usize) -> Result<Self> {
        let columns = &Columns::open(folder, &layer_file(layer))?;
        let histogram_counts = columns.column::<u32>("histogram_counts")?;
        let example_positions = columns.column::<u32>("example_positions")?;
        let neighbor_offsets = columns.column::<i8>("neighbor_offsets")?;
        let n_examples = example_positions.len();
        Ok(Self {
            file: columns.file().to_owned(),
            count: columns.column_of("count", n_features)?,
            n_sequences: columns.column_of("n_sequences", n_features)?,
            mean: columns.column_of("mean", n_features)?,
            min: columns.column_of("min", n_features)?,
            max: columns.column_of("max", n_features)?,
            histogram_first: columns.column_of("histogram_first", n_features)?,
            histogram: Runs::open(columns, "histogram_starts", n_features, histogram_counts.len())?,
            histogram_counts,
            examples: Runs::open(columns, "example_starts", n_features, n_examples)?,
            example_positions,
            example_values: columns.column_of("example_values", n_examples)?,
            example_groups: columns.column_of("example_groups", n_examples)?,
            example_neighbors: columns.column_of("example_neighbors", n_examples)?,
            neighbors: Runs::open(columns, "neighbor_starts", n_features, neighbor_offsets.len())?,
            neighbor_values: columns.column_of("neighbor_values", neighbor_offsets.len())?,
            neighbor_offsets,
            tokens: Listed::open(columns, "token", n_features)?,
            before: Listed::open(columns, "before", n_features)?,
        })
    }

    fn dashboard(&self, feature: usize, tokens: &TokenStore, n_sampled: usize) -> Result<Dashboard> {
        let damaged = |reason: String| Error::Damaged {
            file: self.file.clone(),
            format: FORMAT,
            reason: format!("feature {feature}: {reason}"),
        };
        let count = self.count.get(feature);
        let bins = self.histogram.get(feature);
        let histogram = Histogram {
            first_bin: self.histogram_first.get(feature),
            counts: self.histogram_counts.range(bins).collect(),
        };
        if usize::from(histogram.first_bin) + histogram.counts.len() > N_BINS
            || histogram.counts.iter().map(|&n| u64::from(n)).sum::<u64>() != u64::from(count)
        {
            return Err(damaged(format!("its histogram is not one of {count} activations")));
        }
        let mut neighbors = self.neighbors.get(feature);
        let mut examples = Vec::with_capacity(self.examples.get(feature).len());
        for i in self.examples.get(feature) {
            let position = self.example_positions.get(i);
            if position as usize >= tokens.len() {
                return Err(damaged(format!("an example is at {position} of {} tokens", tokens.len())));
            }
            let n = usize::from(self.example_neighbors.get(i));
            if n > neighbors.len() {
                return Err(damaged(format!("an example has {n} neighbors, more than there are")));
            }
            let own = neighbors.start..neighbors.start + n;
            neighbors.start += n;
            let neighbor = |i| Neighbor { offset: self.neighbor_offsets.get(i), value: self.neighbor_values.get(i) };
            examples.push(Example {
                position,
                value: self.example_values.get(i),
                groups: Groups(self.example_groups.get(i) & ((2 << N_INTERVALS) - 1)),
                neighbors: own.map(neighbor).collect(),
            });
        }
        let (mean, min, max) = (self.mean.get(feature), self.min.get(feature), self.max.get(feature));
        let neighbors = examples.iter().flat_map(|example| example.neighbors.iter().map(|n| n.value));
        if ![mean, min, max].into_iter().chain(examples.iter().map(|e| e.value)).chain(neighbors).all(f32::is_finite) {
            return Err(damaged("an activation is not finite".into()));
        }
        Ok(Dashboard {
            count,
            n_sequences: self.n_sequences.get(feature),
            mean,
            min,
            max,
            histogram,
            examples,
            n_sampled: count.min(n_sampled as u32),
            tokens: self.tokens.get(feature),
            before: self.before.get(feature),
        })
    }
}

/// The dashboards of one layer on their way into a file, feature by feature.
#[derive(Debug)]
pub struct LayerWriter {
    d_vocab: usize,
    count: Vec<u32>,
    n_sequences: Vec<u32>,
    mean: Vec<f32>,
    min: Vec<f32>,
    max: Vec<f32>,
    histogram_first: Vec<u8>,
    histogram_starts: Vec<u32>,
    histogram_counts: Vec<u32>,
    example_starts: Vec<u32>,
    example_positions: Vec<u32>,
    example_values: Vec<f32>,
    example_groups: Vec<u8>,
    example_neighbors: Vec<u8>,
    neighbor_starts: Vec<u32>,
    neighbor_offsets: Vec<i8>,
    neighbor_values: Vec<f32>,
    lists: [ListedColumns; 2],
}

#[derive(Debug)]
struct ListedColumns {
    starts: Vec<u32>,
    ids: Vec<u32>,
    counts: Vec<u16>,
    means: Vec<f32>,
}

impl ListedColumns {
    fn new() -> Self {
        Self { starts: vec![0], ids: Vec::new(), counts: Vec::new(), means: Vec::new() }
    }

    fn push(&mut self, tokens: &[TokenCount]) {
        self.ids.extend(tokens.iter().map(|t| t.token));
        self.counts.extend(tokens.iter().map(|t| u16::try_from(t.count).unwrap_or(u16::MAX)));
        self.means.extend(tokens.iter().map(|t| t.mean));
        self.starts.push(self.ids.len() as u32);
    }
}

impl LayerWriter {
    /// Of a model with a vocabulary of `d_vocab`.
    pub fn new(d_vocab: usize) -> Self {
        Self {
            d_vocab,
            count: Vec::new(),
            n_sequences: Vec::new(),
            mean: Vec::new(),
            min: Vec::new(),
            max: Vec::new(),
            histogram_first: Vec::new(),
            histogram_starts: vec![0],
            histogram_counts: Vec::new(),
            example_starts: vec![0],
            example_positions: Vec::new(),
            example_values: Vec::new(),
            example_groups: Vec::new(),
            example_neighbors: Vec::new(),
            neighbor_starts: vec![0],
            neighbor_offsets: Vec::new(),
            neighbor_values: Vec::new(),
            lists: [ListedColumns::new(), ListedColumns::new()],
        }
    }

    /// Adds the next feature.
    pub fn push(&mut self, dashboard: &Dashboard) {
        self.count.push(dashboard.count);
        self.n_sequences.push(dashboard.n_sequences);
        self.mean.push(dashboard.mean);
        self.min.push(dashboard.min);
        self.max.push(dashboard.max);
        self.histogram_first.push(dashboard.histogram.first_bin);
        self.histogram_counts.extend(&dashboard.histogram.counts);
        self.histogram_starts.push(self.histogram_counts.len() as u32);
        for example in &dashboard.examples {
            self.example_positions.push(example.position);
            self.example_values.push(example.value);
            self.example_groups.push(example.groups.0);
            self.example_neighbors.push(example.neighbors.len() as u8);
            self.neighbor_offsets.extend(example.neighbors.iter().map(|n| n.offset));
            self.neighbor_values.extend(example.neighbors.iter().map(|n| n.value));
        }
        self.example_starts.push(self.example_positions.len() as u32);
        self.neighbor_starts.push(self.neighbor_offsets.len() as u32);
        self.lists[0].push(&dashboard.tokens);
        self.lists[1].push(&dashboard.before);
    }

    /// Writes `layer_{layer}.safetensors` into a folder.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, folder: &Path, layer: usize) -> Result<()> {
        use Numbers::{F32, I8, U8, U16, U32};
        let narrow: Vec<Vec<u16>> = match are_narrow(self.d_vocab) {
            true => self.lists.iter().map(|list| list.ids.iter().map(|&id| id as u16).collect()).collect(),
            false => Vec::new(),
        };
        let ids = |i: usize| narrow.get(i).map_or_else(|| U32(&self.lists[i].ids), |ids| U16(ids));
        write_columns(
            &folder.join(layer_file(layer)),
            FORMAT,
            &[
                ("count", U32(&self.count)),
                ("n_sequences", U32(&self.n_sequences)),
                ("mean", F32(&self.mean)),
                ("min", F32(&self.min)),
                ("max", F32(&self.max)),
                ("histogram_starts", U32(&self.histogram_starts)),
                ("histogram_counts", U32(&self.histogram_counts)),
                ("example_starts", U32(&self.example_starts)),
                ("example_positions", U32(&self.example_positions)),
                ("example_values", F32(&self.example_values)),
                ("neighbor_starts", U32(&self.neighbor_starts)),
                ("neighbor_values", F32(&self.neighbor_values)),
                ("token_starts", U32(&self.lists[0].starts)),
                ("token_means", F32(&self.lists[0].means)),
                ("before_starts", U32(&self.lists[1].starts)),
                ("before_means", F32(&self.lists[1].means)),
                ("token_ids", ids(0)),
                ("before_ids", ids(1)),
                ("token_counts", U16(&self.lists[0].counts)),
                ("before_counts", U16(&self.lists[1].counts)),
                ("histogram_first", U8(&self.histogram_first)),
                ("example_groups", U8(&self.example_groups)),
                ("example_neighbors", U8(&self.example_neighbors)),
                ("neighbor_offsets", I8(&self.neighbor_offsets)),
            ],
        )
    }
}
