//! One link of a JSON graph, its ids looked up while they are read.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Formatter;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;

use crate::{Error, Result};

/// Nodes by id: one, but for the error nodes of circuit-tracer, whose ids can be those of features.
pub(super) type Ids = HashMap<String, Vec<usize>>;

/// What an id of a link stands for.
enum End<'a> {
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

impl<'a> WireEnds<'a> {
    /// The nodes that source and target can mean.
    ///
    /// # Errors
    /// One of them is not in the file; `id_of` has the ids of those that are.
    pub(super) fn found(&self, id_of: impl Fn(usize) -> String) -> Result<(&'a [usize], &'a [usize])> {
        let id = |end: &End<'a>| match end {
            End::Nodes(nodes) => nodes.first().map(|&node| id_of(node)).unwrap_or_default(),
            End::Missing(id) => id.clone(),
        };
        match (&self.source, &self.target) {
            (End::Nodes(sources), End::Nodes(targets)) => Ok((sources, targets)),
            (End::Missing(missing), _) | (_, End::Missing(missing)) => Err(Error::LinkToNowhere {
                source_id: id(&self.source),
                target_id: id(&self.target),
                missing: missing.clone(),
            }),
        }
    }
}

/// Reads a link among the nodes of these ids.
pub(super) struct LinkSeed<'a>(pub(super) &'a Ids);

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
                Key::Source => source = Some(map.next_value_seed(EndSeed(self.0))?),
                Key::Target => target = Some(map.next_value_seed(EndSeed(self.0))?),
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
        parser.deserialize_identifier(self)
    }
}

impl Visitor<'_> for KeySeed {
    type Value = Key;

    fn expecting(&self, f: &mut Formatter) -> std::fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Key, E> {
        Ok(match name {
            "source" => Key::Source,
            "target" => Key::Target,
            "weight" => Key::Weight,
            _ => Key::Other(name.to_owned()),
        })
    }
}

struct EndSeed<'a>(&'a Ids);

impl<'de, 'a> DeserializeSeed<'de> for EndSeed<'a> {
    type Value = End<'a>;

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<End<'a>, D::Error> {
        parser.deserialize_str(self)
    }
}

impl<'a> Visitor<'_> for EndSeed<'a> {
    type Value = End<'a>;

    fn expecting(&self, f: &mut Formatter) -> std::fmt::Result {
        f.write_str("the id of a node")
    }

    fn visit_str<E>(self, id: &str) -> Result<End<'a>, E> {
        Ok(self.0.get(id).map_or_else(|| End::Missing(id.to_owned()), |nodes| End::Nodes(nodes)))
    }
}
