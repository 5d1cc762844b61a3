//! The built-in font, and how much room text takes in it.
//!
//! Part of DejaVu Sans, so that pictures are the same everywhere: Latin, Greek, Cyrillic, some signs (`sans.LICENSE`).
//! Advances come from the font's own tables `cmap` (format 4) and `hmtx`, so that a build without PNG measures alike.

use std::collections::HashMap;
use std::sync::OnceLock;

/// The font's file.
pub(super) const FONT: &[u8] = include_bytes!("sans.ttf");

/// Whether the built-in font has this character. Control characters are never drawn, so they need no glyph.
#[cfg(any(feature = "png", test))]
pub(super) fn is_built_in(c: char) -> bool {
    c.is_control() || advances().contains_key(&c)
}

/// Width of `text` in pixels at this size of the font. Characters of other fonts count as a square where their script is
/// wide, else as somewhat less than that.
pub(super) fn width(text: &str, size: f64) -> f64 {
    let advances = advances();
    let advance = |c: char| match advances.get(&c) {
        Some(&advance) => advance,
        None if ('\u{1100}'..).contains(&c) && !('\u{2000}'..'\u{2E80}').contains(&c) => 1.05,
        None => 0.9,
    };
    text.chars().map(advance).sum::<f64>() * size
}

/// Advance of every character of the font as a part of its size.
fn advances() -> &'static HashMap<char, f64> {
    static ADVANCES: OnceLock<HashMap<char, f64>> = OnceLock::new();
    // A font that cannot be read would measure every character alike; a test says that it can.
    ADVANCES.get_or_init(|| read_advances(FONT).unwrap_or_default())
}

/// Big-endian numbers of a font's file; nothing past its end.
fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?)))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?)).ok()
}

/// A table of the font, from its beginning to the end of the file.
fn table<'a>(font: &'a [u8], tag: &[u8; 4]) -> Option<&'a [u8]> {
    let n_tables = u16_at(font, 4)?;
    let records = (0..n_tables).map(|at| 12 + 16 * at);
    let record = records.into_iter().find(|&at| font.get(at..at + 4) == Some(tag))?;
    font.get(u32_at(font, record + 8)?..)
}

fn read_advances(font: &[u8]) -> Option<HashMap<char, f64>> {
    let units_per_em = u16_at(table(font, b"head")?, 18)? as f64;
    let n_metrics = u16_at(table(font, b"hhea")?, 34)?;
    let (metrics, cmap) = (table(font, b"hmtx")?, table(font, b"cmap")?);
    let n_encodings = u16_at(cmap, 2)?;
    let segments = (0..n_encodings)
        .filter_map(|at| cmap.get(u32_at(cmap, 8 + 8 * at)?..))
        .find(|encoding| u16_at(encoding, 0) == Some(4))?;
    let size = u16_at(segments, 6)?;
    let mut advances = HashMap::new();
    for at in (0..size).step_by(2) {
        let end = u16_at(segments, 14 + at)?;
        let start = u16_at(segments, 16 + size + at)?;
        let delta = u16_at(segments, 16 + 2 * size + at)?;
        let offset_place = 16 + 3 * size + at;
        let offset = u16_at(segments, offset_place)?;
        for code in start..=end.min(0xFFFE) {
            let glyph = match offset {
                0 => (code + delta) & 0xFFFF,
                _ => match u16_at(segments, offset_place + offset + 2 * (code - start))? {
                    0 => 0,
                    glyph => (glyph + delta) & 0xFFFF,
                },
            };
            let Some(c) = char::from_u32(code as u32).filter(|_| glyph != 0) else { continue };
            let advance = u16_at(metrics, 4 * glyph.min(n_metrics.checked_sub(1)?))?;
            advances.insert(c, advance as f64 / units_per_em);
        }
    }
    Some(advances)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_font_gives_its_own_advances() {
        let advances = read_advances(FONT).unwrap();
        // DejaVu Sans, in units of 2048: i 569, M 1767, zero 1303, ellipsis 2048.
        for (c, units) in [('i', 569.0), ('M', 1767.0), ('0', 1303.0), ('…', 2048.0)] {
            assert_eq!(advances[&c], units / 2048.0, "{c}");
        }
        assert!(" ×·−–Жλß→↵␣".chars().all(is_built_in), "signs that pictures use themselves");
        assert!(!is_built_in('首'));
        for cut in 0..FONT.len().min(400) {
            assert!(read_advances(&FONT[..cut]).is_none_or(|advances| advances.len() < 400));
        }
    }
}
