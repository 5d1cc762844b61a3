//! Supernodes, as options, from files and from the graph itself.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use clap::Args;
use petgraph::graph::NodeIndex;
use serde::Deserialize;

use crate::circuits::{ClusterSettings, Supernode, check_groups, find_supernodes};
use crate::export::find_node;
use crate::graph::Circuit;
use crate::{Error, Result};

use super::super::graph_file::OpenedGraph;

#[derive(Debug, Args)]
pub(super) struct GroupArgs {
    /// Show these nodes as one: "Texas=3_41_7,4_99_7"
    #[arg(long, value_name = "NAME=ID,..")]
    group: Vec<String>,
    /// Supernodes from a file: a JSON list of [name, id, ..], an object of lists of ids, or a graph that holds them
    #[arg(long, value_name = "FILE")]
    group_file: Option<PathBuf>,
    /// Find supernodes by their edges, and by decoder directions where a raw graph holds them: average linkage, merged
    /// down to this mean cosine
    #[arg(long, value_name = "CUT", num_args = 0..=1, default_missing_value = "0.5")]
    auto_group: Option<f64>,
    /// Leave out the supernodes that the graph holds
    #[arg(long)]
    no_groups: bool,
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

impl GroupArgs {
    /// # Errors
    /// A cut that is no cosine.
    pub(super) fn check(&self) -> Result<()> {
        match self.auto_group {
            Some(value) if !(-1.0..=1.0).contains(&value) => {
                Err(Error::Setting { name: "auto-group", value, range: "-1..=1" })
            }
            _ => Ok(()),
        }
    }

    /// The supernodes that the options name; without any, those that the graph holds.
    ///
    /// # Errors
    /// Nodes that are not in the graph, a node in two supernodes, a file that cannot be read.
    pub(super) fn supernodes(&self, opened: &OpenedGraph) -> Result<Vec<Supernode>> {
        let circuit = &opened.circuit;
        let mut groups = Vec::new();
        for text in &self.group {
            let wrong = || Error::Spec { text: format!("--group {text}"), expected: "--group NAME=ID,ID,.." };
            let (name, ids) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(wrong)?;
            groups.push(named(circuit, name, ids.split(',').map(str::trim).filter(|id| !id.is_empty()))?);
        }
        if let Some(path) = &self.group_file {
            for (name, ids) in read_groups(path)? {
                groups.push(named(circuit, &name, ids.iter().map(String::as_str))?);
            }
        }
        if let Some(cut) = self.auto_group {
            let taken: std::collections::HashSet<NodeIndex> =
                groups.iter().flat_map(|group: &Supernode| group.members.iter().copied()).collect();
            let direction = |index: NodeIndex| opened.decoder_direction(index);
            let settings = ClusterSettings { cut, ..ClusterSettings::default() };
            let found = find_supernodes(circuit, &settings, Some(&direction));
            // What was grouped by hand stays as it was.
            groups.extend(found.into_iter().filter_map(|mut group| {
                group.members.retain(|member| !taken.contains(member));
                (group.members.len() > 1).then_some(group)
            }));
        }
        if groups.is_empty() && !self.no_groups {
            for (name, ids) in opened.stored_groups() {
                // Viewers keep supernodes of nodes that pruning has dropped since.
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

fn named<'a>(circuit: &Circuit, name: &str, ids: impl Iterator<Item = &'a str>) -> Result<Supernode> {
    let mut members = ids.map(|id| find_node(circuit, id)).collect::<Result<Vec<_>>>()?;
    members.sort_unstable();
    members.dedup();
    Ok(Supernode { name: name.to_owned(), members })
}

fn read_groups(path: &Path) -> Result<Vec<(String, Vec<String>)>> {
    let bytes =
        std::fs::read(path).map_err(|source| Error::Io { doing: "cannot read", path: path.to_owned(), source })?;
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
pub(super) fn split_name(mut list: Vec<String>) -> Option<(String, Vec<String>)> {
    (!list.is_empty()).then(|| (list.remove(0), list))
}

/// The supernodes as far as `part` has their members.
pub(super) fn within(whole: &Circuit, part: &Circuit, groups: Vec<Supernode>) -> Vec<Supernode> {
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
