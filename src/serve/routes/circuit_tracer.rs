//! The dialect of circuit-tracer's local server, which its page speaks: the list of graphs, graphs, examples of features
//! (as files of chunks that are made as they are asked for), and saving.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::export::WireGraph;
use crate::features::{
    Dashboard, FeatureId, FeatureReport, FeatureSet, N_INTERVALS, ReportExample, report, report_weights,
};

use super::super::app::{App, away};
use super::super::assets::gzip;
use super::super::extract::{At, Body};
use super::super::json_span::member;
use super::super::library::Entry;
use super::super::reply::{Answer, Refusal, bytes_response, json_response};
use super::super::view::{View, from_cantor};
use super::super::work::ModelState;

/// Larger graphs are more than that page can show.
const MAX_GRAPH_BYTES: u64 = 512 << 20;

/// Where chunks begin in the files of examples. No such file is there: a chunk is made when its place is asked for, and all
/// places are as far apart as no chunk is long.
const SLOT: u64 = 1 << 20;

/// Counts of a histogram, and shares of its quantiles.
const N_BINS: usize = 100;

/// Logits of a feature.
const N_LOGITS: usize = 10;

pub(super) fn router() -> Router<Arc<App>> {
    Router::new()
        .route("/data/{file}", get(data))
        .route("/graph_data/{file}", get(data))
        .route("/features/{*rest}", get(features))
        .route("/dashboards/{file}", get(one))
        .route("/save_graph/{slug}", post(save))
}

async fn data(State(app): State<Arc<App>>, At(file): At<String>) -> Answer {
    away(move || {
        if file == "graph-metadata.json" {
            return Ok(list(&app));
        }
        let id = file.strip_suffix(".json").ok_or_else(|| Refusal::not_found("there is nothing at this address"))?;
        graph(&app, id)
    })
    .await
}

fn list(app: &App) -> Response {
    let _ = app.wait_for_demo();
    let entry = |entry: Entry| -> Value {
        json!({"slug": entry.id, "scan": scan_of(app, entry.scan.as_deref()), "transcoder_list": [],
            "prompt_tokens": entry.prompt_tokens, "prompt": entry.prompt, "title_prefix": entry.title, "schema_version": 1})
    };
    json_response(&json!({"graphs": app.library.list().into_iter().map(entry).collect::<Vec<_>>()}))
}

/// Where that page looks for examples: here, if there are any. Of all names a set can have, a path from the page on is what
/// every version of that page takes for one (0.5.0 asks huggingface.co about `/features`); paths that begin with
/// `./features/` it sends to a server of its own.
const LOCAL_SCAN: &str = "./dashboards";

fn scan_of(app: &App, scan: Option<&str>) -> String {
    if app.has_features() { LOCAL_SCAN.to_owned() } else { scan.unwrap_or_default().to_owned() }
}

fn graph(app: &App, id: &str) -> Answer {
    let q_params = app.saving.read(&app.library, id)?;
    let file = app.library.files_of(id).and_then(|files| files.json);
    let Some(file) = file else {
        let whole = app.graph(id)?;
        let cut = whole.cut(whole.thresholds(None, None)?)?;
        let mut wire = WireGraph::new(&*cut.circuit(&whole)?, id)?;
        wire.metadata.scan = Some(json!(scan_of(app, wire.metadata.scan.as_ref().and_then(Value::as_str))));
        wire.q_params = q_params;
        return Ok(json_response(&wire));
    };
    let failed = |source| crate::Error::Io { doing: "cannot read", path: file.clone(), source };
    if file.metadata().map_err(failed)?.len() > MAX_GRAPH_BYTES {
        return Err(Refusal::too_large(format!("the JSON of {id:?} is larger than {} MB", MAX_GRAPH_BYTES >> 20)));
    }
    let text = std::fs::read(&file).map_err(failed)?;
    Ok(bytes_response("application/json", with_own(&text, &scan_of(app, scan_in(&text).as_deref()), &q_params)))
}

fn scan_in(text: &[u8]) -> Option<String> {
    let metadata = &text[member(text, "metadata")?];
    serde_json::from_slice(&metadata[member(metadata, "scan")?]).ok()
}

