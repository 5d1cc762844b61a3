//! `circuitscope evaluate`: how good a set of transcoders is.

mod picture;
mod text;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use super::counted::Counted;
use super::features::token_count;
use super::output_file::{check_drawing, check_folder, write_picture};
use super::setup::SetupArgs;
use super::{Format, json_text, print_json, print_text};
use crate::corpus::{Input, Split, TextFormat, inputs};
use crate::evaluate::{EvaluateOptions, PROMPTS_PHASE, REPLACED_PHASE, TOKENS_PHASE, TextOptions, evaluate};
use crate::export::{check_not_input, replace_file};
use crate::input::is_stream;
use crate::picture::png;
use crate::weights::{ATLAS, atlas_sentences};
use crate::{Error, Result};

/// Tokens that are read where no number is given.
const DEFAULT_TOKENS: &str = "50k";

/// Pixels of a PNG for one of the SVG.
const PNG_SCALE: f64 = 2.0;

#[derive(Debug, Args)]
pub struct EvaluateArgs {
    #[command(flatten, next_help_heading = "Model")]
    setup: SetupArgs,
    /// Text: plain, JSON lines, compressed or not (.gz, .xz, .zst); folders; `-` for the standard input [default for
    /// `atlas`: its own sentences]
    #[arg(long, value_name = "FILE", num_args = 1.., help_heading = "Text")]
    text: Vec<PathBuf>,
    /// The field of JSON lines that holds the text
    #[arg(long, value_name = "NAME", default_value = "text", requires = "text", help_heading = "Text")]
    field: String,
    /// What a document is in plain text: file, paragraphs or lines [default: file]
    #[arg(long, value_name = "WHAT", help_heading = "Text")]
    split: Option<Split>,
    /// Documents that training leaves out, about one of 20: the default
    #[arg(long, help_heading = "Text", conflicts_with = "all_text")]
    held_out: bool,
    /// All documents, for text that the set was not trained on
    #[arg(long, help_heading = "Text")]
    all_text: bool,
    /// Tokens of a sequence; sequences do not reach over the end of a document
    #[arg(long, value_name = "N", default_value_t = TextOptions::default().context, help_heading = "Text")]
    context: usize,
    /// Stop after so many tokens, such as 300k or 1.5M
    #[arg(long, value_name = "N", value_parser = token_count, default_value = DEFAULT_TOKENS, help_heading = "Text")]
    tokens: u64,
    /// Of these, tokens read with all MLPs replaced; 0 leaves this out
    #[arg(long, value_name = "N", value_parser = some_tokens, default_value = "8k", help_heading = "What to measure")]
    replaced_tokens: usize,
    /// Of these, tokens read with one layer's MLP replaced, for every layer; 0 leaves this out
    #[arg(long, value_name = "N", value_parser = some_tokens, default_value = "1k", help_heading = "What to measure")]
    layer_tokens: usize,
    /// Prompts whose graphs are scored, beginnings of documents; 0 leaves graphs out
    #[arg(long, value_name = "N", default_value_t = EvaluateOptions::default().prompts, help_heading = "What to measure")]
    prompts: usize,
    /// Tokens of a prompt
    #[arg(long, value_name = "N", default_value_t = EvaluateOptions::default().prompt_tokens, help_heading = "What to measure")]
    prompt_tokens: usize,
    /// Prompts of these in which features are ablated one by one
    #[arg(long, value_name = "N", default_value_t = EvaluateOptions::default().ablation_prompts, help_heading = "What to measure")]
    ablation_prompts: usize,
    /// Features of each that are ablated
    #[arg(long, value_name = "N", default_value_t = EvaluateOptions::default().ablated, help_heading = "What to measure")]
    ablate: usize,
    /// How to print
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    format: Format,
    /// Write all figures as JSON, usually to quality.json beside the weights
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
    /// Draw FVU and L0 of every layer (.svg or .png)
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    picture: Option<PathBuf>,
}

/// A number of tokens, which may be none.
fn some_tokens(text: &str) -> Result<usize, String> {
    match text {
        "0" => Ok(0),
        _ => token_count(text).map(|n| n as usize),
    }
}

/// Measures, prints, writes.
///
/// # Errors
/// Those of [`evaluate`]; outputs that cannot be written.
pub(super) fn run(args: &EvaluateArgs) -> Result<()> {
    args.setup.start_threads()?;
    let mut options = EvaluateOptions {
        text: TextOptions {
            format: TextFormat { field: args.field.clone(), split: args.split.unwrap_or_default() },
            all_text: args.all_text,
            context: args.context,
            max_tokens: Some(args.tokens),
        },
        replaced_tokens: args.replaced_tokens,
        layer_tokens: args.layer_tokens,
        prompts: args.prompts,
        prompt_tokens: args.prompt_tokens,
        ablation_prompts: args.ablation_prompts,
        ablated: args.ablate,
    };
    let named = if args.text.is_empty() { None } else { Some(inputs(&args.text)?) };
    let read: Vec<&Path> = named.iter().flatten().filter_map(file_of).collect();
    if let Some(path) = &args.output {
        check_not_input(path, &read)?;
        check_output(path)?;
    }
    if let Some(path) = &args.picture {
        check_not_input(path, &read)?;
        check_drawing(path)?;
    }
    let tracer = args.setup.open(None)?;
    let inputs = match named {
        Some(inputs) => inputs,
        None if tracer.model_name() == ATLAS => {
            options.text.format.split = args.split.unwrap_or(Split::Lines);
            vec![Input::Embedded(ATLAS, atlas_sentences())]
        }
        None => return Err(Error::Text { file: "--text".into(), problem: "no file is named".into() }),
    };
    let shown =
        Counted::new(args.setup.quiet, &[TOKENS_PHASE, REPLACED_PHASE, PROMPTS_PHASE].map(|phase| (phase, phase)));
    let quality = evaluate(tracer.replacement(), &inputs, &options, &shown.job());
    shown.finish();
    let quality = quality?;
    if let Some(path) = &args.output {
        let json = json_text(&quality)?;
        replace_file(path, |writer| writer.write_all(json.as_bytes()))?;
    }
    if let Some(path) = &args.picture {
        let svg = picture::layers_svg(&quality);
        let is_png = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("png"));
        write_picture(path, &if is_png { png(&svg, PNG_SCALE)? } else { svg.into_bytes() })?;
    }
    match args.format {
        Format::Text => print_text(&text::quality_text(&quality))?,
        Format::Json => print_json(&quality)?,
    }
    for path in args.output.iter().chain(&args.picture) {
        args.setup.note(&format!("wrote {}", path.display()));
    }
    Ok(())
}

/// Checks that figures go into a file that is called JSON, in a folder that is there.
fn check_output(path: &Path) -> Result<()> {
    let is_json = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json"));
    let is_device = is_stream(path) && path.exists();
    if !is_json && !is_device {
        return Err(Error::Spec { text: path.display().to_string(), expected: "a name that ends in .json" });
    }
    check_folder(path)
}

fn file_of(input: &Input) -> Option<&Path> {
    match input {
        Input::File(path) => Some(path),
        Input::Stdin | Input::Embedded(..) => None,
    }
}
