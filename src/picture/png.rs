//! SVG as PNG.

use std::sync::Arc;

use rayon::prelude::*;
use resvg::tiny_skia::{BYTES_PER_PIXEL, Pixmap, PixmapMut, Transform};
use resvg::usvg::{self, Options, Tree};

use crate::{Error, Result};

/// Part of DejaVu Sans, so that pictures are the same everywhere: Latin, Greek, Cyrillic, some signs (`sans.LICENSE`).
const FONT: &[u8] = include_bytes!("sans.ttf");

/// Rows of pixels that are worth a task of their own.
const MIN_BAND_ROWS: u32 = 256;

/// Largest picture in pixels; a larger one is drawn smaller.
const MAX_PIXELS: f64 = 1e8;

/// Largest SVG that is drawn, in bytes, some 50,000 boxes: every text is shaped letter by letter.
const MAX_SVG_BYTES: usize = 1 << 24;

/// A picture is drawn smaller than it is meant down to this scale; below it no text could be read.
const MIN_SCALE: f64 = 0.25;

/// Draws an SVG picture, `scale` pixels for one of its own. Scripts that the built-in font lacks come from the system.
///
/// # Errors
/// An SVG that is none, one of so many boxes that nothing could be read, or no memory for the picture.
pub fn png(svg: &str, scale: f64) -> Result<Vec<u8>> {
    let failed = |e: &dyn std::fmt::Display| Error::Picture { reason: e.to_string() };
    if svg.len() > MAX_SVG_BYTES {
        let size = format!("as SVG it has {} MB, as PNG at most {} can be drawn", svg.len() >> 20, MAX_SVG_BYTES >> 20);
        return Err(failed(&(size + "; show fewer nodes or positions, or write it as SVG")));
    }
    let mut fonts = usvg::fontdb::Database::new();
    fonts.load_font_data(FONT.to_vec());
    if svg.chars().any(is_foreign) {
        fonts.load_system_fonts();
    }
    fonts.set_sans_serif_family("DejaVu Sans");
    let options = Options { fontdb: Arc::new(fonts), font_family: "DejaVu Sans".to_owned(), ..Options::default() };
    let tree = Tree::from_str(svg, &options).map_err(|e| failed(&e))?;
    let (width, height) = (f64::from(tree.size().width()), f64::from(tree.size().height()));
    let scale = scale.min((MAX_PIXELS / (width * height)).sqrt());
    if scale < MIN_SCALE {
        let size = format!("{width:.0} × {height:.0} pixels are more than can be drawn so that texts can be read");
        return Err(failed(&(size + "; show fewer nodes or positions, or write it as SVG")));
    }
    let size = |side: f64| (side * scale).ceil().max(1.0) as u32;
    let mut pixels =
        Pixmap::new(size(width), size(height)).ok_or_else(|| failed(&"there is no memory for the picture"))?;
    // Bands are independent, so cores share the picture.
    let (n_columns, n_rows) = (pixels.width(), pixels.height());
    let band_rows = n_rows.div_ceil(rayon::current_num_threads() as u32).max(MIN_BAND_ROWS);
    let row_bytes = n_columns as usize * BYTES_PER_PIXEL;
    pixels.data_mut().par_chunks_mut(band_rows as usize * row_bytes).enumerate().try_for_each(|(at, band)| {
        let n_rows = (band.len() / row_bytes) as u32;
        let mut band = PixmapMut::from_bytes(band, n_columns, n_rows).ok_or_else(|| failed(&"a band has no size"))?;
        let shift = -(at as f32) * band_rows as f32;
        resvg::render(&tree, Transform::from_row(scale as f32, 0.0, 0.0, scale as f32, 0.0, shift), &mut band);
        Ok::<(), Error>(())
    })?;
    encode(pixels).map_err(|e| failed(&e))
}

/// Compressed quickly: large areas of one colour shrink well anyway, and a thorough search takes longer than drawing.
fn encode(pixels: Pixmap) -> std::result::Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, pixels.width(), pixels.height());
    encoder.set_color(png::ColorType::Rgba);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&pixels.take_demultiplied())?;
    writer.finish()?;
    Ok(bytes)
}

fn is_foreign(c: char) -> bool {
    !matches!(c, '\0'..='\u{17F}' | '\u{391}'..='\u{3C9}' | '\u{410}'..='\u{44F}' | '…' | '→' | '↵' | '−' | '␣' | '\u{FFFD}')
}
