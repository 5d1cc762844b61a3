//! What the signs of a picture mean and what it leaves out, in as many lines as its width asks for.

use super::arrange::{BoxKind, DrawnBox, Hidden, MARGIN};
use super::{node_text, sans};

/// Size of the legend's text, and the height of a line of it.
pub(super) const LEGEND_SIZE: f64 = 8.5;
const LINE: f64 = 15.0;
/// Between a sign and its text, and from there to the next sign.
pub(super) const LEGEND_GAP: f64 = 4.0;
const NEXT: f64 = 14.0;

/// Something that the legend shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Sign {
    Edge { share: f64, is_negative: bool },
    Box { kind: BoxKind, part: f64, is_stack: bool },
}

impl Sign {
    pub(super) fn width(self) -> f64 {
        match self {
            Sign::Edge { .. } => 24.0,
            Sign::Box { is_stack, .. } => {
                if is_stack {
                    19.0
                } else {
                    17.0
                }
            }
        }
    }
}

/// Signs and notes with their places below the top of the legend.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Legend {
    /// Sign, left edge, middle, and what it means.
    pub signs: Vec<(Sign, f64, f64, String)>,
    /// What is left out, and the middle of each line.
    pub notes: Vec<(String, f64)>,
    pub height: f64,
}

/// The largest share of what lies between tokens and targets: it has the full colour.
pub(super) fn largest_share(boxes: &[DrawnBox]) -> f64 {
    let between = boxes.iter().filter(|drawn| !matches!(drawn.kind, BoxKind::Token | BoxKind::Target));
    between.filter_map(|drawn| drawn.share).fold(0.0, f64::max)
}

impl Legend {
    /// The legend of these boxes in a picture of this `width`: only what it has.
    pub(super) fn new(boxes: &[DrawnBox], hidden: &Hidden, width: f64) -> Legend {
        let edge = |share: f64, is_negative: bool| Sign::Edge { share, is_negative };
        let boxed = |kind: BoxKind, part: f64, is_stack: bool| Sign::Box { kind, part, is_stack };
        let mut wanted = vec![
            (edge(0.15, false), "positive".to_owned()),
            (edge(0.15, true), "negative".to_owned()),
            (edge(0.1, false), "10 %".to_owned()),
            (edge(0.5, false), "50 %".to_owned()),
            (edge(1.0, false), "100 % of the target’s input".to_owned()),
        ];
        let largest = largest_share(boxes);
        if largest > 0.0 {
            let text = format!("{} of all influence", node_text::percent(largest));
            wanted.extend([
                (boxed(BoxKind::Feature, 0.1, false), "0".to_owned()),
                (boxed(BoxKind::Feature, 1.0, false), text),
            ]);
        }
        let has = |kind: BoxKind| boxes.iter().any(|drawn| drawn.kind == kind);
        if boxes.iter().any(|drawn| drawn.n_nodes > 1 && drawn.kind != BoxKind::Supernode) {
            wanted.push((boxed(BoxKind::Feature, 0.4, true), "several nodes, merged".to_owned()));
        }
        if has(BoxKind::Supernode) {
            wanted.push((boxed(BoxKind::Supernode, 0.6, true), "supernode".to_owned()));
        }
        if has(BoxKind::Error) {
            wanted.push((boxed(BoxKind::Error, 0.4, false), "error: not explained".to_owned()));
        }
        let (mut x, mut y) = (MARGIN, 6.0);
        let mut signs = Vec::new();
        for (sign, text) in wanted {
            let needed = sign.width() + LEGEND_GAP + sans::width(&text, LEGEND_SIZE);
            if x > MARGIN && x + needed > width - MARGIN {
                (x, y) = (MARGIN, y + LINE);
            }
            signs.push((sign, x, y, text));
            x += needed + NEXT;
        }
        let notes: Vec<(String, f64)> = node_text::wrap(&left_out(hidden), width - 2.0 * MARGIN, 3, LEGEND_SIZE)
            .into_iter()
            .map(|line| {
                y += LINE;
                (line, y)
            })
            .collect();
        Legend { signs, notes, height: y + 6.0 }
    }
}

/// Counts of what is not shown; empty where all is.
fn left_out(hidden: &Hidden) -> String {
    let counts = [
        (hidden.nodes, "less influential node", ""),
        (hidden.edges, "weaker edge", " between boxes"),
        (hidden.targets, "less likely target", ""),
    ];
    let counts: Vec<String> = counts
        .iter()
        .filter(|(count, ..)| *count > 0)
        .map(|(count, what, rest)| format!("{count} {what}{}{rest}", if *count == 1 { "" } else { "s" }))
        .collect();
    if counts.is_empty() { String::new() } else { format!("not shown: {}", counts.join(", ")) }
}
