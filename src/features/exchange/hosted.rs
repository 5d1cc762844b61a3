//! What Neuronpedia's site knows of one feature of a published set.

use std::time::Duration;

use serde::Serialize;

use super::super::report::FeatureId;
use super::super::web::get;
use super::neuronpedia::parse;
use crate::error::{Error, Result};

/// The site.
pub const NEURONPEDIA: &str = "https://www.neuronpedia.org";

/// Some hundred examples have a few hundred thousand bytes.
const MAX_BYTES: u64 = 8 << 20;

/// Examples that are taken over, as many as a page shows.
const MAX_EXAMPLES: usize = 40;

/// One feature, in the site's words.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HostedFeature {
    /// What it is called there.
    pub label: Option<String>,
    /// Tokens whose logits it raises most, strongest first.
    pub top: Vec<String>,
    /// Tokens whose logits it lowers most.
    pub bottom: Vec<String>,
    /// The largest activation.
    pub max: Option<f32>,
    /// The share of positions where it is active.
    pub frequency: Option<f64>,
    /// In the site's order.
    pub examples: Vec<HostedExample>,
}

/// Tokens with activations.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HostedExample {
    /// The activation at its own token.
    pub value: f32,
    /// Its own token's index.
    pub at: usize,
    /// The tokens.
    pub tokens: Vec<String>,
    /// One activation a token.
    pub activations: Vec<f32>,
}

/// Asks a site with Neuronpedia's interface, `GET {site}/api/feature/{source}/{feature}`; `source` is the model and its
/// source there, `gemma-2-2b/3-gemmascope-transcoder-16k`.
///
/// # Errors
/// [`Error::Site`]: no answer in time, none that can be read, or one about another feature.
pub fn hosted_feature(site: &str, source: &str, id: FeatureId, timeout: Duration) -> Result<HostedFeature> {
    let address = format!("{}/api/feature/{source}/{}", site.trim_end_matches('/'), id.feature);
    let failed = |problem: String| Error::Site { address: address.clone(), problem };
    let text = get(&address, timeout, MAX_BYTES).map_err(failed)?;
    let line = parse(&text).map_err(failed)?;
    if (line.layer, line.index) != (id.layer, id.feature) {
        return Err(failed(format!("its answer is about feature {}_{}, not {id}", line.layer, line.index)));
    }
    let found = line.foreign;
    let example = |example: super::foreign::ForeignExample| HostedExample {
        value: example.values[example.at],
        at: example.at,
        tokens: example.tokens,
        activations: example.values,
    };
    Ok(HostedFeature {
        label: found.label.map(|(_, label)| label),
        top: found.top,
        bottom: found.bottom,
        max: found.max,
        frequency: found.frequency,
        examples: found.examples.into_iter().take(MAX_EXAMPLES).map(example).collect(),
    })
}
