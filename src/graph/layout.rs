//! Where every node sits in a matrix: the one place for index arithmetic.
//!
//! Order (definitions 3): selected features by (layer, position, feature), error nodes layer-major, token nodes, targets.
//! Rows exist for features and targets only: feature i is row i, target k is row `n_features + k`.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// One transcoder feature at one position. The derived order is the order of the nodes.
///
/// Three u32 in this order: a list of them is a matrix of three columns to those who look at it from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(C)]
pub struct FeatureId {
    /// The layer whose MLP the transcoder reads.
    pub layer: u32,
    /// Position in the prompt.
    pub pos: u32,
    /// Index among the features of the layer.
    pub feature: u32,
}

/// A node of an attribution graph. The derived order is the order of the nodes in a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeId {
    /// An active transcoder feature.
    Feature {
        /// The layer whose MLP the transcoder reads.
        layer: u32,
        /// Position in the prompt.
        pos: u32,
        /// Index among the features of the layer.
        feature: u32,
    },
    /// What the transcoder of `layer` misses at `pos`.
    Error {
        /// The layer of the transcoder.
        layer: u32,
        /// Position in the prompt.
        pos: u32,
    },
    /// The embedding of the token at `pos`.
    Token {
        /// Position in the prompt.
        pos: u32,
    },
    /// The residual stream at a closed position, as attention above reads it (definitions 3): it stands in the place of the
    /// token there.
    Context {
        /// Position in the prompt.
        pos: u32,
    },
    /// A target of the attribution, by its place in the list of targets.
    Target {
        /// Place in the list of targets.
        index: u32,
    },
}

/// Short, to be read: `0_39_7` (layer, feature, position) and `0_-1_7` as on the command line; `token@7`, `target#0`,
/// since their ids there need the vocabulary ([`node_id_text`](crate::export::node_id_text)).
impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NodeId::Feature { layer, pos, feature } => write!(f, "{layer}_{feature}_{pos}"),
            NodeId::Error { layer, pos } => write!(f, "{layer}_-1_{pos}"),
            NodeId::Token { pos } => write!(f, "token@{pos}"),
            NodeId::Context { pos } => write!(f, "C_{pos}"),
            NodeId::Target { index } => write!(f, "target#{index}"),
        }
    }
}

/// What a node stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    /// An active transcoder feature at a position.
    Feature,
    /// What a transcoder misses at a position.
    Error,
    /// The embedding of a prompt's token.
    Token,
    /// The residual stream at a closed position.
    Context,
    /// What the graph explains.
    Target,
}

impl NodeKind {
    /// The kind's name, as tables and JSON have it.
    pub fn name(self) -> &'static str {
        match self {
            NodeKind::Feature => "feature",
            NodeKind::Error => "error",
            NodeKind::Token => "token",
            NodeKind::Context => "context",
            NodeKind::Target => "target",
        }
    }
}

impl NodeKind {
    /// Whether nothing is left to explain where it is: paths begin at tokens and at contexts.
    pub fn is_beginning(self) -> bool {
        matches!(self, NodeKind::Token | NodeKind::Context)
    }
}

impl From<FeatureId> for NodeId {
    fn from(FeatureId { layer, pos, feature }: FeatureId) -> NodeId {
        NodeId::Feature { layer, pos, feature }
    }
}

impl NodeId {
    /// What the node stands for.
    pub fn kind(self) -> NodeKind {
        match self {
            NodeId::Feature { .. } => NodeKind::Feature,
            NodeId::Error { .. } => NodeKind::Error,
            NodeId::Token { .. } => NodeKind::Token,
            NodeId::Context { .. } => NodeKind::Context,
            NodeId::Target { .. } => NodeKind::Target,
        }
    }

    /// The feature, where the node is one.
    pub fn feature(self) -> Option<FeatureId> {
        match self {
            NodeId::Feature { layer, pos, feature } => Some(FeatureId { layer, pos, feature }),
            _ => None,
        }
    }

    /// The layer of a feature or an error; tokens, contexts and targets have none.
    pub fn layer(self) -> Option<u32> {
        match self {
            NodeId::Feature { layer, .. } | NodeId::Error { layer, .. } => Some(layer),
            NodeId::Token { .. } | NodeId::Context { .. } | NodeId::Target { .. } => None,
        }
    }

    /// How high a node is: edges lead from lower to higher ones. Tokens and contexts are below everything, targets above.
    pub fn height(self) -> u32 {
        match self {
            NodeId::Token { .. } | NodeId::Context { .. } => 0,
            NodeId::Feature { layer, .. } | NodeId::Error { layer, .. } => layer.saturating_add(1).min(u32::MAX - 1),
            NodeId::Target { .. } => u32::MAX,
        }
    }