/// A graph's text with another `scan` and other `qParams`, as far as it has them.
fn with_own(text: &[u8], scan: &str, q_params: &Map<String, Value>) -> Vec<u8> {
    let mut parts: Vec<(std::ops::Range<usize>, Vec<u8>)> = Vec::new();
    if let Some(metadata) = member(text, "metadata")
        && let Some(span) = member(&text[metadata.clone()], "scan")
    {
        parts.push((metadata.start + span.start..metadata.start + span.end, json!(scan).to_string().into_bytes()));
    }
    if let Some(span) = member(text, "qParams") {
        parts.push((span, Value::Object(q_params.clone()).to_string().into_bytes()));
    }
    parts.sort_by_key(|(span, _)| span.start);
    let (mut out, mut at) = (Vec::with_capacity(text.len()), 0);
    for (span, own) in parts {
        out.extend_from_slice(&text[at..span.start]);
        out.extend(own);
        at = span.end;
    }
    out.extend_from_slice(&text[at..]);
    out
}

#[derive(Deserialize)]
struct Saved {
    #[serde(rename = "qParams")]
    q_params: Map<String, Value>,
}

async fn save(State(app): State<Arc<App>>, At(slug): At<String>, Body(saved): Body<Saved>) -> Answer {
    away(move || {
        let stored = app.saving.save(&app.library, &slug, None, |before| {
            // What that page does not know of stays.
            let mut all = before.clone();
            all.extend(saved.q_params);
            View::of_q_params(&all).to_q_params(&all)
        })?;
        stored.map(|_| StatusCode::OK.into_response()).map_err(|_| Refusal::internal("nothing was compared"))
    })
    .await
}

async fn features(State(app): State<Arc<App>>, At(rest): At<String>, uri: Uri, headers: HeaderMap) -> Answer {
    away(move || {
        let layer_of = |name: &str| name.strip_prefix("layer_")?.strip_suffix(".bin")?.parse::<usize>().ok();
        if rest == "index.json.gz" {
            return index(&*app.feature_set()?);
        }
        if let Some(layer) = layer_of(&rest) {
            return chunk(&app, layer, headers.get(header::RANGE));
        }
        match rest.rsplit_once('/').and_then(|(_, file)| cantor_of(file)) {
            Some(number) => numbered(&app, number),
            None => app.assets.get(uri.path(), &headers),
        }
    })
    .await
}

async fn one(State(app): State<Arc<App>>, At(file): At<String>) -> Answer {
    away(move || {
        let number = cantor_of(&file).ok_or_else(|| Refusal::not_found("there is nothing at this address"))?;
        numbered(&app, number)
    })
    .await
}

/// The number in the name of a feature's file.
fn cantor_of(file: &str) -> Option<u64> {
    file.strip_suffix(".json")?.parse().ok()
}

/// The feature with this Cantor number.
fn numbered(app: &App, number: u64) -> Answer {
    let not_found = || Refusal::not_found(format!("{number} is no feature"));
    let (layer, feature) = from_cantor(number).ok_or_else(not_found)?;
    let set = app.feature_set()?;
    let id = FeatureId { layer: layer as usize, feature: feature as usize };
    Ok(json_response(&examples(app, &set, id)?))
}

fn zipped(bytes: &[u8]) -> Answer<Bytes> {
    gzip(bytes)
        .ok_or_else(|| Refusal::new(StatusCode::NOT_IMPLEMENTED, "no_gzip", "this program is built without gzip"))
}

/// Where the chunk of every feature begins.
fn index(set: &FeatureSet) -> Answer {
    let mut index = Map::new();
    index.insert("version".to_owned(), json!("1.0"));
    index.insert("format".to_owned(), json!("variable_chunks"));
    for layer in 0..set.n_layers() {
        let offsets: Vec<u64> = (0..=set.n_features(layer) as u64).map(|feature| feature * SLOT).collect();
        index.insert(layer.to_string(), json!({"filename": format!("layer_{layer}.bin"), "offsets": offsets}));
    }
    let text = Value::Object(index).to_string();
    Ok(bytes_response("application/octet-stream", zipped(text.as_bytes())?))
}

