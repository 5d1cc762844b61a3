//! `circuitscope intervene`: a prompt with changed features.

mod changes;
mod names;
mod text;

use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, ValueEnum};

use crate::error::ErrorContext;
use crate::intervene::{CompareOptions, FeatureGroup, Followed, GenerateOptions, Measure, Mode};
use crate::job::Job;
use crate::picture::{png, supernode_svg, sweep_csv, sweep_svg};
use crate::tracer::{Prompt, RunOptions, Swept, Tracer, directions};
use crate::{Error, Result};

use super::graph_args::{CellsFor, refuse_own_inputs, relabel_from};
use super::inspect::group::GroupArgs;
#[cfg(feature = "serve")]
use super::open_page::OpenArgs;
use super::output_file::{check_drawing, write_picture};
use super::prompt::OptionalPromptArgs;
use super::setup::{GraphSource, SetupArgs};
use super::{note, print_data, print_json, print_text};
use changes::{Changes, Context};
use names::NamedGraph;
pub use text::comparison_text;
use text::{diagram, sweep_text};

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("exchanged").args(["like", "like_prompt"]).multiple(true)))]
pub struct InterveneArgs {
    #[command(flatten)]
    prompt: OptionalPromptArgs,
    #[command(flatten, next_help_heading = "Model")]
    setup: SetupArgs,
    /// Set a feature to a value; repeatable. F is L_F_P (layer, feature, position), L/F (wherever --graph has it, else at
    /// *), or with --graph the name of a supernode or a label: all of its features, those at one position as in Texas@7.
    /// Positions: 4, -1 (the last), 4..7 (7 not included), 4.. (open-ended: generated tokens too), * (all but BOS,
    /// generated tokens too). At the same place --like replaces what a plan says, --set replaces
    /// --like, --scale replaces --set, and --ablate replaces all
    #[arg(long, value_name = "F=V", help_heading = "What to change")]
    set: Vec<String>,
    /// Set a feature, or those of a supernode, to X times their activation in the original run (in generated tokens: times
    /// the current one); repeatable
    #[arg(long, value_name = "F=X", allow_hyphen_values = true, help_heading = "What to change")]
    scale: Vec<String>,
    /// Switch a feature or a supernode off; repeatable
    #[arg(long, value_name = "F", help_heading = "What to change")]
    ablate: Vec<String>,
    /// Switch a head off: LAYER.HEAD or LAYER.HEAD@POSITIONS, such as 18.6@7; with =mean it writes its mean over the
    /// prompt instead of nothing; repeatable
    #[arg(long, value_name = "L.H[@P][=mean]", help_heading = "What to change")]
    ablate_head: Vec<String>,
    /// Let a head write what it writes at the same positions of the prompt --from; repeatable
    #[arg(long, value_name = "L.H[@P]", requires = "from", help_heading = "What to change")]
    patch_head: Vec<String>,
    /// The prompt, of as many tokens, that --patch-head reads from
    #[arg(long, value_name = "PROMPT", requires = "patch_head", help_heading = "What to change")]
    from: Option<String>,
    /// The N most influential features of --graph: `--top-features 10 --scale 2` doubles them, `--scale 0` ablates them
    #[arg(long, value_name = "N", requires = "graph", help_heading = "What to change")]
    top_features: Option<usize>,
    /// Give a supernode (or label) of another graph the activations that it has there; without a name, exchange the
    /// features at the tokens where the prompts differ; repeatable
    #[arg(long, value_name = "FILE[:NAME]", help_heading = "What to change")]
    like: Vec<String>,
    /// As --like FILE, for a prompt: exchange the features at the tokens where it differs from this one
    #[arg(long, value_name = "PROMPT", help_heading = "What to change")]
    like_prompt: Option<String>,
    /// Exchange the features at these positions: 4, 4..7 (7 not included), 4.. or *, several with commas
    #[arg(long, value_name = "P,..", requires = "exchanged", help_heading = "What to change")]
    like_at: Option<String>,
    /// Interventions from a JSON file: a list of {"node": "L_F_P" | "supernode": NAME | "layer", "feature", "position",
    /// and "set": V | "scale": X | "ablate": true} and {"head": "L.H", "position", and "ablate": true | "mean": true |
    /// "like": PROMPT}, or {"interventions": [..], "alternatives": [{"name",
    /// "interventions"}, ..]}, where every alternative is run on its own
    #[arg(long, value_name = "FILE", help_heading = "What to change")]
    plan: Option<PathBuf>,
    /// Run once for each value of a feature, all as one batch: 5_123_4=-10..10/2 (10 included). A supernode is scaled by
    /// the values: Texas=-2..2/1
    #[arg(long, value_name = "F=A..B/STEP", conflicts_with = "generate", help_heading = "What to change")]
    sweep: Option<String>,
    /// A graph of the prompt (.json or .safetensors): its supernodes and labels are names, its supernodes are read before
    /// and after, feature changes are shown for its nodes only; it also gives the prompt and the model, if nothing else does
    #[arg(long, value_name = "FILE", help_heading = "Graph and supernodes")]
    graph: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Graph and supernodes")]
    group: GroupArgs,
    /// Hold attention patterns to those of the original run
    #[arg(long, help_heading = "What is held")]
    freeze_attention: bool,
    /// Hold attention patterns, and the MLP outputs of layers A..B (B not included); changes act inside the range only
    #[arg(long, value_name = "A..B", help_heading = "What is held")]
    constrain: Option<String>,
    /// Hold all MLP outputs, attention patterns and norm denominators: direct effects alone
    #[arg(long, conflicts_with = "constrain", help_heading = "What is held")]
    direct: bool,
    /// Continue the prompt by N tokens, with and without the changes; open-ended changes act on new tokens too
    #[arg(long, value_name = "N", help_heading = "Generation")]
    generate: Option<usize>,
    /// With --generate and a mode that holds something: keep holding at every generated token, to what the unchanged
    /// model does on the same tokens (the changed continuation so far). Without it, only the prompt is held, and new
    /// tokens are computed freely
    // Here and below --sweep is a conflict of its own: beside what conflicts with --generate, the parser would not ask for it.
    #[arg(long, requires = "generate", conflicts_with = "sweep", help_heading = "Generation")]
    keep_frozen: bool,
    /// Sample at this temperature [default: take the likeliest token]
    #[arg(long, value_name = "T", requires = "generate", conflicts_with = "sweep", help_heading = "Generation")]
    temperature: Option<f64>,
    /// Sample among the likeliest tokens that add up to this probability
    #[arg(long, value_name = "P", requires = "temperature", conflicts_with = "sweep", help_heading = "Generation")]
    top_p: Option<f64>,
    /// Seed of the sampling, the same for both continuations
    #[arg(
        long,
        value_name = "S",
        default_value_t = 0,
        requires = "temperature",
        conflicts_with = "sweep",
        help_heading = "Generation"
    )]
    seed: u64,
    /// Follow this token (exact text, leading space included); repeatable [default: the likeliest one of the original run]
    #[arg(long, value_name = "TOKEN", help_heading = "What to follow")]
    target: Vec<String>,
    /// As --target, by vocabulary id
    #[arg(long, value_name = "ID", help_heading = "What to follow")]
    target_id: Vec<u32>,
    /// Follow the difference of two tokens' logits; repeatable
    #[arg(long, num_args = 2, value_names = ["TOKEN", "TOKEN"], help_heading = "What to follow")]
    target_diff: Vec<String>,
    /// Follow what the final norm's output has along a direction: the tensors of a safetensors file (FILE:NAME for one of
    /// them), or a sum such as '" Austin" + " Dallas" - 2 * " Sacramento"'; repeatable
    #[arg(long, value_name = "FILE or SUM", allow_hyphen_values = true, help_heading = "What to follow")]
    target_direction: Vec<String>,
    #[cfg(feature = "serve")]
    #[command(flatten)]
    open: OpenArgs,
    /// How many tokens and features to show
    #[arg(long, value_name = "N", default_value_t = CompareOptions::default().top, help_heading = "Output")]
    top: usize,
    /// Draw (.svg or .png): the supernodes before and after; of a sweep or a plan's alternatives, the target's probability
    #[arg(long, value_name = "FILE", alias = "svg", help_heading = "Output")]
    picture: Option<PathBuf>,
    /// A feature_labels.json to name features from [default: the one beside the transcoders]
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    labels: Option<PathBuf>,
    /// Who reads csv: perhaps a spreadsheet, so that what begins like a formula gets an apostrophe in front; or a program,
    /// with every cell exactly as it is
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    cells: CellsFor,
    /// How to print; csv is for sweeps and alternatives
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
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
    args.setup.start_threads()?;
    if args.cells != CellsFor::default() && args.format != InterveneFormat::Csv {
        return Err(Error::Contradiction {
            first: "--cells",
            second: "a format without cells: it is for --format csv",
        });
    }
    let mode = mode(args)?;
    let generate = generate_options(args, &mode)?;
    if let Some(picture) = &args.picture {
        let inputs =
            [args.plan.as_ref(), args.graph.as_ref(), args.labels.as_ref(), args.prompt.file(), args.group.file()];
        refuse_own_inputs(picture, inputs)?;
        check_drawing(picture)?;
    }
    let mut graph = match &args.graph {
        Some(path) => Some(NamedGraph::open(path, args.group.request()?)?),
        None => None,
    };
    if let Some(graph) = &mut graph {
        relabel_from(&mut graph.opened.circuit, args.labels.as_ref())?;
    }
    let source = graph.as_ref().map(|graph| GraphSource::of_circuit(&graph.path, &graph.circuit().meta));
    let tracer = args.setup.open_with(args.labels.as_deref(), source.as_ref())?;
    mode.check(tracer.replacement().model.config.n_layers)?;
    if let Some(graph) = &graph {
        graph.check_model(tracer.replacement())?;
    }
    let prompt = tracer.tokenize(prompt(args, graph.as_ref())?)?;
    let changes = Changes::new(args, &Context { tracer: &tracer, prompt: &prompt, graph: graph.as_ref() })?;
    let (target, followed) = followed(args, &tracer)?;
    let features = graph.as_ref().map(NamedGraph::features);
    // Under constraints changes are direct effects, which act on pre-activations: those are the graph's edges.
    let measure = match mode {
        Mode::Free | Mode::FrozenAttention | Mode::FrozenNorms => Measure::Activation,
        Mode::Constrained(_) | Mode::Direct => Measure::PreActivation,
    };
    let compare = CompareOptions { target, top: args.top, features, followed, measure };
    let groups = read_groups(graph.as_ref(), &changes);
    check_question(args, &changes, &groups)?;
    let options = RunOptions { mode, compare, generate, groups, heads: changes.heads.clone() };

    if !changes.alternatives.is_empty() {
        let (always, alternatives) = (&changes.interventions, &changes.alternatives);
        let swept = tracer.sweep_with(prompt, always, alternatives, &options, &Job::default())?;
        return print_sweep(args, &swept, &changes.described);
    }
    let run = tracer.intervene(prompt, &changes.interventions, &options)?;
    match args.format {
        InterveneFormat::Text | InterveneFormat::Csv => print_text(&comparison_text(&run, &changes.described))?,
        InterveneFormat::Json => print_json(&run)?,
    }
    if let Some(path) = &args.picture {
        draw(args, path, &supernode_svg(&diagram(&run, graph.as_ref(), &changes, &options.groups)?))?;
    }
    #[cfg(feature = "serve")]
    if let Some(path) = args.graph.as_ref().filter(|_| args.open.open) {
        return args.open.show(path, Some(Box::new(move || Ok(tracer))));
    }
    Ok(())
}

