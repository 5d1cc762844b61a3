//! What jobs are asked to do, checked before they wait.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::attribution::{AttributionOptions, RowChoice, TargetRequest, requested};
use crate::circuits::{PairPlan, SummarySettings, summarize_with_raw};
use crate::export::raw_contents;
use crate::graph::FeatureId;
use crate::intervene::{
    Alternative, Change, CompareOptions, FeatureGroup, FeatureSpec, GenerateOptions, HeadChange, HeadIntervention,
    Intervention, Measure, Mode, Original, Plan, Positions, Supernodes, Sweep, VerifyOptions, named_values,
};
use crate::job::Job;
use crate::picture::sweep_svg;
use crate::prune::PruneSettings;
use crate::text::slug;
use crate::tracer::{Prompt, RunOptions, TokenizedPrompt, TracedGraph, Tracer};
use crate::weights::ATLAS;
use crate::{Error, Result};

use super::app::App;
use super::reply::{Answer, Refusal};
use super::view::Group;
use super::whole::{Edges, Whole};
use super::work::{Limits, Record};

/// Features of a feature name and position, `L_F_P`, as targets and comparisons take them.
fn feature_at(text: &str) -> Result<FeatureId> {
    let spec: FeatureSpec = text.parse()?;
    match spec.positions {
        Positions::At(pos) => Ok(FeatureId { layer: spec.layer as u32, pos: pos as u32, feature: spec.feature as u32 }),
        _ => Err(Error::Spec { text: text.to_owned(), expected: "LAYER_FEATURE_POSITION, such as 5_123_4" }),
    }
}

/// A prompt, checked against the limits.
///
/// # Errors
/// A prompt that is no prompt of the model, or longer than this server takes.
pub(super) fn tokenized(tracer: &Tracer, prompt: Prompt, limits: &Limits) -> Answer<TokenizedPrompt> {
    let prompt = tracer.tokenize(prompt)?;
    let (n_pos, limit) = (prompt.tokens.len(), limits.positions);
    if n_pos > limit {
        return Err(Refusal::too_large(format!("the prompt has {n_pos} tokens, this server takes at most {limit}")));
    }
    Ok(prompt)
}

/// One target of a trace.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Target {
    Token { token: String },
    TokenId { token_id: u32 },
    Difference { difference: [String; 2] },
    Feature { feature: String },
}

/// Which rows.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Rows {
    Number(usize),
    Named(String),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TraceRequest {
    prompt: String,
    #[serde(default)]
    targets: Vec<Target>,
    position: Option<usize>,
    max_logits: Option<usize>,
    logit_prob: Option<f64>,
    rows: Option<Rows>,
    node_threshold: Option<f64>,
    edge_threshold: Option<f64>,
    slug: Option<String>,
    #[serde(default)]
    replace: bool,
    save: Option<bool>,
    #[serde(default)]
    pub detached: bool,
}

impl TraceRequest {
    /// What can be checked without the model.
    ///
    /// # Errors
    /// Settings out of range, or above the limits.
    pub fn check(&self, app: &App) -> Answer<()> {
        self.thresholds().check()?;
        if let Some(Rows::Number(rows)) = self.rows
            && rows > app.work.limits.rows
        {
            return Err(Refusal::too_large(format!(
                "{rows} rows were asked for, this server takes at most {}",
                app.work.limits.rows
            )));
        }
        if self.save == Some(true) {
            app.library.need_folder()?;
        }
        self.options(|_| Ok(0))?.check()?;
        Ok(())
    }

    fn thresholds(&self) -> PruneSettings {
        let usual = PruneSettings::default();
        PruneSettings {
            node_threshold: self.node_threshold.unwrap_or(usual.node_threshold),
            edge_threshold: self.edge_threshold.unwrap_or(usual.edge_threshold),
            ..usual
        }
    }

