//! One line of a file of prompts: what is asked for, and the request that it becomes.

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::attribution::{AttributionOptions, Count, OpenChoice, RowRequest, TargetRequest, Versus};
use crate::error::ErrorContext;
use crate::graph::FeatureId;
use crate::intervene::{FeatureSpec, Positions};
use crate::prune::PruneSettings;
use crate::tracer::{Prompt, TokenizedPrompt, Tracer, directions};
use crate::{Error, Result};

/// How prompts are traced where their lines say nothing else.
#[derive(Clone, Debug, Default)]
pub struct TraceSettings {
    /// Which targets, rows and sizes.
    pub options: AttributionOptions,
    /// Which nodes and edges the JSON graph has.
    pub pruning: PruneSettings,
    /// Whether it is found out through which heads the edges of the JSON graph go.
    pub heads: bool,
}

/// What one line asks for: the settings of a trace that belong to one prompt. What is left out is as
/// [`TraceSettings`] says.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptLine {
    /// The prompt as a text; this or `tokens`.
    pub prompt: Option<String>,
    /// The prompt as token ids, used as they are.
    pub tokens: Option<Vec<u32>>,
    /// Name of the files and of the graph.
    pub slug: Option<String>,
    /// What is explained: the text of a token, or an object of one key, see [`PromptLine::request`].
    #[serde(default)]
    pub targets: Vec<Value>,
    /// Position of logit targets.
    pub position: Option<usize>,
    /// At most this many of the likeliest tokens.
    pub max_logits: Option<usize>,
    /// No more tokens once their probabilities add up to this.
    pub logit_prob: Option<f64>,
    /// As [`RowRequest::rows`]: a number or `"all"`.
    #[serde(default, deserialize_with = "count")]
    pub rows: Option<Count>,
    /// As [`RowRequest::theta`].
    pub theta: Option<f64>,
    /// As [`RowRequest::nodes`].
    pub nodes: Option<usize>,
    /// As [`RowRequest::max_features`]: a number or `"all"`.
    #[serde(default, deserialize_with = "count")]
    pub max_features: Option<Count>,
    /// As [`OpenChoice::asked`] reads it.
    pub open_positions: Option<String>,
    /// As [`AttributionOptions::batch_size`].
    pub batch_size: Option<usize>,
    /// As [`PruneSettings::node_threshold`].
    pub node_threshold: Option<f64>,
    /// As [`PruneSettings::edge_threshold`].
    pub edge_threshold: Option<f64>,
    /// As [`PruneSettings::max_nodes`].
    pub max_nodes: Option<usize>,
    /// As [`TraceSettings::heads`].
    pub heads: Option<bool>,
}

/// One target that is not just a token's text.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LineTarget {
    token: Option<String>,
    token_id: Option<u32>,
    difference: Option<[String; 2]>,
    feature: Option<String>,
    attention: Option<String>,
    versus: Option<usize>,
    rival: Option<bool>,
    direction: Option<String>,
}

/// What is to be traced, checked against the model.
#[derive(Clone, Debug)]
pub struct Request {
    /// The prompt as the model reads it.
    pub prompt: TokenizedPrompt,
    /// Targets, rows and sizes.
    pub options: AttributionOptions,
    /// Which nodes and edges the JSON graph has.
    pub pruning: PruneSettings,
    /// Whether heads are found out.
    pub heads: bool,
    /// The name of the files, where one is given.
    pub slug: Option<String>,
}

/// Numbers, or the word `all`.
fn count<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Option<Count>, D::Error> {
    let wrong = |value: &Value| serde::de::Error::custom(format!("{value} is no number and not `\"all\"`"));
    match Value::deserialize(from)? {
        Value::Null => Ok(None),
        Value::String(text) if text == "all" => Ok(Some(Count::All)),
        value => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) => Ok(Some(Count::Number(n))),
            None => Err(wrong(&value)),
        },
    }
}

/// What `serde_json` says, of something that is a line of its own: `at line 1 column 9` would be taken for a place in the
/// file.
fn of_json(error: &serde_json::Error) -> Error {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let problem = match text.strip_suffix(&place) {
        Some(said) if error.column() > 0 => format!("{said} (column {})", error.column()),
        Some(said) => said.to_owned(),
        None => text,
    };
    Error::Prompts { problem }
}

