//! Writing features for other programs: feature by feature, so that memory does not grow with the set.

use std::io::Write;
use std::path::Path;

use rayon::prelude::*;

use super::super::files::FeatureSet;
use super::super::manifest::Subject;
use super::super::pushes::{Pushes, pushes};
use super::bundle::{bin_file, chunk, write_index};
use super::circuit_tracer::feature_json;
use super::gzip::gzip;
use super::neuronpedia::{SetNames, feature_line};
use crate::error::{Error, Result};
use crate::export::{cantor_pairing, check_writable, replace_file};
use crate::job::Job;
use crate::replacement::Replacement;
use crate::text::{check_file_name, slug};

/// The phase of a [`Job`] that counts features.
pub const EXPORT_PHASE: &str = "features";

/// Features that are in memory at once; of Neuronpedia's files, those of one.
const BATCH: usize = 512;

/// Logits at each end.
const N_LOGITS: usize = 10;

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// circuit-tracer's bundle: `index.json.gz` and `layer_N.bin`.
    CircuitTracer,
    /// circuit-tracer's older form: `features/{scan}/{number}.json`, a file for each feature that is ever active.
    CircuitTracerFiles,
    /// Neuronpedia's lines: `{layer}-{set}/features/batch-N.jsonl.gz`.
    Neuronpedia,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Features.
    pub n_features: usize,
    /// Those of them that are ever active.
    pub n_alive: usize,
    /// Files.
    pub n_files: usize,
}

/// Writes features for other programs into a folder. Files that were there are replaced one by one, each whole. With
/// the model at hand, the logits that features push are in the files too.
///
/// # Errors
/// [`Error::FeaturesMismatch`] for a model of other features; damaged files; those of writing; [`Error::Cancelled`].
pub fn export(
    set: &FeatureSet,
    replacement: Option<&Replacement>,
    out: &Path,
    format: ExportFormat,
    job: &Job,
) -> Result<Exported> {
    if let Some(replacement) = replacement {
        set.manifest().subject.check_same(&Subject::of(replacement)?, set.folder().spec())?;
    }
    check_writable(out)?;
    let total = (0..set.n_layers()).map(|layer| set.n_features(layer)).sum();
    let mut writer =
        Writer { set, replacement, out, job, total, done: Exported { n_features: 0, n_alive: 0, n_files: 0 } };
    match format {
        ExportFormat::CircuitTracer => writer.bundle()?,
        ExportFormat::CircuitTracerFiles => writer.files()?,
        ExportFormat::Neuronpedia => writer.neuronpedia()?,
    }
    Ok(writer.done)
}

struct Writer<'a> {
    set: &'a FeatureSet,
    replacement: Option<&'a Replacement>,
    out: &'a Path,
    job: &'a Job,
    total: usize,
    done: Exported,
}

