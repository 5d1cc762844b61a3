//! Features that were collected from a text, for commands that show graphs: where they are, and examples from them.

use std::path::Path;

use clap::Args;

use crate::circuits::{NodeExample, Summary, label_rest};
use crate::error::{Error, Result};
use crate::features::{FEATURES_FOLDER, FeatureSet, MANIFEST_FILE};
use crate::graph::{Circuit, CircuitMeta};
use crate::labels::Labels;
use crate::weights::ATLAS;

/// Tokens before and after the one that an example is about.
const WINDOW: [usize; 2] = [16, 7];

#[derive(Debug, Args)]
pub(super) struct CollectedArgs {
    /// Below each listed feature, show the strongest example of what it is active on
    #[arg(long)]
    examples: bool,
    /// Features that `features collect` wrote [default: the folder `features` beside the transcoders]
    #[arg(long, value_name = "FOLDER")]
    features: Option<String>,
}

/// Whose features are wanted, as a graph says it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub model: &'a str,
    pub transcoders: &'a str,
    pub scan: &'a str,
    pub n_layers: usize,
}

impl<'a> From<&'a CircuitMeta> for Wanted<'a> {
    fn from(meta: &'a CircuitMeta) -> Self {
        Self { model: &meta.model, transcoders: &meta.transcoders, scan: &meta.scan, n_layers: meta.n_layers }
    }
}

impl Wanted<'_> {
    /// Whether features are of the same transcoders, as far as their names tell.
    fn fits(&self, set: &FeatureSet) -> bool {
        let subject = &set.manifest().subject;
        let is_same_set = self.scan.is_empty() || subject.scan.is_empty() || subject.scan == self.scan;
        is_same_set && subject.n_features.len() == self.n_layers
    }
}

impl CollectedArgs {
    /// The features that the option names, else those beside the transcoders; nothing where there are none.
    ///
    /// # Errors
    /// Those of [`FeatureSet::open`]; [`Error::FeaturesMismatch`] for named features of other transcoders;
    /// [`Error::NoFeatures`] where there are none to take examples from.
    pub(super) fn open(&self, wanted: Wanted) -> Result<Option<FeatureSet>> {
        if let Some(folder) = &self.features {
            let set = FeatureSet::open_named(folder)?;
            if !wanted.fits(&set) {
                return Err(Error::FeaturesMismatch {
                    folder: folder.clone(),
                    what: "transcoder set",
                    features: set.manifest().subject.named(),
                    here: format!("{} with {} layers", wanted.scan, wanted.n_layers),
                });
            }
            return Ok(Some(set));
        }
        let beside = Path::new(wanted.transcoders).join(FEATURES_FOLDER);
        let set = match wanted.model == ATLAS {
            true => Some(FeatureSet::open_named(ATLAS)?),
            false if !wanted.transcoders.is_empty() && beside.join(MANIFEST_FILE).is_file() => {
                Some(FeatureSet::open(&beside)?)
            }
            false => None,
        };
        let set = set.filter(|set| wanted.fits(set));
        match set {
            None if self.examples => Err(Error::NoFeatures { transcoders: wanted.transcoders.to_owned() }),
            set => Ok(set),
        }
    }

    /// Gives the listed features their examples, where they are asked for.
    ///
    /// # Errors
    /// Those of [`FeatureSet::dashboard`].
    pub(super) fn add_examples(&self, summary: &mut Summary, set: Option<&FeatureSet>) -> Result<()> {
        let Some(set) = set.filter(|_| self.examples) else { return Ok(()) };
        summary.add_examples(|layer, feature| {
            let dashboard = set.dashboard(layer as usize, feature as usize)?;
            let strongest = dashboard.top().next().map(|example| {
                let window = set.window(example, WINDOW[0], WINDOW[1]);
                // The token that begins a sequence stands for no text.
                let n_skipped = usize::from(window.starts_sequence && window.at > 0);
                let tokens = window.texts.into_iter().skip(n_skipped).collect();
                NodeExample { value: example.value, tokens, at: window.at - n_skipped }
            });
            Ok(strongest)
        })
    }

    /// Whether an option names a folder.
    pub(super) fn is_given(&self) -> bool {
        self.features.is_some()
    }

    /// Whether examples are asked for.
    pub(super) fn wants_examples(&self) -> bool {
        self.examples
    }
}

/// Names features that a graph has no label for as files beside the transcoders that it names do: they may have been made
/// after the graph. What cannot be read there does not keep anybody from looking at the graph.
pub(super) fn label_from_beside(circuit: &mut Circuit) {
    let folder = Path::new(&circuit.meta.transcoders);
    if circuit.meta.transcoders.is_empty() || circuit.meta.model == ATLAS || !folder.join("config.yaml").is_file() {
        return;
    }
    if let Ok(labels) = Labels::of_transcoders(folder) {
        label_rest(circuit, &labels);
    }
}
