//! Files of features that other programs wrote: which there are, of which layers, and what they say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::manifest::Subject;
use super::bundle::{Bundle, INDEX_FILE};
use super::circuit_tracer;
use super::foreign::{Foreign, cantor_unpair};
use super::import::IMPORT_PHASE;
use super::lines::Lines;
use super::neuronpedia;
use crate::error::{Error, ErrorContext, Result};
use crate::input::check_is_file;
use crate::job::Job;

/// Folders below a folder that are looked into.
const MAX_DEPTH: usize = 4;

/// A file of one feature has some tens of kilobytes.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Files of another program.
pub(super) enum Source {
    Bundle {
        folder: PathBuf,
        bundle: Bundle,
    },
    /// By layer: features and their files.
    Files(BTreeMap<usize, Vec<(usize, PathBuf)>>),
    /// By layer: files of lines.
    Lines(BTreeMap<usize, Vec<PathBuf>>),
}

impl Source {
    /// Looks at what is there.
    pub(super) fn find(paths: &[PathBuf]) -> Result<Self> {
        for path in paths {
            let folder = if path.ends_with(INDEX_FILE) { path.parent() } else { Some(path.as_path()) };
            let mut below = folder.into_iter().flat_map(|folder| [folder.to_owned(), folder.join("features")]);
            if let Some(folder) = below.find(|folder| folder.join(INDEX_FILE).is_file()) {
                let bundle = Bundle::open(&folder)?;
                return Ok(Self::Bundle { folder, bundle });
            }
        }
        let mut files = Vec::new();
        for path in paths {
            if path.is_dir() {
                list(path, 0, &mut files)?;
            } else {
                check_is_file(path, "a file of features")?;
                let found = path.metadata();
                found.map_err(|source| Error::Io { doing: "cannot read", path: path.clone(), source })?;
                files.push(path.clone());
            }
        }
        files.sort();
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let lines: Vec<&PathBuf> = files.iter().filter(|path| is_lines(&name(path))).collect();
        if !lines.is_empty() {
            let mut by_layer: BTreeMap<usize, Vec<PathBuf>> = BTreeMap::new();
            for path in lines {
                if let Some(layer) = first_layer(path)? {
                    by_layer.entry(layer).or_default().push(path.clone());
                }
            }
            return Ok(Self::Lines(by_layer));
        }
        let mut by_layer: BTreeMap<usize, Vec<(usize, PathBuf)>> = BTreeMap::new();
        for path in &files {
            let name = name(path);
            let number = name.strip_suffix(".json").and_then(|stem| stem.parse().ok()).and_then(cantor_unpair);
            if let Some((layer, feature)) = number {
                by_layer.entry(layer).or_default().push((feature, path.clone()));
            }
        }
        if by_layer.is_empty() {
            let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            return Err(Error::FeatureFiles {
                path: names.join(", "),
                problem: format!(
                    "there is neither a bundle ({INDEX_FILE}), nor a file NUMBER.json, nor one of lines (.jsonl, .jsonl.gz)"
                ),
            });
        }
        Ok(Self::Files(by_layer))
    }

