//! Names of features from files: Neuronpedia's explanations, tables, and what somebody wrote by hand.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use super::super::report::FeatureId;
use super::lines::Lines;
use super::neuronpedia::{layer_number, parse, preference};
use crate::corpus::open_plain;
use crate::error::{Error, ErrorContext, Result};
use crate::labels::Labels;

/// A name for each of a million features has some 100 MB.
const MAX_TABLE_BYTES: u64 = 1 << 30;

const FORMAT: &str = "table of labels";

/// Names that were read, with how much each is preferred, lower first.
type Found = BTreeMap<FeatureId, (u8, String)>;

/// Reads names of features: lines of JSON as Neuronpedia has them (`.jsonl`, compressed or not; of a feature's
/// explanations the kind that its graphs show), a table (`.csv`, compressed or not) with a line of headings, or an object
/// from `LAYER_FEATURE` to text (`.json`). `n_features` are those of each layer.
///
/// # Errors
/// Files that cannot be read; [`Error::Damaged`]; [`Error::NoSuchLayer`] and [`Error::NoSuchFeature`] for names of
/// features that the set does not have.
pub fn read_names(path: &Path, n_features: &[usize]) -> Result<BTreeMap<FeatureId, String>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let has = |end: &str| name.split('.').any(|part| part.eq_ignore_ascii_case(end));
    let found = if has("jsonl") || has("ndjson") {
        lines(path, n_features)?
    } else if has("csv") {
        table(path, n_features)?
    } else {
        let labels = Labels::read(path)?;
        labels.check(n_features, &path.display().to_string())?;
        let id = |(layer, feature): (u32, u32)| FeatureId { layer: layer as usize, feature: feature as usize };
        labels.iter().map(|(numbers, label)| (id(numbers), (0, label.to_owned()))).collect()
    };
    Ok(found.into_iter().map(|(id, (_, label))| (id, label)).collect())
}

/// Adds a name, unless a better one is there; of equal ones the first stays.
fn add(found: &mut Found, id: FeatureId, rank: u8, label: &str) {
    let label = label.trim();
    if !label.is_empty() && found.get(&id).is_none_or(|(other, _)| rank < *other) {
        found.insert(id, (rank, label.to_owned()));
    }
}

fn check(id: FeatureId, n_features: &[usize], path: &Path, line: usize) -> Result<()> {
    let (layer, feature, n_layers) = (id.layer, id.feature, n_features.len());
    let checked = match n_features.get(layer) {
        Some(&n) if feature < n => Ok(()),
        Some(&n_features) => Err(Error::NoSuchFeature { layer, feature, n_layers, n_features }),
        None => Err(Error::NoSuchLayer { layer, n_layers }),
    };
    checked.context(|| format!("cannot use the label in line {line} of `{}`", path.display()))
}

fn lines(path: &Path, n_features: &[usize]) -> Result<Found> {
    let mut found = Found::new();
    let mut lines = Lines::open(path)?;
    while let Some((number, text)) = lines.next()? {
        let line = parse(&text).map_err(|e| lines.damaged(format!("line {number}: {e}")))?;
        if let Some((rank, label)) = line.foreign.label {
            let id = FeatureId { layer: line.layer, feature: line.index };
            check(id, n_features, path, number)?;
            add(&mut found, id, rank, &label);
        }
    }
    Ok(found)
}

/// Headings that a column may have.
const FEATURE: &[&str] = &["feature", "feature_id", "featureid"];
const LAYER: &[&str] = &["layer", "source"];
const INDEX: &[&str] = &["index", "feature_index", "featureindex"];
const LABEL: &[&str] = &["description", "label", "explanation", "name"];
const KIND: &[&str] = &["typename", "type_name", "type"];

fn table(path: &Path, n_features: &[usize]) -> Result<Found> {
    let damaged = |reason: String| Error::Damaged { file: path.display().to_string(), format: FORMAT, reason };
    let mut text = String::new();
    let read = open_plain(path)?.take(MAX_TABLE_BYTES + 1).read_to_string(&mut text);
    read.map_err(|e| damaged(e.to_string()))?;
    if text.len() as u64 > MAX_TABLE_BYTES {
        return Err(damaged(format!("it has more than {} MB", MAX_TABLE_BYTES >> 20)));
    }
    let mut rows = Rows { rest: text.trim_start_matches('\u{feff}'), line: 1 };
    let (_, headings) = rows.next().unwrap_or_default();
    let column = |names: &[&str]| {
        let is_it = |heading: &String| names.contains(&heading.trim().to_lowercase().as_str());
        headings.iter().position(is_it)
    };
    let (feature, layer, index, kind) = (column(FEATURE), column(LAYER), column(INDEX), column(KIND));
    let place = match (feature, layer, index) {
        (_, Some(layer), Some(index)) => Some((layer, index)),
        // `layer` and `feature`, where the second is a number; `feature` alone is LAYER_FEATURE.
        (Some(feature), Some(layer), None) => Some((layer, feature)),
        (Some(feature), None, _) => Some((feature, feature)),
        _ => None,
    };
    let (Some(place), Some(label)) = (place, column(LABEL)) else {
        return Err(damaged(format!(
            "its first line is {:?}, expected headings: `feature` (LAYER_FEATURE) or `layer` and `index`, and `label` or \
             `description`",
            headings.join(",")
        )));
    };
    let mut found = Found::new();
    for (number, cells) in rows {
        let cell = |column: usize| cells.get(column).map_or("", String::as_str).trim();
        if cells.iter().all(|cell| cell.trim().is_empty()) {
            continue;
        }
        let id = match place {
            (layer, index) if layer == index => cell(layer).parse().ok(),
            (layer, index) => layer_number(cell(layer))
                .zip(cell(index).parse().ok())
                .map(|(layer, feature)| FeatureId { layer, feature }),
        };
        let Some(id) = id else {
            let shown = if place.0 == place.1 {
                cell(place.0).to_owned()
            } else {
                format!("{}, {}", cell(place.0), cell(place.1))
            };
            return Err(damaged(format!("line {number}: {shown:?} is no feature such as 29_189, LAYER_FEATURE")));
        };
        check(id, n_features, path, number)?;
        add(&mut found, id, preference(kind.map(cell)), cell(label));
    }
    Ok(found)
}

