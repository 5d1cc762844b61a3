//! What moves the rows of parameters. Everything here is inlined into functions that [`wide!`](crate::ops::wide) compiles.

/// What one step of Adam does to the parameters of a row (Kingma and Ba 2015).
#[derive(Clone, Copy, Debug)]
pub(super) struct AdamStep {
    /// The step size, the first moment's bias correction in it.
    size: f32,
    /// The second moment's.
    correction: f32,
    decay: (f32, f32),
    fresh: (f32, f32),
}

/// Decay of the first and second moments a step, and what keeps the root from zero.
pub(super) const BETAS: (f64, f64) = (0.9, 0.999);
const EPSILON: f32 = 1e-8;

impl AdamStep {
    /// Step number `step` (from 1 on) with step size `lr`, for a row whose moments are `gap` steps old: in the steps
    /// between, the row had no gradient. Its moments decay as they would have; what they would have moved the row by is
    /// left out ("sparse Adam").
    #[inline(always)]
    pub(super) fn new(lr: f64, step: u32, gap: u32) -> Self {
        let decayed = |beta: f64| beta.powi(gap.min(i32::MAX as u32) as i32) as f32;
        let of_step = |beta: f64| 1.0 - beta.powi(step.min(i32::MAX as u32) as i32);
        Self {
            size: (lr / of_step(BETAS.0)) as f32,
            correction: (1.0 / of_step(BETAS.1)) as f32,
            decay: (decayed(BETAS.0), decayed(BETAS.1)),
            fresh: ((1.0 - BETAS.0) as f32, (1.0 - BETAS.1) as f32),
        }
    }

    /// Moves parameters against their gradient.
    #[inline(always)]
    pub(super) fn apply(&self, values: &mut [f32], moments: (&mut [f32], &mut [f32]), gradient: &[f32]) {
        let rows = values.iter_mut().zip(moments.0).zip(moments.1).zip(gradient);
        for (((value, first), second), &gradient) in rows {
            *first = first.mul_add(self.decay.0, self.fresh.0 * gradient);
            *second = second.mul_add(self.decay.1, self.fresh.1 * gradient * gradient);
            *value -= self.size * *first / ((*second * self.correction).sqrt() + EPSILON);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_was_left_out_has_the_moments_of_steps_without_a_gradient() {
        let (mut value, mut first, mut second) = (vec![1.0f32], vec![0.0f32], vec![0.0f32]);
        AdamStep::new(0.01, 1, 1).apply(&mut value, (&mut first, &mut second), &[2.0]);
        // The first step moves by the step size, whatever the gradient.
        assert!((value[0] - 0.99).abs() < 1e-6);
        let (mut dense_first, mut dense_second) = (first.clone(), second.clone());
        for step in 2..=4 {
            AdamStep::new(0.0, step, 1).apply(&mut [0.0], (&mut dense_first, &mut dense_second), &[0.0]);
        }
        AdamStep::new(0.0, 5, 1).apply(&mut [0.0], (&mut dense_first, &mut dense_second), &[-1.0]);
        AdamStep::new(0.01, 5, 4).apply(&mut value, (&mut first, &mut second), &[-1.0]);
        assert!((first[0] - dense_first[0]).abs() < 1e-6 && (second[0] - dense_second[0]).abs() < 1e-8);
    }
}