    /// The position of the node in the prompt; where a target sits is known to the graph, not to the id.
    pub fn pos(self) -> Option<u32> {
        match self {
            NodeId::Feature { pos, .. }
            | NodeId::Error { pos, .. }
            | NodeId::Token { pos }
            | NodeId::Context { pos } => Some(pos),
            NodeId::Target { .. } => None,
        }
    }
}

/// The order of the nodes of one graph: index <-> [`NodeId`], both ways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLayout {
    features: Vec<FeatureId>,
    n_layers: usize,
    n_pos: usize,
    n_targets: usize,
    /// Index of the first feature at or after (layer, position), layer-major, closed by `n_features`.
    /// `[n_layers * n_pos + 1]`
    cell_starts: Vec<usize>,
    /// Whether each position is closed; empty where none is. `[n_pos]` or `[0]`
    is_closed: Vec<bool>,
    /// Places of the error nodes among all layers and positions, ascending; `None`: all of them.
    error_cells: Option<Vec<u32>>,
}

impl NodeLayout {
    /// Lays out `features` (selected, sorted, distinct) with the errors, tokens and targets of a graph.
    ///
    /// # Errors
    /// A feature outside `n_layers` and `n_pos`, or features that are not strictly ascending.
    pub fn new(features: Vec<FeatureId>, n_layers: usize, n_pos: usize, n_targets: usize) -> Result<NodeLayout> {
        let mut cell_starts = Vec::with_capacity(n_layers * n_pos + 1);
        for (index, feature) in features.iter().enumerate() {
            let (layer, pos) = (feature.layer as usize, feature.pos as usize);
            if layer >= n_layers {
                return Err(Error::GraphIndex { name: "layer of a feature", index, value: layer, limit: n_layers });
            }
            if pos >= n_pos {
                return Err(Error::GraphIndex { name: "position of a feature", index, value: pos, limit: n_pos });
            }
            if index > 0 && features[index - 1] >= *feature {
                return Err(Error::GraphOrder { name: "features", index });
            }
            while cell_starts.len() <= layer * n_pos + pos {
                cell_starts.push(index);
            }
        }
        cell_starts.resize(n_layers * n_pos + 1, features.len());
        let (is_closed, error_cells) = (Vec::new(), None);
        Ok(NodeLayout { features, n_layers, n_pos, n_targets, cell_starts, is_closed, error_cells })
    }

    /// The same with a context in the place of the token at each of `closed`.
    ///
    /// # Errors
    /// Positions outside the prompt or not strictly ascending; a feature at one of them.
    pub fn with_closed(mut self, closed: &[usize]) -> Result<NodeLayout> {
        self.is_closed = if closed.is_empty() { Vec::new() } else { vec![false; self.n_pos] };
        for (index, &pos) in closed.iter().enumerate() {
            if pos >= self.n_pos {
                return Err(Error::GraphIndex { name: "closed position", index, value: pos, limit: self.n_pos });
            }
            if index > 0 && closed[index - 1] >= pos {
                return Err(Error::GraphOrder { name: "closed positions", index });
            }
            self.is_closed[pos] = true;
        }
        match self.features.iter().position(|feature| self.is_closed(feature.pos as usize)) {
            Some(index) => {
                let value = self.features[index].pos as usize;
                Err(Error::GraphIndex { name: "position of a feature, which is closed,", index, value, limit: 0 })
            }
            None => Ok(self),
        }
    }

    /// The same with these error nodes only, as (layer, position).
    ///
    /// # Errors
    /// Places outside the graph or not strictly ascending.
    pub fn with_errors(mut self, errors: &[(usize, usize)]) -> Result<NodeLayout> {
        let mut cells: Vec<u32> = Vec::with_capacity(errors.len());
        for (index, &(layer, pos)) in errors.iter().enumerate() {
            if layer >= self.n_layers {
                let limit = self.n_layers;
                return Err(Error::GraphIndex { name: "layer of an error", index, value: layer, limit });
            }
            if pos >= self.n_pos {
                return Err(Error::GraphIndex { name: "position of an error", index, value: pos, limit: self.n_pos });
            }
            let cell = (layer * self.n_pos + pos) as u32;
            if cells.last().is_some_and(|&last| last >= cell) {
                return Err(Error::GraphOrder { name: "errors", index });
            }
            cells.push(cell);
        }
        self.error_cells = Some(cells);
        Ok(self)
    }

    /// The same with an error node at every layer and position.
    pub(crate) fn with_all_errors(mut self) -> NodeLayout {
        self.error_cells = None;
        self
    }

