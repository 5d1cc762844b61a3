//! One tensor as it lies in a file, and how it is read as rows or columns of f32.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::encoding::{Encoding, MXFP4_BLOCK, all_finite, mxfp4_values};
use super::source::Source;
use crate::error::Result;

/// Elements decoded by one task: a multiple of every block size, a fraction of a second-level cache.
const TASK_ELEMENTS: usize = 1 << 15;
/// Columns transposed by one task: a multiple of every block size.
const TASK_COLUMNS: usize = 256;
/// Stored rows transposed at once.
const TILE_ROWS: usize = 16;

/// A run of elements in a file.
#[derive(Clone)]
pub(super) struct Part {
    pub source: Arc<Source>,
    /// Where the first element's bytes are; the whole run was checked to lie inside the file.
    pub start: usize,
    pub encoding: Encoding,
}

/// How a tensor's elements relate to the stored ones.
#[derive(Clone)]
pub(super) enum Layout {
    RowMajor,
    /// The last two dimensions are stored the other way round.
    Transposed,
    /// llama.cpp's order of Llama's query and key rows: the two rotary halves of a head of `d_head` rows interleaved.
    RotaryPairs {
        d_head: usize,
    },
    /// `[n_experts, d_model, 2 * d_ff]` read from gate and up (here) `[n_experts, d_ff, d_model]`: gate in even, up in
    /// odd columns. Biases: `d_model` 1.
    GateUp(Box<Part>),
    /// `[n_experts, n_blocks * 32, n_rows]` read from MXFP4 as Hugging Face checkpoints store it: here the nibbles
    /// `[n_experts, n_rows, n_blocks, 16]`, low one first, and the exponents `[n_experts, n_rows, n_blocks]`.
    SplitMxfp4(Box<Part>),
}

/// A tensor in a file.
#[derive(Clone)]
pub(super) struct Stored {
    pub part: Part,
    /// The shape as read, not as stored.
    pub shape: Vec<usize>,
    pub layout: Layout,
    /// Added to every element (llama.cpp stores Gemma's norm weights with 1 added).
    pub shift: f32,
}

/// f32 values and whether all are finite.
pub(super) struct Values {
    pub data: Vec<f32>,
    pub finite: bool,
}

impl Part {
    /// A run of elements that starts and ends at block boundaries, decoded on all threads.
    fn elements(&self, range: Range<usize>) -> Result<Values> {
        let mut data = vec![0f32; range.len()];
        let finite = self.elements_into(range, &mut data)?;
        Ok(Values { data, finite })
    }

    fn elements_into(&self, range: Range<usize>, out: &mut [f32]) -> Result<bool> {
        let (block_elements, block_bytes) = self.encoding.block();
        let begin = self.start + range.start / block_elements * block_bytes;
        let end = self.start + range.end / block_elements * block_bytes;
        let bytes = &self.source.bytes()?[begin..end];
        if out.len() <= TASK_ELEMENTS {
            return Ok(self.encoding.decode(bytes, out));
        }
        let finite = out
            .par_chunks_mut(TASK_ELEMENTS)
            .zip(bytes.par_chunks(TASK_ELEMENTS / block_elements * block_bytes))
            .map(|(out, bytes)| self.encoding.decode(bytes, out))
            .reduce(|| true, |a, b| a && b);
        Ok(finite)
    }

