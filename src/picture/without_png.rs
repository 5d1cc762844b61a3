//! In place of PNG pictures, in a build without the feature `png`.

use crate::{Error, Result};

/// # Errors
/// Always.
pub fn png(_svg: &str, _scale: f64) -> Result<Vec<u8>> {
    Err(Error::Picture { reason: "this build has no PNG (feature `png`); SVG, DOT and GraphML need none".into() })
}