    /// Sum over the token nodes of values that all nodes have. `values` `[n_nodes]`, targets left out or not
    pub(crate) fn sum_of_tokens(&self, values: &[f64]) -> f64 {
        let of_positions = values[self.tokens()].iter().enumerate();
        of_positions.filter(|&(pos, _)| !self.is_closed(pos)).map(|(_, value)| value).sum()
    }

    /// Whether a position is closed: it has a context, and no features, errors or token.
    pub fn is_closed(&self, pos: usize) -> bool {
        self.is_closed.get(pos).copied().unwrap_or(false)
    }

    /// The closed positions, ascending.
    pub fn closed(&self) -> Vec<usize> {
        (0..self.is_closed.len()).filter(|&pos| self.is_closed[pos]).collect()
    }

    /// Whether every layer and position has an error node.
    pub fn has_all_errors(&self) -> bool {
        self.error_cells.is_none()
    }

    /// Selected features, F.
    pub fn n_features(&self) -> usize {
        self.features.len()
    }

    /// Layers of the base model, L.
    pub fn n_layers(&self) -> usize {
        self.n_layers
    }

    /// Positions of the prompt, n.
    pub fn n_pos(&self) -> usize {
        self.n_pos
    }

    /// Targets, K.
    pub fn n_targets(&self) -> usize {
        self.n_targets
    }

    /// All nodes: the columns of the edge rows.
    pub fn n_nodes(&self) -> usize {
        self.targets().end
    }

    /// The edge rows: one for each feature and target.
    pub fn n_rows(&self) -> usize {
        self.n_features() + self.n_targets
    }

    /// The selected features, in node order. `[n_features]`
    pub fn feature_ids(&self) -> &[FeatureId] {
        &self.features
    }

    /// Indices of the feature nodes.
    pub fn features(&self) -> Range<usize> {
        0..self.n_features()
    }

    /// Indices of the error nodes.
    pub fn errors(&self) -> Range<usize> {
        let start = self.n_features();
        start..start + self.error_cells.as_ref().map_or(self.n_layers * self.n_pos, Vec::len)
    }

    /// Indices of the token nodes, and of the contexts in their places: one for each position.
    pub fn tokens(&self) -> Range<usize> {
        let start = self.errors().end;
        start..start + self.n_pos
    }

    /// Indices of the target nodes.
    pub fn targets(&self) -> Range<usize> {
        let start = self.tokens().end;
        start..start + self.n_targets
    }

    /// The node at `index`, or `None` past the last one.
    pub fn node(&self, index: usize) -> Option<NodeId> {
        if index < self.n_features() {
            Some(self.features[index].into())
        } else if self.errors().contains(&index) {
            let cell = self.cell_of_error(index - self.errors().start);
            Some(NodeId::Error { layer: (cell / self.n_pos) as u32, pos: (cell % self.n_pos) as u32 })
        } else if self.tokens().contains(&index) {
            let pos = index - self.tokens().start;
            Some(match self.is_closed(pos) {
                true => NodeId::Context { pos: pos as u32 },
                false => NodeId::Token { pos: pos as u32 },
            })
        } else if self.targets().contains(&index) {
            Some(NodeId::Target { index: (index - self.targets().start) as u32 })
        } else {
            None
        }
    }

    /// The index of `node`, or `None` where this graph does not have it.
    ///
    /// # Cost
    /// A binary search among the features of one layer and position.
    pub fn index(&self, node: NodeId) -> Option<usize> {
        match node {
            NodeId::Feature { layer, pos, feature } => {
                let range = self.features_at(layer as usize, pos as usize)?;
                let found = self.features[range.clone()].binary_search(&FeatureId { layer, pos, feature }).ok()?;
                Some(range.start + found)
            }
            NodeId::Error { layer, pos } => {
                let (layer, pos) = (layer as usize, pos as usize);
                let cell = (layer < self.n_layers && pos < self.n_pos).then(|| self.error_cell(layer, pos))?;
                let place = match &self.error_cells {
                    Some(cells) => cells.binary_search(&(cell as u32)).ok()?,
                    None => cell,
                };
                Some(self.errors().start + place)
            }
            NodeId::Token { pos } | NodeId::Context { pos } => {
                let is_context = matches!(node, NodeId::Context { .. });
                let pos = pos as usize;
                (pos < self.n_pos && self.is_closed(pos) == is_context).then(|| self.tokens().start + pos)
            }
            NodeId::Target { index } => {
                ((index as usize) < self.n_targets).then(|| self.targets().start + index as usize)
            }
        }
    }

