//! SVG as PNG.

use std::collections::BTreeSet;
use std::sync::Arc;

use rayon::prelude::*;
use resvg::tiny_skia::{BYTES_PER_PIXEL, Pixmap, PixmapMut, Transform};
use resvg::usvg::{self, Options, Tree};

use super::{node_text, sans};
use crate::{Error, Result};

/// Rows of pixels that are worth a task of their own.
const MIN_BAND_ROWS: u32 = 256;

/// Largest picture in pixels; a larger one is drawn smaller.
const MAX_PIXELS: f64 = 1e8;

/// Largest SVG that is drawn, in bytes, some 50,000 boxes: every text is shaped letter by letter.
const MAX_SVG_BYTES: usize = 1 << 24;

/// A picture is drawn smaller than it is meant down to this scale; below it no text could be read.
const MIN_SCALE: f64 = 0.25;

/// Height of the line below a picture that says which characters no font has, and the size of its text.
const NOTE_HEIGHT: f64 = 18.0;
const NOTE_SIZE: f64 = 9.0;

/// Draws an SVG picture, `scale` pixels for one of its own. Scripts that the built-in font lacks come from the system;
/// characters that no font has become U+FFFD and are named in a line below the picture.
///
/// # Errors
/// An SVG that is none, one of so many boxes that nothing could be read, or no memory for the picture.
pub fn png(svg: &str, scale: f64) -> Result<Vec<u8>> {
    let mut tree = parsed(svg)?;
    let missing = missing_in(&tree);
    if !missing.is_empty() {
        tree = parsed(&svg.replace(|c| missing.contains(c), "\u{FFFD}"))?;
    }
    let (width, height) = (f64::from(tree.size().width()), f64::from(tree.size().height()));
    let note = if missing.is_empty() { None } else { Some(parsed(&note_svg(&missing, width))?) };
    let note_height = if note.is_some() { NOTE_HEIGHT } else { 0.0 };
    let scale = scale.min((MAX_PIXELS / (width * (height + note_height))).sqrt());
    if scale < MIN_SCALE {
        let size = format!("{width:.0} × {height:.0} pixels are more than can be drawn so that texts can be read");
        return Err(failed(&(size + "; show fewer nodes or positions, or write it as SVG")));
    }
    let size = |side: f64| (side * scale).ceil().max(1.0) as u32;
    let mut pixels = Pixmap::new(size(width), size(height + note_height))
        .ok_or_else(|| failed(&"there is no memory for the picture"))?;
    draw(&tree, scale, 0.0, &mut pixels)?;
    if let Some(note) = note {
        draw(&note, scale, height * scale, &mut pixels)?;
    }
    encode(pixels).map_err(|e| failed(&e))
}

/// The characters of an SVG's texts that no font of this machine has, in order, each once: their script needs a font to
/// be installed before a PNG can show them.
///
/// # Errors
/// An SVG that is none.
pub fn characters_without_font(svg: &str) -> Result<String> {
    Ok(missing_in(&parsed(svg)?))
}

fn failed(reason: &dyn std::fmt::Display) -> Error {
    Error::Picture { reason: reason.to_string() }
}

fn parsed(svg: &str) -> Result<Tree> {
    if svg.len() > MAX_SVG_BYTES {
        let size = format!("as SVG it has {} MB, as PNG at most {} can be drawn", svg.len() >> 20, MAX_SVG_BYTES >> 20);
        return Err(failed(&(size + "; show fewer nodes or positions, or write it as SVG")));
    }
    let mut fonts = usvg::fontdb::Database::new();
    fonts.load_font_data(sans::FONT.to_vec());
    if !svg.chars().all(sans::is_built_in) {
        fonts.load_system_fonts();
    }
    fonts.set_sans_serif_family("DejaVu Sans");
    let options = Options { fontdb: Arc::new(fonts), font_family: "DejaVu Sans".to_owned(), ..Options::default() };
    Tree::from_str(svg, &options).map_err(|e| failed(&e))
}

/// Characters whose glyph is the one for "there is none".
fn missing_in(tree: &Tree) -> String {
    fn look(group: &usvg::Group, missing: &mut BTreeSet<char>) {
        for node in group.children() {
            match node {
                usvg::Node::Group(group) => look(group, missing),
                usvg::Node::Text(text) => {
                    let glyphs = text.layouted().iter().flat_map(|span| &span.positioned_glyphs);
                    missing.extend(glyphs.filter(|glyph| glyph.id.0 == 0).flat_map(|glyph| glyph.text.chars()));
                }
                _ => {}
            }
        }
    }
    let mut missing = BTreeSet::new();
    look(tree.root(), &mut missing);
    missing.into_iter().filter(|c| !c.is_whitespace()).collect()
}

/// The line below a picture. It names code points: the characters themselves cannot be shown.
fn note_svg(missing: &str, width: f64) -> String {
    let codes: Vec<String> = missing.chars().map(|c| format!("U+{:04X}", u32::from(c))).collect();
    let note = format!("no font here has {} character(s) of this picture: {}", codes.len(), codes.join(" "));
    let note = node_text::cut(&note, width - 36.0, NOTE_SIZE);
    super::svg::open(width, NOTE_HEIGHT, NOTE_SIZE)
        + &format!("<text x=\"18\" y=\"9\" fill=\"#a33\">{note}</text></svg>")
}

/// Draws at `top` pixels from above. Bands are independent, so cores share the picture.
fn draw(tree: &Tree, scale: f64, top: f64, pixels: &mut Pixmap) -> Result<()> {
    let (n_columns, n_rows) = (pixels.width(), pixels.height());
    let band_rows = n_rows.div_ceil(rayon::current_num_threads() as u32).max(MIN_BAND_ROWS);
    let row_bytes = n_columns as usize * BYTES_PER_PIXEL;
    pixels.data_mut().par_chunks_mut(band_rows as usize * row_bytes).enumerate().try_for_each(|(at, band)| {
        let n_rows = (band.len() / row_bytes) as u32;
        let mut band = PixmapMut::from_bytes(band, n_columns, n_rows).ok_or_else(|| failed(&"a band has no size"))?;
        let shift = top as f32 - (at as f32) * band_rows as f32;
        resvg::render(tree, Transform::from_row(scale as f32, 0.0, 0.0, scale as f32, 0.0, shift), &mut band);
        Ok::<(), Error>(())
    })
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
