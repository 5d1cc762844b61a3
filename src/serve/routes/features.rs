//! Dashboards of features, search among them, and one feature on a text.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::features::{
    FeatureId, FeatureSet, NEURONPEDIA, ReportPush, SearchBy, hosted_feature, pushes, report, report_weights,
    search as search_in,
};
use crate::job::Job;
use crate::tracer::Prompt;

use super::super::app::{App, away};
use super::super::extract::{Asked, At, Body};
use super::super::reply::{Answer, Refusal, json_response};
use super::super::requests::tokenized;
use super::super::work::ModelState;

/// Logits and neighbours of a dashboard.
const N_WEIGHTS: usize = 10;

/// Bytes of a text that one feature is looked for on.
const MAX_TEXT_BYTES: usize = 20_000;

/// How long another site may take.
const SITE_TIME: Duration = Duration::from_secs(15);

/// In words: what text, how much of it.
fn source(set: &FeatureSet) -> String {
    let manifest = set.manifest();
    let names: Vec<&str> = manifest.text.files.iter().map(|file| file.name.as_str()).collect();
    format!(
        "{} tokens of {}",
        set.tokens().len(),
        if names.is_empty() { "a text".to_owned() } else { names.join(", ") }
    )
}

pub(in super::super) async fn about(State(app): State<Arc<App>>) -> Answer {
    away(move || {
        let model = match app.work.model() {
            ModelState::None => None,
            _ => app.work.tracer().ok(),
        };
        let set = app.feature_set().ok();
        let n_features: Vec<usize> = match (&model, &set) {
            (Some(tracer), _) => {
                tracer.replacement().transcoders.layers.iter().map(|layer| layer.n_features()).collect()
            }
            (None, Some(set)) => (0..set.n_layers()).map(|layer| set.n_features(layer)).collect(),
            (None, None) => Vec::new(),
        };
        let scan = model.as_ref().map(|tracer| tracer.transcoder_name().to_owned());
        Ok(json_response(&json!({
            "available": set.is_some(),
            "n_layers": n_features.len(),
            "n_features": n_features,
            "scan": scan.unwrap_or_default(),
            "source": set.as_deref().map(source),
        })))
    })
    .await
}

