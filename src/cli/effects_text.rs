//! Signed effects on the targets, as text: a table by position and a small heat map.

use std::fmt::Write;

use crate::circuits::{EdgesSummed, Effects, PathSums, PositionEffects, Summary};
use crate::text::quoted;

use super::summary::{Align, percent, plural, signed, target_name, token_at, write_table};

/// Positions that are listed: with the rest of the summary, what fits a screen. Of longer prompts the strongest.
const MAX_POSITIONS: usize = 18;

/// Rows of the heat map, at most; layers are put together until they fit.
const MAX_BANDS: usize = 8;

/// Longer tokens are cut.
const MAX_TOKEN_CHARS: usize = 14;

/// Cells below this part of the largest are shown as a point.
const FAINT: f64 = 0.02;

/// What pushes the targets which way.
pub(super) fn write_effects(text: &mut String, summary: &Summary) {
    let Some(main) = summary.effects.first().filter(|effects| !effects.positions.is_empty()) else { return };
    let shown = strongest_positions(main, MAX_POSITIONS);
    write_positions(text, summary, main, &shown);
    write_layers(text, main, &shown);
    if summary.effects.len() > 1 {
        write_targets(text, summary);
    }
}

/// Indices of the `count` positions with the largest effects, ascending.
fn strongest_positions(effects: &Effects, count: usize) -> Vec<usize> {
    let weight = |p: &PositionEffects| {
        let along_paths =
            p.token_along_paths.unwrap_or_default().abs() + p.errors_along_paths.unwrap_or_default().abs();
        p.features.abs() + p.errors.abs() + p.token.abs() + along_paths
    };
    let mut order: Vec<usize> = (0..effects.positions.len()).collect();
    order.sort_by(|&a, &b| weight(&effects.positions[b]).total_cmp(&weight(&effects.positions[a])).then(a.cmp(&b)));
    order.truncate(count);
    order.sort_unstable();
    order
}

fn name_of(summary: &Summary, effects: &Effects) -> String {
    let is_target = summary.predictions.iter().any(|prediction| prediction.id == effects.target);
    if is_target { target_name(summary, &effects.target, &effects.text) } else { effects.target.clone() }
}

