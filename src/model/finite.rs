//! What a pass computes must be finite: once it is not, everything after it means nothing, and softmax and norms would
//! hide that behind numbers that look like others. One reduced value a tensor is looked at, and only where that is not
//! finite the tensor itself.

use candle_core::Tensor;

use super::hook_point::HookPoint;
use crate::error::{Error, Result};

/// The first value of `tensor` that is NaN or infinite, and where.
///
/// # Cost
/// One sum; another pass only where that is not finite.
fn first_not_finite(tensor: &Tensor) -> Result<Option<(usize, f32)>> {
    // Whatever is added to NaN or an infinity stays one of them.
    if tensor.elem_count() == 0 || tensor.sum_all()?.to_scalar::<f32>()?.is_finite() {
        return Ok(None);
    }
    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.iter().position(|value| !value.is_finite()).map(|index| (index, values[index])))
}

/// Checks a tensor that stands at a hook point. `starts` are the positions that each sequence had before. `[batch]`
///
/// # Shapes
/// `tensor` `[batch, n_pos, ..]`.
///
/// # Errors
/// [`Error::ComputedNotFinite`]; those of the tensor operations.
pub(super) fn check_finite(point: HookPoint, tensor: &Tensor, starts: &[usize]) -> Result<()> {
    let Some((index, value)) = first_not_finite(tensor)? else { return Ok(()) };
    let (batch, n_pos) = (tensor.dim(0)?, tensor.dim(1)?);
    let at = index / (tensor.elem_count() / (batch * n_pos));
    let (sequence, pos) = (at / n_pos, at % n_pos);
    let start = starts.get(sequence).copied().unwrap_or(0);
    let of = if batch > 1 { format!(" of sequence {sequence}") } else { String::new() };
    let layer = point.layer().map_or(String::new(), |layer| format!(" (layer {layer})"));
    Err(Error::ComputedNotFinite { quantity: format!("`{point}`{layer} at position {}{of}", start + pos), value })
}

/// Checks the residual stream after a layer; where it is not finite, `on_the_way` is looked at for where that began.
///
/// # Errors
/// As [`check_finite`].
pub(super) fn check_layer(
    after: (HookPoint, &Tensor),
    on_the_way: &[(HookPoint, &Tensor)],
    starts: &[usize],
) -> Result<()> {
    if first_not_finite(after.1)?.is_none() {
        return Ok(());
    }
    on_the_way.iter().chain([&after]).try_for_each(|&(point, tensor)| check_finite(point, tensor, starts))
}

/// Checks values that stand at no hook point.
///
/// # Errors
/// As [`check_finite`].
pub(crate) fn check_values(quantity: impl FnOnce() -> String, tensor: &Tensor) -> Result<()> {
    match first_not_finite(tensor)? {
        Some((_, value)) => Err(Error::ComputedNotFinite { quantity: quantity(), value }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn large_values_are_finite_and_the_first_that_is_not_is_named_with_its_place() {
        let check = |values: Vec<f32>| {
            let tensor = Tensor::from_vec(values, (2, 2, 2), &Device::Cpu).unwrap();
            check_finite(HookPoint::ResidPre(3), &tensor, &[0, 5])
        };
        // Their sum is infinite, they are not.
        check(vec![3e38; 8]).unwrap();
        let mut values = vec![0.0; 8];
        values[7] = f32::INFINITY;
        let message = check(values.clone()).unwrap_err().to_string();
        assert!(message.contains("blocks.3.hook_resid_pre") && message.contains("(layer 3)"), "{message}");
        assert!(message.contains("position 6 of sequence 1 is inf"), "{message}");
        // Infinities that cancel are no number either.
        values[0] = f32::NEG_INFINITY;
        assert!(check(values).unwrap_err().to_string().contains("position 0 of sequence 0 is -inf"));
    }
}
