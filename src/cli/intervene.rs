//! `circuitscope intervene`: a prompt with changed features.

use std::collections::BTreeSet;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::circuits::{Opening, open_graph};
use crate::error::ErrorContext;
use crate::export::replace_file;
use crate::graph::FeatureId;
use crate::input::read_text;
use crate::intervene::{
    Alternative, Change, CompareOptions, FeatureSpec, GenerateOptions, Intervention, Mode, Plan, Positions, Supernodes,
    Sweep,
};
use crate::job::Job;
use crate::picture::{sweep_csv, sweep_svg};
use crate::replacement::Replacement;
use crate::tracer::{RunOptions, Swept, Tracer};
use crate::{Error, Result};

use super::graph_args::{CellsFor, refuse_own_inputs};
use super::intervene_text::{comparison_text, sweep_text};
use super::prompt::PromptArgs;
use super::setup::SetupArgs;
use super::{note, print_data, print_json};

#[derive(Debug, Args)]
pub struct InterveneArgs {
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    setup: SetupArgs,
    /// Set a feature to a value; repeatable. Positions: 4, 4..7 (7 not included), 4.. (open-ended: generated tokens
    /// too), * (all but BOS, generated tokens too). At the same place, --set replaces what a plan says, --scale replaces
    /// --set, and --ablate replaces both
    #[arg(long, value_name = "L_F_P=V")]
    set: Vec<String>,
    /// Set a feature to X times its activation in the original run (in generated tokens: times its current one);
    /// repeatable
    #[arg(long, value_name = "L_F_P=X")]
    scale: Vec<String>,
    /// Switch a feature off; repeatable
    #[arg(long, value_name = "L_F_P")]
    ablate: Vec<String>,
    /// Interventions from a JSON file: a list of {"node": "L_F_P" | "supernode": NAME | "layer", "feature", "position",
    /// and "set": V | "scale": X | "ablate": true}, or {"interventions": [..], "alternatives": [{"name",
    /// "interventions"}, ..]}, where every alternative is run on its own
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Run once for each value of a feature, all as one batch: 5_123_4=-10..10/2 (10 included)
    #[arg(long, value_name = "L_F_P=A..B/STEP", conflicts_with = "generate")]
    sweep: Option<String>,
    /// A graph of the prompt (.json or .safetensors): feature changes are shown for its nodes only, and plans can name
    /// its supernodes
    #[arg(long, value_name = "FILE")]
    graph: Option<PathBuf>,
    /// Hold attention patterns to those of the original run
    #[arg(long)]
    freeze_attention: bool,
    /// Hold attention patterns, and the MLP outputs of layers A..B (B not included); changes act inside the range only
    #[arg(long, value_name = "A..B")]
    constrain: Option<String>,
    /// Hold all MLP outputs, attention patterns and norm denominators: direct effects alone
    #[arg(long, conflicts_with = "constrain")]
    direct: bool,
    /// Continue the prompt by N tokens, with and without the changes; open-ended changes act on new tokens too
    #[arg(long, value_name = "N")]
    generate: Option<usize>,
    /// With --generate and a mode that holds something: keep holding at every generated token, to what the unchanged
    /// model does on the same tokens (the changed continuation so far). Without it, only the prompt is held, and new
    /// tokens are computed freely
    #[arg(long, requires = "generate")]
    keep_frozen: bool,
    /// Sample at this temperature [default: take the likeliest token]
    #[arg(long, value_name = "T", requires = "generate")]
    temperature: Option<f64>,
    /// Sample among the likeliest tokens that add up to this probability
    #[arg(long, value_name = "P", requires = "temperature")]
    top_p: Option<f64>,
    /// Seed of the sampling, the same for both continuations
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Follow this token (exact text, leading space included) [default: the likeliest one of the original run]
    #[arg(long, value_name = "TOKEN", conflicts_with = "target_id")]
    target: Option<String>,
    /// As --target, by vocabulary id
    #[arg(long, value_name = "ID")]
    target_id: Option<u32>,
    /// How many tokens and features to show
    #[arg(long, value_name = "N", default_value_t = CompareOptions::default().top)]
    top: usize,
    /// Write a line plot of the target's probability over a sweep or a plan's alternatives
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// A feature_labels.json to name features from [default: the one beside the transcoders]
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Who reads csv: perhaps a spreadsheet, so that what begins like a formula gets an apostrophe in front; or a program,
    /// with every cell exactly as it is
    #[arg(long, value_enum, default_value_t)]
    cells: CellsFor,
    /// How to print; csv is for sweeps and alternatives
    #[arg(long, value_enum, default_value_t)]
    format: InterveneFormat,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum InterveneFormat {
    #[default]
    Text,
    Json,
    Csv,
}

/// Runs a prompt with and without changes and prints the comparison.
///
/// # Errors
/// Options that contradict each other or do not fit model and prompt; files that cannot be read or written.
pub(super) fn run(args: &InterveneArgs) -> Result<()> {
    args.setup.start_threads();
    let mode = mode(args)?;
    let generate = generate_options(args, &mode)?;
    let sweep: Option<Sweep> = args.sweep.as_deref().map(|text| parse(text, "--sweep")).transpose()?;
    let flags = changes(args)?;

    if let Some(svg) = &args.svg {
        let inputs = [args.plan.as_ref(), args.graph.as_ref(), args.labels.as_ref(), args.prompt.file()];
        refuse_own_inputs(svg, inputs)?;
    }
    let tracer = args.setup.open(args.labels.as_deref())?;
    let replacement = tracer.replacement();
    mode.check(replacement.model.config.n_layers)?;
    let (features, supernodes) = match &args.graph {
        Some(path) => graph_features(path, replacement)?,
        None => (None, Supernodes::new()),
    };
    let mut plan = read_plan(args.plan.as_deref(), &supernodes)?;
    plan.interventions.extend(flags);
    let compare = CompareOptions { target: target(args, &tracer)?, top: args.top, features };
    check_question(args, &plan)?;
    let options = RunOptions { mode, compare, generate };

    let prompt = args.prompt.read()?;
    let alternatives = alternatives(&plan, sweep.as_ref());
    if !alternatives.is_empty() {
        let swept = tracer.sweep_with(prompt, &plan.interventions, &alternatives, &options, &Job::default())?;
        return print_sweep(args, &swept);
    }
    let run = tracer.intervene(prompt, &plan.interventions, &options)?;
    match args.format {
        InterveneFormat::Text | InterveneFormat::Csv => print_data(&comparison_text(&run)),
        InterveneFormat::Json => print_json(&run),
    }
}

fn print_sweep(args: &InterveneArgs, report: &Swept) -> Result<()> {
    match args.format {
        InterveneFormat::Text => print_data(&sweep_text(report))?,
        InterveneFormat::Json => print_json(report)?,
        InterveneFormat::Csv => print_data(&sweep_csv(&report.result, args.cells.into()))?,
    }
    if let Some(path) = &args.svg {
        let svg = sweep_svg(&report.result);
        replace_file(path, |writer| writer.write_all(svg.as_bytes()))?;
        if !args.setup.quiet {
            note(&format!("wrote {}", path.display()));
        }
    }
    Ok(())
}

/// Refuses what asks for nothing, and outputs that the question does not have.
fn check_question(args: &InterveneArgs, plan: &Plan) -> Result<()> {
    let contradiction = |first: &'static str, second: &'static str| Err(Error::Contradiction { first, second });
    let is_sweep = args.sweep.is_some() || !plan.alternatives.is_empty();
    if !is_sweep && plan.interventions.is_empty() {
        return Err(Error::NothingToChange);
    }
    if args.sweep.is_some() && !plan.alternatives.is_empty() {
        return contradiction("--sweep", "a plan with alternatives");
    }
    if is_sweep && args.generate.is_some() {
        return contradiction("--generate", "a plan with alternatives");
    }
    if !is_sweep && args.svg.is_some() {
        return contradiction("--svg", "a single run: it plots --sweep or a plan's alternatives");
    }
    if !is_sweep && args.format == InterveneFormat::Csv {
        return contradiction("--format csv", "a single run: it lists --sweep or a plan's alternatives");
    }
    Ok(())
}

fn alternatives(plan: &Plan, sweep: Option<&Sweep>) -> Vec<Alternative> {
    if let Some(sweep) = sweep {
        return sweep.alternatives(&plan.interventions);
    }
    let with_base = |alternative: &Alternative| Alternative {
        interventions: plan.interventions.iter().chain(&alternative.interventions).copied().collect(),
        ..alternative.clone()
    };
    plan.alternatives.iter().map(with_base).collect()
}

fn parse<T: std::str::FromStr<Err = Error>>(text: &str, option: &str) -> Result<T> {
    text.parse().context(|| format!("cannot use `{option} {text}`"))
}

/// `--set`, `--scale` and `--ablate`.
fn changes(args: &InterveneArgs) -> Result<Vec<Intervention>> {
    let with_value = |text: &String, option: &str| -> Result<(FeatureSpec, f32)> {
        let expected = "LAYER_FEATURE_POSITION=NUMBER, such as 5_123_4=2.5";
        let bad = || Error::Spec { text: text.clone(), expected };
        let (feature, value) = text.split_once('=').ok_or_else(bad)?;
        let value = value.parse::<f32>().ok().filter(|v| v.is_finite()).ok_or_else(bad)?;
        Ok((parse(feature, option)?, value))
    };
    let mut all = Vec::new();
    for text in &args.set {
        let (feature, value) = with_value(text, "--set").context(|| format!("cannot use `--set {text}`"))?;
        all.push(feature.changed(Change::Set(value)));
    }
    for text in &args.scale {
        let (feature, factor) = with_value(text, "--scale").context(|| format!("cannot use `--scale {text}`"))?;
        all.push(feature.changed(Change::Scale(factor)));
    }
    for text in &args.ablate {
        all.push(parse::<FeatureSpec>(text, "--ablate")?.changed(Change::Set(0.0)));
    }
    Ok(all)
}

fn mode(args: &InterveneArgs) -> Result<Mode> {
    if args.direct {
        return Ok(Mode::Direct);
    }
    if let Some(text) = &args.constrain {
        let bad = || Error::Spec { text: format!("--constrain {text}"), expected: "--constrain A..B, such as 0..3" };
        let (start, end) = text.split_once("..").ok_or_else(bad)?;
        let (start, end): (usize, usize) = (start.parse().map_err(|_| bad())?, end.parse().map_err(|_| bad())?);
        let mode = Mode::Constrained(Range { start, end });
        // The number of layers is known later; an empty range is wrong for every model.
        mode.check(usize::MAX)?;
        return Ok(mode);
    }
    Ok(if args.freeze_attention { Mode::FrozenAttention } else { Mode::Free })
}

fn generate_options(args: &InterveneArgs, mode: &Mode) -> Result<Option<GenerateOptions>> {
    let Some(n_tokens) = args.generate else { return Ok(None) };
    if args.keep_frozen && *mode == Mode::Free {
        return Err(Error::Contradiction {
            first: "--keep-frozen",
            second: "the free mode: it keeps what --freeze-attention, --constrain or --direct hold",
        });
    }
    let options = GenerateOptions {
        n_tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
        keep_frozen: args.keep_frozen,
    };
    options.check()?;
    Ok(Some(options))
}

fn read_plan(path: Option<&Path>, supernodes: &Supernodes) -> Result<Plan> {
    let Some(path) = path else { return Ok(Plan::default()) };
    let json = read_text(path)?;
    Plan::parse(&json, &path.display().to_string(), supernodes)
}

fn target(args: &InterveneArgs, tracer: &Tracer) -> Result<Option<u32>> {
    match (&args.target, args.target_id) {
        (Some(text), _) => {
            let token = tracer.token(text).context(|| format!("cannot use `--target {text:?}`"));
            token.map(Some)
        }
        (None, id) => Ok(id),
    }
}

/// The features of a graph file, and its supernodes.
///
/// # Errors
/// A graph that cannot be read, or that is of another model.
fn graph_features(path: &Path, replacement: &Replacement) -> Result<(Option<BTreeSet<FeatureId>>, Supernodes)> {
    let opened = open_graph(path, &Opening::default())?;
    let circuit = &opened.circuit;
    let features: BTreeSet<FeatureId> =
        circuit.order().iter().filter_map(|&index| circuit.node(index).id.feature()).collect();
    let (meta, scan) = (&circuit.meta, &replacement.transcoders.scan);
    if !meta.scan.is_empty() && meta.scan != *scan {
        let (graph, model) = (format!("{:?}", meta.scan), format!("{scan:?}"));
        return Err(Error::GraphMismatch { what: "transcoders are", graph, model });
    }
    for f in &features {
        let known = replacement.transcoders.check_feature(f.layer as usize, f.feature as usize);
        known.context(|| format!("`{}` is a graph of another model", path.display()))?;
    }
    // Nodes that are no features have nothing to change.
    let features_of = |ids: Vec<String>| {
        let features = ids.iter().filter_map(|id| id.parse::<FeatureSpec>().ok());
        features.filter(|f| matches!(f.positions, Positions::At(_))).collect()
    };
    let supernodes = opened.stored_groups().into_iter().map(|(name, ids)| (name, features_of(ids)));
    Ok((Some(features), supernodes.collect()))
}
