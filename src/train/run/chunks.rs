//! The text, a chunk at a time.

use std::time::Instant;

use super::{ACTIVATIONS_PHASE, CHUNK_TIME_SHARE, COUNTING_PHASE, Run};
use crate::corpus::{Input, Part, Stream};
use crate::error::{Error, Result};
use crate::job::Job;
use crate::replacement::n_excluded;

impl<'a> Run<'a> {
    /// Tokens of the text that is learnt from.
    pub(super) fn count(&self, job: &Job) -> Result<u64> {
        let mut text = self.stream(None, job)?;
        let mut n_tokens = 0u64;
        while let Some(unit) = text.next_unit(job)? {
            n_tokens += unit.iter().map(|sequence| sequence.tokens.len() as u64).sum::<u64>();
            job.report(COUNTING_PHASE, n_tokens as usize, 0);
        }
        Ok(n_tokens)
    }

    pub(super) fn stream(&self, cursor: Option<crate::corpus::Cursor>, job: &Job) -> Result<Stream<'a>> {
        let (inputs, format, tokenizer) = (self.inputs, &self.options.format, self.subject.tokenizer);
        match cursor {
            Some(cursor) => Stream::at(inputs, format, Part::Learnt, tokenizer, cursor, job),
            None => Ok(Stream::new(inputs, format, Part::Learnt, tokenizer, self.options.context, u64::MAX)),
        }
    }

    /// Computes the activations of the next chunk of text; at the text's end it begins again.
    pub(super) fn read_chunk(&mut self, job: &Job) -> Result<()> {
        self.activations.clear();
        let wanted_units = (self.state.n_units > 0).then_some(self.state.n_units);
        let left = self.state.target.map_or(u64::MAX, |target| target.saturating_sub(self.state.n_used));
        let capacity = self.capacity.min(usize::try_from(left).unwrap_or(usize::MAX)).max(1);
        let start = Instant::now();
        let limit = self.options.minutes.map(|minutes| minutes * 60.0 * CHUNK_TIME_SHARE);
        let mut text = self.stream(Some(self.state.cursor.clone()), job)?;
        let excluded = |tokens: &[u32]| n_excluded(&[self.subject.source], tokens);
        let mut n_units = 0;
        loop {
            let n = self.activations.n_tokens();
            let is_enough = match wanted_units {
                Some(wanted) => n_units >= wanted,
                None => {
                    let is_late = limit.is_some_and(|limit| start.elapsed().as_secs_f64() > limit);
                    n >= capacity || (is_late && n >= self.options.batch)
                }
            };
            if is_enough {
                break;
            }
            let Some(unit) = text.next_unit(job)? else {
                if n_units > 0 {
                    break;
                }
                if text.cursor().n_documents() == 0 {
                    let names = self.inputs.iter().map(Input::name).collect::<Vec<_>>().join(", ");
                    let problem = "it holds no text but what is held out".to_owned();
                    return Err(Error::Text { file: names, problem });
                }
                // The text begins again.
                text = self.stream(None, job)?;
                continue;
            };
            self.activations.add(&self.pass, self.points, &unit, &excluded, job)?;
            n_units += 1;
            job.report(ACTIVATIONS_PHASE, self.activations.n_tokens().min(capacity), capacity);
        }
        self.state.n_units = n_units;
        self.next_cursor = Some(text.cursor().clone());
        Ok(())
    }
}
