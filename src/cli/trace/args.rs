//! The arguments of `circuitscope trace`.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use crate::attribution::{AttributionOptions, TargetRequest, Versus};
use crate::circuits::SummarySettings;
use crate::error::ErrorContext;
use crate::memory::parse_size;
use crate::tracer::{Tracer, directions};
use crate::{Error, Result};

use super::super::Format;
use super::super::collected::CollectedArgs;
use super::super::graph_args::{NodeLimit, Thresholds, file_name};
#[cfg(feature = "serve")]
use super::super::open_page::OpenArgs;
use super::super::prompt::PromptArgs;
use super::super::row_args::RowArgs;
use super::super::setup::SetupArgs;

/// Options about rows, prunings and graphs, which a map has not.
const NOT_OF_A_MAP: [&str; 21] = [
    "rows",
    "theta",
    "nodes",
    "max_features",
    "open_positions",
    "resume",
    "batch_size",
    "node_threshold",
    "edge_threshold",
    "max_nodes",
    "no_json",
    "no_raw",
    "heads",
    "no_decoders",
    "labels",
    "examples",
    "features",
    "paths",
    "top",
    "timings",
    "force",
];

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("asked").multiple(true).args(
    ["target", "target_id", "target_diff", "target_feature", "target_attention", "target_direction"]
)))]
pub struct TraceArgs {
    #[command(flatten)]
    pub(super) prompt: PromptArgs,
    #[command(flatten, next_help_heading = "Model")]
    pub(super) setup: SetupArgs,
    /// Explain the logit of this token (exact text, leading space included); repeatable [default: the likeliest tokens]
    #[arg(long, value_name = "TOKEN", help_heading = "What to explain")]
    target: Vec<String>,
    /// As --target, by vocabulary id
    #[arg(long, value_name = "ID", help_heading = "What to explain")]
    target_id: Vec<u32>,
    /// Explain the difference of two tokens' logits
    #[arg(long, num_args = 2, value_names = ["TOKEN", "TOKEN"], help_heading = "What to explain")]
    target_diff: Vec<String>,
    /// Explain the pre-activation of a feature: layer_feature_position
    #[arg(long, value_name = "L_F_P", help_heading = "What to explain")]
    target_feature: Vec<String>,
    /// Explain why a head looked somewhere: its score before the softmax, LAYER.HEAD@QUERY:KEY as in 18.6@18:7, from both
    /// sides; repeatable
    #[arg(long, value_name = "L.H@Q:K", help_heading = "What to explain")]
    target_attention: Vec<String>,
    /// With --target-attention: less the score of this other key
    #[arg(long, value_name = "KEY", requires = "target_attention", help_heading = "What to explain")]
    versus: Option<usize>,
    /// With --target-attention: against all other keys, each by its share of the attention that is left to them
    #[arg(long, requires = "target_attention", conflicts_with = "versus", help_heading = "What to explain")]
    rival: bool,
    /// Explain a direction of the final norm's output: the tensors of a safetensors file (FILE:NAME for one of them), or a
    /// sum such as '" Austin" + " Dallas" - 2 * " Sacramento"'; repeatable
    #[arg(long, value_name = "FILE or SUM", allow_hyphen_values = true, help_heading = "What to explain")]
    target_direction: Vec<String>,
    /// Position of logit targets [default: the last]
    #[arg(long, value_name = "P", value_parser = parse_position, allow_negative_numbers = true, help_heading = "What to explain")]
    position: Option<usize>,
    /// At most this many of the likeliest tokens are explained
    #[arg(long, value_name = "N", default_value_t = AttributionOptions::default().max_logits, conflicts_with = "asked", help_heading = "What to explain")]
    max_logits: usize,
    /// No more tokens once their probabilities add up to this
    #[arg(long, value_name = "SHARE", default_value_t = AttributionOptions::default().logit_prob, conflicts_with = "asked", help_heading = "What to explain")]
    logit_prob: f64,
    /// No graph but a map, in seconds: what blocks of layers and spans of tokens give to what is explained directly, and which
    /// positions to open; also as a picture and a table, NAME.map.svg and NAME.map.csv
    #[arg(long, conflicts_with_all = NOT_OF_A_MAP, help_heading = "What to explain")]
    pub(super) coarse: bool,
    #[command(flatten, next_help_heading = "Features")]
    rows: RowArgs,
    /// With --max-features: a quarter of the features chosen between two looks at the influence
    // The conflicts are those of --max-features: beside what conflicts with it, the parser would not ask for it.
    #[arg(long, value_name = "N", default_value_t = AttributionOptions::default().batch_size, requires = "max_features",
        conflicts_with_all = ["rows", "theta", "nodes"], help_heading = "Features")]
    batch_size: usize,
    /// Keep finished rows in NAME.rows, beside the graph, and go on from those of an earlier run with --resume that was
    /// interrupted; the file is removed when the graph is written. Rows of samples are kept
    #[arg(long, conflicts_with = "max_features", help_heading = "Features")]
    pub(super) resume: bool,
    /// Use at most this much memory, 4GB say: what does not fit is said before it is begun [default: what there is]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory, help_heading = "Features")]
    pub(super) memory: Option<u64>,
    #[command(flatten, next_help_heading = "Pruning")]
    pub(super) thresholds: Thresholds,
    #[command(flatten, next_help_heading = "Pruning")]
    pub(super) limit: NodeLimit,
    /// Where the files go
    #[arg(long, value_name = "FOLDER", default_value = "graphs", help_heading = "Output")]
    pub(super) out_dir: PathBuf,
    /// Name of the files and of the graph [default: from the prompt; where files of another trace have that name, with
    /// digits that tell this one]
    #[arg(long, value_name = "NAME", value_parser = file_name, help_heading = "Output")]
    pub(super) slug: Option<String>,
    /// Replace files of that name also where they hold another prompt, other targets or settings, or pinned nodes
    #[arg(long, help_heading = "Output")]
    pub(super) force: bool,
    /// Do not write the pruned graph
    #[arg(long, help_heading = "Output")]
    pub(super) no_json: bool,
    /// Do not write the raw graph
    #[arg(long, help_heading = "Output")]
    pub(super) no_raw: bool,
    /// Find out through which heads every edge of the pruned graph goes, and in how many hops; both files tell it
    #[arg(long, help_heading = "Output")]
    pub(super) heads: bool,
    /// Leave the features' decoder directions out of the raw graph; `inspect --auto-group` uses them
    #[arg(long, conflicts_with = "no_raw", help_heading = "Output")]
    no_decoders: bool,
    /// A feature_labels.json to name features from [default: the one beside the transcoders]
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(super) labels: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Output")]
    pub(super) collected: CollectedArgs,
    /// How many of the strongest paths to show
    #[arg(long, value_name = "K", default_value_t = SummarySettings::default().paths, help_heading = "Output")]
    pub(super) paths: usize,
    /// How many nodes to show
    #[arg(long, value_name = "N", default_value_t = SummarySettings::default().top, help_heading = "Output")]
    pub(super) top: usize,
    /// How to print the summary
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    pub(super) format: Format,
    #[cfg(feature = "serve")]
    #[command(flatten)]
    pub(super) open: OpenArgs,
    /// With --format json: add `timings`, the time and memory of every phase; without them, equal runs print equal bytes
    #[arg(long, help_heading = "Output")]
    pub(super) timings: bool,
}

