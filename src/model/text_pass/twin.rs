//! A text pass by way of the forward pass that everything else uses.

use std::ops::Range;

use candle_core::Tensor;

use super::{SLAB_ROWS, TextVisitor, fitting};
use crate::error::Result;
use crate::job::Job;
use crate::model::Model;
use crate::model::hook_point::HookPoint;
use crate::model::hooks::Hooks;

/// As [`TextPass::run`](super::TextPass::run), in f32.
///
/// # Errors
/// Those of the pass and of the visitor.
pub(super) fn run(
    model: &Model,
    last_layer: usize,
    sequences: &[&[u32]],
    visitor: &mut dyn TextVisitor,
    job: &Job,
) -> Result<()> {
    let mut start = 0;
    while start < sequences.len() {
        let end = start + fitting(&sequences[start..], SLAB_ROWS);
        let tokens: Vec<Vec<u32>> = sequences[start..end].iter().map(|tokens| tokens.to_vec()).collect();
        let lengths: Vec<usize> = tokens.iter().map(Vec::len).collect();
        model.forward_through(
            last_layer,
            &tokens,
            &mut WithoutPadding { visitor, lengths, places: start..end },
            job,
        )?;
        start = end;
    }
    Ok(())
}

/// Shows the rows of a batch's tokens, and not what it is padded with.
struct WithoutPadding<'a> {
    visitor: &'a mut dyn TextVisitor,
    /// Tokens of each sequence.
    lengths: Vec<usize>,
    /// Which sequences they are.
    places: Range<usize>,
}

impl Hooks for WithoutPadding<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        self.visitor.wants(point)
    }

    fn see(&mut self, point: HookPoint, tensor: &Tensor) -> Result<Option<Tensor>> {
        let (_, n_pos, d_model) = tensor.dims3()?;
        let padded = tensor.flatten_all()?.to_vec1::<f32>()?;
        let of_sequences = padded.chunks(n_pos * d_model).zip(&self.lengths);
        let rows: Vec<f32> = of_sequences.flat_map(|(rows, &n)| &rows[..n * d_model]).copied().collect();
        self.visitor.see(point, rows, self.places.clone())?;
        Ok(None)
    }
}
