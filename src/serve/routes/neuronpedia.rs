//! The dialect of Neuronpedia's graph server: its five calls, its key header, its errors.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::attribution::{AttributionOptions, RowChoice};
use crate::export::WireGraph;
use crate::intervene::{Change, FeatureSpec, GenerateOptions, Intervention, Mode, Original, Positions};
use crate::job::Job;
use crate::prune::PruneSettings;
use crate::tracer::{Prompt, TokenizedPrompt, Tracer};

use super::super::app::{App, away};
use super::super::extract::json_bytes;
use super::super::guard::same;
use super::super::reply::{Answer, Refusal, json_response};
use super::jobs::{likeliest, short};

/// Bounds that the other server does not have.
const MAX_FEATURES: usize = 1000;
const MAX_TOP_K: usize = 100;

pub(super) fn router() -> Router<Arc<App>> {
    Router::new()
        .route("/check-busy", get(check_busy))
        .route("/parse-chat-prompt", post(parse_chat_prompt))
        .route("/forward-pass", post(forward_pass))
        .route("/generate-graph", post(generate_graph))
        .route("/steer", post(steer))
}

/// An answer of this dialect, or what takes its place.
type Told<T = Response> = Result<T, Refused>;

/// What takes the place of an answer.
struct Refused(Box<Response>);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        *self.0
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self(Box::new(refusal.into_response()))
    }
}

fn told(status: StatusCode, body: &Value) -> Refused {
    Refused(Box::new((status, json_response(body)).into_response()))
}

fn detail(status: StatusCode, text: impl Into<String>) -> Refused {
    told(status, &json!({ "detail": text.into() }))
}

fn broken(text: impl Into<String>) -> Refused {
    told(StatusCode::BAD_REQUEST, &json!({ "error": text.into() }))
}

/// The key, then the body: in the order in which that server looks at them.
async fn asked<T: DeserializeOwned>(app: &App, request: Request, required: &[&str]) -> Told<T> {
    check_key(app, request.headers())?;
    let bytes = json_bytes(request).await?;
    let unprocessable = |kind: &str, place: Value, message: String| {
        told(StatusCode::UNPROCESSABLE_ENTITY, &json!({"detail": [{"type": kind, "loc": place, "msg": message}]}))
    };
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| {
        unprocessable("json_invalid", json!(["body", error.column()]), format!("JSON decode error: {error}"))
    })?;
    let missing: Vec<Value> = required
        .iter()
        .filter(|&&name| value.get(name).is_none())
        .map(|name| json!({"type": "missing", "loc": ["body", name], "msg": "Field required"}))
        .collect();
    if !missing.is_empty() {
        return Err(told(StatusCode::UNPROCESSABLE_ENTITY, &json!({ "detail": missing })));
    }
    serde_json::from_value(value).map_err(|error| unprocessable("value_error", json!(["body"]), error.to_string()))
}

fn check_key(app: &App, headers: &HeaderMap) -> Told<()> {
    let Some(secret) = &app.access.secret else { return Ok(()) };
    match headers.get("x-secret-key").map(|value| value.as_bytes()).filter(|given| !given.is_empty()) {
        None => Err(detail(StatusCode::BAD_REQUEST, "x-secret-key header missing")),
        Some(given) if same(given, secret.as_bytes()) => Ok(()),
        Some(_) => Err(detail(StatusCode::FORBIDDEN, "Invalid x-secret-key")),
    }
}

/// That server does one thing at a time, and says so.
fn check_free(app: &App) -> Told<()> {
    match app.work.counts() {
        (0, 0) => Ok(()),
        _ => Err(told(StatusCode::SERVICE_UNAVAILABLE, &json!({"error": "Server busy, please try again later."}))),
    }
}

async fn tracer(app: &Arc<App>) -> Told<Arc<Tracer>> {
    let own = app.clone();
    Ok(away(move || own.work.tracer()).await?)
}

fn check_model(tracer: &Tracer, model_id: &str) -> Told<()> {
    let name = tracer.model_name();
    if model_id == name {
        return Ok(());
    }
    Err(detail(
        StatusCode::BAD_REQUEST,
        format!("Model '{model_id}' is not available. Only '{name}' is currently loaded."),
    ))
}

#[derive(Deserialize)]
struct Message {
    #[serde(rename = "role")]
    _role: String,
    #[serde(rename = "content")]
    _content: String,
}

