//! Names of features: `L_F_P`, `L/F`, and with a graph its supernodes, its labels and whatever else names its nodes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::circuits::{GroupRequest, OpenedGraph, Opening, find_nodes, open_graph, typed_position};
use crate::cli::collected::label_from_beside;
use crate::error::ErrorContext;
use crate::graph::{Circuit, FeatureId, Node};
use crate::intervene::{FeatureSpec, Positions, Supernodes};
use crate::replacement::Replacement;
use crate::text::nearest;
use crate::tracer::TokenizedPrompt;
use crate::{Error, Result};

/// A graph whose features have names.
#[derive(Debug)]
pub(super) struct NamedGraph {
    pub path: PathBuf,
    pub opened: OpenedGraph,
    /// Its supernodes, features only: other nodes have nothing to change.
    pub supernodes: Vec<(String, Vec<FeatureId>)>,
    request: GroupRequest,
}

impl NamedGraph {
    /// Opens a graph; what supernodes it has says `request`.
    ///
    /// # Errors
    /// A graph that cannot be read; supernodes that cannot be.
    pub(super) fn open(path: &Path, request: GroupRequest) -> Result<Self> {
        let mut opened = open_graph(path, &Opening::default())?;
        label_from_beside(&mut opened.circuit);
        if let Some(view) = &request.shared {
            view.relabel(&mut opened.circuit);
        }
        let supernodes = request.supernodes(&opened)?.into_iter().map(|group| {
            let features = group.members.iter().filter_map(|&index| opened.circuit.node(index).id.feature());
            (group.name, features.collect::<Vec<_>>())
        });
        let supernodes = supernodes.filter(|(_, features)| !features.is_empty()).collect();
        Ok(Self { path: path.to_owned(), opened, supernodes, request })
    }

    pub(super) fn circuit(&self) -> &Circuit {
        &self.opened.circuit
    }

    /// The supernodes as nodes of the circuit.
    ///
    /// # Errors
    /// As [`NamedGraph::open`], which has made sure of them.
    pub(super) fn groups(&self) -> Result<Vec<crate::circuits::Supernode>> {
        self.request.supernodes(&self.opened)
    }

    /// The nodes that are features.
    pub(super) fn features(&self) -> BTreeSet<FeatureId> {
        self.nodes().map(|(id, _)| id).collect()
    }

    /// The nodes that are features, with their activations.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (FeatureId, &Node)> {
        let nodes = self.circuit().graph().node_weights();
        nodes.filter_map(|node| Some((node.id.feature()?, node)))
    }

    /// Refuses graphs of another model.
    ///
    /// # Errors
    /// [`Error::GraphMismatch`], [`Error::NoSuchFeature`].
    pub(super) fn check_model(&self, replacement: &Replacement) -> Result<()> {
        let (meta, scan) = (&self.circuit().meta, &replacement.transcoders.scan);
        if !meta.scan.is_empty() && meta.scan != *scan {
            let (graph, model) = (format!("{:?}", meta.scan), format!("{scan:?}"));
            return Err(Error::GraphMismatch { what: "transcoders are", graph, model });
        }
        for f in self.features() {
            let known = replacement.transcoders.check_feature(f.layer as usize, f.feature as usize);
            known.context(|| format!("`{}` is a graph of another model", self.path.display()))?;
        }
        Ok(())
    }

    /// The prompt that was traced.
    pub(super) fn prompt(&self) -> crate::tracer::Prompt {
        match &self.opened.raw {
            Some(raw) => TokenizedPrompt {
                text: raw.meta.prompt.clone(),
                tokens: raw.input_tokens.iter().map(|&token| token as u32).collect(),
            }
            .into(),
            None => self.circuit().meta.prompt.as_str().into(),
        }
    }

    /// The features of a supernode, in whatever case its name is written, or of those at one position (`Texas@7`).
    ///
    /// # Errors
    /// [`Error::AmbiguousSupernode`].
    fn in_supernode(&self, name: &str) -> Result<Vec<FeatureId>> {
        if let Some(features) = self.called(name)? {
            return Ok(features.to_vec());
        }
        let Some((stem, pos)) = name.rsplit_once('@') else { return Ok(Vec::new()) };
        let Some(pos) = typed_position(pos, self.circuit().meta.prompt_tokens.len()) else { return Ok(Vec::new()) };
        let features = self.called(stem)?.into_iter().flatten();
        Ok(features.copied().filter(|feature| feature.pos == pos).collect())
    }

    /// The features of the one supernode of a name: as it is written, else in whatever case.
    ///
    /// # Errors
    /// [`Error::AmbiguousSupernode`] where there are several.
    fn called(&self, name: &str) -> Result<Option<&[FeatureId]>> {
        let lower = name.trim().to_lowercase();
        let exact = self.one(name, |known| known == name)?;
        if exact.is_some() { Ok(exact) } else { self.one(name, |known| known.trim().to_lowercase() == lower) }
    }

    /// The features of the one supernode whose name fits.
    ///
    /// # Errors
    /// As [`NamedGraph::called`].
    fn one(&self, name: &str, fits: impl Fn(&str) -> bool) -> Result<Option<&[FeatureId]>> {
        let found: Vec<_> = self.supernodes.iter().filter(|(known, _)| fits(known)).collect();
        let shown = |(known, features): &(String, Vec<FeatureId>)| {
            let ids: Vec<String> = features.iter().map(|id| spec(*id).to_string()).collect();
            format!("{known} ({})", ids.join(", "))
        };
        match found[..] {
            [] => Ok(None),
            [(_, features)] => Ok(Some(features)),
            _ => Err(Error::AmbiguousSupernode {
                name: name.to_owned(),
                graph: self.path.display().to_string(),
                members: found.into_iter().map(shown).collect(),
            }),
        }
    }

    /// The features of a supernode, else those whose label is `name`, else those that [`find_nodes`] finds.
    ///
    /// # Errors
    /// [`Error::UnknownSupernode`], with the nearest name; [`Error::AmbiguousSupernode`]; [`Error::UnknownNode`] where a feature is named by numbers.
    pub(super) fn find(&self, name: &str) -> Result<Vec<FeatureId>> {
        if let Some(features) = self.one(name, |known| known == name)? {
            return Ok(features.to_vec());
        }
        let is_labelled = |node: &Node| node.label.as_deref().is_some_and(|label| label.trim() == name.trim());
        let labelled: Vec<FeatureId> = self.nodes().filter(|(_, node)| is_labelled(node)).map(|(id, _)| id).collect();
        if !labelled.is_empty() {
            return Ok(labelled);
        }
        let grouped = self.in_supernode(name)?;
        if !grouped.is_empty() {
            return Ok(grouped);
        }
        let found = find_nodes(self.circuit(), name);
        if found.is_err() && numbers(name).is_some() {
            return found.map(|_| Vec::new());
        }
        let nodes = found.into_iter().flatten();
        let features: Vec<FeatureId> = nodes.filter_map(|index| self.circuit().node(index).id.feature()).collect();
        if !features.is_empty() {
            return Ok(features);
        }
        let supernodes = self.supernodes.iter().map(|(name, _)| name.as_str());
        let labels = self.nodes().filter_map(|(_, node)| node.label.as_deref());
        Err(Error::UnknownSupernode {
            name: name.to_owned(),
            graph: self.path.display().to_string(),
            nearest: nearest(name, supernodes.chain(labels)).map(str::to_owned),
            known: self.supernodes.iter().map(|(name, _)| name.clone()).collect(),
        })
    }
}

