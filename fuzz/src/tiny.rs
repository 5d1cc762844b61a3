//! A model with transcoders as small as they can be: what is done with them for each input takes microseconds.

use std::path::PathBuf;

use circuitscope::replacement::Replacement;
use circuitscope::weights::{Folder, ModelFiles};
use circuitscope::{Setup, Tracer};

use crate::mutate::Random;
use crate::seeds;
use crate::targets::folder_in_memory;

/// Layers of the model.
pub const N_LAYERS: usize = 2;

/// Features of each layer.
pub const N_FEATURES: usize = 6;

const D_MODEL: usize = 8;

/// Where they are.
#[derive(Clone)]
pub struct Tiny {
    pub model: String,
    pub transcoders: String,
}

/// Numbers between -1 and 1, the same each time.
fn numbers(mut random: Random) -> impl FnMut() -> f32 {
    move || (random.below(2001) as f32 - 1000.0) / 1000.0
}

impl Tiny {
    /// Writes them into a folder in memory.
    pub fn make() -> Tiny {
        let folder = folder_in_memory();
        let mut number = numbers(Random(7));
        let model = folder.join("tiny.gguf");
        std::fs::write(&model, seeds::gguf(N_LAYERS, &mut number)).expect("the folder can be written");
        let transcoders = folder.join("transcoders");
        std::fs::create_dir(&transcoders).expect("the folder can be written");
        let files: Vec<String> = (0..N_LAYERS).map(|layer| format!("layer_{layer}.safetensors")).collect();
        let config = format!(
            "model_name: tiny\nmodel_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\n\
             feature_output_hook: mlp.hook_out\nscan: tiny-plt\ntranscoders:\n- {}\nactivation: relu\n",
            files.join("\n- ")
        );
        std::fs::write(transcoders.join("config.yaml"), config).expect("the folder can be written");
        for file in files {
            std::fs::write(transcoders.join(file), transcoder(D_MODEL, N_FEATURES, &mut number))
                .expect("the folder can be written");
        }
        let name = |path: PathBuf| path.to_string_lossy().into_owned();
        Tiny { model: name(model), transcoders: name(transcoders) }
    }

    pub fn replacement(&self) -> Replacement {
        let host = ModelFiles::open(&self.model).expect("a model");
        let transcoders = Folder::open(&self.transcoders).expect("a folder");
        Replacement::open(host, &transcoders, &candle_core::Device::Cpu).expect("a model with transcoders")
    }

    pub fn setup(&self) -> Setup {
        Setup::new(&self.model, &self.transcoders)
    }

    pub fn tracer(&self) -> Tracer {
        Tracer::open(self.setup()).expect("a model with transcoders")
    }
}

/// The transcoder of a layer.
pub fn transcoder(d_model: usize, n_features: usize, number: &mut dyn FnMut() -> f32) -> Vec<u8> {
    let mut tensor = |name: &str, shape: &[usize]| {
        let bytes = (0..shape.iter().product()).flat_map(|_| number().to_le_bytes()).collect();
        seeds::Tensor { name: name.to_owned(), dtype: "F32".to_owned(), shape: shape.to_vec(), bytes }
    };
    let tensors = [
        tensor("W_enc", &[n_features, d_model]),
        tensor("W_dec", &[n_features, d_model]),
        tensor("b_enc", &[n_features]),
        tensor("b_dec", &[d_model]),
    ];
    seeds::file_of(&tensors, None)
}

/// For a reader that wants transcoders of another width.
pub fn transcoder_of_width(d_model: usize) -> Vec<u8> {
    transcoder(d_model, 2, &mut numbers(Random(9)))
}
