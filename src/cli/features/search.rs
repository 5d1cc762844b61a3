//! `circuitscope features search`.

use std::fmt::Write;

use clap::{Args, ValueEnum};

use crate::cli::setup::{GraphSource, SetupArgs};
use crate::cli::summary::{Align, cut, percent, write_table};
use crate::cli::{Format, print_data, print_json};
use crate::features::{ActiveHere, FeatureSet, Found, SearchBy, active_on, search};
use crate::job::Job;
use crate::text::quoted;
use crate::{Error, Result};

/// Columns for the tokens of a feature without a label.
const TOKENS_COLUMNS: usize = 40;

#[derive(Debug, Args)]
pub(super) struct SearchArgs {
    /// The folder of features, or the one of the transcoders that it is in; `atlas` for those of the embedded model
    folder: String,
    /// Words of labels, or tokens that features are active on; with --on-text, a text that goes through the model
    query: String,
    /// What is searched
    #[arg(long, value_enum, default_value_t, conflicts_with = "on_text")]
    by: By,
    /// Run the query as a text, and show which features are active on each of its tokens
    #[arg(long)]
    on_text: bool,
    /// Features that are shown; with --on-text, at each token [default: 20, or 3 at each token]
    #[arg(long, short, value_name = "N")]
    n: Option<usize>,
    #[command(flatten)]
    setup: SetupArgs,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What is searched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum By {
    /// Labels and tokens
    #[default]
    All,
    /// What features are called
    Label,
    /// The tokens they are active on
    Tokens,
}

/// Searches, and prints what was found.
///
/// # Errors
/// A folder that cannot be read; with --on-text, features of another model.
pub(super) fn run(args: &SearchArgs) -> Result<()> {
    if args.n == Some(0) {
        return Err(Error::Setting { name: "n", value: 0.0, range: "1 or more" });
    }
    if args.setup.is_given() && !args.on_text {
        let second = "a search without --on-text: nothing goes through a model";
        return Err(Error::Contradiction { first: "--model, --transcoders or --setup", second });
    }
    args.setup.start_threads()?;
    let set = FeatureSet::open_named(&args.folder)?;
    if args.on_text {
        let tracer = args.setup.open_with(None, Some(&GraphSource::of_features(&set)))?;
        let n = args.n.unwrap_or(3);
        let found = active_on(tracer.replacement(), &set, &args.query, n, &Job::default())?;
        return match args.format {
            Format::Json => print_json(&found),
            Format::Text => print_data(&active_text(&found)),
        };
    }
    let by = SearchBy { label: args.by != By::Tokens, tokens: args.by != By::Label };
    let found = search(&set, &args.query, by, args.n.unwrap_or(20))?;
    match args.format {
        Format::Json => print_json(&found),
        Format::Text => print_data(&found_text(&found, &args.query)),
    }
}

fn found_text(found: &[Found], query: &str) -> String {
    if found.is_empty() {
        return format!("no feature fits {}\n", quoted(query));
    }
    let mut text = String::new();
    let header = ["feature", "active", "on query", "label, or tokens"].map(str::to_owned).to_vec();
    let rows = found.iter().map(|f| {
        vec![f.feature.clone(), f.count.to_string(), percent(f.share), meaning(f.label.as_deref(), &f.tokens)]
    });
    write_table(&mut text, &[Align::Left, Align::Right, Align::Right, Align::Left], header, rows);
    text
}

fn active_text(found: &[ActiveHere]) -> String {
    let mut text = String::new();
    for at in found.chunk_by(|a, b| a.pos == b.pos) {
        let _ = writeln!(text, "{:>4}  {}", at[0].pos, quoted(&at[0].token));
        let rows = at.iter().map(|f| {
            vec![
                String::new(),
                f.feature.clone(),
                format!("{:.3}", f.value),
                percent(f.share_of_max),
                meaning(f.label.as_deref(), &f.tokens),
            ]
        });
        let aligns = [Align::Left, Align::Left, Align::Right, Align::Right, Align::Left];
        write_table(&mut text, &aligns, Vec::new(), rows);
    }
    text
}

/// A label, or else the tokens that a feature is active on, as many as fit.
fn meaning(label: Option<&str>, tokens: &[String]) -> String {
    if let Some(label) = label {
        return cut(label);
    }
    let mut text = String::new();
    for token in tokens {
        let token = quoted(token);
        if text.chars().count() + token.chars().count() >= TOKENS_COLUMNS {
            break;
        }
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(&token);
    }
    text
}
