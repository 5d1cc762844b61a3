//! The raw graph: safetensors with one JSON object in the metadata (formats.md).

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo};
use serde::Deserialize;

use super::load::load;
use super::replace::replace_file;
use crate::graph::{
    AttributionGraph, ByPlace, DecoderDirections, EdgeHeads, EdgeRows, FeatureId, GraphData, GraphMeta, Head, HeadFlow,
    HeadFlows, NodeId, RAW_FORMAT_VERSION, WholeInfluence,
};
use crate::input::{check_is_file, is_stream};
use crate::{Error, Result};

/// The metadata key whose value is a [`GraphMeta`].
pub(crate) const META_KEY: &str = "circuitscope";

const FORMAT: &str = "raw graph";

/// The tensor of [`DecoderDirections`], which a file may have.
const DIRECTIONS: &str = "decoder_directions";

/// Of graphs some of whose errors are no nodes.
const ERROR_NODES: &str = "error_nodes";
const UNSELECTED_ERROR_EFFECT: &str = "unselected_error_effect";

/// The largest header that safetensors allows.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// The tensors of [`WholeInfluence`], which a file has all or none of.
const WHOLE_INFLUENCE: [&str; 3] = ["influence", "influence_uncertainty", "row_abs_sums"];

/// The tensors of [`HeadFlows`], which a file has all or none of.
const HEADS: [&str; 5] = ["head_edges", "head_names", "head_flows", "head_rest", "head_hops"];

/// Stands in `head_names` where an edge has fewer heads than others.
const NO_HEAD: i32 = -1;

/// Bytes before a safetensors header: its length.
const HEADER_LEN_BYTES: usize = 8;

