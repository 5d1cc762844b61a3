//! What somebody makes of a graph on the page, as it is asked for, and as it stands in `qParams`.
//!
//! What the published schema has a field for is in that field, in the form that the field's viewers write; both of their
//! forms are read (lists, and lists as text). The rest is under `qParams.circuitscope`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::reply::{Hash, Refusal};

/// Nodes, groups and labels that a view may have: more is no view that anybody has made.
const MAX_ENTRIES: usize = 10_000;

/// The key of what the schema has no field for.
const OWN: &str = "circuitscope";

/// Keys of `qParams` that a [`View`] has fields for.
const KNOWN: [&str; 9] = [
    "pinnedIds",
    "hiddenIds",
    "clickedId",
    "supernodes",
    "clerps",
    "linkType",
    "pruningThreshold",
    OWN,
    "subgraph_scores",
];

/// A supernode, its members as ids.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Group {
    pub name: String,
    pub members: Vec<String>,
}

/// Pins, groups, names and places.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct View {
    pub pinned: Vec<String>,
    pub hidden: Vec<String>,
    pub clicked: Option<String>,
    pub groups: Vec<Group>,
    /// By `LAYER_FEATURE`.
    pub labels: BTreeMap<String, String>,
    /// By id, or `group:NAME`: x and y in the circuit panel.
    pub positions: BTreeMap<String, [f64; 2]>,
    pub node_threshold: Option<f64>,
    pub edge_threshold: Option<f64>,
    pub link_type: Option<String>,
    pub note: String,
    /// Other keys of `qParams`.
    pub other: Option<Map<String, Value>>,
}

/// What the schema has no field for.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Own {
    positions: BTreeMap<String, [f64; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    edge_threshold: Option<f64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    note: String,
}

impl View {
    /// # Errors
    /// Says what is no view.
    pub fn check(&self) -> Result<(), Refusal> {
        let n_entries = self.pinned.len()
            + self.hidden.len()
            + self.labels.len()
            + self.positions.len()
            + self.groups.iter().map(|group| group.members.len() + 1).sum::<usize>();
        if n_entries > MAX_ENTRIES {
            return Err(Refusal::too_large(format!(
                "the view has {n_entries} entries, at most {MAX_ENTRIES} are saved"
            )));
        }
        for (name, value) in [("node_threshold", self.node_threshold), ("edge_threshold", self.edge_threshold)] {
            if value.is_some_and(|value| !(0.0..=1.0).contains(&value)) {
                return Err(Refusal::bad_request(format!("`{name}` is not in 0..=1")));
            }
        }
        if let Some(key) = self.labels.keys().find(|key| feature_of(key).is_none()) {
            return Err(Refusal::bad_request(format!("the label of {key:?}: expected LAYER_FEATURE, such as 0_39")));
        }
        if let Some(link_type) =
            self.link_type.as_deref().filter(|link_type| !["both", "input", "output"].contains(link_type))
        {
            return Err(Refusal::bad_request(format!("`link_type` is {link_type:?}, expected both, input or output")));
        }
        Ok(())
    }

    /// Reads `qParams`; what is there in no known form is left out.
    pub fn of_q_params(q_params: &Map<String, Value>) -> View {
        let own: Own = q_params.get(OWN).and_then(|own| serde_json::from_value(own.clone()).ok()).unwrap_or_default();
        let list = |key: &str| q_params.get(key).map(ids).unwrap_or_default();
        let text =
            |key: &str| q_params.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
        let number = |key: &str| {
            let value = q_params.get(key)?;
            value.as_f64().or_else(|| value.as_str()?.parse().ok()).filter(|value| (0.0..=1.0).contains(value))
        };
        let lists: Vec<Vec<Value>> = q_params.get("supernodes").map(parsed).unwrap_or_default();
        let groups = lists.into_iter().filter_map(|list| {
            let mut texts = list.into_iter().filter_map(|value| value.as_str().map(str::to_owned));
            let name = texts.next()?;
            Some(Group { name, members: texts.collect() })
        });
        let clerps: Vec<Vec<Value>> = q_params.get("clerps").map(parsed).unwrap_or_default();
        let labels = clerps.into_iter().filter_map(|pair| {
            let [node, label] = pair.as_slice() else { return None };
            let node = node.as_str().map_or_else(|| node.to_string(), str::to_owned);
            Some((labelled(&node)?, label.as_str()?.to_owned()))
        });
        let other = q_params.iter().filter(|(key, _)| !KNOWN.contains(&key.as_str()));
        View {
            pinned: list("pinnedIds"),
            hidden: list("hiddenIds"),
            clicked: text("clickedId"),
            groups: groups.collect(),
            labels: labels.collect(),
            positions: own.positions,
            node_threshold: number("pruningThreshold"),
            edge_threshold: own.edge_threshold,
            link_type: text("linkType").filter(|link_type| ["both", "input", "output"].contains(&link_type.as_str())),
            note: own.note,
            other: Some(other.map(|(key, value)| (key.clone(), value.clone())).collect()),
        }
    }

