//! `index.jsonl`: what is in a folder of graphs, one line each, and `index-times.jsonl`: what that took.
//!
//! Both are written whole, under the lock of the folder: what others have put into them since they were last read stays.
//! The index has nothing in it that depends on the machine, on threads, or on the order in which graphs were made.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::export::{WireMetadata, list_graphs, lock_folder, replace_file};
use crate::features::Shard;
use crate::{Error, Result};

/// The index's name in its folder.
pub const INDEX_FILE: &str = "index.jsonl";

/// The name of the file of times.
pub const TIMES_FILE: &str = "index-times.jsonl";

/// A graph of the folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Name of the graph and of its files.
    pub slug: String,
    /// A hash of all that the files follow from: prompt, targets and settings, the weights of model and transcoders, their
    /// names, labels, the program's version. 16 hexadecimal digits.
    pub hash: String,
    /// The prompt's text.
    pub prompt: String,
    /// Its tokens, the one that begins it included.
    pub n_tokens: usize,
    /// Active features.
    pub n_active: usize,
    /// Nodes of the JSON graph.
    pub n_nodes: usize,
    /// Edges of the JSON graph.
    pub n_edges: usize,
    /// What is explained, in the graph's order.
    pub targets: Vec<EntryTarget>,
    /// Replacement score before pruning (definitions 8).
    pub replacement_score: f64,
    /// Completeness score before pruning (definitions 8).
    pub completeness_score: f64,
    /// The largest relative error of the row identity.
    pub row_identity_error: f64,
    /// Bytes of each file.
    pub files: BTreeMap<String, u64>,
}

/// A target of a graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EntryTarget {
    /// A token's text, or what else the graph calls it.
    pub label: String,
    /// A token's probability; 1 for what is no token.
    pub weight: f32,
}

/// A line that could not be traced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Which line of the file of prompts, from 1.
    pub line: usize,
    /// What was wrong, with its causes.
    pub error: String,
}

/// What a graph took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Took {
    /// The graph.
    pub slug: String,
    /// Seconds from the prompt to its files.
    pub secs: f64,
    /// Rows computed.
    pub n_rows: usize,
    /// Seconds of the rows.
    pub rows_secs: f64,
}

/// A line of the index.
#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum Line {
    Entry(Entry),
    Failure(Failure),
}

/// What is in the index: graphs by name, then failures by line.
#[derive(Debug, Default, PartialEq)]
pub struct Index {
    /// By slug.
    pub entries: BTreeMap<String, Entry>,
    /// By line.
    pub failures: BTreeMap<usize, Failure>,
}

/// What has come about since the index was last written.
#[derive(Debug, Default)]
pub(super) struct News {
    pub entries: Vec<Entry>,
    pub times: Vec<Took>,
    pub listed: Vec<WireMetadata>,
}

impl Index {
    /// Reads the index of a folder; of a folder without one it is empty.
    ///
    /// # Errors
    /// A file of that name that is none.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(INDEX_FILE);
        Self::parse(&read(&path)?, &path)
    }

    /// # Errors
    /// [`Error::Damaged`]
    fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let mut index = Self::default();
        for line in lines(bytes, path, "index") {
            match line? {
                Line::Entry(entry) => _ = index.entries.insert(entry.slug.clone(), entry),
                Line::Failure(failure) => _ = index.failures.insert(failure.line, failure),
            }
        }
        Ok(index)
    }

    fn text(&self) -> Result<Vec<u8>> {
        let entries = self.entries.values().map(to_json);
        entries.chain(self.failures.values().map(to_json)).collect::<Result<Vec<_>>>().map(|lines| lines.concat())
    }
}

/// Puts what is new into the list of graphs, the times and the index, in this order: what the index has is in the others
/// too. `failures` are all of this shard; those of others stay.
///
/// # Errors
/// A file of one of these names that is none of this program, files that cannot be written.
pub(super) fn add(folder: &Path, news: &News, failures: &[Failure], shard: Option<Shard>) -> Result<()> {
    let _lock = lock_folder(folder);
    list_graphs(folder, &news.listed)?;

    let path = folder.join(TIMES_FILE);
    let before = read(&path)?;
    let mut times = BTreeMap::new();
    for line in lines::<Took>(&before, &path, "times") {
        let took = line?;
        times.insert(took.slug.clone(), took);
    }
    times.extend(news.times.iter().map(|took| (took.slug.clone(), took.clone())));
    let text = times.values().map(to_json).collect::<Result<Vec<_>>>()?.concat();
    write(&path, &before, &text)?;

    let path = folder.join(INDEX_FILE);
    let before = read(&path)?;
    let mut index = Index::parse(&before, &path)?;
    index.entries.extend(news.entries.iter().map(|entry| (entry.slug.clone(), entry.clone())));
    index.failures.retain(|&line, _| !is_of(line, shard));
    index.failures.extend(failures.iter().map(|failure| (failure.line, failure.clone())));
    write(&path, &before, &index.text()?)
}

