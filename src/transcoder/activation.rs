//! From pre-activations to active features: ReLU, JumpReLU, TopK.

/// The activation of a transcoder.
#[derive(Clone, Debug, PartialEq)]
pub enum ActivationFunction {
    Relu,
    /// z where z > θ (strictly), else 0. `[d_transcoder]`
    JumpRelu {
        threshold: Vec<f32>,
    },
    /// The k largest z of the position are kept as they are.
    TopK {
        k: usize,
    },
}

/// One feature that may be active at a position. Its value is its pre-activation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    pub feature: u32,
    pub value: f32,
}

impl ActivationFunction {
    /// Adds the candidates among a block of features at one position: `z[i]` belongs to feature `start + i`.
    ///
    /// For TopK these are the block's `k` largest; [`ActivationFunction::finish`] merges the blocks.
    pub fn select(&self, start: usize, z: &[f32], candidates: &mut Vec<Candidate>) {
        let all = z.iter().enumerate().map(|(i, &value)| Candidate { feature: (start + i) as u32, value });
        match self {
            ActivationFunction::Relu => candidates.extend(all.filter(|c| c.value > 0.0)),
            ActivationFunction::JumpRelu { threshold } => {
                // A negative threshold lets negative values through; exact zeros are inactive all the same.
                candidates.extend(all.filter(|c| c.value > threshold[c.feature as usize] && c.value != 0.0));
            }
            ActivationFunction::TopK { k } => {
                let mut block: Vec<Candidate> = all.collect();
                keep_largest(&mut block, *k);
                candidates.append(&mut block);
            }
        }
    }

    /// Turns the candidates of all blocks of one position into its active features, ascending by feature.
    pub fn finish(&self, candidates: &mut Vec<Candidate>) {
        if let ActivationFunction::TopK { k } = self {
            keep_largest(candidates, *k);
            candidates.retain(|c| c.value != 0.0);
        }
        candidates.sort_unstable_by_key(|c| c.feature);
    }
}

/// Keeps the `k` largest values; of equal ones, the lower features.
fn keep_largest(candidates: &mut Vec<Candidate>, k: usize) {
    if candidates.len() <= k {
        return;
    }
    let order = |a: &Candidate, b: &Candidate| b.value.total_cmp(&a.value).then(a.feature.cmp(&b.feature));
    if k > 0 {
        candidates.select_nth_unstable_by(k - 1, order);
    }
    candidates.truncate(k);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn active(function: &ActivationFunction, z: &[f32], block: usize) -> Vec<(u32, f32)> {
        let mut candidates = Vec::new();
        for (i, block_z) in z.chunks(block).enumerate() {
            function.select(i * block, block_z, &mut candidates);
        }
        function.finish(&mut candidates);
        candidates.iter().map(|c| (c.feature, c.value)).collect()
    }

    #[test]
    fn relu_keeps_positive_values() {
        assert_eq!(active(&ActivationFunction::Relu, &[0.0, 1.0, -1.0, 2.0], 3), [(1, 1.0), (3, 2.0)]);
    }

    #[test]
    fn jump_relu_keeps_values_strictly_above_their_threshold() {
        let function = ActivationFunction::JumpRelu { threshold: vec![1.0, 1.0, 0.5] };
        assert_eq!(active(&function, &[1.0, 1.5, 0.6], 2), [(1, 1.5), (2, 0.6)]);
    }

    #[test]
    fn top_k_does_not_depend_on_the_block_size() {
        let z = [3.0, -1.0, 2.0, 5.0, 2.0, -0.5];
        for block in 1..=6 {
            assert_eq!(active(&ActivationFunction::TopK { k: 3 }, &z, block), [(0, 3.0), (2, 2.0), (3, 5.0)]);
        }
        // Negative values survive where fewer than k are positive.
        assert_eq!(active(&ActivationFunction::TopK { k: 6 }, &z, 4).len(), 6);
    }
}
