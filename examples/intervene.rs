//! Swaps the features of one place for another's and watches the answer follow.
//!
//! `cargo run --release --example intervene`

use candle_core::Device;
use circuitscope::intervene::{Change, CompareOptions, FeatureSpec, GenerateOptions, Intervention, Mode, Original};
use circuitscope::job::Job;
use circuitscope::replacement::Replacement;
use circuitscope::weights::{atlas_model, atlas_transcoders};

fn main() -> circuitscope::Result<()> {
    let replacement = Replacement::open(atlas_model()?, &atlas_transcoders(), &Device::Cpu)?;
    let tokens = replacement.tokenizer.encode_prompt("The capital of the state containing Dallas is")?;

    // One original run; every changed run starts from it, is held to it and is compared with it.
    let job = Job::default();
    let original = Original::run(&replacement, &tokens, &job)?;

    // At the city's token (position 7) Texas goes off and California on.
    let set = |spec: &str, value: f32| -> circuitscope::Result<Intervention> {
        Ok(spec.parse::<FeatureSpec>()?.changed(Change::Set(value)))
    };
    let off = [set("0_39_7", 0.0)?, set("1_224_7", 0.0)?];
    let on = [
        set("0_303_7", 13.87)?,
        set("0_400_7", 11.456)?,
        set("2_262_7", 1.92)?,
        set("1_17_7", 1.675)?,
        set("3_474_7", 16.885)?,
    ];
    let swap = [&off[..], &on[..]].concat();

    // Two alternatives, one batch.
    let outcomes = original.intervene(&[off.to_vec(), swap.clone()], &Mode::Free, &job)?;
    for (name, outcome) in ["Texas off", "California instead of Texas"].iter().zip(&outcomes) {
        let comparison = original.compare(outcome, &CompareOptions::default())?;
        let target = &comparison.target;
        println!("{name}: {:?} {:.3} -> {:.3}", target.text, target.probability_before, target.probability_after);
        for token in comparison.tokens.iter().filter(|token| token.rank_after == 1) {
            println!("  now {:?} {:.3}, KL {:.2} nats", token.text, token.probability_after, comparison.kl_divergence);
        }
    }

    let options = GenerateOptions { n_tokens: 2, ..Default::default() };
    let continuation = original.generate(&swap, &Mode::Free, &options, &job)?;
    println!("continued: {:?}", replacement.tokenizer.decode(&continuation));
    Ok(())
}