impl PromptLine {
    /// Reads a line.
    ///
    /// # Errors
    /// [`Error::Prompts`] for what is no JSON object, a key that is not known, a value of another type.
    pub fn parse(line: &[u8]) -> Result<Self> {
        // Lists would be taken for the values of all keys in their order.
        let value: Value = serde_json::from_slice(line).map_err(|e| of_json(&e))?;
        if !value.is_object() {
            return Err(Error::Prompts { problem: "it is no JSON object".into() });
        }
        // Read again from the text: a key that is there twice is an error, and columns are known.
        serde_json::from_slice(line).map_err(|e| of_json(&e))
    }

    /// The request of this line. A target is the text of a token, or an object with one of the keys `token`, `token_id`,
    /// `difference` (two texts), `feature` (`L_F_P`), `attention` (`L.H@Q:K`, with `versus` or `rival`) and `direction` (a
    /// sum of tokens, or a file).
    ///
    /// # Errors
    /// A prompt and targets that do not fit the model; settings out of range, or that exclude each other.
    pub fn request(&self, tracer: &Tracer, usual: &TraceSettings) -> Result<Request> {
        let prompt = match (&self.prompt, &self.tokens) {
            (Some(_), Some(_)) => return Err(Error::Contradiction { first: "prompt", second: "`tokens`" }),
            (Some(text), None) => Prompt::from(text),
            (None, Some(tokens)) => Prompt::from(tokens.clone()),
            (None, None) => return Err(Error::Prompts { problem: "it has neither `prompt` nor `tokens`".into() }),
        };
        let prompt = tracer.tokenize(prompt)?;
        let rows =
            RowRequest { rows: self.rows, theta: self.theta, nodes: self.nodes, max_features: self.max_features };
        let mut targets = Vec::new();
        for (at, target) in self.targets.iter().enumerate() {
            let found = one_target(target, tracer).context(|| format!("cannot use target {}", at + 1))?;
            targets.extend(found);
        }
        let usual_options = &usual.options;
        let open = self.open_positions.as_deref().map(OpenChoice::asked).transpose();
        let open = open.context(|| "cannot use `open_positions`".to_owned())?;
        let options = AttributionOptions {
            targets: if targets.is_empty() { usual_options.targets.clone() } else { targets },
            position: self.position.or(usual_options.position),
            max_logits: self.max_logits.unwrap_or(usual_options.max_logits),
            logit_prob: self.logit_prob.unwrap_or(usual_options.logit_prob),
            rows: if rows.is_empty() { usual_options.rows } else { rows.choice()? },
            batch_size: self.batch_size.unwrap_or(usual_options.batch_size),
            open: open.unwrap_or_else(|| usual_options.open.clone()),
            keep_decoders: usual_options.keep_decoders,
            finished: None,
        };
        options.check()?;
        let pruning = PruneSettings {
            node_threshold: self.node_threshold.unwrap_or(usual.pruning.node_threshold),
            edge_threshold: self.edge_threshold.unwrap_or(usual.pruning.edge_threshold),
            max_nodes: self.max_nodes.or(usual.pruning.max_nodes),
        };
        pruning.check()?;
        Ok(Request { prompt, options, pruning, heads: self.heads.unwrap_or(usual.heads), slug: self.slug.clone() })
    }
}

