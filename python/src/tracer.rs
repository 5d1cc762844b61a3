//! A model with its transcoders, opened.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use circuitscope::attribution::{OpenChoice, Score, TargetRequest, Versus};
use circuitscope::graph::FeatureId;
use circuitscope::intervene::{
    Alternative, Change, CompareOptions, FeatureGroup, FeatureSpec, GenerateOptions, HeadChange, HeadIntervention,
    HeadSpec, Intervention, Measure, Mode, Positions, VerifyOptions,
};
use circuitscope::model::HookPoint;
use circuitscope::tracer::{ReadOptions, TokenizedPrompt};
use circuitscope::{
    AttributionOptions, Job, Prompt, PruneSettings, Result, RowChoice, RunOptions, Setup, Tracer as Opened, Visits,
};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::array::Array;
use crate::error::{Raise, input_error};
use crate::graph::{Graph, kept_features};
use crate::job;
use crate::run::{Run, Sweep};

/// A text, or token ids.
#[derive(FromPyObject)]
pub enum PromptArg {
    /// A text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

impl From<PromptArg> for Prompt {
    fn from(prompt: PromptArg) -> Prompt {
        match prompt {
            PromptArg::Text(text) => Prompt::Text(text),
            PromptArg::Tokens(tokens) => Prompt::Tokens(tokens),
        }
    }
}

/// `L_F_P`, whether it is scaled (else set), and by or to what.
type ChangeArg = (String, bool, f32);

/// `L.H@P`, what becomes of it (`zero`, `mean`, `like`), and the prompt that it becomes like.
type HeadArg = (String, String, Option<String>);

/// Name and `L_F_P` of its members.
type GroupArg = (String, Vec<String>);

/// How many tokens, temperature, top-p, seed, whether holds go on.
type GenerateArg = (usize, Option<f64>, Option<f64>, u64, bool);

/// The model and its transcoders; nothing once it is closed.
#[pyclass(frozen, module = "circuitscope._native")]
pub struct Tracer {
    inner: RwLock<Option<Arc<Opened>>>,
}

impl Tracer {
    /// The model, for the length of a call: closing meanwhile lets it go after the call.
    fn opened(&self, py: Python<'_>) -> PyResult<Arc<Opened>> {
        let opened = self.inner.read().unwrap_or_else(PoisonError::into_inner).clone();
        opened.ok_or_else(|| input_error(py, "the tracer is closed"))
    }
}

#[pymethods]
impl Tracer {
    #[staticmethod]
    fn open(
        py: Python<'_>,
        model: &str,
        transcoders: Option<&str>,
        device: &str,
        labels: Option<PathBuf>,
    ) -> PyResult<Tracer> {
        let opened = job::run(py, None, |_: &Job| {
            let mut setup = Setup::from_names(model, transcoders)?.device(device.parse()?);
            if let Some(labels) = labels {
                setup = setup.labels(labels);
            }
            Opened::open(setup)
        })?;
        Ok(Tracer { inner: RwLock::new(Some(Arc::new(opened))) })
    }

