//! What an intervention is: a feature, the positions it is changed at, and to what (definitions 9).

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::error::{Error, Result};

/// The positions that an intervention is applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// One position of the prompt.
    At(usize),
    /// Positions `start..end` of the prompt, `end` not among them.
    Range {
        /// The first position.
        start: usize,
        /// The first position after the range.
        end: usize,
    },
    /// All positions from here on, generated tokens included.
    From(usize),
    /// All positions that have features (all but BOS), generated tokens included.
    All,
}

/// What a feature's activation becomes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// This value; 0 ablates.
    Set(f32),
    /// This many times its activation: that of the original run in the prompt, its current one in generated tokens.
    Scale(f32),
}

/// One feature, changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Intervention {
    /// The layer whose MLP the transcoder reads.
    pub layer: usize,
    /// Index among the features of the layer.
    pub feature: usize,
    /// Where.
    pub positions: Positions,
    /// What its activation becomes.
    pub change: Change,
}

/// What is held to the original run while the interventions act.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Nothing: everything is recomputed.
    #[default]
    Free,
    /// Attention patterns.
    FrozenAttention,
    /// Attention patterns and every norm's denominator; MLPs are recomputed.
    FrozenNorms,
    /// Attention patterns, and what the MLPs of these layers write; interventions act inside the range only. Over all
    /// layers also every norm's denominator, which leaves the direct effects alone.
    Constrained(Range<usize>),
    /// As `Constrained` over all layers.
    Direct,
}

impl Mode {
    /// The constrained layers, where the mode has such.
    pub fn constrained_layers(&self, n_layers: usize) -> Option<Range<usize>> {
        match self {
            Mode::Free | Mode::FrozenAttention | Mode::FrozenNorms => None,
            Mode::Constrained(range) => Some(range.clone()),
            Mode::Direct => Some(0..n_layers),
        }
    }

    /// # Errors
    /// A range that is empty or goes past the last layer.
    pub fn check(&self, n_layers: usize) -> Result<()> {
        match self {
            Mode::Constrained(range) if range.is_empty() => {
                Err(Error::EmptyRange { what: "constrained layers", start: range.start, end: range.end })
            }
            Mode::Constrained(range) if range.end > n_layers => {
                Err(Error::NoSuchLayer { layer: range.end - 1, n_layers })
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mode::Free => write!(f, "free"),
            Mode::FrozenAttention => write!(f, "frozen attention"),
            Mode::FrozenNorms => write!(f, "frozen attention and norms"),
            Mode::Constrained(range) => write!(f, "layers {}..{} constrained", range.start, range.end),
            Mode::Direct => write!(f, "direct"),
        }
    }
}

impl Positions {
    /// The positions among `window` that this stands for, in a prompt of `n_prompt` tokens whose first `n_excluded`
    /// have no features.
    pub fn within(self, window: Range<usize>, n_prompt: usize, n_excluded: usize) -> Range<usize> {
        let range = match self {
            Positions::At(pos) => pos..pos.saturating_add(1),
            Positions::Range { start, end } => start..end.min(n_prompt),
            Positions::From(start) => start..usize::MAX,
            Positions::All => n_excluded..usize::MAX,
        };
        let start = range.start.max(window.start);
        start..range.end.min(window.end).max(start)
    }

    /// # Errors
    /// Positions that the prompt does not have; an empty range.
    pub fn check(self, n_prompt: usize) -> Result<()> {
        let last = match self {
            Positions::At(pos) => pos,
            Positions::Range { start, end } if start >= end => {
                return Err(Error::EmptyRange { what: "positions", start, end });
            }
            Positions::Range { end, .. } => end - 1,
            // Past the prompt: generated tokens alone.
            Positions::From(start) if start == n_prompt => return Ok(()),
            Positions::From(start) => start,
            Positions::All => return Ok(()),
        };
        if last < n_prompt { Ok(()) } else { Err(Error::NoSuchPosition { pos: last, n_pos: n_prompt }) }
    }
}

impl fmt::Display for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Positions::At(pos) => write!(f, "{pos}"),
            Positions::Range { start, end } => write!(f, "{start}..{end}"),
            Positions::From(start) => write!(f, "{start}.."),
            Positions::All => write!(f, "*"),
        }
    }
}

