//! Writes a base model as a Hugging Face folder in f32, whatever it was read from: shows that a GGUF file and a folder
//! are the same model, and gives other programs the exact weights that circuitscope computes with.
//!
//!     cargo run --release --example dequantize_gguf -- model.gguf folder

use std::collections::HashMap;
use std::path::Path;

use candle_core::Tensor;
use circuitscope::weights::ModelFiles;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [source, folder] = &arguments[..] else {
        return Err("usage: dequantize_gguf <folder, .gguf file or Hub id> <output folder>".into());
    };
    let host = ModelFiles::open(source)?;
    let folder = Path::new(folder);
    std::fs::create_dir_all(folder)?;

    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    for name in host.checkpoint.names() {
        tensors.insert(name.to_string(), host.checkpoint.tensor(name, &host.checkpoint.shape(name)?)?);
    }
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors"))?;
    std::fs::write(folder.join("config.json"), serde_json::to_string_pretty(&host.config)?)?;
    std::fs::write(folder.join("tokenizer.json"), host.tokenizer.to_json()?)?;
    let mut roles = serde_json::Map::new();
    let ids =
        [("bos_token", host.tokenizer.bos()), ("eos_token", host.tokenizer.eos()), ("pad_token", host.tokenizer.pad())];
    for (role, id) in ids {
        if let Some(id) = id {
            roles.insert(role.to_string(), host.tokenizer.token(id).into());
        }
    }
    std::fs::write(folder.join("tokenizer_config.json"), serde_json::to_string_pretty(&roles)?)?;
    println!("{} tensors, {:?}", tensors.len(), host.tokenizer);
    Ok(())
}
