//! `circuitscope setups`: which set-ups there are, where they come from, and whether what they name is there.

use std::fmt::Write;
use std::path::Path;

use clap::Args;
use serde::Serialize;

use crate::Result;
use crate::text::terminal;
use crate::weights::{ATLAS, Folder};

use super::config::Config;
use super::setup::VARIABLES;
use super::{Format, print_json, print_text};

#[derive(Debug, Args)]
pub struct SetupsArgs {
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// A set-up and the state of what it names.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    is_default: bool,
    /// The configuration that names it; nothing for the embedded model.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    model: Place,
    #[serde(skip_serializing_if = "Option::is_none")]
    transcoders: Option<Place>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<Place>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
}

#[derive(Debug, Serialize)]
struct Place {
    name: String,
    state: &'static str,
}

/// What `--format json` prints.
#[derive(Debug, Serialize)]
struct Report {
    setups: Vec<Listed>,
    /// Where set-ups are read from, whether there is such a file or not.
    files: Vec<String>,
    /// Variables that are set, with their values.
    environment: std::collections::BTreeMap<&'static str, String>,
}

/// Lists the set-ups.
///
/// # Errors
/// A configuration that cannot be read.
pub(super) fn run(args: &SetupsArgs) -> Result<()> {
    let config = Config::read()?;
    let built_in = Listed {
        name: ATLAS.to_owned(),
        is_default: config.default.as_deref().is_none_or(|name| name == ATLAS),
        file: None,
        model: Place { name: ATLAS.to_owned(), state: "part of the program" },
        transcoders: None,
        labels: None,
        device: None,
    };
    let listed = config.setups.values().map(|setup| Listed {
        is_default: config.default.as_ref() == Some(&setup.name),
        name: setup.name.clone(),
        file: Some(setup.file.display().to_string()),
        model: place(&setup.model),
        transcoders: setup.transcoders.as_deref().map(place),
        labels: setup.labels.as_ref().map(|labels| place(&labels.display().to_string())),
        device: setup.device.clone(),
    });
    let file = |(path, is_there): &(std::path::PathBuf, bool)| {
        format!("{}{}", path.display(), if *is_there { "" } else { " (not there)" })
    };
    let report = Report {
        setups: listed.chain([built_in]).collect(),
        files: config.files.iter().map(file).collect(),
        environment: VARIABLES.iter().filter_map(|&name| Some((name, std::env::var(name).ok()?))).collect(),
    };
    match args.format {
        Format::Text => print_text(&setups_text(&report)),
        Format::Json => print_json(&report),
    }
}

/// Whether what a set-up names can be opened, without a network and without opening it.
fn place(name: &str) -> Place {
    let path = Path::new(name);
    let state = if name == ATLAS {
        "part of the program"
    } else if path.is_file() || path.is_dir() {
        "there"
    } else if name.ends_with(".gguf") {
        // A file of its own: repositories are folders.
        "MISSING"
    } else {
        match Folder::open(name).and_then(|folder| folder.list()) {
            Ok(files) if files.is_empty() => "on the Hub, not downloaded yet",
            Ok(_) => "on the Hub, in the cache",
            Err(_) => "MISSING",
        }
    };
    Place { name: name.to_owned(), state }
}

fn setups_text(report: &Report) -> String {
    let mut text = String::new();
    for setup in &report.setups {
        let from = setup.file.as_deref().map_or("part of the program".to_owned(), |file| format!("from {file}"));
        let default = if setup.is_default { ", the default" } else { "" };
        let _ = writeln!(text, "{:<12}{}{default}", terminal(&setup.name), terminal(&from));
        let places = [
            ("model", Some(&setup.model).filter(|_| setup.file.is_some())),
            ("transcoders", setup.transcoders.as_ref()),
            ("labels", setup.labels.as_ref()),
        ];
        for (name, place) in places.into_iter().filter_map(|(name, place)| Some((name, place?))) {
            let _ = writeln!(text, "  {name:<13}{}  ({})", terminal(&place.name), place.state);
        }
        if let Some(device) = &setup.device {
            let _ = writeln!(text, "  {:<13}{}", "device", terminal(device));
        }
    }
    let _ = writeln!(text, "\nread from {}", terminal(&report.files.join(" and ")));
    for (name, value) in &report.environment {
        let _ = writeln!(text, "{name} is {}", terminal(value));
    }
    text
}
