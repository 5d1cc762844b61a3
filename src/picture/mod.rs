//! `picture`: circuits as pictures and tables for other programs.
//!
//! A [`View`](crate::circuits::View) of a circuit comes in, text comes out: [`svg`] (laid out by [`arrange`]), [`png`]
//! made of it, [`dot`], [`graphml`], [`csv_nodes`] and [`csv_edges`]. Tokens left to right below, layers bottom to top,
//! logits above, as in the figures of Ameisen et al. 2025 and Lindsey et al. 2025.

mod arrange;
#[cfg(feature = "png")]
mod png;
#[cfg(not(feature = "png"))]
#[path = "without_png.rs"]
mod png;
mod route;
mod svg;
mod table;
mod text;

pub use arrange::{Arrangement, DrawnBox, DrawnEdge, PictureSettings, arrange};
pub use png::png;
pub use route::Point;
pub use svg::svg;
pub use table::{csv_edges, csv_nodes, dot, graphml};