/// The prompt without the token that begins it, which is added anyway.
fn prompt_text(tracer: &Tracer, prompt: &str, messages: &Option<Vec<Message>>) -> Result<String, String> {
    if messages.as_ref().is_some_and(|messages| !messages.is_empty()) {
        return Err("chat templates are not known to this server: send `prompt`".to_owned());
    }
    let start = tracer.tokenizer().bos().map(|bos| tracer.tokenizer().token(bos)).filter(|text| !text.is_empty());
    Ok(start.and_then(|start| prompt.strip_prefix(start.as_str())).unwrap_or(prompt).to_owned())
}

async fn check_busy(State(app): State<Arc<App>>) -> Response {
    json_response(&json!({"busy": app.work.counts() != (0, 0)}))
}

#[derive(Deserialize)]
struct ChatPrompt {
    prompt: String,
}

async fn parse_chat_prompt(State(app): State<Arc<App>>, request: Request) -> Told {
    let body: ChatPrompt = asked(&app, request, &["prompt"]).await?;
    let tracer = tracer(&app).await?;
    let prompt = prompt_text(&tracer, &body.prompt, &None).map_err(broken)?;
    let tokens = tracer.tokenizer().encode_prompt(&prompt).unwrap_or_default();
    let unsteerable: Vec<usize> = (0..tracer.replacement().n_excluded(&tokens)).collect();
    Ok(json_response(
        &json!({"messages": null, "is_chat": false, "prompt": prompt, "unsteerable_positions": unsteerable}),
    ))
}

#[derive(Deserialize)]
struct ForwardPass {
    #[serde(default)]
    prompt: String,
    messages: Option<Vec<Message>>,
    #[serde(default = "ten")]
    max_n_logits: usize,
    #[serde(default = "most")]
    desired_logit_prob: f64,
}

fn ten() -> usize {
    10
}

fn most() -> f64 {
    0.95
}

async fn forward_pass(State(app): State<Arc<App>>, request: Request) -> Told {
    let body: ForwardPass = asked(&app, request, &[]).await?;
    check_free(&app)?;
    let limit = app.work.limits.positions;
    let answer = short(&app, "forward_pass", move |tracer, job, _| {
        let text = prompt_text(tracer, &body.prompt, &body.messages).map_err(Refusal::bad_request)?;
        let prompt = tracer.tokenize(text.clone())?;
        if prompt.tokens.len() > limit {
            return Err(Refusal::too_large(format!("Prompt exceeds token limit ({} > {limit})", prompt.tokens.len())));
        }
        let original = Original::run(tracer.replacement(), &prompt.tokens, job)?;
        let (mut salient, mut sum) = (Vec::new(), 0.0);
        for (id, _, probability) in likeliest(&original.logits, body.max_n_logits) {
            if sum >= body.desired_logit_prob {
                break;
            }
            sum += probability;
            salient.push(json!({"token": tracer.tokenizer().token(id), "token_id": id, "probability": probability}));
        }
        let tokens: Vec<String> = prompt.tokens.iter().map(|&token| tracer.tokenizer().token(token)).collect();
        Ok(json!({"prompt": text, "input_tokens": tokens, "total_salient_tokens": salient.len(), "salient_logits": salient, "cumulative_probability": sum}))
    })
    .await;
    // A pass that fails is an answer as well.
    Ok(match answer {
        Ok(answer) => json_response(&answer),
        Err(refusal) => json_response(&json!({"error": format!("Forward pass failed: {}", refusal.message)})),
    })
}

#[derive(Deserialize)]
struct GenerateGraph {
    model_id: String,
    slug_identifier: String,
    #[serde(default)]
    prompt: String,
    messages: Option<Vec<Message>>,
    #[serde(default = "batch")]
    batch_size: usize,
    #[serde(default = "ten")]
    max_n_logits: usize,
    #[serde(default = "most")]
    desired_logit_prob: f64,
    #[serde(default = "nodes")]
    node_threshold: f64,
    #[serde(default = "edges")]
    edge_threshold: f64,
    #[serde(default = "features")]
    max_feature_nodes: usize,
    signed_url: Option<String>,
    user_id: Option<String>,
}

fn batch() -> usize {
    48
}

fn nodes() -> f64 {
    0.8
}

fn edges() -> f64 {
    0.98
}

fn features() -> usize {
    10_000
}

