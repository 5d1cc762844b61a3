//! `plan.json`: interventions as a file.
//!
//! A list of entries, or an object with `interventions` (applied always) and `alternatives` (each run on its own):
//!
//! ```json
//! {"interventions": [{"node": "0_39_7", "ablate": true}],
//!  "alternatives": [{"name": "California", "interventions": [{"layer": 0, "feature": 303, "position": "7..", "set": 13.9}]},
//!                   {"name": "all of it", "interventions": [{"supernode": "California", "scale": 2}]}]}
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::change::{Change, FeatureSpec, Intervention, Positions};
use super::head_change::{HeadChange, HeadIntervention, HeadSpec};
use super::sweep::Alternative;
use crate::error::{Error, Result};
use crate::input::read_text;

/// Groups of features by name, as a graph defines them.
pub type Supernodes = BTreeMap<String, Vec<FeatureSpec>>;

/// What a plan asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In every run.
    pub interventions: Vec<Intervention>,
    /// Heads that are changed in every run.
    pub heads: Vec<HeadIntervention>,
    /// One run each.
    pub alternatives: Vec<Alternative>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanJson {
    #[serde(default)]
    interventions: Vec<EntryJson>,
    #[serde(default)]
    alternatives: Vec<AlternativeJson>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AlternativeJson {
    name: String,
    interventions: Vec<EntryJson>,
}

/// One entry: a place (`node`, `supernode`, or `layer`, `feature` and `position`) and a change; or a `head`, with
/// `"ablate": true`, `"mean": true`, or a prompt that it is to be `like`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryJson {
    node: Option<String>,
    supernode: Option<String>,
    layer: Option<usize>,
    feature: Option<usize>,
    position: Option<PositionJson>,
    set: Option<f32>,
    scale: Option<f32>,
    ablate: Option<bool>,
    head: Option<String>,
    mean: Option<bool>,
    like: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum PositionJson {
    At(usize),
    Text(String),
}

impl PositionJson {
    fn positions(&self) -> Result<Positions> {
        match self {
            PositionJson::At(pos) => Ok(Positions::At(*pos)),
            PositionJson::Text(text) => text.parse(),
        }
    }
}

impl Plan {
    /// Reads a plan from a file, a pipe, or standard input (`-`).
    ///
    /// # Errors
    /// As [`Plan::parse`]; what cannot be read.
    pub fn read(path: &Path, supernodes: &Supernodes) -> Result<Self> {
        Plan::parse(&read_text(path)?, &path.display().to_string(), supernodes)
    }

    /// Reads a plan. `file` is for messages.
    ///
    /// # Errors
    /// [`Error::Plan`] for what is no plan: unknown keys, entries that say too little or contradict themselves,
    /// supernodes that do not exist; [`Error::Spec`] for malformed nodes and positions.
    pub fn parse(json: &str, file: &str, supernodes: &Supernodes) -> Result<Self> {
        let problem = |problem: String| Error::Plan { file: file.to_owned(), problem };
        let value: Value = serde_json::from_str(json).map_err(|e| problem(e.to_string()))?;
        let json: PlanJson = match value {
            list @ Value::Array(_) => {
                let interventions = serde_json::from_value(list).map_err(|e| problem(e.to_string()))?;
                PlanJson { interventions, alternatives: Vec::new() }
            }
            object => serde_json::from_value(object).map_err(|e| problem(e.to_string()))?,
        };
        let entries = |entries: &[EntryJson], at: &str| -> Result<(Vec<Intervention>, Vec<HeadIntervention>)> {
            let (mut all, mut heads) = (Vec::new(), Vec::new());
            for (i, entry) in entries.iter().enumerate() {
                let told = |e| match e {
                    EntryError::Problem(text) => problem(format!("entry {i} of {at} {text}")),
                    EntryError::Spec(error) => error,
                };
                match entry.head().map_err(told)? {
                    Some(change) => heads.push(change),
                    None => all.extend(entry.interventions(supernodes).map_err(told)?),
                }
            }
            Ok((all, heads))
        };
        let (interventions, heads) = entries(&json.interventions, "`interventions`")?;
        let mut plan = Plan { interventions, heads, ..Plan::default() };
        for alternative in &json.alternatives {
            let (interventions, heads) =
                entries(&alternative.interventions, &format!("alternative {:?}", alternative.name))?;
            plan.alternatives.push(Alternative { name: alternative.name.clone(), value: None, interventions, heads });
        }
        if plan.interventions.is_empty() && plan.heads.is_empty() && plan.alternatives.is_empty() {
            return Err(problem("asks for nothing".into()));
        }
        Ok(plan)
    }
}

enum EntryError {
    Problem(String),
    Spec(Error),
}

impl EntryJson {
    fn interventions(&self, supernodes: &Supernodes) -> Result<Vec<Intervention>, EntryError> {
        let change = self.change().map_err(EntryError::Problem)?;
        let places = self.places(supernodes)?;
        Ok(places.into_iter().map(|place| place.changed(change)).collect())
    }

    /// The head that the entry changes, if it names one.
    fn head(&self) -> Result<Option<HeadIntervention>, EntryError> {
        let problem = |text: &str| Err(EntryError::Problem(text.into()));
        let Some(head) = &self.head else {
            return match (self.mean, &self.like) {
                (None, None) => Ok(None),
                _ => problem("has `mean` or `like`, which are changes of a `head`"),
            };
        };
        if self.node.is_some() || self.supernode.is_some() || self.layer.is_some() || self.feature.is_some() {
            return problem("names a `head` and a feature");
        }
        let change = match (self.set, self.scale, self.ablate, self.mean, &self.like) {
            (None, None, Some(true), None, None) => HeadChange::Zero,
            (None, None, None, Some(true), None) => HeadChange::Mean,
            (None, None, None, None, Some(prompt)) => HeadChange::Like(prompt.clone()),
            _ => {
                return problem("needs exactly one of `\"ablate\": true`, `\"mean\": true` and `like` for its `head`");
            }
        };
        let mut spec: HeadSpec = head.parse().map_err(EntryError::Spec)?;
        match &self.position {
            Some(_) if head.contains('@') => return problem("has a `position`, and one in its `head`"),
            Some(position) => spec.positions = position.positions().map_err(EntryError::Spec)?,
            None => {}
        }
        Ok(Some(spec.changed(change)))
    }

    fn change(&self) -> Result<Change, String> {
        for (name, value) in [("set", self.set), ("scale", self.scale)] {
            // JSON has larger numbers than f32, which become infinite.
            if value.is_some_and(|value| !value.is_finite()) {
                return Err(format!("has a `{name}` outside the range of f32"));
            }
        }
        match (self.set, self.scale, self.ablate) {
            (Some(value), None, None) => Ok(Change::Set(value)),
            (None, Some(factor), None) => Ok(Change::Scale(factor)),
            (None, None, Some(true)) => Ok(Change::Set(0.0)),
            _ => Err("needs exactly one of `set`, `scale` and `\"ablate\": true`".into()),
        }
    }

    fn places(&self, supernodes: &Supernodes) -> Result<Vec<FeatureSpec>, EntryError> {
        let problem = |text: &str| Err(EntryError::Problem(text.into()));
        match (&self.node, &self.supernode, self.layer, self.feature, &self.position) {
            (Some(node), None, None, None, None) => Ok(vec![node.parse().map_err(EntryError::Spec)?]),
            (None, Some(name), None, None, None) => match supernodes.get(name) {
                Some(places) => Ok(places.clone()),
                None if supernodes.is_empty() => {
                    problem(&format!("names the supernode {name:?}, but no graph with supernodes is given"))
                }
                None => {
                    let known: Vec<&str> = supernodes.keys().map(String::as_str).collect();
                    problem(&format!("names the supernode {name:?}; the graph has: {}", known.join(", ")))
                }
            },
            (None, None, Some(layer), Some(feature), Some(position)) => {
                let positions = position.positions().map_err(EntryError::Spec)?;
                Ok(vec![FeatureSpec { layer, feature, positions }])
            }
            _ => problem("needs either `node`, or `supernode`, or `layer`, `feature` and `position`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Plan> {
        let texas = vec!["0_39_7".parse().unwrap(), "1_224_7".parse().unwrap()];
        Plan::parse(json, "plan.json", &BTreeMap::from([("Texas".to_owned(), texas)]))
    }

    #[test]
    fn every_form_of_entry_is_read() {
        let plan = parse(
            r#"{"interventions": [{"node": "0_1_2..", "set": -1.5}, {"supernode": "Texas", "ablate": true}],
                "alternatives": [{"name": "a", "interventions": [{"layer": 1, "feature": 2, "position": 3, "scale": 2}]},
                                 {"name": "b", "interventions": [{"layer": 1, "feature": 2, "position": "*", "set": 0}]}]}"#,
        )
        .unwrap();
        let shown: Vec<String> = plan.interventions.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["0_1_2..=-1.5", "0_39_7=0", "1_224_7=0"]);
        assert_eq!(plan.alternatives[0].interventions[0].to_string(), "1_2_3 x2");
        assert_eq!(plan.alternatives[1].interventions[0].positions, Positions::All);
        assert_eq!(parse(r#"[{"node": "0_1_2", "ablate": true}]"#).unwrap().interventions.len(), 1);
        let heads = r#"[{"head": "1.3", "ablate": true}, {"head": "1.3", "position": "2..", "mean": true},
                        {"head": "0.2@4", "like": "another prompt"}]"#;
        let shown: Vec<String> = parse(heads).unwrap().heads.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["head 1.3@*=0", "head 1.3@2..=mean", "head 0.2@4 as in \"another prompt\""]);
    }

    #[test]
    fn what_is_no_plan_is_refused_with_a_reason() {
        for (json, reason) in [
            (r#"[{"node": "0_1_2", "vlaue": 1}]"#, "vlaue"),
            (r#"{"interventions": [], "extra": 1}"#, "extra"),
            (r#"[{"node": "0_1_2"}]"#, "exactly one"),
            (r#"[{"node": "0_1_2", "set": 1, "scale": 2}]"#, "exactly one"),
            (r#"[{"node": "0_1_2", "ablate": false}]"#, "exactly one"),
            (r#"[{"layer": 0, "feature": 1, "set": 1}]"#, "needs either"),
            (r#"[{"node": "0_1_2", "layer": 0, "set": 1}]"#, "needs either"),
            (r#"[{"supernode": "Ohio", "ablate": true}]"#, "Texas"),
            (r#"[{"node": "0_1", "set": 1}]"#, "0_1"),
            (r#"[{"node": "0_1_4..4", "set": 1}]"#, "empty"),
            (r#"[{"node": "0_1_2", "set": 1e300}]"#, "`set` outside the range"),
            (r#"[{"node": "0_1_2", "scale": -1e39}]"#, "`scale` outside the range"),
            (r#"[{"head": "1.3"}]"#, "exactly one"),
            (r#"[{"head": "1.3", "set": 1}]"#, "exactly one"),
            (r#"[{"head": "1.3", "node": "0_1_2", "ablate": true}]"#, "and a feature"),
            (r#"[{"node": "0_1_2", "mean": true}]"#, "changes of a `head`"),
            (r#"[{"head": "1", "ablate": true}]"#, "LAYER.HEAD"),
            (r#"[{"head": "1.3@2", "position": 4, "ablate": true}]"#, "one in its `head`"),
            ("[]", "nothing"),
            ("{", "EOF"),
            ("3", "invalid type"),
        ] {
            let error = parse(json).unwrap_err().to_string();
            assert!(error.contains(reason), "{json}: {error}");
        }
    }
}