/// The chunk that a range of bytes begins in.
fn chunk(app: &App, layer: usize, range: Option<&HeaderValue>) -> Answer {
    let set = app.feature_set()?;
    if layer >= set.n_layers() {
        return Err(Refusal::not_found(format!("there is no layer {layer}")));
    }
    let total = set.n_features(layer) as u64 * SLOT;
    let unsatisfiable = || {
        let mut response =
            Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, "range", format!("expected bytes=A-B below {total}"))
                .into_response();
        if let Ok(value) = HeaderValue::from_str(&format!("bytes */{total}")) {
            response.headers_mut().insert(header::CONTENT_RANGE, value);
        }
        response
    };
    let range = range.and_then(|range| range.to_str().ok()?.strip_prefix("bytes=")?.split_once('-'));
    let Some((start, end)) = range.and_then(|(start, end)| {
        let start: u64 = start.parse().ok()?;
        let end = if end.is_empty() { total.saturating_sub(1) } else { end.parse::<u64>().ok()? };
        (start < total && start <= end).then_some((start, end.min(total - 1)))
    }) else {
        return Ok(unsatisfiable());
    };
    let (feature, skipped) = (start / SLOT, start % SLOT);
    let json = serde_json::to_vec(&examples(app, &set, FeatureId { layer, feature: feature as usize })?)
        .map_err(|error| Refusal::internal(error.to_string()))?;
    let body = zipped(&json)?;
    let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
    bytes.extend_from_slice(&body);
    // Between the chunk and the next one there is nothing; as much is given as there is, or one byte of nothing.
    let wanted = usize::try_from(end - start).unwrap_or(usize::MAX).saturating_add(1);
    let mut given: Vec<u8> = bytes.into_iter().skip(skipped as usize).take(wanted).collect();
    if given.is_empty() {
        given.push(0);
    }
    let content_range = format!("bytes {start}-{}/{total}", start + given.len() as u64 - 1);
    let mut response = bytes_response("application/octet-stream", given);
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    if let Ok(value) = HeaderValue::from_str(&content_range) {
        response.headers_mut().insert(header::CONTENT_RANGE, value);
    }
    Ok(response)
}

/// A feature as that page reads it.
fn examples(app: &App, set: &FeatureSet, id: FeatureId) -> Answer<Value> {
    let (report, dashboard) = (report(set, id)?, set.dashboard(id.layer, id.feature)?);
    let (top, bottom) = match app.work.model() {
        ModelState::Open(_) => {
            let weights = app.aside(|tracer| Ok(report_weights(tracer.replacement(), set, id, N_LOGITS, false)?)).ok();
            let texts =
                |list: Vec<crate::features::ReportPush>| list.into_iter().map(|push| push.text).collect::<Vec<_>>();
            weights.map_or_else(Default::default, |weights| (texts(weights.top), texts(weights.bottom)))
        }
        _ => Default::default(),
    };
    let example = |example: &ReportExample| json!({"tokens": example.tokens, "tokens_acts_list": example.activations, "train_token_ind": example.at, "is_repeated_datapoint": false});
    let mut groups = vec![(
        "Top activations".to_owned(),
        report.examples.iter().filter(|e| e.is_top).map(example).collect::<Vec<_>>(),
    )];
    for interval in (1..=N_INTERVALS).rev() {
        let of = report.examples.iter().filter(|e| e.interval == Some(interval)).map(example);
        groups.push((format!("Subsample interval {interval}"), of.collect()));
    }
    let groups: Vec<Value> = groups
        .into_iter()
        .filter(|(_, examples)| !examples.is_empty())
        .map(|(name, examples)| json!({"quantile_name": name, "examples": examples}))
        .collect();
    Ok(json!({
        "transcoder_id": set.manifest().subject.scan,
        "index": id.feature,
        "examples_quantiles": groups,
        "top_logits": top,
        "bottom_logits": bottom,
        "act_min": report.min,
        "act_max": report.max,
        "quantile_values": quantiles(&dashboard, report.count),
        "histogram": histogram(&report),
        "activation_frequency": f64::from(report.count) / report.n_positions.max(1) as f64,
    }))
}

fn quantiles(dashboard: &Dashboard, count: u32) -> Vec<f32> {
    if count == 0 { Vec::new() } else { (0..=N_BINS).map(|at| dashboard.quantile(at as f64 / N_BINS as f64)).collect() }
}

/// Counts in bins of equal width from 0 to the largest activation; a bin of ours counts where its middle is.
fn histogram(report: &FeatureReport) -> Vec<u32> {
    let mut counts = vec![0u32; N_BINS];
    for bin in &report.histogram {
        let middle = 0.5 * (bin.start + bin.end.min(report.max));
        let at = if report.max > 0.0 { (middle / report.max * N_BINS as f32) as usize } else { 0 };
        counts[at.min(N_BINS - 1)] += bin.count;
    }
    counts
}