/// The features that an option names, and whether the name stands for several: `L_F_P`, where P may count from the end of
/// the prompt's `n_pos` positions; `L/F`, which is the feature wherever the graph has it, or without one everywhere; or a
/// name of the graph.
///
/// # Errors
/// [`Error::Spec`] without a graph, [`Error::UnknownSupernode`] and [`Error::UnknownNode`] with one.
pub(super) fn named_features(text: &str, n_pos: usize, graph: Option<&NamedGraph>) -> Result<(Vec<FeatureSpec>, bool)> {
    let error = match text.parse::<FeatureSpec>() {
        Ok(feature) => return Ok((vec![feature], false)),
        Err(error) => error,
    };
    if let Some((layer, feature, pos)) = numbers(text) {
        let positions = match (pos, graph) {
            (None, Some(graph)) => {
                let features = graph.find(text)?;
                let are_several = features.len() > 1;
                return Ok((features.into_iter().map(spec).collect(), are_several));
            }
            (None, None) => Positions::All,
            (Some(pos), _) if pos.starts_with('-') => {
                let expected = "a position of the prompt: the last is -1, and the first 0";
                let pos = typed_position(pos, n_pos).ok_or(Error::Spec { text: pos.to_owned(), expected })?;
                Positions::At(pos as usize)
            }
            (Some(pos), _) => pos.parse()?,
        };
        return Ok((vec![FeatureSpec { layer, feature, positions }], false));
    }
    let is_number = text.split('_').all(|part| part.chars().all(|c| c.is_ascii_digit() || ".*".contains(c)));
    match graph {
        Some(graph) if !is_number => Ok((graph.find(text)?.into_iter().map(spec).collect(), true)),
        _ => Err(error),
    }
}

/// `0/39`, `0_39`, `0_39_7`, `0_39_-1`, `0/39@7` taken apart, the position as it is typed.
fn numbers(text: &str) -> Option<(usize, usize, Option<&str>)> {
    let (layer, rest) = text.split_once(['_', '/'])?;
    let (feature, pos) = match rest.split_once(['_', '/', '@']) {
        Some((feature, pos)) => (feature, Some(pos.trim())),
        None => (rest, None),
    };
    Some((layer.trim().parse().ok()?, feature.trim().parse().ok()?, pos))
}

/// A feature at its position.
pub(super) fn spec(id: FeatureId) -> FeatureSpec {
    FeatureSpec { layer: id.layer as usize, feature: id.feature as usize, positions: Positions::At(id.pos as usize) }
}

/// A graph's supernodes, for plans.
///
/// # Errors
/// [`Error::AmbiguousSupernode`]: a plan would change one of them or the other.
pub(super) fn supernodes(graph: Option<&NamedGraph>) -> Result<Supernodes> {
    let Some(graph) = graph else { return Ok(Supernodes::new()) };
    let of_name = |(name, _): &(String, Vec<FeatureId>)| {
        let features = graph.one(name, |known| known == name)?.unwrap_or_default();
        Ok((name.clone(), features.iter().copied().map(spec).collect()))
    };
    graph.supernodes.iter().map(of_name).collect()
}
