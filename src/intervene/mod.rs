//! `intervene`: what-if runs. Features are set, scaled or ablated while the rest of the model is free or held to the
//! original run ([`Mode`]); what comes out is compared with the original (definitions 9; Ameisen et al. 2025,
//! "Validating the replacement model").
//!
//! In: a [`crate::replacement::Replacement`] and a prompt's tokens, which make an [`Original`]; lists of
//! [`Intervention`]s. Out: [`Outcome`]s, [`Effects`], generated tokens.

mod change;
mod edit;
mod effects;
mod original;

pub use change::{Change, FeatureSpec, Intervention, Mode, Positions};
pub use effects::{Effects, Readout};
pub use original::{Original, Outcome};