impl TraceArgs {
    /// Refuses options that would be passed over, where the parser cannot know.
    ///
    /// # Errors
    /// [`Error::Contradiction`].
    pub(super) fn check_use(&self) -> Result<()> {
        let refuse = |first: &'static str, second: &'static str| Err(Error::Contradiction { first, second });
        let has_logits = [&self.target, &self.target_diff, &self.target_direction].iter().any(|list| !list.is_empty());
        let has_others = !(self.target_feature.is_empty() && self.target_attention.is_empty());
        if self.position.is_some() && has_others && !has_logits && self.target_id.is_empty() {
            return refuse("--position", "features and scores alone, which have positions of their own");
        }
        if self.timings && self.format != Format::Json {
            return refuse("--timings", "text, which always ends with them: it is for --format json");
        }
        if self.collected.is_given() && !self.collected.wants_examples() {
            return refuse("--features", "a summary without --examples, which are what is taken from them");
        }
        if self.no_raw && self.no_json {
            if self.heads {
                return refuse("--heads", "--no-raw and --no-json: the files are what tells it");
            }
            #[cfg(feature = "serve")]
            if self.open.open {
                return refuse("--open", "--no-raw and --no-json: the page shows a file");
            }
        }
        Ok(())
    }

    /// How to attribute, with the targets looked up.
    ///
    /// # Errors
    /// Targets that are no token or no feature, options out of range.
    pub(super) fn options(&self, tracer: &Tracer) -> Result<AttributionOptions> {
        let token = |text: &String| tracer.token(text);
        let mut targets = Vec::new();
        for text in &self.target {
            targets.push(TargetRequest::Token(token(text).context(|| format!("cannot use `--target {text:?}`"))?));
        }
        targets.extend(self.target_id.iter().map(|&id| TargetRequest::Token(id)));
        for pair in self.target_diff.chunks_exact(2) {
            let [first, second] = [&pair[0], &pair[1]]
                .map(|text| token(text).context(|| format!("cannot use `--target-diff {:?} {:?}`", pair[0], pair[1])));
            targets.push(TargetRequest::TokenDiff(first?, second?));
        }
        for text in &self.target_feature {
            let numbers: Option<Vec<usize>> = text.split('_').map(|part| part.parse().ok()).collect();
            let Some(&[layer, feature, pos]) = numbers.as_deref() else {
                let expected = "layer_feature_position, such as 3_41_7";
                return Err(Error::Spec { text: text.clone(), expected })
                    .context(|| format!("cannot use `--target-feature {text}`"));
            };
            targets.push(TargetRequest::Feature { layer, feature, pos });
        }
        let versus = match (self.versus, self.rival) {
            (Some(key), _) => Versus::Key(key),
            (None, true) => Versus::Rivals,
            (None, false) => Versus::Nothing,
        };
        for text in &self.target_attention {
            let score = text.parse().context(|| format!("cannot use `--target-attention {text}`"))?;
            targets.push(TargetRequest::Score { score, versus });
        }
        for text in &self.target_direction {
            let found = directions(text, tracer).context(|| format!("cannot use `--target-direction {text}`"))?;
            for direction in found {
                targets.push(TargetRequest::Direction { vec: direction.vec, label: direction.label });
            }
        }
        let n_asked = targets.len();
        let mut distinct: Vec<TargetRequest> = Vec::new();
        for target in targets {
            if !distinct.contains(&target) {
                distinct.push(target);
            }
        }
        if distinct.len() < n_asked {
            self.setup.note(&format!("{n_asked} targets are asked for, {} of them different", distinct.len()));
        }
        let options = AttributionOptions {
            targets: distinct,
            position: self.position,
            max_logits: self.max_logits,
            logit_prob: self.logit_prob,
            rows: self.rows.choice()?,
            batch_size: self.batch_size,
            open: self.rows.open(),
            keep_decoders: !(self.no_decoders || self.no_raw),
            finished: None,
        };
        options.check()?;
        Ok(options)
    }
}

fn parse_memory(text: &str) -> std::result::Result<u64, String> {
    parse_size(text).ok_or_else(|| "expected a size such as 4GB or 800MB".into())
}

fn parse_position(text: &str) -> std::result::Result<usize, String> {
    let expected = match text.starts_with('-') {
        true => "positions are counted from 0, and none from the end; the last is explained where none is given",
        false => "expected the number of a position, from 0",
    };
    text.parse().map_err(|_| expected.to_owned())
}