    fn close(&self) {
        self.inner.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    #[getter]
    fn closed(&self) -> bool {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Names and sizes: model, transcoders, layers, model dimension, vocabulary, features of every layer.
    fn info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let opened = self.opened(py)?;
        let replacement = opened.replacement();
        let config = &replacement.model.config;
        let info = PyDict::new(py);
        info.set_item("model", opened.model_name())?;
        info.set_item("transcoders", opened.transcoder_name())?;
        info.set_item("n_layers", config.n_layers)?;
        info.set_item("d_model", config.d_model)?;
        info.set_item("d_vocab", config.d_vocab)?;
        info.set_item("n_ctx", config.n_ctx)?;
        info.set_item("n_features", replacement.transcoders.n_features())?;
        info.set_item("device", opened.device_note().unwrap_or("computing on the CPU"))?;
        Ok(info)
    }

    fn tokenize(&self, py: Python<'_>, prompt: PromptArg) -> PyResult<(String, Vec<u32>)> {
        let opened = self.opened(py)?;
        let TokenizedPrompt { text, tokens } = job::short(py, || opened.tokenize(prompt))?;
        Ok((text, tokens))
    }

    fn token(&self, py: Python<'_>, text: &str) -> PyResult<u32> {
        self.opened(py)?.token(text).raised(py)
    }

    fn texts(&self, py: Python<'_>, ids: Vec<u32>) -> PyResult<Vec<String>> {
        let opened = self.opened(py)?;
        Ok(ids.into_iter().map(|id| opened.tokenizer().token(id)).collect())
    }

    fn decode(&self, py: Python<'_>, ids: Vec<u32>) -> PyResult<String> {
        Ok(self.opened(py)?.tokenizer().decode(&ids))
    }

    /// Directions that a text names, as `--target-direction` reads it: label and values of each.
    fn directions(&self, py: Python<'_>, text: &str) -> PyResult<Vec<(String, Array)>> {
        let opened = self.opened(py)?;
        let found = job::short(py, || circuitscope::tracer::directions(text, &opened))?;
        let array = |direction: circuitscope::tracer::NamedDirection| {
            let shape = vec![direction.vec.len()];
            (direction.label, Array::from_vec(direction.vec, shape))
        };
        Ok(found.into_iter().map(array).collect())
    }

    #[allow(clippy::too_many_arguments)]
    fn trace(
        &self,
        py: Python<'_>,
        prompt: PromptArg,
        targets: Vec<Bound<'_, PyAny>>,
        position: Option<usize>,
        max_logits: usize,
        logit_prob: f64,
        rows: (String, Option<usize>, Option<f64>, Option<usize>),
        open: Option<String>,
        batch_size: usize,
        keep_decoders: bool,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Graph> {
        let opened = self.opened(py)?;
        let targets = targets.iter().map(|target| target_of(target, &opened)).collect::<PyResult<_>>()?;
        let options = AttributionOptions {
            targets,
            position,
            max_logits,
            logit_prob,
            rows: row_choice(py, rows)?,
            batch_size,
            open: open.as_deref().map(OpenChoice::asked).transpose().raised(py)?.unwrap_or_default(),
            keep_decoders,
            finished: None,
        };
        let graph = job::run(py, progress, |job| opened.trace_with(prompt, &options, job))?;
        Ok(graph.into())
    }

    #[allow(clippy::too_many_arguments)]
    fn intervene(
        &self,
        py: Python<'_>,
        prompt: PromptArg,
        changes: Vec<ChangeArg>,
        heads: Vec<HeadArg>,
        groups: Vec<GroupArg>,
        mode: (String, Option<(usize, usize)>),
        generate: Option<GenerateArg>,
        target: Option<u32>,
        top: usize,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Run> {
        let opened = self.opened(py)?;
        let mut options = run_options(py, mode, &heads, &groups, target, top)?;
        options.generate = generate.map(|(n_tokens, temperature, top_p, seed, keep_frozen)| GenerateOptions {
            n_tokens,
            temperature,
            top_p,
            seed,
            keep_frozen,
        });
        let changes = interventions(&changes).raised(py)?;
        let run = job::run(py, progress, |job| opened.intervene_with(prompt, &changes, &options, job))?;
        Ok(Run { inner: Arc::new(run), tokenizer: opened.tokenizer().clone() })
    }

    #[allow(clippy::too_many_arguments)]
    fn sweep(
        &self,
        py: Python<'_>,
        prompt: PromptArg,
        always: Vec<ChangeArg>,
        swept: Option<(String, Vec<f32>)>,
        alternatives: Vec<(String, Vec<ChangeArg>)>,
        heads: Vec<HeadArg>,
        mode: (String, Option<(usize, usize)>),
        target: Option<u32>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Sweep> {
        let opened = self.opened(py)?;
        let options = run_options(py, mode, &heads, &[], target, CompareOptions::default().top)?;
        let always = interventions(&always).raised(py)?;
        let alternative = |(name, changes): (String, Vec<ChangeArg>)| -> Result<Alternative> {
            let interventions = always.iter().copied().chain(interventions(&changes)?).collect();
            Ok(Alternative { name, value: None, interventions, heads: Vec::new() })
        };
        let mut alternatives: Vec<Alternative> =
            alternatives.into_iter().map(alternative).collect::<Result<_>>().raised(py)?;
        if let Some((feature, values)) = swept {
            let feature = feature.parse::<FeatureSpec>().raised(py)?;
            alternatives.extend(circuitscope::intervene::Sweep { feature, values }.alternatives(&always));
        }
        let swept = job::run(py, progress, |job| opened.sweep_with(prompt, &always, &alternatives, &options, job))?;
        Ok(Sweep { inner: swept })
    }

    /// Active features, and what was asked for beside them.
    fn read<'py>(
        &self,
        py: Python<'py>,
        prompt: PromptArg,
        pre_activations: Vec<usize>,
        hooks: Vec<String>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let opened = self.opened(py)?;
        let hooks: Vec<HookPoint> = hooks.iter().map(|name| name.parse()).collect::<Result<_>>().raised(py)?;
        let options = ReadOptions { pre_activations, hooks };
        let found = job::run(py, progress, |job| opened.read(prompt, &options, job))?;
        let token = |&id: &u32| opened.tokenizer().token(id);
        let tensor = |values: circuitscope::tracer::Values| Array::from_vec(values.values, values.shape);
        let n_active = found.features.len();
        let n_vocab = found.logits.len();
        let reading = PyDict::new(py);
        reading.set_item("prompt", found.prompt.text)?;
        reading.set_item("prompt_tokens", found.prompt.tokens.iter().map(token).collect::<Vec<_>>())?;
        reading.set_item("tokens", found.prompt.tokens)?;
        reading.set_item("features", Array::from_vec(found.features, vec![n_active, 3]))?;
        reading.set_item("activations", Array::from_vec(found.activations, vec![n_active]))?;
        reading.set_item("logits", Array::from_vec(found.logits, vec![n_vocab]))?;
        reading.set_item("pre_activations", found.pre_activations.into_iter().map(tensor).collect::<Vec<_>>())?;
        reading.set_item("hooks", found.hooks.into_iter().map(tensor).collect::<Vec<_>>())?;
        Ok(reading)
    }

    /// Names of features, where they are known.
    fn labels(&self, py: Python<'_>, features: Vec<(u32, u32)>) -> PyResult<Vec<Option<String>>> {
        let opened = self.opened(py)?;
        let labels = &opened.replacement().transcoders.labels;
        Ok(features.into_iter().map(|(layer, feature)| labels.get(layer, feature).map(str::to_owned)).collect())
    }

    /// Checks a graph against the model; the report as JSON.
    #[allow(clippy::too_many_arguments)]
    fn verify(
        &self,
        py: Python<'_>,
        graph: &Graph,
        samples: usize,
        ablate: usize,
        seed: u64,
        node_threshold: f64,
        edge_threshold: f64,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<String> {
        let opened = self.opened(py)?;
        let kept =
            kept_features(py, &graph.inner, &PruneSettings { node_threshold, edge_threshold, ..Default::default() })?;
        let options = VerifyOptions { n_samples: samples, n_ablated: ablate, seed, kept };
        let found = job::run(py, progress, |job| opened.verify(graph.inner.graph(), &options, job))?;
        circuitscope::cli::json_text(&found).raised(py)
    }
}

/// Which rows are computed: the choice's name, a number of rows or features, a least influence, a number of nodes.
fn row_choice(
    py: Python<'_>,
    (name, count, theta, nodes): (String, Option<usize>, Option<f64>, Option<usize>),
) -> PyResult<RowChoice> {
    Ok(match (name.as_str(), count, theta, nodes) {
        ("auto", ..) => RowChoice::Auto,
        ("all", ..) => RowChoice::All,
        ("best first", Some(max_features), ..) => RowChoice::BestFirst { max_features },
        ("rows", Some(n_rows), _, nodes) => RowChoice::Sampled { visits: Visits::Rows(n_rows), nodes },
        ("theta", _, Some(theta), nodes) => RowChoice::Sampled { visits: Visits::Theta(theta), nodes },
        ("strongest", _, _, Some(nodes)) => RowChoice::Strongest { nodes },
        _ => return Err(input_error(py, "no such choice of rows")),
    })
}

/// What to explain, from a tuple that begins with its kind.
fn target_of(item: &Bound<'_, PyAny>, tracer: &Opened) -> PyResult<TargetRequest> {
    let py = item.py();
    let kind: String = item.get_item(0)?.extract()?;
    Ok(match kind.as_str() {
        "token" => TargetRequest::Token(item.get_item(1)?.extract()?),
        "difference" => TargetRequest::TokenDiff(item.get_item(1)?.extract()?, item.get_item(2)?.extract()?),
        "feature" => {
            let spec: FeatureSpec = item.get_item(1)?.extract::<String>()?.parse::<FeatureSpec>().raised(py)?;
            let Positions::At(pos) = spec.positions else {
                return Err(input_error(py, "a target is a feature at one position, such as 3_41_7"));
            };
            TargetRequest::Feature { layer: spec.layer, feature: spec.feature, pos }
        }
        "attention" => {
            let score: Score = item.get_item(1)?.extract::<String>()?.parse::<Score>().raised(py)?;
            let versus = item.get_item(2)?;
            let versus = match versus.extract::<Option<usize>>() {
                Ok(None) => Versus::Nothing,
                Ok(Some(key)) => Versus::Key(key),
                Err(_) if versus.extract::<String>()? == "rivals" => Versus::Rivals,
                Err(_) => return Err(input_error(py, "versus is the position of a key, \"rivals\" or nothing")),
            };
            TargetRequest::Score { score, versus }
        }
        "direction" => {
            let bytes = item.get_item(1)?;
            let bytes = bytes.cast::<PyBytes>()?.as_bytes();
            let vec: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect();
            let d_model = tracer.replacement().model.config.d_model;
            if vec.len() != d_model {
                let message = format!("a direction of {} values, the model has {d_model}", vec.len());
                return Err(input_error(py, &message));
            }
            TargetRequest::Direction { vec, label: item.get_item(2)?.extract()? }
        }
        _ => return Err(input_error(py, &format!("no such kind of target: {kind:?}"))),
    })
}

fn interventions(changes: &[ChangeArg]) -> Result<Vec<Intervention>> {
    let intervention = |(spec, is_scale, value): &ChangeArg| {
        let change = if *is_scale { Change::Scale(*value) } else { Change::Set(*value) };
        Ok(spec.parse::<FeatureSpec>()?.changed(change))
    };
    changes.iter().map(intervention).collect()
}

fn run_options(
    py: Python<'_>,
    (mode, constrained): (String, Option<(usize, usize)>),
    heads: &[HeadArg],
    groups: &[GroupArg],
    target: Option<u32>,
    top: usize,
) -> PyResult<RunOptions> {
    let mode = match (mode.as_str(), constrained) {
        (_, Some((start, end))) => Mode::Constrained(start..end),
        ("free", None) => Mode::Free,
        ("frozen-attention", None) => Mode::FrozenAttention,
        ("frozen-norms", None) => Mode::FrozenNorms,
        ("direct", None) => Mode::Direct,
        _ => {
            let message = format!("expected free, frozen-attention, frozen-norms or direct, found {mode:?}");
            return Err(input_error(py, &message));
        }
    };
    // Under constraints changes are direct effects, which act on pre-activations: those are the graph's edges.
    let measure = match mode {
        Mode::Free | Mode::FrozenAttention | Mode::FrozenNorms => Measure::Activation,
        Mode::Constrained(_) | Mode::Direct => Measure::PreActivation,
    };
    let heads = heads.iter().map(|head| head_intervention(py, head)).collect::<PyResult<_>>()?;
    let groups = groups.iter().map(|group| feature_group(py, group)).collect::<PyResult<_>>()?;
    let compare = CompareOptions { target, top, measure, ..CompareOptions::default() };
    Ok(RunOptions { mode, compare, generate: None, groups, heads })
}

fn head_intervention(py: Python<'_>, (spec, change, like): &HeadArg) -> PyResult<HeadIntervention> {
    let spec: HeadSpec = spec.parse::<HeadSpec>().raised(py)?;
    let change = match (change.as_str(), like) {
        ("zero", None) => HeadChange::Zero,
        ("mean", None) => HeadChange::Mean,
        ("like", Some(prompt)) => HeadChange::Like(prompt.clone()),
        _ => return Err(input_error(py, &format!("expected zero, mean or like with a prompt, found {change:?}"))),
    };
    Ok(spec.changed(change))
}

fn feature_group(py: Python<'_>, (name, members): &GroupArg) -> PyResult<FeatureGroup> {
    let member = |text: &String| -> PyResult<(FeatureId, Option<f32>)> {
        let spec: FeatureSpec = text.parse::<FeatureSpec>().raised(py)?;
        let whole = |value: usize| u32::try_from(value).ok();
        let Positions::At(pos) = spec.positions else {
            return Err(input_error(py, &format!("a group has features at one position each, not {text}")));
        };
        match (whole(spec.layer), whole(pos), whole(spec.feature)) {
            (Some(layer), Some(pos), Some(feature)) => Ok((FeatureId { layer, pos, feature }, None)),
            _ => Err(input_error(py, &format!("there is no feature {text}"))),
        }
    };
    Ok(FeatureGroup { name: name.clone(), members: members.iter().map(member).collect::<PyResult<_>>()? })
}
