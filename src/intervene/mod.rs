//! `intervene`: what-if runs. Features are set, scaled or ablated while the rest of the model is free or held to the
//! original run ([`Mode`]); what comes out is compared with the original (definitions 9; Ameisen et al. 2025,
//! "Validating the replacement model").
//!
//! In: a [`crate::replacement::Replacement`] and a prompt's tokens, which make an [`Original`]; lists of
//! [`Intervention`]s. Out: [`Outcome`]s, [`Effects`], generated tokens.

mod change;
mod compare;
mod edit;
mod effects;
mod followed;
mod generate;
mod head_change;
mod original;
mod plan;
mod random;
mod read_out;
mod sample;
mod sweep;
mod verify;

pub(crate) use compare::Distribution;
pub(crate) use random::Random;
pub(crate) use verify::{linearized_as_traced, spearman};

pub use change::{Change, FeatureSpec, Intervention, Mode, Positions};
pub use compare::{CompareOptions, Comparison, FeatureChange, Measure, TokenChange};
pub use effects::{Effects, Readout};
pub use followed::{Followed, FollowedChange};
pub use generate::GenerateOptions;
pub use head_change::{HeadChange, HeadIntervention, HeadSpec};
pub use original::{Original, Outcome};
pub use plan::{Plan, Supernodes};
pub use read_out::{FeatureGroup, GroupChange};
pub use sweep::{Alternative, Sweep, SweepPoint, SweepResult, named_values};
pub use verify::{
    AblationPoint, CircuitCheck, ContentsCheck, CurvePoint, Difference, EdgeCheck, ErrorParts, Faithfulness,
    IdentityCheck, ModeFaithfulness, PartCheck, Predictor, Retraced, Verification, VerifyOptions, VerifyTarget, verify,
};