    pub(super) fn program(&self) -> &'static str {
        match self {
            Source::Bundle { .. } | Source::Files(_) => "circuit-tracer",
            Source::Lines(_) => "Neuronpedia",
        }
    }

    /// The files, by name.
    pub(super) fn names(&self) -> Vec<String> {
        let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match self {
            Source::Bundle { folder, .. } => vec![name(&folder.join(INDEX_FILE))],
            Source::Files(layers) => layers.keys().map(|layer| format!("files of layer {layer}")).collect(),
            Source::Lines(layers) => layers.values().flatten().map(name).collect(),
        }
    }

    /// Checks that all layers and features are of this set.
    pub(super) fn check(&self, subject: &Subject) -> Result<()> {
        let n_layers = subject.n_features.len();
        let layers: Vec<usize> = match self {
            Source::Bundle { bundle, .. } => bundle.layers().collect(),
            Source::Files(layers) => layers.keys().copied().collect(),
            Source::Lines(layers) => layers.keys().copied().collect(),
        };
        for layer in layers {
            let Some(&n_features) = subject.n_features.get(layer) else {
                return Err(Error::NoSuchLayer { layer, n_layers })
                    .context(|| "cannot import these features".to_owned());
            };
            if let Source::Bundle { folder, bundle } = self
                && bundle.n_features(layer) != n_features
            {
                return Err(Error::FeaturesMismatch {
                    folder: folder.display().to_string(),
                    what: "transcoder set",
                    features: format!("layer {layer} has {} features", bundle.n_features(layer)),
                    here: format!("it has {n_features}"),
                });
            }
        }
        Ok(())
    }

    /// Gives every feature of a layer.
    pub(super) fn read(
        &self,
        layer: usize,
        widths: &[usize],
        job: &Job,
        give: &mut dyn FnMut(usize, Foreign),
    ) -> Result<()> {
        let (n_layers, n_features) = (widths.len(), widths[layer]);
        let before: usize = widths[..layer].iter().sum();
        let total: usize = widths.iter().sum();
        let check = |feature: usize| match feature < n_features {
            true => Ok(()),
            false => Err(Error::NoSuchFeature { layer, feature, n_layers, n_features }),
        };
        let mut n_done = 0;
        let mut done = || {
            n_done += 1;
            job.report(IMPORT_PHASE, (before + n_done).min(total), total);
            job.check()
        };
        match self {
            Source::Bundle { bundle, .. } => {
                for feature in 0..bundle.n_features(layer) {
                    done()?;
                    if let Some(foreign) = bundle.feature(layer, feature)? {
                        give(feature, foreign);
                    }
                }
            }
            Source::Files(layers) => {
                for (feature, path) in layers.get(&layer).into_iter().flatten() {
                    done()?;
                    check(*feature).context(|| format!("cannot import `{}`", path.display()))?;
                    give(*feature, read_file(path, *feature)?);
                }
            }
            Source::Lines(layers) => {
                for path in layers.get(&layer).into_iter().flatten() {
                    let mut lines = Lines::open(path)?;
                    while let Some((number, text)) = lines.next()? {
                        done()?;
                        let line =
                            neuronpedia::parse(&text).map_err(|e| lines.damaged(format!("line {number}: {e}")))?;
                        if line.layer != layer {
                            let reason =
                                format!("line {number} is of layer {}, those before it of layer {layer}", line.layer);
                            return Err(lines.damaged(reason));
                        }
                        check(line.index).context(|| format!("cannot import line {number} of `{}`", path.display()))?;
                        give(line.index, line.foreign);
                    }
                }
            }
        }
        Ok(())
    }
}

fn is_lines(name: &str) -> bool {
    [".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.zst", ".ndjson"].iter().any(|end| name.ends_with(end))
}

/// The layer that a file of lines is of; nothing for one without lines of features (Neuronpedia has some about sets).
fn first_layer(path: &Path) -> Result<Option<usize>> {
    let mut lines = Lines::open(path)?;
    let Some((number, line)) = lines.next()? else { return Ok(None) };
    match neuronpedia::parse(&line) {
        Ok(line) => Ok(Some(line.layer)),
        Err(_) if serde_json::from_str::<serde_json::Value>(&line).is_ok_and(|json| json.get("index").is_none()) => {
            Ok(None)
        }
        Err(reason) => Err(lines.damaged(format!("line {number}: {reason}"))),
    }
}

fn read_file(path: &Path, feature: usize) -> Result<Foreign> {
    let damaged = |reason: String| Error::Damaged { file: path.display().to_string(), format: "feature", reason };
    let io = |source| Error::Io { doing: "cannot read", path: path.to_owned(), source };
    let size = path.metadata().map_err(io)?.len();
    if size > MAX_FILE_BYTES {
        return Err(damaged(format!("it has {} MB", size >> 20)));
    }
    circuit_tracer::parse(&std::fs::read(path).map_err(io)?, feature).map_err(damaged)
}

fn list(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    let io = |source| Error::Io { doing: "cannot list", path: folder.to_owned(), source };
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if !path.is_dir() {
            found.push(path);
        } else if depth < MAX_DEPTH {
            list(&path, depth + 1, found)?;
        }
    }
    Ok(())
}
