//! `circuitscope inspect`: what is in a graph, all of it or a part, as text, table or picture.

mod choose;
mod group;
mod report_text;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::circuits::{
    Report, SummarySettings, collapse, find_node, induced, members_within, open_graph, save, summarize,
};
use crate::export::replace_file;
use crate::graph::Circuit;
use crate::picture::{PictureSettings, arrange, characters_without_font, csv_edges, csv_nodes, dot, graphml, png, svg};
use crate::text::quoted;
use crate::{Error, Result};

use super::graph_args::{Thresholds, relabel_from};
use super::{json_text, note, print_bytes, summary_text};
use choose::ChooseArgs;
use group::GroupArgs;
use report_text::report_text;

/// What `inspect` prints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum InspectFormat {
    #[default]
    Text,
    Json,
    Svg,
    Png,
    Dot,
    Graphml,
    /// The edges as a table
    Csv,
    /// The nodes as a table
    CsvNodes,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A raw graph (.safetensors, pruned on the way) or a pruned one (.json, also circuit-tracer's)
    graph: PathBuf,
    /// Show the inputs and outputs of this node, e.g. 3_41_7
    #[arg(long, value_name = "ID")]
    node: Option<String>,
    /// How many of the strongest paths to show
    #[arg(long, value_name = "K", default_value_t = SummarySettings::default().paths)]
    paths: usize,
    /// Where the paths begin [default: all tokens]
    #[arg(long, value_name = "ID,..", value_delimiter = ',')]
    from: Vec<String>,
    /// Where the paths end [default: the first target]
    #[arg(long, value_name = "ID,..", value_delimiter = ',')]
    to: Vec<String>,
    /// How many nodes every list shows
    #[arg(long, value_name = "N", default_value_t = SummarySettings::default().top)]
    top: usize,
    #[command(flatten)]
    choose: ChooseArgs,
    #[command(flatten)]
    group: GroupArgs,
    #[command(flatten)]
    thresholds: Thresholds,
    /// A feature_labels.json to name features from
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: InspectFormat,
    /// Features, errors and supernodes that a picture shows, the strongest
    #[arg(long, value_name = "N", default_value_t = PictureSettings::default().max_nodes)]
    max_nodes: usize,
    /// Of every node's inputs, a picture shows the strongest that make up this share
    #[arg(long, value_name = "SHARE", default_value_t = PictureSettings::default().edge_share)]
    edge_share: f64,
    /// But no more than so many inputs of a node
    #[arg(long, value_name = "N", default_value_t = PictureSettings::default().max_inputs)]
    max_inputs: usize,
    /// Targets with less than this part of all targets' probability are left out of a picture
    #[arg(long, value_name = "SHARE", default_value_t = PictureSettings::default().target_share)]
    target_share: f64,
    /// Where to write what is printed otherwise
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write the graph as JSON too, with the chosen nodes pinned and the supernodes stored
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

/// Prints what was asked for about a graph.
///
/// # Errors
/// Bad thresholds, a graph that cannot be read, a node that is not in it, a supernode that cannot be, an output that
/// cannot be written.
pub(super) fn run(args: &InspectArgs) -> Result<()> {
    check_share("edge-share", args.edge_share)?;
    check_share("target-share", args.target_share)?;
    let part = args.choose.part();
    part.check()?;
    let request = args.group.request()?;
    request.check()?;
    let mut opened = open_graph(&args.graph, &args.thresholds.opening()?)?;
    relabel_from(&mut opened.circuit, args.labels.as_ref())?;
    let chosen = part.nodes(&opened.circuit)?;
    let groups = request.supernodes(&opened)?;
    if let Some(path) = &args.save {
        save(&opened, chosen.as_deref(), &groups, path)?;
        note(&format!("wrote {}", path.display()));
    }

    let shown: std::borrow::Cow<'_, Circuit> = match &chosen {
        Some(nodes) => std::borrow::Cow::Owned(induced(&opened.circuit, nodes)?),
        None => std::borrow::Cow::Borrowed(&opened.circuit),
    };
    // Supernodes keep those of their members that are shown.
    let groups = members_within(&opened.circuit, &shown, groups);
    let shown_collapsed = || collapse(&shown, &groups);
    let settings = PictureSettings {
        max_nodes: args.max_nodes,
        edge_share: args.edge_share,
        max_inputs: args.max_inputs,
        target_share: args.target_share,
        ..Default::default()
    };
    let picture = || -> Result<String> {
        let collapsed = shown_collapsed()?;
        Ok(svg(&shown, &collapsed, &arrange(&shown, &collapsed, &settings)))
    };
    let bytes = match args.format {
        InspectFormat::Svg => picture()?.into_bytes(),
        InspectFormat::Png => {
            let picture = picture()?;
            let missing = characters_without_font(&picture)?;
            if !missing.is_empty() {
                note(&format!(
                    "no font on this machine has {}: install one for this script (Noto, say) or write --format svg",
                    quoted(&missing)
                ));
            }
            png(&picture, settings.scale)?
        }
        InspectFormat::Dot => dot(&shown, &shown_collapsed()?).into_bytes(),
        InspectFormat::Graphml => graphml(&shown, &shown_collapsed()?).into_bytes(),
        InspectFormat::Csv => csv_edges(&shown, &shown_collapsed()?).into_bytes(),
        InspectFormat::CsvNodes => csv_nodes(&shown, &shown_collapsed()?).into_bytes(),
        InspectFormat::Text | InspectFormat::Json => {
            let summary_settings = SummarySettings { top: args.top, paths: args.paths, node: args.node.clone() };
            let mut summary = summarize(&shown, &summary_settings)?;
            if !args.from.is_empty() || !args.to.is_empty() {
                let found = |ids: &[String]| ids.iter().map(|id| find_node(&shown, id)).collect::<Result<Vec<_>>>();
                let from = if args.from.is_empty() { shown.tokens() } else { found(&args.from)? };
                let mut to = found(&args.to)?;
                if to.is_empty() {
                    to.extend(shown.targets().first());
                }
                summary.set_paths(&shown, &from, &to, args.paths);
            }
            let report = Report::new(&opened, &shown, chosen.as_deref(), &groups, summary)?;
            match args.format {
                InspectFormat::Json => json_text(&report)?.into_bytes(),
                _ => (summary_text(&report.summary) + &report_text(&report)).into_bytes(),
            }
        }
    };
    match &args.output {
        Some(path) => {
            write_picture(path, &bytes)?;
            note(&format!("wrote {}", path.display()));
            Ok(())
        }
        None => print_bytes(&bytes),
    }
}

/// Writes a picture or a table. Unlike graphs, these go into folders that are there: a mistyped path makes none.
fn write_picture(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
        let source = std::io::Error::new(std::io::ErrorKind::NotFound, format!("no folder `{}`", folder.display()));
        return Err(Error::Io { doing: "cannot write", path: path.to_owned(), source });
    }
    replace_file(path, |writer| writer.write_all(bytes))
}

/// # Errors
/// A share outside 0..=1.
fn check_share(name: &'static str, value: f64) -> Result<()> {
    if (0.0..=1.0).contains(&value) { Ok(()) } else { Err(Error::Setting { name, value, range: "0..=1" }) }
}
