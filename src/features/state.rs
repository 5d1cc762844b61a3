//! What a folder of features needs so that collecting can go on from it, or it can be merged with others: besides the
//! files of dashboards, exact sums and the sampled activations, in `state_{l}.safetensors`.

use std::path::Path;

use super::accumulate::{
    FeatureStats, Firing, LayerStats, Tokens, example_hashes, place_hash, sample_hash, sequence_hash,
};
use super::dashboard::Dashboard;
use super::files::{FeatureSet, LayerWriter, write_manifest};
use super::manifest::{Manifest, Settings};
use super::tokens::{Runs, SequenceTable, TokenStore, TokenTexts, write_tokens};
use crate::error::{Error, Result};
use crate::export::{Numbers, write_columns};
use crate::weights::{Columns, Folder};

fn state_file(layer: usize) -> String {
    format!("state_{layer}.safetensors")
}

/// Gives every token of a text to a function, in order.
pub(super) type EachToken<'a> = &'a dyn Fn(&mut dyn FnMut(u32) -> std::io::Result<()>) -> std::io::Result<()>;

/// Everything that a folder of features is written from; layers come one by one.
pub(super) struct FolderWriter<'a> {
    pub folder: &'a Path,
    pub manifest: &'a Manifest,
    tokens: TokenStore,
}

impl<'a> FolderWriter<'a> {
    /// Writes the token store.
    pub(super) fn begin(
        folder: &'a Path,
        manifest: &'a Manifest,
        table: &SequenceTable,
        texts: &TokenTexts,
        each_token: EachToken,
    ) -> Result<Self> {
        write_tokens(folder, table, texts, each_token)?;
        let tokens = TokenStore::open(&Folder::on_disk(folder), manifest.subject.d_vocab)?;
        Ok(Self { folder, manifest, tokens })
    }

    /// Writes a layer's files.
    pub(super) fn layer(&self, layer: usize, stats: &LayerStats) -> Result<()> {
        let settings = &self.manifest.settings;
        let dashboards: Vec<Dashboard> = stats.dashboards(settings, &self.tokens as &dyn Tokens);
        let mut writer = LayerWriter::new(self.manifest.subject.d_vocab);
        dashboards.iter().for_each(|dashboard| writer.push(dashboard));
        writer.write(self.folder, layer)?;
        if !self.manifest.mergeable {
            return Ok(());
        }
        let sums: Vec<i64> = stats.features.iter().flat_map(FeatureStats::sum).collect();
        let (mut starts, mut positions, mut values) = (vec![0], Vec::new(), Vec::new());
        for feature in &stats.features {
            let firings = feature.sampled(settings.n_sampled);
            positions.extend(firings.iter().map(|firing| firing.position));
            values.extend(firings.iter().map(|firing| firing.value));
            starts.push(positions.len() as u32);
        }
        write_columns(
            &self.folder.join(state_file(layer)),
            "features",
            &[
                ("sums", Numbers::I64(&sums)),
                ("sample_starts", Numbers::U32(&starts)),
                ("sample_positions", Numbers::U32(&positions)),
                ("sample_values", Numbers::F32(&values)),
            ],
        )
    }

    /// Writes `features.json`, which says that the others are there.
    pub(super) fn end(self) -> Result<()> {
        write_manifest(self.manifest, self.folder)
    }
}

/// Hashes of all sequences of a store.
pub(super) fn sequence_hashes(tokens: &TokenStore) -> Vec<u64> {
    let hash = |sequence| sequence_hash(tokens.sequence(sequence).map(|position| tokens.token(position)));
    (0..tokens.n_sequences()).map(hash).collect()
}

/// Reads what merging needs of a layer, as [`merge`](super::merge()) does: whether it can be read is known before a merge
/// begins.
///
/// # Errors
/// [`Error::NoSuchLayer`]; those of reading; [`Error::Damaged`] for values that cannot be.
pub fn check_state(set: &FeatureSet, layer: usize) -> Result<()> {
    if layer >= set.n_layers() {
        return Err(Error::NoSuchLayer { layer, n_layers: set.n_layers() });
    }
    read_layer(set, layer, &sequence_hashes(set.tokens())).map(|_| ())
}

/// Reads a layer's statistics back. `hashes` are those of the sequences.
///
/// # Errors
/// Those of reading; [`Error::Damaged`] for values that cannot be.
pub(super) fn read_layer(set: &FeatureSet, layer: usize, hashes: &[u64]) -> Result<LayerStats> {
    let n_features = set.n_features(layer);
    let columns = Columns::open(set.folder(), &state_file(layer))?;
    let damaged = |reason: String| Error::Damaged { file: columns.file().to_owned(), format: "features", reason };
    let sums = columns.column_of::<i64>("sums", 2 * n_features)?;
    let positions = columns.column::<u32>("sample_positions")?;
    let values = columns.column_of::<f32>("sample_values", positions.len())?;
    let runs = Runs::open(&columns, "sample_starts", n_features, positions.len())?;
    let tokens = set.tokens();
    let settings: &Settings = &set.manifest().settings;
    let place = |position: u32| {
        let sequence = tokens.sequence_of(position as usize);
        (sequence, position as usize - tokens.sequence(sequence).start)
    };
    // The first token of a sequence is never counted, and none is before it.
    let is_counted = |position: u32| (position as usize) < tokens.len() && place(position).1 > 0;
    if let Some(position) = positions.iter().find(|&position| !is_counted(position)) {
        return Err(damaged(format!("a sample is at {position} of {} tokens", tokens.len())));
    }
    let feature = |f: usize| -> Result<FeatureStats> {
        let hash = LayerStats::feature_hash(settings.seed, layer, f);
        let firings = runs.get(f).map(|i| {
            let position = positions.get(i);
            let (sequence, offset) = place(position);
            Firing::new(sample_hash(place_hash(hashes[sequence], offset), hash), position, values.get(i))
        });
        let of_example = |position: u32| {
            let (sequence, offset) = place(position);
            let range = tokens.sequence(sequence);
            example_hashes(|i| tokens.token(range.start + i), range.len(), offset, hashes[sequence], hash)
        };
        let sum = [sums.get(2 * f), sums.get(2 * f + 1)];
        let dashboard = set.dashboard(layer, f)?;
        if runs.get(f).len() != dashboard.n_sampled as usize {
            return Err(damaged(format!("feature {f} has {} samples", runs.get(f).len())));
        }
        if dashboard.count as usize > tokens.len() {
            return Err(damaged(format!("feature {f} is active {} times on {} tokens", dashboard.count, tokens.len())));
        }
        if !FeatureStats::is_sum_of(&dashboard, sum) {
            return Err(damaged(format!("the sums of feature {f} are not those of its mean, {}", dashboard.mean)));
        }
        Ok(FeatureStats::restore(dashboard, sum, firings.collect(), settings, &of_example))
    };
    Ok(LayerStats::restored(layer, (0..n_features).map(feature).collect::<Result<_>>()?))
}
