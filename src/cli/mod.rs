//! `cli`: arguments, printing, exit codes. Data goes to stdout, everything else to stderr.

mod compare;
mod graph_args;
mod hints;
mod inspect;
mod intervene;
mod intervene_text;
mod memory;
mod prompt;
mod prune;
mod row_args;
mod setup;
mod shortened;
mod summary;
mod trace;
mod verify;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::text::{json_lines, terminal};
use crate::{Error, Result};

pub use compare::{CommonArgs, DiffArgs};
pub use inspect::InspectArgs;
pub use intervene::InterveneArgs;
pub use prune::PruneArgs;
pub use summary::summary_text;
pub use trace::TraceArgs;
pub use verify::VerifyArgs;

/// Exit code of a command whose answer is no.
const EXIT_NO: u8 = 1;

/// Exit code of a command that failed.
const EXIT_ERROR: u8 = 2;

/// Attribution graphs of language models.
#[derive(Debug, Parser)]
#[command(name = "circuitscope", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Trace a prompt: which tokens and features made the model predict what it predicts
    Trace(TraceArgs),
    /// Prune a raw graph to the nodes and edges that carry most of the influence
    Prune(PruneArgs),
    /// Show what is in a graph: prediction, scores, strongest nodes and paths, one node's inputs and outputs; draw it
    Inspect(Box<InspectArgs>),
    /// Compare two graphs: features of both, of one only, and how their influence changed
    Diff(DiffArgs),
    /// Features and edges that several graphs have in common
    Common(CommonArgs),
    /// Change features while the model runs, and compare what it predicts
    Intervene(InterveneArgs),
    /// Check a raw graph against its model: do rows add up, are edges measured effects, do predictions come true
    Verify(VerifyArgs),
}

/// How a summary is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// Runs the command line.
pub fn main() -> ExitCode {
    shortened::explain();
    let result = match Cli::parse().command {
        Command::Trace(args) => trace::run(&args),
        Command::Prune(args) => prune::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Diff(args) => compare::run_diff(&args),
        Command::Common(args) => compare::run_common(&args),
        Command::Intervene(args) => intervene::run(&args),
        Command::Verify(args) => match verify::run(&args) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::from(EXIT_NO),
            Err(error) => Err(error),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("{}", error_text(&error));
            ExitCode::from(EXIT_ERROR)
        }
    }
}

/// Says on stderr what was done; paths and names in it are not the program's own.
fn note(text: &str) {
    eprintln!("{}", terminal(text));
}

/// An error with its causes and the hint, as it is printed: what messages quote from files cannot add lines.
pub fn error_text(error: &Error) -> String {
    let mut text = format!("error: {}\n", terminal(&error.to_string()));
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!("  caused by: {}\n", terminal(&error.to_string())));
        cause = error.source();
    }
    if let Some(hint) = hints::hint(error) {
        text.push_str(&format!("\nhint: {}\n", terminal(&hint)));
    }
    text
}

/// A value as it is printed with `--format json`.
fn json_text(value: &impl serde::Serialize) -> Result<String> {
    match serde_json::to_string_pretty(value) {
        Ok(json) => Ok(json_lines(&json) + "\n"),
        Err(e) => Err(Error::Io { doing: "cannot write to", path: "stdout".into(), source: e.into() }),
    }
}

/// Prints a value as JSON.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    print_data(&json_text(value)?)
}

/// Prints data. A reader that has seen enough (`| head`) is no error.
fn print_data(text: &str) -> Result<()> {
    print_bytes(text.as_bytes())
}

/// As [`print_data`], for what is no text.
fn print_bytes(bytes: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(source) if source.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::Io { doing: "cannot write to", path: "stdout".into(), source })
        }
        _ => Ok(()),
    }
}