/// The rows of a table (RFC 4180), each with the number of its first line.
struct Rows<'a> {
    rest: &'a str,
    line: usize,
}

impl Iterator for Rows<'_> {
    type Item = (usize, Vec<String>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let first_line = self.line;
        let (mut cells, mut cell, mut is_quoted) = (Vec::new(), String::new(), false);
        let mut chars = self.rest.char_indices().peekable();
        let mut end = self.rest.len();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' if is_quoted => match chars.next_if(|&(_, next)| next == '"') {
                    Some(_) => cell.push('"'),
                    None => is_quoted = false,
                },
                '"' if cell.trim().is_empty() => {
                    cell.clear();
                    is_quoted = true;
                }
                ',' if !is_quoted => cells.push(std::mem::take(&mut cell)),
                '\n' if !is_quoted => {
                    end = at + 1;
                    break;
                }
                '\r' if !is_quoted => {}
                c => {
                    self.line += usize::from(c == '\n');
                    cell.push(c);
                }
            }
        }
        cells.push(cell);
        self.rest = &self.rest[end..];
        self.line += 1;
        Some((first_line, cells))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<BTreeMap<String, String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let names = read_names(&path, &[10, 20])?;
        Ok(names.into_iter().map(|(id, label)| (id.to_string(), label)).collect())
    }

    #[test]
    fn tables_lines_and_objects_name_features() {
        let expected: BTreeMap<String, String> = [("0_3", "months, \"and\" days"), ("1_19", "two\nlines")]
            .map(|(id, l)| (id.to_owned(), l.to_owned()))
            .into();
        let of = |name, text: &str| read(name, text).unwrap();
        assert_eq!(
            of("a.csv", "feature,label\r\n0_3,\"months, \"\"and\"\" days\"\r\n1_19,\"two\nlines\"\r\n"),
            expected
        );
        assert_eq!(
            of(
                "b.csv",
                "modelId,layer,index,typeName,description\nm,0-set,3,x,other\nm,0-set,3,np_max-act,\"months, \"\"and\"\" days\"\n\
                 m,1-set,19,x,\"two\nlines\"\nm,1-set,19,x,later\n"
            ),
            expected
        );
        assert_eq!(of("c.json", r#"{"0_3":"months, \"and\" days","1_19":"two\nlines"}"#), expected);
        assert_eq!(
            of(
                "d.jsonl",
                "{\"layer\":\"0-set\",\"index\":\"3\",\"description\":\"months, \\\"and\\\" days\"}\n\n\
                 {\"layer\":\"1-set\",\"index\":\"19\",\"explanations\":[{\"description\":\"two\\nlines\"}]}\n"
            ),
            expected
        );
    }

    #[test]
    fn names_of_features_that_are_none_are_refused_with_both_sides() {
        let refused = |name, text: &str, parts: &[&str]| {
            let error = read(name, text).unwrap_err();
            let shown = format!("{error}: {}", error.root());
            parts.iter().for_each(|part| assert!(shown.contains(part), "{part:?} is not in {shown}"));
        };
        refused("a.csv", "feature,label\n0_3,a\n0_10,b\n", &["line 3", "a.csv", "0_10", "10 features"]);
        refused("a.csv", "layer,index,label\n2,0,a\n", &["line 2", "layer 2", "2 layers"]);
        refused("a.csv", "feature,label\nx,a\n", &["line 2", "\"x\""]);
        refused("a.csv", "one,two\n", &["one,two", "headings"]);
        refused("a.csv", "", &["headings"]);
        refused("a.json", r#"{"1_20":"a"}"#, &["a.json", "1_20", "20 features"]);
        refused("a.jsonl", r#"{"layer":"1","index":"20","description":"a"}"#, &["line 1", "1_20", "20 features"]);
        refused("a.jsonl", "{}", &["line 1", "layer"]);
    }
}
