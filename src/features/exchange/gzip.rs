//! Gzip and zlib, where this build has them.

use std::io::Result as IoResult;

/// What a build without them answers.
#[cfg(not(feature = "compressed"))]
const MISSING: &str = "it is compressed, and this build reads and writes plain files alone (feature `compressed`)";

/// Bytes as a gzip file: the same bytes give the same file.
///
/// # Errors
/// A build without compression.
#[cfg(feature = "compressed")]
pub(super) fn gzip(bytes: &[u8]) -> IoResult<Vec<u8>> {
    use std::io::Write;
    let mut writer = flate2::write::GzEncoder::new(Vec::with_capacity(bytes.len() / 4), flate2::Compression::default());
    writer.write_all(bytes)?;
    writer.finish()
}

#[cfg(not(feature = "compressed"))]
pub(super) fn gzip(_: &[u8]) -> IoResult<Vec<u8>> {
    Err(std::io::Error::other(MISSING))
}

/// What gzip or zlib made of at most `most` bytes.
///
/// # Errors
/// Damage, in words; more bytes; a build without compression.
#[cfg(feature = "compressed")]
pub(super) fn inflate(bytes: &[u8], most: u64) -> Result<Vec<u8>, String> {
    use std::io::Read;
    let mut inflated = Vec::new();
    let read = match bytes.starts_with(b"\x1f\x8b") {
        true => flate2::read::GzDecoder::new(bytes).take(most + 1).read_to_end(&mut inflated),
        false => flate2::read::ZlibDecoder::new(bytes).take(most + 1).read_to_end(&mut inflated),
    };
    read.map_err(|e| e.to_string())?;
    if inflated.len() as u64 > most {
        return Err(format!("it inflates to more than {} MB", most >> 20));
    }
    Ok(inflated)
}

#[cfg(not(feature = "compressed"))]
pub(super) fn inflate(_: &[u8], _: u64) -> Result<Vec<u8>, String> {
    Err(MISSING.to_owned())
}
