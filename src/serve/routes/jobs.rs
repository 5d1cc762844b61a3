//! Jobs: asked for, watched, cancelled; and the short questions to the model.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::intervene::Original;
use crate::job::Job;
use crate::tracer::{Prompt, Tracer};

use super::super::app::{App, away};
use super::super::extract::{At, Body};
use super::super::reply::{Answer, Refusal, json_response};
use super::super::requests::{InterveneRequest, SweepRequest, TraceRequest, VerifyRequest, tokenized};
use super::super::work::{Listener, Record};

/// Told to whoever listens and hears nothing.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum JobRequest {
    Trace(TraceRequest),
    Intervene(InterveneRequest),
    Generate(InterveneRequest),
    Sweep(SweepRequest),
    Verify(VerifyRequest),
}

impl JobRequest {
    fn ask(self, app: &Arc<App>) -> Answer<Arc<Record>> {
        let own = app.clone();
        match self {
            JobRequest::Trace(request) => {
                request.check(app)?;
                app.work.ask("trace", request.detached, move |tracer, job, _| request.run(&own, tracer, job))
            }
            JobRequest::Intervene(request) => {
                request.check(app, false)?;
                app.work.ask("intervene", request.detached, move |tracer, job, record| {
                    request.run(&own, tracer, job, record)
                })
            }
            JobRequest::Generate(request) => {
                request.check(app, true)?;
                app.work.ask("generate", request.detached, move |tracer, job, record| {
                    request.generate(&own, tracer, job, record)
                })
            }
            JobRequest::Sweep(request) => {
                request.check(app)?;
                app.work.ask("sweep", request.detached, move |tracer, job, _| request.run(&own, tracer, job))
            }
            JobRequest::Verify(request) => {
                request.check(app)?;
                app.work.ask("verify", request.detached, move |tracer, job, _| request.run(&own, tracer, job))
            }
        }
    }
}

pub(in super::super) async fn ask(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Body(request): Body<Value>,
) -> Answer {
    // Read in two steps, so that what is wrong in one kind of job is not said of all.
    let request: JobRequest = serde_json::from_value(request)
        .map_err(|error| Refusal::bad_request(format!("the job cannot be understood: {error}")))?;
    let record = away(move || request.ask(&app)).await?;
    let wants_events = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|accept| accept.contains("text/event-stream"));
    if wants_events {
        return Ok(events_of(Listener::alone(record.clone()), record, 0));
    }
    let mut response = (StatusCode::ACCEPTED, json_response(&record.to_json(true))).into_response();
    if let Ok(place) = HeaderValue::from_str(&format!("/api/v1/jobs/{}", record.id)) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    Ok(response)
}

pub(in super::super) async fn list(State(app): State<Arc<App>>) -> Response {
    let jobs: Vec<Value> = app.work.all().iter().map(|record| record.to_json(false)).collect();
    json_response(&json!({ "jobs": jobs }))
}

fn found(app: &App, id: &str) -> Answer<Arc<Record>> {
    app.work.find(id).ok_or_else(|| {
        Refusal::not_found(format!("there is no job {id:?}")).hint("jobs are forgotten when the server ends")
    })
}

pub(in super::super) async fn one(State(app): State<Arc<App>>, At(id): At<String>) -> Answer {
    let record = found(&app, &id)?;
    record.touch();
    Ok(json_response(&record.to_json(true)))
}

pub(in super::super) async fn cancel(State(app): State<Arc<App>>, At(id): At<String>) -> Answer {
    let record = found(&app, &id)?;
    app.work.cancel(&record);
    Ok(json_response(&record.to_json(false)))
}

pub(in super::super) async fn events(State(app): State<Arc<App>>, At(id): At<String>, headers: HeaderMap) -> Answer {
    let record = found(&app, &id)?;
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let from = last.map_or(0, |last| last.saturating_add(1));
    Ok(events_of(Listener::new(record.clone()), record, from))
}

/// What goes along a stream: who listens, what has been said.
struct Listening {
    _listener: Listener,
    record: Arc<Record>,
    news: tokio::sync::watch::Receiver<usize>,
    next: usize,
    ready: VecDeque<super::super::work::Event>,
    is_over: bool,
}

