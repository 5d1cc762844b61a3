//! The supernodes that somebody asks for: by hand, from a file, from the graph's own edges, or those that it holds.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use petgraph::graph::NodeIndex;
use serde::Deserialize;

use super::collapse::check_groups;
use super::{ClusterSettings, Directions, OpenedGraph, SharedView, Supernode, find_node, find_nodes, find_supernodes};
use crate::graph::Circuit;
use crate::input::read_json;
use crate::{Error, Result};

/// A supernode's name and the names of its members ([`find_nodes`]).
pub type NamedGroup = (String, Vec<String>);

/// Which supernodes are wanted. The default: those that the graph's file holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GroupRequest {
    /// Given by hand.
    pub named: Vec<NamedGroup>,
    /// From a JSON file: a list of `[name, id, ..]`, an object of lists of ids, or a graph that holds them.
    pub file: Option<PathBuf>,
    /// As the page of the graph has them: nodes that are not in the graph are left out.
    pub shared: Option<SharedView>,
    /// Found by their edges, and by decoder directions where a raw graph holds them: [`ClusterSettings::cut`], a cosine
    /// in -1..=1. What is grouped otherwise stays as it is.
    pub auto_cut: Option<f64>,
    /// Leave out what the graph's file holds; it is used where nothing else is asked for.
    pub ignore_stored: bool,
}

/// The forms that a file of supernodes has.
#[derive(Deserialize)]
#[serde(untagged)]
enum GroupFile {
    Lists(Vec<Vec<String>>),
    Graph {
        #[serde(rename = "qParams")]
        q_params: StoredGroups,
    },
    ByName(BTreeMap<String, Vec<String>>),
}

#[derive(Deserialize)]
struct StoredGroups {
    #[serde(default)]
    supernodes: Vec<Vec<String>>,
}

impl GroupRequest {
    /// # Errors
    /// A cut that is no cosine.
    pub fn check(&self) -> Result<()> {
        match self.auto_cut {
            Some(value) if !(-1.0..=1.0).contains(&value) => {
                Err(Error::Setting { name: "auto_group", value, range: "-1..=1" })
            }
            _ => Ok(()),
        }
    }

    /// The supernodes of a graph, members ascending.
    ///
    /// # Errors
    /// Nodes that are not in the graph (stored supernodes apart: viewers keep nodes that pruning has dropped since), a
    /// node in two supernodes, a supernode without members, a file that cannot be read.
    ///
    /// # Cost
    /// As [`find_supernodes`] where they are found; else linear in nodes for each id.
    pub fn supernodes(&self, opened: &OpenedGraph) -> Result<Vec<Supernode>> {
        self.supernodes_in(&opened.circuit, &|index| opened.decoder_direction(index), || opened.stored_groups())
    }

    /// As [`GroupRequest::supernodes`], in a circuit that came from no file; `stored` gives what a file would hold.
    ///
    /// # Errors
    /// As [`GroupRequest::supernodes`].
    pub fn supernodes_in(
        &self,
        circuit: &Circuit,
        direction: Directions,
        stored: impl FnOnce() -> Vec<NamedGroup>,
    ) -> Result<Vec<Supernode>> {
        self.check()?;
        let mut groups = Vec::new();
        for group in &self.named {
            groups.push(supernode(circuit, group)?);
        }
        if let Some(path) = &self.file {
            for group in read_groups(path)? {
                groups.push(supernode(circuit, &group)?);
            }
        }
        if let Some(view) = &self.shared {
            for group in view.groups(circuit)? {
                groups.push(supernode(circuit, &group)?);
            }
        }
        if let Some(cut) = self.auto_cut {
            let taken: HashSet<NodeIndex> = groups.iter().flat_map(|group| group.members.iter().copied()).collect();
            let settings = ClusterSettings { cut, ..ClusterSettings::default() };
            let found = find_supernodes(circuit, &settings, Some(direction));
            groups.extend(found.into_iter().filter_map(|mut group| {
                group.members.retain(|member| !taken.contains(member));
                (group.members.len() > 1).then_some(group)
            }));
        }
        if groups.is_empty() && !self.ignore_stored {
            for (name, ids) in stored() {
                let members: Vec<NodeIndex> = ids.iter().filter_map(|id| find_node(circuit, id).ok()).collect();
                if !members.is_empty() {
                    groups.push(Supernode { name, members });
                }
            }
        }
        check_groups(&groups)?;
        Ok(groups)
    }
}

fn supernode(circuit: &Circuit, (name, ids): &NamedGroup) -> Result<Supernode> {
    let mut members = ids.iter().map(|id| find_nodes(circuit, id)).collect::<Result<Vec<_>>>()?.concat();
    members.sort_unstable();
    members.dedup();
    Ok(Supernode { name: name.clone(), members })
}

/// Reads supernodes from a JSON file: a list of `[name, id, ..]`, an object of lists of ids, or a graph that holds them.
///
/// # Errors
/// A file that cannot be read or has none of these forms.
fn read_groups(path: &Path) -> Result<Vec<NamedGroup>> {
    let bytes = read_json(path, "supernode")?;
    let parsed = serde_json::from_slice(&bytes).map_err(|_| Error::Damaged {
        file: path.display().to_string(),
        format: "supernode",
        reason: "it is neither a list of [name, id, ..] nor an object of lists of ids".to_owned(),
    })?;
    Ok(match parsed {
        GroupFile::Lists(lists) | GroupFile::Graph { q_params: StoredGroups { supernodes: lists } } => {
            lists.into_iter().filter_map(split_name).collect()
        }
        GroupFile::ByName(groups) => groups.into_iter().collect(),
    })
}

/// `[name, id, ..]` taken apart.
pub(super) fn split_name(mut list: Vec<String>) -> Option<NamedGroup> {
    (!list.is_empty()).then(|| (list.remove(0), list))
}

/// The supernodes of `whole` as far as `part` has their members, as indices into `part`.
pub fn members_within(whole: &Circuit, part: &Circuit, groups: Vec<Supernode>) -> Vec<Supernode> {
    let mut places: HashMap<NodeIndex, NodeIndex> = HashMap::new();
    for index in part.graph().node_indices() {
        if let Some(in_whole) = whole.find(part.node(index).id) {
            places.insert(in_whole, index);
        }
    }
    let kept = groups.into_iter().map(|group| Supernode {
        members: group.members.iter().filter_map(|member| places.get(member).copied()).collect(),
        ..group
    });
    kept.filter(|group| !group.members.is_empty()).collect()
}
