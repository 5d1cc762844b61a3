//! What looks into a forward pass: reads tensors at hook points, replaces them, or gives them before they are computed.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::Layer;
use super::hook_point::HookPoint;
use crate::error::{Error, Result};

/// Looks into a forward pass. `()` looks at nothing; of a pair, the second sees what the first left behind.
pub trait Hooks {
    /// Whether the pass should come by at a point. Points that nobody wants cost nothing.
    fn wants(&self, point: HookPoint) -> bool;

    /// Asked at a wanted point before its tensor is computed: a tensor given here stands in its place, and nothing is
    /// computed that only it would need (a pattern spares queries and keys, an MLP's output the MLP). Not asked at
    /// embeddings, the residual stream, values and `z`, where there is nothing to spare.
    ///
    /// # Errors
    /// Those of the implementation.
    fn give(&mut self, _point: HookPoint) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// Gets the tensor at a wanted point, given or computed; a tensor of the same shape that it returns replaces it.
    ///
    /// # Errors
    /// Those of the implementation.
    fn see(&mut self, point: HookPoint, tensor: &Tensor) -> Result<Option<Tensor>>;

    /// Gets the weights of each layer as they are read, so that nobody who needs them too reads them twice.
    fn weights(&mut self, _layer: usize, _weights: &Layer) {}
}

impl Hooks for () {
    fn wants(&self, _: HookPoint) -> bool {
        false
    }

    fn see(&mut self, _: HookPoint, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(None)
    }
}

impl<H: Hooks + ?Sized> Hooks for &mut H {
    fn wants(&self, point: HookPoint) -> bool {
        (**self).wants(point)
    }

    fn give(&mut self, point: HookPoint) -> Result<Option<Tensor>> {
        (**self).give(point)
    }

    fn see(&mut self, point: HookPoint, tensor: &Tensor) -> Result<Option<Tensor>> {
        (**self).see(point, tensor)
    }

    fn weights(&mut self, layer: usize, weights: &Layer) {
        (**self).weights(layer, weights);
    }
}

impl<A: Hooks, B: Hooks> Hooks for (A, B) {
    fn wants(&self, point: HookPoint) -> bool {
        self.0.wants(point) || self.1.wants(point)
    }

    fn give(&mut self, point: HookPoint) -> Result<Option<Tensor>> {
        match given(&mut self.0, point)? {
            Some(tensor) => Ok(Some(tensor)),
            None => given(&mut self.1, point),
        }
    }

    fn see(&mut self, point: HookPoint, tensor: &Tensor) -> Result<Option<Tensor>> {
        let first = if self.0.wants(point) { self.0.see(point, tensor)? } else { None };
        let second = if self.1.wants(point) { self.1.see(point, first.as_ref().unwrap_or(tensor))? } else { None };
        Ok(second.or(first))
    }

    fn weights(&mut self, layer: usize, weights: &Layer) {
        self.0.weights(layer, weights);
        self.1.weights(layer, weights);
    }
}

/// What is given at a point, if it is wanted there.
pub(super) fn given(hooks: &mut (impl Hooks + ?Sized), point: HookPoint) -> Result<Option<Tensor>> {
    if hooks.wants(point) { hooks.give(point) } else { Ok(None) }
}

/// What stands at a point once it was shown there.
pub(super) fn seen(hooks: &mut dyn Hooks, point: HookPoint, tensor: Tensor) -> Result<Tensor> {
    if !hooks.wants(point) {
        return Ok(tensor);
    }
    match hooks.see(point, &tensor)? {
        Some(replaced) if replaced.dims() == tensor.dims() => Ok(replaced),
        Some(replaced) => {
            let (expected, actual) = (tensor.dims().to_vec(), replaced.dims().to_vec());
            Err(Error::HookShape { point: point.to_string(), expected, actual })
        }
        None => Ok(tensor),
    }
}

/// What stands at a point: given or computed, and shown.
pub(super) fn at(hooks: &mut dyn Hooks, point: HookPoint, compute: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
    let tensor = match given(hooks, point)? {
        Some(tensor) => tensor,
        None => compute()?,
    };
    seen(hooks, point, tensor)
}

/// Keeps the tensors at chosen points.
#[derive(Clone, Debug, Default)]
pub struct Activations {
    kept: BTreeMap<HookPoint, Option<Tensor>>,
}

impl Activations {
    /// Keeps nothing yet; a pass that has this among its hooks fills it at `points`.
    pub fn at(points: impl IntoIterator<Item = HookPoint>) -> Self {
        Self { kept: points.into_iter().map(|point| (point, None)).collect() }
    }

    /// The tensor at a point; `None` where it was not asked for or no pass came by.
    pub fn get(&self, point: HookPoint) -> Option<&Tensor> {
        self.kept.get(&point)?.as_ref()
    }

    /// The tensor at a point.
    ///
    /// # Errors
    /// [`Error::NotKept`]
    pub fn need(&self, point: HookPoint) -> Result<&Tensor> {
        self.get(point).ok_or_else(|| Error::NotKept { point: point.to_string() })
    }

    /// As [`Activations::need`], and lets go of the tensor.
    ///
    /// # Errors
    /// [`Error::NotKept`]
    pub fn take(&mut self, point: HookPoint) -> Result<Tensor> {
        let taken = self.kept.get_mut(&point).and_then(Option::take);
        taken.ok_or_else(|| Error::NotKept { point: point.to_string() })
    }
}

impl Hooks for Activations {
    fn wants(&self, point: HookPoint) -> bool {
        self.kept.contains_key(&point)
    }

    fn see(&mut self, point: HookPoint, tensor: &Tensor) -> Result<Option<Tensor>> {
        self.kept.insert(point, Some(tensor.clone()));
        Ok(None)
    }
}

/// Gives a pass what an earlier one kept, so that it is held to it.
#[derive(Clone, Copy, Debug, Default)]
pub enum Hold<'a> {
    /// Everything is computed anew.
    #[default]
    Nothing,
    /// Attention patterns are those of the earlier pass.
    Patterns(&'a Activations),
    /// Attention patterns and norm scales are those of the earlier pass.
    PatternsAndNorms(&'a Activations),
}

impl Hooks for Hold<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        let is_pattern = matches!(point, HookPoint::AttnPattern(_));
        match self {
            Hold::Nothing => false,
            Hold::Patterns(_) => is_pattern,
            Hold::PatternsAndNorms(_) => is_pattern || point.is_scale(),
        }
    }

    fn give(&mut self, point: HookPoint) -> Result<Option<Tensor>> {
        match self {
            Hold::Nothing => Ok(None),
            Hold::Patterns(run) | Hold::PatternsAndNorms(run) => run.need(point).cloned().map(Some),
        }
    }

    fn see(&mut self, _: HookPoint, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(None)
    }
}
