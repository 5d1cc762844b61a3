//! A coarse map of a long prompt: blocks of layers and spans of tokens, with the positions of each that give most.

use super::TargetMap;

/// What blocks of layers and spans of positions give to the targets directly, as parts of what everything gives: sums of a
/// [`TargetMap`].
#[derive(Clone, Debug, PartialEq)]
pub struct CoarseMap {
    /// Layers `[first, end)` of each block, from below.
    pub layers: Vec<[usize; 2]>,
    /// The spans, in the prompt's order.
    pub spans: Vec<CoarseSpan>,
}

/// A span of positions.
#[derive(Clone, Debug, PartialEq)]
pub struct CoarseSpan {
    /// `[first, end)`
    pub positions: [usize; 2],
    /// Of features, by block of layers. `[n_blocks]`
    pub features: Vec<f64>,
    /// Of errors, by block of layers. `[n_blocks]`
    pub errors: Vec<f64>,
    /// Of the tokens themselves.
    pub tokens: f64,
    /// The positions that give most, with what they give, strongest first.
    pub strongest: Vec<(usize, f64)>,
}

impl CoarseSpan {
    /// What everything in the span gives.
    pub fn share(&self) -> f64 {
        self.features.iter().chain(&self.errors).sum::<f64>() + self.tokens
    }
}

impl TargetMap {
    /// Puts layers and positions together: at most so many blocks and spans, all of one length but for the last, with at most
    /// `n_strongest` positions each.
    pub fn coarse(&self, n_blocks: usize, n_spans: usize, n_strongest: usize) -> CoarseMap {
        let layers = pieces(self.n_layers, n_blocks);
        let shares = self.positions();
        let sum = |cells: &[f64], [first, end]: [usize; 2], positions: [usize; 2]| -> f64 {
            (first..end).flat_map(|layer| &cells[layer * self.n_pos..][positions[0]..positions[1]]).sum()
        };
        let span = |positions: [usize; 2]| {
            let mut order: Vec<usize> = (positions[0]..positions[1]).collect();
            order.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]).then(a.cmp(&b)));
            order.truncate(n_strongest);
            CoarseSpan {
                positions,
                features: layers.iter().map(|&block| sum(&self.features, block, positions)).collect(),
                errors: layers.iter().map(|&block| sum(&self.errors, block, positions)).collect(),
                tokens: self.tokens[positions[0]..positions[1]].iter().sum(),
                strongest: order.into_iter().map(|pos| (pos, shares[pos])).collect(),
            }
        };
        CoarseMap { spans: pieces(self.n_pos, n_spans).into_iter().map(span).collect(), layers }
    }
}

/// `0..n` in at most `most` pieces of one length.
fn pieces(n: usize, most: usize) -> Vec<[usize; 2]> {
    let size = n.div_ceil(most.max(1)).max(1);
    (0..n).step_by(size).map(|first| [first, n.min(first + size)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_spans_add_up_to_the_map() {
        let (n_layers, n_pos) = (7, 23);
        let values = |n: usize, seed: usize| (0..n).map(|i| ((i * 37 + seed) % 11) as f64).collect::<Vec<_>>();
        let map = TargetMap {
            targets: vec!["a".into()],
            n_layers,
            n_pos,
            features: values(n_layers * n_pos, 1),
            errors: values(n_layers * n_pos, 5),
            tokens: values(n_pos, 3),
        };
        let coarse = map.coarse(3, 5, 2);
        assert_eq!(coarse.layers, [[0, 3], [3, 6], [6, 7]]);
        let spans: Vec<[usize; 2]> = coarse.spans.iter().map(|span| span.positions).collect();
        assert_eq!(spans, [[0, 5], [5, 10], [10, 15], [15, 20], [20, 23]]);
        for span in &coarse.spans {
            let of_positions = &map.positions()[span.positions[0]..span.positions[1]];
            assert!((span.share() - of_positions.iter().sum::<f64>()).abs() < 1e-9);
            let most = of_positions.iter().copied().fold(0.0, f64::max);
            assert!(span.strongest.len() == 2 && span.strongest[0].1 == most && span.strongest[1].1 <= most);
        }
        for (at, &[first, end]) in coarse.layers.iter().enumerate() {
            let sum: f64 = coarse.spans.iter().map(|span| span.features[at] + 3.0 * span.errors[at]).sum();
            let cells = first * n_pos..end * n_pos;
            let expected =
                map.features[cells.clone()].iter().sum::<f64>() + 3.0 * map.errors[cells].iter().sum::<f64>();
            assert!((sum - expected).abs() < 1e-9);
        }
        assert_eq!(map.coarse(100, 100, 1).spans.len(), n_pos);
    }
}
