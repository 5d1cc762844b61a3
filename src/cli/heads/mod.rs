//! `circuitscope heads`: through which heads edges go, what heads give to targets, why they look where they look, and what
//! they do on random tokens.

mod of_graph;
mod of_score;
mod on_random;

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, ValueEnum};

use crate::attribution::{Score, Versus};
use crate::error::ErrorContext;
use crate::graph::Head;
use crate::heads::HeadScoreOptions;
use crate::picture::{HeatMap, heat_map, png};
use crate::{Error, Result};

use super::graph_args::{Thresholds, refuse_own_inputs};
use super::output_file::{check_drawing, write_picture};
use super::setup::SetupArgs;
use super::{note, print_data, print_json, print_text};

/// Pixels of a PNG for one of the SVG.
const PNG_SCALE: f64 = 2.0;

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("looked_at").args(["head", "score"]).multiple(true)))]
pub struct HeadsArgs {
    /// A raw graph (.safetensors): through which heads the edges that pruning keeps go, and what heads give to its targets.
    /// Without a graph and a prompt: what every head does on random tokens that come twice
    #[arg(conflicts_with = "prompt")]
    // Options of the other uses name it as a conflict each: clap waives what an option requires where that conflicts with
    // what is given, so that `requires = "prompt"` alone would pass them over.
    graph: Option<PathBuf>,
    /// Of a graph: one edge in full, from the node A to the node B, by the names that `inspect --node` takes
    #[arg(long, value_name = "A,B", requires = "graph", allow_hyphen_values = true, help_heading = "Of a graph")]
    edge: Option<String>,
    /// Of a graph: what every head would give to the targets if it wrote what it writes in this prompt, of as many
    /// tokens; norms, and everything between head and target, held
    #[arg(long, value_name = "PROMPT", requires = "graph", conflicts_with = "edge", help_heading = "Of a graph")]
    from: Option<String>,
    /// Where heads look in this prompt: with --head, or --score
    #[arg(long, value_name = "PROMPT", requires = "looked_at", help_heading = "Of a prompt")]
    prompt: Option<String>,
    /// A head, LAYER.HEAD as in 18.6; repeatable
    #[arg(long, value_name = "L.H", requires = "prompt", conflicts_with = "graph", help_heading = "Of a prompt")]
    head: Vec<String>,
    /// What a score before the softmax is made of, LAYER.HEAD@QUERY:KEY as in 18.6@18:7: by position and by group, and the
    /// largest pairs of sources
    #[arg(
        long,
        value_name = "L.H@Q:K",
        requires = "prompt",
        conflicts_with_all = ["graph", "head"],
        help_heading = "Of a prompt"
    )]
    score: Option<String>,
    /// With --score: less the score of this other key
    #[arg(
        long,
        value_name = "KEY",
        requires = "score",
        conflicts_with_all = ["graph", "head"],
        help_heading = "Of a prompt"
    )]
    versus: Option<usize>,
    /// With --score: against all other keys, each by its share of the attention that is left to them
    #[arg(
        long,
        requires = "score",
        conflicts_with_all = ["graph", "head", "versus"],
        help_heading = "Of a prompt"
    )]
    rival: bool,
    /// Random sequences that scores are means of
    #[arg(
        long,
        value_name = "N",
        default_value_t = HeadScoreOptions::default().n_sequences,
        conflicts_with_all = ["graph", "prompt"],
        help_heading = "On random tokens"
    )]
    sequences: usize,
    /// Random tokens of each, which then come again
    #[arg(
        long,
        value_name = "N",
        default_value_t = HeadScoreOptions::default().length,
        conflicts_with_all = ["graph", "prompt"],
        help_heading = "On random tokens"
    )]
    length: usize,
    /// Seed of the random tokens
    #[arg(
        long,
        value_name = "S",
        default_value_t = HeadScoreOptions::default().seed,
        conflicts_with_all = ["graph", "prompt"],
        help_heading = "On random tokens"
    )]
    seed: u64,
    /// The score that a picture of all heads shows
    #[arg(
        long,
        value_enum,
        default_value_t,
        requires = "picture",
        conflicts_with_all = ["graph", "prompt"],
        help_heading = "On random tokens"
    )]
    kind: ScoreKind,
    #[command(flatten, next_help_heading = "Pruning")]
    thresholds: Thresholds,
    #[command(flatten, next_help_heading = "Model")]
    setup: SetupArgs,
    /// How many entries every list shows
    #[arg(long, value_name = "N", default_value_t = 10, conflicts_with = "head", help_heading = "Output")]
    top: usize,
    /// Draw (.svg or .png): scores of all heads, a head's pattern, a score by position, bills by layer and head
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    picture: Option<PathBuf>,
    /// How to print; csv is for scores on random tokens
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    format: HeadsFormat,
}

