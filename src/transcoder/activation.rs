//! Activation functions: ReLU, JumpReLU, TopK.

use std::ops::Range;

use crate::ops::{Activity, keep_largest};

/// The activation of a transcoder.
#[derive(Clone, Debug, PartialEq)]
pub enum ActivationFunction {
    /// z where z > 0, else 0.
    Relu,
    /// z where z > θ (strictly), else 0.
    JumpRelu {
        /// θ of every feature. `[d_transcoder]`
        threshold: Vec<f32>,
    },
    /// The k largest z of the position are kept as they are.
    TopK {
        /// Features that are active at a position.
        k: usize,
    },
}

/// One feature that may be active at a position. Its value is its pre-activation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Index among the features of the layer.
    pub feature: u32,
    /// Its pre-activation z.
    pub value: f32,
}

impl ActivationFunction {
    /// What decides about the features of one chunk.
    ///
    /// For TopK these are the chunk's `k` largest; [`ActivationFunction::finish`] merges the chunks.
    pub fn activity(&self, chunk: Range<usize>) -> Activity<'_> {
        match self {
            ActivationFunction::Relu => Activity::Relu,
            ActivationFunction::JumpRelu { threshold } => Activity::JumpRelu { threshold: &threshold[chunk] },
            &ActivationFunction::TopK { k } => Activity::TopK { k },
        }
    }

    /// Turns the candidates of all chunks of one position into its active features, ascending by feature.
    pub fn finish(&self, candidates: &mut Vec<Candidate>) {
        if let &ActivationFunction::TopK { k } = self
            && candidates.len() > k
        {
            let mut found: Vec<(u32, f32)> = candidates.iter().map(|c| (c.feature, c.value)).collect();
            keep_largest(&mut found, k);
            *candidates = found.into_iter().map(|(feature, value)| Candidate { feature, value }).collect();
        }
        candidates.retain(|c| c.value != 0.0);
        candidates.sort_unstable_by_key(|c| c.feature);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::ops::encode_active;

    fn active(function: &ActivationFunction, z: &[f32], chunk: usize) -> Vec<(u32, f32)> {
        let mut candidates = Vec::new();
        for start in (0..z.len()).step_by(chunk) {
            let range = start..(start + chunk).min(z.len());
            let products = Tensor::new(&z[range.clone()], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let found = encode_active(&products, &vec![0.0; range.len()], function.activity(range)).unwrap();
            let found = found.features.iter().zip(found.values);
            candidates.extend(found.map(|(f, value)| Candidate { feature: start as u32 + f, value }));
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
    fn top_k_does_not_depend_on_the_chunk_size() {
        let z = [3.0, -1.0, 2.0, 5.0, 2.0, -0.5];
        for chunk in 1..=6 {
            assert_eq!(active(&ActivationFunction::TopK { k: 3 }, &z, chunk), [(0, 3.0), (2, 2.0), (3, 5.0)]);
        }
        // Negative values survive where fewer than k are positive.
        assert_eq!(active(&ActivationFunction::TopK { k: 6 }, &z, 4).len(), 6);
    }
}
