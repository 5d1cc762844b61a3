//! `cli`: arguments, printing, exit codes. Data goes to stdout, everything else to stderr.

mod batch;
mod collected;
mod compare;
mod config;
mod counted;
mod dashboard_text;
mod effects_text;
mod evaluate;
mod features;
mod file_kind;
mod graph_args;
mod heads;
mod hints;
mod inspect;
mod intervene;
mod manual;
mod memory;
#[cfg(feature = "serve")]
mod open_page;
mod output_file;
mod prompt;
mod prune;
mod row_args;
#[cfg(feature = "serve")]
mod serve;
mod setup;
mod setups;
mod shortened;
mod signals;
mod summary;
mod terminal;
mod trace;
mod train;
mod verify;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::text::json_lines;
pub use crate::text::terminal as safe_line;
use crate::{Error, Result, text};

use self::terminal::Color;

pub use batch::BatchArgs;
pub use compare::{CommonArgs, DiffArgs};
pub use config::{Config, NamedSetup};
pub use evaluate::EvaluateArgs;
pub use features::FeaturesArgs;
pub use heads::HeadsArgs;
pub use inspect::InspectArgs;
pub use intervene::{InterveneArgs, comparison_text};
pub use manual::{CompletionsArgs, ManArgs};
pub use output_file::check_json_output;
pub use prune::PruneArgs;
#[cfg(feature = "serve")]
pub use serve::ServeArgs;
pub use setups::SetupsArgs;
pub use summary::summary_text;
pub use trace::TraceArgs;
pub use train::TrainArgs;
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
    /// When to use colours
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t, help_heading = "Output")]
    color: Color,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Trace a prompt: which tokens and features made the model predict what it predicts
    Trace(Box<TraceArgs>),
    /// Trace many prompts, a JSON object a line, with a model that is opened once; a second run does what is missing
    Batch(Box<BatchArgs>),
    /// Prune a raw graph to the nodes and edges that carry most of the influence
    Prune(PruneArgs),
    /// Show what is in a graph: prediction, scores, strongest nodes and paths, one node's inputs and outputs; draw it
    Inspect(Box<InspectArgs>),
    /// Compare two graphs: features of both, of one only, and how their influence changed
    Diff(DiffArgs),
    /// Features and edges that several graphs have in common
    Common(CommonArgs),
    /// Change features while the model runs, and compare what it predicts
    Intervene(Box<InterveneArgs>),
    /// Attention explained: through which heads edges go, why a head looked there, and what heads do on random tokens
    Heads(Box<HeadsArgs>),
    /// Check a raw graph against its model: do rows add up, are edges measured effects, do predictions come true
    Verify(VerifyArgs),
    /// Show graphs in the browser, explore, trace and steer: a page, and the HTTP interface behind it
    #[cfg(feature = "serve")]
    Serve(Box<ServeArgs>),
    /// What features are active on: collect it from a text, show, search and merge it
    Features(Box<FeaturesArgs>),
    /// How good a set of transcoders is: reconstruction, predictions with features in place of MLPs, scores of graphs
    Evaluate(Box<EvaluateArgs>),
    /// Make transcoders for a model from plain text
    Train(Box<TrainArgs>),
    /// List the set-ups of circuitscope.toml: models and transcoders by name, for `--setup`
    Setups(SetupsArgs),
    /// Print a script that completes commands and options in a shell
    Completions(CompletionsArgs),
    /// Print the manual page, or write those of all commands
    Man(ManArgs),
}

/// How a summary is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// Runs the command line with the arguments of this process.
pub fn main() -> ExitCode {
    ExitCode::from(run(std::env::args_os().collect()))
}

/// Runs the command line with these arguments, the program's name first, and returns the exit code.
pub fn run(arguments: Vec<OsString>) -> u8 {
    signals::end_cleanly();
    shortened::explain();
    let color = Color::of_arguments(arguments.iter().cloned());
    terminal::start(color);
    let parsed = Cli::command().color(color.for_clap()).try_get_matches_from(&arguments);
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(answer) if answer.use_stderr() => {
            mistake(answer, &arguments);
            return EXIT_ERROR;
        }
        Err(answer) => return usage(&answer),
    };
    // Commands that have a choice of threads start them themselves.
    if let Command::Prune(_) | Command::Inspect(_) | Command::Diff(_) | Command::Common(_) = cli.command
        && let Err(error) = start_threads(None)
    {
        say(&error_text(&error));
        return EXIT_ERROR;
    }
    let result = match cli.command {
        Command::Trace(args) => trace::run(&args),
        Command::Batch(args) => match batch::run(&args) {
            Ok(true) => Ok(()),
            Ok(false) => return EXIT_NO,
            Err(Error::Cancelled) => return signals::EXIT_INTERRUPTED,
            Err(error) => Err(error),
        },
        Command::Prune(args) => prune::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Diff(args) => compare::run_diff(&args),
        Command::Common(args) => compare::run_common(&args),
        Command::Intervene(args) => intervene::run(&args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(*args),
        Command::Features(args) => features::run(&args),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Heads(args) => heads::run(&args),
        Command::Verify(args) => match verify::run(&args) {
            Ok(true) => Ok(()),
            Ok(false) => return EXIT_NO,
            Err(error) => Err(error),
        },
        Command::Train(args) => match train::run(&args) {
            Err(Error::Cancelled) => return signals::EXIT_INTERRUPTED,
            ended => ended,
        },
        Command::Setups(args) => setups::run(&args),
        Command::Completions(args) => manual::run_completions(&args),
        Command::Man(args) => manual::run_man(&args),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            say(&error_text(&error));
            EXIT_ERROR
        }
    }
}