fn write_positions(text: &mut String, summary: &Summary, effects: &Effects, shown: &[usize]) {
    let value = effects.value.map(|value| format!(", {value:+.2}")).unwrap_or_default();
    let over = match effects.edges {
        // What features without a row give is one number, at no position: the table must not seem whole.
        EdgesSummed::All if effects.direct.unselected.is_some_and(|unselected| unselected != 0.0) => {
            "the edges of features with a row (--rows all: every one)"
        }
        EdgesSummed::All => "all edges",
        EdgesSummed::Pruned => "the edges that pruning has left",
        EdgesSummed::Part => "the part's edges",
    };
    let _ = writeln!(text, "\neffects on {}{value}; sums over {over}", name_of(summary, effects));
    let has_paths = effects.along_paths.is_some();
    let mut header = vec!["", "features", "errors", "token", "direct"];
    if has_paths {
        header.extend(["token's", "errors'"]);
    }
    header.push("share");
    let row = |name: String, p: &PositionEffects| {
        let mut row = vec![name, signed(p.features), signed(p.errors), signed(p.token), signed(p.direct())];
        if has_paths {
            row.extend(
                [p.token_along_paths, p.errors_along_paths].map(|effect| effect.map(signed).unwrap_or_default()),
            );
        }
        row.push(percent(p.token_share));
        row
    };
    let width = shown.last().map_or(1, |at| at.to_string().len());
    // Of a part, only the positions that it has.
    let is_part = effects.edges == EdgesSummed::Part;
    let is_there = |p: &PositionEffects| !is_part || p.direct() != 0.0 || p.token_share > 0.0;
    let mut rows: Vec<Vec<String>> = shown
        .iter()
        .filter(|&&at| is_there(&effects.positions[at]))
        .map(|&at| {
            let p = &effects.positions[at];
            row(format!("{:>width$} {}", p.pos, cut_token(&p.text)), p)
        })
        .collect();
    let others: Vec<&PositionEffects> =
        effects.positions.iter().enumerate().filter(|(at, _)| !shown.contains(at)).map(|(_, p)| p).collect();
    if !others.is_empty() {
        rows.push(row(format!("{} others", others.len()), &sum(&others)));
    }
    rows.push(row("all".to_owned(), &sum(&effects.positions.iter().collect::<Vec<_>>())));
    let mut aligns = vec![Align::Left];
    aligns.resize(header.len(), Align::Right);
    let mut table = String::new();
    write_table(&mut table, &aligns, header.iter().map(|&name| name.to_owned()).collect(), rows.into_iter());
    // What the columns share, above them.
    if let (true, Some(first)) = (has_paths, table.lines().next()) {
        let (direct, paths) = (first.find("features").unwrap_or_default(), first.find("token's").unwrap_or_default());
        let _ = writeln!(text, "{:direct$}{:width$}along all paths", "", "directly from", width = paths - direct);
    }
    text.push_str(&table);
    let direct = effects.direct;
    let along_paths = |sum: fn(PathSums) -> f64| {
        effects.along_paths.map(|paths| format!(", {:+.2} along all paths", sum(paths))).unwrap_or_default()
    };
    if let (Some(biases), Some(unselected)) = (direct.biases, direct.unselected) {
        let paths = along_paths(|paths| paths.biases.unwrap_or_default());
        let _ = writeln!(text, "  biases add {biases:+.2} directly{paths}");
        let paths = effects.along_paths.and_then(|paths| paths.unselected).unwrap_or_default();
        if unselected != 0.0 {
            let paths = along_paths(|paths| paths.unselected.unwrap_or_default());
            let _ = writeln!(text, "  features without a row add {unselected:+.2} directly{paths}, in no line above");
        } else if paths != 0.0 {
            let _ = writeln!(text, "  paths that begin at features without a row add {paths:+.2}, in no line above");
        }
    }
    if is_part {
        return;
    }
    let share: f64 = effects.positions.iter().map(|p| p.error_share).sum();
    // The scores above are those of the whole graph, before pruning; shares are those of the circuit.
    let before = summary.scores.replacement.filter(|_| effects.edges == EdgesSummed::All);
    let begins = match before {
        Some(replacement) => {
            format!("{} of the influence, {} after pruning", percent(1.0 - replacement), percent(share))
        }
        None => format!("{} of the influence", percent(share)),
    };
    let _ = writeln!(
        text,
        "  unexplained: errors give {:+.2} directly{};\n  {} of all |direct effects|; {begins}",
        direct.errors,
        along_paths(|paths| paths.errors),
        percent(direct.errors_abs_share),
    );
}

/// Positions together.
fn sum(positions: &[&PositionEffects]) -> PositionEffects {
    let total = |part: &dyn Fn(&PositionEffects) -> f64| positions.iter().map(|p| part(p)).sum::<f64>();
    let total_of =
        |part: &dyn Fn(&PositionEffects) -> Option<f64>| positions.iter().map(|p| part(p)).sum::<Option<f64>>();
    PositionEffects {
        pos: 0,
        text: String::new(),
        features: total(&|p| p.features),
        errors: total(&|p| p.errors),
        token: total(&|p| p.token),
        token_along_paths: total_of(&|p| p.token_along_paths),
        errors_along_paths: total_of(&|p| p.errors_along_paths),
        token_share: total(&|p| p.token_share),
        error_share: total(&|p| p.error_share),
    }
}

fn cut_token(token: &str) -> String {
    let quoted = quoted(token);
    if quoted.chars().count() <= MAX_TOKEN_CHARS {
        return quoted;
    }
    quoted.chars().take(MAX_TOKEN_CHARS - 2).chain(['…', '"']).collect()
}

