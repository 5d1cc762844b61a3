//! The saved view of a graph, read and saved.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Map, Value, json};

use super::super::app::{App, away};
use super::super::extract::{At, Body};
use super::super::reply::{Answer, Refusal, json_response, tagged};
use super::super::view::{View, etag_of};

pub(in super::super) async fn read(State(app): State<Arc<App>>, At(id): At<String>, headers: HeaderMap) -> Answer {
    away(move || {
        let q_params = app.saving.read(&app.library, &id)?;
        tagged(&etag_of(&q_params), headers.get(header::IF_NONE_MATCH), || {
            Ok(json_response(&View::of_q_params(&q_params)))
        })
    })
    .await
}

pub(in super::super) async fn save(
    State(app): State<Arc<App>>,
    At(id): At<String>,
    headers: HeaderMap,
    Body(view): Body<Map<String, Value>>,
) -> Answer {
    away(move || {
        // A list would do for a structure, too.
        let view: View = serde_json::from_value(Value::Object(view))
            .map_err(|error| Refusal::bad_request(format!("the view cannot be understood: {error}")))?;
        view.check()?;
        let known = headers.get(header::IF_MATCH).and_then(|value| value.to_str().ok());
        let known = known.ok_or_else(|| {
            let status = StatusCode::PRECONDITION_REQUIRED;
            Refusal::new(status, "if_match", "If-Match is missing: the ETag that the view was read with")
        })?;
        match app.saving.save(&app.library, &id, Some(known), |before| view.to_q_params(before))? {
            Ok(q_params) => answer(StatusCode::OK, &q_params, json!(View::of_q_params(&q_params))),
            Err(q_params) => {
                let refusal = Refusal::new(StatusCode::PRECONDITION_FAILED, "changed", "somebody else has saved since")
                    .hint("take what is there, or save again with its ETag");
                let mut body = refusal.to_json();
                body["view"] = json!(View::of_q_params(&q_params));
                answer(StatusCode::PRECONDITION_FAILED, &q_params, body)
            }
        }
    })
    .await
}

fn answer(status: StatusCode, q_params: &Map<String, Value>, body: Value) -> Answer {
    let mut response = (status, json_response(&body)).into_response();
    if let Ok(etag) = HeaderValue::from_str(&etag_of(q_params)) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    Ok(response)
}
