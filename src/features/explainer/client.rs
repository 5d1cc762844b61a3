//! One question to a service: sent again where the service fails, with longer and longer waits.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::Explainer;
use super::answer::{Answer, parse};
use crate::error::{Error, Result};
use crate::job::Job;

/// The longest wait between two tries, and between two looks at whether the job was cancelled.
const MAX_WAIT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A question that was answered, and not in a form that can be used, is asked once more.
const MAX_UNUSABLE_TRIES: usize = 2;

/// A key that is never shown.
#[derive(Clone, PartialEq)]
pub struct Secret(String);

impl Secret {
    /// `None` for one of white space alone.
    pub fn new(key: &str) -> Option<Self> {
        let key = key.trim();
        (!key.is_empty()).then(|| Self(key.to_owned()))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Why a question has no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The service answers, and not in a form that can be used.
    Unusable(String),
    /// It does not answer, or refuses.
    Service(String),
    /// Something else, such as cancellation.
    Other(Error),
}

/// One try.
enum Tried {
    Done(Answer),
    Unusable(String),
    /// Worth another try, after a time that the service may name.
    Again(String, Option<Duration>),
    /// Never better.
    Refused(String),
}

/// Asks one service.
pub(super) struct Client {
    /// With `/chat/completions`.
    address: String,
    explainer: Explainer,
    #[cfg(feature = "hub")]
    agent: ureq::Agent,
}

impl Client {
    /// # Errors
    /// An address that is none; a build without network.
    pub(super) fn new(explainer: &Explainer) -> Result<Self> {
        let url = explainer.url.trim_end_matches('/');
        let problem = |problem: &str| Err(Error::Explainer { url: explainer.url.clone(), problem: problem.to_owned() });
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        if rest.is_none_or(|rest| rest.is_empty() || rest.contains(char::is_whitespace)) {
            return problem("an address begins with http:// or https://, as http://localhost:11434/v1");
        }
        let address = match url.ends_with("/chat/completions") {
            true => url.to_owned(),
            false => format!("{url}/chat/completions"),
        };
        #[cfg(not(feature = "hub"))]
        return problem(&format!("this build has no network (feature `hub`), and cannot ask {address}"));
        #[cfg(feature = "hub")]
        Ok(Self { address, agent: super::super::web::agent(explainer.timeout), explainer: explainer.clone() })
    }

    /// Asks until there is an answer, or as often as is allowed.
    pub(super) fn ask(&self, messages: &Value, job: &Job) -> Result<Answer, Failure> {
        let (mut wait, mut n_unusable) = (self.explainer.first_wait, 0);
        for n_tried in 1.. {
            job.check().map_err(Failure::Other)?;
            let (problem, named) = match self.once(messages) {
                Tried::Done(answer) => return Ok(answer),
                Tried::Refused(problem) => return Err(Failure::Service(problem)),
                Tried::Unusable(reason) => {
                    n_unusable += 1;
                    if n_unusable >= MAX_UNUSABLE_TRIES {
                        return Err(Failure::Unusable(reason));
                    }
                    continue;
                }
                Tried::Again(problem, named) => (problem, named),
            };
            if n_tried >= self.explainer.n_tries {
                return Err(Failure::Service(format!("{problem} (tried {n_tried} times)")));
            }
            pause(named.unwrap_or(wait).min(MAX_WAIT), job).map_err(Failure::Other)?;
            wait = (2 * wait).min(MAX_WAIT);
        }
        unreachable!("the loop above ends with an answer or a failure")
    }

    /// A text of the service, without the key, which some repeat.
    fn without_key(&self, text: &str) -> String {
        match &self.explainer.key {
            Some(Secret(key)) => text.replace(key.as_str(), "(the key)"),
            None => text.to_owned(),
        }
    }

