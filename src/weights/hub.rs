//! Repositories of the Hugging Face Hub, through its ordinary cache.

use std::path::PathBuf;

use crate::error::Result;

/// A repository at a revision.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Repo {
    owner: String,
    name: String,
    revision: String,
}

impl Repo {
    /// `org/name[@revision]`.
    pub fn parse(spec: &str) -> Option<Self> {
        let (id, revision) = spec.split_once('@').unwrap_or((spec, "main"));
        let (owner, name) = id.split_once('/')?;
        let word = |s: &str| {
            !s.is_empty() && !s.starts_with('.') && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let revision_is_sane = !revision.is_empty() && revision.split('/').all(word);
        (word(owner) && word(name) && revision_is_sane).then(|| Self {
            owner: owner.to_string(),
            name: name.to_string(),
            revision: revision.to_string(),
        })
    }

    pub fn snapshot(&self) -> Option<PathBuf> {
        None
    }

    pub fn file(&self, _name: &str) -> Result<Option<PathBuf>> {
        Ok(None)
    }
}

/// `hf://org/name/path[@revision]`.
pub(super) fn parse_url(url: &str) -> Option<(Repo, String)> {
    let rest = url.strip_prefix("hf://")?;
    let (rest, revision) = rest.split_once('@').unwrap_or((rest, "main"));
    let mut words = rest.splitn(3, '/');
    let (owner, name, file) = (words.next()?, words.next()?, words.next()?);
    Some((Repo::parse(&format!("{owner}/{name}@{revision}"))?, file.to_string()))
}
