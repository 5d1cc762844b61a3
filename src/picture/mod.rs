//! `picture`: circuits as pictures and tables for other programs.
//!
//! A [`CollapsedCircuit`](crate::circuits::CollapsedCircuit) of a circuit comes in, text comes out: [`svg`] (laid out by [`arrange`]), [`png`]
//! made of it, [`dot`], [`graphml`], [`csv_nodes`] and [`csv_edges`]; sweeps of interventions become a line plot
//! ([`sweep_svg`]) and a table ([`sweep_csv`]). Tokens left to right below, layers bottom to top,
//! logits above, as in the figures of Ameisen et al. 2025 and Lindsey et al. 2025.

mod arrange;
mod node_text;
mod plot;
#[cfg(feature = "png")]
mod png;
#[cfg(not(feature = "png"))]
#[path = "without_png.rs"]
mod png;
mod route;
mod svg;
mod table;

pub use crate::text::Cells;
pub use arrange::{Arrangement, DrawnBox, DrawnEdge, PictureSettings, arrange};
pub use plot::{sweep_csv, sweep_svg};
pub use png::png;
pub use route::Point;
pub use svg::svg;
pub use table::{csv_edges, csv_nodes, dot, graphml};
