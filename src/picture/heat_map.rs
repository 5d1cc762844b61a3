//! A matrix of signed values as coloured cells, such as what every position and layer gives a target.

use std::fmt::Write;

use super::{node_text, sans};
use crate::circuits::Effects;
use crate::text::xml;
use crate::{Error, Result};

/// A matrix to draw: plain numbers with labels.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeatMap {
    /// What is shown, above the map.
    pub title: String,
    /// What the colours mean, below it: `direct effect on " Austin"`.
    pub quantity: String,
    /// Labels of the rows from below, so that layers go upwards as in the graphs. `[n_rows]`
    pub rows: Vec<String>,
    /// Labels of the columns, such as the prompt's tokens. `[n_columns]`
    pub columns: Vec<String>,
    /// The values, row by row from below. `[n_rows, n_columns]`
    pub values: Vec<f64>,
}

impl HeatMap {
    /// Direct effects of features and errors on what is called `target`: layers upwards, positions to the right.
    pub fn of(effects: &Effects, target: &str) -> HeatMap {
        HeatMap {
            title: format!("Effects on {target}"),
            quantity: format!("direct effect of features and errors on {target}"),
            rows: effects.layers.iter().map(|layer| format!("layer {}", layer.layer)).collect(),
            columns: effects.positions.iter().map(|position| position.text.clone()).collect(),
            values: effects.layers.iter().flat_map(|layer| layer.by_position.iter().copied()).collect(),
        }
    }
}

/// Lengths are pixels of the SVG.
const FONT_SIZE: f64 = 10.0;
const SMALL: f64 = 8.0;
const MARGIN: f64 = 16.0;
/// Width of all columns that the widths of cells are chosen for.
const WANTED_WIDTH: f64 = 720.0;
const CELL_WIDTHS: [f64; 2] = [12.0, 44.0];
const CELL_HEIGHTS: [f64; 2] = [10.0, 22.0];
/// Height of all rows that the height of cells is chosen for.
const WANTED_HEIGHT: f64 = 300.0;
/// Cells at least so wide show their number.
const NUMBERED_WIDTH: f64 = 30.0;
const NUMBERED_HEIGHT: f64 = 13.0;
/// The longest label of a column or row.
const MAX_LABEL: f64 = 84.0;
/// Longer matrices go on in panels, one below the other.
const MAX_COLUMNS: usize = 60;
/// Cells that are drawn at most: some 10 MB of SVG.
const MAX_CELLS: usize = 100_000;
const BAR_WIDTH: f64 = 160.0;
const BAR_STEPS: usize = 32;

/// The positive and the negative end of the colours, dark and apart for every kind of colour blindness and in grey by
/// sign of the legend: blue and vermilion, as edges are.
const ENDS: [[f64; 3]; 2] = [[0.0, 84.0, 150.0], [190.0, 76.0, 0.0]];

/// Colour of a value as a part of the largest, in -1..=1: white at zero.
fn color(part: f64) -> [u8; 3] {
    let end = ENDS[usize::from(part < 0.0)];
    // Small effects matter too: the colour goes with a power below one.
    let strength = part.abs().clamp(0.0, 1.0).powf(0.7);
    end.map(|channel| (255.0 + (channel - 255.0) * strength).round() as u8)
}

