//! `circuitscope completions` and `circuitscope man`: what shells and `man` read.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::Result;
use crate::export::replace_file;

use super::{Cli, note, print_bytes};

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell to complete commands and options in
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write the pages of all commands into this folder: circuitscope.1, circuitscope-trace.1, .. [default: print the
    /// first page]
    #[arg(long, value_name = "FOLDER")]
    out_dir: Option<PathBuf>,
}

/// Prints a shell's completion script.
///
/// # Errors
/// Stdout cannot be written.
pub(super) fn run_completions(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "circuitscope", &mut script);
    print_bytes(&script)
}

/// Writes the manual, a page a command.
///
/// # Errors
/// A page cannot be written.
pub(super) fn run_man(args: &ManArgs) -> Result<()> {
    let mut command = Cli::command();
    command.build();
    let page = |command: &clap::Command, name: &str| -> std::io::Result<Vec<u8>> {
        let mut page = Vec::new();
        clap_mangen::Man::new(command.clone()).title(name).render(&mut page)?;
        Ok(page)
    };
    let io = |source| crate::Error::Io { doing: "cannot write", path: "the manual".into(), source };
    let Some(folder) = &args.out_dir else { return print_bytes(&page(&command, "circuitscope").map_err(io)?) };
    // Commands of commands too, each after the one that it belongs to.
    let mut pages = vec![("circuitscope".to_owned(), &command)];
    let mut next = 0;
    while let Some((name, command)) = pages.get(next).cloned() {
        let below = command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help");
        pages.extend(below.map(|sub| (format!("{name}-{}", sub.get_name()), sub)));
        next += 1;
    }
    for (name, command) in pages {
        let text = page(command, &name).map_err(io)?;
        let path = folder.join(format!("{name}.1"));
        replace_file(&path, |writer| writer.write_all(&text))?;
        note(&format!("wrote {}", path.display()));
    }
    Ok(())
}
