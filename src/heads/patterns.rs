//! Where heads look in one prompt.

use candle_core::{DType, Device};

use crate::error::{Error, Result};
use crate::graph::Head;
use crate::job::Job;
use crate::model::{Activations, HookPoint, Model};

/// Where a head looks.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadPattern {
    /// The head.
    pub head: Head,
    /// Attention of every query, a row, to every key. Rows add up to 1, or to less where the head has a sink.
    /// `[n_pos][n_pos]`
    pub attention: Vec<Vec<f32>>,
}

/// Where each of `heads` looks.
///
/// # Errors
/// [`Error::NoSuchLayer`], [`Error::NoSuchHead`]; those of [`Model::forward_through`].
pub fn head_patterns(model: &Model, tokens: &[u32], heads: &[Head], job: &Job) -> Result<Vec<HeadPattern>> {
    for head in heads {
        check_head(model, *head)?;
    }
    let Some(last) = heads.iter().map(|head| head.layer as usize).max() else { return Ok(Vec::new()) };
    let mut kept = Activations::at(heads.iter().map(|head| HookPoint::AttnPattern(head.layer as usize)));
    model.forward_through(last, &[tokens.to_vec()], &mut kept, job)?;
    let of_head = |&head: &Head| -> Result<HeadPattern> {
        let pattern = kept.need(HookPoint::AttnPattern(head.layer as usize))?.squeeze(0)?.get(head.head as usize)?;
        Ok(HeadPattern { head, attention: pattern.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.to_vec2()? })
    };
    heads.iter().map(of_head).collect()
}

/// # Errors
/// [`Error::NoSuchLayer`], [`Error::NoSuchHead`].
pub fn check_head(model: &Model, head: Head) -> Result<()> {
    let (n_layers, n_heads) = (model.config.n_layers, model.config.n_heads);
    let (layer, number) = (head.layer as usize, head.head as usize);
    if layer >= n_layers {
        return Err(Error::NoSuchLayer { layer, n_layers });
    }
    if number >= n_heads {
        return Err(Error::NoSuchHead { layer, head: number, n_heads });
    }
    Ok(())
}
