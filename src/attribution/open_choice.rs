//! Which positions of a prompt are open.

use super::{AttributionOptions, TargetMap, TargetRequest};
use crate::error::{Error, Result};
use crate::job::Job;
use crate::replacement::{LinearModel, OpenPositions, Replacement};

/// Which positions have features, errors and gradient of their own; the others are leaves (definitions 3).
///
/// Positions of targets are always open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OpenChoice {
    /// Every position.
    #[default]
    All,
    /// Spans `[first, end)`.
    Spans(Vec<[usize; 2]>),
    /// This many positions: those that give most to the targets directly, by Σ|effect| of everything there.
    Strongest(usize),
}

/// As settings record it and the command line has it: spans `3..7,12`, or `auto:256`; nothing for all.
impl std::fmt::Display for OpenChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OpenChoice::All => Ok(()),
            OpenChoice::Strongest(number) => write!(f, "auto:{number}"),
            OpenChoice::Spans(spans) => spans.iter().enumerate().try_for_each(|(at, &[first, end])| {
                let comma = if at > 0 { "," } else { "" };
                if first + 1 == end { write!(f, "{comma}{first}") } else { write!(f, "{comma}{first}..{end}") }
            }),
        }
    }
}

impl OpenChoice {
    /// Reads what [`Display`](std::fmt::Display) writes; `None` for any other text.
    pub fn parse(text: &str) -> Option<OpenChoice> {
        if text.is_empty() {
            return Some(OpenChoice::All);
        }
        if let Some(number) = text.strip_prefix("auto:") {
            return number.parse().ok().map(OpenChoice::Strongest);
        }
        let span = |part: &str| match part.split_once("..") {
            Some((first, end)) => Some([first.parse().ok()?, end.parse().ok()?]),
            None => part.parse().ok().map(|pos: usize| [pos, pos.saturating_add(1)]),
        };
        text.split(',').map(span).collect::<Option<_>>().map(OpenChoice::Spans)
    }

    /// Reads what somebody asks for: as [`OpenChoice::parse`], and there are positions.
    ///
    /// # Errors
    /// [`Error::Spec`]; [`Error::Setting`] for `auto:0`.
    pub fn asked(text: &str) -> Result<OpenChoice> {
        let expected = "spans of positions such as 3..7,12 (without 7), or auto:N for the N strongest";
        let choice = OpenChoice::parse(text).filter(|choice| *choice != OpenChoice::All);
        let choice = choice.ok_or_else(|| Error::Spec { text: text.to_owned(), expected })?;
        choice.check()?;
        Ok(choice)
    }

    /// # Errors
    /// [`Error::Spec`] for a span without positions; [`Error::Setting`] for none at all.
    pub fn check(&self) -> Result<()> {
        match self {
            OpenChoice::All => Ok(()),
            OpenChoice::Strongest(0) => Err(Error::Setting { name: "open", value: 0.0, range: "1.." }),
            OpenChoice::Strongest(_) => Ok(()),
            OpenChoice::Spans(spans) => match spans.iter().find(|[first, end]| first >= end) {
                Some([first, end]) => {
                    let expected = "a span of positions whose end is after its first: the end is not part of it";
                    Err(Error::Spec { text: format!("{first}..{end}"), expected })
                }
                None if spans.is_empty() => Err(Error::Setting { name: "open", value: 0.0, range: "1.." }),
                None => Ok(()),
            },
        }
    }

    /// The positions of the spans.
    ///
    /// # Errors
    /// [`Error::NoSuchPosition`]
    pub(super) fn positions_of(spans: &[[usize; 2]], n_pos: usize) -> Result<Vec<usize>> {
        match spans.iter().find(|[_, end]| *end > n_pos) {
            Some(&[first, end]) => Err(Error::NoSuchPosition { pos: first.max(end - 1), n_pos }),
            None => Ok(spans.iter().flat_map(|&[first, end]| first..end).collect()),
        }
    }
}

/// The linear model of a prompt, with the positions open that options ask for, and those of their targets.
///
/// # Errors
/// [`Error::NoSuchPosition`]; [`Error::NeedsAllOpen`] for attention scores and on a GPU; those of a forward pass, of reading
/// and of the tensor operations; [`Error::Cancelled`].
pub fn linearized(
    replacement: &Replacement,
    tokens: &[u32],
    options: &AttributionOptions,
    job: &Job,
) -> Result<LinearModel> {
    let positions = open_positions(replacement, tokens, options)?;
    match options.open {
        OpenChoice::Strongest(number) if number < tokens.len() => {
            if !replacement.model.device().is_cpu() {
                return Err(Error::NeedsAllOpen { what: "a GPU".into() });
            }
            let prepared = replacement.prepare(tokens, job)?;
            let mut open = TargetMap::new(replacement, &prepared, options, job)?.strongest(number);
            open.extend(positions.open());
            replacement.linearize_prepared(prepared, &OpenPositions::new(open, tokens.len())?, job)
        }
        OpenChoice::Strongest(_) => replacement.linearize(tokens, job),
        OpenChoice::All | OpenChoice::Spans(_) => replacement.linearize_open(tokens, &positions, job),
    }
}

/// The positions that options ask to be open, and those of their targets; of [`OpenChoice::Strongest`] the latter alone.
///
/// # Errors
/// [`Error::NoSuchPosition`]; [`Error::NeedsAllOpen`] for attention scores.
pub fn open_positions(
    replacement: &Replacement,
    tokens: &[u32],
    options: &AttributionOptions,
) -> Result<OpenPositions> {
    replacement.model.check_tokens(tokens)?;
    let n_pos = tokens.len();
    let mut open = match &options.open {
        OpenChoice::All => return Ok(OpenPositions::all(n_pos)),
        OpenChoice::Spans(spans) => OpenChoice::positions_of(spans, n_pos)?,
        OpenChoice::Strongest(_) => Vec::new(),
    };
    if open.len() == n_pos {
        return Ok(OpenPositions::all(n_pos));
    }
    let of_logits = options.position.unwrap_or(n_pos - 1);
    if options.targets.is_empty() {
        open.push(of_logits);
    }
    for target in &options.targets {
        open.push(match target {
            TargetRequest::Feature { pos, .. } => *pos,
            TargetRequest::Score { .. } => {
                return Err(Error::NeedsAllOpen { what: "explaining an attention score".into() });
            }
            _ => of_logits,
        });
    }
    OpenPositions::new(open, n_pos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_they_are_written() {
        let spans = OpenChoice::Spans(vec![[3, 7], [12, 13]]);
        assert_eq!(spans.to_string(), "3..7,12");
        for choice in [OpenChoice::All, OpenChoice::Strongest(256), spans] {
            assert_eq!(OpenChoice::parse(&choice.to_string()), Some(choice));
        }
        for text in ["auto", "auto:", "auto:x", "3..", "..7", "3-7", "3,,4", "a..b", "-1..3"] {
            assert_eq!(OpenChoice::parse(text), None, "{text}");
        }
        for text in ["auto:0", "5..5", "7..3", "1..2,4..4"] {
            assert!(OpenChoice::parse(text).unwrap().check().is_err(), "{text}");
        }
        assert!(OpenChoice::positions_of(&[[0, 4]], 4).is_ok() && OpenChoice::positions_of(&[[0, 5]], 4).is_err());
    }
}
