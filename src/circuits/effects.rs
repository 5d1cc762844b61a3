//! Signed effects on one target, by position, layer and kind: which tokens push which way, and how much is unexplained.
//! Definitions 10.

use petgraph::Direction;
use petgraph::graph::NodeIndex;
use petgraph::visit::EdgeRef;
use serde::{Deserialize, Serialize};

use crate::export::node_id_text;
use crate::graph::{AttributionGraph, ByPlace, Circuit, NodeId, NodeKind, PathEffects, path_effects};

/// Which edges effects were summed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EdgesSummed {
    /// All edges of the raw graph: what is summed adds up to the target's value.
    All,
    /// Those that pruning has left.
    Pruned,
    /// Those from nodes of a part.
    Part,
}

/// Direct effects on one target at every layer and position: the matrix of a heat map.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EffectMap {
    /// Layers of the base model.
    pub n_layers: usize,
    /// Positions of the prompt.
    pub n_pos: usize,
    /// Summed over the features there, layer-major. `[n_layers, n_pos]`
    pub features: Vec<f64>,
    /// Of the error nodes, layer-major. `[n_layers, n_pos]`
    pub errors: Vec<f64>,
    /// Of the token nodes, and of the contexts in their places. `[n_pos]`
    pub tokens: Vec<f64>,
    /// The part of `tokens` that is of contexts.
    pub contexts: f64,
    /// Summed |effect| of features, tokens and contexts.
    pub explained_abs: f64,
    /// Summed |effect| of errors.
    pub errors_abs: f64,
}

impl EffectMap {
    /// Of a feature or target of a raw graph, over all edges; of a target also what features and errors that are no nodes
    /// give, where the graph tells from which places.
    ///
    /// # Panics
    /// Past the last row.
    pub fn of_row(graph: &AttributionGraph, row: usize) -> EffectMap {
        let layout = graph.layout();
        let mut map = EffectMap::empty(layout.n_layers(), layout.n_pos());
        for source in layout.source_ranges(row).flatten() {
            if let Some(id) = layout.node(source) {
                map.add(id, f64::from(graph.row(row)[source]));
            }
        }
        for (place, &sum) in by_place(graph, ByPlace::Unselected, row).unwrap_or_default().iter().enumerate() {
            map.features[place] += f64::from(sum);
            // Single effects are not known; their sum is no more than they are.
            map.explained_abs += f64::from(sum.abs());
        }
        for (place, &sum) in by_place(graph, ByPlace::UnselectedErrors, row).unwrap_or_default().iter().enumerate() {
            map.errors[place] += f64::from(sum);
            map.errors_abs += f64::from(sum.abs());
        }
        map
    }

    /// Of a node of a circuit, over the circuit's edges.
    pub fn of_node(circuit: &Circuit, node: NodeIndex) -> EffectMap {
        let mut map = EffectMap::empty(circuit.meta.n_layers, n_pos(circuit));
        for edge in circuit.graph().edges_directed(node, Direction::Incoming) {
            map.add(circuit.node(edge.source()).id, f64::from(edge.weight().weight));
        }
        map
    }

    fn empty(n_layers: usize, n_pos: usize) -> EffectMap {
        let cells = vec![0.0; n_layers * n_pos];
        EffectMap {
            n_layers,
            n_pos,
            features: cells.clone(),
            errors: cells,
            tokens: vec![0.0; n_pos],
            ..Default::default()
        }
    }

    /// Nodes of a foreign file may lie outside of the model's layers: they have no cell.
    fn add(&mut self, id: NodeId, effect: f64) {
        let cell = |layer: u32, pos: u32| layer as usize * self.n_pos + pos as usize;
        let place = match id {
            NodeId::Feature { layer, pos, .. } => self.features.get_mut(cell(layer, pos)),
            NodeId::Error { layer, pos } => self.errors.get_mut(cell(layer, pos)),
            NodeId::Token { pos } | NodeId::Context { pos } => self.tokens.get_mut(pos as usize),
            NodeId::Target { .. } => None,
        };
        if let Some(place) = place {
            *place += effect;
            let sum = if id.kind() == NodeKind::Error { &mut self.errors_abs } else { &mut self.explained_abs };
            *sum += effect.abs();
            if id.kind() == NodeKind::Context {
                self.contexts += effect;
            }
        }
    }

    /// Features and errors together, layer-major. `[n_layers, n_pos]`
    pub fn cells(&self) -> Vec<f64> {
        self.features.iter().zip(&self.errors).map(|(features, errors)| features + errors).collect()
    }
}

/// Signed effects on one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Effects {
    /// Id of the target's node.
    pub target: String,
    /// What it stands for.
    pub text: String,
    /// Which edges were summed.
    pub edges: EdgesSummed,
    /// What the target's row adds up to with its biases: its demeaned logit, difference or pre-activation. Known from raw
    /// graphs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// Sums of the direct effects.
    pub direct: DirectEffects,
    /// Sums of the effects along all paths; of raw graphs, and of circuits with the activations of their features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub along_paths: Option<PathSums>,
    /// By position, all of them, in order.
    pub positions: Vec<PositionEffects>,
    /// Direct effects by layer, from below.
    pub layers: Vec<LayerEffects>,
}

