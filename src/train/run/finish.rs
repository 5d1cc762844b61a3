//! The end: thresholds, measures, files.

use rayon::prelude::*;

use super::super::activations::Activations;
use super::super::checkpoint;
use super::super::fold::{Folded, SetHeader, calibrate, fold, write_header, write_layer};
use super::super::layer::Layer;
use super::super::log;
use super::super::measure::measure;
use super::super::options::Activation;
use super::{Run, Trained, TrainedSet};
use crate::error::Result;
use crate::job::Job;

impl Run<'_> {
    /// Sets thresholds, measures, and writes the sets.
    pub(super) fn finish(mut self, job: &Job) -> Result<Trained> {
        let n_layers = self.subject.model.config.n_layers;
        // What only steps need is given back before the weights are copied in the model's units.
        (self.activations, self.batch) = (Activations::new(n_layers, self.subject.model.config.d_model), Vec::new());
        self.sets.iter_mut().flatten().for_each(Layer::forget_moments);
        let several = self.sets.len() > 1;
        let mut trained = Vec::new();
        for (set, layers) in self.sets.iter().enumerate() {
            let size = self.options.sets[set];
            let folder = match several {
                true => self.out.join(format!("{}x{}", size.n_features, size.l0)),
                false => self.out.to_owned(),
            };
            let header = SetHeader {
                model: self.subject.source,
                name: if self.options.name.is_empty() { self.subject.source } else { &self.options.name },
                points: self.points,
                activation: self.options.activation,
                k: size.l0 as usize,
                cross_layer: self.options.cross_layer,
                precision: self.options.precision,
                folder: self.options.folder,
                context: self.options.context,
            };
            let folded: Vec<Folded> = (0..n_layers)
                .into_par_iter()
                .map(|layer| {
                    // What a set began with keeps its units: its features' activations mean what they meant.
                    let mut folded = fold(layers, layer, self.subject.from.is_none(), self.options.precision);
                    if self.options.activation == Activation::JumpRelu {
                        calibrate(&mut folded, &self.held_out.first_half(layer), size.l0);
                    }
                    folded
                })
                .collect();
            job.check()?;
            for (layer, folded) in folded.iter().enumerate() {
                write_layer(&folder, layer, folded, &header)?;
            }
            write_header(&folder, n_layers, &header)?;
            let (fvu, l0) = measure(folded, &self.held_out, self.options.activation, size.l0);
            let window = i64::try_from(self.options.dead_window).unwrap_or(i64::MAX);
            let n_dead: usize = layers.iter().map(|layer| layer.dead(self.state.n_stepped, window).len()).sum();
            trained.push(TrainedSet {
                folder,
                size,
                fvu,
                l0,
                dead: n_dead as f64 / (n_layers * size.n_features) as f64,
            });
        }
        log::write(self.out, &self.state.log)?;
        checkpoint::forget(self.out)?;
        self.reports.clear();
        Ok(Trained {
            sets: trained,
            n_steps: self.state.step,
            n_tokens: self.state.log.last().map_or(0, |line| line.tokens),
            secs: self.state.secs,
            resumed_from: self.resumed_from,
            log: self.state.log,
        })
    }
}
