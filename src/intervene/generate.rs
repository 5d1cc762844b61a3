//! Continuations under intervention, token by token with a cache of keys and values.

use super::change::{Intervention, Mode};
use super::edit::{Constraint, InterventionEdit};
use super::original::{Original, hold, last_logits};
use super::sample::Sampler;
use crate::error::{Error, Result};
use crate::job::Job;
use crate::model::{Activations, ForwardOptions, Hold, KvCache};

/// How a continuation is made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerateOptions {
    /// At most this many tokens; fewer where the model ends the text or its context is full.
    pub n_tokens: usize,
    /// Sample at this temperature; `None`: take the likeliest token.
    pub temperature: Option<f64>,
    /// With a temperature: sample among the likeliest tokens that add up to this probability.
    pub top_p: Option<f64>,
    /// Start of the random numbers; the same seed draws the same tokens.
    pub seed: u64,
    /// Hold generated tokens too: to a run of the unchanged model over the same tokens, the changed continuation so
    /// far. Otherwise the mode's holds end with the prompt, and new tokens are computed freely.
    pub keep_frozen: bool,
}

impl GenerateOptions {
    /// # Errors
    /// [`Error::Setting`] with the field's name.
    pub fn check(&self) -> Result<()> {
        let out_of_range = |name: &'static str, value: f64, range: &'static str| Error::Setting { name, value, range };
        match (self.temperature, self.top_p) {
            (Some(t), _) if !(t.is_finite() && t >= 0.0) => Err(out_of_range("temperature", t, "0.. and finite")),
            (_, Some(p)) if !(p > 0.0 && p <= 1.0) => Err(out_of_range("top_p", p, "above 0, at most 1")),
            _ => Ok(()),
        }
    }
}

impl Original<'_> {
    /// Continues the prompt while interventions act; open-ended ones act on every new token as well. Without
    /// interventions, the original continuation.
    ///
    /// Keeps all layers in memory from the first call on, since every token needs all of them.
    ///
    /// # Shapes
    /// Returns the new tokens alone, a final EOS included.
    ///
    /// # Errors
    /// As [`Original::intervene`], and [`GenerateOptions::check`].
    pub fn generate(
        &self,
        interventions: &[Intervention],
        mode: &Mode,
        options: &GenerateOptions,
        job: &Job,
    ) -> Result<Vec<u32>> {
        self.generate_with(interventions, mode, options, job, &mut |_, _| ())
    }

    /// As [`Original::generate`]; `each` hears of every new token as soon as it is chosen, and of the logits that it was
    /// chosen from. `[d_vocab]`
    ///
    /// # Errors
    /// As [`Original::generate`].
    pub fn generate_with(
        &self,
        interventions: &[Intervention],
        mode: &Mode,
        options: &GenerateOptions,
        job: &Job,
        each: &mut dyn FnMut(u32, &[f32]),
    ) -> Result<Vec<u32>> {
        options.check()?;
        let config = &self.replacement.model.config;
        mode.check(config.n_layers)?;
        let resolved = self.resolve(&[interventions.to_vec()])?;
        let mut sampler = Sampler::new(options.seed, options.temperature, options.top_p);
        let mut generated = Vec::new();
        if options.n_tokens == 0 {
            return Ok(generated);
        }
        self.replacement.model.keep_layers()?;

        let model = &self.replacement.model;
        let mut cache = KvCache::new(config.n_layers);
        let mut edit = self.edit(&resolved, mode);
        let prompt = std::slice::from_ref(&self.tokens);
        let mut heads = self.heads().hooks(mode, config.n_layers, 0..self.n_pos());
        let hooks = &mut (&mut edit, (&mut heads, self.hold(mode)));
        let mut pass = model.forward(prompt, hooks, ForwardOptions::continuing(&mut cache, job))?;

        let is_held = options.keep_frozen && *mode != Mode::Free;
        let mut reference_cache = KvCache::new(config.n_layers);
        if is_held {
            model.forward(prompt, &mut (), ForwardOptions::continuing(&mut reference_cache, job))?;
        }
        loop {
            let logits = last_logits(self.replacement, &pass)?.remove(0);
            let next = sampler.choose(&logits)?;
            generated.push(next);
            each(next, &logits);
            job.report("tokens", generated.len(), options.n_tokens);
            let n_past = cache.n_past();
            let is_over = self.replacement.end_tokens.contains(&next) || n_past == config.n_ctx;
            if generated.len() == options.n_tokens || is_over {
                return Ok(generated);
            }

            // The same token in the unchanged model.
            let mut reference = Activations::at(self.replacement.points());
            if is_held {
                model.forward(&[vec![next]], &mut reference, ForwardOptions::continuing(&mut reference_cache, job))?;
            }
            let (hold, constraint) = match is_held {
                true => {
                    let layers = mode.constrained_layers(config.n_layers);
                    let constraint = layers.map(|layers| Constraint { layers, original: &reference });
                    (hold(mode, &reference, config.n_layers), constraint)
                }
                false => (Hold::Nothing, None),
            };
            let mut edit = InterventionEdit::new(self.replacement, &resolved, constraint, n_past..n_past + 1);
            let mut heads = self.heads().hooks(mode, config.n_layers, n_past..n_past + 1);
            let hooks = &mut (&mut edit, (&mut heads, hold));
            pass = model.forward(&[vec![next]], hooks, ForwardOptions::continuing(&mut cache, job))?;
        }
    }
}
