//! What commands that run a model share: which model and transcoders, which device, how many threads.
//!
//! Each of them is looked for in this order: the option, the environment, the set-up that `--setup` names, the graph that
//! the command reads, and last the default set-up or the embedded model.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::Result;
use crate::error::ErrorContext;
use crate::features::FeatureSet;
use crate::graph::{CircuitMeta, GraphMeta};
use crate::memory::MemoryPlan;
use crate::tracer::{BaseModel, Setup, Tracer};
use crate::weights::ATLAS;

use super::config::{Config, NamedSetup};

/// More than any machine has cores; each takes memory of its own, and systems refuse some thousands.
const MAX_THREADS: i64 = 512;

/// What headers, a tokenizer and the embedded model take at most before a call plans its own memory.
const OPENING_BYTES: u64 = 24 << 20;

/// The environment's names of `--model`, `--transcoders`, `--setup` and `--device`.
pub(super) const VARIABLES: [&str; 4] =
    ["CIRCUITSCOPE_MODEL", "CIRCUITSCOPE_TRANSCODERS", "CIRCUITSCOPE_SETUP", "CIRCUITSCOPE_DEVICE"];

/// The model and where it runs.
#[derive(Debug, Default, Args)]
pub struct SetupArgs {
    /// Base model: a folder in Hugging Face layout, a .gguf file, a Hub id org/name[@revision], or `atlas` [default: that
    /// of the set-up, of the graph, or `atlas`; env: CIRCUITSCOPE_MODEL]
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Transcoders: a folder with a config.yaml, or a Hub id [default: as for --model; env: CIRCUITSCOPE_TRANSCODERS]
    #[arg(long, value_name = "FOLDER")]
    transcoders: Option<String>,
    /// Model and transcoders by the name that a circuitscope.toml gives them; `circuitscope setups` lists them [env:
    /// CIRCUITSCOPE_SETUP]
    #[arg(long, value_name = "NAME")]
    setup: Option<String>,
    /// Where to compute: auto (a GPU if this build can use one and it works), cpu, cuda or cuda:N [default: auto; env:
    /// CIRCUITSCOPE_DEVICE]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Threads to compute with [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MAX_THREADS))]
    threads: Option<u16>,
    /// No progress bars and no notes on stderr
    #[arg(long, short)]
    pub quiet: bool,
}

/// What a graph says about the model that it was traced with.
#[derive(Debug, Clone)]
pub(super) struct GraphSource {
    /// What says it: a graph, or features.
    kind: &'static str,
    file: PathBuf,
    model: Option<String>,
    transcoders: Option<String>,
}

impl GraphSource {
    /// Of a graph's metadata. Older files do not say where the transcoders were, but a set from the Hub is named after its
    /// repository.
    fn new(file: &Path, model: &str, transcoders: &str, scan: &str) -> Self {
        let named = |name: &str| (!name.is_empty()).then(|| name.to_owned());
        let transcoders = named(transcoders).or_else(|| named(scan).filter(|scan| scan.contains('/')));
        // The embedded ones need no name.
        let transcoders = transcoders.filter(|name| name != ATLAS);
        Self { kind: "graph", file: file.to_owned(), model: named(model), transcoders }
    }

    /// Of a folder of features: the model that they were collected with, and the transcoders that they lie beside.
    pub(super) fn of_features(set: &FeatureSet) -> Self {
        let folder = set.folder().path();
        let beside = folder.and_then(Path::parent).filter(|parent| parent.join("config.yaml").is_file());
        let model = set.manifest().subject.model.clone();
        Self {
            kind: "features",
            file: folder.unwrap_or(Path::new(ATLAS)).to_owned(),
            transcoders: beside.filter(|_| model != ATLAS).map(|beside| beside.display().to_string()),
            model: (!model.is_empty()).then_some(model),
        }
    }

    /// Of a raw graph.
    pub(super) fn of_raw(file: &Path, meta: &GraphMeta) -> Self {
        Self::new(file, &meta.model, &meta.transcoders, &meta.scan)
    }

    /// Of a circuit.
    pub(super) fn of_circuit(file: &Path, meta: &CircuitMeta) -> Self {
        Self::new(file, &meta.model, &meta.transcoders, &meta.scan)
    }
}

/// One place that may name a model and transcoders.
#[derive(Debug, Default)]
struct Names {
    model: Option<String>,
    transcoders: Option<String>,
}

/// What a command runs with.
#[derive(Debug)]
struct Resolved {
    model: String,
    transcoders: Option<String>,
    labels: Option<PathBuf>,
    device: String,
    /// Whether the model's name is the graph's.
    is_model_of_graph: bool,
    /// What somebody might not expect.
    note: Option<String>,
}