/// The prompt that is given, else the graph's.
fn prompt(args: &InterveneArgs, graph: Option<&NamedGraph>) -> Result<Prompt> {
    match (args.prompt.read()?, graph) {
        (Some(prompt), _) => Ok(prompt),
        (None, Some(graph)) => Ok(graph.prompt()),
        (None, None) => Err(Error::EmptyPrompt),
    }
}

/// The supernodes of the graph, and what the request calls by other names.
fn read_groups(graph: Option<&NamedGraph>, changes: &Changes) -> Vec<FeatureGroup> {
    let of_graph = graph
        .into_iter()
        .flat_map(|graph| &graph.supernodes)
        .map(|(name, ids)| FeatureGroup { name: name.clone(), members: ids.iter().map(|id| (*id, None)).collect() });
    let mut groups: Vec<FeatureGroup> = of_graph.collect();
    for group in &changes.groups {
        if !groups.iter().any(|known| known.name == group.name) {
            groups.push(group.clone());
        }
    }
    groups
}

fn print_sweep(args: &InterveneArgs, report: &Swept, described: &[String]) -> Result<()> {
    match args.format {
        InterveneFormat::Text => print_text(&sweep_text(report, described))?,
        InterveneFormat::Json => print_json(report)?,
        InterveneFormat::Csv => print_data(&sweep_csv(&report.result, args.cells.into()))?,
    }
    match &args.picture {
        Some(path) => draw(args, path, &sweep_svg(&report.result)),
        None => Ok(()),
    }
}

