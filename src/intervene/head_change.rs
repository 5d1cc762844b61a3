//! Heads, changed: what a head reads of the values, before `W_O`, is replaced.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use candle_core::{Device, Tensor};

use super::change::{Mode, Positions};
use crate::error::{Error, Result};
use crate::graph::Head;
use crate::job::Job;
use crate::model::{Activations, HookPoint, Hooks};
use crate::replacement::Replacement;

/// What a head writes instead.
#[derive(Clone, Debug, PartialEq)]
pub enum HeadChange {
    /// Nothing: its own biases are gone too.
    Zero,
    /// The same everywhere: the mean over the prompt's positions, the excluded ones left out, in the original run.
    Mean,
    /// What it writes at the same position of another prompt, of as many tokens.
    Like(String),
}

/// One head, changed.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadIntervention {
    /// The head.
    pub head: Head,
    /// Where it writes.
    pub positions: Positions,
    /// What it writes instead.
    pub change: HeadChange,
}

impl fmt::Display for HeadIntervention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "head {}@{}", self.head, self.positions)?;
        match &self.change {
            HeadChange::Zero => f.write_str("=0"),
            HeadChange::Mean => f.write_str("=mean"),
            HeadChange::Like(prompt) => write!(f, " as in {prompt:?}"),
        }
    }
}

/// A head and its positions, as they are written: `18.6`, which is everywhere, `18.6@7`, `18.6@4..7`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadSpec {
    /// The head.
    pub head: Head,
    /// Where it writes.
    pub positions: Positions,
}

impl FromStr for HeadSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (head, positions) = match text.split_once('@') {
            Some((head, positions)) => (head, positions.parse()?),
            None => (text, Positions::All),
        };
        let wrong = || Error::Spec {
            text: text.to_owned(),
            expected: "LAYER.HEAD or LAYER.HEAD@POSITIONS, such as 18.6 or 18.6@7",
        };
        Ok(HeadSpec { head: head.parse().map_err(|_| wrong())?, positions })
    }
}

impl HeadSpec {
    /// This head, changed.
    pub fn changed(self, change: HeadChange) -> HeadIntervention {
        HeadIntervention { head: self.head, positions: self.positions, change }
    }
}

/// What a changed head reads instead.
#[derive(Clone, Debug)]
enum Values {
    /// The same everywhere. `[d_head]`
    Everywhere(Vec<f32>),
    /// By position of the prompt. `[n_prompt][d_head]`
    ByPosition(Vec<Vec<f32>>),
}

#[derive(Clone, Debug)]
struct HeadEdit {
    /// `None`: all of the batch.
    alternative: Option<usize>,
    head: usize,
    positions: Positions,
    values: Values,
}

/// Changed heads by layer, in the order in which they were given: a later one replaces an earlier one.
#[derive(Clone, Debug, Default)]
pub(super) struct HeadEdits {
    layers: BTreeMap<usize, Vec<HeadEdit>>,
    n_prompt: usize,
    n_excluded: usize,
}

impl HeadEdits {
    /// Checks the changes and runs the prompts that they read from. `changes` with their alternative.
    ///
    /// # Errors
    /// Heads and positions that do not exist; [`Error::PromptLengths`]; those of a forward pass.
    pub fn new<'a>(
        replacement: &Replacement,
        tokens: &[u32],
        changes: impl Iterator<Item = (Option<usize>, &'a HeadIntervention)>,
        job: &Job,
    ) -> Result<Self> {
        let model = &replacement.model;
        let n_excluded = replacement.n_excluded(tokens);
        let mut edits = HeadEdits { layers: BTreeMap::new(), n_prompt: tokens.len(), n_excluded };
        let mut reads: BTreeMap<Option<&str>, Activations> = BTreeMap::new();
        let changes: Vec<(Option<usize>, &HeadIntervention)> = changes.collect();
        for (_, change) in &changes {
            check(replacement, change, tokens.len())?;
            let prompt = match &change.change {
                HeadChange::Zero => continue,
                HeadChange::Mean => None,
                HeadChange::Like(prompt) => Some(prompt.as_str()),
            };
            if reads.contains_key(&prompt) {
                continue;
            }
            let other = match prompt {
                Some(text) => {
                    let other = replacement.tokenizer.encode_prompt(text)?;
                    model.check_tokens(&other)?;
                    if other.len() != tokens.len() {
                        let (here, there) = (tokens.len(), other.len());
                        return Err(Error::PromptLengths { here, there, other: format!("{text:?}") });
                    }
                    other
                }
                None => tokens.to_vec(),
            };
            let of_prompt = changes.iter().map(|(_, change)| change.head.layer as usize);
            let last = of_prompt.clone().max().unwrap_or(0);
            let mut kept = Activations::at(of_prompt.map(HookPoint::AttnZ));
            model.forward_through(last, &[other], &mut kept, job)?;
            reads.insert(prompt, kept);
        }
        for (alternative, change) in changes {
            let (layer, head) = (change.head.layer as usize, change.head.head as usize);
            let read = |prompt: Option<&str>| -> Result<Vec<Vec<f32>>> {
                let kept =
                    reads.get(&prompt).ok_or_else(|| Error::NotKept { point: HookPoint::AttnZ(layer).to_string() })?;
                let z = kept.need(HookPoint::AttnZ(layer))?.squeeze(0)?.narrow(1, head, 1)?.squeeze(1)?;
                Ok(z.to_device(&Device::Cpu)?.to_vec2()?)
            };
            let values = match &change.change {
                HeadChange::Zero => Values::Everywhere(vec![0.0; model.config.d_head]),
                HeadChange::Mean => {
                    let rows = read(None)?;
                    let rows = &rows[n_excluded.min(rows.len() - 1)..];
                    let mean = |i: usize| rows.iter().map(|row| row[i]).sum::<f32>() / rows.len() as f32;
                    Values::Everywhere((0..model.config.d_head).map(mean).collect())
                }
                HeadChange::Like(prompt) => Values::ByPosition(read(Some(prompt))?),
            };
            let edit = HeadEdit { alternative, head, positions: change.positions, values };
            edits.layers.entry(layer).or_default().push(edit);
        }
        Ok(edits)
    }

