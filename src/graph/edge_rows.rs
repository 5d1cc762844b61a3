//! The edge rows, owned or memory-mapped.

use std::ops::Range;

use memmap2::Mmap;
use ndarray::ArrayView2;

use super::RowSource;
use crate::{Error, Result};

/// Direct effects, row-major. `[n_rows, n_nodes]`, f32.
///
/// The one large thing of a graph: never copied, borrowed by everything that reads it.
#[derive(Debug)]
pub struct EdgeRows {
    storage: Storage,
    n_rows: usize,
    n_nodes: usize,
}

#[derive(Debug)]
enum Storage {
    Owned(Vec<f32>),
    Mapped { map: Mmap, bytes: Range<usize> },
}

impl EdgeRows {
    /// Takes over `values`. `[n_rows, n_nodes]`
    ///
    /// # Errors
    /// A length that is not `n_rows * n_nodes`.
    pub fn from_vec(values: Vec<f32>, n_rows: usize, n_nodes: usize) -> Result<EdgeRows> {
        if n_rows.checked_mul(n_nodes) != Some(values.len()) {
            return Err(length_error(n_rows, n_nodes, values.len()));
        }
        Ok(EdgeRows { storage: Storage::Owned(values), n_rows, n_nodes })
    }

    /// Reads the rows out of the little-endian f32 that lie in `bytes` of a memory map.
    ///
    /// Nothing is copied where the bytes are aligned, which those of our own files are; otherwise they are copied once.
    ///
    /// # Errors
    /// A range outside the map, or one that does not hold `n_rows * n_nodes` values.
    pub(crate) fn from_map(map: Mmap, bytes: Range<usize>, n_rows: usize, n_nodes: usize) -> Result<EdgeRows> {
        let Some(slice) = map.get(bytes.clone()) else {
            return Err(Error::GraphIndex {
                name: "end of edge_rows in its file",
                index: 0,
                value: bytes.end,
                limit: map.len(),
            });
        };
        let expected = n_rows.checked_mul(n_nodes).and_then(|n| n.checked_mul(size_of::<f32>()));
        if expected != Some(slice.len()) {
            return Err(length_error(n_rows, n_nodes, slice.len() / size_of::<f32>()));
        }
        let aligned = slice.as_ptr().align_offset(align_of::<f32>()) == 0;
        let storage = if aligned && cfg!(target_endian = "little") {
            Storage::Mapped { map, bytes }
        } else {
            let values = slice.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            Storage::Owned(values)
        };
        Ok(EdgeRows { storage, n_rows, n_nodes })
    }

    /// Rows: selected features, then targets.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Columns: one a node.
    pub fn n_nodes(&self) -> usize {
        self.n_nodes
    }

    /// All rows, one after the other. `[n_rows * n_nodes]`
    pub fn values(&self) -> &[f32] {
        match &self.storage {
            Storage::Owned(values) => values,
            Storage::Mapped { map, bytes } => {
                // SAFETY: every bit pattern is an f32; `from_map` checked that the range lies in the map, is aligned
                // (a map does not move) and is a whole number of values.
                let (head, values, tail) = unsafe { map[bytes.clone()].align_to::<f32>() };
                debug_assert!(head.is_empty() && tail.is_empty());
                values
            }
        }
    }

    /// All rows as a matrix, for those who compute on. `[n_rows, n_nodes]`
    pub fn view(&self) -> ArrayView2<'_, f32> {
        // The length was checked when this was made, so the shape always fits.
        ArrayView2::from_shape((self.n_rows, self.n_nodes), self.values())
            .unwrap_or_else(|_| ArrayView2::from(&[[0f32; 0]; 0]))
    }

    /// Row `row`: the direct effect of every node on one. `[n_nodes]`
    ///
    /// # Panics
    /// Past the last row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values()[row * self.n_nodes..(row + 1) * self.n_nodes]
    }
}

impl RowSource for EdgeRows {
    fn rows(&self, rows: &[usize], each: &(dyn Fn(usize, &[f32]) + Sync)) -> Result<()> {
        rows.iter().enumerate().for_each(|(place, &row)| each(place, self.row(row)));
        Ok(())
    }
}

fn length_error(n_rows: usize, n_nodes: usize, actual: usize) -> Error {
    Error::GraphShape { name: "edge_rows", expected: vec![n_rows, n_nodes], actual: vec![actual] }
}