/// The heat map: layers upwards, positions to the right, one digit a cell.
fn write_layers(text: &mut String, effects: &Effects, shown: &[usize]) {
    // Three digits need wider cells, so that fewer fit beside the sums.
    let width = shown.last().map_or(0, |at| at.to_string().len() + 1).max(3);
    let shown = match width {
        3 => shown.to_vec(),
        _ => strongest_positions(effects, MAX_POSITIONS * 3 / width),
    };
    let n_layers = effects.layers.len();
    let per_band = n_layers.div_ceil(MAX_BANDS).max(1);
    let bands: Vec<_> = effects.layers.chunks(per_band).collect();
    let cell = |band: usize, pos: usize| bands[band].iter().map(|layer| layer.by_position[pos]).sum::<f64>();
    let cells = (0..bands.len()).flat_map(|band| shown.iter().map(move |&pos| (band, pos)));
    let Some((band, pos)) = cells.max_by(|a, b| cell(a.0, a.1).abs().total_cmp(&cell(b.0, b.1).abs())) else { return };
    let largest = cell(band, pos);
    if largest == 0.0 {
        return;
    }
    let name = |band: usize| {
        let (first, last) = (band * per_band, ((band + 1) * per_band).min(n_layers) - 1);
        if first == last { first.to_string() } else { format!("{first}–{last}") }
    };
    let at = &effects.positions[pos];
    let _ = writeln!(
        text,
        "\nby layer and position, directly, in tenths of {largest:+.2} (layer {} at {})",
        name(band),
        token_at(&at.text, at.pos)
    );
    let label = (0..bands.len()).map(|band| name(band).chars().count()).max().unwrap_or_default().max("layer".len());
    let mut line = format!("  {:>label$}", "layer");
    shown.iter().for_each(|pos| line.push_str(&format!("{pos:>width$}")));
    let _ = writeln!(text, "{line}  features  errors");
    for band in (0..bands.len()).rev() {
        let mut line = format!("  {:>label$}", name(band));
        shown.iter().for_each(|&pos| line.push_str(&format!("{:>width$}", heat(cell(band, pos) / largest.abs()))));
        let features = bands[band].iter().map(|layer| layer.features).sum();
        let errors = bands[band].iter().map(|layer| layer.errors).sum();
        let _ = writeln!(text, "{line}  {:>8}  {:>6}", signed(features), signed(errors));
    }
}

/// A part of the largest, in -1..=1: its sign and tenths, the sign alone below a tenth.
fn heat(part: f64) -> String {
    if part.abs() < FAINT || part.is_nan() {
        return ".".to_owned();
    }
    let sign = if part < 0.0 { '-' } else { '+' };
    match (part.abs() * 10.0).floor().min(9.0) as u8 {
        0 => sign.to_string(),
        tenths => format!("{sign}{tenths}"),
    }
}

/// One line a target.
fn write_targets(text: &mut String, summary: &Summary) {
    let _ = writeln!(text, "\ndirect effects on {}", plural(summary.effects.len(), "target"));
    let is_partial = summary.effects.iter().any(|effects| effects.direct.unselected.is_some_and(|sum| sum != 0.0));
    let others = if is_partial { "no row" } else { "" };
    let mut header = ["target", "features", "errors", "tokens", others, "biases", "value", "most at"].to_vec();
    header.retain(|name| !name.is_empty());
    let header: Vec<String> = header.into_iter().map(str::to_owned).collect();
    let rows = summary.effects.iter().map(|effects| {
        let direct = effects.direct;
        let mut positions: Vec<&PositionEffects> = effects.positions.iter().collect();
        positions.sort_by(|a, b| b.direct().abs().total_cmp(&a.direct().abs()).then(a.pos.cmp(&b.pos)));
        let most = positions.iter().take(2).map(|p| format!("{} {}", token_at(&p.text, p.pos), signed(p.direct())));
        let mut row = vec![
            name_of(summary, effects),
            signed(direct.features),
            signed(direct.errors),
            signed(direct.tokens),
            direct.biases.map(signed).unwrap_or_default(),
            effects.value.map(signed).unwrap_or_default(),
            most.collect::<Vec<_>>().join(", "),
        ];
        if is_partial {
            row.insert(4, direct.unselected.map(signed).unwrap_or_default());
        }
        row
    });
    let mut aligns =
        vec![Align::Left, Align::Right, Align::Right, Align::Right, Align::Right, Align::Right, Align::Left];
    if is_partial {
        aligns.insert(4, Align::Right);
    }
    write_table(text, &aligns, header, rows);
    if is_partial {
        let _ = writeln!(
            text,
            "  no row: what features without a row give, at no position (--rows all: every one has one)"
        );
    }
}
