//! Writes a random model with transcoders in the shape of a published one: to measure time and memory where the real
//! weights are not at hand.
//!
//!     cargo run --release --example synthesize -- gemma-2-2b /tmp/gemma-2-2b
//!     circuitscope trace --tokens 2,17,4,99 --model /tmp/gemma-2-2b/model --transcoders /tmp/gemma-2-2b/transcoders

mod synthetic;

use std::path::Path;

use synthetic::{Shape, write_model, write_transcoders};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (name, folder) = match &arguments[..] {
        [name, folder] => (name, Path::new(folder)),
        _ => return Err(format!("usage: synthesize <{}> <output folder>", Shape::names().join("|")).into()),
    };
    let shape =
        Shape::named(name).ok_or_else(|| format!("unknown shape {name}; known: {}", Shape::names().join(", ")))?;
    write_model(&shape, &folder.join("model"))?;
    write_transcoders(&shape, shape.l0, &folder.join("transcoders"))?;
    println!("wrote {0}/model and {0}/transcoders", folder.display());
    Ok(())
}
