//! How large a box is: as its label and small print ask, within bounds.

use super::columns::GAP;
use super::shown::Picked;
use super::stacks::Stack;
use super::{BoxKind, DrawnBox};
use crate::circuits::CollapsedCircuit;
use crate::graph::Circuit;
use crate::picture::node_text::{self, FONT_SIZE, SMALL};
use crate::picture::sans;

const MAX_BOX_WIDTH: f64 = 108.0;
/// Shorter texts get this much, so that there is something to point at and room for ports.
const MIN_BOX_WIDTH: f64 = 34.0;
pub(in crate::picture) const LINE_HEIGHT: f64 = 13.0;
/// Height of the small print, where there is some.
pub(in crate::picture) const SMALL_HEIGHT: f64 = 10.0;
pub(in crate::picture) const BOX_PADDING: f64 = 4.0;
const MAX_LINES: usize = 2;
/// A run of tokens is read as text: so many lines, the end among them.
const MAX_RUN_LINES: usize = 4;
/// Characters at either end of a label that are looked at: many more than its lines have room for.
const MAX_END_CHARS: usize = 500;
/// Room along the border that an edge gets besides its own width, as far as boxes may be widened for it.
const PORT_ROOM: f64 = 4.0;

/// The boxes that are shown, not placed yet: wide enough for their texts and for the edges at each border.
pub(super) fn measured(circuit: &Circuit, collapsed: &CollapsedCircuit, picked: &Picked) -> Vec<DrawnBox> {
    let mut boxes: Vec<DrawnBox> = picked.stacks.iter().map(|stack| box_of(circuit, collapsed, stack)).collect();
    let mut room = vec![(0.0, 0.0); boxes.len()];
    for edge in &picked.edges {
        room[edge.source].0 += edge.width() + PORT_ROOM;
        room[edge.target].1 += edge.width() + PORT_ROOM;
    }
    for (drawn, (above, below)) in boxes.iter_mut().zip(room) {
        drawn.width = drawn.width.max(f64::max(above, below).min(MAX_BOX_WIDTH));
    }
    boxes
}

/// Width of all tokens side by side, without what edges need.
pub(super) fn width_of_tokens(circuit: &Circuit, collapsed: &CollapsedCircuit, stacks: &[Stack]) -> f64 {
    let tokens = stacks.iter().filter(|stack| stack.kind == BoxKind::Token);
    tokens.map(|stack| box_of(circuit, collapsed, stack).width + GAP).sum()
}

fn box_of(circuit: &Circuit, collapsed: &CollapsedCircuit, stack: &Stack) -> DrawnBox {
    let text = node_text::of_box(circuit, collapsed, stack.kind, &stack.members, stack.share);
    let is_run = stack.kind == BoxKind::Token && stack.members.len() > 1;
    let room = MAX_BOX_WIDTH - 2.0 * BOX_PADDING;
    let label = ends_of(&text.label);
    let mut lines = node_text::wrap(&label, room, if is_run { usize::MAX } else { MAX_LINES }, FONT_SIZE);
    if lines.len() > MAX_RUN_LINES {
        let end = lines.pop();
        lines.truncate(MAX_RUN_LINES - 2);
        lines.push("…".to_owned());
        lines.extend(end);
    }
    if lines.is_empty() {
        lines.push(String::new());
    }
    let small_print = node_text::cut(&text.small_print, room, SMALL);
    let small_height = if small_print.is_empty() { 0.0 } else { SMALL_HEIGHT };
    let height = lines.len() as f64 * LINE_HEIGHT + small_height + 2.0 * BOX_PADDING;
    let widest = lines.iter().map(|line| sans::width(line, FONT_SIZE)).fold(sans::width(&small_print, SMALL), f64::max);
    let width = (widest + 2.0 * BOX_PADDING).clamp(MIN_BOX_WIDTH, MAX_BOX_WIDTH);
    DrawnBox {
        members: stack.members.clone(),
        kind: stack.kind,
        n_nodes: stack.members.iter().map(|&member| collapsed.nodes[member].members.len()).sum(),
        share: stack.share,
        x: 0.0,
        y: 0.0,
        width,
        height,
        lines,
        small_print,
    }
}

/// What can be shown of a long label, its beginning and its end: a run may have a hundred thousand tokens.
fn ends_of(label: &str) -> std::borrow::Cow<'_, str> {
    let (Some((head, _)), Some((tail, _))) =
        (label.char_indices().nth(MAX_END_CHARS), label.char_indices().rev().nth(MAX_END_CHARS))
    else {
        return label.into();
    };
    if head < tail { [&label[..head], &label[tail..]].concat().into() } else { label.into() }
}