    /// As `qParams`. Of `before` stays what this view says nothing of.
    pub fn to_q_params(&self, before: &Map<String, Value>) -> Map<String, Value> {
        let mut q_params = match &self.other {
            Some(other) => other.clone(),
            None => before
                .iter()
                .filter(|(key, _)| !KNOWN.contains(&key.as_str()))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
        };
        // What is not ours to say cannot be said through `other`.
        KNOWN.iter().for_each(|&key| drop(q_params.remove(key)));
        let supernodes: Vec<Value> =
            self.groups.iter().map(|group| json!([vec![group.name.clone()], group.members.clone()].concat())).collect();
        let clerps: Vec<Value> = self
            .labels
            .iter()
            .filter_map(|(name, label)| {
                feature_of(name).map(|(layer, feature)| json!([cantor(layer, feature).to_string(), label]))
            })
            .collect();
        q_params.insert("pinnedIds".into(), json!(self.pinned));
        q_params.insert("supernodes".into(), json!(supernodes));
        q_params.insert("linkType".into(), json!(self.link_type.as_deref().unwrap_or("both")));
        q_params.insert("clickedId".into(), json!(self.clicked.as_deref().unwrap_or_default()));
        if !self.hidden.is_empty() {
            q_params.insert("hiddenIds".into(), json!(self.hidden));
        }
        if !clerps.is_empty() {
            q_params.insert("clerps".into(), json!(clerps));
        }
        if let Some(threshold) = self.node_threshold {
            q_params.insert("pruningThreshold".into(), json!(threshold));
        }
        let own =
            Own { positions: self.positions.clone(), edge_threshold: self.edge_threshold, note: self.note.clone() };
        if !own.positions.is_empty() || own.edge_threshold.is_some() || !own.note.is_empty() {
            q_params.insert(OWN.into(), json!(own));
        }
        q_params
    }
}

/// What tells one saved view from the next.
pub(super) fn etag_of(q_params: &Map<String, Value>) -> String {
    Hash::new().with(Value::Object(q_params.clone()).to_string().as_bytes()).etag()
}

/// A list, or its text: JSON, or ids with commas.
fn ids(value: &Value) -> Vec<String> {
    let list = match value {
        Value::String(text) if text.trim_start().starts_with('[') => serde_json::from_str(text).unwrap_or_default(),
        Value::String(text) => return text.split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect(),
        Value::Array(list) => list.clone(),
        _ => Vec::new(),
    };
    list.into_iter().filter_map(|id| id.as_str().map(str::to_owned)).collect()
}

/// A list of lists, or its text.
fn parsed(value: &Value) -> Vec<Vec<Value>> {
    let value = match value {
        Value::String(text) => serde_json::from_str(text).unwrap_or_default(),
        value => value.clone(),
    };
    let Value::Array(lists) = value else { return Vec::new() };
    lists.into_iter().filter_map(|list| if let Value::Array(list) = list { Some(list) } else { None }).collect()
}

/// `LAYER_FEATURE` taken apart.
pub(super) fn feature_of(name: &str) -> Option<(u32, u32)> {
    let (layer, feature) = name.split_once('_')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(layer) && is_number(feature)).then(|| Some((layer.parse().ok()?, feature.parse().ok()?)))?
}

