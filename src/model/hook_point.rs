//! Hook points: the places of a forward pass whose tensors can be read and replaced, by the names that TransformerLens
//! gave them (Nanda and Bloom 2022; `mlp.hook_in` and `mlp.hook_out` are circuit-tracer's).

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// A place in a forward pass; those inside a block carry their layer. [`fmt::Display`] gives TransformerLens's name,
/// `blocks.3.hook_resid_pre`, and [`FromStr`] reads it.
///
/// Tensors are f32 and shaped as in TransformerLens: `[batch, n_pos, d_model]` where nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HookPoint {
    /// Token embeddings as they enter the residual stream, scaled where the family scales them.
    Embed,
    /// Learned position embeddings, where the family has them. `[batch, n_pos, d_model]`, or with a batch of 1 where
    /// all sequences have the same positions
    PosEmbed,
    /// The residual stream before a layer.
    ResidPre(usize),
    /// What the norm before attention divides by. `[batch, n_pos, 1]`
    Ln1Scale(usize),
    /// The output of that norm before its gain.
    Ln1Normalized(usize),
    /// Values. `[batch, n_pos, n_kv_heads, d_head]`, of the new positions alone where there is a cache
    AttnV(usize),
    /// Attention scores before softmax, softcapped and masked with −∞. `[batch, n_heads, n_q, n_k]`
    AttnScores(usize),
    /// Attention patterns after softmax. `[batch, n_heads, n_q, n_k]`
    AttnPattern(usize),
    /// What each head reads, before `W_O`. `[batch, n_pos, n_heads, d_head]`
    AttnZ(usize),
    /// What the norm after attention divides by, where there is one. `[batch, n_pos, 1]`
    Ln1PostScale(usize),
    /// What attention adds to the residual stream: after its post-norm, where there is one.
    AttnOut(usize),
    /// The residual stream between attention and MLP.
    ResidMid(usize),
    /// What the norm before the MLP divides by. `[batch, n_pos, 1]`
    Ln2Scale(usize),
    /// The output of that norm before its gain.
    Ln2Normalized(usize),
    /// The MLP's input: that norm, gain and bias included.
    MlpIn(usize),
    /// The MLP's output, before any post-norm.
    MlpOut(usize),
    /// What the norm after the MLP divides by, where there is one. `[batch, n_pos, 1]`
    Ln2PostScale(usize),
    /// What the MLP adds to the residual stream: after its post-norm, where there is one.
    HookMlpOut(usize),
    /// The residual stream after a layer.
    ResidPost(usize),
    /// What the final norm divides by. `[batch, n_pos, 1]`
    LnFinalScale,
    /// The output of the final norm before its gain.
    LnFinalNormalized,
}

use HookPoint::*;

type InBlock = fn(usize) -> HookPoint;

/// Points inside a block, in the order in which a pass comes by, with what follows `blocks.{layer}.` in their names.
const IN_BLOCK: [(InBlock, &str); 17] = [
    (ResidPre, "hook_resid_pre"),
    (Ln1Scale, "ln1.hook_scale"),
    (Ln1Normalized, "ln1.hook_normalized"),
    (AttnV, "attn.hook_v"),
    (AttnScores, "attn.hook_attn_scores"),
    (AttnPattern, "attn.hook_pattern"),
    (AttnZ, "attn.hook_z"),
    (Ln1PostScale, "ln1_post.hook_scale"),
    (AttnOut, "hook_attn_out"),
    (ResidMid, "hook_resid_mid"),
    (Ln2Scale, "ln2.hook_scale"),
    (Ln2Normalized, "ln2.hook_normalized"),
    (MlpIn, "mlp.hook_in"),
    (MlpOut, "mlp.hook_out"),
    (Ln2PostScale, "ln2_post.hook_scale"),
    (HookMlpOut, "hook_mlp_out"),
    (ResidPost, "hook_resid_post"),
];

/// Points outside of the blocks.
const OUTSIDE: [(HookPoint, &str); 4] = [
    (Embed, "hook_embed"),
    (PosEmbed, "hook_pos_embed"),
    (LnFinalScale, "ln_final.hook_scale"),
    (LnFinalNormalized, "ln_final.hook_normalized"),
];

