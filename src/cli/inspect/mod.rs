//! `circuitscope inspect`: what is in a graph, all of it or a part, as text, table or picture.

mod choose;
mod dashboards;
pub(super) mod group;
mod report_text;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::circuits::{
    Effects, Report, SummarySettings, collapse, find_node, find_nodes, has_strange_partner, members_within,
    neighborhood, open_graph, rename, save, summarize_part,
};
use crate::error::ErrorContext;
use crate::graph::{Circuit, NodeKind};
use crate::picture::{
    HeatMap, PictureSettings, arrange, characters_without_font, csv_edges, csv_nodes, dot, graphml, heat_map, png, svg,
};
use crate::text::quoted;
use crate::{Error, Result};

use super::collected::{CollectedArgs, Wanted, label_from_beside};
use super::graph_args::{CellsFor, Thresholds, refuse_own_inputs, relabel_from};
#[cfg(feature = "serve")]
use super::open_page::OpenArgs;
use super::output_file::{check_folder, check_json_output, write_picture};
#[cfg(feature = "serve")]
use super::setup::GraphSource;
use super::setup::SetupArgs;
use super::summary::token_at;
use super::{json_text, note, print_bytes, summary_text, terminal};
use choose::ChooseArgs;
use dashboards::{Dashboards, WithDashboards, dashboards};
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
    /// Show the inputs and outputs of these nodes: 3_41_7, 3_41 (wherever it is), " Dallas", Dallas@7, a label
    #[arg(long, value_name = "NAME", allow_hyphen_values = true, help_heading = "What to show")]
    node: Option<String>,
    /// With --node: without what its features are active on, push, read and feed
    #[arg(long, requires = "node", help_heading = "What to show")]
    no_dashboard: bool,
    #[command(flatten, next_help_heading = "What to show")]
    collected: CollectedArgs,
    /// How many of the strongest paths to show
    #[arg(long, value_name = "K", default_value_t = SummarySettings::default().paths, help_heading = "What to show")]
    paths: usize,
    /// Where the paths begin [default: all tokens]
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', help_heading = "What to show")]
    from: Vec<String>,
    /// Where the paths end [default: the first target]
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', help_heading = "What to show")]
    to: Vec<String>,
    /// How many nodes every list shows
    #[arg(long, value_name = "N", default_value_t = SummarySettings::default().top, help_heading = "What to show")]
    top: usize,
    #[command(flatten, next_help_heading = "Part of the graph")]
    choose: ChooseArgs,
    #[command(flatten, next_help_heading = "Supernodes")]
    group: GroupArgs,
    #[command(flatten, next_help_heading = "Pruning")]
    thresholds: Thresholds,
    /// A feature_labels.json to name features from
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    labels: Option<PathBuf>,
    /// Call a node otherwise: 0_39_7=Texas, all positions of a feature (0_39=Texas), or a supernode by its name;
    /// repeatable. --save keeps it
    #[arg(long, value_name = "ID=LABEL", value_parser = parse_rename, help_heading = "Output")]
    rename: Vec<(String, String)>,
    /// How to print [default: as the ending of --output says, else text]. Pictures and tables of one --node are of its
    /// inputs and outputs
    #[arg(long, value_enum, help_heading = "Output")]
    format: Option<InspectFormat>,
    /// Who reads csv: perhaps a spreadsheet, so that what begins like a formula gets an apostrophe in front; or a program,
    /// with every cell exactly as it is
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    cells: CellsFor,
    /// Features, errors and supernodes that a picture shows, the strongest
    #[arg(long, value_name = "N", default_value_t = PictureSettings::default().max_nodes, help_heading = "Pictures")]
    max_nodes: usize,
    /// Of every node's inputs, a picture shows the strongest that make up this share
    #[arg(long, value_name = "SHARE", default_value_t = PictureSettings::default().edge_share, help_heading = "Pictures")]
    edge_share: f64,
    /// But no more than so many inputs of a node
    #[arg(long, value_name = "N", default_value_t = PictureSettings::default().max_inputs, help_heading = "Pictures")]
    max_inputs: usize,
    /// Targets with less than this part of all targets' probability are left out of a picture
    #[arg(long, value_name = "SHARE", default_value_t = PictureSettings::default().target_share, help_heading = "Pictures")]
    target_share: f64,
    /// Draw the direct effects on the target (--to, or the first) by layer and position, instead of the graph
    #[arg(long, help_heading = "Pictures")]
    heat_map: bool,
    /// Where to write what is printed otherwise; - is standard output
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
    #[cfg(feature = "serve")]
    #[command(flatten)]
    open: OpenArgs,
    /// Write the graph as JSON too, with the chosen nodes pinned and the supernodes stored
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    save: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Model, for what features push, read and feed (--node)")]
    setup: SetupArgs,
}

impl InspectArgs {
    /// The file to write; `None`: standard output.
    fn output(&self) -> Option<&PathBuf> {
        self.output.as_ref().filter(|path| path.as_path() != Path::new("-"))
    }
}