/// Writes `graph` to `path`, all of it or nothing. The edge rows are streamed, not copied.
///
/// # Errors
/// The file cannot be written.
pub fn write_raw(graph: &AttributionGraph, path: &Path) -> Result<()> {
    let n_rows = graph.layout().n_rows();
    let active: Vec<i64> = graph
        .active_features
        .iter()
        .flat_map(|f| [i64::from(f.layer), i64::from(f.pos), i64::from(f.feature)])
        .collect();
    let selected: Vec<i64> = graph.selected_features.iter().map(|&i| i as i64).collect();
    let i64s = |values: &[i64]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let n_targets = graph.target_ids.len();
    // The tensors of eight bytes a value first: every tensor stays aligned, so that a memory map of the file can be used as it is.
    let mut small: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> = vec![
        ("input_tokens", Dtype::I64, vec![graph.input_tokens.len()], i64s(&graph.input_tokens)),
        ("active_features", Dtype::I64, vec![graph.active_features.len(), 3], i64s(&active)),
        ("selected_features", Dtype::I64, vec![selected.len()], i64s(&selected)),
        ("target_ids", Dtype::I64, vec![n_targets], i64s(&graph.target_ids)),
    ];
    if let Some(errors) = &graph.error_nodes {
        let places: Vec<i64> = errors.iter().flat_map(|&(layer, pos)| [layer as i64, pos as i64]).collect();
        small.push((ERROR_NODES, Dtype::I64, vec![errors.len(), 2], i64s(&places)));
    }
    // What has eight bytes a value comes before what has four.
    if let Some(whole) = graph.whole_influence() {
        let bytes = whole.nodes.iter().flat_map(|v| v.to_le_bytes()).collect();
        small.push(("influence", Dtype::F64, vec![whole.nodes.len()], bytes));
    }
    if let Some(heads) = graph.heads() {
        let n_edges = heads.edges().len();
        small.push(("head_edges", Dtype::I64, vec![n_edges, 2], i64s(&head_edges(graph, heads))));
        let names = head_names(heads);
        let bytes = names.iter().flat_map(|v| v.to_le_bytes()).collect();
        // Four bytes a value, as all that follows.
        small.push(("head_names", Dtype::I32, vec![n_edges, heads.n_named(), 2], bytes));
    }
    let mut floats: Vec<(&str, Vec<usize>, &[f32])> = vec![
        ("activation_values", vec![graph.activation_values.len()], &graph.activation_values),
        ("bias_effect", vec![n_rows], &graph.bias_effect),
        ("row_values", vec![n_rows], &graph.row_values),
        ("target_probabilities", vec![n_targets], &graph.target_probabilities),
        ("logits", vec![graph.logits.len()], &graph.logits),
    ];
    if let Some(whole) = graph.whole_influence() {
        floats.push(("influence_uncertainty", vec![whole.uncertainty.len()], &whole.uncertainty));
        floats.push(("row_abs_sums", vec![n_rows], &whole.row_abs_sums));
    }
    let flows = graph.heads().map(|heads| HeadValues::new(heads)).unwrap_or_default();
    if let Some(heads) = graph.heads() {
        let n_edges = heads.edges().len();
        floats.push(("head_flows", vec![n_edges, heads.n_named()], &flows.flows));
        floats.push(("head_rest", vec![n_edges], &flows.rest));
        floats.push(("head_hops", vec![n_edges, heads.n_hops()], &flows.hops));
    }
    for what in ByPlace::ALL {
        let shape = vec![n_targets, graph.layout().n_layers(), graph.layout().n_pos()];
        floats.extend(graph.by_place_all(what).map(|values| (what.name(), shape, values)));
    }
    // The last ones, which are mapped.
    floats.push(("edge_rows", vec![n_rows, graph.layout().n_nodes()], graph.edge_rows.values()));
    if !graph.unselected_effect.is_empty() {
        floats.insert(2, ("unselected_effect", vec![n_rows], &graph.unselected_effect));
    }
    if !graph.unselected_error_effect.is_empty() {
        floats.insert(2, (UNSELECTED_ERROR_EFFECT, vec![n_rows], &graph.unselected_error_effect));
    }

    let mut offset = 0;
    let mut info = |dtype, shape: &[usize], len: usize| {
        let info = TensorInfo { dtype, shape: shape.to_vec(), data_offsets: (offset, offset + len) };
        offset += len;
        info
    };
    let mut infos = Vec::new();
    for (name, dtype, shape, bytes) in &small {
        infos.push(((*name).to_owned(), info(*dtype, shape, bytes.len())));
    }
    for (name, shape, values) in &floats {
        infos.push(((*name).to_owned(), info(Dtype::F32, shape, size_of_val(*values))));
    }
    // The last: two bytes a value, so whatever came after would not be aligned.
    let directions = graph.decoder_directions().map(|directions| {
        let bytes = directions.to_le_bytes();
        let shape = [directions.n_features(), directions.d_model()];
        infos.push((DIRECTIONS.to_owned(), info(Dtype::F16, &shape, bytes.len())));
        bytes
    });
    let meta = GraphMeta { format_version: RAW_FORMAT_VERSION, ..graph.meta.clone() };
    let as_io = |e: serde_json::Error| Error::Io { doing: "cannot write", path: path.to_owned(), source: e.into() };
    let meta = HashMap::from([(META_KEY.to_owned(), serde_json::to_string(&meta).map_err(as_io)?)]);
    // The header is the crate's own `Metadata`. The crate's writers want every tensor as bytes in memory, and the rows of a
    // graph can be most of it: so the length before the header and the data after it are streamed here.
    let header = Metadata::new(Some(meta), infos).map_err(|e| damaged(path, e))?;
    let mut header = serde_json::to_vec(&header).map_err(as_io)?;
    header.resize(header.len().next_multiple_of(align_of::<i64>()), b' ');

    replace_file(path, |writer| {
        writer.write_all(&(header.len() as u64).to_le_bytes())?;
        writer.write_all(&header)?;
        for (_, _, _, bytes) in &small {
            writer.write_all(bytes)?;
        }
        for (_, _, values) in &floats {
            write_f32s(writer, values)?;
        }
        directions.map_or(Ok(()), |bytes| writer.write_all(&bytes))
    })
}

/// The ends of every edge with heads: node indices of target and source. `[n_edges · 2]`
fn head_edges(graph: &AttributionGraph, heads: &HeadFlows) -> Vec<i64> {
    // The graph has all of them, as was checked when they were set.
    let index = |node: NodeId| graph.layout().index(node).map_or(-1, |index| index as i64);
    heads.edges().iter().flat_map(|edge| [index(edge.target), index(edge.source)]).collect()
}

