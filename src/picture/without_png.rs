//! In place of PNG pictures, in a build without the feature `png`.

use crate::{Error, Result};

/// # Errors
/// Always.
pub fn png(_svg: &str, _scale: f64) -> Result<Vec<u8>> {
    Err(Error::Picture { reason: "this build has no PNG (feature `png`); SVG, DOT and GraphML need none".into() })
}

/// None: without a PNG no font is asked for anything.
///
/// # Errors
/// Never.
pub fn characters_without_font(_svg: &str) -> Result<String> {
    Ok(String::new())
}