/// Writes a picture as its file's name says.
fn draw(args: &InterveneArgs, path: &Path, svg: &str) -> Result<()> {
    const PNG_SCALE: f64 = 2.0;
    let is_png = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
    let bytes = if is_png { png(svg, PNG_SCALE)? } else { svg.as_bytes().to_vec() };
    write_picture(path, &bytes)?;
    if !args.setup.quiet {
        note(&format!("wrote {}", path.display()));
    }
    Ok(())
}

/// Refuses what asks for nothing, and outputs that the question does not have.
fn check_question(args: &InterveneArgs, changes: &Changes, groups: &[FeatureGroup]) -> Result<()> {
    let contradiction = |first: &'static str, second: &'static str| Err(Error::Contradiction { first, second });
    let is_sweep = !changes.alternatives.is_empty();
    if args.top_features.is_some() && args.set.iter().chain(&args.scale).all(|text| text.contains('=')) {
        return contradiction("--top-features", "nothing to do with them: also give --scale X or --set V");
    }
    if !is_sweep && changes.interventions.is_empty() && changes.heads.is_empty() {
        return Err(Error::NothingToChange);
    }
    if args.sweep.is_some() && args.plan.is_some() && changes.alternatives.iter().any(|a| a.value.is_none()) {
        return contradiction("--sweep", "a plan with alternatives");
    }
    #[cfg(feature = "serve")]
    if args.open.open && (is_sweep || args.graph.is_none()) {
        return contradiction("--open", "a run without --graph, or with alternatives: the page shows a graph");
    }
    if is_sweep && args.generate.is_some() {
        return contradiction("--generate", "a plan with alternatives");
    }
    if !is_sweep && args.picture.is_some() && groups.is_empty() {
        return contradiction(
            "--picture",
            "a single run without supernodes: it draws those of --graph, or plots --sweep or a plan's alternatives",
        );
    }
    if !is_sweep && args.format == InterveneFormat::Csv {
        return contradiction("--format csv", "a single run: it lists --sweep or a plan's alternatives");
    }
    Ok(())
}

/// The token of the tables, and what else is followed.
fn followed(args: &InterveneArgs, tracer: &Tracer) -> Result<(Option<u32>, Vec<Followed>)> {
    let token = |text: &String, doing: &dyn Fn() -> String| tracer.token(text).context(doing);
    let mut tokens = Vec::new();
    for text in &args.target {
        tokens.push(token(text, &|| format!("cannot use `--target {text:?}`"))?);
    }
    tokens.extend(&args.target_id);
    let mut followed: Vec<Followed> = tokens.iter().skip(1).map(|&token| Followed::Token(token)).collect();
    for pair in args.target_diff.chunks_exact(2) {
        let doing = || format!("cannot use `--target-diff {:?} {:?}`", pair[0], pair[1]);
        followed.push(Followed::TokenDiff(token(&pair[0], &doing)?, token(&pair[1], &doing)?));
    }
    for text in &args.target_direction {
        let found = directions(text, tracer).context(|| format!("cannot use `--target-direction {text}`"))?;
        for direction in found {
            followed.push(Followed::Direction { vec: direction.vec, label: direction.label });
        }
    }
    Ok((tokens.first().copied(), followed))
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
