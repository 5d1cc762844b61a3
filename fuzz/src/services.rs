//! What services say of features: a site with Neuronpedia's interface, a language model; and what is kept of that.

use std::time::Duration;

use circuitscope::features::{
    Asked, EXPLANATIONS_FILE, Explainer, FeatureId, FeatureSet, LabelOptions, SCORES_FILE, explain_features,
    hosted_feature, report, write_labels,
};
use circuitscope::job::Job;
use serde_json::json;

use crate::feature_targets::collected;
use crate::hub::Answering;
use crate::mutate::{Form, NEXT, parts};
use crate::targets::{Target, folder_in_memory};
use crate::tiny::{N_FEATURES, N_LAYERS, Tiny};

const TIMEOUT: Duration = Duration::from_secs(2);

/// A reply: `STATUS`, lines of headers, an empty line, a body. After `STATUS said` the body is what a language model says.
fn reply(text: &[u8]) -> Vec<u8> {
    let (head, body) = match text.windows(2).position(|window| window == b"\n\n") {
        Some(at) => (&text[..at], &text[at + 2..]),
        None => (text, &b""[..]),
    };
    let mut lines: Vec<&[u8]> = head.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).collect();
    let status = if lines.is_empty() { b"200" } else { lines.remove(0) };
    let (status, body) = match status.strip_suffix(b" said") {
        Some(status) => {
            let content = String::from_utf8_lossy(body);
            (status, json!({ "choices": [{ "message": { "content": content } }] }).to_string().into_bytes())
        }
        None => (status, body.to_vec()),
    };
    let len = format!("Content-Length: {}", body.len());
    lines.extend([len.as_bytes(), b"Connection: close"]);
    [b"HTTP/1.1 ", status, b" X\r\n", &lines.join(&b"\r\n"[..]), b"\r\n\r\n", &body].concat()
}

fn replies(input: &[u8]) -> Vec<Vec<u8>> {
    parts(input, NEXT).into_iter().map(reply).collect()
}

/// A feature as a site with Neuronpedia's interface tells it.
pub fn site() -> Target {
    let server = Answering::start();
    let seed = b"200\ncontent-type: application/json\n\n{\"layer\":\"1-set\",\"index\":\"3\",\"maxActApprox\":2.5,\"frac_nonzero\":0.01,\"pos_str\":[\"a\"],\"neg_str\":[\"b\"],\"activations\":[{\"tokens\":[\"x\",\"y\"],\"values\":[0,2.5],\"maxValueTokenIndex\":1}],\"explanations\":[{\"description\":\"other\",\"typeName\":\"x\"}]}";
    Target::new(Form::Requests, vec![seed.to_vec()], move |input| {
        server.give(replies(input));
        hosted_feature(&server.url, "m/1-set", FeatureId { layer: 1, feature: 3 }, TIMEOUT).is_ok_and(|found| {
            let is_whole = |tokens: usize, values: usize, at: usize| tokens == values && at < tokens;
            let examples = &found.examples;
            assert!(examples.iter().all(|e| is_whole(e.tokens.len(), e.activations.len(), e.at)), "examples are whole");
            true
        })
    })
}

/// A language model that is asked about two features, twice where it cannot be understood; once where it does not answer.
fn explainer(url: &str) -> Explainer {
    Explainer {
        asked: Asked::All,
        max_features: 2,
        timeout: TIMEOUT,
        n_tries: 1,
        first_wait: Duration::ZERO,
        n_parallel: 1,
        ..Explainer::new(url, "m")
    }
}

/// Every label counts, however little it says.
fn options() -> LabelOptions {
    LabelOptions { min_f1: 0.0, ..LabelOptions::default() }
}

/// What a language model answers when it is asked for names of features.
pub fn explanations() -> Target {
    let server = Answering::start();
    let replacement = Tiny::make().replacement();
    let set = FeatureSet::open(&collected()).expect("features");
    let folder = folder_in_memory();
    let said = |answer: &str| format!("200 said\n\n{answer}");
    let plain = r#"{"label":"letters","on":["a","ab"],"after":["b"],"soon_after":["a b"],"before":"b"}"#;
    let thought = "<think>{\"label\":\"no\"}</think> Sure!\n```json\n{\"label\": \"b\", \"on\": [\"b\"]}\n```";
    let whole = r#"{"choices":[{"message":{"content":"{\"label\":\"x\"}"}}],"usage":{"total_tokens":3}}"#;
    let answers = [said(plain), said(thought), format!("200\ncontent-type: application/json\n\n{whole}")];
    let next = |answers: &[&String]| answers.iter().map(|answer| answer.as_bytes()).collect::<Vec<_>>().join(NEXT);
    let failed = "429\nretry-after: 1\n\n{\"error\":{\"message\":\"too many\"}}".to_owned();
    let seeds = vec![
        next(&[&answers[0], &answers[1]]),
        next(&[&answers[2], &answers[0]]),
        next(&[&said("I cannot say."), &answers[0], &answers[1]]),
    ];
    // One that is refused is no valid file, and worth a beginning all the same.
    let seeds = [seeds, vec![next(&[&answers[0], &answers[1], &failed])]].concat();
    Target::new(Form::Requests, seeds, move |input| {
        server.give(replies(input));
        let _ = std::fs::remove_file(folder.join(EXPLANATIONS_FILE));
        let explainer = explainer(&server.url);
        let explain = || explain_features(&replacement, &set, &options(), &explainer, &folder, &Job::default());
        let Ok(found) = explain() else { return false };
        if found.n_unusable == 0 {
            server.give(Vec::new());
            let again = explain().expect("what was answered is kept");
            assert!(again.n_asked == 0 && again.answers == found.answers, "what was answered is not asked for again");
        }
        true
    })
}

/// What is kept of such answers.
pub fn kept_explanations() -> Target {
    let replacement = Tiny::make().replacement();
    let set = FeatureSet::open(&collected()).expect("features");
    let folder = folder_in_memory();
    let features: serde_json::Map<String, serde_json::Value> = (0..N_LAYERS)
        .flat_map(|layer| (0..N_FEATURES).map(move |feature| format!("{layer}_{feature}")))
        .map(|name| (name, json!({"label": "l", "on": ["a", "ab"], "after": ["b"], "before": ["a b ab"]})))
        .collect();
    let kept = json!({ "format_version": 1, "model": "m", "features": features });
    // Nobody listens there.
    let explainer = explainer("http://127.0.0.1:9/v1");
    Target::new(Form::Json, vec![serde_json::to_vec(&kept).expect("JSON")], move |input| {
        std::fs::write(folder.join(EXPLANATIONS_FILE), input).expect("the folder can be written");
        explain_features(&replacement, &set, &options(), &explainer, &folder, &Job::default()).is_ok()
    })
}

/// How good labels are, as `features label` writes it beside them.
pub fn label_scores() -> Target {
    let folder = collected();
    let set = FeatureSet::open(&folder).expect("features");
    let labels = circuitscope::features::label_features(&Tiny::make().replacement(), &set, &options(), &Job::default());
    write_labels(&folder, &labels.expect("labels")).expect("the folder can be written");
    let path = folder.join(SCORES_FILE);
    let seed = std::fs::read(&path).expect("it was written");
    Target::new(Form::Json, vec![seed], move |input| {
        std::fs::write(&path, input).expect("the folder can be written");
        let Ok(set) = FeatureSet::open(&folder) else { return false };
        let mut is_read = true;
        for layer in 0..N_LAYERS {
            for feature in 0..N_FEATURES {
                is_read &= report(&set, FeatureId { layer, feature }).is_ok();
            }
        }
        is_read
    })
}
