//! `graph-metadata.json`: the list of a folder's graphs, as circuit-tracer's page reads it.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::replace::replace_file;
use super::wire::WireMetadata;
use crate::{Error, Result};

/// The list's name in its folder.
const LISTING: &str = "graph-metadata.json";

/// Checks that a graph's name, without its ending, is not that of the list in its folder: one of the two would be written
/// over the other. Some systems take names in capitals for the same.
///
/// # Errors
/// As the end of a sentence that began with the name.
pub fn check_not_list(name: &str) -> std::result::Result<(), &'static str> {
    match LISTING.strip_suffix(".json").is_some_and(|list| name.eq_ignore_ascii_case(list)) {
        true => Err("is kept for the list of a folder's graphs"),
        false => Ok(()),
    }
}

/// The keys of a graph's metadata that the list repeats (`add_graph_metadata` of circuit-tracer).
const LISTED: [&str; 7] =
    ["slug", "scan", "transcoder_list", "prompt_tokens", "prompt", "node_threshold", "schema_version"];

/// Puts graphs into the list of their folder, each in the place of one with the same slug; entries of other programs stay as
/// they are. Returns the list's path. Without graphs nothing is written.
///
/// # Errors
/// A file of that name that is no such list, which is left as it is; a list that cannot be written.
pub fn list_graphs(folder: &Path, graphs: &[WireMetadata]) -> Result<PathBuf> {
    let path = folder.join(LISTING);
    if graphs.is_empty() {
        return Ok(path);
    }
    let mut listing = read_list(&path)?;
    let entry = |metadata: &WireMetadata| -> Value {
        let metadata = json!(metadata);
        LISTED.iter().filter_map(|&key| Some((key.to_owned(), metadata.get(key)?.clone()))).collect()
    };
    if let Some(listed) = listing["graphs"].as_array_mut() {
        let slugs: HashSet<&str> = graphs.iter().map(|graph| graph.slug.as_str()).collect();
        listed.retain(|graph| graph["slug"].as_str().is_none_or(|slug| !slugs.contains(slug)));
        listed.extend(graphs.iter().map(entry));
    }
    replace_file(&path, |writer| {
        serde_json::to_writer_pretty(&mut *writer, &listing)?;
        writer.write_all(b"\n")
    })?;
    Ok(path)
}

/// Checks, before hours of work, that a folder's list is one, if it has any.
///
/// # Errors
/// A file of that name that is no such list.
pub fn check_list(folder: &Path) -> Result<()> {
    read_list(&folder.join(LISTING)).map(drop)
}

fn read_list(path: &Path) -> Result<Value> {
    match std::fs::read(path) {
        Ok(bytes) => parse(&bytes, path),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(json!({"graphs": []})),
        Err(source) => Err(Error::Io { doing: "cannot read", path: path.to_owned(), source }),
    }
}

fn parse(bytes: &[u8], path: &Path) -> Result<Value> {
    let listing: Option<Value> = serde_json::from_slice(bytes).ok();
    listing.filter(|listing| listing.get("graphs").is_some_and(Value::is_array)).ok_or_else(|| Error::Damaged {
        file: path.display().to_string(),
        format: "graph list",
        reason: "it is no object with a list `graphs`".into(),
    })
}
