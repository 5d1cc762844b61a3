//! Cancelling: every long call ends with `Error::Cancelled`, from whichever thread its token was set.

use std::sync::{Arc, Mutex};

use circuitscope::attribution::{AttributionOptions, RowChoice, attribute};
use circuitscope::intervene::{Alternative, GenerateOptions, Mode, Original, VerifyOptions, verify};
use circuitscope::job::{CancelToken, Job, Progress};
use circuitscope::replacement::Replacement;
use circuitscope::weights::{atlas_model, atlas_transcoders};
use circuitscope::{Error, Result};

use crate::support::device;

const PROMPT: &str = "The capital of the state containing Dallas is";

fn replacement() -> Replacement {
    Replacement::open(atlas_model().unwrap(), &atlas_transcoders(), &device()).unwrap()
}

/// A job that is cancelled, by another thread, when `phase` is told of for the first time; and what it was told.
fn cancelled_in(phase: &'static str) -> (Job, Arc<Mutex<Vec<Progress>>>) {
    let (token, told) = (CancelToken::default(), Arc::new(Mutex::new(Vec::new())));
    let (cancel, seen) = (token.clone(), told.clone());
    let job = Job::default().with_cancel(token).with_progress(move |progress| {
        seen.lock().unwrap().push(progress);
        if progress.phase == phase {
            std::thread::scope(|scope| scope.spawn(|| cancel.cancel()).join().unwrap());
        }
    });
    (job, told)
}

#[track_caller]
fn assert_cancelled<T>(result: Result<T>) {
    assert!(matches!(result.err(), Some(Error::Cancelled)));
}

#[test]
fn a_trace_is_cancelled_in_each_of_its_phases() {
    let replacement = replacement();
    let tokens = replacement.tokenizer.encode_prompt(PROMPT).unwrap();
    for phase in ["layers", "encoders"] {
        let (job, told) = cancelled_in(phase);
        assert_cancelled(replacement.linearize(&tokens, &job));
        let told = told.lock().unwrap();
        let n_told = told.iter().filter(|progress| progress.phase == phase).count();
        assert_eq!(n_told, 1, "{phase} went on");
    }
    let linear = replacement.linearize(&tokens, &Job::default()).unwrap();
    for rows in [RowChoice::All, RowChoice::BestFirst { max_features: 20 }] {
        let options = AttributionOptions { rows, batch_size: 1, ..Default::default() };
        let (job, told) = cancelled_in("rows");
        assert_cancelled(attribute(&replacement, &linear, PROMPT, &options, &job));
        let last = *told.lock().unwrap().last().unwrap();
        assert!(last.done < last.total, "{last:?}: all rows were computed");
    }
}

#[test]
fn progress_of_the_rows_ends_at_their_number() {
    let replacement = replacement();
    let tokens = replacement.tokenizer.encode_prompt(PROMPT).unwrap();
    let linear = replacement.linearize(&tokens, &Job::default()).unwrap();
    for rows in [RowChoice::All, RowChoice::BestFirst { max_features: 20 }] {
        let told = Arc::new(Mutex::new(Vec::new()));
        let seen = told.clone();
        let job = Job::default().with_progress(move |progress| seen.lock().unwrap().push(progress));
        let options = AttributionOptions { rows, ..Default::default() };
        let found = attribute(&replacement, &linear, PROMPT, &options, &job).unwrap();
        let told = told.lock().unwrap();
        assert!(told.iter().all(|progress| progress.phase == "rows" && progress.total == found.n_rows));
        assert_eq!(told.iter().map(|progress| progress.done).max(), Some(found.n_rows));
    }
}

#[test]
fn interventions_generation_and_verification_are_cancelled() {
    let replacement = replacement();
    let tokens = replacement.tokenizer.encode_prompt(PROMPT).unwrap();
    let original = Original::run(&replacement, &tokens, &Job::default()).unwrap();
    let linear = replacement.linearize(&tokens, &Job::default()).unwrap();
    let options = AttributionOptions::default();
    let graph = attribute(&replacement, &linear, PROMPT, &options, &Job::default()).unwrap().graph;

    let change = vec!["0_39_7".parse::<circuitscope::intervene::FeatureSpec>().unwrap()];
    let change: Vec<_> = change.iter().map(|c| c.changed(circuitscope::intervene::Change::Set(0.0))).collect();
    let (job, _) = cancelled_in("layers");
    assert_cancelled(Original::run(&replacement, &tokens, &job));
    let (job, _) = cancelled_in("layers");
    assert_cancelled(original.intervene(std::slice::from_ref(&change), &Mode::Free, &job));

    let alternative = Alternative { name: "off".into(), value: None, interventions: change.clone() };
    let (job, told) = cancelled_in("alternatives");
    assert_cancelled(original.sweep(&vec![alternative; 70], &Mode::Free, &Default::default(), &job));
    assert_eq!(told.lock().unwrap().iter().filter(|p| p.phase == "alternatives").count(), 1);

    let (job, told) = cancelled_in("tokens");
    let options = GenerateOptions { n_tokens: 3, ..Default::default() };
    assert_cancelled(original.generate(&change, &Mode::Free, &options, &job));
    assert_eq!(told.lock().unwrap().iter().filter(|p| p.phase == "tokens").count(), 1);

    let (job, told) = cancelled_in("measured sources");
    let options = VerifyOptions { n_samples: 40, n_ablated: 2, seed: 0, kept: Vec::new() };
    assert_cancelled(verify(&replacement, &graph, &options, &job));
    assert_eq!(told.lock().unwrap().iter().filter(|p| p.phase == "measured sources").count(), 1);
}