fn one_target(target: &Value, tracer: &Tracer) -> Result<Vec<TargetRequest>> {
    let one = |request| Ok(vec![request]);
    let LineTarget { token, token_id, difference, feature, attention, versus, rival, direction } = match target {
        Value::String(text) => LineTarget { token: Some(text.clone()), ..LineTarget::default() },
        Value::Object(_) => serde_json::from_value(target.clone()).map_err(|e| of_json(&e))?,
        _ => return Err(Error::Prompts { problem: "it is neither a text nor an object".into() }),
    };
    if attention.is_none() && (versus.is_some() || rival.is_some()) {
        return Err(Error::Prompts { problem: "`versus` and `rival` are of a target with `attention`".into() });
    }
    match (token, token_id, difference, feature, attention, direction) {
        (Some(text), None, None, None, None, None) => one(TargetRequest::Token(tracer.token(&text)?)),
        (None, Some(id), None, None, None, None) => one(TargetRequest::Token(id)),
        (None, None, Some([first, second]), None, None, None) => {
            one(TargetRequest::TokenDiff(tracer.token(&first)?, tracer.token(&second)?))
        }
        (None, None, None, Some(feature), None, None) => {
            let FeatureId { layer, pos, feature } = feature_at(&feature)?;
            one(TargetRequest::Feature { layer: layer as usize, feature: feature as usize, pos: pos as usize })
        }
        (None, None, None, None, Some(score), None) => {
            let versus = match (versus, rival.unwrap_or(false)) {
                (Some(_), true) => return Err(Error::Contradiction { first: "versus", second: "`rival`" }),
                (Some(key), false) => Versus::Key(key),
                (None, true) => Versus::Rivals,
                (None, false) => Versus::Nothing,
            };
            one(TargetRequest::Score { score: score.parse()?, versus })
        }
        (None, None, None, None, None, Some(direction)) => {
            let found = directions(&direction, tracer)?.into_iter();
            Ok(found.map(|found| TargetRequest::Direction { vec: found.vec, label: found.label }).collect())
        }
        _ => {
            let keys = "`token`, `token_id`, `difference`, `feature`, `attention` or `direction`";
            Err(Error::Prompts { problem: format!("it has not exactly one of {keys}") })
        }
    }
}