/// Direct effects on a target, summed by kind of source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct DirectEffects {
    /// From features.
    pub features: f64,
    /// From errors: what nothing explains.
    pub errors: f64,
    /// From tokens.
    pub tokens: f64,
    /// From contexts: what attention reads at closed positions.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub contexts: f64,
    /// From biases; known from raw graphs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub biases: Option<f64>,
    /// From active features without a row that are not among the features, since the graph does not tell where they are;
    /// known from raw graphs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unselected: Option<f64>,
    /// Summed |effect| of errors as a part of that of all nodes, in 0..=1.
    pub errors_abs_share: f64,
}

/// Effects along all paths, summed by where paths begin ([`path_effects`]).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PathSums {
    /// At tokens and contexts.
    pub tokens: f64,
    /// At errors.
    pub errors: f64,
    /// At biases; known from raw graphs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub biases: Option<f64>,
    /// At active features without a row; known from raw graphs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unselected: Option<f64>,
}

/// What one position gives a target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PositionEffects {
    /// Position in the prompt.
    pub pos: u32,
    /// The prompt's token there.
    pub text: String,
    /// Direct effect of the features there.
    pub features: f64,
    /// Direct effect of the errors there.
    pub errors: f64,
    /// Direct effect of the token itself; of a closed position, of its context.
    pub token: f64,
    /// Effect of the token, or of the context, along all paths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_along_paths: Option<f64>,
    /// Effect of the errors there along all paths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors_along_paths: Option<f64>,
    /// The part of all influence on all targets that begins at the token or context, in 0..=1.
    pub token_share: f64,
    /// The part that begins at the errors there, in 0..=1.
    pub error_share: f64,
}

impl PositionEffects {
    /// Direct effect of everything at the position.
    pub fn direct(&self) -> f64 {
        self.features + self.errors + self.token
    }
}

/// What one layer gives a target directly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerEffects {
    /// Which one.
    pub layer: u32,
    /// From its features.
    pub features: f64,
    /// From its errors.
    pub errors: f64,
    /// From features and errors at each position. `[n_pos]`
    pub by_position: Vec<f64>,
}

impl Effects {
    /// Effects on each of `targets`, which are targets or features of `circuit`; on the first one along all paths too. With
    /// `raw`, the graph that the circuit was pruned from, over all of its edges; but for a part of a circuit, over the
    /// part's.
    ///
    /// # Cost
    /// Linear in the circuit's nodes and edges; with `raw`, one pass over its edge rows.
    pub fn on(circuit: &Circuit, raw: Option<&AttributionGraph>, targets: &[NodeIndex]) -> Vec<Effects> {
        let shares = Begins::shares(circuit);
        let effects = |(at, &target): (usize, &NodeIndex)| Effects::new(circuit, raw, target, at == 0, &shares);
        targets.iter().enumerate().map(effects).collect()
    }

    fn new(
        circuit: &Circuit,
        raw: Option<&AttributionGraph>,
        target: NodeIndex,
        along_paths: bool,
        shares: &Begins,
    ) -> Effects {
        let node = circuit.node(target);
        let row = raw.filter(|_| !circuit.is_part()).and_then(|raw| Some((raw, row_of(raw, node.id)?)));
        let map = match row {
            Some((raw, row)) => EffectMap::of_row(raw, row),
            None => EffectMap::of_node(circuit, target),
        };
        let edges = match (row, circuit.is_part()) {
            (Some(_), _) => EdgesSummed::All,
            (None, true) => EdgesSummed::Part,
            (None, false) => EdgesSummed::Pruned,
        };
        let (n_layers, n_pos) = (map.n_layers, map.n_pos);
        // By position; `None` where it is not known.
        let mut paths = None;
        if along_paths {
            let mut begins = Begins::new(n_pos);
            match row {
                Some((raw, row)) => {
                    let PathEffects { nodes, biases, unselected } = path_effects(raw, row);
                    let layout = raw.layout();
                    for index in layout.errors().chain(layout.tokens()) {
                        layout.node(index).into_iter().for_each(|id| begins.add(id, nodes[index]));
                    }
                    paths = Some((begins, Some(biases), Some(unselected)));
                }
                None if edges == EdgesSummed::Pruned => {
                    if let Some(effects) = circuit.path_effects(target) {
                        circuit.graph().node_indices().for_each(|i| begins.add(circuit.node(i).id, effects[i.index()]));
                        paths = Some((begins, None, None));
                    }
                }
                None => {}
            }
        }
        let at = |cells: &[f64], pos: usize| (0..n_layers).map(|layer| cells[layer * n_pos + pos]).sum::<f64>();
        let position = |pos: usize| PositionEffects {
            pos: pos as u32,
            text: circuit.meta.prompt_tokens.get(pos).cloned().unwrap_or_default(),
            features: at(&map.features, pos),
            errors: at(&map.errors, pos),
            token: map.tokens[pos],
            token_along_paths: paths.as_ref().map(|(begins, ..)| begins.tokens[pos]),
            errors_along_paths: paths.as_ref().map(|(begins, ..)| begins.errors[pos]),
            token_share: shares.tokens.get(pos).copied().unwrap_or_default(),
            error_share: shares.errors.get(pos).copied().unwrap_or_default(),
        };
        let cells = map.cells();
        let layer = |layer: usize| {
            let row = layer * n_pos..(layer + 1) * n_pos;
            LayerEffects {
                layer: layer as u32,
                features: map.features[row.clone()].iter().sum(),
                errors: map.errors[row.clone()].iter().sum(),
                by_position: cells[row].to_vec(),
            }
        };
        type Values = fn(&AttributionGraph) -> &Vec<f32>;
        let of_row = |values: Values| row.map(|(raw, row)| values(raw).get(row).map_or(0.0, |&value| f64::from(value)));
        let abs = map.errors_abs + map.explained_abs;
        Effects {
            target: node_id_text(circuit.meta.n_layers, node),
            text: super::summary::text_of(circuit, target),
            edges,
            value: of_row(|raw| &raw.row_values),
            direct: DirectEffects {
                features: map.features.iter().sum(),
                errors: map.errors.iter().sum(),
                tokens: map.tokens.iter().sum::<f64>() - map.contexts,
                contexts: map.contexts,
                biases: of_row(|raw| &raw.bias_effect),
                unselected: match row.and_then(|(raw, row)| by_place(raw, ByPlace::Unselected, row)) {
                    Some(_) => Some(0.0),
                    None => of_row(|raw| &raw.unselected_effect),
                },
                errors_abs_share: if abs > 0.0 { map.errors_abs / abs } else { 0.0 },
            },
            along_paths: paths.as_ref().map(|(begins, biases, unselected)| PathSums {
                tokens: begins.tokens.iter().sum(),
                errors: begins.errors.iter().sum(),
                biases: *biases,
                unselected: *unselected,
            }),
            positions: (0..n_pos).map(position).collect(),
            layers: (0..n_layers).map(layer).collect(),
        }
    }
}