#[derive(Deserialize)]
pub(in super::super) struct SearchAsked {
    q: String,
    #[serde(default)]
    by: By,
    limit: Option<usize>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum By {
    #[default]
    All,
    Label,
    Tokens,
}

pub(in super::super) async fn search(State(app): State<Arc<App>>, Asked(asked): Asked<SearchAsked>) -> Answer {
    away(move || {
        let set = app.feature_set()?;
        let by = SearchBy { label: asked.by != By::Tokens, tokens: asked.by != By::Label };
        let found = search_in(&set, &asked.q, by, asked.limit.unwrap_or(30).min(500))?;
        Ok(json_response(&json!({ "found": found })))
    })
    .await
}

#[derive(Deserialize)]
pub(in super::super) struct DashboardAsked {
    #[serde(default)]
    neighbors: bool,
}

pub(in super::super) async fn dashboard(
    State(app): State<Arc<App>>,
    At((layer, feature)): At<(usize, usize)>,
    Asked(asked): Asked<DashboardAsked>,
) -> Answer {
    away(move || {
        let id = FeatureId { layer, feature };
        let set = app.feature_set().ok();
        let has_model = !matches!(app.work.model(), ModelState::None | ModelState::Failed(_));
        if set.is_none() && !has_model {
            return app.feature_set().map(|_| json_response(&Value::Null));
        }
        let mut answer = match &set {
            Some(set) => json!(report(set, id)?),
            None => json!({"feature": id.to_string(), "label": null}),
        };
        // Features of another model than the one here are shown without what this one says.
        let weights = match (&set, has_model) {
            (Some(set), true) => app
                .aside(|tracer| Ok(report_weights(tracer.replacement(), set, id, N_WEIGHTS, asked.neighbors)?))
                .ok()
                .map(|weights| json!(weights)),
            (None, true) => Some(app.aside(|tracer| {
                let replacement = tracer.replacement();
                replacement.transcoders.check_feature(layer, feature)?;
                let pushed = pushes(replacement, layer, &[feature], N_WEIGHTS)?.pop().unwrap_or_default();
                let named = |list: &[crate::features::Push]| -> Vec<ReportPush> {
                    list.iter()
                        .map(|p| ReportPush { token: p.token, text: tracer.tokenizer().token(p.token), value: p.value })
                        .collect()
                };
                Ok(json!({"top": named(&pushed.top), "bottom": named(&pushed.bottom)}))
            })?),
            (_, false) => None,
        };
        if set.is_none() {
            answer["label"] =
                json!(app.work.tracer()?.replacement().transcoders.labels.get(layer as u32, feature as u32));
        }
        let (count, n_positions) = (answer["count"].as_f64(), answer["n_positions"].as_f64());
        answer["frequency"] = json!(count.zip(n_positions).map(|(count, n)| count / n.max(1.0)));
        answer["layer"] = json!(layer);
        answer["index"] = json!(feature);
        answer["available"] = json!(set.is_some());
        answer["weights"] = json!(weights);
        answer["source"] = json!(set.as_deref().map(source));
        let scan = match app.work.model() {
            ModelState::Open(tracer) => Some(tracer.transcoder_name().to_owned()),
            _ => None,
        };
        answer["neuronpedia"] = json!(scan.and_then(|scan| published(&scan, layer)).map(|(source, warning)| {
            json!({"url": format!("{NEURONPEDIA}/{source}/{feature}"), "warning": warning, "online": app.published_site.is_some()})
        }));
        Ok(json_response(&answer))
    })
    .await
}

/// What Neuronpedia's site knows of a feature, asked now.
pub(in super::super) async fn on_site(State(app): State<Arc<App>>, At((layer, feature)): At<(usize, usize)>) -> Answer {
    away(move || {
        let Some(site) = &app.published_site else {
            return Err(Refusal::not_found("this server asks no other site").hint("start it with --online"));
        };
        let tracer = app.work.tracer()?;
        tracer.replacement().transcoders.check_feature(layer, feature)?;
        let scan = tracer.transcoder_name();
        let Some((source, _)) = published(scan, layer) else {
            return Err(Refusal::not_found(format!(
                "{scan} is no set that Neuronpedia shows, as far as is known here"
            )));
        };
        Ok(json_response(&hosted_feature(site, &source, FeatureId { layer, feature }, SITE_TIME)?))
    })
    .await
}

/// The source on Neuronpedia that shows a layer of a published set, and what there is to know of it.
fn published(scan: &str, layer: usize) -> Option<(String, Option<&'static str>)> {
    const WRONG: &str =
        "the examples there were made from another input than these transcoders read; compare before you believe them";
    Some(match scan {
        "gemma" | "mntss/gemma-scope-transcoders" | "mwhanna/gemma-scope-transcoders" => {
            (format!("gemma-2-2b/{layer}-gemmascope-transcoder-16k"), Some(WRONG))
        }
        "mntss/clt-gemma-2-2b-2.5M" => (format!("gemma-2-2b/{layer}-clt-hp"), None),
        "mwhanna/qwen3-4b-transcoders" => (format!("qwen3-4b/{layer}-transcoder-hp"), None),
        "mwhanna/gemma-scope-2-4b-it//transcoder_all/width_262k_l0_small_affine" => {
            (format!("gemma-3-4b-it/{layer}-gemmascope-2-transcoder-262k"), None)
        }
        _ => return None,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct TextAsked {
    text: String,
}

pub(in super::super) async fn on_text(
    State(app): State<Arc<App>>,
    At((layer, feature)): At<(usize, usize)>,
    Body(asked): Body<TextAsked>,
) -> Answer {
    away(move || {
        if asked.text.len() > MAX_TEXT_BYTES {
            return Err(Refusal::too_large(format!(
                "the text has {} bytes, at most {MAX_TEXT_BYTES}",
                asked.text.len()
            )));
        }
        let limits = app.work.limits;
        let max = app.feature_set().ok().and_then(|set| set.count_and_max(layer, feature).ok()).map(|(_, max)| max);
        app.aside(|tracer| {
            tracer.replacement().transcoders.check_feature(layer, feature)?;
            let prompt = tokenized(tracer, Prompt::from(&asked.text), &limits)?;
            let tokens: Vec<String> = prompt.tokens.iter().map(|&token| tracer.tokenizer().token(token)).collect();
            let mut activations = vec![0f32; tokens.len()];
            for (id, value) in tracer.active_features(prompt, &Job::default())? {
                if (id.layer as usize, id.feature as usize) == (layer, feature) {
                    activations[id.pos as usize] = value;
                }
            }
            Ok(json_response(&json!({"tokens": tokens, "activations": activations, "max": max})))
        })
    })
    .await
}
