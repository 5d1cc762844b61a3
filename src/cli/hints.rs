//! What the command line adds to the library's errors: which option holds the setting, and which option would help.

use std::io::ErrorKind;
use std::path::Path;

use super::file_kind::{kind_of_file, nearest_path};
use crate::Error;
use crate::error::kept_from;

/// The hint under a message: an option of the command line where one helps, else what the library knows.
pub(super) fn hint(error: &Error) -> Option<String> {
    match error.root() {
        Error::Damaged { file, format, reason } => damaged_hint(Path::new(file), format, reason).or_else(|| error.hint()),
        Error::Io { path, source, .. } if source.kind() == ErrorKind::NotFound => {
            Some(format!("nearest is `{}`", nearest_path(path)?.display()))
        }
        Error::Io { path, .. } if path.is_dir() => Some(format!("`{}` is a folder; name a file in it", path.display())),
        Error::Setting { name, value, range: "0..=1" } if (1.0..=100.0).contains(value) => {
            Some(format!("the option is `{}`; {value} % is {}", option_of(name), value / 100.0))
        }
        Error::Setting { name, .. } => Some(format!("the option is `{}`", option_of(name))),
        Error::PrunedNode { cumulative, threshold, .. } if cumulative > threshold => {
            Some(format!("`--node-threshold {}` keeps it", kept_from(*cumulative)))
        }
        Error::PrunedNode { .. } => Some("`--node-threshold 1 --edge-threshold 1` keeps it".into()),
        Error::MaybePruned { .. } => {
            Some("the raw graph (.safetensors) that it was made from may hold it: inspect that one".into())
        }
        Error::NotInPart { .. } => Some("leave the options away that choose a part, or name the node in `--subgraph`".into()),
        Error::Threshold { name, .. } => {
            Some(format!("the option is `{}`; 0.8 for nodes and 0.98 for edges are usual", option_of(name)))
        }
        Error::NeedsOutput { .. } => Some("name another file with `--output`".into()),
        Error::WorkedOn { .. } => Some("`--output` with another name keeps both; `--force` replaces it".into()),
        Error::OtherGraph { .. } => Some("`--slug` with another name keeps both; `--force` replaces it".into()),
        Error::NeedsTranscoders { .. } => {
            Some("name a folder or Hub id with `--transcoders`: transcoders that were trained on this model".into())
        }
        Error::UnknownSetup { nearest, files, .. } => Some(match nearest {
            Some(name) => format!("`--setup {name}` is the nearest; `circuitscope setups` lists all"),
            None => format!("set-ups are read from {}; `circuitscope setups` lists them", files.join(" and ")),
        }),
        Error::SetupFile { .. } => Some(
            "it looks like this: [setup.NAME], then model = \"..\" and transcoders = \"..\"; also labels, device, and \
             default = \"NAME\" at the top"
                .into(),
        ),
        Error::NothingToChange => {
            Some("use --set, --scale, --ablate, --ablate-head, --patch-head, --top-features, --like, --like-prompt, --plan or --sweep".into())
        }
        Error::AmbiguousSupernode { .. } => {
            Some("name the features themselves, or make other supernodes with `--group NAME=ID,..`".into())
        }
        Error::UnknownSupernode { nearest, known, .. } => Some(match (nearest, known.is_empty()) {
            (Some(nearest), _) => format!("the nearest is `{nearest}`"),
            (None, false) => format!("its supernodes are {}", known.join(", ")),
            (None, true) => {
                "it has no supernodes; `--group NAME=ID,..` makes one, and labels of its features are names too".into()
            }
        }),
        Error::PromptLengths { .. } => Some(
            "exchanges go position by position, so both prompts need as many tokens; `intervene --like FILE:NAME` \
             gives a supernode's activations to a prompt of any length"
                .into(),
        ),
        Error::SamePrompt { .. } => Some("`--like-at P` exchanges the features at a position all the same".into()),
        Error::Spec { expected, .. } if expected.starts_with("LAYER_FEATURE_POSITION") => {
            Some("with `--graph FILE`, names of its supernodes and labels of its features stand for features too".into())
        }
        Error::GraphMismatch { .. } => {
            Some("give the --model and --transcoders that the graph was traced with; its metadata names them".into())
        }
        Error::InactiveFeature { .. } => Some("`--set` switches on a feature that is off".into()),
        Error::NothingHeldOut { .. } => Some(
            "`--split paragraphs` or `--split lines` makes more documents of plain text; `--all-text` uses all of it".into(),
        ),
        Error::Device { .. } => Some("`--device` takes auto, cpu, cuda or cuda:N".into()),
        Error::UnknownNode { near, .. } if !near.is_empty() => {
            Some(format!("nearest are {}; `inspect` lists the strongest nodes", near.join(", ")))
        }
        Error::TooManyLinks { .. } => Some(
            "`--node-threshold 0.5 --edge-threshold 0.9` prunes it while it is read; \
             `circuitscope prune GRAPH -o SMALLER.json` does so once and for all"
                .into(),
        ),
        _ => error.hint(),
    }
}

/// The option that sets a field of the library's options; options are named as the fields are.
fn option_of(field: &str) -> String {
    format!("--{}", field.replace('_', "-"))
}

/// What a file is that is not of `format`, and what was expected; or that it ends too early.
fn damaged_hint(file: &Path, format: &str, reason: &str) -> Option<String> {
    let (right, expected) = match format {
        "graph JSON" => ("JSON", "a graph: a raw one (.safetensors) or JSON, as `trace` writes them"),
        "raw graph" => ("a raw graph", "a raw graph, the .safetensors file that `trace` writes"),
        "label" => ("JSON", "labels as in {\"3_955\": \"asks for capital\"}"),
        "supernode" => ("JSON", "[[\"Texas\", \"0_39_7\"], ..], {\"Texas\": [\"0_39_7\"], ..}, or a graph"),
        "safetensors" => ("a safetensors file", "a safetensors file"),
        "GGUF" => ("a GGUF model", "a GGUF model"),
        _ => return None,
    };
    let kind = kind_of_file(file)?;
    let shown = file.display();
    if (format, kind) == ("raw graph", "JSON") {
        let beside = file.with_extension("safetensors");
        let raw = match beside.is_file() {
            true => format!("`{}` beside it", beside.display()),
            false => "the .safetensors file that `trace` wrote with it".to_owned(),
        };
        return Some(format!("`{shown}` is a pruned graph or other JSON; the raw graph is {raw}"));
    }
    if kind != right {
        return Some(format!("`{shown}` is {kind}; expected {expected}"));
    }
    if reason.contains("EOF") || reason.contains("header length") || reason.contains("not fully covered") {
        return Some(format!("`{shown}` ends too early: it was cut, or is still being written"));
    }
    // What is fetched may be half of it.
    (!matches!(format, "safetensors" | "GGUF")).then(|| format!("expected {expected}"))
}