async fn generate_graph(State(app): State<Arc<App>>, request: Request) -> Told {
    let body: GenerateGraph = asked(&app, request, &["model_id", "slug_identifier"]).await?;
    check_free(&app)?;
    let tracer = tracer(&app).await?;
    check_model(&tracer, &body.model_id)?;
    if body.signed_url.is_some() {
        return Err(broken("signed_url is not supported: this server sends graphs to nobody but its caller"));
    }
    let settings = PruneSettings {
        node_threshold: body.node_threshold,
        edge_threshold: body.edge_threshold,
        ..Default::default()
    };
    settings.check().map_err(|error| broken(error.to_string()))?;
    let options = AttributionOptions {
        max_logits: body.max_n_logits,
        logit_prob: body.desired_logit_prob,
        rows: RowChoice::BestFirst { max_features: body.max_feature_nodes.min(app.work.limits.rows) },
        batch_size: body.batch_size,
        ..AttributionOptions::default()
    };
    options.check().map_err(|error| broken(error.to_string()))?;
    let text = prompt_text(&tracer, &body.prompt, &body.messages).map_err(broken)?;
    let prompt = tracer.tokenize(text).map_err(|error| broken(error.to_string()))?;
    let (n_pos, limit) = (prompt.tokens.len(), app.work.limits.positions);
    if n_pos > limit {
        return Err(detail(StatusCode::BAD_REQUEST, format!("Prompt exceeds token limit ({n_pos} > {limit})")));
    }
    let (slug, user) = (body.slug_identifier, body.user_id);
    let answer = short(&app, "generate_graph", move |tracer, job, _| {
        let traced = tracer.trace_with(prompt, &options, job)?;
        let mut wire = WireGraph::new(&traced.prune(&settings)?, &slug)?;
        if let (Some(user), Some(Value::Object(info))) = (user, wire.metadata.extra.get_mut("info")) {
            info.insert("creator_name".to_owned(), json!(user));
        }
        serde_json::to_value(&wire).map_err(|error| Refusal::internal(error.to_string()))
    })
    .await;
    answer.map(|graph| json_response(&graph)).map_err(failed)
}