/// A score of all heads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum ScoreKind {
    #[default]
    Induction,
    Duplicate,
    Previous,
    First,
    Copying,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum HeadsFormat {
    #[default]
    Text,
    Json,
    Csv,
}

/// Prints what was asked for about heads.
///
/// # Errors
/// Options that contradict each other; a graph, a prompt, heads or nodes that are not there; files that cannot be written.
pub(super) fn run(args: &HeadsArgs) -> Result<()> {
    args.setup.start_threads()?;
    if let Some(picture) = &args.picture {
        refuse_own_inputs(picture, [args.graph.as_ref()])?;
        check_drawing(picture)?;
    }
    if args.format == HeadsFormat::Csv && (args.graph.is_some() || args.prompt.is_some()) {
        let second = "a graph or a prompt: it lists the scores of all heads on random tokens";
        return Err(Error::Contradiction { first: "--format csv", second });
    }
    args.check_use()?;
    match (&args.graph, &args.prompt, &args.score) {
        (Some(graph), _, _) => of_graph::run(args, graph),
        (None, Some(prompt), Some(score)) => of_score::run_score(args, prompt, score),
        (None, Some(prompt), None) => of_score::run_patterns(args, prompt),
        (None, None, _) => on_random::run(args),
    }
}

impl HeadsArgs {
    /// Refuses options that this use would pass over, where the parser cannot know.
    fn check_use(&self) -> Result<()> {
        let refuse = |first: &'static str, second: &'static str| Err(Error::Contradiction { first, second });
        if self.thresholds.is_given() && (self.graph.is_none() || self.from.is_some()) {
            let first = "--node-threshold or --edge-threshold";
            return refuse(
                first,
                "--from, or no graph at all: edges are pruned, and only a graph's heads go by its edges",
            );
        }
        if self.setup.transcoders().is_some() && self.graph.is_none() && self.score.is_none() {
            return refuse("--transcoders", "what heads do without a graph or --score: the model alone says it");
        }
        Ok(())
    }

    fn heads(&self) -> Result<Vec<Head>> {
        self.head.iter().map(|text| text.parse().context(|| format!("cannot use `--head {text}`"))).collect()
    }

    fn versus(&self) -> Versus {
        match (self.versus, self.rival) {
            (Some(key), _) => Versus::Key(key),
            (None, true) => Versus::Rivals,
            (None, false) => Versus::Nothing,
        }
    }

    /// Draws a heat map where a picture was asked for.
    fn draw(&self, map: impl FnOnce() -> HeatMap) -> Result<()> {
        let Some(path) = &self.picture else { return Ok(()) };
        let svg = heat_map(&map())?;
        let is_png = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
        let bytes = if is_png { png(&svg, PNG_SCALE)? } else { svg.into_bytes() };
        write_picture(Path::new(path), &bytes)?;
        if !self.setup.quiet {
            note(&format!("wrote {}", path.display()));
        }
        Ok(())
    }
}

fn parse_score(text: &str) -> Result<Score> {
    text.parse().context(|| format!("cannot use `--score {text}`"))
}
