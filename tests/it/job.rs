//! Cancelling: every long call ends with `Error::Cancelled`, from whichever thread its token was set.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use circuitscope::attribution::{AttributionOptions, RowChoice, attribute, retrace};
use circuitscope::intervene::{
    Alternative, Change, FeatureSpec, GenerateOptions, Mode, Original, Retraced, VerifyOptions, verify,
};
use circuitscope::job::{CancelToken, Job, Progress};
use circuitscope::replacement::{LinearModel, Replacement};
use circuitscope::weights::{atlas_model, atlas_transcoders};
use circuitscope::{DeviceChoice, Error, Result, Setup, Tracer};

use crate::support::{copy_folder, device, fixture};

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

/// Every file and folder below one.
fn everything_below(folder: &Path) -> Vec<PathBuf> {
    let entries = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { everything_below(&path) } else { vec![path] }).collect()
}

#[test]
fn a_trace_through_the_front_door_is_cancelled_in_each_phase_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for part in ["model", "transcoders"] {
        copy_folder(&fixture("reference/llama_relu").join(part), &folder.path().join(part));
    }
    let part = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let tracer = Tracer::open(Setup::new(part("model"), part("transcoders")).device(DeviceChoice::Cpu)).unwrap();
    let before = everything_below(folder.path());
    assert!(before.len() > 5);
    for rows in [RowChoice::All, RowChoice::BestFirst { max_features: 20 }] {
        let options = AttributionOptions { rows, batch_size: 1, ..Default::default() };
        for phase in ["layers", "encoders", "targets", "rows"] {
            let (job, told) = cancelled_in(phase);
            assert_cancelled(tracer.trace_with("He went to the house and", &options, &job));
            let told = told.lock().unwrap();
            let first = told.iter().position(|progress| progress.phase == phase);
            let first = first.unwrap_or_else(|| panic!("no progress of {phase}"));
            assert!(told[first..].iter().all(|progress| progress.phase == phase), "{phase} is not the last phase");
            assert!(told.last().unwrap().done < told[first].total, "{phase} went on");
        }
    }
    assert_eq!(everything_below(folder.path()), before);
    // The tracer is as good as before.
    let graph = tracer.trace("He went to the house and", &AttributionOptions::default()).unwrap();
    graph.save(folder.path().join("graph.safetensors")).unwrap();
    assert_eq!(everything_below(folder.path()).len(), before.len() + 1);
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
        let rows: Vec<_> = told.iter().filter(|progress| progress.phase == "rows").collect();
        assert!(rows.iter().all(|progress| progress.total == found.n_rows));
        assert_eq!(rows.iter().map(|progress| progress.done).max(), Some(found.n_rows));
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

    let texas: FeatureSpec = "0_39_7".parse().unwrap();
    let change = vec![texas.changed(Change::Set(0.0))];
    let (job, _) = cancelled_in("layers");
    assert_cancelled(Original::run(&replacement, &tokens, &job));
    let (job, _) = cancelled_in("layers");
    assert_cancelled(original.intervene(std::slice::from_ref(&change), &Mode::Free, &job));

    let alternative = Alternative { name: "off".into(), value: None, interventions: change.clone(), heads: Vec::new() };
    let (job, told) = cancelled_in("alternatives");
    assert_cancelled(original.sweep(&vec![alternative; 70], &Mode::Free, &Default::default(), &job));
    assert_eq!(told.lock().unwrap().iter().filter(|p| p.phase == "alternatives").count(), 1);

    let (job, told) = cancelled_in("tokens");
    let options = GenerateOptions { n_tokens: 3, ..Default::default() };
    assert_cancelled(original.generate(&change, &Mode::Free, &options, &job));
    assert_eq!(told.lock().unwrap().iter().filter(|p| p.phase == "tokens").count(), 1);

    let (job, told) = cancelled_in("measured sources");
    let options = VerifyOptions { n_samples: 40, n_ablated: 2, seed: 0, kept: Vec::new() };
    let again = |linear: &LinearModel| {
        let graph = retrace(&replacement, linear, &graph, &job)?;
        Ok(Retraced { graph, targets: Vec::new() })
    };
    assert_cancelled(verify(&replacement, &graph, &options, again, &job));
    assert_eq!(told.lock().unwrap().iter().filter(|p| p.phase == "measured sources").count(), 1);
}
