//! The prompt, as arguments of the commands that run a model on one.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::tracer::Prompt;
use crate::{Error, Result};

/// A prompt: text, a file with text, or token ids.
#[derive(Debug, Args)]
pub(super) struct PromptArgs {
    /// The prompt, or `-` to read it from stdin; a leading BOS token is added
    #[arg(required_unless_present_any = ["tokens", "prompt_file"])]
    prompt: Option<String>,
    #[command(flatten)]
    other: OtherPromptArgs,
}

/// As [`PromptArgs`], for a command that may also take the prompt of a graph.
#[derive(Debug, Args)]
pub(super) struct OptionalPromptArgs {
    /// The prompt, or `-` to read it from stdin; a leading BOS token is added [default: that of --graph]
    #[arg(required_unless_present_any = ["tokens", "prompt_file", "graph"])]
    prompt: Option<String>,
    #[command(flatten)]
    other: OtherPromptArgs,
}

#[derive(Debug, Args)]
struct OtherPromptArgs {
    /// The prompt as token ids, used as they are
    #[arg(long, value_name = "ID,ID,..", value_delimiter = ',', conflicts_with_all = ["prompt", "prompt_file"])]
    tokens: Option<Vec<u32>>,
    /// Read the prompt from a file; `-` is stdin
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
}

impl PromptArgs {
    /// The prompt, as it was given.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn read(&self) -> Result<Prompt> {
        self.other.read(self.prompt.as_ref())?.ok_or(Error::EmptyPrompt)
    }
}

impl OptionalPromptArgs {
    /// The prompt, where one was given.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn read(&self) -> Result<Option<Prompt>> {
        self.other.read(self.prompt.as_ref())
    }
}

impl OtherPromptArgs {
    fn read(&self, prompt: Option<&String>) -> Result<Option<Prompt>> {
        Ok(match (&self.tokens, prompt, &self.prompt_file) {
            (Some(tokens), _, _) => Some(Prompt::from(tokens.clone())),
            (None, Some(prompt), _) if prompt == "-" => Some(Prompt::from(read_prompt(Path::new("-"))?)),
            (None, Some(prompt), _) => Some(Prompt::from(prompt)),
            (None, None, Some(path)) => Some(Prompt::from(read_prompt(path)?)),
            (None, None, None) => None,
        })
    }
}

fn read_prompt(path: &Path) -> Result<String> {
    let is_stdin = path.as_os_str() == "-";
    let read = || match is_stdin {
        true => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        }
        false => std::fs::read_to_string(path),
    };
    let shown = if is_stdin { Path::new("stdin") } else { path };
    let text = read().map_err(|source| Error::Io { doing: "cannot read", path: shown.to_owned(), source })?;
    // Editors end files with a newline that is not meant, and so does `echo`.
    Ok(text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text)).to_owned())
}