/// One number for a (layer, feature), as the pages count.
pub(super) fn cantor(layer: u32, feature: u32) -> u128 {
    let sum = u128::from(layer) + u128::from(feature);
    sum * (sum + 1) / 2 + u128::from(feature)
}

/// The (layer, feature) of a number.
pub(super) fn from_cantor(number: u64) -> Option<(u32, u32)> {
    let number = u128::from(number);
    let sum = ((8 * number + 1).isqrt() - 1) / 2;
    let feature = number - sum * (sum + 1) / 2;
    Some((u32::try_from(sum - feature).ok()?, u32::try_from(feature).ok()?))
}

/// The feature that a page's label is of, as `LAYER_FEATURE`: a Cantor number, `layer_cantor_position`, or an id.
fn labelled(node: &str) -> Option<String> {
    let numbers: Vec<u64> = node.split('_').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let (layer, feature) = match numbers.as_slice() {
        [number] => from_cantor(*number)?,
        [layer, second, ..] => {
            let layer = u32::try_from(*layer).ok()?;
            // Neuronpedia writes the Cantor number where ids have the feature.
            match from_cantor(*second).filter(|(of_layer, _)| *of_layer == layer && numbers.len() == 3) {
                Some(found) => found,
                None => (layer, u32::try_from(*second).ok()?),
            }
        }
        [] => return None,
    };
    Some(format!("{layer}_{feature}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cantor_numbers_come_back() {
        for (layer, feature) in [(0, 0), (0, 1), (1, 0), (23, 5458), (26, 16_383), (u16::MAX.into(), 1 << 24)] {
            let number = u64::try_from(cantor(layer, feature)).unwrap();
            assert_eq!(from_cantor(number), Some((layer, feature)));
        }
        // The largest number is no feature, and no panic.
        let _ = from_cantor(u64::MAX);
    }

    #[test]
    fn a_view_comes_back_from_q_params() {
        let view = View {
            pinned: vec!["0_39_7".into(), "E_3_7".into()],
            hidden: vec!["1_2_3".into()],
            clicked: Some("0_39_7".into()),
            groups: vec![Group { name: "Texas, \"and\" co".into(), members: vec!["0_39_7".into()] }],
            labels: [("0_39".to_owned(), "<img src=x onerror=alert(1)>".to_owned())].into(),
            positions: [("group:Texas".to_owned(), [1.5, -2.0])].into(),
            node_threshold: Some(0.6),
            edge_threshold: Some(0.9),
            link_type: Some("input".into()),
            note: "why".into(),
            other: Some([("sg_pos".to_owned(), json!("1 2"))].into_iter().collect()),
        };
        let q_params = view.to_q_params(&Map::new());
        assert_eq!(View::of_q_params(&q_params), view);
        assert_eq!(q_params["supernodes"], json!([["Texas, \"and\" co", "0_39_7"]]));
        assert_eq!(q_params["clerps"], json!([["819", "<img src=x onerror=alert(1)>"]]));
    }

    #[test]
    fn the_texts_that_circuit_tracers_page_saves_are_read() {
        let saved = json!({"pinnedIds": "0_39_7,1_2_3", "supernodes": "[[\"a\",\"0_39_7\"]]", "linkType": "both",
            "clickedId": "0_39_7", "sg_pos": "", "pruningThreshold": "0.5", "clerps": "[[\"819\",\"Texas\"],[\"0_819_7\",\"b\"]]"});
        let view = View::of_q_params(saved.as_object().unwrap());
        assert_eq!(view.pinned, ["0_39_7", "1_2_3"]);
        assert_eq!(view.groups, [Group { name: "a".into(), members: vec!["0_39_7".into()] }]);
        assert_eq!(view.node_threshold, Some(0.5));
        assert_eq!(view.labels, [("0_39".to_owned(), "b".to_owned())].into());
        let odd = json!({"pinnedIds": 3, "supernodes": {"a": 1}, "clerps": [[1], 2, [[], "x"]], "circuitscope": []});
        assert_eq!(View::of_q_params(odd.as_object().unwrap()).pinned, Vec::<String>::new());
    }
}
