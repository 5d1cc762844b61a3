//! What files of other programs say of a feature, whatever their format.

/// A feature as another program knows it. Files may tell it in several pieces.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Foreign {
    pub examples: Vec<ForeignExample>,
    /// Tokens whose logits it raises most, strongest first.
    pub top: Vec<String>,
    /// Tokens whose logits it lowers most.
    pub bottom: Vec<String>,
    /// The largest activation.
    pub max: Option<f32>,
    /// The share of positions where it is active.
    pub frequency: Option<f64>,
    /// (start, end, count) of each bin of its activations.
    pub histogram: Vec<(f32, f32, f64)>,
    /// What it is called: how much the name is to be preferred, lower first, and the name.
    pub label: Option<(u8, String)>,
}

/// Tokens with activations.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ForeignExample {
    pub tokens: Vec<String>,
    /// As many as tokens.
    pub values: Vec<f32>,
    /// The example's own token.
    pub at: usize,
    /// Whether it is one of the strongest; where nobody says, its rank does.
    pub is_top: Option<bool>,
}

impl ForeignExample {
    /// Checks what was read.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn new(
        tokens: Vec<String>,
        values: Vec<f32>,
        at: Option<usize>,
        is_top: Option<bool>,
    ) -> Result<Self, String> {
        if tokens.len() != values.len() {
            return Err(format!("an example has {} tokens and {} activations", tokens.len(), values.len()));
        }
        if let Some(i) = values.iter().position(|value| !value.is_finite()) {
            return Err(format!("an example's activation at {i} is {}", values[i]));
        }
        let strongest = (0..values.len()).reduce(|a, b| if values[b] > values[a] { b } else { a });
        let Some(at) = at.or(strongest) else { return Err("an example has no tokens".to_owned()) };
        if at >= tokens.len() {
            return Err(format!("an example's own token is {at} of {} tokens", tokens.len()));
        }
        Ok(Self { tokens, values, at, is_top })
    }
}

/// The number of a feature that circuit-tracer's files are named by, read back: (layer, feature).
pub(super) fn cantor_unpair(number: u64) -> Option<(usize, usize)> {
    // The largest w with w·(w + 1)/2 <= number; the root may be off by one.
    let mut w = (((8.0 * number as f64 + 1.0).sqrt() - 1.0) / 2.0) as u64;
    let triangle = |w: u64| w.checked_mul(w + 1).map(|twice| twice / 2);
    while triangle(w)? > number {
        w -= 1;
    }
    while triangle(w + 1)? <= number {
        w += 1;
    }
    let feature = number - triangle(w)?;
    Some((usize::try_from(w - feature).ok()?, usize::try_from(feature).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cantor_numbers_read_back() {
        let pair = |layer: u64, feature: u64| (layer + feature) * (layer + feature + 1) / 2 + feature;
        for (layer, feature) in [(0, 0), (0, 82), (2, 3), (25, 16_383), (61, 1 << 20), (0, 1 << 26)] {
            assert_eq!(cantor_unpair(pair(layer, feature)), Some((layer as usize, feature as usize)));
        }
        assert_eq!(
            cantor_unpair(2_305_458).map(|(layer, feature)| pair(layer as u64, feature as u64)),
            Some(2_305_458)
        );
        assert!(cantor_unpair(u64::MAX).is_none_or(|(layer, _)| layer > 0));
    }

    #[test]
    fn examples_that_cannot_be_are_refused() {
        let example = |n: usize, values: &[f32], at| {
            ForeignExample::new(vec!["a".into(); n], values.to_vec(), at, None).map(|example| example.at)
        };
        assert_eq!(example(3, &[0.0, 2.0, 1.0], None), Ok(1));
        assert_eq!(example(3, &[0.0, 2.0, 1.0], Some(2)), Ok(2));
        assert!(example(3, &[0.0], None).unwrap_err().contains("3 tokens and 1 activations"));
        assert!(example(1, &[0.0], Some(1)).is_err());
        assert!(example(1, &[f32::NAN], None).is_err());
        assert!(example(0, &[], None).is_err());
    }
}