/// Layer and head of every named flow. `[n_edges · n_named · 2]`
fn head_names(heads: &HeadFlows) -> Vec<i32> {
    let of_edge = |edge: &EdgeHeads| {
        let mut names = vec![NO_HEAD; 2 * heads.n_named()];
        for (name, flow) in names.chunks_exact_mut(2).zip(&edge.strongest) {
            name.copy_from_slice(&[flow.head.layer as i32, flow.head.head as i32]);
        }
        names
    };
    heads.edges().iter().flat_map(of_edge).collect()
}

/// The values of [`HeadFlows`] as they are stored, edge after edge.
#[derive(Default)]
struct HeadValues {
    flows: Vec<f32>,
    rest: Vec<f32>,
    hops: Vec<f32>,
}

impl HeadValues {
    fn new(heads: &HeadFlows) -> Self {
        let mut values = HeadValues::default();
        for edge in heads.edges() {
            let flows = edge.strongest.iter().map(|flow| flow.flow).chain(std::iter::repeat(0.0));
            values.flows.extend(flows.take(heads.n_named()));
            values.rest.push(edge.rest);
            values.hops.extend(&edge.hops);
        }
        values
    }
}

fn write_f32s(writer: &mut impl Write, values: &[f32]) -> std::io::Result<()> {
    if cfg!(target_endian = "little") {
        // SAFETY: any initialised f32 is four initialised bytes, and bytes need no alignment.
        let (_, bytes, _) = unsafe { values.align_to::<u8>() };
        return writer.write_all(bytes);
    }
    values.iter().try_for_each(|value| writer.write_all(&value.to_le_bytes()))
}

/// Reads the graph at `path`. The edge rows stay in the file, memory-mapped; everything else is checked and loaded.
///
/// # Errors
/// A file that cannot be read, that is no raw graph or damaged, another format version, parts that disagree.
pub fn read_raw(path: &Path) -> Result<AttributionGraph> {
    check_is_file(path, "a raw graph")?;
    let failed = |source| Error::Io { doing: "cannot read", path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let file_bytes = file.metadata().map_err(failed)?.len();
    let map = load(&file, file_bytes, 0..file_bytes).map_err(failed)?;
    let (header_len, metadata) = SafeTensors::read_metadata(&map).map_err(|e| damaged(path, e))?;
    let meta = read_meta(path, &metadata)?;
    let reader = Reader { path, map: &map, start: HEADER_LEN_BYTES + header_len, metadata: &metadata };

    let (edge_shape, edge_bytes) = reader.tensor("edge_rows", Dtype::F32, 2)?;
    let active_features = reader.active_features()?;
    let to_index = |(index, &value): (usize, &i64)| {
        usize::try_from(value).map_err(|_| damaged(path, format!("`selected_features` holds {value} at {index}")))
    };
    let selected_features = reader.i64s("selected_features")?;
    let selected_features = selected_features.iter().enumerate().map(to_index).collect::<Result<_>>()?;
    let (input_tokens, target_ids) = (reader.i64s("input_tokens")?, reader.i64s("target_ids")?);
    let (activation_values, bias_effect) = (reader.f32s("activation_values")?, reader.f32s("bias_effect")?);
    let (row_values, logits) = (reader.f32s("row_values")?, reader.f32s("logits")?);
    let target_probabilities = reader.f32s("target_probabilities")?;
    let unselected_effect = match metadata.info("unselected_effect") {
        Some(_) => reader.f32s("unselected_effect")?,
        None => Vec::new(),
    };
    let unselected_error_effect = match metadata.info(UNSELECTED_ERROR_EFFECT) {
        Some(_) => reader.f32s(UNSELECTED_ERROR_EFFECT)?,
        None => Vec::new(),
    };
    let error_nodes = metadata.info(ERROR_NODES).map(|_| reader.error_nodes()).transpose()?;
    let has = |what: &ByPlace| metadata.info(what.name()).is_some();
    let by_place = ByPlace::ALL.into_iter().filter(has).map(|what| Ok((what, reader.f32s_of(what.name(), 3)?)));
    let by_place = by_place.collect::<Result<Vec<_>>>()?;
    // One of them without the others is damage, which `tensor` names.
    let has_influence = WHOLE_INFLUENCE.iter().any(|name| metadata.info(name).is_some());
    let whole_influence = match has_influence || meta.sampling.is_some() {
        true => Some(WholeInfluence {
            nodes: reader.f64s("influence")?,
            uncertainty: reader.f32s("influence_uncertainty")?,
            row_abs_sums: reader.f32s("row_abs_sums")?,
        }),
        false => None,
    };
    let heads = match HEADS.iter().any(|name| metadata.info(name).is_some()) {
        true => Some(reader.heads()?),
        false => None,
    };
    let directions = match metadata.info(DIRECTIONS) {
        Some(_) => {
            let (shape, bytes) = reader.tensor(DIRECTIONS, Dtype::F16, 2)?;
            // A map of its own: the other one goes into the edge rows.
            let map = load(&file, file_bytes, bytes.start as u64..bytes.end as u64).map_err(failed)?;
            Some(DecoderDirections::from_map(map, 0..bytes.len(), shape[0], shape[1])?)
        }
        None => None,
    };
    let mut graph = AttributionGraph::new(GraphData {
        input_tokens,
        active_features,
        activation_values,
        selected_features,
        edge_rows: EdgeRows::from_map(map, edge_bytes, edge_shape[0], edge_shape[1])?,
        bias_effect,
        unselected_effect,
        error_nodes,
        unselected_error_effect,
        row_values,
        target_ids,
        target_probabilities,
        logits,
        meta,
    })?;
    if let Some(whole) = whole_influence {
        graph.set_whole_influence(whole)?;
    }
    for (what, values) in by_place {
        graph.set_by_place(what, values)?;
    }
    if let Some(stored) = heads {
        let heads = stored.flows(&graph, path)?;
        graph.set_heads(heads)?;
    }
    if let Some(directions) = directions {
        graph.set_decoder_directions(directions)?;
    }
    Ok(graph)
}

/// The metadata of the raw graph at `path`, without its tensors.
///
/// # Errors
/// As [`read_raw`], of what is before the tensors.
pub(crate) fn read_meta_of(path: &Path) -> Result<GraphMeta> {
    read_meta(path, &read_header(path)?)
}

/// What a raw graph's file holds, by name, in no order: every tensor, and every key of the metadata, those that this
/// program does not know too.
///
/// # Errors
/// As [`read_raw`], of what is before the tensors.
pub fn raw_contents(path: &Path) -> Result<(Vec<String>, Vec<String>)> {
    let header = read_header(path)?;
    let tensors = header.tensors().into_keys().collect();
    let mut keys = Vec::new();
    for (key, text) in header.metadata().iter().flatten() {
        match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text) {
            Ok(fields) if key == META_KEY => keys.extend(fields.into_iter().map(|(field, _)| field)),
            _ => keys.push(key.clone()),
        }
    }
    Ok((tensors, keys))
}

