//! The next token, chosen among logits.

use super::random::Random;
use crate::error::{Error, Result};

/// Temperatures below this one take the likeliest token: logits divided by them would overflow.
const COLDEST: f64 = 1e-7;

/// Chooses tokens. The same seed and logits give the same tokens on every machine and in every version.
pub(super) struct Sampler {
    temperature: Option<f64>,
    top_p: Option<f64>,
    random: Random,
}

impl Sampler {
    /// Samples at `temperature` among the likeliest tokens that add up to `top_p`; without a temperature, the likeliest.
    pub fn new(seed: u64, temperature: Option<f64>, top_p: Option<f64>) -> Self {
        let temperature = temperature.filter(|&t| t >= COLDEST);
        Self { temperature, top_p, random: Random(seed) }
    }

    /// The index of the logit that was chosen.
    ///
    /// # Errors
    /// [`Error::LogitsNotFinite`]: logits that leave no choice, as of a model whose activations overflowed.
    pub fn choose(&mut self, logits: &[f32]) -> Result<u32> {
        let best = argmax(logits).filter(|&best| logits[best].is_finite()).ok_or(Error::LogitsNotFinite)?;
        let Some(temperature) = self.temperature else { return Ok(best as u32) };
        // Softmax without its denominator, which cancels: a share of the sum is drawn.
        let top = f64::from(logits[best]);
        let mut weights: Vec<f64> = logits.iter().map(|&l| ((f64::from(l) - top) / temperature).exp()).collect();
        if let Some(top_p) = self.top_p.filter(|&p| p < 1.0) {
            keep_likeliest(&mut weights, top_p);
        }
        let total: f64 = weights.iter().sum();
        if !total.is_finite() {
            return Err(Error::LogitsNotFinite);
        }
        Ok(pick(&weights, total, self.random.next_unit()) as u32)
    }
}

/// Index of the largest value, the first of equal ones; NaN is never the largest.
fn argmax(values: &[f32]) -> Option<usize> {
    let candidates = values.iter().enumerate().filter(|(_, value)| !value.is_nan());
    candidates.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(index, _)| index)
}

/// Leaves the fewest weights that add up to `top_p` of all, and sets the others to 0. Source: Holtzman et al. 2020,
/// "The Curious Case of Neural Text Degeneration", nucleus sampling.
fn keep_likeliest(weights: &mut [f64], top_p: f64) {
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
    let enough = top_p * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    for index in order {
        if sum >= enough {
            weights[index] = 0.0;
        }
        sum += weights[index];
    }
}

