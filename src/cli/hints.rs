//! What the command line adds to the library's errors: which option holds the setting, and which option would help.

use crate::Error;

/// The hint under a message: an option of the command line where one helps, else what the library knows.
pub(super) fn hint(error: &Error) -> Option<String> {
    match error.root() {
        Error::Setting { name, .. } => Some(format!("the option is `{}`", option_of(name))),
        Error::Threshold { name, .. } => {
            Some(format!("the option is `{}`; 0.8 for nodes and 0.98 for edges are usual", option_of(name)))
        }
        Error::NeedsOutput { .. } => Some("name another file with `--output`".into()),
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
            Some("use --set, --scale, --ablate, --top-features, --like, --like-prompt, --plan or --sweep".into())
        }
        Error::UnknownSupernode { nearest, known, .. } => Some(match (nearest, known.is_empty()) {
            (Some(nearest), _) => format!("the nearest is `{nearest}`"),
            (None, false) => format!("its supernodes are {}", known.join(", ")),
            (None, true) => {
                "it has no supernodes; `--group NAME=ID,..` makes one, and labels of its features are names too".into()
            }
        }),
        Error::PromptLengths { .. } => Some(
            "features are exchanged position by position; `--like FILE:NAME` gives a supernode's activations to a prompt \
             of any length"
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
        Error::Device { .. } => Some("`--device` takes auto, cpu, cuda or cuda:N".into()),
        Error::UnknownNode { near, .. } if !near.is_empty() => {
            Some(format!("there are {}; `inspect` lists the strongest nodes", near.join(", ")))
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