fn hex([red, green, blue]: [u8; 3]) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// A number in about four characters: `0.42`, `-1.3`, `12`, `3e-5`.
fn short(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if value == 0.0 => "0".to_owned(),
        _ if !(0.000_5..99_999.5).contains(&size) => format!("{value:.0e}"),
        _ if size >= 9.95 => format!("{value:.0}"),
        _ if size >= 0.995 => format!("{value:.1}"),
        _ if size >= 0.009_95 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

impl HeatMap {
    /// # Errors
    /// A matrix that has not one value for every row and column, a value that is not finite, too many cells to look at.
    fn check(&self) -> Result<()> {
        let expected = vec![self.rows.len(), self.columns.len()];
        let n_cells = self.rows.len().checked_mul(self.columns.len());
        if n_cells != Some(self.values.len()) {
            return Err(Error::GraphShape { name: "values of a heat map", expected, actual: vec![self.values.len()] });
        }
        if let Some(index) = self.values.iter().position(|value| !value.is_finite()) {
            return Err(Error::GraphNotFinite { name: "values of a heat map", index });
        }
        if self.values.len() > MAX_CELLS {
            let size = format!("{} × {} cells are more than {MAX_CELLS}", self.rows.len(), self.columns.len());
            return Err(Error::Picture { reason: size + "; show fewer positions or bands of layers" });
        }
        Ok(())
    }
}

/// The matrix as SVG: blue cells are positive, orange ones negative, with one scale for all, ended by the largest
/// |value|. Numbers stand in the cells where they fit, and in tooltips. More than 60 columns go on in further panels
/// below.
///
/// # Errors
/// A matrix that has not one value for every row and column, a value that is not finite, more than 100,000 cells.
pub fn heat_map(map: &HeatMap) -> Result<String> {
    map.check()?;
    let labels = |texts: &[String]| -> Vec<String> {
        texts.iter().map(|text| node_text::cut(&node_text::token(text), MAX_LABEL, FONT_SIZE)).collect()
    };
    let (rows, columns) = (labels(&map.rows), labels(&map.columns));
    let widest = |texts: &[String]| texts.iter().map(|text| sans::width(text, FONT_SIZE)).fold(0.0, f64::max);
    let n_panels = columns.len().div_ceil(MAX_COLUMNS).max(1);
    // Panels of equal length, the last somewhat shorter.
    let per_panel = columns.len().div_ceil(n_panels).max(1);
    let cell_width = (WANTED_WIDTH / per_panel as f64).clamp(CELL_WIDTHS[0], CELL_WIDTHS[1]).floor();
    let cell_height = (WANTED_HEIGHT / rows.len().max(1) as f64).clamp(CELL_HEIGHTS[0], CELL_HEIGHTS[1]).floor();
    let is_numbered = cell_width >= NUMBERED_WIDTH && cell_height >= NUMBERED_HEIGHT;
    // Labels lie where all of them fit side by side, else they stand.
    let lies = widest(&columns) <= cell_width - 4.0;
    let label_height = if lies { FONT_SIZE + 6.0 } else { widest(&columns) + 8.0 };
    let row_labels = widest(&rows) + 8.0;
    let largest = map.values.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));

    let left = MARGIN + row_labels;
    let grid_width = cell_width * per_panel as f64;
    let width = (left + grid_width + MARGIN).max(2.0 * MARGIN + BAR_WIDTH + 140.0);
    let title = node_text::wrap(&node_text::token(&map.title), width - 2.0 * MARGIN, 4, 13.0);
    let quantity = node_text::wrap(&node_text::token(&map.quantity), width - 2.0 * MARGIN, 2, FONT_SIZE);
    let top = MARGIN + 17.0 * title.len() as f64 + 6.0;
    let panel_height = cell_height * rows.len() as f64 + label_height + 14.0;
    let bar_top = top + panel_height * n_panels as f64 + 2.0;
    let height = bar_top + 30.0 + 14.0 * quantity.len() as f64 + MARGIN;

    let mut svg = super::svg::open(width, height, FONT_SIZE);
    for (at, line) in title.iter().enumerate() {
        let y = MARGIN + 11.0 + 17.0 * at as f64;
        let _ = writeln!(svg, "<text x=\"{MARGIN}\" y=\"{y:.0}\" font-size=\"13\" fill=\"#222\">{}</text>", xml(line));
    }
    for panel in 0..n_panels {
        let first = panel * per_panel;
        let shown = first..(first + per_panel).min(columns.len());
        let panel_top = top + panel_height * panel as f64;
        let bottom = panel_top + cell_height * rows.len() as f64;
        let every = ((FONT_SIZE + 1.0) / cell_height).ceil().max(1.0) as usize;
        for (at, label) in rows.iter().enumerate().filter(|(at, _)| at % every == 0) {
            let y = bottom - cell_height * (at as f64 + 0.5) + 3.5;
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{y:.1}\" text-anchor=\"end\" fill=\"#444\">{}</text>",
                left - 6.0,
                xml(label)
            );
        }
        for column in shown.clone() {
            let x = left + cell_width * (column - first) as f64;
            let middle = x + cell_width / 2.0;
            let label = xml(&columns[column]);
            if lies {
                let y = bottom + FONT_SIZE + 3.0;
                let _ = writeln!(svg, "<text x=\"{middle:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{label}</text>");
            } else {
                let (x, y) = (middle + 3.5, bottom + 5.0);
                let _ = writeln!(
                    svg,
                    "<text transform=\"translate({x:.1} {y:.1}) rotate(-90)\" text-anchor=\"end\">{label}</text>"
                );
            }
            for row in 0..rows.len() {
                let value = map.values[row * columns.len() + column];
                let part = if largest > 0.0 { value / largest } else { 0.0 };
                let fill = color(part);
                let y = bottom - cell_height * (row as f64 + 1.0);
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{cell_width}\" height=\"{cell_height}\" fill=\"{}\">\
                     <title>{}, {}: {value:+.4}</title></rect>",
                    hex(fill),
                    xml(&node_text::token(&map.columns[column])),
                    xml(&map.rows[row])
                );
                // Numbers that round away say nothing that the white cell does not.
                if is_numbered && part.abs() >= 0.01 {
                    let ink = if part.abs() > 0.55 { "#fff" } else { "#222" };
                    let _ = writeln!(
                        svg,
                        "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"{SMALL}\" \
                         fill=\"{ink}\">{}</text>",
                        y + cell_height / 2.0 + 3.0,
                        short(value).replace('-', "−")
                    );
                }
            }
        }
        let _ = writeln!(
            svg,
            "<rect x=\"{left:.1}\" y=\"{panel_top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"none\" \
             stroke=\"#bbb\" stroke-width=\"0.7\"/>",
            cell_width * shown.len() as f64,
            bottom - panel_top
        );
    }
    write_bar(&mut svg, left.min(width - BAR_WIDTH - MARGIN - 90.0), bar_top, largest);
    for (at, line) in quantity.iter().enumerate() {
        let y = bar_top + 36.0 + 14.0 * at as f64;
        let _ = writeln!(svg, "<text x=\"{MARGIN}\" y=\"{y:.0}\" fill=\"#444\">{}</text>", xml(line));
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

/// The colours from the smallest value to the largest.
fn write_bar(svg: &mut String, left: f64, top: f64, largest: f64) {
    let step = BAR_WIDTH / BAR_STEPS as f64;
    for at in 0..BAR_STEPS {
        let part = (at as f64 + 0.5) / BAR_STEPS as f64 * 2.0 - 1.0;
        let x = left + step * at as f64;
        let fill = hex(color(part));
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"9\" fill=\"{fill}\"/>",
            step + 0.2
        );
    }
    for (part, anchor) in [(0.0, "start"), (0.5, "middle"), (1.0, "end")] {
        let text = short((part * 2.0 - 1.0) * largest).replace('-', "−");
        let (x, y) = (left + BAR_WIDTH * part, top + 19.0);
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{SMALL}\" fill=\"#444\">{text}</text>"
        );
    }
}