/// The index where the running sum of the weights passes `unit` (in 0..1) of their total.
fn pick(weights: &[f64], total: f64, unit: f64) -> usize {
    let mut rest = unit * total;
    let mut last = 0;
    for (index, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
        if rest < weight {
            return index;
        }
        rest -= weight;
        last = index;
    }
    // Rounding can leave a little.
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [0.5, 2.0, -1.0, 1.0, f32::NEG_INFINITY];

    fn sampled(seed: u64, temperature: f64, top_p: Option<f64>, n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(seed, Some(temperature), top_p);
        (0..n).map(|_| sampler.choose(&LOGITS).unwrap()).collect()
    }

    /// Counts against n times the probabilities, within 4.5 standard deviations: a right sampler fails once in 10^5.
    fn assert_frequencies(tokens: &[u32], probabilities: &[f64]) {
        for (token, p) in probabilities.iter().enumerate() {
            let n = tokens.len() as f64;
            let count = tokens.iter().filter(|t| **t as usize == token).count() as f64;
            assert!((count - n * p).abs() <= 4.5 * (n * p * (1.0 - p)).sqrt(), "token {token}: {count} of {n}, p {p}");
        }
    }

    fn softmax(temperature: f64) -> Vec<f64> {
        let weights = LOGITS.map(|l| (f64::from(l) / temperature).exp());
        weights.iter().map(|w| w / weights.iter().sum::<f64>()).collect()
    }

    #[test]
    fn tokens_come_as_often_as_softmax_says() {
        for temperature in [0.3, 1.0, 2.5] {
            assert_frequencies(&sampled(7, temperature, None, 20_000), &softmax(temperature));
        }
    }

    #[test]
    fn top_p_leaves_the_fewest_tokens_that_reach_it() {
        let p = softmax(1.0);
        // Token 1 has 0.61, token 3 has 0.22, token 0 has 0.14.
        assert!(sampled(1, 1.0, Some(0.6), 1000).iter().all(|&token| token == 1));
        let two = p[1] + p[3];
        assert_frequencies(&sampled(2, 1.0, Some(0.8), 20_000), &[0.0, p[1] / two, 0.0, p[3] / two, 0.0]);
        assert_eq!(sampled(3, 1.0, Some(1.0), 100), sampled(3, 1.0, None, 100));
    }

    #[test]
    fn the_likeliest_token_is_the_first_of_the_largest() {
        for temperature in [None, Some(0.0), Some(1e-9)] {
            let mut sampler = Sampler::new(0, temperature, None);
            assert_eq!(sampler.choose(&LOGITS).unwrap(), 1);
            assert_eq!(sampler.choose(&[1.0, 3.0, f32::NAN, 3.0]).unwrap(), 1);
        }
        // So cold that nothing else has a chance, but above what counts as zero.
        assert!(sampled(5, 1e-6, None, 100).iter().all(|&token| token == 1));
    }

    /// An independent implementation on the same logits: the likeliest token, and which tokens `top_p` leaves.
    #[test]
    fn choices_agree_with_candle_transformers() {
        use candle_core::{Device, Tensor};
        use candle_transformers::generation::LogitsProcessor;
        let mut random = Random(9);
        for round in 0..50 {
            let logits: Vec<f32> = (0..40).map(|_| (8.0 * random.next_unit()) as f32).collect();
            let tensor = Tensor::new(logits.as_slice(), &Device::Cpu).unwrap();
            let theirs = LogitsProcessor::new(0, None, None).sample(&tensor).unwrap();
            assert_eq!(Sampler::new(0, None, None).choose(&logits).unwrap(), theirs);
            let (mut ours, mut theirs) = (Sampler::new(round, Some(1.0), Some(0.5)), [false; 40]);
            let mut processor = LogitsProcessor::new(round, Some(1.0), Some(0.5));
            (0..2000).for_each(|_| theirs[processor.sample(&tensor).unwrap() as usize] = true);
            for _ in 0..200 {
                let token = ours.choose(&logits).unwrap();
                assert!(theirs[token as usize], "round {round}: token {token} is not among the likeliest");
            }
        }
    }

    #[test]
    fn logits_without_a_choice_are_an_error() {
        for temperature in [None, Some(1.0)] {
            let mut sampler = Sampler::new(0, temperature, None);
            for logits in [&[][..], &[f32::NAN; 3], &[f32::NEG_INFINITY; 3], &[0.0, f32::INFINITY]] {
                assert!(matches!(sampler.choose(logits), Err(Error::LogitsNotFinite)), "{logits:?}");
            }
        }
        assert!(matches!(Sampler::new(0, Some(1.0), None).choose(&[0.0, f32::NAN]), Err(Error::LogitsNotFinite)));
    }

    #[test]
    fn a_seed_gives_the_same_tokens_for_ever() {
        // The first numbers of SplitMix64 from seed 1234567, as published with its reference implementation.
        let mut random = Random(1_234_567);
        let numbers = [6457827717110365317, 3203168211198807973, 9817491932198370423];
        assert_eq!([random.next(), random.next(), random.next()], numbers);
        assert_eq!(sampled(42, 1.0, None, 8), sampled(42, 1.0, None, 8));
        assert_ne!(sampled(42, 1.0, None, 100), sampled(43, 1.0, None, 100));
    }
}
