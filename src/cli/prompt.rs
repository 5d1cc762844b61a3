//! The prompt, as arguments of the commands that run a model on one.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::input::read_text;
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
    /// The file that it is read from, if it is.
    pub(super) fn file(&self) -> Option<&PathBuf> {
        self.other.prompt_file.as_ref()
    }

    /// The prompt, as it was given.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn read(&self) -> Result<Prompt> {
        self.other.read(self.prompt.as_ref())?.ok_or(Error::EmptyPrompt)
    }
}

impl OptionalPromptArgs {
    /// As [`PromptArgs::file`].
    pub(super) fn file(&self) -> Option<&PathBuf> {
        self.other.prompt_file.as_ref()
    }

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
    let text = read_text(path)?;
    // Editors end files with a newline that is not meant, and so does `echo`.
    Ok(text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text)).to_owned())
}
