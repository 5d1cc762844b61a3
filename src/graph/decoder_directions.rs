//! Decoder directions of a graph's features, owned or memory-mapped.

use std::ops::Range;

use half::f16;
use memmap2::Mmap;

use crate::{Error, Result};

/// Unit vectors along which features write, in half precision: they are compared with each other, never computed on.
/// `[n_features, d_model]`, f16, in the order of the selected features; zero for a feature that writes nothing.
///
/// A cross-layer feature's direction is that of the sum of what it writes.
#[derive(Debug)]
pub struct DecoderDirections {
    storage: Storage,
    n_features: usize,
    d_model: usize,
}

#[derive(Debug)]
enum Storage {
    Owned(Vec<f16>),
    Mapped { map: Mmap, bytes: Range<usize> },
}

impl DecoderDirections {
    /// Scales `vecs` to unit length. `[n_features, d_model]`
    ///
    /// # Errors
    /// A length that is not a whole number of rows for `n_features`.
    pub fn new(vecs: &[f32], n_features: usize, d_model: usize) -> Result<DecoderDirections> {
        check_len(vecs.len(), n_features, d_model)?;
        let mut values = Vec::with_capacity(vecs.len());
        for vec in vecs.chunks_exact(d_model.max(1)) {
            let norm = vec.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
            let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
            values.extend(vec.iter().map(|&x| f16::from_f64(f64::from(x) * scale)));
        }
        Ok(DecoderDirections { storage: Storage::Owned(values), n_features, d_model })
    }

    /// Reads them out of the little-endian f16 that lie in `bytes` of a memory map.
    ///
    /// # Errors
    /// A range that is not in the map or has another length.
    pub(crate) fn from_map(
        map: Mmap,
        bytes: Range<usize>,
        n_features: usize,
        d_model: usize,
    ) -> Result<DecoderDirections> {
        let len = map.get(bytes.clone()).map_or(0, <[u8]>::len);
        check_len(len / size_of::<f16>(), n_features, d_model)?;
        Ok(DecoderDirections { storage: Storage::Mapped { map, bytes }, n_features, d_model })
    }

    /// Directions: one a selected feature.
    pub fn n_features(&self) -> usize {
        self.n_features
    }

    /// Values of each.
    pub fn d_model(&self) -> usize {
        self.d_model
    }

    /// The direction of one feature. `[d_model]`
    ///
    /// # Panics
    /// Past the last feature.
    pub fn row(&self, feature: usize) -> Vec<f32> {
        let range = feature * self.d_model..(feature + 1) * self.d_model;
        match &self.storage {
            Storage::Owned(values) => values[range].iter().map(|x| x.to_f32()).collect(),
            Storage::Mapped { map, bytes } => {
                let start = bytes.start + range.start * size_of::<f16>();
                let row = &map[start..start + range.len() * size_of::<f16>()];
                row.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
            }
        }
    }

    /// All of them as they are stored: little-endian f16, row-major.
    pub fn to_le_bytes(&self) -> Vec<u8> {
        match &self.storage {
            Storage::Owned(values) => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Storage::Mapped { map, bytes } => map[bytes.clone()].to_vec(),
        }
    }
}

fn check_len(len: usize, n_features: usize, d_model: usize) -> Result<()> {
    if n_features.checked_mul(d_model) == Some(len) {
        return Ok(());
    }
    Err(Error::GraphShape { name: "decoder_directions", expected: vec![n_features, d_model], actual: vec![len] })
}