    fn options(&self, token: impl Fn(&str) -> Result<u32>) -> Result<AttributionOptions> {
        let usual = AttributionOptions::default();
        let target = |target: &Target| -> Result<TargetRequest> {
            Ok(match target {
                Target::Token { token: text } => TargetRequest::Token(token(text)?),
                Target::TokenId { token_id } => TargetRequest::Token(*token_id),
                Target::Difference { difference: [first, second] } => {
                    TargetRequest::TokenDiff(token(first)?, token(second)?)
                }
                Target::Feature { feature } => {
                    let id = feature_at(feature)?;
                    TargetRequest::Feature {
                        layer: id.layer as usize,
                        feature: id.feature as usize,
                        pos: id.pos as usize,
                    }
                }
            })
        };
        let rows = match &self.rows {
            None => RowChoice::Auto,
            Some(Rows::Number(max_features)) => RowChoice::BestFirst { max_features: *max_features },
            Some(Rows::Named(name)) if name == "auto" => RowChoice::Auto,
            Some(Rows::Named(name)) if name == "all" => RowChoice::All,
            Some(Rows::Named(name)) => {
                return Err(Error::Spec { text: name.clone(), expected: "`rows`: auto, all, or a number" });
            }
        };
        Ok(AttributionOptions {
            targets: self.targets.iter().map(target).collect::<Result<_>>()?,
            position: self.position,
            max_logits: self.max_logits.unwrap_or(usual.max_logits),
            logit_prob: self.logit_prob.unwrap_or(usual.logit_prob),
            rows,
            ..usual
        })
    }

    /// Traces, and writes or keeps the graph.
    ///
    /// # Errors
    /// Those of tracing and writing.
    pub fn run(&self, app: &App, tracer: &Tracer, job: &Job) -> Answer<Value> {
        let prompt = tokenized(tracer, Prompt::from(&self.prompt), &app.work.limits)?;
        let (options, settings) = (self.options(|text| tracer.token(text))?, self.thresholds());
        let folder = app.library.folder().filter(|_| self.save.unwrap_or(true));
        let pair = folder.map(|folder| PairPlan {
            folder: folder.to_owned(),
            name: self.slug.clone(),
            replaces_others: self.replace,
            raw: true,
            json: true,
            inputs: Vec::new(),
        });
        if let Some(pair) = &pair {
            pair.check(&requested(tracer.replacement(), &prompt.tokens, &options), &prompt.text, &settings)?;
        }
        let traced = tracer.trace_with(prompt, &options, job)?;
        job.check()?;
        let circuit = traced.prune(&settings)?;
        let summary = summarize_with_raw(&circuit, traced.graph(), &SummarySettings::default())?;
        let (graph, files) = match pair {
            Some(pair) => {
                let files = pair.write(traced.graph(), &circuit, &settings)?;
                let id =
                    files.first().and_then(|file| file.file_stem()).unwrap_or_default().to_string_lossy().into_owned();
                let q_params = app.library.make_room(&id, circuit.meta.trace_id.as_deref());
                if let Some(q_params) = q_params.filter(|q_params| !q_params.is_empty()) {
                    drop(app.saving.save(&app.library, &id, None, |_| q_params)?);
                }
                (id, files)
            }
            None => {
                let name = self.slug.clone().unwrap_or_else(|| slug(&self.prompt).0);
                (app.library.keep(&name, traced)?, Vec::new())
            }
        };
        let files: Vec<_> =
            files.iter().filter_map(|file| file.file_name()).map(|name| name.to_string_lossy()).collect();
        Ok(json!({"graph": graph, "files": files, "summary": summary}))
    }
}

/// Traces the demonstration, which is kept in memory.
///
/// # Errors
/// Those of tracing.
pub(super) fn trace_demo(library: &super::library::Library, tracer: &Tracer, prompt: &str) -> Result<()> {
    let traced: TracedGraph = tracer.trace(prompt, &AttributionOptions::default())?;
    library.keep(&slug(prompt).0, traced).map(drop)
}

/// Which prompt, and what of it is changed and held.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Changed {
    prompt: Option<String>,
    graph: Option<String>,
    changes: Vec<Value>,
    groups: Vec<Group>,
    mode: Option<String>,
    target: Option<String>,
    /// What no request has: beside flattened fields `deny_unknown_fields` cannot be had.
    #[serde(flatten)]
    unknown: BTreeMap<String, Value>,
}

