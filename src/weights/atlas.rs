//! `atlas`, the small model with transcoders that is part of the program: the default when no model is named.

use super::{Folder, ModelFiles};
use crate::error::Result;

macro_rules! files {
    ($folder:literal: $($name:literal),+ $(,)?) => {
        &[$(($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/atlas/", $folder, "/", $name)))),+]
    };
}

/// How `atlas` is named on the command line and in graphs.
pub const ATLAS: &str = "atlas";

static MODEL: &[(&str, &[u8])] = files!("model": "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json");

static TRANSCODERS: &[(&str, &[u8])] = files!(
    "transcoders": "config.yaml", "feature_labels.json", "layer_0.safetensors", "layer_1.safetensors",
    "layer_2.safetensors", "layer_3.safetensors",
);

static FEATURES: &[(&str, &[u8])] = files!(
    "features": "features.json", "tokens.safetensors", "layer_0.safetensors", "layer_1.safetensors",
    "layer_2.safetensors", "layer_3.safetensors",
);

/// The base model that is part of the program.
///
/// # Errors
/// None that a built program should give.
pub fn atlas_model() -> Result<ModelFiles> {
    ModelFiles::from_folder(&Folder::from_static(ATLAS, MODEL))
}

/// The transcoders that are part of the program.
pub fn atlas_transcoders() -> Folder {
    Folder::from_static(ATLAS, TRANSCODERS)
}

/// What their features are active on, collected from sentences of the kind that the model was trained on.
pub fn atlas_features() -> Folder {
    Folder::from_static(ATLAS, FEATURES)
}

/// Sentences of the kind that the model was trained on, one a line.
pub fn atlas_sentences() -> &'static [u8] {
    include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/atlas/sentences.txt"))
}
