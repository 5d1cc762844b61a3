//! Names of features from a service, against a server on this machine that plays one: a good one, a slow one, one that
//! is wrong, one that is gone.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use circuitscope::features::{
    Asked, CollectOptions, EXPLANATIONS_FILE, Explained, Explainer, FeatureId, FeatureSet, Input, LabelOptions, Secret,
    Settings, Split, TextFormat, collect, explain_features, label_features,
};
use circuitscope::replacement::Replacement;
use circuitscope::{CancelToken, Error, Job, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{atlas, circuitscope, close, fixture, open_replacement, program, refused_with};

/// A question as the service saw it.
#[derive(Clone, Debug)]
struct Question {
    path: String,
    headers: BTreeMap<String, String>,
    body: Value,
}

impl Question {
    /// What the user's part says.
    fn text(&self) -> &str {
        self.body["messages"][1]["content"].as_str().unwrap()
    }

    /// The tokens in marks, in the order in which they stand there.
    fn marked(&self) -> Vec<String> {
        let pieces = self.text().split("<<").skip(1);
        pieces.map(|piece| piece.split_once(">>").unwrap().0.to_owned()).collect()
    }
}

/// What the service does with the n-th question.
enum Reply {
    /// Status, headers, body.
    Send(u16, Vec<(&'static str, String)>, String),
    /// Nothing, until the client goes away.
    Silence,
}

/// The answer of a model that says `content`.
fn says(content: &str) -> Reply {
    Reply::Send(
        200,
        Vec::new(),
        json!({"choices": [{"message": {"role": "assistant", "content": content}}]}).to_string(),
    )
}

/// What a good one says: the tokens in marks.
fn good(question: &Question) -> Reply {
    let marked = question.marked();
    says(&json!({"label": format!("like {}", marked[0]), "on": marked}).to_string())
}

struct Service {
    url: String,
    seen: Arc<Mutex<Vec<Question>>>,
}

impl Service {
    fn start(reply: impl Fn(usize, &Question) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, reply) = (seen.clone(), Arc::new(reply));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, reply) = (log.clone(), reply.clone());
                // Clients that go away early are part of the tests.
                std::thread::spawn(move || drop(serve(stream.unwrap(), &log, reply.as_ref())));
            }
        });
        Self { url, seen }
    }

    fn n_seen(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

fn serve(
    mut stream: TcpStream,
    log: &Mutex<Vec<Question>>,
    reply: &dyn Fn(usize, &Question) -> Reply,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut body = vec![0; headers.get("content-length").map_or(0, |n| n.parse().unwrap())];
    reader.read_exact(&mut body)?;
    let body = serde_json::from_slice(&body).unwrap();
    let question = Question { path: first.split(' ').nth(1).unwrap().to_owned(), headers, body };
    let n = {
        let mut log = log.lock().unwrap();
        log.push(question.clone());
        log.len()
    };
    match reply(n, &question) {
        Reply::Silence => std::io::copy(&mut reader, &mut std::io::sink()).map(drop),
        Reply::Send(status, headers, body) => {
            let mut head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
            headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
            stream.write_all((head + "\r\n").as_bytes())?;
            stream.write_all(body.as_bytes())
        }
    }
}

/// A small model with features on a text whose lines differ.
fn small(folder: &Path) -> (Replacement, FeatureSet) {
    let reference = fixture("reference/llama_relu");
    let replacement = open_replacement(&reference.join("model"), &reference.join("transcoders"));
    let text: String = (0..60).map(|i| format!("{i} {} went to the house {}.\n", i * 31 % 97, i % 13)).collect();
    std::fs::write(folder.join("text.txt"), text).unwrap();
    let options = CollectOptions {
        settings: Settings { context: 32, ..Settings::default() },
        format: TextFormat { split: Split::Lines, ..Default::default() },
        ..Default::default()
    };
    let out = folder.join("features");
    collect(&replacement, &[Input::File(folder.join("text.txt"))], &out, &options, &Job::default()).unwrap();
    let set = FeatureSet::open(&out).unwrap();
    (replacement, set)
}

/// Quick to give up; all features.
fn quick(url: &str) -> Explainer {
    Explainer {
        asked: Asked::All,
        max_features: 12,
        timeout: Duration::from_millis(500),
        n_tries: 3,
        first_wait: Duration::from_millis(5),
        n_parallel: 1,
        ..Explainer::new(url, "a-model")
    }
}

fn explain((replacement, set): &(Replacement, FeatureSet), explainer: &Explainer, out: &Path) -> Result<Explained> {
    explain_features(replacement, set, &LabelOptions::default(), explainer, out, &Job::default())
}

fn kept(out: &Path) -> usize {
    let Ok(bytes) = std::fs::read(out.join(EXPLANATIONS_FILE)) else { return 0 };
    let json: Value = serde_json::from_slice(&bytes).unwrap();
    json["features"].as_object().unwrap().len()
}

#[test]
fn a_services_labels_have_the_score_that_the_same_condition_has_by_itself() {
    let (replacement, set) = (atlas(), FeatureSet::open_named("atlas").unwrap());
    let options = LabelOptions::default();
    let automatic = label_features(&replacement, &set, &options, &Job::default()).unwrap();
    // Labels of one token: the service, which is told the feature by its label, names the same token.
    let token = |label: &str| {
        let token = label.strip_prefix('"')?.strip_suffix('"')?;
        token.chars().all(char::is_alphabetic).then(|| token.to_owned())
    };
    let service = Service::start(|_, question| {
        let marked = question.marked();
        // The token in marks most often.
        let count =
            |token: &&String| (marked.iter().filter(|other| other == token).count(), std::cmp::Reverse(token.len()));
        let most = marked.iter().max_by_key(count).unwrap();
        says(&json!({"label": format!("the word {most}"), "on": [most]}).to_string())
    });
    let out = TempDir::new().unwrap();
    let explainer =
        Explainer { max_features: 200, n_parallel: 4, timeout: Duration::from_secs(60), ..quick(&service.url) };
    let found = explain_features(&replacement, &set, &options, &explainer, out.path(), &Job::default()).unwrap();
    assert_eq!((found.n_asked, found.n_kept, found.n_unusable, found.answers.len()), (200, 0, 0, 200));
    let mut n_same = 0;
    for (id, answer) in &found.answers {
        let before = &automatic[id];
        assert_eq!(answer.n_active, before.n_active, "{id}: scored on the same text");
        if let Some(word) = token(&before.label)
            && answer.label == format!("the word {word}")
        {
            close(answer.f1, before.f1, 0.02, 0.0, &format!("{id} {word}: F1"));
            close(answer.precision, before.precision, 0.02, 0.0, &format!("{id} {word}: precision"));
            close(answer.recall, before.recall, 0.02, 0.0, &format!("{id} {word}: recall"));
            n_same += 1;
        }
        // The better of the two stays.
        let chosen = &found.labels[id];
        assert!(chosen.f1 >= before.f1, "{id}");
        assert!(chosen == before || chosen == answer, "{id}");
    }
    assert!(n_same > 10, "{n_same} labels name the same token");
    assert_eq!(found.labels.len(), automatic.len());
}

#[test]
fn questions_are_those_that_the_documentation_has_and_show_no_text_that_labels_are_scored_on() {
    let folder = TempDir::new().unwrap();
    let small = small(folder.path());
    let service = Service::start(|_, question| good(question));
    let explainer = Explainer { key: Secret::new("sk-1234"), ..quick(&service.url) };
    explain(&small, &explainer, folder.path()).unwrap();
    let page = std::fs::read_to_string(crate::support::root().join("docs/features.md")).unwrap();
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let seen = service.seen.lock().unwrap();
    assert_eq!(seen.len(), 12);
    let mut lines = std::collections::BTreeSet::new();
    for question in seen.iter() {
        assert_eq!(question.path, "/v1/chat/completions");
        assert_eq!(question.headers["authorization"], "Bearer sk-1234");
        assert_eq!(question.body["model"], "a-model");
        let system = question.body["messages"][0]["content"].as_str().unwrap();
        assert!(words(&page).contains(&words(system)), "docs/features.md has the question:\n{system}");
        assert!(question.text().contains("Next tokens that it makes likelier: ["));
        for line in question.text().lines().filter(|line| line.contains("house") && !line.starts_with('?')) {
            let text = line.split_once(": ").unwrap().1.replace("<<", "").replace(">>", "");
            lines.insert(text);
        }
    }
    // Sixty lines, of which half are hidden: no more than the other half are seen, whole or in part.
    let text = std::fs::read_to_string(folder.path().join("text.txt")).unwrap();
    let shown = |line: &&str| lines.iter().any(|shown| shown.trim_end_matches('.') == line.trim_end_matches('.'));
    let n_shown = text.lines().filter(shown).count();
    assert!((1..=30).contains(&n_shown), "{n_shown} of 60 lines are shown");
}

#[test]
fn a_service_that_breaks_off_loses_nothing_and_is_not_asked_twice() {
    let folder = TempDir::new().unwrap();
    let small = small(folder.path());
    let service = Service::start(|n, question| match n {
        1..=5 => good(question),
        _ => Reply::Send(503, Vec::new(), r#"{"error":{"message":"overloaded"}}"#.into()),
    });
    let error = explain(&small, &quick(&service.url), folder.path()).unwrap_err();
    let message = error.to_string();
    for part in ["503", "overloaded", "tried 3 times", service.url.as_str()] {
        assert!(message.contains(part), "{part:?} is not in {message}");
    }
    assert_eq!((kept(folder.path()), service.n_seen()), (5, 8));
    // Another one goes on from there.
    let healthy = Service::start(|_, question| good(question));
    let found = explain(&small, &quick(&healthy.url), folder.path()).unwrap();
    assert_eq!((found.n_asked, found.n_kept, healthy.n_seen(), kept(folder.path())), (7, 5, 7, 12));
    let again = explain(&small, &quick(&healthy.url), folder.path()).unwrap();
    assert_eq!((again.n_asked, again.n_kept, healthy.n_seen()), (0, 12, 7));
    assert_eq!(again.labels, found.labels);
    // Answers of another model are not taken for this one's.
    let other = Explainer { model: "another".into(), ..quick(&healthy.url) };
    let message = explain(&small, &other, folder.path()).unwrap_err().to_string();
    assert!(message.contains("`a-model`") && message.contains("`another`"), "{message}");
    // A damaged file of answers is an error, and not begun anew.
    std::fs::write(folder.path().join(EXPLANATIONS_FILE), "{").unwrap();
    let error = explain(&small, &quick(&healthy.url), folder.path()).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
}

#[test]
fn failures_that_pass_are_waited_for() {
    let folder = TempDir::new().unwrap();
    let small = small(folder.path());
    let service = Service::start(|n, question| match n % 3 {
        1 => Reply::Send(429, vec![("Retry-After", "0".into())], String::new()),
        2 => Reply::Send(502, Vec::new(), "<html>bad gateway</html>".into()),
        _ => good(question),
    });
    let found = explain(&small, &quick(&service.url), folder.path()).unwrap();
    assert_eq!((found.n_asked, found.n_unusable, service.n_seen()), (12, 0, 36));
    // Several questions at once are answered alike.
    let other = TempDir::new().unwrap();
    let service = Service::start(|_, question| good(question));
    let parallel = explain(&small, &Explainer { n_parallel: 4, ..quick(&service.url) }, other.path()).unwrap();
    assert_eq!((parallel.labels, parallel.answers), (found.labels, found.answers));
}

#[test]
fn a_slow_a_silent_and_a_missing_service_are_errors_after_some_tries() {
    let folder = TempDir::new().unwrap();
    let small = small(folder.path());
    let silent = Service::start(|_, _| Reply::Silence);
    let patience = Explainer { timeout: Duration::from_millis(100), ..quick(&silent.url) };
    let message = explain(&small, &patience, folder.path()).unwrap_err().to_string();
    assert!(message.contains("timeout") && message.contains("tried 3 times"), "{message}");
    assert_eq!(silent.n_seen(), 3);
    // A port that nobody listens at.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", gone.local_addr().unwrap());
    drop(gone);
    let error = explain(&small, &quick(&url), folder.path()).unwrap_err();
    assert!(matches!(error, Error::Explainer { .. }), "{error}");
    assert!(error.to_string().contains("tried 3 times"), "{error}");
    // Cancelled while it waits.
    let token = CancelToken::default();
    let cancel = token.clone();
    let service = Service::start(move |_, _| {
        cancel.cancel();
        Reply::Send(503, Vec::new(), String::new())
    });
    let explainer = Explainer { first_wait: Duration::from_secs(3600), ..quick(&service.url) };
    let job = Job::default().with_cancel(token);
    let (replacement, set) = &small;
    let found = explain_features(replacement, set, &LabelOptions::default(), &explainer, folder.path(), &job);
    assert!(matches!(found, Err(Error::Cancelled)));
}

#[test]
fn answers_that_cannot_be_used_are_left_out_and_many_of_them_end_it() {
    let folder = TempDir::new().unwrap();
    let small = small(folder.path());
    // Twice in a row for one feature, once for another.
    let service = Service::start(|n, question| match n {
        2 | 3 => says("I am sorry."),
        6 => Reply::Send(200, Vec::new(), "\u{1b}[31m no JSON".into()),
        _ => good(question),
    });
    let found = explain(&small, &quick(&service.url), folder.path()).unwrap();
    assert_eq!((found.n_asked, found.n_unusable, found.answers.len(), kept(folder.path())), (12, 1, 11, 11));
    for garbage in [
        "\u{1b}[31m no JSON".to_owned(),
        "{}".to_owned(),
        json!({"choices": [{"message": {"content": null}}]}).to_string(),
        json!({"choices": [{"message": {"content": "{\"label\": 3}"}}]}).to_string(),
        "x".repeat(3 << 20),
    ] {
        let folder = TempDir::new().unwrap();
        let service = Service::start(move |_, _| Reply::Send(200, Vec::new(), garbage.clone()));
        let message = explain(&small, &quick(&service.url), folder.path()).unwrap_err().to_string();
        assert!(message.contains("5 answers in a row cannot be used"), "{message}");
        assert!(!message.contains('\u{1b}') && message.len() < 400, "{message}");
        assert_eq!(service.n_seen(), 10);
    }
}

#[test]
fn the_command_takes_the_key_from_the_environment_and_never_shows_it() {
    let folder = TempDir::new().unwrap();
    drop(small(folder.path()));
    let reference = fixture("reference/llama_relu");
    let (model, transcoders) = (reference.join("model"), reference.join("transcoders"));
    let run = |url: &str, more: &[&str]| {
        let mut command = program(folder.path());
        command.args(["features", "label", "features", "--explainer", url, "--explainer-model", "m"]);
        command.args(["--explain", "all", "--explain-at-most", "3", "--explainer-parallel", "1"]).args(more);
        command.arg("--model").arg(&model).arg("--transcoders").arg(&transcoders);
        command.env("CIRCUITSCOPE_EXPLAINER_KEY", "sk-very-secret").output().unwrap()
    };
    let refusing = Service::start(|_, question| {
        let body = json!({"error": {"message": format!("wrong key {}", question.headers["authorization"])}});
        Reply::Send(401, Vec::new(), body.to_string())
    });
    let output = run(&refusing.url, &[]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(
        message.contains("401") && message.contains("wrong key") && !message.contains("sk-very-secret"),
        "{message}"
    );
    assert_eq!(refusing.n_seen(), 1, "a refusal is not tried again");
    assert!(!folder.path().join("features/feature_labels.json").exists());

    let service = Service::start(|_, question| good(question));
    let output = run(&service.url, &[]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{message}");
    assert!(message.contains("3 features explained, 0 kept from before"), "{message}");
    let seen = service.seen.lock().unwrap();
    assert_eq!(seen[0].headers["authorization"], "Bearer sk-very-secret");
    for file in ["feature_labels.json", "label_scores.json", EXPLANATIONS_FILE] {
        let text = std::fs::read_to_string(folder.path().join("features").join(file)).unwrap();
        assert!(!text.contains("sk-very-secret"), "{file}");
    }
    let id: FeatureId = "0_1".parse().unwrap();
    assert_eq!(id.layer, 0);
    // What does not go together.
    let label =
        |more: &[&'static str]| -> Vec<&'static str> { [&["features", "label", "features"][..], more].concat() };
    refused_with(folder.path(), &label(&["--explainer", "http://localhost:1"]), &["--explainer-model"]);
    refused_with(folder.path(), &label(&["--explain", "all"]), &["--explainer"]);
    refused_with(
        folder.path(),
        &label(&["--explainer", "localhost:1", "--explainer-model", "m", "--model", "atlas"]),
        &["http://"],
    );
    drop(circuitscope(folder.path(), &["features", "show", "features", "0_1"]));
}