/// What begins at the tokens and errors of each position.
struct Begins {
    /// `[n_pos]`
    tokens: Vec<f64>,
    /// `[n_pos]`
    errors: Vec<f64>,
}

impl Begins {
    fn new(n_pos: usize) -> Begins {
        Begins { tokens: vec![0.0; n_pos], errors: vec![0.0; n_pos] }
    }

    /// Shares of the influence on all targets.
    fn shares(circuit: &Circuit) -> Begins {
        let mut shares = Begins::new(n_pos(circuit));
        let (influence, whole) = (circuit.node_influence(), circuit.whole_weight());
        if whole > 0.0 {
            circuit.graph().node_indices().for_each(|i| shares.add(circuit.node(i).id, influence[i.index()] / whole));
        }
        shares
    }

    fn add(&mut self, id: NodeId, value: f64) {
        match id {
            NodeId::Token { pos } | NodeId::Context { pos } => self.tokens[pos as usize] += value,
            NodeId::Error { pos, .. } => self.errors[pos as usize] += value,
            NodeId::Feature { .. } | NodeId::Target { .. } => {}
        }
    }
}

/// Positions of the prompt; of a foreign file, those that its nodes have.
fn n_pos(circuit: &Circuit) -> usize {
    let of_nodes = circuit.graph().node_weights().map(|node| node.pos as usize + 1).max().unwrap_or(0);
    of_nodes.max(circuit.meta.prompt_tokens.len())
}

/// What the target of a row gets from each place, where the graph tells; `None` of features.
fn by_place(graph: &AttributionGraph, what: ByPlace, row: usize) -> Option<&[f32]> {
    graph.by_place(what, row.checked_sub(graph.layout().n_features())?)
}

/// The row of a feature or target of a raw graph.
fn row_of(raw: &AttributionGraph, id: NodeId) -> Option<usize> {
    let layout = raw.layout();
    let index = layout.index(id)?;
    match id {
        NodeId::Feature { .. } => Some(index),
        NodeId::Target { .. } => Some(layout.n_features() + index - layout.targets().start),
        NodeId::Error { .. } | NodeId::Token { .. } | NodeId::Context { .. } => None,
    }
}

/// Graphs without closed positions do not speak of them.
fn is_zero(effect: &f64) -> bool {
    *effect == 0.0
}

/// The direct effect of a node of `circuit` on `target`: the edge of the raw graph where there is one, else the circuit's.
pub(super) fn direct_effects<'a>(
    circuit: &'a Circuit,
    raw: Option<&'a AttributionGraph>,
    target: Option<NodeIndex>,
) -> impl Fn(NodeIndex) -> f64 + 'a {
    let row = raw.and_then(|raw| Some((raw, row_of(raw, circuit.node(target?).id)?)));
    move |source| match (row, target) {
        (Some((raw, row)), _) => {
            let column = raw.layout().index(circuit.node(source).id);
            column.map_or(0.0, |column| f64::from(raw.row(row)[column]))
        }
        (None, Some(target)) => {
            let edges = circuit.graph().edges_connecting(source, target);
            edges.map(|edge| f64::from(edge.weight().weight)).sum()
        }
        (None, None) => 0.0,
    }
}
