//! Through which heads the edges of a graph go, and what heads give to its targets.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use crate::circuits::{find_nodes, open_raw, prune_raw};
use crate::error::ErrorContext;
use crate::export::node_id_text;
use crate::graph::{Circuit, EdgeHeads, Head, NodeId};
use crate::heads::{EdgeInFull, FlowOptions};
use crate::job::Job;
use crate::picture::HeatMap;
use crate::text::{quoted, terminal};
use crate::tracer::{Prompt, TargetHeads, Tracer};
use crate::{Error, Result};

use super::super::setup::GraphSource;
use super::super::summary::{Align, percent, plural, signed, token_at, write_table};
use super::{HeadsArgs, HeadsFormat, print_json, print_text};

/// Moves of one head that a line shows.
const MAX_MOVES: usize = 2;

pub(super) fn run(args: &HeadsArgs, path: &Path) -> Result<()> {
    let settings = args.thresholds.settings()?;
    let graph = open_raw(path)?;
    let mut circuit = prune_raw(&graph, &settings)?;
    let edge = match &args.edge {
        Some(text) => Some(edge_of(&circuit, text).context(|| format!("cannot use `--edge {text}`"))?),
        None => None,
    };
    let source = GraphSource::of_raw(path, &graph.meta);
    let tracer = args.setup.open_with(None, Some(&source))?;
    let job = Job::default();
    let max_hops = FlowOptions::default().max_hops;
    if let Some(edge) = edge {
        let found = tracer.edge_in_full(&graph, edge, max_hops, &job)?;
        return print_edge(args, &circuit, &tracer, &found);
    }
    let from = args.from.as_ref().map(|text| Prompt::from(text.as_str()));
    let rows = tracer.head_rows(&graph, from, &job).context(|| match &args.from {
        Some(text) => format!("cannot use `--from {text:?}`"),
        None => format!("cannot find the heads of `{}`", path.display()),
    })?;
    if args.from.is_none() {
        let edges = circuit.edge_ids();
        let heads = tracer.edge_heads(&graph, &edges, &FlowOptions::default(), &job)?;
        circuit.set_heads(Some(std::sync::Arc::new(heads)));
    }
    let report = Report::new(&circuit, &rows, args.from.as_deref(), args.top);
    match args.format {
        HeadsFormat::Json => print_json(&report)?,
        _ => print_text(&text(&report, &circuit))?,
    }
    args.draw(|| {
        let first = rows.first();
        let bills = first.map(|target| target.row.bills()).unwrap_or_default();
        let n_heads = bills.iter().map(|bill| bill.head.head + 1).max().unwrap_or(0);
        let n_layers = bills.iter().map(|bill| bill.head.layer + 1).max().unwrap_or(0);
        HeatMap {
            title: format!("What heads give to {}", first.map_or("", |target| &target.label)),
            quantity: match &args.from {
                Some(from) => format!("change of the target where a head writes what it writes in {from:?}"),
                None => "bill of every head; what passes two heads is on both bills".into(),
            },
            rows: (0..n_layers).map(|layer| format!("layer {layer}")).collect(),
            columns: (0..n_heads).map(|head| head.to_string()).collect(),
            values: bills.iter().map(|bill| f64::from(bill.amount)).collect(),
        }
    })
}

/// The ends of an edge, target first. A token and a target may be called the same: an edge begins at the one and ends at
/// the other.
fn edge_of(circuit: &Circuit, text: &str) -> Result<(NodeId, NodeId)> {
    let wrong = Error::Spec { text: text.to_owned(), expected: "two nodes, A,B, where the edge goes from A to B" };
    // Names may hold commas: the split is at the one where both sides are nodes.
    let mut first_error = None;
    for (at, _) in text.match_indices(',') {
        let (source, target) = (text[..at].trim_start(), text[at + 1..].trim_end());
        let found = find_nodes(circuit, source).and_then(|sources| Ok((sources, find_nodes(circuit, target)?)));
        let (sources, targets) = match found {
            Ok(found) => found,
            Err(error) => {
                first_error.get_or_insert(error);
                continue;
            }
        };
        let pairs = targets.iter().flat_map(|&target| sources.iter().map(move |&source| (source, target)));
        let edges: Vec<_> = pairs.filter(|&(s, t)| circuit.graph().find_edge(s, t).is_some()).collect();
        return match edges[..] {
            [(source, target)] => Ok((circuit.node(target).id, circuit.node(source).id)),
            [] => Err(Error::NoEdge { source_id: source.to_owned(), target_id: target.to_owned() }),
            _ => Err(Error::SeveralEdges {
                source_id: source.to_owned(),
                target_id: target.to_owned(),
                n_edges: edges.len(),
            }),
        };
    }
    Err(first_error.unwrap_or(wrong))
}