impl SetupArgs {
    /// Opens the model and its transcoders; names of features from `labels` go before those beside the transcoders.
    ///
    /// # Errors
    /// [`crate::Error::NeedsTranscoders`], [`crate::Error::UnknownSetup`], [`crate::Error::SetupFile`], [`crate::Error::Device`], and those of opening
    /// files.
    pub fn open(&self, labels: Option<&Path>) -> Result<Tracer> {
        self.open_with(labels, None)
    }

    /// Whether options name a model, transcoders or a set-up.
    pub(super) fn is_given(&self) -> bool {
        self.model.is_some() || self.transcoders.is_some() || self.setup.is_some()
    }

    /// As [`SetupArgs::open`]; what nothing else names, `graph` does.
    ///
    /// # Errors
    /// As [`SetupArgs::open`].
    pub(super) fn open_with(&self, labels: Option<&Path>, graph: Option<&GraphSource>) -> Result<Tracer> {
        let environment = VARIABLES.map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        let resolved = self.resolve(environment, Config::read, graph)?;
        if let Some(note) = &resolved.note {
            self.note(note);
        }
        let mut setup =
            Setup::from_names(&resolved.model, resolved.transcoders.as_deref())?.device(resolved.device.parse()?);
        if let Some(file) = labels.map(Path::to_owned).or(resolved.labels) {
            setup = setup.labels(file);
        }
        let tracer = match graph.filter(|_| resolved.is_model_of_graph) {
            Some(graph) => Tracer::open(setup).context(|| {
                format!("cannot open the model that the {} `{}` names", graph.kind, graph.file.display())
            })?,
            None => Tracer::open(setup)?,
        };
        if let Some(note) = tracer.device_note() {
            self.note(note);
        }
        Ok(tracer)
    }

    /// The transcoders that the command line names.
    pub(super) fn transcoders(&self) -> Option<&str> {
        self.transcoders.as_deref()
    }

    /// Opens the model alone, as the same places name it; transcoders that they name are not looked at.
    ///
    /// # Errors
    /// As [`SetupArgs::open`].
    pub(super) fn open_model(&self) -> Result<BaseModel> {
        let environment = VARIABLES.map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        let resolved = self.resolve(environment, Config::read, None)?;
        if let Some(note) = &resolved.note {
            self.note(note);
        }
        let model = BaseModel::open(&resolved.model, resolved.device.parse()?)?;
        if let Some(note) = &model.device_note {
            self.note(note);
        }
        Ok(model)
    }

    /// Which names win. `environment` holds the values of [`VARIABLES`]; `config` is read only where it matters.
    fn resolve(
        &self,
        environment: [Option<String>; 4],
        config: impl Fn() -> Result<Config>,
        graph: Option<&GraphSource>,
    ) -> Result<Resolved> {
        let [env_model, env_transcoders, env_setup, env_device] = environment;
        let mut named: Option<NamedSetup> = match self.setup.as_ref().or(env_setup.as_ref()) {
            Some(name) if name == ATLAS => Some(embedded()),
            Some(name) => Some(config()?.get(name)?.clone()),
            None => None,
        };
        let note = (self.setup.is_some() && self.model.is_none())
            .then(|| env_model.as_ref().map(|model| format!("the model is CIRCUITSCOPE_MODEL's, {model}")))
            .flatten();
        let given = Names { model: self.model.clone(), transcoders: self.transcoders.clone() };
        let environment = Names { model: env_model, transcoders: env_transcoders };
        let of_setup =
            |setup: &NamedSetup| Names { model: Some(setup.model.clone()), transcoders: setup.transcoders.clone() };
        let graph = graph.map(|graph| Names { model: graph.model.clone(), transcoders: graph.transcoders.clone() });
        let mut places = vec![given, environment];
        places.push(named.as_ref().map(of_setup).unwrap_or_default());
        places.push(graph.unwrap_or_default());
        const GRAPH: usize = 3;
        if places.iter().all(|names| names.model.is_none()) {
            // Nobody has said anything of a model: the default, as a whole.
            let config = config()?;
            let default = config.default.as_deref().filter(|name| *name != ATLAS);
            let default = default.map(|name| config.get(name).cloned()).transpose()?.unwrap_or_else(embedded);
            places.push(of_setup(&default));
            named = Some(default);
        }
        let at = places.iter().position(|names| names.model.is_some()).unwrap_or(places.len() - 1);
        let model = places[at].model.clone().unwrap_or_else(|| ATLAS.to_owned());
        // `atlas` brings its transcoders: what stands behind its name is of other models.
        let places = if model == ATLAS { &places[..=at] } else { &places[..] };
        Ok(Resolved {
            transcoders: places.iter().find_map(|names| names.transcoders.clone()),
            labels: named.as_ref().and_then(|setup| setup.labels.clone()),
            device: [self.device.clone(), env_device, named.and_then(|setup| setup.device)]
                .into_iter()
                .flatten()
                .next()
                .unwrap_or_else(|| "auto".to_owned()),
            is_model_of_graph: at == GRAPH,
            model,
            note,
        })
    }

