//! Several folders of features as one: the same as if their texts had been read in one run.

use std::path::{Path, PathBuf};

use super::accumulate::LayerStats;
use super::files::{FeatureSet, MANIFEST_FILE};
use super::manifest::{Manifest, TextSource};
use super::state::{FolderWriter, read_layer, sequence_hashes};
use super::tokens::{SequenceTable, TOKENS_FILE, TokenTexts};
use crate::error::{Error, ErrorContext, Result};
use crate::export::check_writable;
use crate::job::Job;

/// Merges folders that were collected with [`CollectOptions::mergeable`](super::CollectOptions::mergeable): parts of one
/// text, all of them, in any order; or different texts, in the order in which they would have been read. Writes what
/// one run would have written.
///
/// # Errors
/// [`Error::Collect`] for folders that do not go together; those of reading and of writing; [`Error::Cancelled`].
pub fn merge(folders: &[PathBuf], out: &Path, mergeable: bool, job: &Job) -> Result<Manifest> {
    let cannot = |problem: String| Error::Collect { folder: out.display().to_string(), problem };
    if out.join(MANIFEST_FILE).exists() {
        return Err(cannot("it holds features already".into()));
    }
    let open = |folder: &PathBuf| FeatureSet::open(folder).context(|| format!("cannot merge `{}`", folder.display()));
    let sets = folders.iter().map(open).collect::<Result<Vec<_>>>()?;
    let Some(first) = sets.first() else { return Err(cannot("nothing to merge is named".into())) };
    for (set, folder) in sets.iter().zip(folders) {
        let (manifest, folder) = (set.manifest(), folder.display());
        manifest.subject.check_same(&first.manifest().subject, &folder.to_string())?;
        if !manifest.mergeable {
            return Err(cannot(format!(
                "`{folder}` lacks what merging needs: collect it as a part (1/2) or to be merged (mergeable)"
            )));
        }
        if manifest.settings != first.manifest().settings {
            return Err(cannot(format!(
                "`{}` was collected with {:?}, `{folder}` with {:?}",
                folders[0].display(),
                first.manifest().settings,
                manifest.settings
            )));
        }
    }
    let are_parts = check_parts(&sets).map_err(cannot)?;
    check_writable(out)?;
    let order = Order::new(&sets, are_parts).map_err(cannot)?;
    let manifest = merged_manifest(&sets, are_parts, mergeable).map_err(cannot)?;
    let d_vocab = manifest.subject.d_vocab as u32;
    let texts = TokenTexts::new((0..d_vocab).map(|token| first.tokens().bytes(token)));
    let each_token = |give: &mut dyn FnMut(u32) -> std::io::Result<()>| {
        order.sequences.iter().try_for_each(|&(set, sequence)| {
            let tokens = sets[set].tokens();
            tokens.sequence(sequence).try_for_each(|position| give(tokens.token(position)))
        })
    };
    let writer = FolderWriter::begin(out, &manifest, &order.table, &texts, &each_token)?;
    let hashes: Vec<Vec<u64>> = sets.iter().map(|set| sequence_hashes(set.tokens())).collect();
    let n_layers = first.n_layers();
    for layer in 0..n_layers {
        job.check()?;
        let mut merged = LayerStats::new(layer, first.n_features(layer));
        for (i, set) in sets.iter().enumerate() {
            let to = |position: u32| order.moved(i, set, position);
            merged.merge(read_layer(set, layer, &hashes[i])?.moved(&to), &manifest.settings);
        }
        writer.layer(layer, &merged)?;
        job.report("layers", layer + 1, n_layers);
    }
    writer.end()?;
    Ok(manifest)
}

/// Whether the folders are the parts of one text, all of them; none of them may be a part otherwise.
fn check_parts(sets: &[FeatureSet]) -> Result<bool, String> {
    let mut parts: Vec<(u32, u32)> =
        sets.iter().filter_map(|set| set.manifest().shard.map(|shard| (shard.of, shard.index))).collect();
    let Some(&(of, _)) = parts.first() else { return Ok(false) };
    parts.sort_unstable();
    let named = || parts.iter().map(|(of, index)| format!("{index}/{of}")).collect::<Vec<_>>().join(", ");
    if parts.len() != sets.len() {
        return Err(format!("parts of a text ({}) do not go with whole ones", named()));
    }
    if parts.iter().map(|&(of, index)| (of, index)).ne((1..=of).map(|index| (of, index))) {
        return Err(format!("these are the parts {} of the text, and all {of} are needed, each once", named()));
    }
    let text = |set: &FeatureSet| (set.manifest().text.files.clone(), set.manifest().text.n_documents);
    match sets.iter().all(|set| text(set) == text(&sets[0])) {
        true => Ok(true),
        false => Err("these are parts of different texts".into()),
    }
}