fn read_header(path: &Path) -> Result<Metadata> {
    check_is_file(path, "a raw graph")?;
    let failed = |source| Error::Io { doing: "cannot read", path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mut len = [0u8; HEADER_LEN_BYTES];
    file.read_exact(&mut len).map_err(failed)?;
    let mut header = Vec::new();
    file.take(u64::from_le_bytes(len).min(MAX_HEADER_BYTES)).read_to_end(&mut header).map_err(failed)?;
    serde_json::from_slice(&header).map_err(|e| damaged(path, e))
}

/// Whether the file at `path` begins like safetensors and not like JSON. `None` where it cannot be read.
pub(crate) fn looks_raw(path: &Path) -> Option<bool> {
    // A look at a pipe would take what is looked at out of it.
    if is_stream(path) {
        return None;
    }
    let mut start = [0u8; HEADER_LEN_BYTES + 1];
    File::open(path).ok()?.read_exact(&mut start).ok()?;
    // Eight bytes of a length below 2^56, then the header's brace.
    Some(start[HEADER_LEN_BYTES - 1] == 0 && start[HEADER_LEN_BYTES] == b'{')
}

fn read_meta(path: &Path, metadata: &Metadata) -> Result<GraphMeta> {
    #[derive(Deserialize)]
    struct Version {
        format_version: u32,
    }
    let meta = metadata.metadata().as_ref().and_then(|meta| meta.get(META_KEY));
    let meta = meta.ok_or_else(|| damaged(path, format!("its metadata has no key `{META_KEY}`")))?;
    let in_meta = |e: serde_json::Error| damaged(path, format!("metadata `{META_KEY}`: {e}"));
    // The version first: another version may have other fields.
    let Version { format_version } = serde_json::from_str(meta).map_err(in_meta)?;
    if format_version != RAW_FORMAT_VERSION {
        return Err(Error::GraphVersion {
            path: path.to_owned(),
            actual: format_version,
            expected: RAW_FORMAT_VERSION,
        });
    }
    serde_json::from_str(meta).map_err(in_meta)
}

fn damaged(path: &Path, reason: impl ToString) -> Error {
    Error::Damaged { file: path.display().to_string(), format: FORMAT, reason: reason.to_string() }
}

struct Reader<'a> {
    path: &'a Path,
    map: &'a Mmap,
    /// Where the tensors begin in the file.
    start: usize,
    metadata: &'a Metadata,
}

