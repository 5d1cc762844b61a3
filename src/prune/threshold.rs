//! The score at which a cumulative share is reached, for nodes by sorting them, for edges by a selection.

/// Leading bits of a positive f64 that name its bin: 11 of exponent, 6 of mantissa. Scores of one bin differ by less
/// than 1.6 %, so that few are left to sort.
const BIN_BITS: u32 = 17;
const BIN_SHIFT: u32 = 63 - BIN_BITS;

/// Scores this close, relative to themselves, count as equal. Equal scores are common, since a node with one input passes
/// its influence on whole; rounding, some 1e-15, must not tell them apart.
const TIE_RTOL: f64 = 1e-9;

/// The smallest score that is kept, and the cumulative share at the rank of every score.
///
/// Equal scores rank by index. Where no score is above zero, nothing is kept.
pub(super) fn node_threshold(scores: &[f64], threshold: f64) -> (f64, Vec<f64>) {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let total: f64 = order.iter().map(|&index| scores[index]).sum();
    let mut cumulative = vec![if total > 0.0 { 0.0 } else { 1.0 }; scores.len()];
    let mut smallest = f64::INFINITY;
    let mut is_reached = false;
    let mut sum = 0.0;
    for index in order {
        sum += scores[index];
        if total > 0.0 {
            cumulative[index] = sum / total;
        }
        if !is_reached && scores[index] > 0.0 {
            smallest = scores[index];
            is_reached = sum / total >= threshold;
        }
    }
    (smallest * (1.0 - TIE_RTOL), cumulative)
}

/// Sums of positive scores by magnitude.
pub(super) struct ScoreHistogram {
    /// The first bin that `sums` covers: scores span few of all magnitudes.
    first: usize,
    sums: Vec<f64>,
}

/// The bin in which the wanted share is reached.
#[derive(Debug, Clone, Copy)]
pub(super) struct ThresholdBin {
    bin: usize,
    /// What the scores of this bin still have to add up to.
    missing: f64,
}

fn bin_of(score: f64) -> usize {
    (score.to_bits() >> BIN_SHIFT) as usize
}

impl ScoreHistogram {
    pub(super) fn new() -> ScoreHistogram {
        ScoreHistogram { first: 0, sums: Vec::new() }
    }

    /// Adds a score above zero.
    #[inline]
    pub(super) fn add(&mut self, score: f64) {
        self.add_to_bin(bin_of(score), score);
    }

    fn add_to_bin(&mut self, bin: usize, sum: f64) {
        if self.sums.is_empty() {
            self.first = bin;
        }
        if bin < self.first {
            let missing = self.first - bin;
            self.sums.splice(0..0, std::iter::repeat_n(0.0, missing));
            self.first = bin;
        }
        let place = bin - self.first;
        if place >= self.sums.len() {
            self.sums.resize(place + 1, 0.0);
        }
        self.sums[place] += sum;
    }

    /// Adds up `blocks` in their order.
    pub(super) fn merge(blocks: Vec<ScoreHistogram>) -> ScoreHistogram {
        let mut merged = ScoreHistogram::new();
        for block in blocks {
            for (place, &sum) in block.sums.iter().enumerate() {
                if sum > 0.0 {
                    merged.add_to_bin(block.first + place, sum);
                }
            }
        }
        merged
    }

    /// The bin in which the cumulative share, from the largest score down, reaches `threshold`; `None` without scores.
    pub(super) fn bin_at(&self, threshold: f64) -> Option<ThresholdBin> {
        let total: f64 = self.sums.iter().rev().sum();
        let wanted = threshold * total;
        let mut sum = 0.0;
        let mut last = None;
        for (place, &bin_sum) in self.sums.iter().enumerate().rev().filter(|(_, sum)| **sum > 0.0) {
            last = Some(ThresholdBin { bin: self.first + place, missing: wanted - sum });
            sum += bin_sum;
            if sum >= wanted {
                break;
            }
        }
        last
    }
}

impl ThresholdBin {
    #[inline]
    pub(super) fn contains(&self, score: f64) -> bool {
        bin_of(score) == self.bin
    }

    /// The smallest score that is kept, given all scores of this bin.
    pub(super) fn threshold(&self, scores: Vec<f64>) -> f64 {
        smallest_reaching(scores, |_| self.missing)
    }
}

/// The smallest score that is kept of scores that are all at hand: the i-th largest, where the largest ones first make up
/// the share `threshold`, and all that equal it.
pub(super) fn smallest_kept(scores: &[f64], threshold: f64) -> f64 {
    smallest_reaching(scores.to_vec(), |total| threshold * total)
}

/// The score with which the sum of the largest reaches what is wanted, given the sum of all; a little less, since equal
/// scores may differ in rounding.
fn smallest_reaching(mut scores: Vec<f64>, wanted: impl Fn(f64) -> f64) -> f64 {
    scores.sort_unstable_by(|a, b| b.total_cmp(a));
    let wanted = wanted(scores.iter().sum());
    let mut sum = 0.0;
    for &score in &scores {
        sum += score;
        if sum >= wanted {
            return score * (1.0 - TIE_RTOL);
        }
    }
    // Rounding of sums in another order: all of them are needed.
    scores.last().map_or(f64::INFINITY, |score| score * (1.0 - TIE_RTOL))
}

/// Rounding of the difference of two shares.
const SHARE_ROUNDING: f64 = 4.0 * f64::EPSILON;

/// The largest cumulative share that is kept: the first that reaches `threshold`, and those after it whose steps equal its
/// own. `shares` ascend.
pub(super) fn largest_kept_share(shares: &[f64], threshold: f64) -> f64 {
    let reached = shares.partition_point(|&share| share < threshold);
    let step = |at: usize| shares[at] - at.checked_sub(1).map_or(0.0, |before| shares[before]);
    let Some(&first) = shares.get(reached) else { return f64::INFINITY };
    let score = step(reached);
    let is_equal = |at: &usize| (step(*at) - score).abs() <= (score * TIE_RTOL).max(SHARE_ROUNDING);
    (reached + 1..shares.len()).take_while(is_equal).last().map_or(first, |at| shares[at])
}