    /// These, and after them `others`, of the same prompt.
    pub fn and(&self, others: HeadEdits) -> HeadEdits {
        let mut both =
            HeadEdits { layers: self.layers.clone(), n_prompt: others.n_prompt, n_excluded: others.n_excluded };
        for (layer, edits) in others.layers {
            both.layers.entry(layer).or_default().extend(edits);
        }
        both
    }

    /// The lowest layer whose heads are changed.
    pub fn first_layer(&self) -> Option<usize> {
        self.layers.keys().next().copied()
    }

    /// As hooks of a pass over the positions of `window`; layers that `mode` does not let act are left alone.
    pub fn hooks(&self, mode: &Mode, n_layers: usize, window: Range<usize>) -> HeadHooks<'_> {
        HeadHooks { edits: self, acting: mode.constrained_layers(n_layers).unwrap_or(0..n_layers), window }
    }
}

/// # Errors
/// [`Error::NoSuchLayer`], [`Error::NoSuchHead`], positions that the prompt does not have.
fn check(replacement: &Replacement, change: &HeadIntervention, n_prompt: usize) -> Result<()> {
    let config = &replacement.model.config;
    let (layer, head) = (change.head.layer as usize, change.head.head as usize);
    if layer >= config.n_layers {
        return Err(Error::NoSuchLayer { layer, n_layers: config.n_layers });
    }
    if head >= config.n_heads {
        return Err(Error::NoSuchHead { layer, head, n_heads: config.n_heads });
    }
    change.positions.check(n_prompt)
}

/// Changed heads of one pass.
#[derive(Debug)]
pub(super) struct HeadHooks<'a> {
    edits: &'a HeadEdits,
    acting: Range<usize>,
    window: Range<usize>,
}

impl Hooks for HeadHooks<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        matches!(point, HookPoint::AttnZ(layer) if self.acting.contains(&layer) && self.edits.layers.contains_key(&layer))
    }

    fn see(&mut self, point: HookPoint, tensor: &Tensor) -> Result<Option<Tensor>> {
        let Some(edits) = point.layer().and_then(|layer| self.edits.layers.get(&layer)) else { return Ok(None) };
        let (batch, n_pos, n_heads, d_head) = tensor.dims4()?;
        let mut values: Vec<f32> = tensor.flatten_all()?.to_device(&Device::Cpu)?.to_vec1()?;
        for edit in edits {
            let (n_prompt, n_excluded) = (self.edits.n_prompt, self.edits.n_excluded);
            for pos in edit.positions.within(self.window.clone(), n_prompt, n_excluded) {
                let wanted = match &edit.values {
                    Values::Everywhere(values) => values,
                    // The other prompt ends where this one does.
                    Values::ByPosition(rows) => match rows.get(pos) {
                        Some(row) => row,
                        None => continue,
                    },
                };
                for alternative in (0..batch).filter(|&at| edit.alternative.is_none_or(|wanted| wanted == at)) {
                    let at = ((alternative * n_pos + pos - self.window.start) * n_heads + edit.head) * d_head;
                    values[at..at + d_head].copy_from_slice(wanted);
                }
            }
        }
        Ok(Some(Tensor::from_vec(values, tensor.shape(), tensor.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_and_their_positions_are_read_as_they_are_written() {
        for (text, shown) in [
            ("18.6", "head 18.6@*=0"),
            ("18.6@7", "head 18.6@7=0"),
            ("0.0@4..7", "head 0.0@4..7=0"),
            ("1.2@3..", "head 1.2@3..=0"),
        ] {
            assert_eq!(text.parse::<HeadSpec>().unwrap().changed(HeadChange::Zero).to_string(), shown);
        }
        for text in ["", "18", "18.", "x.6", "18.6@", "18.6@x", "18.6@7..4", "-1.2"] {
            assert!(text.parse::<HeadSpec>().is_err(), "{text:?}");
        }
    }
}
