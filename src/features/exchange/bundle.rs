//! circuit-tracer's bundle: `index.json.gz`, which says where in `layer_N.bin` each feature is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::circuit_tracer::parse;
use super::foreign::Foreign;
use super::gzip::inflate;
use crate::error::{Error, Result};
use crate::export::replace_file;
use crate::input::check_is_file;

/// The file that says where features are.
pub const INDEX_FILE: &str = "index.json.gz";

/// The index of 100 layers of a million features has 2 GB; of published sets it has 20 MB.
const MAX_INDEX_BYTES: u64 = 1 << 30;

/// Features are some tens of kilobytes.
const MAX_FEATURE_BYTES: u64 = 8 << 20;

const FORMAT: &str = "bundle";

/// The file of a layer.
pub(super) fn bin_file(layer: usize) -> String {
    format!("layer_{layer}.bin")
}

/// A feature's bytes in a bin: their length, and gzip of its JSON.
pub(super) fn chunk(json: &[u8]) -> std::io::Result<Vec<u8>> {
    let packed = super::gzip::gzip(json)?;
    let len = u32::try_from(packed.len()).map_err(std::io::Error::other)?;
    Ok([&len.to_le_bytes()[..], &packed].concat())
}

/// Writes the index; `offsets[layer]` holds where each feature begins, and the length of the file.
pub(super) fn write_index(folder: &Path, offsets: &[Vec<u64>]) -> Result<()> {
    let mut index = serde_json::Map::new();
    index.insert("version".into(), json!("1.0"));
    index.insert("format".into(), json!("variable_chunks"));
    for (layer, offsets) in offsets.iter().enumerate() {
        index.insert(layer.to_string(), json!({ "filename": bin_file(layer), "offsets": offsets }));
    }
    let path = folder.join(INDEX_FILE);
    replace_file(&path, |writer| {
        let json = serde_json::to_vec(&Value::Object(index)).map_err(std::io::Error::other)?;
        std::io::Write::write_all(writer, &super::gzip::gzip(&json)?)
    })
}

/// A bundle, opened.
#[derive(Debug)]
pub struct Bundle {
    layers: BTreeMap<usize, Bin>,
}

#[derive(Debug)]
struct Bin {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    offsets: Vec<u64>,
}

impl Bundle {
    /// Opens the bundle in a folder: reads its index.
    ///
    /// # Errors
    /// [`Error::MissingFile`]; [`Error::Damaged`] for an index that is none, or does not fit its bins.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(INDEX_FILE);
        let missing = |file: &str| Error::MissingFile { file: file.to_owned(), folder: folder.display().to_string() };
        if !path.is_file() {
            return Err(missing(INDEX_FILE));
        }
        let damaged = |reason: String| Error::Damaged { file: path.display().to_string(), format: FORMAT, reason };
        let io = |source| Error::Io { doing: "cannot read", path: path.clone(), source };
        let bytes = std::fs::read(&path).map_err(io)?;
        let json = inflate(&bytes, MAX_INDEX_BYTES).map_err(damaged)?;
        let index: BTreeMap<String, Value> = serde_json::from_slice(&json).map_err(|e| damaged(e.to_string()))?;
        match index.get("format").and_then(Value::as_str) {
            None | Some("variable_chunks") => {}
            Some(other) => return Err(damaged(format!("its format is {other:?}, expected \"variable_chunks\""))),
        }
        let mut layers = BTreeMap::new();
        for (key, value) in index {
            let Ok(layer) = key.parse::<usize>() else { continue };
            let name = value.get("filename").and_then(Value::as_str);
            let offsets = value.get("offsets").and_then(Value::as_array);
            let (Some(name), Some(offsets)) = (name, offsets) else {
                return Err(damaged(format!("layer {layer} has no `filename` or no `offsets`")));
            };
            crate::text::check_file_name(name)
                .map_err(|problem| damaged(format!("the file name {name:?} {problem}")))?;
            let offsets: Option<Vec<u64>> = offsets.iter().map(Value::as_u64).collect();
            let offsets = offsets.filter(|offsets| offsets.is_sorted() && !offsets.is_empty());
            let Some(offsets) = offsets else {
                return Err(damaged(format!("the offsets of layer {layer} do not ascend")));
            };
            let bin = folder.join(name);
            check_is_file(&bin, "a bundle's file")?;
            let io = |source| Error::Io { doing: "cannot read", path: bin.clone(), source };
            if !bin.is_file() {
                return Err(missing(name));
            }
            let file = File::open(&bin).map_err(io)?;
            let size_bytes = file.metadata().map_err(io)?.len();
            let end = offsets[offsets.len() - 1];
            if end > size_bytes {
                return Err(damaged(format!("layer {layer} ends at byte {end}, but `{name}` has {size_bytes}")));
            }
            layers.insert(layer, Bin { path: bin, file, size_bytes, offsets });
        }
        Ok(Self { layers })
    }

    /// The layers that it has.
    pub fn layers(&self) -> impl Iterator<Item = usize> + '_ {
        self.layers.keys().copied()
    }

    /// Number of features of a layer.
    pub fn n_features(&self, layer: usize) -> usize {
        self.layers.get(&layer).map_or(0, |bin| bin.offsets.len() - 1)
    }

    /// The JSON of a feature; nothing where its bytes are none: some writers leave out features that are never active.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`], [`Error::NoSuchFeature`]; [`Error::Damaged`].
    pub fn json(&self, layer: usize, feature: usize) -> Result<Option<Vec<u8>>> {
        let n_layers = self.layers.len();
        let Some(bin) = self.layers.get(&layer) else { return Err(Error::NoSuchLayer { layer, n_layers }) };
        let n_features = bin.offsets.len() - 1;
        if feature >= n_features {
            return Err(Error::NoSuchFeature { layer, feature, n_layers, n_features });
        }
        let (start, end) = (bin.offsets[feature], bin.offsets[feature + 1]);
        if start == end {
            return Ok(None);
        }
        let damaged = |reason: String| bin.damaged(feature, reason);
        if end - start < 4 || end - start > MAX_FEATURE_BYTES {
            return Err(damaged(format!("it has {} bytes", end - start)));
        }
        let mut bytes = vec![0; (end - start) as usize];
        let mut file = &bin.file;
        let read = file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(&mut bytes));
        read.map_err(|e| damaged(format!("bytes {start} to {end} of {}: {e}", bin.size_bytes)))?;
        let len = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        let Some(packed) = bytes.get(4..).and_then(|rest| rest.get(..len)) else {
            return Err(damaged(format!("it says that it has {len} bytes, and has {}", bytes.len() - 4)));
        };
        inflate(packed, MAX_FEATURE_BYTES).map(Some).map_err(damaged)
    }

    /// A feature.
    pub(super) fn feature(&self, layer: usize, feature: usize) -> Result<Option<Foreign>> {
        let Some(json) = self.json(layer, feature)? else { return Ok(None) };
        match (parse(&json, feature), self.layers.get(&layer)) {
            (Ok(foreign), _) => Ok(Some(foreign)),
            (Err(reason), Some(bin)) => Err(bin.damaged(feature, reason)),
            (Err(_), None) => Ok(None),
        }
    }
}

impl Bin {
    fn damaged(&self, feature: usize, reason: String) -> Error {
        let file = self.path.display().to_string();
        Error::Damaged { file, format: FORMAT, reason: format!("feature {feature}: {reason}") }
    }
}