/// Starts the threads that share the work, as many as there are cores where it is not said: started later, when there is no
/// memory for them, they would be a panic.
///
/// # Errors
/// [`Error::Threads`].
fn start_threads(n_threads: Option<usize>) -> Result<()> {
    let built = rayon::ThreadPoolBuilder::new().num_threads(n_threads.unwrap_or(0)).build_global();
    built.or_else(|error| match std::error::Error::source(&error) {
        Some(_) => Err(Error::Threads { reason: error.to_string() }),
        // Threads are started once: a second command in one process keeps the first ones.
        None => Ok(()),
    })
}

/// Says on stderr what was done; paths and names in it are not the program's own.
fn note(text: &str) {
    say(&(crate::text::terminal(text) + "\n"));
}

/// Writes to stderr. Whether anybody reads it changes nothing about what was done, so that a closed or full stderr is no
/// error, and no panic as it would be with `eprintln!`.
fn say(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Help and versions, which are data.
fn usage(answer: &clap::Error) -> u8 {
    match to_stdout(answer.print().and_then(|()| std::io::stdout().flush())) {
        Ok(()) => 0,
        Err(error) => {
            say(&error_text(&error));
            EXIT_ERROR
        }
    }
}

/// Says what is wrong with the arguments. clap repeats them as they are, and takes commands to the terminal in them for
/// its own colours: where there are some, the same is said of the arguments with these escaped, in one colour.
fn mistake(answer: clap::Error, arguments: &[OsString]) {
    let args: Vec<String> = arguments.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let safe: Vec<String> = args.iter().map(|arg| text::terminal(arg)).collect();
    if safe == args {
        let _ = answer.print();
        return;
    }
    let again = Cli::command().try_get_matches_from(&safe).and_then(|matches| Cli::from_arg_matches(&matches));
    let answer = again.err().filter(clap::Error::use_stderr).unwrap_or(answer);
    for line in answer.render().to_string().lines() {
        say(&(text::terminal(line) + "\n"));
    }
}

/// An error with its causes and the hint, as it is printed: what messages quote from files cannot add lines.
pub fn error_text(error: &Error) -> String {
    let safe = |text: &str| text::terminal(text);
    let mut text = format!("{} {}\n", terminal::label("error:"), safe(&error.to_string()));
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!("  caused by: {}\n", safe(&error.to_string())));
        cause = error.source();
    }
    if let Some(hint) = hints::hint(error) {
        text.push_str(&format!("\n{} {}\n", terminal::label("hint:"), safe(&hint)));
    }
    text
}

/// A value as it is printed with `--format json`.
///
/// # Errors
/// A value that has no form in JSON.
pub fn json_text(value: &impl serde::Serialize) -> Result<String> {
    match serde_json::to_string_pretty(value) {
        Ok(json) => Ok(json_lines(&json) + "\n"),
        Err(e) => Err(Error::Io { doing: "cannot write to", path: "stdout".into(), source: e.into() }),
    }
}

/// Prints a value as JSON.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    print_data(&json_text(value)?)
}

/// Prints text for people: as wide and as coloured as the terminal is.
fn print_text(text: &str) -> Result<()> {
    print_data(&terminal::shown(text))
}

/// Prints data. A reader that has seen enough (`| head`) is no error.
fn print_data(text: &str) -> Result<()> {
    print_bytes(text.as_bytes())
}

/// As [`print_data`], for what is no text.
fn print_bytes(bytes: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    to_stdout(stdout.write_all(bytes).and_then(|()| stdout.flush()))
}

/// What became of a write to stdout.
fn to_stdout(written: std::io::Result<()>) -> Result<()> {
    match written {
        Err(source) if source.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::Io { doing: "cannot write to", path: "stdout".into(), source })
        }
        _ => Ok(()),
    }
}