    /// The place of a layer and position among all: layer-major.
    pub(crate) fn error_cell(&self, layer: usize, pos: usize) -> usize {
        layer * self.n_pos + pos
    }

    /// The place among all layers and positions of the error node that is number `at` of the error nodes.
    pub(crate) fn cell_of_error(&self, at: usize) -> usize {
        self.error_cells.as_ref().map_or(at, |cells| cells[at] as usize)
    }

    /// Indices of the error nodes whose places are in `cells`.
    fn errors_in(&self, cells: Range<usize>) -> Range<usize> {
        let start = self.errors().start;
        let before = |end: usize| match &self.error_cells {
            Some(all) => all.partition_point(|&cell| (cell as usize) < end),
            None => end,
        };
        start + before(cells.start)..start + before(cells.end)
    }

    /// The kind of the node at `index`.
    ///
    /// # Panics
    /// Past the last node.
    pub fn kind_of(&self, index: usize) -> NodeKind {
        assert!(index < self.n_nodes(), "node {index} of {}", self.n_nodes());
        match index {
            index if index < self.errors().start => NodeKind::Feature,
            index if index < self.tokens().start => NodeKind::Error,
            index if index < self.targets().start => match self.is_closed(index - self.tokens().start) {
                true => NodeKind::Context,
                false => NodeKind::Token,
            },
            _ => NodeKind::Target,
        }
    }

    /// The layer of the node at `index`; `None` for tokens, contexts, targets and indices past the end.
    pub(crate) fn layer_of(&self, index: usize) -> Option<u32> {
        self.node(index)?.layer()
    }

    /// Indices of the features of one layer at one position, or `None` outside the graph.
    fn features_at(&self, layer: usize, pos: usize) -> Option<Range<usize>> {
        if layer >= self.n_layers || pos >= self.n_pos {
            return None;
        }
        let cell = layer * self.n_pos + pos;
        Some(self.cell_starts[cell]..self.cell_starts[cell + 1])
    }

    /// Indices (and rows) of the features of one layer; empty outside the graph.
    pub(crate) fn features_of_layer(&self, layer: usize) -> Range<usize> {
        if layer >= self.n_layers {
            return self.n_features()..self.n_features();
        }
        self.cell_starts[layer * self.n_pos]..self.cell_starts[(layer + 1) * self.n_pos]
    }

    /// The node whose incoming edges are row `row`, or `None` past the last row.
    pub fn node_of_row(&self, row: usize) -> Option<usize> {
        (row < self.n_rows()).then(|| self.node_at_row(row))
    }

    /// As [`NodeLayout::node_of_row`], for rows that exist.
    ///
    /// # Panics
    /// Past the last row.
    pub(crate) fn node_at_row(&self, row: usize) -> usize {
        assert!(row < self.n_rows(), "row {row} of {}", self.n_rows());
        if row < self.n_features() { row } else { self.targets().start + row - self.n_features() }
    }

    /// Which target `row` belongs to; `None` where it is a feature's.
    pub(crate) fn target_of_row(&self, row: usize) -> Option<usize> {
        row.checked_sub(self.n_features())
    }

    /// The rows of the targets.
    pub fn target_rows(&self) -> Range<usize> {
        self.n_features()..self.n_rows()
    }

    /// The columns of `row` that can be other than zero, as ascending ranges: layers below the row's own, positions up
    /// to its own (definitions 4). A target may see every feature, error and token.
    ///
    /// Everything that goes over edges goes over these ranges: it skips more than half of the matrix.
    pub fn source_ranges(&self, row: usize) -> SourceRanges<'_> {
        match self.features.get(row) {
            Some(feature) => SourceRanges {
                layout: self,
                n_layers: feature.layer as usize,
                n_pos: feature.pos as usize + 1,
                step: 0,
            },
            None => SourceRanges { layout: self, n_layers: self.n_layers, n_pos: self.n_pos, step: 0 },
        }
    }
}

/// The iterator of [`NodeLayout::source_ranges`].
#[derive(Debug, Clone)]
pub struct SourceRanges<'a> {
    layout: &'a NodeLayout,
    /// Layers that the row may see: all below this one.
    n_layers: usize,
    /// Positions that the row may see.
    n_pos: usize,
    step: usize,
}