/// Prints what was asked for about a graph.
///
/// # Errors
/// Bad thresholds, a graph that cannot be read, a node that is not in it, a supernode that cannot be, an output that
/// cannot be written.
pub(super) fn run(args: &InspectArgs) -> Result<()> {
    check_share("edge-share", args.edge_share)?;
    check_share("target-share", args.target_share)?;
    if args.output().is_some() {
        terminal::write_to_file();
    }
    let format = chosen_format(args)?;
    if args.cells != CellsFor::default() && !matches!(format, InspectFormat::Csv | InspectFormat::CsvNodes) {
        let second = "a format without cells: it is for --format csv and csv-nodes";
        return Err(Error::Contradiction { first: "--cells", second });
    }
    if args.heat_map && !matches!(format, InspectFormat::Svg | InspectFormat::Png) {
        return Err(Error::Contradiction {
            first: "--heat-map",
            second: "a format that is no picture: give --format svg or png, or -o with a file ending in .svg or .png",
        });
    }
    if args.heat_map && !args.from.is_empty() {
        return Err(Error::Contradiction { first: "--heat-map", second: "--from, which is about paths" });
    }
    for output in args.output().into_iter().chain(&args.save) {
        refuse_own_inputs(output, [Some(&args.graph), args.labels.as_ref(), args.group.file()])?;
    }
    if let Some(path) = args.output() {
        check_folder(path)?;
    }
    if let Some(path) = &args.save {
        check_json_output(path)?;
    }
    if args.save.is_some() && args.save == args.output {
        return Err(Error::Contradiction { first: "--save", second: "--output with the same file" });
    }
    let mut part = args.choose.part();
    part.check()?;
    let request = args.group.request()?;
    request.check()?;
    let mut opened = open_graph(&args.graph, &args.thresholds.opening()?)?;
    if let Some(partner) = has_strange_partner(&args.graph) {
        note(&format!("note: `{}` is of another trace than `{}`", partner.display(), args.graph.display()));
    }
    label_from_beside(&mut opened.circuit);
    relabel_from(&mut opened.circuit, args.labels.as_ref())?;
    if let Some(view) = &request.shared {
        view.relabel(&mut opened.circuit);
        if part.ids.is_empty() {
            part.ids = view.pinned_in(&opened.circuit);
        }
    }
    let chosen = part.nodes(&opened.circuit).map_err(|error| opened.explained(error))?;
    let mut groups = request.supernodes(&opened).map_err(|error| opened.explained(error))?;
    for (id, label) in &args.rename {
        rename(&mut opened.circuit, &mut groups, id, label)
            .context(|| format!("cannot use `--rename {id}={label}`"))?;
    }
    if let Some(path) = &args.save {
        save(&opened, chosen.as_deref(), &groups, path)?;
        note(&format!("wrote {}", path.display()));
    }

    // Of one node the text has a section; everything else is of the part around it.
    let is_text = matches!(format, InspectFormat::Text | InspectFormat::Json);
    let chosen = match &args.node {
        Some(id) if !is_text => {
            let found = find_nodes(&opened.circuit, id).map_err(|error| opened.explained(error))?;
            let near = neighborhood(&opened.circuit, &found, 1);
            Some(near.into_iter().filter(|node| chosen.as_ref().is_none_or(|chosen| chosen.contains(node))).collect())
        }
        _ => chosen,
    };
    let shown: std::borrow::Cow<'_, Circuit> = match &chosen {
        Some(nodes) => std::borrow::Cow::Owned(opened.circuit.part(nodes)),
        None => std::borrow::Cow::Borrowed(&opened.circuit),
    };
    // In pictures and tables supernodes keep those of their members that are shown.
    let shown_collapsed = || collapse(&shown, &members_within(&opened.circuit, &shown, groups.clone()));
    let settings = PictureSettings {
        max_nodes: args.max_nodes,
        edge_share: args.edge_share,
        max_inputs: args.max_inputs,
        target_share: args.target_share,
        ..Default::default()
    };
    let summary_settings = SummarySettings {
        top: args.top,
        paths: args.paths,
        node: args.node.clone(),
        from: args.from.clone(),
        to: args.to.clone(),
    };
    let summarized = |settings: &SummarySettings| {
        let raw = opened.raw.as_ref();
        let summary = summarize_part(&shown, &opened.circuit, raw, settings);
        summary.map_err(|error| opened.explained(error))
    };
    let picture = || -> Result<String> {
        if args.heat_map {
            let summary = summarized(&SummarySettings { top: 0, paths: 0, node: None, ..summary_settings.clone() })?;
            let no_target = || Error::Picture { reason: "it has no target that there could be effects on".to_owned() };
            let effects = summary.effects.first().ok_or_else(no_target)?;
            return heat_map(&HeatMap::of(effects, &described(&shown, effects)?));
        }
        let collapsed = shown_collapsed()?;
        Ok(svg(&shown, &collapsed, &arrange(&shown, &collapsed, &settings)))
    };
    let bytes = match format {
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
        InspectFormat::Csv => csv_edges(&shown, &shown_collapsed()?, args.cells.into()).into_bytes(),
        InspectFormat::CsvNodes => csv_nodes(&shown, &shown_collapsed()?, args.cells.into()).into_bytes(),
        InspectFormat::Text | InspectFormat::Json => {
            let mut summary = summarized(&summary_settings)?;
            let shows_dashboards = !(summary.nodes.is_empty() || args.no_dashboard);
            let set = match shows_dashboards || args.collected.wants_examples() {
                true => args.collected.open(Wanted::from(&opened.circuit.meta))?,
                false => None,
            };
            args.collected.add_examples(&mut summary, set.as_ref())?;
            let dashboards = match set.filter(|_| shows_dashboards) {
                Some(set) => dashboards(&opened, &set, &summary.nodes, &args.graph, &args.setup)?,
                None => Dashboards::default(),
            };
            let report = Report::new(&opened, chosen.as_deref(), &groups, summary)?;
            match format {
                InspectFormat::Json => {
                    json_text(&WithDashboards { report, dashboards: dashboards.reports })?.into_bytes()
                }
                _ => {
                    let text = terminal::shown(&(summary_text(&report.summary) + &report_text(&report)));
                    (text + &dashboards.text()).into_bytes()
                }
            }
        }
    };
    match args.output() {
        Some(path) => {
            write_picture(path, &bytes)?;
            note(&format!("wrote {}", path.display()));
        }
        None => print_bytes(&bytes)?,
    }
    #[cfg(feature = "serve")]
    if args.open.open {
        let source = GraphSource::of_circuit(&args.graph, &opened.circuit.meta);
        let open = move || SetupArgs::default().open_with(None, Some(&source));
        return args.open.show(&args.graph, Some(Box::new(open)));
    }
    Ok(())
}

