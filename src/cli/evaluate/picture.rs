//! Figures of layers as a picture.

use crate::evaluate::{LayerQuality, Quality};
use crate::picture::{BarChart, bar_charts};

/// FVU and L0 of every layer.
pub(super) fn layers_svg(quality: &Quality) -> String {
    let of = &quality.reconstruction;
    let labels: Vec<String> = of.layers.iter().map(|layer| layer.layer.to_string()).collect();
    let range = |layer: &LayerQuality| [layer.l0_quantiles[0], layer.l0_quantiles[4]].map(f64::from);
    let mean_fvu = of.mean_fvu.map_or_else(String::new, |fvu| format!(", mean {fvu:.3}"));
    bar_charts(&[
        BarChart {
            title: format!("Fraction of variance unexplained{mean_fvu}"),
            axis: "layer".to_owned(),
            labels: labels.clone(),
            values: of.layers.iter().map(|layer| layer.fvu.unwrap_or(0.0)).collect(),
            ranges: Vec::new(),
        },
        BarChart {
            title: format!("Active features at a position (L0), mean {:.1}; lines: 5 to 95 %", of.mean_l0),
            axis: "layer".to_owned(),
            labels,
            values: of.layers.iter().map(|layer| layer.l0).collect(),
            ranges: of.layers.iter().map(range).collect(),
        },
    ])
}
