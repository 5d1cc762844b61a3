//! Why does the model say that? The strongest nodes of one answer.
//!
//! `cargo run --release --example trace`

use circuitscope::{AttributionOptions, PruneSettings, Setup, Tracer};

fn main() -> circuitscope::Result<()> {
    let tracer = Tracer::open(Setup::atlas())?;
    let prompt = "The capital of the state containing Dallas is";
    let circuit = tracer.trace(prompt, &AttributionOptions::default())?.prune(&PruneSettings::default())?;
    for (index, share) in circuit.strongest_nodes(10) {
        let node = circuit.node(index);
        println!("{:5.1} %  {:?}  {}", 100.0 * share, node.id, node.label.as_deref().unwrap_or(""));
    }
    Ok(())
}
