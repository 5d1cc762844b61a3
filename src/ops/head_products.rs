//! Products of gradients and values, head by head: what of each target's gradient meets what of each source.

use candle_core::{Result, bail};

use super::RaggedBatch;

/// Sizes of [`head_products`].
#[derive(Clone, Copy, Debug)]
pub struct HeadSizes {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads, each shared by a group of query heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub d_head: usize,
}

/// `Σ_k ⟨grad_v[k, t, h], values[k, kv(h), ·, s]⟩` over the keys k from `pos` on, for every head, target and source.
///
/// # Shapes
/// `grad_v` `[n_rows, n_heads · d_head]` in the layout of `ragged`: what the values of each head get. `values`
/// `[at least n_segments - pos, n_kv_heads · d_head, n_sources]`: what sources at position `pos` give, from there on;
/// sources lie beside each other, so that no product has to turn them around first.
/// Returns `[n_heads, count(pos), n_sources]`: of the targets at `pos` or later.
///
/// # Errors
/// Lengths that do not fit.
pub fn head_products(
    grad_v: &[f32],
    values: &[f32],
    pos: usize,
    n_sources: usize,
    sizes: HeadSizes,
    ragged: &RaggedBatch,
) -> Result<Vec<f32>> {
    let HeadSizes { n_heads, n_kv_heads, d_head } = sizes;
    let (grad_width, width) = (n_heads * d_head, n_kv_heads * d_head);
    if pos >= ragged.n_segments() || n_sources == 0 {
        return Ok(Vec::new());
    }
    let n_keys = ragged.n_segments() - pos;
    if grad_v.len() != ragged.n_rows() * grad_width || values.len() < n_keys * n_sources * width {
        bail!("head_products: {} gradients and {} values for {n_keys} keys", grad_v.len(), values.len());
    }
    let n_targets = ragged.count(pos);
    let mut out = vec![0f32; n_heads * n_targets * n_sources];
    for (head, out) in out.chunks_exact_mut(n_targets * n_sources).enumerate() {
        let kv = head / (n_heads / n_kv_heads);
        for key in pos..ragged.n_segments() {
            let count = ragged.count(key);
            let grad = &grad_v[ragged.start(key) * grad_width + head * d_head..][..(count - 1) * grad_width + d_head];
            let values = &values[((key - pos) * width + kv * d_head) * n_sources..][..d_head * n_sources];
            assert!(count <= n_targets);
            // SAFETY: the slices end with the last value that these sizes and strides reach, and `out` has a row of
            // `n_sources` for each of `n_targets`, of which there are at least `count`; it is borrowed mutably.
            unsafe {
                gemm::gemm(
                    count,
                    n_sources,
                    d_head,
                    out.as_mut_ptr(),
                    1,
                    n_sources as isize,
                    true,
                    grad.as_ptr(),
                    1,
                    grad_width as isize,
                    values.as_ptr(),
                    1,
                    n_sources as isize,
                    1.0,
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                );
            }
        }
    }
    Ok(out)
}
