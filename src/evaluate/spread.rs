//! Means and quantiles.

use serde::{Deserialize, Serialize};

/// How values are spread. A quantile is the smallest value that at least so large a part of them does not exceed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Their mean.
    pub mean: f64,
    /// A quarter is not above this.
    pub lower_quartile: f64,
    /// Half is not above this.
    pub median: f64,
    /// Three quarters are not above this.
    pub upper_quartile: f64,
}

impl Spread {
    /// Of values in any order; `None` where there are none.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        values.sort_by(f64::total_cmp);
        let quantile = |part: f64| values.get(rank(part, values.len() as u64) as usize).copied();
        Some(Self { mean, lower_quartile: quantile(0.25)?, median: quantile(0.5)?, upper_quartile: quantile(0.75)? })
    }
}

/// The place of a quantile among `n` values in order, from 0.
pub(super) fn rank(part: f64, n: u64) -> u64 {
    ((part * n as f64).ceil() as u64).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_so_many_do_not_exceed() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(spread, Spread { mean: 2.5, lower_quartile: 1.0, median: 2.0, upper_quartile: 3.0 });
        let one = Spread::of([7.0]).unwrap();
        assert_eq!(one, Spread { mean: 7.0, lower_quartile: 7.0, median: 7.0, upper_quartile: 7.0 });
        assert_eq!(Spread::of([]), None);
        assert_eq!((rank(0.05, 100), rank(0.95, 100), rank(1.0, 100)), (4, 94, 99));
    }
}