/// A head and how much it carries.
#[derive(Debug, Serialize)]
struct CarriedJson {
    head: String,
    /// Of the targets' weight, summed over edges: the edge's share of its target's input, times the target's influence,
    /// times the part of the edge that is the head's flow.
    carried: f64,
    n_edges: usize,
    strongest_edge: EdgeJson,
}

/// An edge and its flow through a head.
#[derive(Debug, Clone, Serialize)]
struct EdgeJson {
    source: String,
    target: String,
    effect: f32,
    flow: f32,
}

#[derive(Debug, Serialize)]
struct AmountJson {
    head: String,
    amount: f32,
    /// Position by position. `[n_pos]`
    by_position: Vec<f32>,
}

#[derive(Debug, Serialize)]
struct TargetJson {
    target: String,
    /// As text shows it: a token in quotes.
    #[serde(skip)]
    name: String,
    heads: Vec<AmountJson>,
}

/// What `--format json` prints of a graph.
#[derive(Debug, Serialize)]
struct Report {
    prompt: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    n_edges: usize,
    /// Part of the edges' parts that pass 0, 1, .. heads, each edge by its score.
    hops: Vec<f64>,
    heads: Vec<CarriedJson>,
    bills: Vec<TargetJson>,
}

impl Report {
    fn new(circuit: &Circuit, rows: &[TargetHeads], from: Option<&str>, top: usize) -> Self {
        let influence = circuit.node_influence();
        let weight = circuit.whole_weight().max(f64::MIN_POSITIVE);
        let id = |node| node_id_text(circuit.meta.n_layers, circuit.node(node));
        let mut hops: Vec<f64> = Vec::new();
        let mut heads: BTreeMap<Head, CarriedJson> = BTreeMap::new();
        for edge in circuit.graph().raw_edges() {
            let (source, target) = (edge.source(), edge.target());
            let Some(found) = circuit.edge_heads(source, target) else { continue };
            let score = influence[target.index()] * edge.weight.share / weight;
            let size = f64::from(found.size());
            if size == 0.0 {
                continue;
            }
            hops.resize(hops.len().max(found.hops.len()), 0.0);
            hops.iter_mut().zip(&found.hops).for_each(|(sum, part)| *sum += score * f64::from(part.abs()) / size);
            for flow in &found.strongest {
                let here = EdgeJson { source: id(source), target: id(target), effect: found.effect, flow: flow.flow };
                let carried = score * f64::from(flow.flow.abs()) / size;
                let entry = heads.entry(flow.head).or_insert_with(|| CarriedJson {
                    head: flow.head.to_string(),
                    carried: 0.0,
                    n_edges: 0,
                    strongest_edge: here.clone(),
                });
                entry.carried += carried;
                entry.n_edges += 1;
                if flow.flow.abs() > entry.strongest_edge.flow.abs() {
                    entry.strongest_edge = here;
                }
            }
        }
        let mut heads: Vec<CarriedJson> = heads.into_values().collect();
        heads.sort_by(|a, b| b.carried.total_cmp(&a.carried));
        heads.truncate(top);
        let total: f64 = hops.iter().sum();
        hops.iter_mut().for_each(|part| *part /= total.max(f64::MIN_POSITIVE));
        let target = |target: &TargetHeads| {
            let mut bills: Vec<(usize, f32)> = target.row.bills().iter().map(|bill| bill.amount).enumerate().collect();
            bills.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()).then(a.0.cmp(&b.0)));
            let heads = bills.iter().take(top).map(|&(at, amount)| AmountJson {
                head: target.row.heads[at].to_string(),
                amount,
                by_position: (0..target.row.n_pos).map(|pos| target.row.amount(at, pos)).collect(),
            });
            let is_token = circuit.targets().iter().any(|&index| {
                let node = circuit.node(index);
                node.text == target.label && node.token_id.is_some_and(|id| id >= 0)
            });
            let name = if is_token { quoted(&target.label) } else { terminal(&target.label) };
            TargetJson { target: target.label.clone(), name, heads: heads.collect() }
        };
        Report {
            prompt: circuit.meta.prompt.clone(),
            from: from.map(str::to_owned),
            n_edges: circuit.heads().map_or(0, |heads| heads.edges().len()),
            hops,
            heads,
            bills: rows.iter().map(target).collect(),
        }
    }
}

