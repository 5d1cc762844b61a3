//! Swaps the features of one place for another's and watches the answer follow.
//!
//! `cargo run --release --example intervene`

use circuitscope::intervene::{Change, GenerateOptions};
use circuitscope::{FeatureSpec, Intervention, RunOptions, Setup, Tracer};

/// `feature`, as `LAYER_FEATURE_POSITION`, set to `value`.
fn set(feature: &str, value: f32) -> circuitscope::Result<Intervention> {
    Ok(feature.parse::<FeatureSpec>()?.changed(Change::Set(value)))
}

fn main() -> circuitscope::Result<()> {
    let tracer = Tracer::open(Setup::atlas())?;
    let prompt = "The capital of the state containing Dallas is";

    // At the city's token (position 7) Texas goes off and California on.
    let off = [set("0_39_7", 0.0)?, set("1_224_7", 0.0)?];
    let on = [
        set("0_303_7", 13.87)?,
        set("0_400_7", 11.456)?,
        set("2_262_7", 1.92)?,
        set("1_17_7", 1.675)?,
        set("3_474_7", 16.885)?,
    ];
    let swap = [&off[..], &on[..]].concat();

    let generate = GenerateOptions { n_tokens: 2, ..Default::default() };
    let options = RunOptions { generate: Some(generate), ..Default::default() };
    for (name, changes) in [("Texas off", &off[..]), ("California instead of Texas", &swap)] {
        let run = tracer.intervene(prompt, changes, &options)?;
        let target = &run.target;
        println!("{name}: {:?} {:.3} -> {:.3}", target.text, target.probability_before, target.probability_after);
        for token in run.tokens.iter().filter(|token| token.rank_after == 1) {
            println!("  now {:?} {:.3}, KL {:.2} nats", token.text, token.probability_after, run.kl_divergence);
        }
        if let Some(continuation) = &run.continuation {
            println!("  continued {:?}, was {:?}", continuation.changed, continuation.original);
        }
    }
    Ok(())
}