/// A feature at one position.
fn feature_at(text: &str) -> Result<FeatureId> {
    let spec: FeatureSpec = text.parse()?;
    let fits = |n: usize| u32::try_from(n).ok();
    let expected = "layer_feature_position, such as 3_41_7";
    match (spec.positions, fits(spec.layer), fits(spec.feature)) {
        (Positions::At(pos), Some(layer), Some(feature)) if fits(pos).is_some() => {
            Ok(FeatureId { layer, pos: pos as u32, feature })
        }
        _ => Err(Error::Spec { text: text.to_owned(), expected }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::{RowChoice, Visits};
    use crate::tracer::Setup;

    fn parse(line: &str) -> Result<PromptLine> {
        PromptLine::parse(line.as_bytes())
    }

    #[test]
    fn a_line_becomes_the_request_that_the_options_of_a_trace_become() {
        let tracer = Tracer::open(Setup::atlas()).unwrap();
        let line = r#"{"prompt": "The capital of Texas is", "slug": "t", "position": 3, "max_logits": 2, "logit_prob": 0.5,
            "targets": [" Austin", {"token_id": 7}, {"difference": [" Austin", " Sacramento"]}, {"feature": "0_39_2"},
            {"attention": "1.0@3:2", "versus": 1}, {"attention": "1.0@3:2", "rival": true},
            {"direction": "\" Austin\" - \" Sacramento\""}],
            "rows": 50, "nodes": 9, "open_positions": "1..3", "batch_size": 3, "node_threshold": 0.5, "edge_threshold": 1,
            "max_nodes": 70, "heads": true}"#;
        let usual = TraceSettings::default();
        let request = parse(line).unwrap().request(&tracer, &usual).unwrap();
        let token = |text: &str| tracer.token(text).unwrap();
        let score = || "1.0@3:2".parse().unwrap();
        assert_eq!(
            request.options.targets[..6],
            [
                TargetRequest::Token(token(" Austin")),
                TargetRequest::Token(7),
                TargetRequest::TokenDiff(token(" Austin"), token(" Sacramento")),
                TargetRequest::Feature { layer: 0, feature: 39, pos: 2 },
                TargetRequest::Score { score: score(), versus: Versus::Key(1) },
                TargetRequest::Score { score: score(), versus: Versus::Rivals },
            ]
        );
        assert!(matches!(&request.options.targets[6..], [TargetRequest::Direction { .. }]));
        let AttributionOptions { position, max_logits, logit_prob, rows, batch_size, open, .. } = request.options;
        assert_eq!((position, max_logits, logit_prob, batch_size), (Some(3), 2, 0.5, 3));
        assert_eq!(rows, RowChoice::Sampled { visits: Visits::Rows(50), nodes: Some(9) });
        assert_eq!(open, OpenChoice::Spans(vec![[1, 3]]));
        assert_eq!(request.pruning, PruneSettings { node_threshold: 0.5, edge_threshold: 1.0, max_nodes: Some(70) });
        assert!(request.heads && request.slug.as_deref() == Some("t"));

        // Of the row settings a line has all or none: those of the whole batch are one choice, and so are a line's.
        let usual = TraceSettings {
            options: AttributionOptions { rows: RowChoice::BestFirst { max_features: 5 }, ..Default::default() },
            ..usual
        };
        let rows = |line: &str| parse(line).unwrap().request(&tracer, &usual).unwrap().options.rows;
        assert_eq!(rows(r#"{"prompt": "A"}"#), RowChoice::BestFirst { max_features: 5 });
        assert_eq!(rows(r#"{"prompt": "A", "rows": "all"}"#), RowChoice::All);
        assert_eq!(rows(r#"{"tokens": [1, 5], "max_features": 3}"#), RowChoice::BestFirst { max_features: 3 });
    }

    #[test]
    fn what_a_line_must_not_hold_is_named() {
        let tracer = Tracer::open(Setup::atlas()).unwrap();
        let problem = |line: &str| match parse(line).and_then(|line| line.request(&tracer, &TraceSettings::default())) {
            Ok(_) => panic!("{line} is read"),
            Err(error) => match std::error::Error::source(&error) {
                Some(cause) => format!("{error}: {cause}"),
                None => error.to_string(),
            },
        };
        let mut wrong = Vec::new();
        for (line, parts) in [
            ("", &["EOF"][..]),
            ("[1]", &["no JSON object"]),
            ("\"text\"", &["no JSON object"]),
            ("{\"prompt\": \"\u{0}\"}", &["control character"]),
            (r#"{"promt": "A"}"#, &["`promt`", "`prompt`", "column 8"]),
            (r#"{"prompt": "A", "prompt": "B"}"#, &["duplicate", "`prompt`"]),
            (r#"{"prompt": 5}"#, &["integer `5`", "string"]),
            (r#"{"prompt": "\ud800"}"#, &["hex escape"]),
            (r#"{"prompt": "A", "tokens": [1]}"#, &["`prompt`", "`tokens`"]),
            (r#"{}"#, &["neither `prompt` nor `tokens`"]),
            (r#"{"prompt": ""}"#, &["empty"]),
            (r#"{"tokens": [99999]}"#, &["99999"]),
            (r#"{"tokens": [-1]}"#, &["-1"]),
            (r#"{"prompt": "A", "targets": [" Austin", 5]}"#, &["target 2", "neither a text nor an object"]),
            (r#"{"prompt": "A", "targets": [{"tokn": "a"}]}"#, &["target 1", "`tokn`"]),
            (r#"{"prompt": "A", "targets": [{}]}"#, &["target 1", "exactly one of"]),
            (r#"{"prompt": "A", "targets": [{"token_id": 1, "feature": "0_1_1"}]}"#, &["exactly one of"]),
            (r#"{"prompt": "A", "targets": [{"token_id": 1, "rival": true}]}"#, &["`rival`", "`attention`"]),
            (r#"{"prompt": "A", "targets": [{"attention": "1.0@1:0", "rival": true, "versus": 0}]}"#, &["`rival`"]),
            (r#"{"prompt": "A", "targets": [{"feature": "0_39"}]}"#, &["0_39", "LAYER_FEATURE_POSITION"]),
            (r#"{"prompt": "A", "targets": ["no such token"]}"#, &["target 1", "no such token"]),
            (r#"{"prompt": "A", "rows": 1, "theta": 0.5}"#, &["`rows`", "`theta`"]),
            (r#"{"prompt": "A", "rows": "some"}"#, &["some", "all"]),
            (r#"{"prompt": "A", "max_features": 1, "nodes": 5}"#, &["`max_features`", "`nodes`"]),
            (r#"{"prompt": "A", "logit_prob": 1.5}"#, &["logit_prob", "1.5"]),
            (r#"{"prompt": "A", "node_threshold": -1}"#, &["node_threshold", "-1"]),
            (r#"{"prompt": "A", "max_nodes": 0}"#, &["max_nodes", "0"]),
            (r#"{"prompt": "A", "open_positions": "5..3"}"#, &["open_positions", "5..3"]),
            (r#"{"prompt": "A", "open_positions": "first"}"#, &["open_positions", "first", "auto:N"]),
        ] {
            let problem = problem(line);
            let missing = parts.iter().filter(|part| !problem.contains(**part));
            wrong.extend(missing.map(|part| format!("{line}: {part:?} is not in {problem}")));
            assert!(!problem.contains("line 1"), "{problem}");
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}
