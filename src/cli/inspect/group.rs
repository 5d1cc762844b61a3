//! Supernodes, as options.

use std::path::PathBuf;

use clap::Args;

use crate::circuits::{GroupRequest, SharedView};
use crate::{Error, Result};

#[derive(Debug, Args)]
pub(in crate::cli) struct GroupArgs {
    /// Show these nodes as one: "Texas=3_41_7,4_99_7"
    #[arg(long, value_name = "NAME=ID,..", requires = "graph")]
    group: Vec<String>,
    /// Supernodes from a file: a JSON list of [name, id, ..], an object of lists of ids, or a graph that holds them
    #[arg(long, value_name = "FILE", requires = "graph")]
    group_file: Option<PathBuf>,
    /// Supernodes, labels and pinned nodes from the address of the graph's page on Neuronpedia or circuit-tracer's server (its
    /// parameters supernodes, clerps, pinnedIds; nothing is fetched)
    #[arg(long, value_name = "URL", requires = "graph")]
    group_url: Option<String>,
    /// Find supernodes by their edges, and by decoder directions where a raw graph holds them: average linkage, merged
    /// down to this mean cosine
    #[arg(long, value_name = "CUT", num_args = 0..=1, default_missing_value = "0.5", requires = "graph")]
    auto_group: Option<f64>,
    /// Leave out the supernodes that the graph holds
    #[arg(long, requires = "graph")]
    no_groups: bool,
}

impl GroupArgs {
    /// The file that supernodes are read from, if one is named.
    pub(in crate::cli) fn file(&self) -> Option<&PathBuf> {
        self.group_file.as_ref()
    }

    /// The supernodes that the options ask for.
    ///
    /// # Errors
    /// A `--group` that is not of its form.
    pub(in crate::cli) fn request(&self) -> Result<GroupRequest> {
        let named = |text: &String| {
            let wrong = || Error::Spec { text: format!("--group {text}"), expected: "--group NAME=ID,ID,.." };
            let (name, ids) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(wrong)?;
            let ids = ids.split(',').map(str::trim).filter(|id| !id.is_empty()).map(str::to_owned);
            Ok((name.to_owned(), ids.collect()))
        };
        Ok(GroupRequest {
            named: self.group.iter().map(named).collect::<Result<_>>()?,
            file: self.group_file.clone(),
            shared: self.group_url.as_deref().map(SharedView::parse).transpose()?,
            auto_cut: self.auto_group,
            ignore_stored: self.no_groups,
        })
    }
}