/// Whether a line, from 1, is one of a shard's.
pub(super) fn is_of(line: usize, shard: Option<Shard>) -> bool {
    shard.is_none_or(|Shard { index, of }| (line.max(1) - 1) % (of as usize) == index as usize - 1)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    match std::fs::read(path) {
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(|source| Error::Io { doing: "cannot read", path: path.to_owned(), source }),
    }
}

/// Writes a file, where it is not what it was.
fn write(path: &Path, before: &[u8], text: &[u8]) -> Result<()> {
    if before == text && path.is_file() {
        return Ok(());
    }
    replace_file(path, |writer| writer.write_all(text))
}

fn lines<'a, T: Deserialize<'a>>(
    bytes: &'a [u8],
    path: &'a Path,
    format: &'static str,
) -> impl Iterator<Item = Result<T>> {
    let file: PathBuf = path.to_owned();
    let numbered = bytes.split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty());
    numbered.map(move |(at, line)| {
        serde_json::from_slice(line).map_err(|e| Error::Damaged {
            file: file.display().to_string(),
            format,
            reason: format!("line {}: {e}", at + 1),
        })
    })
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value).map_err(|e| Error::Prompts { problem: e.to_string() })?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(slug: &str) -> Entry {
        Entry {
            slug: slug.into(),
            hash: "0".repeat(16),
            prompt: "A".into(),
            n_tokens: 2,
            n_active: 3,
            n_nodes: 4,
            n_edges: 5,
            targets: vec![EntryTarget { label: " b".into(), weight: 0.5 }],
            replacement_score: 0.1,
            completeness_score: 1.0 / 3.0,
            row_identity_error: 1e-7,
            files: [(format!("{slug}.json"), 7)].into(),
        }
    }

    fn failure(line: usize) -> Failure {
        Failure { line, error: "no".into() }
    }

    #[test]
    fn what_two_shards_write_is_the_same_in_whatever_order() {
        let shards = [Shard { index: 1, of: 2 }, Shard { index: 2, of: 2 }].map(Some);
        let written = |order: [usize; 2]| {
            let folder = tempfile::tempdir().unwrap();
            for at in order {
                let news = News { entries: vec![entry(["b", "a"][at])], ..News::default() };
                add(folder.path(), &news, &[failure(3 + at)], shards[at]).unwrap();
            }
            std::fs::read(folder.path().join(INDEX_FILE)).unwrap()
        };
        let text = written([0, 1]);
        assert_eq!(text, written([1, 0]));
        let index = Index::parse(&text, Path::new(INDEX_FILE)).unwrap();
        assert_eq!(index.entries.values().cloned().collect::<Vec<_>>(), [entry("a"), entry("b")]);
        assert_eq!(index.failures.keys().copied().collect::<Vec<_>>(), [3, 4]);
    }

    #[test]
    fn failures_are_those_of_the_last_run_of_their_shard() {
        let folder = tempfile::tempdir().unwrap();
        add(folder.path(), &News::default(), &[failure(1), failure(2), failure(4)], None).unwrap();
        add(folder.path(), &News::default(), &[failure(2)], Some(Shard { index: 2, of: 2 })).unwrap();
        let index = Index::read(folder.path()).unwrap();
        assert_eq!(index.failures.keys().copied().collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_file_that_is_no_index_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        for name in [INDEX_FILE, TIMES_FILE] {
            let path = folder.path().join(name);
            std::fs::write(&path, "{\"mine\": 1}\n").unwrap();
            let refused = add(folder.path(), &News::default(), &[], None);
            assert!(matches!(refused, Err(Error::Damaged { .. })), "{name}");
            assert_eq!(std::fs::read(&path).unwrap(), b"{\"mine\": 1}\n");
            std::fs::remove_file(&path).unwrap();
        }
    }
}
