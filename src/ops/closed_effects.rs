//! Reads of attention at closed positions: what the values there give to targets through the heads that read them.

use candle_core::{Result, Storage, Tensor, bail};

use super::frozen_attention::Queries;
use super::matmul::transpose_product;
use super::{RaggedBatch, f32_slice};

/// Closed positions that are computed together: queries before all of them see none.
const KEY_BLOCK: usize = 128;

/// What a layer's attention reads at closed positions.
#[derive(Clone, Debug)]
pub struct ClosedKeys {
    /// How many open positions come before each closed one: queries from there on may see it. Ascending. `[n_closed]`
    open_before: Vec<usize>,
    /// The frozen pattern, some closed positions at a time, of the open queries after the first of them.
    /// `[n_heads, n_open - open_before[first], up to KEY_BLOCK]`
    blocks: Vec<Tensor>,
    /// What the heads read there. `[n_closed, n_kv_heads · d_head]`
    values: Tensor,
}

impl ClosedKeys {
    /// Takes the pattern of open queries over closed keys, and the values there; the keys ascend.
    ///
    /// # Shapes
    /// `open_before` `[n_closed]`, `pattern` `[n_heads, n_open, n_closed]`, `values` `[n_closed, n_kv_heads · d_head]`.
    ///
    /// # Errors
    /// Shapes that do not fit; those of the tensor operations.
    pub fn new(open_before: Vec<usize>, pattern: &Tensor, values: Tensor) -> Result<Self> {
        let (_, n_open, n_closed) = pattern.dims3()?;
        if open_before.len() != n_closed || values.dim(0)? != n_closed || !open_before.is_sorted() {
            bail!("closed keys: {} of {:?} with {:?}", open_before.len(), pattern.dims(), values.dims());
        }
        let block = |first: usize| {
            let seeing = open_before[first].min(n_open);
            let of_keys = pattern.narrow(2, first, KEY_BLOCK.min(n_closed - first))?;
            of_keys.narrow(1, seeing, n_open - seeing)?.contiguous()
        };
        // What no query sees has no part of the pattern.
        let seen = (0..n_closed).step_by(KEY_BLOCK).take_while(|&first| open_before[first] < n_open);
        let blocks = seen.map(block).collect::<Result<_>>()?;
        Ok(Self { open_before, blocks, values })
    }

    /// Closed positions.
    pub fn len(&self) -> usize {
        self.open_before.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.open_before.is_empty()
    }
}

/// `out[t, k] = Σ_h Σ_q pattern[h, q, k] · ⟨grad_z[t, q, h], values[k, kv(h)]⟩` for every target and closed position: the
/// gradient that `frozen_attention` would send there, times the value that it would be the gradient of.
///
/// # Shapes
/// `grad_z` in the layout of `ragged`, as `frozen_attention` has it for `queries`. On the CPU. Returns
/// `[n_targets, n_closed]`, row-major.
///
/// # Errors
/// Shapes that do not fit; another device.
pub fn closed_effects(
    grad_z: &Tensor,
    keys: &ClosedKeys,
    n_kv_heads: usize,
    ragged: &RaggedBatch,
    queries: Queries,
) -> Result<Vec<f32>> {
    const NAME: &str = "closed_effects";
    let (n_rows, width) = grad_z.dims2()?;
    let (n_closed, kv_width) = keys.values.dims2()?;
    let n_heads = match keys.blocks.first() {
        Some(block) => block.dim(0)?,
        None => return Ok(vec![0.0; ragged.n_targets() * n_closed]),
    };
    let expected_rows = if queries == Queries::Own { ragged.n_targets() } else { ragged.n_rows() };
    let divides = n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads) && width.is_multiple_of(n_heads);
    if !divides || n_rows != expected_rows || kv_width * n_heads != width * n_kv_heads {
        bail!("{NAME}: grad {:?}, {n_heads} heads, values {:?}", grad_z.dims(), keys.values.dims());
    }
    let d_head = width / n_heads;
    let sizes = Sizes { n_heads, n_closed, width, kv_width, d_head, group: n_heads / n_kv_heads };
    let mut out = vec![0f32; ragged.n_targets() * n_closed];
    with_values(NAME, grad_z, |grad| {
        with_values(NAME, &keys.values, |values| {
            let mut first = 0;
            // One head's gradient with a row a query and zeros where a target has none, head after head.
            let by_head = if queries == Queries::All { by_head(grad, ragged, sizes) } else { Vec::new() };
            for block in &keys.blocks {
                let (_, n_after, n_keys) = block.dims3()?;
                let first_query = keys.open_before[first];
                with_values(NAME, block, |pattern| {
                    let block = Block { pattern, values, first, n_keys, first_query, n_after, sizes };
                    match queries {
                        Queries::All => block.all(&by_head, ragged, &mut out),
                        Queries::Own => block.own(grad, ragged, &keys.open_before, &mut out),
                    }
                    Ok(())
                })?;
                first += n_keys;
            }
            Ok(())
        })
    })?;
    Ok(out)
}

