//! Which features are active on which tokens of a batch: the encoder's product, and what is kept of it.

use super::layer::Layer;
use crate::ops::rows::wide;
use crate::ops::{PackedWeight, product_with_transpose};

/// Tokens whose pre-activations are in memory at once.
const TILE_TOKENS: usize = 128;

/// Pre-activations that are looked at together: mostly none of them is high enough.
const BLOCK: usize = 16;

/// Candidates have at least this share of the last batch's smallest effect, from batch to batch much the same.
const FLOOR_SHARE: f32 = 0.8;

/// How active features are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Choice {
    /// Of the whole batch, so many pairs of token and feature with the largest effects (Bussmann et al. 2024,
    /// "BatchTopK").
    OfBatch(usize),
    /// So many of each token.
    OfToken(usize),
    /// All above zero.
    Positive,
}

/// Active features of a batch, token by token, ascending by feature.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Active {
    /// Where each token's begin. `[n_tokens + 1]`
    pub starts: Vec<u32>,
    /// `[n_active]`
    pub features: Vec<u32>,
    /// Pre-activations, which are the activations. `[n_active]`
    pub values: Vec<f32>,
}

impl Active {
    pub(super) fn n_tokens(&self) -> usize {
        self.starts.len() - 1
    }

    /// Features and values of a token.
    #[inline(always)]
    pub(super) fn of(&self, token: usize) -> (&[u32], &[f32]) {
        let range = self.starts[token] as usize..self.starts[token + 1] as usize;
        (&self.features[range.clone()], &self.values[range])
    }
}

/// A pair of token and feature that may be active.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    feature: u32,
    value: f32,
    /// What the choice goes by: the length of what it adds to the output, or how far it is above its threshold.
    effect: f32,
}

/// Chooses the active features of a batch, and of a batch's choice gives the smallest effect that was kept.
///
/// # Shapes
/// `x` `[n_tokens, d_model]`.
pub(super) fn choose(layer: &Layer, x: &[f32], choice: Choice) -> (Active, f32) {
    let n_tokens = x.len() / layer.d_model;
    match choice {
        Choice::OfBatch(wanted) => {
            // What is kept is mostly above the last batch's smallest; where that was too high, all are looked at.
            let mut candidates = above(layer, x, FLOOR_SHARE * layer.floor);
            if candidates.len() < wanted && layer.floor > 0.0 {
                candidates = above(layer, x, 0.0);
            }
            let floor = keep_largest(&mut candidates, wanted);
            (in_order(&candidates, n_tokens), floor)
        }
        Choice::OfToken(wanted) => {
            let candidates = above(layer, x, 0.0);
            let mut kept = Vec::with_capacity(n_tokens * wanted);
            for of_token in candidates.chunk_by(|a, b| a.token == b.token) {
                let mut of_token = of_token.to_vec();
                // Where it is used, tokens choose by activations.
                of_token.iter_mut().for_each(|candidate| candidate.effect = candidate.value);
                keep_largest(&mut of_token, wanted);
                kept.extend(of_token);
            }
            (in_order(&kept, n_tokens), 0.0)
        }
        Choice::Positive => (in_order(&above(layer, x, 0.0), n_tokens), 0.0),
    }
}

/// Pairs above zero with an effect above `floor`, token by token, ascending by feature.
fn above(layer: &Layer, x: &[f32], floor: f32) -> Vec<Candidate> {
    let (d_model, n_features) = (layer.d_model, layer.n_features);
    let packed = if layer.rounds { PackedWeight::new(&layer.w_enc, n_features, d_model) } else { None };
    let mut found = Vec::new();
    let mut products = vec![0f32; TILE_TOKENS * n_features];
    for (tile, x) in x.chunks(TILE_TOKENS * d_model).enumerate() {
        let n_tokens = x.len() / d_model;
        let products = &mut products[..n_tokens * n_features];
        match &packed {
            Some(packed) => packed.product(products, x),
            None => product_with_transpose(products, x, &layer.w_enc, (n_tokens, d_model, n_features)),
        }
        scan_tile((&mut found, tile * TILE_TOKENS, &*products, layer, floor));
    }
    found
}

wide! {
    fn scan_tile<'a>(
        (found, first, products, layer, floor) =>
            (&'a mut Vec<Candidate>, usize, &'a [f32], &'a Layer, f32)
    ) -> () {
        for (row, products) in products.chunks(layer.n_features).enumerate() {
            scan(found, (first + row) as u32, products, layer, floor);
        }
    }
}

#[inline(always)]
fn scan(found: &mut Vec<Candidate>, token: u32, products: &[f32], layer: &Layer, floor: f32) {
    let blocks = products.chunks(BLOCK).zip(layer.b_enc.chunks(BLOCK)).zip(layer.importance().chunks(BLOCK));
    for (block, ((products, biases), norms)) in blocks.enumerate() {
        let mut high = 0u32;
        for (i, ((product, bias), norm)) in products.iter().zip(biases).zip(norms).enumerate() {
            let value = product + bias;
            high |= u32::from((value > 0.0) & (value * norm > floor)) << i;
        }
        while high != 0 {
            let i = high.trailing_zeros() as usize;
            high &= high - 1;
            let value = products[i] + biases[i];
            let feature = (block * BLOCK + i) as u32;
            found.push(Candidate { token, feature, value, effect: value * norms[i] });
        }
    }
}