impl Iterator for SourceRanges<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let layout = self.layout;
        // Whole layers lie side by side, so a row that sees every position needs one range for all of them.
        let sees_all = self.n_pos == layout.n_pos;
        let (n_blocks, layers_per_block) = if sees_all { (1, self.n_layers) } else { (self.n_layers, 1) };
        let step = self.step;
        self.step += 1;
        if step < n_blocks {
            let first = step * layout.n_pos;
            let end = if sees_all { layers_per_block * layout.n_pos } else { first + self.n_pos };
            Some(layout.cell_starts[first]..layout.cell_starts[end])
        } else if step < 2 * n_blocks {
            let first = (step - n_blocks) * layout.n_pos;
            Some(layout.errors_in(first..first + if sees_all { layers_per_block * layout.n_pos } else { self.n_pos }))
        } else if step == 2 * n_blocks {
            let first = layout.tokens().start;
            Some(first..first + self.n_pos)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> NodeLayout {
        let features = [(0, 1, 5), (0, 2, 0), (0, 2, 9), (2, 1, 3), (2, 2, 3)];
        let features = features.map(|(layer, pos, feature)| FeatureId { layer, pos, feature }).to_vec();
        NodeLayout::new(features, 3, 4, 2).unwrap()
    }

    #[test]
    fn every_index_comes_back_from_its_node() {
        let layout = layout();
        assert_eq!(layout.n_nodes(), 5 + 12 + 4 + 2);
        for index in 0..layout.n_nodes() {
            assert_eq!(layout.index(layout.node(index).unwrap()), Some(index));
        }
        assert_eq!(layout.node(layout.n_nodes()), None);
        assert_eq!(layout.index(NodeId::Feature { layer: 1, pos: 1, feature: 3 }), None);
        assert_eq!(layout.index(NodeId::Error { layer: 3, pos: 0 }), None);
        // Features and targets have rows, in this order; errors and tokens have none.
        let of_rows: Vec<usize> = (0..).map_while(|row| layout.node_of_row(row)).collect();
        assert_eq!(of_rows, layout.features().chain(layout.targets()).collect::<Vec<_>>());
    }

    #[test]
    fn closed_positions_have_contexts_and_errors_may_be_few() {
        let f = |layer, pos, feature| FeatureId { layer, pos, feature };
        let open = || NodeLayout::new(vec![f(0, 1, 1), f(1, 3, 0)], 2, 4, 1).unwrap();
        let layout = open().with_closed(&[0, 2]).unwrap().with_errors(&[(0, 1), (1, 1), (1, 3)]).unwrap();
        assert_eq!(layout.n_nodes(), 2 + 3 + 4 + 1);
        for index in 0..layout.n_nodes() {
            assert_eq!(layout.index(layout.node(index).unwrap()), Some(index));
            assert_eq!(layout.node(index).unwrap().kind(), layout.kind_of(index));
        }
        assert_eq!(layout.node(5), Some(NodeId::Context { pos: 0 }));
        assert_eq!(layout.index(NodeId::Token { pos: 0 }), None);
        assert_eq!(layout.index(NodeId::Context { pos: 1 }), None);
        assert_eq!(layout.index(NodeId::Error { layer: 0, pos: 3 }), None);
        assert_eq!(layout.closed(), [0, 2]);
        assert!(open().with_closed(&[1]).is_err() && open().with_closed(&[2, 0]).is_err());
        assert!(open().with_closed(&[4]).is_err() && open().with_errors(&[(2, 0)]).is_err());
        assert!(open().with_errors(&[(1, 0), (0, 1)]).is_err());
        source_ranges_hold(&layout);
    }

    #[test]
    fn source_ranges_hold_lower_layers_and_earlier_positions_only() {
        source_ranges_hold(&layout());
    }

    fn source_ranges_hold(layout: &NodeLayout) {
        for row in 0..layout.n_rows() {
            let seen: Vec<usize> = layout.source_ranges(row).flatten().collect();
            let target = layout.node(layout.node_of_row(row).unwrap()).unwrap();
            let expected: Vec<usize> = (0..layout.targets().start)
                .filter(|&s| {
                    let source = layout.node(s).unwrap();
                    let below = target.layer().is_none_or(|l| source.layer().is_none_or(|s| s < l));
                    below && target.pos().is_none_or(|c| source.pos().unwrap() <= c)
                })
                .collect();
            assert_eq!(seen, expected, "row {row}");
        }
    }

    #[test]
    fn unsorted_and_foreign_features_are_refused() {
        let f = |layer, pos, feature| FeatureId { layer, pos, feature };
        assert!(NodeLayout::new(vec![f(0, 0, 1), f(0, 0, 1)], 1, 1, 0).is_err());
        assert!(NodeLayout::new(vec![f(0, 1, 1), f(0, 0, 1)], 1, 2, 0).is_err());
        assert!(NodeLayout::new(vec![f(1, 0, 1)], 1, 1, 0).is_err());
        assert!(NodeLayout::new(vec![f(0, 1, 1)], 1, 1, 0).is_err());
    }
}
