//! `circuitscope.toml`: set-ups by name, in the folder and in the user's own configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::input::read_text;
use crate::text::nearest;
use crate::weights::ATLAS;
use crate::{Error, Result};

/// The file's name, wherever it is.
pub(super) const CONFIG_FILE: &str = "circuitscope.toml";

/// A model and what goes with it, under a name. Paths are those of this process, no longer relative to the file.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedSetup {
    pub name: String,
    /// The file that names it.
    pub file: PathBuf,
    /// A folder, a file or a Hub id.
    pub model: String,
    /// The same of its transcoders.
    pub transcoders: Option<String>,
    /// A file of labels.
    pub labels: Option<PathBuf>,
    /// `auto`, `cpu` or `cuda`.
    pub device: Option<String>,
}

/// Every set-up that this folder and this user have.
#[derive(Debug, Default)]
pub struct Config {
    /// By name; one of the folder hides one of the user.
    pub setups: BTreeMap<String, NamedSetup>,
    /// What is used where nothing else says what to use.
    pub default: Option<String>,
    /// The files that were looked for, and whether they are there.
    pub files: Vec<(PathBuf, bool)>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigToml {
    default: Option<String>,
    #[serde(default)]
    setup: BTreeMap<String, SetupToml>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SetupToml {
    model: String,
    transcoders: Option<String>,
    labels: Option<String>,
    device: Option<String>,
}

impl Config {
    /// Reads the file of this folder and the user's.
    ///
    /// # Errors
    /// A file that cannot be read or is no such configuration; a default that names no set-up.
    pub fn read() -> Result<Config> {
        Config::from_files([Some(PathBuf::from(CONFIG_FILE)), user_file()].into_iter().flatten())
    }

    /// Reads files, the first of which win; they need not be there.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn from_files(files: impl IntoIterator<Item = PathBuf>) -> Result<Config> {
        let mut config = Config::default();
        for path in files {
            let found = read_file(&path)?;
            config.files.push((path.clone(), found.is_some()));
            let Some((default, setups)) = found else { continue };
            for setup in setups {
                config.setups.entry(setup.name.clone()).or_insert(setup);
            }
            if let (None, Some(default)) = (&config.default, default) {
                // A file may choose among its own set-ups only: what it says must not depend on another file.
                if config.setups.get(&default).is_none_or(|setup| setup.file != path) && default != ATLAS {
                    let problem = format!("`default` is {default:?}, but there is no [setup.{default}]");
                    return Err(Error::SetupFile { file: path.display().to_string(), problem });
                }
                config.default = Some(default);
            }
        }
        Ok(config)
    }

    /// The set-up of this name.
    ///
    /// # Errors
    /// [`Error::UnknownSetup`], with the nearest name.
    pub fn get(&self, name: &str) -> Result<&NamedSetup> {
        self.setups.get(name).ok_or_else(|| Error::UnknownSetup {
            name: name.to_owned(),
            nearest: nearest(name, self.setups.keys().map(String::as_str)).map(str::to_owned),
            known: self.setups.keys().cloned().collect(),
            files: self.files.iter().map(|(path, _)| path.display().to_string()).collect(),
        })
    }
}

/// What one file says, `None` where there is no such file.
fn read_file(path: &Path) -> Result<Option<(Option<String>, Vec<NamedSetup>)>> {
    let text = match read_text(path) {
        Ok(text) => text,
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let parsed: ConfigToml = toml::from_str(&text).map_err(|e| Error::SetupFile {
        file: path.display().to_string(),
        // The message spans lines: where, and what. One line says both.
        problem: format!("{}{}", line_of(&text, &e), e.message()),
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let setups = parsed.setup.into_iter().map(|(name, setup)| NamedSetup {
        file: path.to_owned(),
        model: place(folder, &setup.model),
        transcoders: setup.transcoders.map(|transcoders| place(folder, &transcoders)),
        labels: setup.labels.map(|labels| place(folder, &labels).into()),
        device: setup.device,
        name,
    });
    Ok(Some((parsed.default, setups.collect())))
}

fn line_of(text: &str, error: &toml::de::Error) -> String {
    error.span().map_or(String::new(), |span| {
        let before = text.get(..span.start).unwrap_or_default();
        format!("line {}: ", before.matches('\n').count() + 1)
    })
}

/// A model, folder or file as a configuration names it: `~` is the user's folder, and a path is relative to the file that
/// names it. `org/name` may be a path or a Hub id: it is a path where there is such a file.
fn place(folder: &Path, name: &str) -> String {
    if let (Some(rest), Some(home)) = (name.strip_prefix("~/"), home()) {
        return home.join(rest).display().to_string();
    }
    let beside = folder.join(name);
    let is_path = ["./", "../"].iter().any(|start| name.starts_with(start)) || beside.exists();
    if is_path { beside.display().to_string() } else { name.to_owned() }
}

/// The user's own file: in `$XDG_CONFIG_HOME`, else `~/.config`, on Windows `%APPDATA%`; there in the folder
/// `circuitscope`.
fn user_file() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = folder("XDG_CONFIG_HOME")
        .or_else(|| if cfg!(windows) { folder("APPDATA") } else { home().map(|home| home.join(".config")) })?;
    Some(base.join("circuitscope").join(CONFIG_FILE))
}

fn home() -> Option<PathBuf> {
    std::env::var_os(if cfg!(windows) { "USERPROFILE" } else { "HOME" }).map(PathBuf::from).filter(|p| p.is_absolute())
}