impl Writer<'_> {
    /// The batches of a layer.
    fn batches(&self, layer: usize) -> Vec<std::ops::Range<usize>> {
        let n = self.set.n_features(layer);
        (0..n).step_by(BATCH).map(|start| start..(start + BATCH).min(n)).collect()
    }

    /// Calls `make` for the features of a batch, which gives the bytes of each.
    fn batch(
        &mut self,
        layer: usize,
        batch: std::ops::Range<usize>,
        make: impl Fn(usize, &super::super::dashboard::Dashboard, &Pushes) -> std::io::Result<Vec<u8>> + Sync,
    ) -> Result<Vec<(usize, bool, Vec<u8>)>> {
        self.job.check()?;
        let features: Vec<usize> = batch.collect();
        let pushed = match self.replacement {
            Some(replacement) => pushes(replacement, layer, &features, N_LOGITS)?,
            None => vec![Pushes::default(); features.len()],
        };
        let made = features.par_iter().zip(&pushed).map(|(&feature, pushes)| -> Result<(usize, bool, Vec<u8>)> {
            let dashboard = self.set.dashboard(layer, feature)?;
            let bytes = make(feature, &dashboard, pushes);
            let bytes =
                bytes.map_err(|source| Error::Io { doing: "cannot write to", path: self.out.to_owned(), source })?;
            Ok((feature, !dashboard.is_dead(), bytes))
        });
        let made = made.collect::<Result<Vec<_>>>()?;
        self.done.n_features += made.len();
        self.done.n_alive += made.iter().filter(|(_, is_alive, _)| *is_alive).count();
        self.job.report(EXPORT_PHASE, self.done.n_features, self.total);
        Ok(made)
    }

    fn bundle(&mut self) -> Result<()> {
        let set = self.set;
        let mut all_offsets = Vec::new();
        for layer in 0..set.n_layers() {
            let mut offsets = vec![0u64];
            write_with(&self.out.join(bin_file(layer)), |file| {
                for batch in self.batches(layer) {
                    let made = self.batch(layer, batch, |feature, dashboard, pushes| {
                        chunk(&feature_json(set, feature, dashboard, pushes)?)
                    })?;
                    for (.., bytes) in made {
                        offsets.push(offsets[offsets.len() - 1] + bytes.len() as u64);
                        file(&bytes)?;
                    }
                }
                Ok(())
            })?;
            all_offsets.push(offsets);
            self.done.n_files += 1;
        }
        // Last: a folder without it is not finished.
        write_index(self.out, &all_offsets)?;
        self.done.n_files += 1;
        Ok(())
    }

    fn files(&mut self) -> Result<()> {
        let set = self.set;
        let scan = &set.manifest().subject.scan;
        let mut folder = self.out.join("features");
        for name in scan.split('/').filter(|name| !name.is_empty()) {
            check_file_name(name).map_err(|problem| Error::FileName { name: name.to_owned(), problem })?;
            folder.push(name);
        }
        for layer in 0..set.n_layers() {
            for batch in self.batches(layer) {
                let made = self.batch(layer, batch, |feature, dashboard, pushes| {
                    Ok(feature_json(set, feature, dashboard, pushes)?)
                })?;
                for (feature, is_alive, bytes) in made {
                    if is_alive {
                        let number = cantor_pairing(layer as u32, feature as u32);
                        replace_file(&folder.join(format!("{number}.json")), |writer| writer.write_all(&bytes))?;
                        self.done.n_files += 1;
                    }
                }
            }
        }
        Ok(())
    }

    fn neuronpedia(&mut self) -> Result<()> {
        let set = self.set;
        let subject = &set.manifest().subject;
        // Of a path its last part: the rest says where a file was, and nothing of the model.
        let name = |text: &str| slug(text.rsplit(['/', '\\']).find(|part| !part.is_empty()).unwrap_or(text)).0;
        let names = SetNames { model: name(&subject.model), set: name(&subject.scan) };
        for layer in 0..set.n_layers() {
            let folder = self.out.join(names.source(layer)).join("features");
            for (number, batch) in self.batches(layer).into_iter().enumerate() {
                let made = self.batch(layer, batch, |feature, dashboard, pushes| {
                    let mut line = feature_line(set, &names, (layer, feature), dashboard, pushes)?;
                    line.push(b'\n');
                    Ok(line)
                })?;
                let path = folder.join(format!("batch-{number}.jsonl.gz"));
                let lines: Vec<u8> = made.into_iter().flat_map(|(.., bytes)| bytes).collect();
                replace_file(&path, |writer| writer.write_all(&gzip(&lines)?))?;
                self.done.n_files += 1;
            }
        }
        Ok(())
    }
}

/// Writes a file with something that can fail in other ways than writing; nothing is left of it then.
fn write_with(path: &Path, make: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>) -> Result<()> {
    let mut failed = None;
    let written = replace_file(path, |writer| {
        let mut write = |bytes: &[u8]| {
            let failed = |source| Error::Io { doing: "cannot write", path: path.to_owned(), source };
            writer.write_all(bytes).map_err(failed)
        };
        make(&mut write).map_err(|error| {
            failed = Some(error);
            std::io::Error::other("what is written cannot be had")
        })
    });
    match failed {
        Some(error) => Err(error),
        None => written,
    }
}