/// Keeps the `wanted` candidates of largest effect in their order, of equal ones the first; gives the smallest kept.
fn keep_largest(candidates: &mut Vec<Candidate>, wanted: usize) -> f32 {
    if wanted == 0 {
        candidates.clear();
    }
    if candidates.len() > wanted {
        let mut effects: Vec<f32> = candidates.iter().map(|candidate| candidate.effect).collect();
        let (_, &mut cut, _) = effects.select_nth_unstable_by(wanted - 1, |a, b| b.total_cmp(a));
        let n_above = candidates.iter().filter(|candidate| candidate.effect > cut).count();
        let mut left = wanted - n_above;
        candidates.retain(|candidate| {
            let is_kept = candidate.effect > cut || (candidate.effect == cut && left > 0);
            left -= usize::from(is_kept && candidate.effect == cut);
            is_kept
        });
        return cut;
    }
    candidates.iter().map(|candidate| candidate.effect).fold(f32::INFINITY, f32::min)
}

/// By token, from candidates that are in the order of their tokens.
fn in_order(candidates: &[Candidate], n_tokens: usize) -> Active {
    let mut starts = vec![0u32; n_tokens + 1];
    candidates.iter().for_each(|candidate| starts[candidate.token as usize + 1] += 1);
    for token in 0..n_tokens {
        starts[token + 1] += starts[token];
    }
    Active {
        starts,
        features: candidates.iter().map(|candidate| candidate.feature).collect(),
        values: candidates.iter().map(|candidate| candidate.value).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intervene::Random;
    use crate::train::init::unit_rows;

    fn layer(n_features: usize, d_model: usize) -> Layer {
        let mut random = Random(7);
        let mut layer = Layer::new(d_model, n_features, 1, false);
        layer.w_enc = unit_rows(n_features, d_model, &mut random);
        layer.dec_norms = (0..n_features).map(|_| 0.5 + random.next_unit() as f32).collect();
        layer.b_enc = (0..n_features).map(|_| random.next_unit() as f32 - 0.5).collect();
        layer
    }

    /// All pre-activations, one by one. `[n_tokens][n_features]`
    fn slow(layer: &Layer, x: &[f32]) -> Vec<Vec<f32>> {
        let z = |x: &[f32], feature: usize| {
            let row = &layer.w_enc[feature * layer.d_model..][..layer.d_model];
            x.iter().zip(row).map(|(x, w)| x * w).sum::<f32>() + layer.b_enc[feature]
        };
        x.chunks(layer.d_model).map(|x| (0..layer.n_features).map(|feature| z(x, feature)).collect()).collect()
    }

    #[test]
    fn the_largest_of_the_batch_are_chosen_whatever_the_last_floor() {
        let (n_tokens, d_model) = (300, 24);
        let x = unit_rows(n_tokens, d_model, &mut Random(3));
        let mut layer = layer(70, d_model);
        let all = slow(&layer, &x);
        let mut effects: Vec<(f32, usize, usize)> = Vec::new();
        for (token, z) in all.iter().enumerate() {
            for (feature, z) in z.iter().enumerate().filter(|(_, z)| **z > 0.0) {
                effects.push((z * layer.dec_norms[feature], token, feature));
            }
        }
        effects.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (floor, wanted) in [(0.0, 900), (0.4, 900), (50.0, 900), (0.1, 1), (0.0, 10_000_000)] {
            layer.floor = floor;
            let (active, smallest) = choose(&layer, &x, Choice::OfBatch(wanted));
            let mut expected: Vec<(usize, usize)> = effects.iter().take(wanted).map(|e| (e.1, e.2)).collect();
            expected.sort_unstable();
            let found: Vec<(usize, usize)> = (0..n_tokens)
                .flat_map(|token| active.of(token).0.iter().map(move |&feature| (token, feature as usize)))
                .collect();
            assert_eq!(found, expected, "floor {floor}, {wanted} wanted");
            assert!((smallest - effects[wanted.min(effects.len()) - 1].0).abs() < 1e-5);
        }
    }

    #[test]
    fn each_token_keeps_its_largest() {
        let (n_tokens, d_model) = (40, 24);
        let x = unit_rows(n_tokens, d_model, &mut Random(5));
        let layer = layer(70, d_model);
        let (active, _) = choose(&layer, &x, Choice::OfToken(4));
        for (token, z) in slow(&layer, &x).iter().enumerate() {
            let mut order: Vec<usize> = (0..z.len()).filter(|&f| z[f] > 0.0).collect();
            order.sort_by(|&a, &b| z[b].total_cmp(&z[a]));
            order.truncate(4);
            order.sort_unstable();
            assert_eq!(active.of(token).0, order.iter().map(|&f| f as u32).collect::<Vec<_>>());
        }
    }
}