/// A [`Changed`], understood.
struct Understood {
    prompt: Prompt,
    interventions: Vec<Intervention>,
    heads: Vec<HeadIntervention>,
    groups: Vec<FeatureGroup>,
    mode: Mode,
}

impl Changed {
    fn understood(&self, app: &App, must_change: bool) -> Answer<Understood> {
        if let Some(name) = self.unknown.keys().next() {
            return Err(Refusal::bad_request(format!("the job cannot be understood: unknown field {name:?}")));
        }
        let prompt = match (&self.prompt, &self.graph) {
            (Some(prompt), _) => Prompt::from(prompt),
            (None, Some(id)) => prompt_of(&*app.graph(id)?),
            (None, None) => return Err(Refusal::bad_request("neither `prompt` nor `graph` is given")),
        };
        let supernodes: Supernodes =
            self.groups.iter().map(|group| (group.name.clone(), specs(&group.members))).collect();
        let (interventions, heads) = match self.changes.is_empty() {
            true if must_change => return Err(Error::NothingToChange.into()),
            true => (Vec::new(), Vec::new()),
            false => {
                let changes = json!({"interventions": self.changes}).to_string();
                let plan = Plan::parse(&changes, "changes", &supernodes)?;
                (plan.interventions, plan.heads)
            }
        };
        let groups = self.groups.iter().filter_map(|group| {
            let members: Vec<_> =
                group.members.iter().filter_map(|id| feature_at(id).ok()).map(|id| (id, None)).collect();
            (!members.is_empty()).then(|| FeatureGroup { name: group.name.clone(), members })
        });
        Ok(Understood { prompt, interventions, heads, groups: groups.collect(), mode: mode(self.mode.as_deref())? })
    }

