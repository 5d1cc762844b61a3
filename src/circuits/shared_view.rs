//! The address of a graph's page, as its "share" button copies it: which nodes are pinned, grouped and renamed.
//!
//! Neuronpedia and circuit-tracer's page keep this in the query: `pinnedIds` (ids with commas), `supernodes` (a JSON list of
//! `[name, id, ..]`) and `clerps` (a JSON list of `[node, label]`).

use serde_json::Value;

use super::find_node;
use super::group::{NamedGroup, split_name};
use crate::graph::Circuit;
use crate::{Error, Result};

/// What somebody has made of a graph on its page.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SharedView {
    /// Ids of the pinned nodes.
    pub pinned: Vec<String>,
    /// Supernodes, their members as ids.
    pub supernodes: Vec<NamedGroup>,
    /// Nodes and what they are called: `layer_cantor_position`, `layer_feature_position` or the Cantor number
    /// alone.
    pub labels: Vec<(String, String)>,
}

impl SharedView {
    /// Reads an address; nothing is fetched.
    ///
    /// # Errors
    /// [`Error::SharedView`] for an address without any of the three, or with one that cannot be understood.
    pub fn parse(address: &str) -> Result<SharedView> {
        let problem = |problem: String| Error::SharedView { problem };
        let query = address.split_once('?').map_or("", |(_, query)| query);
        let query = query.split_once('#').map_or(query, |(query, _)| query);
        let mut view = SharedView::default();
        let mut is_known = false;
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = || decode(value).ok_or_else(|| problem(format!("`{name}` is not percent-encoded UTF-8")));
            match name {
                "pinnedIds" => {
                    view.pinned = value()?.split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect();
                }
                "supernodes" => {
                    let lists: Vec<Vec<String>> = parse_list(&value()?)
                        .map_err(|e| problem(format!("`supernodes` is no list of [name, id, ..]: {e}")))?;
                    view.supernodes = lists.into_iter().filter_map(split_name).collect();
                }
                "clerps" => {
                    let lists: Vec<(Value, String)> = parse_list(&value()?)
                        .map_err(|e| problem(format!("`clerps` is no list of [node, label]: {e}")))?;
                    let text = |node: Value| node.as_str().map_or_else(|| node.to_string(), str::to_owned);
                    view.labels = lists.into_iter().map(|(node, label)| (text(node), label)).collect();
                }
                _ => continue,
            }
            is_known = true;
        }
        if is_known { Ok(view) } else { Err(problem("it has no `pinnedIds`, `supernodes` or `clerps`".into())) }
    }

    /// The supernodes as far as their members are in the circuit: pages keep nodes that pruning has dropped since.
    ///
    /// # Errors
    /// [`Error::SharedView`] where the circuit has no node of any of them: it is the address of another graph.
    pub fn groups(&self, circuit: &Circuit) -> Result<Vec<NamedGroup>> {
        let here = |ids: &[String]| -> Vec<String> {
            ids.iter().filter(|id| find_node(circuit, id).is_ok()).cloned().collect()
        };
        let groups = self.supernodes.iter().map(|(name, ids)| (name.clone(), here(ids)));
        let groups: Vec<NamedGroup> = groups.filter(|(_, ids)| !ids.is_empty()).collect();
        if groups.is_empty() && !self.supernodes.is_empty() {
            let problem = "none of its supernodes has a node in this graph".into();
            return Err(Error::SharedView { problem });
        }
        Ok(groups)
    }

    /// The pinned nodes that the circuit has.
    pub fn pinned_in(&self, circuit: &Circuit) -> Vec<String> {
        self.pinned.iter().filter(|id| find_node(circuit, id).is_ok()).cloned().collect()
    }

    /// Gives features their labels, wherever they are in the prompt.
    ///
    /// # Cost
    /// Nodes times labels.
    pub fn relabel(&self, circuit: &mut Circuit) {
        let labels: Vec<(Vec<u64>, &str)> = self
            .labels
            .iter()
            .filter_map(|(name, label)| {
                let mut numbers = name.split('_').map(|part| part.parse().ok()).collect::<Option<Vec<u64>>>()?;
                // Neuronpedia writes the Cantor number where ids have the feature; a node of this id says which it is.
                let is_id = find_node(circuit, name).is_ok_and(|index| circuit.node(index).id.feature().is_some());
                if let ([layer, feature, _], true) = (&numbers[..], is_id) {
                    numbers = vec![*layer, cantor(*layer, *feature)];
                }
                Some((numbers, label.as_str()))
            })
            .collect();
        circuit.set_labels(|layer, feature| {
            let number = cantor(layer.into(), feature.into());
            let is_meant = |numbers: &[u64]| match numbers {
                [only] => *only == number,
                [of_layer, of_feature, ..] => *of_layer == u64::from(layer) && *of_feature == number,
                [] => false,
            };
            labels.iter().find(|(numbers, _)| is_meant(numbers)).map(|(_, label)| (*label).to_owned())
        });
    }
}

/// One number for a (layer, feature), as the pages count.
fn cantor(layer: u64, feature: u64) -> u64 {
    let sum = u128::from(layer) + u128::from(feature);
    (sum * (sum + 1) / 2 + u128::from(feature)) as u64
}

fn parse_list<T: serde::de::DeserializeOwned>(text: &str) -> serde_json::Result<Vec<T>> {
    if text.is_empty() { Ok(Vec::new()) } else { serde_json::from_str(text) }
}

/// `%41+b` to `A b`.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?].map(|digit| (digit as char).to_digit(16));
                (digits[0]? * 16 + digits[1]?) as u8
            }
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_its_page_writes_it() {
        let address = "https://www.neuronpedia.org/gemma-2-2b/graph?slug=dallas&pinnedIds=27_22605_10%2C20_15589_10\
                       &supernodes=%5B%5B%22say+Austin%22%2C%2220_15589_10%22%5D%5D&pruningThreshold=0.6\
                       &clerps=%5B%5B%226_12_4%22%2C%22Texas%20%26%20co%22%5D%2C%5B77%2C%22b%22%5D%5D#top";
        let view = SharedView::parse(address).unwrap();
        assert_eq!(view.pinned, ["27_22605_10", "20_15589_10"]);
        assert_eq!(view.supernodes, [("say Austin".to_owned(), vec!["20_15589_10".to_owned()])]);
        let label = |node: &str, label: &str| (node.to_owned(), label.to_owned());
        assert_eq!(view.labels, [label("6_12_4", "Texas & co"), label("77", "b")]);
    }

    #[test]
    fn what_is_no_such_address_is_refused() {
        for (address, part) in [
            ("https://www.neuronpedia.org/graph?slug=a", "pinnedIds"),
            ("graph.json", "pinnedIds"),
            ("x?supernodes=%5B3%5D", "supernodes"),
            ("x?clerps=%5B%22a%22%5D", "clerps"),
            ("x?pinnedIds=%4", "pinnedIds"),
        ] {
            let error = SharedView::parse(address).unwrap_err().to_string();
            assert!(error.contains(part), "{address}: {error}");
        }
    }
}
