//! Attention of one sequence: head by head, by blocks of queries and the keys that they see.

use super::layer::{Angles, Heads, Scratch};
use super::steps::{Softmax, rotated, softmax};
use crate::ops::{product, product_with_transpose};

/// Queries whose scores are in memory at once.
const QUERIES: usize = 64;

/// What the heads read.
///
/// # Shapes
/// `z` `[n_pos, n_heads · d_head]`; `qkv` `[n_pos, (n_heads + 2 n_kv_heads) · d_head]`: queries, keys and values, heads
/// normed where the family does that.
pub(super) fn attend(heads: &Heads, z: &mut [f32], qkv: &[f32], angles: Option<&Angles>, scratch: &mut Scratch) {
    let Heads { n_heads, n_kv_heads, d_head, .. } = *heads;
    let (width, z_width) = (heads.width(), n_heads * d_head);
    let n_pos = qkv.len() / width;
    let Scratch { query, key, value, scores, read, .. } = scratch;
    for rows in [&mut *query, &mut *key, &mut *value] {
        rows.resize(n_pos * d_head, 0.0);
    }
    let n_rep = n_heads / n_kv_heads;
    for kv in 0..n_kv_heads {
        rotated((key, &qkv[(n_heads + kv) * d_head..], width, d_head, angles));
        rotated((value, &qkv[(n_heads + n_kv_heads + kv) * d_head..], width, d_head, None));
        for head in kv * n_rep..(kv + 1) * n_rep {
            rotated((query, &qkv[head * d_head..], width, d_head, angles));
            let map = Softmax { scale: heads.scale, cap: heads.softcap, sink: heads.sinks.get(head).copied() };
            for first in (0..n_pos).step_by(QUERIES) {
                let end = (first + QUERIES).min(n_pos);
                let oldest = |pos: usize| heads.window.map_or(0, |window| (pos + 1).saturating_sub(window));
                let (n_q, keys) = (end - first, oldest(first)..end);
                scores.resize(n_q * keys.len(), 0.0);
                read.resize(n_q * d_head, 0.0);
                let queries = &query[first * d_head..end * d_head];
                let of_keys = keys.start * d_head..keys.end * d_head;
                product_with_transpose(scores, queries, &key[of_keys.clone()], (n_q, d_head, keys.len()));
                for (row, pos) in scores.chunks_mut(keys.len()).zip(first..end) {
                    softmax((row, oldest(pos) - keys.start..pos + 1 - keys.start, &map));
                }
                product(read, scores, &value[of_keys], (n_q, keys.len(), d_head));
                for (read, pos) in read.chunks(d_head).zip(first..end) {
                    z[pos * z_width + head * d_head..][..d_head].copy_from_slice(read);
                }
            }
        }
    }
}