    /// A command line that does the same.
    fn command(&self, tracer: &Tracer, prompt: &TokenizedPrompt, understood: &Understood, rest: &[String]) -> String {
        let mut words = vec!["circuitscope".to_owned(), "intervene".to_owned(), prompt.text.clone()];
        if tracer.model_name() != ATLAS {
            words.extend(["--model".to_owned(), tracer.model_name().to_owned()]);
            words.extend(["--transcoders".to_owned(), tracer.replacement().transcoder_source.clone()]);
        }
        for Intervention { layer, feature, positions, change } in &understood.interventions {
            let place = format!("{layer}_{feature}_{positions}");
            words.extend(match change {
                Change::Set(0.0) => ["--ablate".to_owned(), place],
                Change::Set(value) => ["--set".to_owned(), format!("{place}={value}")],
                Change::Scale(factor) => ["--scale".to_owned(), format!("{place}={factor}")],
            });
        }
        for HeadIntervention { head, positions, change } in &understood.heads {
            let place = format!("{head}@{positions}");
            words.extend(match change {
                HeadChange::Zero => vec!["--ablate-head".to_owned(), place],
                HeadChange::Mean => vec!["--ablate-head".to_owned(), format!("{place}=mean")],
                HeadChange::Like(prompt) => {
                    vec!["--patch-head".to_owned(), place, "--from".to_owned(), prompt.clone()]
                }
            });
        }
        words.extend(match &understood.mode {
            Mode::Free | Mode::FrozenNorms => vec![],
            Mode::FrozenAttention => vec!["--freeze-attention".to_owned()],
            Mode::Constrained(range) => vec!["--constrain".to_owned(), format!("{}..{}", range.start, range.end)],
            Mode::Direct => vec!["--direct".to_owned()],
        });
        if let Some(target) = &self.target {
            words.extend(["--target".to_owned(), target.clone()]);
        }
        words.iter().chain(rest).map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
    }
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.=/:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

fn specs(ids: &[String]) -> Vec<FeatureSpec> {
    // Tokens, errors and targets of a group have nothing to change.
    ids.iter().filter(|id| feature_at(id).is_ok()).filter_map(|id| id.parse().ok()).collect()
}

/// The prompt of a graph, as it was traced.
fn prompt_of(whole: &Whole) -> Prompt {
    match &whole.edges {
        Edges::Raw(traced) => Prompt::Tokenized(TokenizedPrompt {
            text: whole.meta.prompt.clone(),
            tokens: traced.graph().input_tokens.iter().map(|&token| token as u32).collect(),
        }),
        Edges::Json(_) => Prompt::from(&whole.meta.prompt),
    }
}

fn mode(text: Option<&str>) -> Answer<Mode> {
    Ok(match text.unwrap_or("free") {
        "free" => Mode::Free,
        "frozen_attention" => Mode::FrozenAttention,
        "frozen_norms" => Mode::FrozenNorms,
        "direct" => Mode::Direct,
        other => {
            let range = other.strip_prefix("constrained:").and_then(|range| range.split_once(".."));
            let range = range.and_then(|(start, end)| Some(start.parse().ok()?..end.parse().ok()?));
            let expected = "free, frozen_attention, frozen_norms, direct or constrained:A..B";
            Mode::Constrained(
                range.ok_or_else(|| Refusal::bad_request(format!("`mode` is {other:?}, expected {expected}")))?,
            )
        }
    })
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Generate {
    n_tokens: usize,
    temperature: Option<f64>,
    top_p: Option<f64>,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    keep_frozen: bool,
}

impl Generate {
    fn options(self, limits: &Limits) -> Answer<GenerateOptions> {
        let Generate { n_tokens, temperature, top_p, seed, keep_frozen } = self;
        if n_tokens == 0 || n_tokens > limits.tokens {
            return Err(Refusal::too_large(format!("`n_tokens` is {n_tokens}, expected 1 to {}", limits.tokens)));
        }
        let options = GenerateOptions { n_tokens, temperature, top_p, seed, keep_frozen };
        options.check()?;
        Ok(options)
    }

    fn words(self) -> Vec<String> {
        let mut words = vec!["--generate".to_owned(), self.n_tokens.to_string()];
        let mut add = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                words.extend([name.to_owned(), value]);
            }
        };
        add("--temperature", self.temperature.map(|value| value.to_string()));
        add("--top-p", self.top_p.map(|value| value.to_string()));
        add("--seed", (self.seed != 0).then(|| self.seed.to_string()));
        if self.keep_frozen {
            words.push("--keep-frozen".to_owned());
        }
        words
    }
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct InterveneRequest {
    #[serde(flatten)]
    changed: Changed,
    #[serde(default)]
    features: Vec<String>,
    top: Option<usize>,
    generate: Option<Generate>,
    #[serde(default)]
    pub detached: bool,
}

impl InterveneRequest {
    /// As [`TraceRequest::check`].
    ///
    /// # Errors
    /// What cannot be understood.
    pub fn check(&self, app: &App, must_generate: bool) -> Answer<()> {
        self.changed.understood(app, !must_generate)?;
        match self.generate {
            Some(generate) => generate.options(&app.work.limits).map(|_| ())?,
            None if must_generate => return Err(Refusal::bad_request("`generate` is missing")),
            None => (),
        }
        self.features.iter().try_for_each(|id| feature_at(id).map(drop))?;
        Ok(())
    }

    /// Runs the prompt with and without the changes.
    ///
    /// # Errors
    /// Those of the runs.
    pub fn run(&self, app: &App, tracer: &Tracer, job: &Job, record: &Record) -> Answer<Value> {
        let mut understood = self.changed.understood(app, true)?;
        let prompt =
            tokenized(tracer, std::mem::replace(&mut understood.prompt, Prompt::Tokens(Vec::new())), &app.work.limits)?;
        let target = self.changed.target.as_deref().map(|text| tracer.token(text)).transpose()?;
        let features: BTreeSet<FeatureId> = self.features.iter().map(|id| feature_at(id)).collect::<Result<_>>()?;
        let features = Some(features).filter(|features| !features.is_empty());
        // Under constraints changes are direct effects, which act on pre-activations: those are the graph's edges.
        let measure = match understood.mode {
            Mode::Free | Mode::FrozenAttention | Mode::FrozenNorms => Measure::Activation,
            Mode::Constrained(_) | Mode::Direct => Measure::PreActivation,
        };
        let top = self.top.unwrap_or(CompareOptions::default().top).min(1000);
        let compare = CompareOptions { target, top, features, measure, ..CompareOptions::default() };
        let options = RunOptions {
            mode: understood.mode.clone(),
            compare,
            generate: None,
            groups: understood.groups.clone(),
            heads: understood.heads.clone(),
        };
        let words = self.generate.map(Generate::words).unwrap_or_default();
        let command = self.changed.command(tracer, &prompt, &understood, &words);
        let run = tracer.intervene_with(prompt.clone(), &understood.interventions, &options, job)?;
        let mut answer = json!(run);
        answer["command"] = json!(command);
        answer["plan"] = json!({"interventions": self.changed.changes});
        if let Some(generate) = self.generate {
            record.emit("compared", &answer);
            answer["continuation"] = continued(app, tracer, &prompt, &understood, generate, job, record)?;
        }
        Ok(answer)
    }