/// Calls `with` with the values of a tensor on the CPU.
fn with_values(name: &str, tensor: &Tensor, with: impl FnOnce(&[f32]) -> Result<()>) -> Result<()> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => with(f32_slice(name, storage, layout)?),
        _ => bail!("{name} is computed on the CPU alone"),
    }
}

#[derive(Clone, Copy)]
struct Sizes {
    n_heads: usize,
    n_closed: usize,
    width: usize,
    kv_width: usize,
    d_head: usize,
    /// Heads that share a key.
    group: usize,
}

/// A gradient head after head, with a row for every target at every query. `[n_heads][n_queries, n_targets · d_head]`
fn by_head(grad: &[f32], ragged: &RaggedBatch, sizes: Sizes) -> Vec<f32> {
    let Sizes { n_heads, width, d_head, .. } = sizes;
    let n_columns = ragged.n_targets() * d_head;
    let n_queries = ragged.n_segments();
    let mut all = vec![0f32; n_heads * n_queries * n_columns];
    for (head, of_head) in all.chunks_exact_mut(n_queries * n_columns).enumerate() {
        for (q, row) in of_head.chunks_exact_mut(n_columns).enumerate() {
            for (target, part) in row.chunks_exact_mut(d_head).enumerate().take(ragged.count(q)) {
                part.copy_from_slice(&grad[(ragged.start(q) + target) * width + head * d_head..][..d_head]);
            }
        }
    }
    all
}

/// Some closed positions.
struct Block<'a> {
    /// `[n_heads, n_after, n_keys]`
    pattern: &'a [f32],
    /// Of all closed positions. `[n_closed, kv_width]`
    values: &'a [f32],
    first: usize,
    n_keys: usize,
    first_query: usize,
    n_after: usize,
    sizes: Sizes,
}

impl Block<'_> {
    fn all(&self, by_head: &[f32], ragged: &RaggedBatch, out: &mut [f32]) {
        let Sizes { n_heads, n_closed, kv_width, d_head, group, .. } = self.sizes;
        let (n_columns, n_queries) = (ragged.n_targets() * d_head, ragged.n_segments());
        let Some(n_seeing) = n_queries.checked_sub(self.first_query).filter(|&n| n > 0) else { return };
        let mut moved = vec![0f32; self.n_keys * n_columns];
        for head in 0..n_heads {
            let pattern = &self.pattern[head * self.n_after * self.n_keys..][..n_seeing * self.n_keys];
            let grad = &by_head[(head * n_queries + self.first_query) * n_columns..][..n_seeing * n_columns];
            transpose_product(&mut moved, pattern, grad, (self.n_keys, n_seeing, n_columns));
            for (at, moved) in moved.chunks_exact(n_columns).enumerate() {
                let key = self.first + at;
                let value = &self.values[key * kv_width + head / group * d_head..][..d_head];
                for (target, moved) in moved.chunks_exact(d_head).enumerate() {
                    out[target * n_closed + key] += dot(moved, value);
                }
            }
        }
    }

    fn own(&self, grad: &[f32], ragged: &RaggedBatch, open_before: &[usize], out: &mut [f32]) {
        let Sizes { n_heads, n_closed, width, kv_width, d_head, group } = self.sizes;
        for (target, &place) in ragged.positions().iter().enumerate() {
            let Some(query) = place.checked_sub(self.first_query) else { continue };
            let n_seen = open_before[self.first..][..self.n_keys].partition_point(|&before| before <= place);
            let out = &mut out[target * n_closed + self.first..][..n_seen];
            for head in 0..n_heads {
                let grad = &grad[target * width + head * d_head..][..d_head];
                let pattern = &self.pattern[(head * self.n_after + query) * self.n_keys..];
                let values = self.values[self.first * kv_width..].chunks_exact(kv_width);
                for ((out, &weight), value) in out.iter_mut().zip(pattern).zip(values) {
                    *out += weight * dot(grad, &value[head / group * d_head..][..d_head]);
                }
            }
        }
    }
}

/// Sum of products, in eight sums that the compiler can keep in vectors.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 8;
    let mut lanes = [0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    lanes.iter().sum::<f32>() + rest
}
