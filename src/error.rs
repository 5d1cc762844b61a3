//! `error`: what can go wrong, one variant per way to be wrong.
//!
//! A variant holds the name of the thing and both sides that disagree, never the name of a command-line option: who
//! calls may be a program, a server or Python. [`Error::kind`] sorts the variants for those who must react,
//! [`std::error::Error::source`] leads to the causes, and [`Error::hint`] says what to do where that is known. The
//! command line adds its options in one table (`cli::hints`).

use std::path::PathBuf;

/// Everything that can go wrong in this library.
// The message of a variant says what each of its fields is, better than a sentence beside the field could.
#[allow(missing_docs)]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What was being done when `source` happened, e.g. `cannot load the transcoder of layer 7`.
    #[error("{doing}")]
    Context {
        doing: String,
        #[source]
        source: Box<Error>,
    },

    /// An operation on a file or folder failed. `doing` is a verb phrase without the path: `cannot read`.
    #[error("{doing} `{}`", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    /// The system gives no threads.
    #[error("cannot start the threads that share the work: {reason}")]
    Threads {
        /// What it says.
        reason: String,
    },

    /// The job of this call was cancelled ([`crate::job::CancelToken`]).
    #[error("cancelled")]
    Cancelled,

    // graph, prune, export
    /// Two parts of a graph disagree about their size.
    #[error("`{name}` of the graph has shape {actual:?}, expected {expected:?}")]
    GraphShape { name: &'static str, expected: Vec<usize>, actual: Vec<usize> },

    /// An index in a graph points outside of what it indexes.
    #[error("{name} {index} of the graph is {value}, must be below {limit}")]
    GraphIndex { name: &'static str, index: usize, value: usize, limit: usize },

    /// A list of a graph is not strictly ascending at `index`.
    #[error("{name} of the graph are not in ascending order at entry {index}")]
    GraphOrder { name: &'static str, index: usize },

    /// A number of a graph is NaN or infinite.
    #[error("`{name}` of the graph holds a value at {index} that is not finite")]
    GraphNotFinite { name: &'static str, index: usize },

    /// Two nodes of a graph with no edge between them.
    #[error("no edge leads from {source_id} to {target_id}")]
    NoEdge { source_id: String, target_id: String },

    /// Names that stand for several edges.
    #[error("{n_edges} edges lead from {source_id} to {target_id}: name one node of each")]
    SeveralEdges { source_id: String, target_id: String, n_edges: usize },

    /// A target whose direction a graph's file does not tell.
    #[error("the graph does not tell what its target {label:?} reads: trace it again")]
    UnknownTarget { label: String },

    /// A number of a graph is negative that must not be.
    #[error("`{name}` of the graph holds a negative value at {index}")]
    GraphNegative { name: &'static str, index: usize },

    /// A node is in a circuit twice.
    #[error("the graph holds {node} twice")]
    CircuitDuplicate { node: String },

    /// The edges of a circuit go round in a circle.
    #[error("the graph has a cycle through {node}")]
    CircuitCycle { node: String },

    /// A name that is to be a file's and cannot be.
    #[error("the name {name:?} {problem}")]
    FileName { name: String, problem: &'static str },

    /// A pipe or a device where a file is needed.
    #[error("`{}` is a pipe or a device, and {what} must be a file: it is not read from start to end", path.display())]
    MustBeFile { path: PathBuf, what: &'static str },

    /// An output that is one of the inputs: the same file, whatever it is called.
    #[error("`{}` is read, and cannot be written over: it is the same file as `{}`", output.display(), input.display())]
    OwnInput { output: PathBuf, input: PathBuf },

    /// A file that is to be written is there already, and was not written by this program.
    #[error("`{}` is there already and is no graph", file.display())]
    InTheWay { file: PathBuf },

    /// A graph that somebody has pinned or grouped nodes in would be replaced by one without.
    #[error("`{}` holds pinned nodes or supernodes", file.display())]
    WorkedOn { file: PathBuf },

    /// A raw graph would be replaced by its JSON graph, which holds less.
    #[error("`{}` is a raw graph, and cannot be written over by a JSON graph", file.display())]
    RawInTheWay { file: PathBuf },

    /// A file that is to be written holds the graph of another trace.
    #[error("`{}` holds another graph: {difference}", file.display())]
    OtherGraph { file: PathBuf, difference: String },

    /// A node of a JSON graph whose id or layer makes no sense.
    #[error("node `{id}` of the graph cannot be read: {reason}")]
    WireNode { id: String, reason: String },

    /// A link of a JSON graph names a node that is not there.
    #[error("the link from `{source_id}` to `{target_id}` names node `{missing}`, which is not in the graph")]
    LinkToNowhere { source_id: String, target_id: String, missing: String },

    /// A node was asked for that is not in the circuit.
    #[error("there is no node `{id}` in the graph")]
    UnknownNode { id: String, near: Vec<String> },

    /// A node was asked for that is not in the chosen part of the circuit.
    #[error("`{id}` ({node}) is in the graph, but not in the chosen part of it")]
    NotInPart { id: String, node: String },

    /// A node was asked for that pruning has dropped. `cumulative` is the share of influence that is reached at its rank.
    #[error("`{id}` is in the raw graph, but pruning has dropped it: the node threshold is {threshold}")]
    PrunedNode { id: String, threshold: f64, cumulative: f64 },

    /// A node was asked for that is not in a graph that was pruned before.
    #[error("there is no node `{id}` in the graph, which was pruned before: its node threshold was {threshold}")]
    MaybePruned { id: String, threshold: f64 },

    /// A raw graph of another format version.
    #[error("`{}` has format version {actual}, expected {expected}", path.display())]
    GraphVersion { path: PathBuf, actual: u32, expected: u32 },

    /// A pruning threshold is no share; `name` is the field that holds it.
    #[error("`{name}` is {value}, must be in 0..=1")]
    Threshold { name: &'static str, value: f64 },

    /// A supernode that cannot be.
    #[error("the supernode `{name}` {problem}")]
    Supernode { name: String, problem: String },

    /// A JSON graph would be written over itself.
    #[error("the JSON graph `{graph}` would be replaced by a part of itself")]
    NeedsOutput { graph: String },

    /// A JSON graph that is too large to be looked at as it is.
    #[error("the graph has {n_links} links, more than {limit}")]
    TooManyLinks { n_links: usize, limit: usize },

    /// A picture that cannot be made.
    #[error("cannot draw the graph: {reason}")]
    Picture { reason: String },

    /// A tensor operation failed: out of memory, a device error, or a bug of ours.
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),

    // weights
    /// A file does not have the structure of its format: truncated, a length that lies, an unknown version.
    #[error("`{file}` is not a valid {format} file: {reason}")]
    Damaged { file: String, format: &'static str, reason: String },

    /// A file that must be there is not.
    #[error("`{file}` is missing from `{folder}`")]
    MissingFile { file: String, folder: String },

    /// A tensor that must be there is not.
    #[error("`{file}` has no tensor `{name}`")]
    MissingTensor { name: String, file: String },

    /// Two files of one checkpoint hold a tensor of the same name.
    #[error("tensor `{name}` is both in `{first}` and in `{second}`")]
    DuplicateTensor { name: String, first: String, second: String },

    /// A tensor has another shape than its use needs.
    #[error("`{tensor}` in `{file}` has shape {actual:?}, expected {expected:?}")]
    Shape { tensor: String, file: String, actual: Vec<usize>, expected: Vec<usize> },

    /// A tensor's elements have a type that is not read.
    #[error("`{tensor}` in `{file}` has dtype {dtype}, expected {expected}")]
    Dtype { tensor: String, file: String, dtype: String, expected: &'static str },

    /// A weight is NaN or infinite.
    #[error("`{tensor}` in `{file}` is {value} at {index:?}")]
    NotFinite { tensor: String, file: String, index: Vec<usize>, value: f32 },

    /// Rows or columns were asked for that the tensor does not have.
    #[error("`{tensor}` in `{file}` has {len} along dimension {dim}, asked for index {index}")]
    OutOfRange { tensor: String, file: String, dim: usize, index: usize, len: usize },

    /// A GGUF file lacks a metadata key, or the key has another type.
    #[error("`{file}` has no usable metadata key `{key}`: {reason}")]
    Metadata { file: String, key: String, reason: String },

    /// A GGUF file of an architecture that is not read.
    #[error("`{file}` holds a model of architecture `{architecture}`, expected one of {expected}")]
    Architecture { file: String, architecture: String, expected: &'static str },

    /// A tokenizer could not be built.
    #[error("cannot build the tokenizer from `{file}`: {reason}")]
    Tokenizer { file: String, reason: String },

    /// A prompt without any token.
    #[error("the prompt is empty")]
    EmptyPrompt,

    /// A text that must be one token is several, or none.
    #[error("{text:?} is not one token; it is encoded as {}", quoted(tokens))]
    NotOneToken { text: String, tokens: Vec<String>, near: Vec<String> },

    /// A model or transcoder name that is neither a path nor a Hub id.
    #[error("`{spec}` is neither a folder, nor a .gguf file, nor a Hub id `org/name[@revision]`")]
    UnknownSource { spec: String },

    /// A file of a Hub repository is not in the local cache, and the network may not be used.
    #[error(
        "`{file}` of `{repo}` (revision `{revision}`) is not in the local cache `{cache}`, and HF_HUB_OFFLINE is set"
    )]
    NotCached { repo: String, revision: String, file: String, cache: String },

    /// The Hub did not give a file.
    #[error("cannot fetch `{file}` of `{repo}` (revision `{revision}`): {reason}")]
    Hub { repo: String, revision: String, file: String, reason: String },

    // model, transcoder, replacement, attribution
    /// A `model_type` that no description exists for.
    #[error("model family `{model_type}` is not known; known families: {}", known.join(", "))]
    UnknownFamily { model_type: String, known: Vec<&'static str> },

    /// A key of a `config.json` is missing or asks for something that is not supported.
    #[error("`{key}` in the model's config {problem}")]
    Config { key: String, problem: String },

    /// A token id past the end of the vocabulary.
    #[error("token id {token} is outside the vocabulary of {d_vocab} tokens")]
    TokenOutOfRange { token: u32, d_vocab: usize },

    /// A text that names no hook point.
    #[error("`{name}` is no hook point; known are blocks.LAYER. with {in_block}, and {outside}")]
    UnknownHookPoint { name: String, in_block: String, outside: String },

    /// A hook replaced a tensor by one of another shape.
    #[error("the tensor that is to stand at `{point}` has shape {actual:?}, expected {expected:?}")]
    HookShape { point: String, actual: Vec<usize>, expected: Vec<usize> },

    /// A tensor was asked for that a run did not keep.
    #[error("the tensor at `{point}` was not kept")]
    NotKept { point: String },

    /// A cache of keys and values that does not go with the tokens that are to follow it.
    #[error("the cache of keys and values holds {cache}, but the pass needs {pass}")]
    Cache { cache: String, pass: String },

    /// A prompt longer than the model's context.
    #[error("the prompt has {n_pos} tokens, but the model's context is {n_ctx}")]
    PromptTooLong { n_pos: usize, n_ctx: usize },

    /// A position that the prompt does not have.
    #[error("position {pos} does not exist: the prompt has {n_pos} positions, 0..={}", n_pos - 1)]
    NoSuchPosition { pos: usize, n_pos: usize },

    /// A position that is closed, where an open one is needed.
    #[error("position {pos} is closed: it has no features, no errors and no gradient of its own")]
    ClosedPosition { pos: usize },

    /// Finished rows that were kept are of another graph.
    #[error("`{file}` holds finished rows of another graph: {what} {there}, here {here}")]
    OtherRows { file: String, what: &'static str, there: String, here: String },

    /// Something that is computed on the CPU alone.
    #[error("{what} is computed on the CPU alone")]
    NeedsCpu { what: &'static str },

    /// Something that needs every position to be open.
    #[error("{what} needs all positions to be open")]
    NeedsAllOpen { what: String },

    /// A head that a layer does not have.
    #[error("head {layer}.{head} does not exist: each layer has {n_heads} heads, 0..={}", n_heads - 1)]
    NoSuchHead { layer: usize, head: usize, n_heads: usize },

    /// A key that a query may not see.
    #[error("score {score}: position {query} cannot look at {key}, {}", match window {
        Some(window) if key <= query => format!("which is not among the last {window} that the layer's window shows"),
        _ => "which comes after it".into(),
    })]
    KeyNotSeen { score: String, query: usize, key: usize, window: Option<usize> },

    /// A key that gets all attention.
    #[error("score {score}: the key has no rivals, it gets all of the attention")]
    NoRivals { score: String },

    /// A score that is compared with itself.
    #[error("score {score}: versus key {key} it is compared with itself, and nothing is left to explain")]
    SameKey { score: String, key: usize },

    /// A feature that the transcoders do not have.
    #[error("feature {layer}_{feature} does not exist: layer {layer} has {n_features} features, 0..={}", n_features.saturating_sub(1))]
    NoSuchFeature { layer: usize, feature: usize, n_layers: usize, n_features: usize },

    /// A folder of transcoders that cannot be understood.
    #[error("the transcoders in `{folder}`: {problem}")]
    Transcoders { folder: String, problem: String },

    /// A hook that a transcoder cannot be attached to.
    #[error("`{key}` is `{name}`; known hooks: {}", known.join(", "))]
    UnknownHook { key: &'static str, name: String, known: Vec<&'static str> },

    /// Transcoders for another number of layers.
    #[error("`{folder}` has transcoders for {transcoders} layers, but the model has {model}")]
    LayerCount { folder: String, transcoders: usize, model: usize },

    /// A target direction that is not a finite vector of the model's width.
    #[error("direction `{label}` has {n_values} values, expected {d_model} finite ones")]
    Direction { label: String, n_values: usize, d_model: usize },

    /// A model without transcoders for it.
    #[error("no transcoders are named for the model `{model}`")]
    NeedsTranscoders { model: String },

    /// A name that no configuration has a set-up for.
    #[error("there is no set-up `{name}`{}", if known.is_empty() { String::new() } else { format!("; there are {}", known.join(", ")) })]
    UnknownSetup { name: String, nearest: Option<String>, known: Vec<String>, files: Vec<String> },

    /// A configuration of set-ups that cannot be understood.
    #[error("the configuration `{file}`: {problem}")]
    SetupFile { file: String, problem: String },

    /// A device that cannot be used.
    #[error("cannot use the device `{name}`: {reason}")]
    Device { name: String, reason: String },

    /// More memory would be needed than there is; nothing of that size was allocated.
    #[error("{doing} needs {needed} of memory ({}), but {} are left of {}", why.parts, why.left, why.limit)]
    OutOfMemory {
        doing: String,
        needed: String,
        /// What needs how much, and what would fit.
        why: Box<Shortage>,
    },

    /// A number that was computed is NaN or infinite: what follows from it would mean nothing.
    #[error("the numbers computed are not finite from here on: {quantity} is {value}")]
    ComputedNotFinite { quantity: String, value: f32 },

    // intervene
    /// The model's logits leave no choice of a next token.
    #[error("the model's logits are not finite, so no next token can be chosen")]
    LogitsNotFinite,

    /// A layer that the model does not have.
    #[error("layer {layer} does not exist: the model has {n_layers} layers, 0..={}", n_layers.saturating_sub(1))]
    NoSuchLayer { layer: usize, n_layers: usize },

    /// A range without anything in it.
    #[error("the range {start}..{end} of {what} is empty")]
    EmptyRange { what: &'static str, start: usize, end: usize },

    /// A text that does not say what to change.
    #[error("`{text}` is not {expected}")]
    Spec { text: String, expected: &'static str },

    /// A feature that is to be scaled where it is not active.
    #[error("feature {layer}_{feature} is not active at {positions}, so it cannot be scaled")]
    InactiveFeature { layer: usize, feature: usize, positions: String },

    /// The address of a graph's page that says nothing of this graph.
    #[error("cannot read the address of the graph's page: {problem}")]
    SharedView { problem: String },

    /// A name that a graph has no supernode or label for.
    #[error("`{graph}` has no supernode and no feature labelled `{name}`")]
    UnknownSupernode { name: String, graph: String, nearest: Option<String>, known: Vec<String> },

    /// A name that several supernodes of a graph have.
    #[error("`{graph}` has several supernodes named `{name}`: {}", members.join(" and "))]
    AmbiguousSupernode { name: String, graph: String, members: Vec<String> },

    /// A feature of a graph that does not say how active it is.
    #[error("`{file}` does not say how active `{node}` is")]
    NoActivation { node: String, file: String },

    /// A position of another prompt that has none like it in this one.
    #[error("position {pos}, {token:?}, of `{file}` has no counterpart in this prompt")]
    NoCounterpart { pos: usize, token: String, file: String },

    /// Prompts that cannot be laid over each other.
    #[error("the prompt has {here} tokens, that of {other} {there}")]
    PromptLengths { here: usize, there: usize, other: String },

    /// Two prompts of the same tokens, where their difference is asked for.
    #[error("the prompt has the same tokens as that of {other}, so there is nothing to exchange")]
    SamePrompt { other: String },

    /// A file that is no plan of interventions.
    #[error("the plan `{file}`: {problem}")]
    Plan { file: String, problem: String },

    /// A run without any change.
    #[error("nothing is to be changed")]
    NothingToChange,

    /// Two requests that cannot both hold.
    #[error("`{first}` does not go with {second}")]
    Contradiction { first: &'static str, second: &'static str },

    /// A graph that was traced on another model, prompt or transcoder set.
    #[error("the graph is of another model: its {what} {graph}, here {model}")]
    GraphMismatch { what: &'static str, graph: String, model: String },

    // features
    /// A folder of features of another format version.
    #[error("`{}` has format version {actual}, expected {expected}", path.display())]
    FeaturesVersion { path: PathBuf, actual: u64, expected: u32 },

    /// Features of another model or transcoder set.
    #[error("the features in `{folder}` are of another {what}: {features}, here {here}")]
    FeaturesMismatch { folder: String, what: &'static str, features: String, here: String },

    /// Examples are asked for, and there are no features to take them from.
    #[error("there are no collected features beside the transcoders `{transcoders}`")]
    NoFeatures { transcoders: String },

    /// Text that cannot be read as text.
    #[error("cannot use the text `{file}`: {problem}")]
    Text { file: String, problem: String },

    /// Text of which nothing is held out.
    #[error("no document of `{file}` is held out: it has {n_documents}, and about one of 20 is, told by a hash")]
    NothingHeldOut { file: String, n_documents: u64 },

    /// Features that cannot be collected or merged as asked for.
    #[error("cannot collect features into `{folder}`: {problem}")]
    Collect { folder: String, problem: String },

    /// Features of another program that cannot be read.
    #[error("the features in `{path}`: {problem}")]
    FeatureFiles { path: String, problem: String },

    /// A service that names features did not do so.
    #[error("the explainer {url}: {problem}")]
    Explainer { url: String, problem: String },

    /// A line of a file of prompts, or such a file, that asks for nothing that can be traced.
    #[error("{problem}")]
    Prompts { problem: String },

    /// A site does not say what it knows of a feature.
    #[error("{address}: {problem}")]
    Site { address: String, problem: String },

    /// Training that cannot be done as it was asked for.
    #[error("cannot train: {problem}")]
    Train { problem: String },

    /// A setting outside its range; `name` is the field that holds it.
    #[error("`{name}` is {value}, expected {range}")]
    Setting { name: &'static str, value: f64, range: &'static str },
}

/// Texts as they are shown in messages: quoted, comma-separated.
fn quoted(texts: &[String]) -> String {
    texts.iter().map(|t| format!("{t:?}")).collect::<Vec<_>>().join(", ")
}

/// The result of every fallible function of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of thing went wrong, for callers that must react: a server's status code, a retry, an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file, folder or pipe could not be read or written.
    Io,
    /// A file is damaged, or is not what it should be.
    Format,
    /// Two things do not belong together: a graph and another model, transcoders and a model of another size.
    Mismatch,
    /// What was asked for is not there: a node, a token, a position, a file of a repository.
    NotFound,
    /// The request itself makes no sense: an empty range, a setting outside its range.
    Request,
    /// What was asked for is larger than what can be done.
    TooLarge,
    /// The network or the Hub failed.
    Network,
    /// The device failed, or a tensor operation on it.
    Device,
    /// The caller asked to stop.
    Cancelled,
}

/// Why memory does not suffice.
#[derive(Clone, Debug)]
pub struct Shortage {
    /// What needs how much.
    pub parts: String,
    /// What is left.
    pub left: String,
    /// Of which limit.
    pub limit: &'static str,
    /// What would fit.
    pub fits: String,
}

impl Error {
    /// What sort of thing went wrong; of an error with context, that of its cause.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Context { source, .. } => source.kind(),
            Error::Io { .. } => ErrorKind::Io,
            Error::Tensor(_) | Error::Device { .. } => ErrorKind::Device,
            Error::Cancelled => ErrorKind::Cancelled,
            Error::Hub { .. } | Error::Explainer { .. } | Error::Site { .. } => ErrorKind::Network,
            Error::TooManyLinks { .. }
            | Error::PromptTooLong { .. }
            | Error::OutOfMemory { .. }
            | Error::Threads { .. } => ErrorKind::TooLarge,
            Error::UnknownNode { .. }
            | Error::NotInPart { .. }
            | Error::PrunedNode { .. }
            | Error::MaybePruned { .. }
            | Error::UnknownSource { .. }
            | Error::UnknownSetup { .. }
            | Error::UnknownSupernode { .. }
            | Error::AmbiguousSupernode { .. }
            | Error::NoActivation { .. }
            | Error::NoCounterpart { .. }
            | Error::NotCached { .. }
            | Error::MissingFile { .. }
            | Error::NotOneToken { .. }
            | Error::TokenOutOfRange { .. }
            | Error::NoSuchPosition { .. }
            | Error::NoSuchFeature { .. }
            | Error::NoSuchLayer { .. }
            | Error::NoSuchHead { .. }
            | Error::NoEdge { .. }
            | Error::UnknownHookPoint { .. }
            | Error::InactiveFeature { .. } => ErrorKind::NotFound,
            Error::PromptLengths { .. }
            | Error::LayerCount { .. }
            | Error::GraphMismatch { .. }
            | Error::FeaturesMismatch { .. }
            | Error::Cache { .. } => ErrorKind::Mismatch,
            Error::Threshold { .. }
            | Error::FileName { .. }
            | Error::OtherGraph { .. }
            | Error::OtherRows { .. }
            | Error::MustBeFile { .. }
            | Error::OwnInput { .. }
            | Error::InTheWay { .. }
            | Error::WorkedOn { .. }
            | Error::RawInTheWay { .. }
            | Error::Supernode { .. }
            | Error::NeedsOutput { .. }
            | Error::Picture { .. }
            | Error::EmptyPrompt
            | Error::Direction { .. }
            | Error::NeedsTranscoders { .. }
            | Error::EmptyRange { .. }
            | Error::Spec { .. }
            | Error::NothingToChange
            | Error::SamePrompt { .. }
            | Error::SharedView { .. }
            | Error::Contradiction { .. }
            | Error::HookShape { .. }
            | Error::NotKept { .. }
            | Error::Collect { .. }
            | Error::Prompts { .. }
            | Error::NoFeatures { .. }
            | Error::SeveralEdges { .. }
            | Error::KeyNotSeen { .. }
            | Error::ClosedPosition { .. }
            | Error::NeedsAllOpen { .. }
            | Error::NeedsCpu { .. }
            | Error::NoRivals { .. }
            | Error::SameKey { .. }
            | Error::Train { .. }
            | Error::Setting { .. } => ErrorKind::Request,
            Error::GraphShape { .. }
            | Error::GraphIndex { .. }
            | Error::GraphOrder { .. }
            | Error::GraphNotFinite { .. }
            | Error::UnknownTarget { .. }
            | Error::GraphNegative { .. }
            | Error::CircuitDuplicate { .. }
            | Error::CircuitCycle { .. }
            | Error::WireNode { .. }
            | Error::LinkToNowhere { .. }
            | Error::GraphVersion { .. }
            | Error::Damaged { .. }
            | Error::MissingTensor { .. }
            | Error::DuplicateTensor { .. }
            | Error::Shape { .. }
            | Error::Dtype { .. }
            | Error::NotFinite { .. }
            | Error::LogitsNotFinite
            | Error::ComputedNotFinite { .. }
            | Error::OutOfRange { .. }
            | Error::Metadata { .. }
            | Error::Architecture { .. }
            | Error::Tokenizer { .. }
            | Error::UnknownFamily { .. }
            | Error::Config { .. }
            | Error::Transcoders { .. }
            | Error::UnknownHook { .. }
            | Error::FeaturesVersion { .. }
            | Error::Text { .. }
            | Error::NothingHeldOut { .. }
            | Error::FeatureFiles { .. }
            | Error::SetupFile { .. }
            | Error::Plan { .. } => ErrorKind::Format,
        }
    }

    /// The error under all context.
    pub fn root(&self) -> &Error {
        match self {
            Error::Context { source, .. } => source.root(),
            root => root,
        }
    }

    /// What can be done about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        Some(match self.root() {
            // What somebody fetches; graphs and labels are written here.
            Error::Damaged { format, .. } if ["safetensors", "GGUF", "npz"].contains(format) => {
                "the file may be an incomplete download; fetch it again".into()
            }
            Error::NotFinite { .. } => "the file is damaged or was written from a failed training run".into(),
            Error::OutOfMemory { why, .. } => why.fits.clone(),
            Error::Threads { .. } => {
                "raise the limits of memory or of processes (`ulimit -a` shows them), or start fewer with RAYON_NUM_THREADS=1"
                    .into()
            }
            Error::ComputedNotFinite { .. } => {
                "32-bit floats end at 3.4e38: change features by less, or check the weights, which may be damaged"
                    .into()
            }
            Error::NotOneToken { near, .. } if !near.is_empty() => {
                format!("these are single tokens: {}; leading spaces count", quoted(near))
            }
            Error::UnknownSource { spec } => format!(
                "check the path; `{spec}` does not exist here, and Hub ids have exactly one `/` (or are hf://org/name/folder)"
            ),
            Error::NotCached { repo, revision, file, cache } => format!(
                "with network: `hf download {repo} --revision {revision}` or run again without HF_HUB_OFFLINE; \
                 without: put `{file}` and the repository's other files into a folder and give its path, \
                 or copy the repository's folder from another machine's cache into `{cache}`"
            ),
            Error::Hub { .. } => "gated repositories need HF_TOKEN; a downloaded folder works as well".into(),
            Error::LayerCount { transcoders, .. } => {
                format!("this transcoder set was trained for a model of {transcoders} layers")
            }
            Error::MustBeFile { .. } => "write it into a file first".into(),
            Error::OwnInput { .. } => "name another file to write".into(),
            Error::InTheWay { .. } | Error::RawInTheWay { .. } => "choose another name, or move it away".into(),
            Error::OtherGraph { .. } | Error::WorkedOn { .. } => "choose another name, or say that it is to be replaced".into(),
            Error::EmptyRange { .. } => "the end of a range is not part of it: 4..7 is 4, 5 and 6".into(),
            Error::GraphMismatch { .. } => {
                "open the model and the transcoders that the graph was traced with; its metadata names them".into()
            }
            Error::InactiveFeature { .. } => "a feature that is off can be set to a value, not scaled".into(),
            Error::NeedsTranscoders { .. } => {
                "name a folder or Hub id of transcoders that were trained on this model".into()
            }
            Error::PromptTooLong { .. } => "shorten the prompt, or choose a model with a longer context".into(),
            Error::GraphVersion { .. } => {
                "trace the prompt again, or read the file with the version of the program that wrote it".into()
            }
            Error::FeaturesVersion { .. } => {
                "collect the features again, or read them with the version of the program that wrote them".into()
            }
            Error::NoFeatures { .. } => {
                "`circuitscope features collect` makes them from any text; `--features` names a folder elsewhere".into()
            }
            Error::FeaturesMismatch { .. } => {
                "open the model and the transcoders that the features were collected with; features.json names them"
                    .into()
            }
            Error::NothingHeldOut { .. } => {
                "a text of more documents has some: plain text is one document unless it is split; or use all of it".into()
            }
            Error::UnknownNode { near, .. } if !near.is_empty() => format!("nearest are {}", near.join(", ")),
            Error::PrunedNode { cumulative, threshold, .. } if cumulative > threshold => {
                format!("a node threshold of {} keeps it", kept_from(*cumulative))
            }
            Error::PrunedNode { .. } => "thresholds of 1 keep it".into(),
            Error::MaybePruned { .. } => "the raw graph that it was made from may hold the node".into(),
            Error::TooManyLinks { .. } => "prune it while it is read, with thresholds".into(),
            Error::Threshold { .. } => "0.8 for nodes and 0.98 for edges are usual".into(),
            _ => return None,
        })
    }
}

/// A threshold that keeps what lies at this share, in few digits.
pub(crate) fn kept_from(cumulative: f64) -> f64 {
    ((cumulative * 1e4).ceil() / 1e4).min(1.0)
}

/// Adds what was being done to an error, on its way up.
pub trait ErrorContext<T> {
    /// Wraps the error in [`Error::Context`]; `doing` is evaluated only when there is one.
    fn context(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Error>> ErrorContext<T> for std::result::Result<T, E> {
    fn context(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::Context { doing: doing(), source: Box::new(e.into()) })
    }
}