/// What effects are on: a target's text; a feature with its label and place.
///
/// # Errors
/// It is not in the circuit.
fn described(circuit: &Circuit, effects: &Effects) -> Result<String> {
    let node = circuit.node(find_node(circuit, &effects.target)?);
    if node.id.kind() == NodeKind::Target {
        return Ok(effects.text.clone());
    }
    let label = node.label.as_deref().map(|label| format!(" ({label})")).unwrap_or_default();
    Ok(format!("{}{label} at {}", effects.target, token_at(&effects.text, node.pos)))
}

/// The form that is asked for, or that the ending of the output names.
///
/// # Errors
/// An ending that names none, where none is asked for.
fn chosen_format(args: &InspectArgs) -> Result<InspectFormat> {
    let ending = args.output.as_ref().and_then(|path| path.extension()).map(|ending| ending.to_string_lossy());
    let of_ending = ending.as_ref().map(|ending| format_of(ending));
    match (args.format, of_ending) {
        (Some(format), Some(Some(of_ending))) => {
            // The nodes of a graph are a table too.
            let is_same = format == of_ending || (format, of_ending) == (InspectFormat::CsvNodes, InspectFormat::Csv);
            if !is_same {
                let name = format.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
                let path = args.output.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
                note(&format!("note: `{path}` holds {name}, as --format says, whatever its ending"));
            }
            Ok(format)
        }
        (Some(format), _) => Ok(format),
        (None, None) => Ok(InspectFormat::Text),
        (None, Some(Some(format))) => Ok(format),
        (None, Some(None)) => Err(Error::Spec {
            text: format!(".{}", ending.unwrap_or_default()),
            expected: "an ending that says what to write: .txt, .json, .svg, .png, .dot, .gv, .graphml, .csv (or give --format)",
        }),
    }
}

/// What a file of this ending holds.
fn format_of(ending: &str) -> Option<InspectFormat> {
    Some(match ending.to_lowercase().as_str() {
        "txt" | "text" => InspectFormat::Text,
        "json" => InspectFormat::Json,
        "svg" => InspectFormat::Svg,
        "png" => InspectFormat::Png,
        "dot" | "gv" => InspectFormat::Dot,
        "graphml" => InspectFormat::Graphml,
        "csv" => InspectFormat::Csv,
        _ => return None,
    })
}

fn parse_rename(text: &str) -> std::result::Result<(String, String), String> {
    let parts = text.split_once('=').filter(|(id, _)| !id.is_empty());
    parts.map(|(id, label)| (id.to_owned(), label.to_owned())).ok_or_else(|| "expected ID=LABEL".into())
}

/// # Errors
/// A share outside 0..=1.
fn check_share(name: &'static str, value: f64) -> Result<()> {
    if (0.0..=1.0).contains(&value) { Ok(()) } else { Err(Error::Setting { name, value, range: "0..=1" }) }
}
