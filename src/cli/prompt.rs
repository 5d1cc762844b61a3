//! The prompt, as arguments of the commands that run a model on one.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::input::read_text;
use crate::tracer::Prompt;
use crate::{Error, Result};

/// A prompt: text, a file with text, or token ids.
#[derive(Debug, Args)]
pub(super) struct PromptArgs {
    /// The prompt; a leading BOS token is added
    #[arg(required_unless_present_any = ["tokens", "prompt_file"])]
    prompt: Option<String>,
    /// The prompt as token ids, used as they are
    #[arg(long, value_name = "ID,ID,..", value_delimiter = ',', conflicts_with_all = ["prompt", "prompt_file"])]
    tokens: Option<Vec<u32>>,
    /// Read the prompt from a file
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
}

impl PromptArgs {
    /// The file that it is read from, if it is.
    pub(super) fn file(&self) -> Option<&PathBuf> {
        self.prompt_file.as_ref()
    }

    /// The prompt, as it was given.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn read(&self) -> Result<Prompt> {
        match (&self.tokens, &self.prompt, &self.prompt_file) {
            (Some(tokens), _, _) => Ok(Prompt::from(tokens.clone())),
            (None, Some(prompt), _) => Ok(Prompt::from(prompt)),
            (None, None, Some(path)) => Ok(Prompt::from(read_prompt(path)?)),
            (None, None, None) => Err(Error::EmptyPrompt),
        }
    }
}

fn read_prompt(path: &Path) -> Result<String> {
    let text = read_text(path)?;
    // Editors end files with a newline that is not meant.
    Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
}
