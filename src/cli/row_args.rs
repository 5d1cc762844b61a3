//! Which rows `trace` computes, as options.

use clap::Args;

use crate::attribution::{RowChoice, Visits};

#[derive(Debug, Args)]
pub(super) struct RowArgs {
    /// Estimate the influence of all features from about this many rows; `all`: from every row, which is exact
    /// [default: all up to 2500 active features, else 1000]
    #[arg(long, value_name = "N", value_parser = parse_count, conflicts_with = "theta")]
    rows: Option<Count>,
    /// As --rows: features with at least this much influence are all visited, others now and then
    #[arg(long, value_name = "X")]
    theta: Option<f64>,
    /// With --rows or --theta: this many features become nodes, those of most influence [default: those that carry 0.8
    /// of it, at most 1500]
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// Choose rows as circuit-tracer does: at most this many features get one, those of most influence so far; or `all`
    #[arg(long, value_name = "N", value_parser = parse_count, conflicts_with_all = ["rows", "theta", "nodes"])]
    max_features: Option<Count>,
}

/// A number, or all.
#[derive(Clone, Copy, Debug)]
enum Count {
    All,
    Number(usize),
}

fn parse_count(text: &str) -> Result<Count, String> {
    match text {
        "all" => Ok(Count::All),
        _ => text.parse().map(Count::Number).map_err(|_| "expected a number or `all`".into()),
    }
}

impl RowArgs {
    /// What the options ask for.
    pub(super) fn choice(&self) -> RowChoice {
        let sampled = |visits| RowChoice::Sampled { visits, nodes: self.nodes };
        match (self.rows, self.theta, self.nodes, self.max_features) {
            (None, None, None, None) => RowChoice::Auto,
            (_, _, _, Some(Count::All)) | (Some(Count::All), None, None, None) => RowChoice::All,
            (_, _, _, Some(Count::Number(max_features))) => RowChoice::BestFirst { max_features },
            (Some(Count::All), None, Some(_), None) => sampled(Visits::Theta(0.0)),
            (Some(Count::Number(n_rows)), ..) => sampled(Visits::Rows(n_rows)),
            (_, Some(theta), ..) => sampled(Visits::Theta(theta)),
            (None, None, Some(_), None) => sampled(Visits::default()),
        }
    }
}