/// `0: 31 %, 1: 40 %, .., 4 or more: 3 %`
fn hops_text(parts: &[f64], show: impl Fn(f64) -> String) -> String {
    let last = parts.len().saturating_sub(1);
    let part = |(k, &part): (usize, &f64)| {
        let more = if k == last && k > 0 { " or more" } else { "" };
        format!("{k}{more}: {}", show(part))
    };
    parts.iter().enumerate().map(part).collect::<Vec<_>>().join(", ")
}

fn text(report: &Report, circuit: &Circuit) -> String {
    let mut text = format!("{:<12}{}\n", "prompt", quoted(&report.prompt));
    let tokens = &circuit.meta.prompt_tokens;
    if let Some(from) = &report.from {
        let _ = writeln!(text, "{:<12}{}", "from", quoted(from));
    } else {
        let _ = writeln!(
            text,
            "{:<12}{} pass so many heads: {}",
            "hops",
            plural(report.n_edges, "edge"),
            hops_text(&report.hops, percent)
        );
        text.push_str("\nheads by what they carry of the edges, each edge by its score\n");
        let rows = report.heads.iter().map(|head| {
            let EdgeJson { source, target, effect, flow } = &head.strongest_edge;
            vec![
                head.head.clone(),
                percent(head.carried),
                head.n_edges.to_string(),
                signed(f64::from(*flow)),
                format!("{} > {} {}", source, target, signed(f64::from(*effect))),
            ]
        });
        let header = ["head", "carried", "edges", "largest", "of the edge"].map(str::to_owned).to_vec();
        write_table(&mut text, &[Align::Left, Align::Right, Align::Right, Align::Right, Align::Left], header, rows);
    }
    for target in &report.bills {
        let label = &target.name;
        let _ = match report.from {
            Some(_) => writeln!(text, "\nwhat {label} would gain if one head wrote what it writes there"),
            None => writeln!(text, "\nwhat heads give to {label} (what passes two heads is in both lines)"),
        };
        let rows = target.heads.iter().map(|head| {
            let mut at: Vec<(usize, f32)> = head.by_position.iter().copied().enumerate().collect();
            at.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()).then(a.0.cmp(&b.0)));
            let at = at.iter().take(MAX_MOVES).filter(|(_, amount)| amount.abs() >= 0.005);
            let at: Vec<String> = at
                .map(|&(pos, amount)| format!("{} {}", token_at(&tokens[pos], pos as u32), signed(f64::from(amount))))
                .collect();
            vec![head.head.clone(), format!("{:+.3}", head.amount), at.join(", ")]
        });
        let header = ["head", "amount", "written at"].map(str::to_owned).to_vec();
        write_table(&mut text, &[Align::Left, Align::Right, Align::Left], header, rows);
    }
    text
}

#[derive(Debug, Serialize)]
struct MoveJson {
    from: usize,
    to: usize,
    flow: f32,
}

#[derive(Debug, Serialize)]
struct FlowJson {
    head: String,
    flow: f32,
    /// Between which positions, largest first.
    moves: Vec<MoveJson>,
}

/// What stays in the residual stream at a layer.
#[derive(Debug, Serialize)]
struct LayerJson {
    layer: u32,
    through_heads: f32,
    bypass: f32,
}

/// What `--format json` prints of one edge.
#[derive(Debug, Serialize)]
struct EdgeReport {
    source: String,
    target: String,
    effect: f32,
    /// Parts that pass 0, 1, .. heads; the last: that many or more.
    hops: Vec<f32>,
    mean_hops: f32,
    layers: Vec<LayerJson>,
    flows: Vec<FlowJson>,
}