    pub(super) fn note(&self, text: &str) {
        if !self.quiet {
            super::note(text);
        }
    }

    /// Starts as many threads as are wanted. The first thing a command does: nothing else may run yet.
    ///
    /// # Errors
    /// [`crate::Error::Threads`], [`crate::Error::OutOfMemory`].
    pub fn start_threads(&self) -> Result<()> {
        if let Some(threads) = self.threads {
            // SAFETY: called before any other thread of this program exists but the one that waits for signals, which reads
            // no variable; candle reads this one when it multiplies matrices.
            unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
        }
        super::start_threads(self.threads.map(usize::from))?;
        // What is read before there is a plan of a call's own.
        let opening = MemoryPlan::new().with("opening a model", OPENING_BYTES);
        opening.check(|| "beginning".to_owned(), |_| "no prompt fits: the program alone needs more".to_owned())
    }
}

/// The set-up that every program has.
fn embedded() -> NamedSetup {
    let (name, file) = (ATLAS.to_owned(), PathBuf::new());
    NamedSetup { name, file, model: ATLAS.to_owned(), transcoders: None, labels: None, device: None }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn args(model: Option<&str>, transcoders: Option<&str>, setup: Option<&str>) -> SetupArgs {
        let owned = |name: Option<&str>| name.map(str::to_owned);
        let (model, transcoders, setup) = (owned(model), owned(transcoders), owned(setup));
        SetupArgs { model, transcoders, setup, device: None, threads: None, quiet: true }
    }

    fn config(default: Option<&str>) -> Config {
        let setup = |name: &str| NamedSetup {
            name: name.to_owned(),
            file: "circuitscope.toml".into(),
            model: format!("model of {name}"),
            transcoders: Some(format!("transcoders of {name}")),
            labels: None,
            device: Some(format!("device of {name}")),
        };
        let setups: BTreeMap<_, _> = ["named", "default"].map(|name| (name.to_owned(), setup(name))).into();
        Config { setups, default: default.map(str::to_owned), files: Vec::new() }
    }

    #[test]
    fn names_are_looked_for_in_the_promised_order() {
        // Every choice of the four places that may name a model; the default comes last, as a whole.
        for bits in 0..16 {
            let has = |place: usize| bits & (1 << place) != 0;
            let some = |place: usize, name: &str| has(place).then(|| name.to_owned());
            let graph = GraphSource {
                kind: "graph",
                file: "graph".into(),
                model: Some("model of graph".into()),
                transcoders: Some("transcoders of graph".into()),
            };
            let args = args(has(0).then_some("model of option"), None, has(2).then_some("named"));
            let environment = [some(1, "model of environment"), None, None, None];
            let graph = has(3).then_some(&graph);
            let found = args.resolve(environment, || Ok(config(Some("default"))), graph).unwrap();
            let order = ["option", "environment", "named", "graph"];
            let first = (0..4).find(|&place| has(place)).map_or("default", |place| order[place]);
            assert_eq!(found.model, format!("model of {first}"), "{bits:b}");
            // No option and no variable names transcoders: the first of the set-up and the graph does. The default goes
            // with its own model only.
            let first = [2, 3].into_iter().find(|&place| has(place)).map(|place| order[place]);
            let first = first.or_else(|| (bits == 0).then_some("default"));
            assert_eq!(found.transcoders, first.map(|first| format!("transcoders of {first}")), "{bits:b}");
            assert_eq!(
                found.device,
                if has(2) {
                    "device of named"
                } else if bits == 0 {
                    "device of default"
                } else {
                    "auto"
                }
            );
            assert_eq!(found.note.is_some(), !has(0) && has(1) && has(2), "{bits:b}");
        }
    }

    #[test]
    fn the_embedded_model_keeps_its_own_transcoders() {
        let environment = || [Some("other".to_owned()), Some("of other".to_owned()), None, None];
        let none = || [None, None, None, None];
        let found = args(Some(ATLAS), None, None).resolve(environment(), || Ok(config(None)), None).unwrap();
        assert_eq!((found.model.as_str(), found.transcoders), (ATLAS, None));
        let found = args(None, None, Some(ATLAS)).resolve(none(), || Ok(config(Some("default"))), None).unwrap();
        assert_eq!((found.model.as_str(), found.transcoders), (ATLAS, None));
        let found = args(None, Some("mine"), None).resolve(none(), || Ok(config(None)), None).unwrap();
        assert_eq!((found.model.as_str(), found.transcoders.as_deref()), (ATLAS, Some("mine")));
    }

    #[test]
    fn a_configuration_is_read_only_where_it_matters() {
        let broken = || Err(crate::Error::SetupFile { file: "x".into(), problem: "broken".into() });
        assert!(args(Some("a"), Some("b"), None).resolve([None, None, None, None], broken, None).is_ok());
        assert!(args(None, Some("b"), None).resolve([None, None, None, None], broken, None).is_err());
    }
}