fn merged_manifest(sets: &[FeatureSet], are_parts: bool, mergeable: bool) -> Result<Manifest, String> {
    let texts = || sets.iter().map(|set| &set.manifest().text);
    let hash = texts().map(|text| u64::from_str_radix(&text.hash, 16).unwrap_or(0)).fold(0, u64::wrapping_add);
    let first = sets[0].manifest();
    let total = |name: &str, of: fn(&TextSource) -> u64| {
        let numbers = || sets.iter().map(|set| (set, of(&set.manifest().text)));
        let sum = numbers().try_fold(0u64, |sum, (_, n)| sum.checked_add(n));
        sum.ok_or_else(|| match numbers().max_by_key(|&(_, n)| n) {
            Some((set, n)) => format!("`{}` says that it has {n} {name}", set.folder().shown(MANIFEST_FILE)),
            None => format!("too many {name}"),
        })
    };
    let (files, n_documents) = match are_parts {
        true => (first.text.files.clone(), first.text.n_documents),
        false => (texts().flat_map(|text| text.files.clone()).collect(), total("documents", |text| text.n_documents)?),
    };
    Ok(Manifest {
        text: TextSource {
            files,
            hash: format!("{hash:016x}"),
            n_tokens: total("tokens", |text| text.n_tokens)?,
            n_positions: total("positions", |text| text.n_positions)?,
            n_sequences: total("sequences", |text| text.n_sequences)?,
            n_documents,
        },
        mergeable,
        shard: None,
        ..first.clone()
    })
}

/// Which sequence comes where.
struct Order {
    table: SequenceTable,
    /// (set, sequence) in the merged order.
    sequences: Vec<(usize, usize)>,
    /// Where each sequence of each set begins in the merged store.
    starts: Vec<Vec<u32>>,
}

impl Order {
    fn new(sets: &[FeatureSet], are_parts: bool) -> Result<Self, String> {
        let all = |(i, set): (usize, &FeatureSet)| (0..set.tokens().n_sequences()).map(move |sequence| (i, sequence));
        let mut sequences: Vec<(usize, usize)> = sets.iter().enumerate().flat_map(all).collect();
        if are_parts {
            // Stable: the sequences of a unit are all of one part, and in order there.
            sequences.sort_by_key(|&(set, sequence)| sets[set].tokens().unit(sequence));
        }
        let mut table = SequenceTable::new();
        let mut starts: Vec<Vec<u32>> = sets.iter().map(|set| vec![0; set.tokens().n_sequences()]).collect();
        // Documents and units of later texts follow those of the earlier ones.
        let beyond = |set: usize, name: &str| {
            let file = sets[set].folder().shown(TOKENS_FILE);
            format!("`{file}` has {name} that are counted beyond {}", u32::MAX)
        };
        let mut before = vec![(0u32, 0u32); sets.len()];
        for i in 1..if are_parts { 0 } else { sets.len() } {
            let (tokens, text) = (sets[i - 1].tokens(), &sets[i - 1].manifest().text);
            let last_unit = (0..tokens.n_sequences()).map(|sequence| tokens.unit(sequence)).max();
            let n_units = last_unit.map_or(Some(0), |unit| unit.checked_add(1));
            let n_documents = u32::try_from(text.n_documents).ok();
            let documents = n_documents.and_then(|n| n.checked_add(before[i - 1].0));
            let units = n_units.and_then(|n| n.checked_add(before[i - 1].1));
            before[i] =
                (documents.ok_or_else(|| beyond(i - 1, "documents"))?, units.ok_or_else(|| beyond(i - 1, "units"))?);
        }
        for &(set, sequence) in &sequences {
            let tokens = sets[set].tokens();
            let document = tokens.document(sequence).checked_add(before[set].0);
            let document = document.ok_or_else(|| beyond(set, "documents"))?;
            let unit = tokens.unit(sequence).checked_add(before[set].1).ok_or_else(|| beyond(set, "units"))?;
            let start = table.push(tokens.sequence(sequence).len(), document, unit);
            let too_many = || format!("together they have more than {} tokens", u32::MAX);
            starts[set][sequence] = start.ok_or_else(too_many)?;
        }
        Ok(Self { table, sequences, starts })
    }

    fn moved(&self, set: usize, features: &FeatureSet, position: u32) -> u32 {
        let tokens = features.tokens();
        let sequence = tokens.sequence_of(position as usize);
        self.starts[set][sequence] + (position - tokens.sequence(sequence).start as u32)
    }
}
