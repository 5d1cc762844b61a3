//! One link of a JSON graph, its ids looked up while they are read.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Formatter;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;

use crate::{Error, Result};

/// The ids of a file's nodes.
pub(super) struct Ids {
    /// By node. `[n_nodes]`
    ids: Vec<String>,
    /// Nodes by id: one, but for the error nodes of circuit-tracer, whose ids can be those of features.
    nodes: HashMap<Vec<u8>, Vec<usize>>,
}

impl Ids {
    pub(super) fn new(ids: Vec<String>) -> Ids {
        let mut nodes: HashMap<Vec<u8>, Vec<usize>> = HashMap::with_capacity(ids.len());
        for (node, id) in ids.iter().enumerate() {
            nodes.entry(id.clone().into_bytes()).or_default().push(node);
        }
        Ids { ids, nodes }
    }

    /// What `id` stands for, the nodes from `guess` on being looked at first: links come in the order of their targets
    /// and then sources, so that most ids need no table.
    fn find<'a>(&'a self, id: &[u8], guess: usize) -> End<'a> {
        // Where ids are not unique, only the table knows all of their nodes.
        let is_unique = self.nodes.len() == self.ids.len();
        let near = self.ids.iter().enumerate().skip(guess).take(GUESSES);
        match near.filter(|_| is_unique).find(|(_, known)| known.as_bytes() == id) {
            Some((node, _)) => End::Node(node),
            None => match self.nodes.get(id).map(Vec::as_slice) {
                Some([node]) => End::Node(*node),
                Some(nodes) => End::Nodes(nodes),
                None => End::Missing(String::from_utf8_lossy(id).into_owned()),
            },
        }
    }
}

/// Nodes that are compared before the table is asked.
const GUESSES: usize = 4;

/// What an id of a link stands for.
enum End<'a> {
    Node(usize),
    /// Several of one id.
    Nodes(&'a [usize]),
    /// The id of no node.
    Missing(String),
}

/// A link as it stands in the file.
pub(super) struct WireEnds<'a> {
    source: End<'a>,
    target: End<'a>,
    /// `None` where it is `null`.
    pub(super) weight: Option<f32>,
    pub(super) extra: BTreeMap<String, Value>,
}

impl WireEnds<'_> {
    /// The nodes that source and target can mean.
    ///
    /// # Errors
    /// One of them is not in the file.
    pub(super) fn found(&self, ids: &Ids) -> Result<(&[usize], &[usize])> {
        let id = |end: &End<'_>| match end {
            End::Node(node) => ids.ids[*node].clone(),
            End::Nodes(nodes) => nodes.first().map(|&node| ids.ids[node].clone()).unwrap_or_default(),
            End::Missing(id) => id.clone(),
        };
        match (self.source.nodes(), self.target.nodes()) {
            (Ok(sources), Ok(targets)) => Ok((sources, targets)),
            (Err(missing), _) | (_, Err(missing)) => Err(Error::LinkToNowhere {
                source_id: id(&self.source),
                target_id: id(&self.target),
                missing: missing.to_owned(),
            }),
        }
    }
}

impl End<'_> {
    /// The nodes, or the id that none has.
    fn nodes(&self) -> std::result::Result<&[usize], &str> {
        match self {
            End::Node(node) => Ok(std::slice::from_ref(node)),
            End::Nodes(nodes) => Ok(nodes),
            End::Missing(id) => Err(id),
        }
    }
}

/// Reads a link among the nodes of these ids.
pub(super) struct LinkSeed<'a> {
    pub(super) ids: &'a Ids,
    /// Source and target of the link before, which this one's are likely near.
    pub(super) before: (usize, usize),
}

impl<'de, 'a> DeserializeSeed<'de> for LinkSeed<'a> {
    type Value = WireEnds<'a>;

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<WireEnds<'a>, D::Error> {
        parser.deserialize_map(self)
    }
}

impl<'de, 'a> Visitor<'de> for LinkSeed<'a> {
    type Value = WireEnds<'a>;

    fn expecting(&self, f: &mut Formatter) -> std::fmt::Result {
        f.write_str("a link: an object with `source`, `target` and `weight`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WireEnds<'a>, A::Error> {
        let (mut source, mut target, mut weight) = (None, None, None);
        let mut extra = BTreeMap::new();
        while let Some(key) = map.next_key_seed(KeySeed)? {
            match key {
                Key::Source => source = Some(map.next_value_seed(EndSeed { ids: self.ids, guess: self.before.0 })?),
                Key::Target => target = Some(map.next_value_seed(EndSeed { ids: self.ids, guess: self.before.1 })?),
                Key::Weight => weight = Some(map.next_value::<Option<f32>>()?),
                Key::Other(name) => {
                    extra.insert(name, map.next_value()?);
                }
            }
        }
        Ok(WireEnds {
            source: source.ok_or_else(|| A::Error::missing_field("source"))?,
            target: target.ok_or_else(|| A::Error::missing_field("target"))?,
            weight: weight.ok_or_else(|| A::Error::missing_field("weight"))?,
            extra,
        })
    }
}

enum Key {
    Source,
    Target,
    Weight,
    Other(String),
}

struct KeySeed;

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<Key, D::Error> {
        parser.deserialize_bytes(self)
    }
}

impl Visitor<'_> for KeySeed {
    type Value = Key;

    fn expecting(&self, f: &mut Formatter) -> std::fmt::Result {
        f.write_str("a name")
    }

    fn visit_bytes<E: serde::de::Error>(self, name: &[u8]) -> Result<Key, E> {
        Ok(match name {
            b"source" => Key::Source,
            b"target" => Key::Target,
            b"weight" => Key::Weight,
            _ => match std::str::from_utf8(name) {
                Ok(name) => Key::Other(name.to_owned()),
                Err(e) => return Err(E::custom(e)),
            },
        })
    }
}

struct EndSeed<'a> {
    ids: &'a Ids,
    guess: usize,
}

impl<'de, 'a> DeserializeSeed<'de> for EndSeed<'a> {
    type Value = End<'a>;

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<End<'a>, D::Error> {
        // Bytes: an id that equals a node's needs no other check.
        parser.deserialize_bytes(self)
    }
}

impl<'a> Visitor<'_> for EndSeed<'a> {
    type Value = End<'a>;

    fn expecting(&self, f: &mut Formatter) -> std::fmt::Result {
        f.write_str("the id of a node")
    }

    fn visit_bytes<E>(self, id: &[u8]) -> Result<End<'a>, E> {
        Ok(self.ids.find(id, self.guess))
    }
}
