//! `picture`: circuits as pictures and tables for other programs.
//!
//! A [`CollapsedCircuit`](crate::circuits::CollapsedCircuit) of a circuit comes in, text comes out: [`svg`] (laid out by [`arrange`]), [`png`]
//! made of it, [`dot`], [`graphml`], [`csv_nodes`] and [`csv_edges`]; sweeps of interventions become a line plot
//! ([`sweep_svg`]) and a table ([`sweep_csv`]), matrices a [`heat_map`], figures of layers [`bar_charts`]. Tokens left to right below, layers bottom to top,
//! targets above, as in the figures of Ameisen et al. 2025 and Lindsey et al. 2025.

mod arrange;
mod bars;
mod curves;
mod heat_map;
mod legend;
mod node_text;
mod plot;
#[cfg(feature = "png")]
mod png;
#[cfg(not(feature = "png"))]
#[path = "without_png.rs"]
mod png;
mod sans;
mod supernodes;
mod svg;
mod table;

pub use crate::text::Cells;
pub use arrange::{Arrangement, BoxKind, DrawnBox, DrawnEdge, Hidden, PictureSettings, Point, arrange};
pub use bars::{BarChart, bar_charts};
pub use curves::training_svg;
pub use heat_map::{HeatMap, heat_map};
pub use plot::{sweep_csv, sweep_svg};
pub use png::{characters_without_font, png};
pub use supernodes::{DiagramEdge, DiagramNode, SupernodeDiagram, supernode_svg};
pub use svg::svg;
pub use table::{csv_edges, csv_nodes, dot, graphml};