impl FromStr for Positions {
    type Err = Error;

    /// `4`, `4..7` (7 not included), `4..`, or `*`.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::Spec { text: text.to_owned(), expected: "a position: 4, 4..7, 4.. or *" };
        if text == "*" {
            return Ok(Positions::All);
        }
        let number = |text: &str| text.parse::<usize>().map_err(|_| bad());
        match text.split_once("..") {
            None => number(text).map(Positions::At),
            Some((start, "")) => number(start).map(Positions::From),
            Some((start, end)) => {
                let (start, end) = (number(start)?, number(end)?);
                let positions = Positions::Range { start, end };
                if start < end { Ok(positions) } else { Err(Error::EmptyRange { what: "positions", start, end }) }
            }
        }
    }
}

/// A feature and its positions, as they are written: `L_F_P`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureSpec {
    /// The layer whose MLP the transcoder reads.
    pub layer: usize,
    /// Index among the features of the layer.
    pub feature: usize,
    /// Where.
    pub positions: Positions,
}

impl FeatureSpec {
    /// This feature, switched off.
    pub fn ablated(self) -> Intervention {
        self.changed(Change::Set(0.0))
    }

    /// This feature, changed.
    pub fn changed(self, change: Change) -> Intervention {
        Intervention { layer: self.layer, feature: self.feature, positions: self.positions, change }
    }
}

impl FromStr for FeatureSpec {
    type Err = Error;

    /// Layer, feature and positions, joined by underscores: `5_123_4`, `5_123_4..7`, `5_123_4..`, `5_123_*`.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::Spec { text: text.to_owned(), expected: "LAYER_FEATURE_POSITION, such as 5_123_4" };
        let mut parts = text.splitn(3, '_');
        let mut number = || parts.next()?.parse::<usize>().ok();
        let (layer, feature) = (number().ok_or_else(bad)?, number().ok_or_else(bad)?);
        let positions = parts.next().ok_or_else(bad)?.parse()?;
        Ok(FeatureSpec { layer, feature, positions })
    }
}

impl fmt::Display for FeatureSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}_{}", self.layer, self.feature, self.positions)
    }
}

impl fmt::Display for Intervention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}_{}", self.layer, self.feature, self.positions)?;
        match self.change {
            Change::Set(value) => write!(f, "={value}"),
            Change::Scale(factor) => write!(f, " x{factor}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_round_trip() {
        for text in ["5_123_4", "0_0_4..7", "5_123_4..", "5_123_*"] {
            assert_eq!(text.parse::<FeatureSpec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn bad_specs_are_refused() {
        for text in ["", "5", "5_1", "5_1_", "5_x_1", "5_1_2_3", "5_1_4..4", "5_1_7..4", "5_1_..4", "-1_2_3"] {
            assert!(text.parse::<FeatureSpec>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn open_ended_positions_reach_generated_tokens() {
        assert_eq!(Positions::From(3).within(0..6, 6, 1), 3..6);
        assert_eq!(Positions::From(3).within(6..7, 6, 1), 6..7);
        assert_eq!(Positions::All.within(0..6, 6, 1), 1..6);
        assert!(Positions::At(3).within(6..7, 6, 1).is_empty());
        assert!(Positions::Range { start: 3, end: 6 }.within(6..7, 6, 1).is_empty());
        // Found by fuzzing.
        assert!(Positions::At(usize::MAX).within(0..9, 9, 1).is_empty());
        assert_eq!(Positions::Range { start: 2, end: 4 }.within(0..6, 6, 1), 2..4);
    }
}