fn events_of(listener: Listener, record: Arc<Record>, from: usize) -> Response {
    let news = record.news();
    let start = Listening { _listener: listener, record, news, next: from, ready: VecDeque::new(), is_over: false };
    let events = stream::unfold(start, |mut listening| async move {
        loop {
            if let Some(event) = listening.ready.pop_front() {
                let told = Event::default().id(listening.next.to_string()).event(event.name).data(&*event.data);
                listening.next += 1;
                return Some((Ok::<Event, Infallible>(told), listening));
            }
            if listening.is_over {
                return None;
            }
            listening.news.borrow_and_update();
            let (ready, is_over) = listening.record.events_from(listening.next);
            (listening.ready, listening.is_over) = (ready.into(), is_over);
            if listening.ready.is_empty() && !listening.is_over && listening.news.changed().await.is_err() {
                return None;
            }
        }
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

/// Asks the model something short, and waits for the answer; whoever leaves takes the question back.
///
/// # Errors
/// Those of the job.
pub(in super::super) async fn short(
    app: &App,
    kind: &'static str,
    task: impl FnOnce(&Tracer, &Job, &Record) -> Answer<Value> + Send + 'static,
) -> Answer<Value> {
    let record = app.work.ask(kind, false, task)?;
    let _listener = Listener::alone(record.clone());
    let mut news = record.news();
    loop {
        if let Some(outcome) = record.take_outcome() {
            return outcome;
        }
        if news.changed().await.is_err() {
            return Err(Refusal::internal("the job has gone"));
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Tokenize {
    prompt: String,
}

pub(in super::super) async fn tokenize(State(app): State<Arc<App>>, Body(asked): Body<Tokenize>) -> Answer {
    away(move || {
        let tracer = app.work.tracer()?;
        let tokenizer = tracer.tokenizer();
        let tokens = tokenizer.encode_prompt(&asked.prompt)?;
        let limit = app.work.limits.positions.min(tracer.replacement().model.config.n_ctx);
        let shown: Vec<Value> = tokens
            .iter()
            .map(|&id| {
                let text = tokenizer.token(id);
                json!({"id": id, "shown": shown(&text), "text": text})
            })
            .collect();
        Ok(json_response(&json!({"prompt": asked.prompt, "n_pos": tokens.len(), "tokens": shown, "limit": limit})))
    })
    .await
}

/// A token with what is not seen made visible.
fn shown(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' => '⏎',
            '\t' => '⇥',
            ' ' => '·',
            c => c,
        })
        .collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct TopTokens {
    prompt: String,
    position: Option<usize>,
    k: Option<usize>,
}

pub(in super::super) async fn top_tokens(State(app): State<Arc<App>>, Body(asked): Body<TopTokens>) -> Answer {
    let k = asked.k.unwrap_or(10);
    if k == 0 || k > 100 {
        return Err(Refusal::bad_request(format!("`k` is {k}, expected 1 to 100")));
    }
    let limits = app.work.limits;
    let answer = short(&app, "top_tokens", move |tracer, job, _| {
        let prompt = tokenized(tracer, Prompt::from(&asked.prompt), &limits)?;
        let n_pos = prompt.tokens.len();
        let position = asked.position.unwrap_or(n_pos - 1);
        if position >= n_pos {
            return Err(crate::Error::NoSuchPosition { pos: position, n_pos }.into());
        }
        // What comes later changes nothing at a position.
        let original = Original::run(tracer.replacement(), &prompt.tokens[..=position], job)?;
        let tokens = likeliest(&original.logits, k);
        let tokens: Vec<Value> = tokens
            .into_iter()
            .map(|(id, logit, probability)| json!({"id": id, "text": tracer.tokenizer().token(id), "logit": logit, "probability": probability}))
            .collect();
        Ok(json!({"position": position, "tokens": tokens}))
    })
    .await?;
    Ok(json_response(&answer))
}

/// The likeliest tokens: id, logit and probability.
pub(in super::super) fn likeliest(logits: &[f32], k: usize) -> Vec<(u32, f32, f64)> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if k < order.len() {
        order.select_nth_unstable_by(k, by_logit);
        order.truncate(k);
    }
    order.sort_by(by_logit);
    let probability = |id: u32| f64::from(logits[id as usize] - largest).exp() / sum;
    order.into_iter().map(|id| (id, logits[id as usize], probability(id))).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct SaveGraph {
    slug: Option<String>,
}

/// Writes a graph that is in memory alone.
pub(in super::super) async fn save_graph(
    State(app): State<Arc<App>>,
    At(id): At<String>,
    Body(asked): Body<SaveGraph>,
) -> Answer {
    away(move || {
        let saved = app.save_in_memory(&id, asked.slug)?;
        let entry = app.library.list().into_iter().find(|entry| entry.id == saved);
        Ok(json_response(&entry))
    })
    .await
}