/// What has gone wrong is not told to callers from elsewhere.
fn failed(refusal: Refusal) -> Refused {
    match refusal.status {
        StatusCode::SERVICE_UNAVAILABLE => {
            told(refusal.status, &json!({"error": "Server busy, please try again later."}))
        }
        status if status.is_client_error() => broken(refusal.message),
        _ => detail(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error during graph generation"),
    }
}

#[derive(Deserialize)]
struct SteerFeature {
    layer: usize,
    index: usize,
    token_active_position: usize,
    steer_position: Option<i64>,
    #[serde(default)]
    steer_generated_tokens: bool,
    delta: Option<f32>,
    #[serde(default)]
    ablate: bool,
}

#[derive(Deserialize)]
struct Steer {
    model_id: String,
    #[serde(default)]
    prompt: String,
    messages: Option<Vec<Message>>,
    features: Vec<SteerFeature>,
    #[serde(default = "ten")]
    n_tokens: usize,
    #[serde(default = "five")]
    top_k: usize,
    #[serde(default)]
    temperature: f64,
    #[serde(default)]
    freq_penalty: f64,
    seed: Option<u64>,
    #[serde(default)]
    freeze_attention: bool,
}

fn five() -> usize {
    5
}

async fn steer(State(app): State<Arc<App>>, request: Request) -> Told {
    let body: Steer = asked(&app, request, &["model_id", "features"]).await?;
    check_free(&app)?;
    let tracer = tracer(&app).await?;
    check_model(&tracer, &body.model_id)?;
    let text = prompt_text(&tracer, &body.prompt, &body.messages).map_err(broken)?;
    let prompt = tracer.tokenize(Prompt::from(text)).map_err(|error| broken(error.to_string()))?;
    let limits = app.work.limits;
    if prompt.tokens.len() > limits.positions {
        return Err(broken(format!("Prompt exceeds token limit ({} > {})", prompt.tokens.len(), limits.positions)));
    }
    for feature in &body.features {
        check_feature(&tracer, feature, prompt.tokens.len()).map_err(broken)?;
    }
    if body.n_tokens == 0
        || body.n_tokens > limits.tokens
        || body.top_k > MAX_TOP_K
        || body.features.len() > MAX_FEATURES
    {
        let message = format!(
            "n_tokens may be 1 to {}, top_k at most {MAX_TOP_K}, features at most {MAX_FEATURES}",
            limits.tokens
        );
        return Err(broken(message));
    }
    // Without a temperature there is nothing that a penalty would change; that server ignores it then, too.
    if body.freq_penalty > 0.0 && body.temperature > 0.0 {
        return Err(broken("freq_penalty is not supported by this server"));
    }
    let answer = short(&app, "steer", move |tracer, job, _| steered(tracer, &prompt, &body, job)).await;
    answer.map(|answer| json_response(&answer)).map_err(failed)
}

fn check_feature(tracer: &Tracer, feature: &SteerFeature, n_pos: usize) -> Result<(), String> {
    let rule = match (feature.ablate, feature.delta, feature.steer_generated_tokens, feature.steer_position) {
        (true, Some(_), ..) => Some("When ablate is True, delta must be None"),
        (false, None, ..) => Some("When ablate is False, delta must be provided"),
        (_, _, true, Some(_)) => Some("When steer_generated_tokens is True, position must be None"),
        (_, _, false, None) => Some("When steer_generated_tokens is False, position must be provided"),
        (_, _, _, Some(pos)) if pos < 0 || pos as u64 >= n_pos as u64 => Some("Position is out of bounds"),
        _ if feature.delta.is_some_and(|delta| !delta.is_finite()) => Some("delta is outside the range of f32"),
        _ => None,
    };
    match rule {
        Some(rule) => Err(rule.to_owned()),
        None => tracer
            .replacement()
            .transcoders
            .check_feature(feature.layer, feature.index)
            .map_err(|error| error.to_string()),
    }
}

/// Both continuations, and what was likely at each of their tokens.
fn steered(tracer: &Tracer, prompt: &TokenizedPrompt, body: &Steer, job: &Job) -> Answer<Value> {
    let replacement = tracer.replacement();
    let n_pos = prompt.tokens.len();
    let original = Original::run(replacement, &prompt.tokens, job)?;
    let activation = |layer: usize, pos: usize, feature: usize| {
        let found = original.features.all.iter().find(|f| (f.layer, f.pos, f.feature) == (layer, pos, feature));
        found.map_or(0.0, |feature| feature.value)
    };
    let unsteerable = replacement.n_excluded(&prompt.tokens) as i64;
    let interventions: Vec<Intervention> = body
        .features
        .iter()
        .filter(|feature| feature.steer_position.is_none_or(|pos| pos >= unsteerable))
        .map(|f| {
            let positions = match f.steer_position {
                Some(pos) => Positions::At(pos as usize),
                None => Positions::From(n_pos),
            };
            let value = f.delta.map_or(0.0, |delta| activation(f.layer, f.token_active_position, f.index) + delta);
            FeatureSpec { layer: f.layer, feature: f.index, positions }.changed(Change::Set(value))
        })
        .collect();
    let mode = if body.freeze_attention { Mode::FrozenAttention } else { Mode::Free };
    // One token more than is told: the last one that is told has its likeliest followers too.
    let options = GenerateOptions {
        n_tokens: body.n_tokens + 1,
        temperature: Some(body.temperature).filter(|&temperature| temperature > 0.0),
        seed: body.seed.unwrap_or_default(),
        ..GenerateOptions::default()
    };
    let continued = |interventions: &[Intervention], mode: &Mode| -> Answer<(String, Vec<Value>)> {
        let mut steps: Vec<Vec<Value>> = Vec::new();
        let mut new = original.generate_with(interventions, mode, &options, job, &mut |_, logits| {
            let top = likeliest(logits, body.top_k);
            let top = top.into_iter().map(|(id, _, prob)| json!({"token": tracer.tokenizer().token(id), "prob": prob}));
            steps.push(top.collect());
        })?;
        new.truncate(body.n_tokens);
        let tokens: Vec<String> =
            prompt.tokens.iter().chain(&new).map(|&token| tracer.tokenizer().token(token)).collect();
        // What was likely after the last token of the prompt is the first step.
        let top_at =
            |at: usize| (at + 1).checked_sub(n_pos).and_then(|step| steps.get(step)).cloned().unwrap_or_default();
        let by_token = tokens.iter().enumerate().map(|(at, token)| json!({"token": token, "top_logits": top_at(at)}));
        let by_token = by_token.collect();
        Ok((tokens.concat(), by_token))
    };
    let (default, default_by_token) = continued(&[], &Mode::Free)?;
    let (steered, steered_by_token) = continued(&interventions, &mode)?;
    Ok(json!({
        "DEFAULT_GENERATION": default,
        "STEERED_GENERATION": steered,
        "DEFAULT_LOGITS_BY_TOKEN": default_by_token,
        "STEERED_LOGITS_BY_TOKEN": steered_by_token,
    }))
}