fn print_edge(args: &HeadsArgs, circuit: &Circuit, tracer: &Tracer, found: &EdgeInFull) -> Result<()> {
    let EdgeHeads { target, source, effect, strongest, hops, .. } = &found.heads;
    let id = |node: NodeId| {
        circuit.find(node).map_or_else(|| node.to_string(), |at| node_id_text(circuit.meta.n_layers, circuit.node(at)))
    };
    let moves_of = |head: Head| {
        let mut moves: Vec<MoveJson> = found
            .moves
            .iter()
            .filter(|at| at.head == head)
            .map(|at| MoveJson { from: at.from, to: at.to, flow: at.flow })
            .collect();
        moves.sort_by(|a, b| b.flow.abs().total_cmp(&a.flow.abs()));
        moves
    };
    let n_layers = tracer.replacement().model.config.n_layers as u32;
    let first = source.layer().map_or(0, |layer| layer + 1);
    let last = target.layer().unwrap_or(n_layers - 1);
    let layers = (first..=last).map(|layer| {
        let through_heads = strongest.iter().filter(|flow| flow.head.layer == layer).map(|flow| flow.flow).sum();
        LayerJson { layer, through_heads, bypass: effect - through_heads }
    });
    let report = EdgeReport {
        source: id(*source),
        target: id(*target),
        effect: *effect,
        hops: hops.clone(),
        mean_hops: found.heads.mean_hops(),
        layers: layers.collect(),
        flows: strongest
            .iter()
            .take(args.top)
            .map(|flow| FlowJson { head: flow.head.to_string(), flow: flow.flow, moves: moves_of(flow.head) })
            .collect(),
    };
    if args.format == HeadsFormat::Json {
        print_json(&report)?;
    } else {
        print_text(&edge_text(&report, found, circuit))?;
    }
    let n_heads = tracer.replacement().model.config.n_heads;
    args.draw(|| HeatMap {
        title: format!("Heads of the edge {} to {}", report.source, report.target),
        quantity: "flow of the edge through every head; those of one layer and what bypasses it add up to the edge"
            .into(),
        rows: (first..=last).map(|layer| format!("layer {layer}")).collect(),
        columns: (0..n_heads).map(|head| head.to_string()).collect(),
        values: (first..=last)
            .flat_map(|layer| (0..n_heads as u32).map(move |head| Head { layer, head }))
            .map(|head| strongest.iter().find(|flow| flow.head == head).map_or(0.0, |flow| f64::from(flow.flow)))
            .collect(),
    })
}

fn edge_text(report: &EdgeReport, found: &EdgeInFull, circuit: &Circuit) -> String {
    let tokens = &circuit.meta.prompt_tokens;
    let at = |pos: usize| token_at(tokens.get(pos).map_or("", String::as_str), pos as u32);
    let mut text = format!("{:<12}{} > {}, {:+.4}\n", "edge", report.source, report.target, report.effect);
    let hops: Vec<f64> = report.hops.iter().map(|&part| f64::from(part)).collect();
    let _ = writeln!(
        text,
        "{:<12}{}; mean {:.2}",
        "hops",
        hops_text(&hops, |part| format!("{part:+.3}")),
        report.mean_hops
    );
    let size = found.heads.size();
    text.push_str("\nflow through heads; those of one layer and what bypasses it add up to the edge\n");
    let rows = report.flows.iter().map(|flow| {
        let moves: Vec<String> = flow
            .moves
            .iter()
            .take(MAX_MOVES)
            // The others would be shown as zero.
            .filter(|moved| moved.flow.abs() >= 0.000_5)
            .map(|moved| format!("{} > {} {:+.3}", at(moved.from), at(moved.to), moved.flow))
            .collect();
        vec![
            flow.head.clone(),
            format!("{:+.4}", flow.flow),
            percent(f64::from(flow.flow.abs() / size.max(f32::MIN_POSITIVE))),
            moves.join(", "),
        ]
    });
    let header = ["head", "flow", "of the parts", "moved from > to"].map(str::to_owned).to_vec();
    write_table(&mut text, &[Align::Left, Align::Right, Align::Right, Align::Left], header, rows);
    text.push_str("\nby layer\n");
    let rows = report.layers.iter().map(|layer| {
        vec![layer.layer.to_string(), format!("{:+.4}", layer.through_heads), format!("{:+.4}", layer.bypass)]
    });
    let header = ["layer", "through heads", "bypass"].map(str::to_owned).to_vec();
    write_table(&mut text, &[Align::Right; 3], header, rows);
    text
}
