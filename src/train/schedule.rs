//! What changes while training goes on, as functions of how much of it is done.

/// Steps of warm-up, in short runs this share of them, and the share over which the step size falls again.
const WARM_UP_STEPS: f64 = 200.0;
const WARM_UP_SHARE: f64 = 0.05;
const DECAY_SHARE: f64 = 0.2;
/// The step size at the end, of its full size.
const LAST_STEP_SIZE: f64 = 0.02;

/// Features that are kept at the beginning, of those that are wanted, and the share of the run after which there are no
/// more than those.
const FIRST_L0: f64 = 4.0;
const ANNEALED_SHARE: f64 = 1.0 / 3.0;

/// The factor of the step size at step `step` (from 1 on), with a share `done` of the run behind it.
pub(super) fn step_size(step: u32, done: f64) -> f64 {
    let warm = (f64::from(step) / WARM_UP_STEPS).max(done / WARM_UP_SHARE).min(1.0);
    let left = ((1.0 - done) / DECAY_SHARE).clamp(LAST_STEP_SIZE, 1.0);
    warm * left
}

/// Active features a token, `l0` being the number that is wanted at the end.
pub(super) fn wanted_l0(l0: f64, done: f64) -> f64 {
    let left = (1.0 - done / ANNEALED_SHARE).clamp(0.0, 1.0);
    l0 * (1.0 + (FIRST_L0 - 1.0) * left)
}

/// Whether thresholds are being learnt: where the step size falls.
pub(super) fn learns_thresholds(done: f64) -> bool {
    done >= 1.0 - DECAY_SHARE
}

/// Whether dead features are placed anew between two shares of the run.
pub(super) fn resamples_between(before: f64, after: f64) -> bool {
    before < ANNEALED_SHARE && after >= ANNEALED_SHARE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_size_rises_stays_and_falls() {
        assert!((step_size(20, 0.0) - 0.1).abs() < 1e-9);
        assert!((step_size(3, 0.025) - 0.5).abs() < 1e-9, "a short run warms up in a twentieth of its steps");
        assert!((step_size(1000, 0.5) - 1.0).abs() < 1e-9);
        assert!((step_size(1000, 0.9) - 0.5).abs() < 1e-9);
        assert!((step_size(1000, 1.0) - 0.02).abs() < 1e-9);
    }

    #[test]
    fn features_are_annealed_to_the_wanted_number() {
        assert!((wanted_l0(32.0, 0.0) - 128.0).abs() < 1e-9);
        assert!((wanted_l0(32.0, 1.0 / 6.0) - 80.0).abs() < 1e-9);
        assert!((wanted_l0(32.0, 0.4) - 32.0).abs() < 1e-9);
        assert!(resamples_between(0.33, 0.34) && !resamples_between(0.34, 0.5));
    }
}