    /// Columns of a stored matrix, as rows.
    ///
    /// # Shapes
    /// Stored `[n_rows, n_cols]` from element `first` on; out `[columns.len(), n_rows]`.
    fn columns_into(
        &self,
        first: usize,
        [n_rows, n_cols]: [usize; 2],
        columns: Range<usize>,
        out: &mut [f32],
    ) -> Result<bool> {
        if n_rows == 0 {
            return Ok(true);
        }
        let (block_elements, block_bytes) = self.encoding.block();
        let bytes = &self.source.bytes()?[self.start..];
        let finite = out
            .par_chunks_mut(TASK_COLUMNS * n_rows)
            .enumerate()
            .map(|(task, out)| {
                let begin = columns.start + task * TASK_COLUMNS;
                let end = (begin + TASK_COLUMNS).min(columns.end);
                // Blocks that cover the columns.
                let wide_begin = begin / block_elements * block_elements;
                let wide_end = end.next_multiple_of(block_elements).min(n_cols);
                let width = wide_end - wide_begin;
                let mut tile = vec![0f32; TILE_ROWS * width];
                let mut finite = true;
                for row in (0..n_rows).step_by(TILE_ROWS) {
                    let tile_rows = TILE_ROWS.min(n_rows - row);
                    for (r, line) in tile.chunks_mut(width).take(tile_rows).enumerate() {
                        let from = (first + (row + r) * n_cols + wide_begin) / block_elements * block_bytes;
                        let size = width / block_elements * block_bytes;
                        finite &= self.encoding.decode(&bytes[from..from + size], line);
                    }
                    for (c, out) in out.chunks_mut(n_rows).enumerate() {
                        let column = begin - wide_begin + c;
                        for (r, o) in out[row..row + tile_rows].iter_mut().enumerate() {
                            *o = tile[r * width + column];
                        }
                    }
                }
                finite
            })
            .reduce(|| true, |a, b| a && b);
        Ok(finite)
    }
}

impl Stored {
    /// Elements of one index of the first dimension.
    pub fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// The last two dimensions; 1 where there is none.
    fn matrix(&self) -> [usize; 2] {
        match self.shape.as_slice() {
            [] => [1, 1],
            [a] => [*a, 1],
            [.., a, b] => [*a, *b],
        }
    }

    /// Rows of the first dimension.
    ///
    /// # Shapes
    /// `[rows.len(), shape[1..]]`.
    pub fn rows(&self, rows: Range<usize>) -> Result<Values> {
        let row_len = self.row_len();
        let mut values = match &self.layout {
            Layout::RowMajor => self.row_major(rows.start * row_len..rows.end * row_len)?,
            Layout::RotaryPairs { .. } => self.gather(&rows.collect::<Vec<_>>())?,
            Layout::Transposed => {
                let mut data = vec![0f32; rows.len() * row_len];
                let [a, b] = self.matrix();
                let finite = if self.shape.len() == 2 {
                    self.part.columns_into(0, [b, a], rows, &mut data)?
                } else {
                    let mut finite = true;
                    for (out, row) in data.chunks_mut(row_len.max(1)).zip(rows) {
                        finite &= self.part.columns_into(row * row_len, [b, a], 0..a, out)?;
                    }
                    finite
                };
                Values { data, finite }
            }
            Layout::GateUp(up) => self.gate_up(up, rows)?,
            Layout::SplitMxfp4(exponents) => self.split_mxfp4(exponents, rows)?,
        };
        if self.shift != 0.0 {
            values.data.iter_mut().for_each(|v| *v += self.shift);
        }
        Ok(values)
    }

    /// Elements in row-major order; a range that cuts blocks is decoded with the whole blocks around it.
    fn row_major(&self, range: Range<usize>) -> Result<Values> {
        let (block_elements, _) = self.part.encoding.block();
        let wide = range.start / block_elements * block_elements..range.end.next_multiple_of(block_elements);
        if wide == range {
            return self.part.elements(range);
        }
        let Values { data, finite } = self.part.elements(wide.clone())?;
        Ok(Values { data: data[range.start - wide.start..range.end - wide.start].to_vec(), finite })
    }

    /// Chosen rows of the first dimension, in the given order. Not shifted, not for transposed layouts of rank 2.
    fn gather(&self, rows: &[usize]) -> Result<Values> {
        let row_len = self.row_len();
        let mut data = vec![0f32; rows.len() * row_len];
        if data.is_empty() {
            return Ok(Values { data, finite: true });
        }
        let min_rows = (TASK_ELEMENTS / row_len).max(1);
        let finite = data
            .par_chunks_mut(row_len)
            .with_min_len(min_rows)
            .zip(rows)
            .map(|(out, &row)| {
                let row = match self.layout {
                    Layout::RotaryPairs { d_head } => rotary_row(row, d_head),
                    _ => row,
                };
                self.part.elements_into(row * row_len..(row + 1) * row_len, out)
            })
            .try_reduce(|| true, |a, b| Ok(a && b))?;
        Ok(Values { data, finite })
    }