impl Reader<'_> {
    /// Shape of a tensor and where its bytes are in the file.
    fn tensor(&self, name: &'static str, dtype: Dtype, n_dims: usize) -> Result<(Vec<usize>, Range<usize>)> {
        let file = || self.path.display().to_string();
        let info = self.metadata.info(name);
        let info = info.ok_or_else(|| Error::MissingTensor { name: name.to_owned(), file: file() })?;
        if info.dtype != dtype {
            let expected = match dtype {
                Dtype::F32 => "F32",
                Dtype::F16 => "F16",
                Dtype::F64 => "F64",
                Dtype::I32 => "I32",
                _ => "I64",
            };
            return Err(Error::Dtype {
                tensor: name.to_owned(),
                file: file(),
                dtype: info.dtype.to_string(),
                expected,
            });
        }
        if info.shape.len() != n_dims {
            let reason = format!("`{name}` has shape {:?}, expected {n_dims} dimensions", info.shape);
            return Err(damaged(self.path, reason));
        }
        // safetensors has checked that offsets lie in the file and agree with shape and dtype.
        let (start, end) = info.data_offsets;
        Ok((info.shape.clone(), self.start + start..self.start + end))
    }

    fn f32s(&self, name: &'static str) -> Result<Vec<f32>> {
        self.f32s_of(name, 1)
    }

    /// Values of a tensor of so many dimensions.
    fn f32s_of(&self, name: &'static str, n_dims: usize) -> Result<Vec<f32>> {
        let (_, bytes) = self.tensor(name, Dtype::F32, n_dims)?;
        Ok(self.map[bytes].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    fn f64s(&self, name: &'static str) -> Result<Vec<f64>> {
        let (_, bytes) = self.tensor(name, Dtype::F64, 1)?;
        let eight = |b: &[u8]| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
        Ok(self.map[bytes].chunks_exact(8).map(eight).collect())
    }

    fn i64s(&self, name: &'static str) -> Result<Vec<i64>> {
        let (_, bytes) = self.tensor(name, Dtype::I64, 1)?;
        Ok(self.i64s_at(bytes))
    }

    fn i64s_at(&self, bytes: Range<usize>) -> Vec<i64> {
        let eight = |b: &[u8]| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
        self.map[bytes].chunks_exact(8).map(eight).collect()
    }

    /// Layer and position of each error that is a node.
    fn error_nodes(&self) -> Result<Vec<(usize, usize)>> {
        let (shape, bytes) = self.tensor(ERROR_NODES, Dtype::I64, 2)?;
        if shape[1] != 2 {
            let file = self.path.display().to_string();
            let expected = vec![shape[0], 2];
            return Err(Error::Shape { tensor: ERROR_NODES.to_owned(), file, actual: shape, expected });
        }
        let part = |value: i64| {
            usize::try_from(value).map_err(|_| damaged(self.path, format!("`{ERROR_NODES}` holds {value}")))
        };
        self.i64s_at(bytes).chunks_exact(2).map(|place| Ok((part(place[0])?, part(place[1])?))).collect()
    }

    fn heads(&self) -> Result<StoredHeads> {
        let floats = |name, n_dims| -> Result<(Vec<usize>, Vec<f32>)> {
            let (shape, bytes) = self.tensor(name, Dtype::F32, n_dims)?;
            let four = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            Ok((shape, self.map[bytes].chunks_exact(4).map(four).collect()))
        };
        let (edges_shape, bytes) = self.tensor("head_edges", Dtype::I64, 2)?;
        let edges = self.i64s_at(bytes);
        let (names_shape, bytes) = self.tensor("head_names", Dtype::I32, 3)?;
        let names = self.map[bytes].chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let (flows_shape, flows) = floats("head_flows", 2)?;
        let (rest_shape, rest) = floats("head_rest", 1)?;
        let (hops_shape, hops) = floats("head_hops", 2)?;
        let (n_edges, n_named, n_hops) = (edges_shape[0], flows_shape[1], hops_shape[1]);
        for (name, actual, expected) in [
            ("head_edges", edges_shape, vec![n_edges, 2]),
            ("head_names", names_shape, vec![n_edges, n_named, 2]),
            ("head_flows", flows_shape, vec![n_edges, n_named]),
            ("head_rest", rest_shape, vec![n_edges]),
            ("head_hops", hops_shape, vec![n_edges, n_hops]),
        ] {
            if actual != expected {
                let file = self.path.display().to_string();
                return Err(Error::Shape { tensor: name.to_owned(), file, actual, expected });
            }
        }
        Ok(StoredHeads { edges, names, flows, rest, hops, n_named, n_hops })
    }

    fn active_features(&self) -> Result<Vec<FeatureId>> {
        let (shape, bytes) = self.tensor("active_features", Dtype::I64, 2)?;
        if shape[1] != 3 {
            return Err(Error::Shape {
                tensor: "active_features".to_owned(),
                file: self.path.display().to_string(),
                actual: shape.clone(),
                expected: vec![shape[0], 3],
            });
        }
        let values = self.i64s_at(bytes);
        let part = |value: i64| {
            u32::try_from(value).map_err(|_| damaged(self.path, format!("`active_features` holds {value}")))
        };
        let feature = |f: &[i64]| Ok(FeatureId { layer: part(f[0])?, pos: part(f[1])?, feature: part(f[2])? });
        values.chunks_exact(3).map(feature).collect()
    }
}

/// The tensors of [`HeadFlows`], whose shapes agree.
struct StoredHeads {
    edges: Vec<i64>,
    names: Vec<i32>,
    flows: Vec<f32>,
    rest: Vec<f32>,
    hops: Vec<f32>,
    n_named: usize,
    n_hops: usize,
}

impl StoredHeads {
    /// The flows of a graph's edges.
    ///
    /// # Errors
    /// Ends that are no nodes of the graph, heads with a negative number, and those of [`HeadFlows::new`].
    fn flows(&self, graph: &AttributionGraph, path: &Path) -> Result<HeadFlows> {
        let layout = graph.layout();
        let node = |index: i64| {
            let node = usize::try_from(index).ok().and_then(|index| layout.node(index));
            node.ok_or_else(|| damaged(path, format!("`head_edges` holds {index}, which is no node")))
        };
        let edge = |(at, ends): (usize, &[i64])| -> Result<EdgeHeads> {
            let (target, source) = (node(ends[0])?, node(ends[1])?);
            let row = match target {
                NodeId::Feature { .. } => Some(ends[0] as usize),
                NodeId::Target { index } => Some(layout.n_features() + index as usize),
                NodeId::Error { .. } | NodeId::Token { .. } | NodeId::Context { .. } => None,
            };
            let row = row.ok_or_else(|| damaged(path, format!("`head_edges` holds {}, which has no row", ends[0])))?;
            let mut strongest = Vec::new();
            let names = &self.names[at * self.n_named * 2..][..self.n_named * 2];
            for (name, &flow) in names.chunks_exact(2).zip(&self.flows[at * self.n_named..][..self.n_named]) {
                if name == [NO_HEAD, NO_HEAD] && flow == 0.0 {
                    continue;
                }
                let part = |value: i32| {
                    u32::try_from(value).map_err(|_| damaged(path, format!("`head_names` holds {value} in edge {at}")))
                };
                strongest.push(HeadFlow { head: Head { layer: part(name[0])?, head: part(name[1])? }, flow });
            }
            Ok(EdgeHeads {
                target,
                source,
                effect: graph.row(row)[ends[1] as usize],
                strongest,
                rest: self.rest[at],
                hops: self.hops[at * self.n_hops..][..self.n_hops].to_vec(),
            })
        };
        let edges = self.edges.chunks_exact(2).enumerate().map(edge).collect::<Result<_>>()?;
        HeadFlows::new(edges, self.n_named, self.n_hops)
    }
}
