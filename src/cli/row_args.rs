//! Which rows a trace computes, and of which positions, as options.

use clap::Args;

use crate::attribution::{Count, OpenChoice, RowChoice, RowRequest};

#[derive(Debug, Args)]
pub(super) struct RowArgs {
    /// Estimate the influence of all features from about this many rows; `all`: from every row, which is exact
    /// [default: all up to 2500 active features, else 1000]
    #[arg(long, value_name = "N", value_parser = parse_count, conflicts_with = "theta")]
    rows: Option<Count>,
    /// As --rows: features with at least this much influence are all visited, others now and then
    #[arg(long, value_name = "X")]
    theta: Option<f64>,
    /// This many features become nodes, those of most influence. Without --rows and --theta, the influence is exact up to
    /// 2500 active features [default: all; of a sample those that carry 0.8 of the influence, at most 1500]
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// Choose rows as circuit-tracer does: at most this many features get one, those of most influence so far; or `all`
    #[arg(long, value_name = "N", value_parser = parse_count, conflicts_with_all = ["rows", "theta", "nodes"])]
    max_features: Option<Count>,
    /// Only these positions have features and errors of their own: spans `A..B` (without B) and single positions, with
    /// commas between, or `auto:N` for the N that give most to what is explained. What attention reads elsewhere is one node
    /// a position. Positions of what is explained are always open [default: all]
    #[arg(long, value_name = "A..B or auto:N", value_parser = OpenChoice::asked)]
    open_positions: Option<OpenChoice>,
}

fn parse_count(text: &str) -> Result<Count, String> {
    text.parse().map_err(|_| "expected a number or `all`".into())
}

impl RowArgs {
    /// What the options ask for.
    ///
    /// # Errors
    /// Options that exclude each other, where the parser has let them through.
    pub(super) fn choice(&self) -> crate::Result<RowChoice> {
        let Self { rows, theta, nodes, max_features, open_positions: _ } = *self;
        RowRequest { rows, theta, nodes, max_features }.choice()
    }

    /// Which positions are open.
    pub(super) fn open(&self) -> OpenChoice {
        self.open_positions.clone().unwrap_or_default()
    }
}
