//! `labels`: `feature_labels.json`, what features are called. On its own, since transcoders and graphs both carry it.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::ErrorContext;
use crate::input::read_json;
use crate::{Error, Result};

/// The layer and the feature of a key.
fn numbers(key: &str) -> Option<(u32, u32)> {
    let (layer, feature) = key.split_once('_')?;
    Some((layer.parse().ok()?, feature.parse().ok()?))
}

/// Labels of features by `<layer>_<feature>`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Labels {
    by_feature: BTreeMap<String, String>,
}

impl Labels {
    /// The name of the file, beside a transcoder set's `config.yaml`.
    pub(crate) const FILE: &str = "feature_labels.json";

    /// The folder of features beside that `config.yaml`, which may hold such a file too.
    pub(crate) const FEATURES_FOLDER: &str = "features";

    /// Reads a label file.
    ///
    /// # Errors
    /// A file that cannot be read, that is no JSON object of strings, or with a key that is not `<layer>_<feature>`.
    pub fn read(path: &Path) -> Result<Labels> {
        Labels::parse(&read_json(path, "label")?, &path.display().to_string())
    }

    /// The labels of a folder of transcoders: those beside its `config.yaml`, and for features without one those that were
    /// made from a text, in the folder of features there.
    ///
    /// # Errors
    /// As [`Labels::read`].
    pub fn of_transcoders(folder: &Path) -> Result<Labels> {
        let read = |path: std::path::PathBuf| if path.is_file() { Labels::read(&path) } else { Ok(Labels::default()) };
        let made = read(folder.join(Labels::FEATURES_FOLDER).join(Labels::FILE))?;
        Ok(read(folder.join(Labels::FILE))?.or(made))
    }

    /// Parses the bytes of a label file; `file` names it in errors.
    ///
    /// # Errors
    /// As [`Labels::read`].
    pub fn parse(bytes: &[u8], file: &str) -> Result<Labels> {
        let damaged = |reason: String| Error::Damaged { file: file.to_owned(), format: "label", reason };
        let by_feature: BTreeMap<String, String> = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
        if let Some(key) = by_feature.keys().find(|key| numbers(key).is_none()) {
            return Err(damaged(format!("key {key:?} is not <layer>_<feature>")));
        }
        Ok(Labels { by_feature })
    }

    /// Checks that all labels are of features of a set; `n_features` of each layer, and `file` names the labels in errors.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`], [`Error::NoSuchFeature`], with the file as context.
    pub fn check(&self, n_features: &[usize], file: &str) -> Result<()> {
        let n_layers = n_features.len();
        for (layer, feature) in self.by_feature.keys().filter_map(|key| numbers(key)) {
            let (layer, feature) = (layer as usize, feature as usize);
            match n_features.get(layer) {
                Some(&n) if feature < n => Ok(()),
                Some(&n_features) => Err(Error::NoSuchFeature { layer, feature, n_layers, n_features }),
                None => Err(Error::NoSuchLayer { layer, n_layers }),
            }
            .context(|| format!("cannot use the labels in `{file}`"))?;
        }
        Ok(())
    }

    /// All labels: (layer, feature) and text.
    pub fn iter(&self) -> impl Iterator<Item = ((u32, u32), &str)> {
        self.by_feature.iter().filter_map(|(key, label)| Some((numbers(key)?, label.as_str())))
    }

    /// These labels, and for features without one those of `other`.
    pub fn or(mut self, other: Labels) -> Labels {
        for (feature, label) in other.by_feature {
            self.by_feature.entry(feature).or_insert(label);
        }
        self
    }

    /// Whether no feature has a label.
    pub fn is_empty(&self) -> bool {
        self.by_feature.is_empty()
    }

    /// The label of a feature.
    pub fn get(&self, layer: u32, feature: u32) -> Option<&str> {
        self.by_feature.get(&format!("{layer}_{feature}")).map(String::as_str)
    }

    /// The labels of these (layer, feature) pairs, in the form in which a raw graph carries them.
    pub fn of(&self, features: impl IntoIterator<Item = (u32, u32)>) -> BTreeMap<String, String> {
        let labelled = features
            .into_iter()
            .filter_map(|(layer, feature)| Some((format!("{layer}_{feature}"), self.get(layer, feature)?.to_owned())));
        labelled.collect()
    }
}