    /// Chosen rows of the first dimension, in the given order.
    ///
    /// # Shapes
    /// `[rows.len(), shape[1..]]`.
    pub fn gather_rows(&self, rows: &[usize]) -> Result<Values> {
        let (block_elements, _) = self.part.encoding.block();
        let by_row = matches!(self.layout, Layout::RowMajor | Layout::RotaryPairs { .. });
        if by_row && self.shift == 0.0 && self.row_len().is_multiple_of(block_elements) {
            return self.gather(rows);
        }
        let mut data = Vec::with_capacity(rows.len() * self.row_len());
        let mut finite = true;
        for &row in rows {
            let values = self.rows(row..row + 1)?;
            finite &= values.finite;
            data.extend(values.data);
        }
        Ok(Values { data, finite })
    }

    /// Columns of a matrix, as rows.
    ///
    /// # Shapes
    /// Tensor `[a, b]`; out `[columns.len(), a]`.
    pub fn columns(&self, columns: Range<usize>) -> Result<Values> {
        let [a, b] = self.matrix();
        let mut data = vec![0f32; columns.len() * a];
        let finite = match self.layout {
            Layout::RowMajor if self.shift == 0.0 => self.part.columns_into(0, [a, b], columns, &mut data)?,
            Layout::Transposed if self.shift == 0.0 => {
                let range = columns.start * a..columns.end * a;
                let stored = Stored { layout: Layout::RowMajor, ..self.clone() };
                return stored.row_major(range);
            }
            _ => {
                let whole = self.rows(0..a)?;
                for (out, column) in data.chunks_mut(a.max(1)).zip(columns) {
                    out.iter_mut().enumerate().for_each(|(r, o)| *o = whole.data[r * b + column]);
                }
                whole.finite
            }
        };
        Ok(Values { data, finite })
    }

    fn gate_up(&self, up: &Part, rows: Range<usize>) -> Result<Values> {
        let row_len = self.row_len();
        let (d_model, d_ff) = match self.shape.as_slice() {
            [_, d_model, both] => (*d_model, both / 2),
            _ => (1, row_len / 2),
        };
        let mut data = vec![0f32; rows.len() * row_len];
        let mut finite = true;
        let mut half = vec![0f32; d_model * d_ff];
        for (out, row) in data.chunks_mut(row_len.max(1)).zip(rows) {
            for (parity, part) in [&self.part, up].into_iter().enumerate() {
                finite &= part.columns_into(row * half.len(), [d_ff, d_model], 0..d_model, &mut half)?;
                out.iter_mut().skip(parity).step_by(2).zip(&half).for_each(|(o, v)| *o = *v);
            }
        }
        Ok(Values { data, finite })
    }
}

impl Stored {
    fn split_mxfp4(&self, exponents: &Part, experts: Range<usize>) -> Result<Values> {
        let [d_in, n_rows] = self.matrix();
        let n_blocks = d_in / MXFP4_BLOCK;
        let mut data = vec![0f32; experts.len() * self.row_len()];
        if data.is_empty() {
            return Ok(Values { data, finite: true });
        }
        let nibbles = &self.part.source.bytes()?[self.part.start..];
        let exponents = &exponents.source.bytes()?[exponents.start..];
        let finite = data
            .par_chunks_mut(MXFP4_BLOCK * n_rows)
            .enumerate()
            .map(|(task, out)| {
                let (expert, block) = (experts.start + task / n_blocks, task % n_blocks);
                for row in 0..n_rows {
                    let at = (expert * n_rows + row) * n_blocks + block;
                    let values = mxfp4_values(&nibbles[at * 16..at * 16 + 16], exponents[at]);
                    for (j, (low, high)) in values.enumerate() {
                        out[2 * j * n_rows + row] = low;
                        out[(2 * j + 1) * n_rows + row] = high;
                    }
                }
                all_finite(out)
            })
            .reduce(|| true, |a, b| a && b);
        Ok(Values { data, finite })
    }
}

/// Where llama.cpp puts row `row`: rows `(half, pair)` of each head are stored as `(pair, half)`.
fn rotary_row(row: usize, d_head: usize) -> usize {
    let (head, within) = (row / d_head, row % d_head);
    let (half, pair) = (within / (d_head / 2), within % (d_head / 2));
    head * d_head + pair * 2 + half
}