impl HookPoint {
    /// All points of a model of `n_layers` layers: whether a pass comes by each depends on the family.
    pub fn all(n_layers: usize) -> impl Iterator<Item = HookPoint> {
        let in_blocks = (0..n_layers).flat_map(|layer| IN_BLOCK.iter().map(move |(point, _)| point(layer)));
        OUTSIDE.iter().map(|&(point, _)| point).chain(in_blocks)
    }

    /// The layer, of a point inside a block.
    pub fn layer(self) -> Option<usize> {
        match self {
            Embed | PosEmbed | LnFinalScale | LnFinalNormalized => None,
            ResidPre(layer) | Ln1Scale(layer) | Ln1Normalized(layer) | AttnV(layer) | AttnScores(layer)
            | AttnPattern(layer) | AttnZ(layer) | Ln1PostScale(layer) | AttnOut(layer) | ResidMid(layer)
            | Ln2Scale(layer) | Ln2Normalized(layer) | MlpIn(layer) | MlpOut(layer) | Ln2PostScale(layer)
            | HookMlpOut(layer) | ResidPost(layer) => Some(layer),
        }
    }

    /// Whether this is what a norm divides by.
    pub(crate) fn is_scale(self) -> bool {
        matches!(self, Ln1Scale(_) | Ln1PostScale(_) | Ln2Scale(_) | Ln2PostScale(_) | LnFinalScale)
    }
}

impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.layer() {
            Some(layer) => {
                let name = IN_BLOCK.iter().find(|(point, _)| point(layer) == *self).map_or("", |(_, name)| name);
                write!(f, "blocks.{layer}.{name}")
            }
            None => f.write_str(OUTSIDE.iter().find(|(point, _)| point == self).map_or("", |(_, name)| name)),
        }
    }
}

impl FromStr for HookPoint {
    type Err = Error;

    /// # Errors
    /// [`Error::UnknownHookPoint`]
    fn from_str(text: &str) -> Result<Self> {
        let in_block = || {
            let (layer, name) = text.strip_prefix("blocks.")?.split_once('.')?;
            let layer = layer.parse().ok().filter(|n: &usize| n.to_string() == layer)?;
            IN_BLOCK.iter().find(|(_, known)| *known == name).map(|(point, _)| point(layer))
        };
        let outside = || OUTSIDE.iter().find(|(_, known)| *known == text).map(|(point, _)| *point);
        in_block().or_else(outside).ok_or_else(|| Error::UnknownHookPoint {
            name: text.to_owned(),
            in_block: IN_BLOCK.map(|(_, name)| name).join(", "),
            outside: OUTSIDE.map(|(_, name)| name).join(", "),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn hook_names_round_trip_and_are_those_of_transformer_lens() {
        let all: Vec<HookPoint> = HookPoint::all(3).collect();
        assert_eq!(all.len(), 3 * IN_BLOCK.len() + OUTSIDE.len());
        for &point in &all {
            assert_eq!(point.to_string().parse::<HookPoint>().unwrap(), point);
        }
        assert_eq!(all.iter().map(ToString::to_string).collect::<BTreeSet<_>>().len(), all.len(), "one name a point");
        for (point, name) in [
            (ResidPre(0), "blocks.0.hook_resid_pre"),
            (AttnPattern(12), "blocks.12.attn.hook_pattern"),
            (AttnScores(1), "blocks.1.attn.hook_attn_scores"),
            (Ln1PostScale(2), "blocks.2.ln1_post.hook_scale"),
            (MlpIn(2), "blocks.2.mlp.hook_in"),
            (HookMlpOut(2), "blocks.2.hook_mlp_out"),
            (LnFinalNormalized, "ln_final.hook_normalized"),
        ] {
            assert_eq!(point.to_string(), name);
        }
    }

    #[test]
    fn what_names_no_hook_point_is_refused_with_the_names_that_do() {
        for text in
            ["", "hook_resid_pre", "blocks.x.hook_resid_pre", "blocks.01.hook_z", "blocks.0.hook_z", "blocks.0."]
        {
            let error = text.parse::<HookPoint>().unwrap_err().to_string();
            assert!(error.contains("attn.hook_z") && error.contains("ln_final.hook_scale"), "{error}");
        }
    }
}