    /// The answer in the body of a reply.
    fn answer_of(&self, body: &str) -> Tried {
        let shown = |what: &str| format!("{what}: {:?}", crate::text::shortened(&self.without_key(body), 120));
        let Ok(json) = serde_json::from_str::<Value>(body) else { return Tried::Unusable(shown("no JSON")) };
        let content = json.pointer("/choices/0/message/content").and_then(Value::as_str);
        match content {
            None => Tried::Unusable(shown("no `choices` with a `message`")),
            Some(content) => match parse(content) {
                Ok(answer) => Tried::Done(answer),
                Err(reason) => Tried::Unusable(self.without_key(&reason)),
            },
        }
    }
}

/// Waits, unless the job is cancelled.
fn pause(time: Duration, job: &Job) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        job.check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(LOOK_EVERY));
    }
}

#[cfg(not(feature = "hub"))]
impl Client {
    /// There is no client without network: [`Client::new`] makes none.
    fn once(&self, _: &Value) -> Tried {
        let _ = (Tried::Again(String::new(), None), self.answer_of(""));
        Tried::Refused(format!("this build cannot ask {}", self.address))
    }
}

#[cfg(feature = "hub")]
impl Client {
    /// Asks once.
    fn once(&self, messages: &Value) -> Tried {
        use std::io::Read;
        /// Answers have some hundred bytes.
        const MAX_BODY_BYTES: u64 = 1 << 20;
        let body = serde_json::json!({ "model": self.explainer.model, "messages": messages });
        let mut request = self.agent.post(&self.address).header("Content-Type", "application/json");
        if let Some(Secret(key)) = &self.explainer.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let reply = match request.send(body.to_string()) {
            Ok(reply) => reply,
            Err(error) => return Tried::Again(self.without_key(&error.to_string()), None),
        };
        let status = reply.status();
        let header = |name: &str| reply.headers().get(name).and_then(|value| value.to_str().ok());
        let named = header("retry-after").and_then(|secs| secs.trim().parse().ok()).map(Duration::from_secs);
        let mut bytes = Vec::new();
        let read = reply.into_body().into_reader().take(MAX_BODY_BYTES + 1).read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        if status.is_success() {
            return match read {
                Err(error) => Tried::Again(error.to_string(), None),
                Ok(n) if n as u64 > MAX_BODY_BYTES => Tried::Unusable("more than 1 MB".into()),
                Ok(_) => self.answer_of(&text),
            };
        }
        let words = serde_json::from_str::<Value>(&text).ok();
        let words = words.as_ref().and_then(|json| json.pointer("/error/message").or(json.get("error")));
        let words = words.and_then(Value::as_str).unwrap_or(&text);
        let words = crate::text::shortened(&self.without_key(words.trim()), 200);
        let problem = format!("it answers {status}{}{words}", if words.is_empty() { "" } else { ": " });
        match status.as_u16() {
            408 | 425 | 429 | 500..=599 => Tried::Again(problem, named),
            401 | 403 if self.explainer.key.is_none() => Tried::Refused(format!("{problem} (no key was given)")),
            _ => Tried::Refused(problem),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_shown() {
        let key = Secret::new(" sk-12345 \n").unwrap();
        assert_eq!(format!("{key:?}"), "Secret(..)");
        assert_eq!(Secret::new("  "), None);
        let explainer = Explainer { key: Some(key), ..Explainer::new("http://localhost:1/v1", "m") };
        assert!(!format!("{explainer:?}").contains("12345"));
    }

    #[test]
    fn addresses_are_those_of_web_services() {
        for url in ["", "localhost:8000", "ftp://x", "file:///etc/passwd", "http://", "http://a b"] {
            assert!(Client::new(&Explainer::new(url, "m")).is_err(), "{url}");
        }
        #[cfg(feature = "hub")]
        for url in ["http://localhost:1/v1", "http://localhost:1/v1/", "http://localhost:1/v1/chat/completions"] {
            let client = Client::new(&Explainer::new(url, "m")).unwrap();
            assert_eq!(client.address, "http://localhost:1/v1/chat/completions");
        }
    }
}