    /// Continues the prompt with and without the changes.
    ///
    /// # Errors
    /// Those of the runs.
    pub fn generate(&self, app: &App, tracer: &Tracer, job: &Job, record: &Record) -> Answer<Value> {
        let mut understood = self.changed.understood(app, false)?;
        let prompt =
            tokenized(tracer, std::mem::replace(&mut understood.prompt, Prompt::Tokens(Vec::new())), &app.work.limits)?;
        let generate = self.generate.ok_or_else(|| Refusal::bad_request("`generate` is missing"))?;
        continued(app, tracer, &prompt, &understood, generate, job, record)
    }
}

/// Both continuations, every token told as soon as it is there.
fn continued(
    app: &App,
    tracer: &Tracer,
    prompt: &TokenizedPrompt,
    understood: &Understood,
    generate: Generate,
    job: &Job,
    record: &Record,
) -> Answer<Value> {
    let options = generate.options(&app.work.limits)?;
    let mut original = Original::run(tracer.replacement(), &prompt.tokens, job)?;
    let tokenizer = tracer.tokenizer();
    let continue_one = |original: &Original, which: &str, interventions: &[Intervention], mode: &Mode| {
        let mut so_far = Vec::new();
        original.generate_with(interventions, mode, &options, job, &mut |token, _| {
            so_far.push(token);
            let text = tokenizer.decode(&so_far);
            record.emit(
                "token",
                &json!({"which": which, "token": token, "text": tokenizer.token(token), "text_so_far": text}),
            );
        })
    };
    let original_tokens = continue_one(&original, "original", &[], &Mode::Free)?;
    original.change_heads(&understood.heads, job)?;
    let changed_tokens = continue_one(&original, "changed", &understood.interventions, &understood.mode)?;
    Ok(json!({
        "original": tokenizer.decode(&original_tokens),
        "changed": tokenizer.decode(&changed_tokens),
        "original_tokens": original_tokens,
        "changed_tokens": changed_tokens,
        "is_held": options.keep_frozen,
    }))
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct SweepRequest {
    #[serde(flatten)]
    changed: Changed,
    sweep: String,
    #[serde(default)]
    pub detached: bool,
}

impl SweepRequest {
    fn alternatives(&self, limits: &Limits, base: &[Intervention]) -> Answer<Vec<Alternative>> {
        let (name, values) = named_values(&self.sweep)?;
        if values.len() > limits.points {
            return Err(Refusal::too_large(format!(
                "the sweep has {} points, at most {}",
                values.len(),
                limits.points
            )));
        }
        let Some(group) = self.changed.groups.iter().find(|group| group.name == name) else {
            return Ok(Sweep { feature: name.parse()?, values }.alternatives(base));
        };
        let features = specs(&group.members);
        if features.is_empty() {
            return Err(Refusal::bad_request(format!("the group {name:?} has no features")));
        }
        let alternative = |&value: &f32| Alternative {
            name: format!("{name}={value}"),
            value: Some(value),
            heads: Vec::new(),
            interventions: base
                .iter()
                .copied()
                .chain(features.iter().map(|f| f.changed(Change::Scale(value))))
                .collect(),
        };
        Ok(values.iter().map(alternative).collect())
    }

    /// As [`TraceRequest::check`].
    ///
    /// # Errors
    /// What cannot be understood.
    pub fn check(&self, app: &App) -> Answer<()> {
        let understood = self.changed.understood(app, false)?;
        self.alternatives(&app.work.limits, &understood.interventions).map(drop)
    }

    /// Runs the prompt once for every value.
    ///
    /// # Errors
    /// Those of the runs.
    pub fn run(&self, app: &App, tracer: &Tracer, job: &Job) -> Answer<Value> {
        let mut understood = self.changed.understood(app, false)?;
        let prompt =
            tokenized(tracer, std::mem::replace(&mut understood.prompt, Prompt::Tokens(Vec::new())), &app.work.limits)?;
        let target = self.changed.target.as_deref().map(|text| tracer.token(text)).transpose()?;
        let alternatives = self.alternatives(&app.work.limits, &understood.interventions)?;
        let options = RunOptions {
            mode: understood.mode.clone(),
            compare: CompareOptions { target, ..CompareOptions::default() },
            heads: understood.heads.clone(),
            ..RunOptions::default()
        };
        let command = self.changed.command(tracer, &prompt, &understood, &["--sweep".to_owned(), self.sweep.clone()]);
        let swept = tracer.sweep_with(prompt, &understood.interventions, &alternatives, &options, job)?;
        let mut answer = json!(swept);
        (answer["svg"], answer["command"]) = (json!(sweep_svg(&swept.result)), json!(command));
        Ok(answer)
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VerifyRequest {
    graph: String,
    n_samples: Option<usize>,
    n_ablated: Option<usize>,
    #[serde(default)]
    seed: u64,
    node_threshold: Option<f64>,
    edge_threshold: Option<f64>,
    #[serde(default)]
    pub detached: bool,
}

impl VerifyRequest {
    fn graph(&self, app: &App) -> Answer<(Arc<Whole>, Option<PathBuf>)> {
        let whole = app.graph(&self.graph)?;
        if whole.raw().is_none() {
            return Err(Refusal::bad_request(format!(
                "{:?} was pruned before: only a raw graph can be verified",
                self.graph
            )));
        }
        let file = app.library.files_of(&self.graph).and_then(|files| files.raw);
        Ok((whole, file))
    }

    /// As [`TraceRequest::check`].
    ///
    /// # Errors
    /// A graph that cannot be verified; sizes out of range.
    pub fn check(&self, app: &App) -> Answer<()> {
        const MAX: usize = 1000;
        if self.n_samples.max(self.n_ablated).is_some_and(|n| n > MAX) {
            return Err(Refusal::too_large(format!("`n_samples` and `n_ablated` may be at most {MAX}")));
        }
        self.graph(app).map(drop)
    }

    /// Checks the graph against the model; what was found stays with it.
    ///
    /// # Errors
    /// A graph of another model; those of the runs.
    pub fn run(&self, app: &App, tracer: &Tracer, job: &Job) -> Answer<Value> {
        let (whole, file) = self.graph(app)?;
        let cut = whole.cut(whole.thresholds(self.node_threshold, self.edge_threshold)?)?;
        let kept = cut.nodes.iter().filter_map(|&n| whole.nodes[n as usize].id.feature()).collect();
        let usual = (32, 20);
        let options = VerifyOptions {
            n_samples: self.n_samples.unwrap_or(usual.0),
            n_ablated: self.n_ablated.unwrap_or(usual.1),
            seed: self.seed,
            kept,
        };
        let traced = whole.raw().ok_or_else(|| Refusal::bad_request("only a raw graph can be verified"))?;
        let mut found = tracer.verify(traced.graph(), &options, job)?;
        if let Some(file) = file {
            let (tensors, keys) = raw_contents(&file)?;
            found.contents.require(&tensors, &keys);
            found.passed &= found.contents.passed;
        }
        let mut answer = json!(found);
        answer["graph"] = json!(self.graph);
        app.keep_verification(&whole.etag, &answer);
        Ok(answer)
    }
}

/// Verifications that are remembered.
pub(super) type Verifications = BTreeMap<String, Value>;
