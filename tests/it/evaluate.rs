//! How good a set of transcoders is: against a literal twin that reads one sequence at a time, with dense activations
//! and every reconstruction as a sum over all features.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor};
use circuitscope::attribution::attribute;
use circuitscope::corpus::{Input, Split, TextFormat};
use circuitscope::evaluate::{
    Divergence, EvaluateOptions, FREQUENCY_EDGES, PROMPTS_PHASE, Quality, REPLACED_PHASE, Spread, Substituted,
    TOKENS_PHASE, TextOptions, evaluate, layer_quality,
};
use circuitscope::intervene::{Change, Intervention, Mode, Original, Positions};
use circuitscope::model::{ForwardOptions, HookPoint, Hooks};
use circuitscope::replacement::Replacement;
use circuitscope::transcoder::{ActivationFunction, Kind};
use circuitscope::{AttributionOptions, CancelToken, Error, Job};
use tempfile::TempDir;

use crate::reference::FAMILIES;
use crate::support::{circuitscope, fixture, open_replacement, refused_with, root, stdout};

/// Documents of several lengths, some longer than a sequence, one of a single token.
const TEXT: &str = "He went to the house and she went to the shop, and then they both went home again in the rain.\n\
    The quick brown fox jumps over the lazy dog.\n\
    a\n\
    One, two, three, four; caf\u{e9} na\u{ef}ve \u{4e2d}\u{6587}.\n\
    In the beginning there was nothing, then there was a house, and in the house there was a fox.\n";

fn replacement(family: &str) -> Replacement {
    let folder = fixture("reference").join(family);
    open_replacement(&folder.join("model"), &folder.join("transcoders"))
}

fn written(folder: &TempDir, name: &str, text: &str) -> Vec<Input> {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    vec![Input::File(path)]
}

fn lines(context: usize, all_text: bool) -> TextOptions {
    let format = TextFormat { split: Split::Lines, ..Default::default() };
    TextOptions { format, all_text, context, max_tokens: None }
}

/// What stands in place of an MLP's output.
#[derive(Clone, Debug)]
enum Put {
    Nothing,
    Features,
    /// `[d_model]`
    Vector(Vec<f64>),
}

/// One sequence's pass, with everything that is wanted of it.
struct Literal<'a> {
    replacement: &'a Replacement,
    n_excluded: usize,
    put: Vec<Put>,
    /// `[n_layers][n_pos][n_features]`
    activations: Vec<Vec<Vec<f64>>>,
    skips: Vec<Option<Vec<Vec<f32>>>>,
    /// `[n_layers][n_pos][d_model]`
    outputs: Vec<Vec<Vec<f64>>>,
    reconstructions: Vec<Vec<Vec<f64>>>,
}

impl<'a> Literal<'a> {
    fn new(replacement: &'a Replacement, n_excluded: usize, put: Vec<Put>) -> Self {
        let (activations, skips, outputs, reconstructions) = Default::default();
        Self { replacement, n_excluded, put, activations, skips, outputs, reconstructions }
    }

    /// Logits. `[n_pos][d_vocab]`
    fn run(&mut self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let model = &self.replacement.model;
        let pass = model.forward(&[tokens.to_vec()], self, ForwardOptions::default()).unwrap();
        let logits: Vec<Vec<f32>> = model.logits(&pass.final_normed.squeeze(0).unwrap()).unwrap().to_vec2().unwrap();
        logits.into_iter().map(|row| row.into_iter().map(f64::from).collect()).collect()
    }

    fn reconstruct(&self, layer: usize, pos: usize) -> Vec<f64> {
        let transcoders = &self.replacement.transcoders;
        let mut sum: Vec<f64> =
            transcoders.layers[layer].b_dec().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect();
        for from in 0..=layer {
            if transcoders.kind == Kind::PerLayer && from != layer {
                continue;
            }
            let all: Vec<usize> = (0..transcoders.layers[from].n_features()).collect();
            let vecs: Vec<Vec<Vec<f32>>> =
                transcoders.layers[from].decoder_vecs(&all, &Device::Cpu).unwrap().to_vec3().unwrap();
            for (activation, vecs) in self.activations[from][pos].iter().zip(&vecs) {
                sum.iter_mut().zip(&vecs[layer - from]).for_each(|(sum, &v)| *sum += activation * f64::from(v));
            }
        }
        if let Some(skip) = &self.skips[layer] {
            sum.iter_mut().zip(&skip[pos]).for_each(|(sum, &v)| *sum += f64::from(v));
        }
        sum
    }
}

fn activations(function: &ActivationFunction, z: &[f32]) -> Vec<f64> {
    let kept: Vec<bool> = match function {
        ActivationFunction::Relu => z.iter().map(|&z| z > 0.0).collect(),
        ActivationFunction::JumpRelu { threshold } => z.iter().zip(threshold).map(|(z, t)| z > t).collect(),
        ActivationFunction::TopK { k } => {
            let before = |i: usize| (0..z.len()).filter(|&j| z[j] > z[i] || (z[j] == z[i] && j < i)).count();
            (0..z.len()).map(|i| before(i) < *k).collect()
        }
    };
    z.iter().zip(kept).map(|(&z, kept)| if kept { f64::from(z) } else { 0.0 }).collect()
}

impl Hooks for Literal<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        let replacement = self.replacement;
        point.layer().is_some_and(|l| [replacement.input_point(l), replacement.output_point(l)].contains(&point))
    }

    fn see(&mut self, point: HookPoint, tensor: &Tensor) -> circuitscope::Result<Option<Tensor>> {
        let layer = point.layer().unwrap();
        let rows = tensor.squeeze(0)?;
        if point == self.replacement.input_point(layer) {
            let transcoder = &self.replacement.transcoders.layers[layer];
            let z: Vec<Vec<f32>> = transcoder.pre_activations(&rows)?.to_vec2()?;
            self.activations.push(z.iter().map(|z| activations(transcoder.activation(), z)).collect());
            self.skips.push(transcoder.skip(&rows)?.map(|skip| skip.to_vec2().unwrap()));
            return Ok(None);
        }
        let mut output: Vec<Vec<f32>> = rows.to_vec2()?;
        let reconstructions: Vec<Vec<f64>> = (0..output.len()).map(|pos| self.reconstruct(layer, pos)).collect();
        self.outputs.push(output.iter().map(|y| y.iter().map(|&y| f64::from(y)).collect()).collect());
        for pos in self.n_excluded..output.len() {
            let put = match &self.put[layer] {
                Put::Nothing => continue,
                Put::Features => &reconstructions[pos],
                Put::Vector(vec) => vec,
            };
            output[pos] = put.iter().map(|&x| x as f32).collect();
        }
        self.reconstructions.push(reconstructions);
        Ok(Some(Tensor::new(output, tensor.device())?.unsqueeze(0)?))
    }
}

fn log_probabilities(logits: &[f64]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::MIN, f64::max);
    let log_sum = top + logits.iter().map(|l| (l - top).exp()).sum::<f64>().ln();
    logits.iter().map(|l| l - log_sum).collect()
}

fn first_largest(values: &[f64]) -> usize {
    (0..values.len()).find(|&i| values.iter().all(|&other| values[i] >= other)).unwrap()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn sequences(replacement: &Replacement, text: &str, context: usize) -> Vec<Vec<u32>> {
    let tokenizer = &replacement.tokenizer;
    let start = tokenizer.bos().or(tokenizer.pad()).or(tokenizer.eos());
    let mut sequences: Vec<Vec<u32>> = Vec::new();
    for line in text.lines() {
        let tokens = tokenizer.encode_plain(line).unwrap();
        let chunks = tokens.chunks(context - start.iter().len());
        sequences.extend(chunks.map(|chunk| start.into_iter().chain(chunk.iter().copied()).collect()));
    }
    sequences
}

#[track_caller]
fn near(actual: f64, expected: f64, name: &str) {
    // f32 passes, in batches here and alone there.
    let tolerance = 2e-4 * expected.abs().max(1.0);
    assert!((actual - expected).abs() <= tolerance, "{name}: {actual}, expected {expected}");
}

/// Cross-entropy of the original, and what changed passes predict, over all sequences.
fn divergence(replacement: &Replacement, sequences: &[Vec<u32>], put: &[Put]) -> (f64, Divergence, usize) {
    let (mut original, mut cross_entropy, mut kl, mut agreement) = (vec![], vec![], vec![], vec![]);
    for tokens in sequences {
        let n_excluded = replacement.n_excluded(tokens);
        let nothing = vec![Put::Nothing; put.len()];
        let before = Literal::new(replacement, n_excluded, nothing).run(tokens);
        let after = Literal::new(replacement, n_excluded, put.to_vec()).run(tokens);
        for pos in n_excluded..tokens.len().saturating_sub(1) {
            let (p, q) = (log_probabilities(&before[pos]), log_probabilities(&after[pos]));
            let next = tokens[pos + 1] as usize;
            original.push(-p[next]);
            cross_entropy.push(-q[next]);
            kl.push(p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum());
            agreement.push(f64::from(u8::from(first_largest(&before[pos]) == first_largest(&after[pos]))));
        }
    }
    let n = original.len();
    let found = Divergence { cross_entropy: mean(&cross_entropy), kl: mean(&kl), agreement: mean(&agreement) };
    (mean(&original), found, n)
}

#[track_caller]
fn assert_substituted(actual: &Substituted, original: f64, expected: [Divergence; 3], name: &str) {
    for (actual, expected) in [actual.features, actual.zero, actual.mean].iter().zip(expected) {
        near(actual.cross_entropy, expected.cross_entropy, &format!("{name}: cross-entropy"));
        near(actual.kl, expected.kl, &format!("{name}: KL"));
        near(actual.agreement, expected.agreement, &format!("{name}: agreement"));
    }
    let [features, zero, mean] = expected.map(|d| d.cross_entropy);
    for (score, from) in [(actual.ce_score, zero), (actual.ce_score_mean, mean)] {
        if from - original > 1e-2 {
            let expected = (from - features) / (from - original);
            assert!((score.unwrap() - expected).abs() < 2e-2, "{name}: {score:?}, expected {expected}");
        }
        if from - original < -1e-2 {
            assert_eq!(score, None, "{name}");
        }
    }
    let [features, zero, _] = expected.map(|d| d.kl);
    near(actual.kl_score.unwrap(), (zero - features) / zero, &format!("{name}: KL score"));
}

/// Everything about layers, from all positions in one list.
#[track_caller]
fn assert_layers(replacement: &Replacement, found: &Quality, sequences: &[Vec<u32>]) -> Vec<Vec<f64>> {
    let n_layers = replacement.model.config.n_layers;
    let (mut means, mut fvus, mut errors, mut deviations) = (vec![], vec![], vec![], vec![]);
    let mut passes = Vec::new();
    for tokens in sequences {
        let mut literal = Literal::new(replacement, replacement.n_excluded(tokens), vec![Put::Nothing; n_layers]);
        literal.run(tokens);
        passes.push(literal);
    }
    for layer in 0..n_layers {
        let positions: Vec<(&Vec<f64>, &Vec<f64>, &Vec<f64>)> = passes
            .iter()
            .flat_map(|pass| {
                let range = pass.n_excluded..pass.outputs[layer].len();
                range.map(move |p| {
                    (&pass.outputs[layer][p], &pass.reconstructions[layer][p], &pass.activations[layer][p])
                })
            })
            .collect();
        let n = positions.len();
        assert_eq!(found.text.n_positions, n as u64);
        let d_model = replacement.model.config.d_model;
        let y_mean: Vec<f64> =
            (0..d_model).map(|i| mean(&positions.iter().map(|p| p.0[i]).collect::<Vec<_>>())).collect();
        let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
        let norm = |a: &[f64]| a.iter().map(|a| a * a).sum::<f64>().sqrt();
        let error: f64 = positions.iter().map(|(y, h, _)| distance(y, h)).sum();
        let deviation: f64 = positions.iter().map(|(y, ..)| distance(y, &y_mean)).sum();
        let of = &found.reconstruction.layers[layer];
        near(of.fvu.unwrap() / (error / deviation), 1.0, "FVU");
        near(of.squared_error / error, 1.0, "squared error");
        near(of.squared_deviation / deviation, 1.0, "squared deviation");
        let cosine = |(y, h, _): &(&Vec<f64>, &Vec<f64>, &Vec<f64>)| {
            y.iter().zip(h.iter()).map(|(y, h)| y * h).sum::<f64>() / norm(y) / norm(h)
        };
        near(of.cosine, mean(&positions.iter().map(cosine).collect::<Vec<_>>()), "cosine");
        near(of.norm_ratio, mean(&positions.iter().map(|(y, h, _)| norm(h) / norm(y)).collect::<Vec<_>>()), "norm");

        let mut l0: Vec<f64> = positions.iter().map(|(.., a)| a.iter().filter(|&&a| a != 0.0).count() as f64).collect();
        near(of.l0, mean(&l0), "L0");
        l0.sort_by(f64::total_cmp);
        for (part, quantile) in [0.05, 0.25, 0.5, 0.75, 0.95].iter().zip(of.l0_quantiles) {
            let expected =
                l0.iter().find(|&&l| l0.iter().filter(|&&other| other <= l).count() as f64 >= part * n as f64);
            assert_eq!(f64::from(quantile), *expected.unwrap(), "{part}");
        }
        let n_features = replacement.transcoders.layers[layer].n_features();
        let counts: Vec<usize> =
            (0..n_features).map(|f| positions.iter().filter(|(.., a)| a[f] != 0.0).count()).collect();
        assert_eq!(of.n_features, n_features);
        assert_eq!(of.n_dead, counts.iter().filter(|&&count| count == 0).count());
        assert_eq!(of.n_dense, counts.iter().filter(|&&count| count * 10 > n).count());
        let mut bins = [0; FREQUENCY_EDGES.len()];
        for &count in counts.iter().filter(|&&count| count > 0) {
            let frequency = count as f64 / n as f64;
            bins[(0..bins.len()).rfind(|&bin| FREQUENCY_EDGES[bin] <= frequency).unwrap_or(0)] += 1;
        }
        assert_eq!(of.frequencies, bins);
        means.push(y_mean);
        fvus.push(error / deviation);
        errors.push(error);
        deviations.push(deviation);
    }
    near(found.reconstruction.mean_fvu.unwrap() / mean(&fvus), 1.0, "mean FVU");
    let pooled = errors.iter().sum::<f64>() / deviations.iter().sum::<f64>();
    near(found.reconstruction.pooled_fvu.unwrap() / pooled, 1.0, "pooled FVU");
    means
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let below = |v: f64| values.iter().filter(|&&other| other < v).count() as f64;
    let equal = |v: f64| values.iter().filter(|&&other| other == v).count() as f64;
    values.iter().map(|&v| below(v) + (equal(v) - 1.0) / 2.0).collect()
}

fn correlation(x: &[f64], y: &[f64]) -> f64 {
    let (mx, my) = (mean(x), mean(y));
    let product =
        |a: &[f64], ma: f64, b: &[f64], mb: f64| a.iter().zip(b).map(|(a, b)| (a - ma) * (b - mb)).sum::<f64>();
    product(x, mx, y, my) / (product(x, mx, x, mx) * product(y, my, y, my)).sqrt()
}

/// Where a prompt ends: FNV-1a and the end of splitmix64 tell it of short ones.
fn prompt_length(tokens: &[u32], wanted: usize) -> usize {
    let bytes = tokens.iter().flat_map(|token| token.to_le_bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let hash = hash ^ (hash >> 31);
    if tokens.len() > wanted { wanted } else { 4 + (hash % (tokens.len() as u64 - 4)) as usize }
}

/// Scores of a prompt's graph, and the rank correlations of its ablations.
fn traced(replacement: &Replacement, tokens: &[u32], n: usize) -> (f64, f64, Option<[f64; 2]>) {
    let job = Job::default();
    let linear = replacement.linearize(tokens, &job).unwrap();
    let found = attribute(replacement, &linear, "", &AttributionOptions::default(), &job).unwrap();
    let layout = found.graph.layout();
    let influence = &found.influence.nodes[layout.features()];
    let mut order: Vec<usize> = (0..influence.len()).collect();
    order.sort_by(|&a, &b| influence[b].total_cmp(&influence[a]).then(a.cmp(&b)));
    let total: f64 = order.iter().map(|&i| influence[i]).sum();
    let carried = |i: usize| order[..i].iter().map(|&i| influence[i]).sum::<f64>();
    let n_kept = (0..order.len()).filter(|&i| carried(i) < 0.8 * total).count();
    let n = n.min(n_kept);
    let mut chosen: Vec<usize> = Vec::new();
    let mut last: Option<usize> = None;
    for i in 0..n {
        let wanted = (n_kept as f64).powf(i as f64 / n as f64).floor() as usize - 1;
        let rank = last.map_or(wanted, |last| wanted.max(last + 1));
        last = Some(rank);
        chosen.push(order[rank]);
    }
    let original = Original::run(replacement, tokens, &job).unwrap();
    let before = log_probabilities(&original.logits.iter().map(|&l| f64::from(l)).collect::<Vec<_>>());
    let effects = |mode: Mode| -> Vec<f64> {
        let effect = |&index: &usize| {
            let id = layout.feature_ids()[index];
            let intervention = Intervention {
                layer: id.layer as usize,
                feature: id.feature as usize,
                positions: Positions::At(id.pos as usize),
                change: Change::Set(0.0),
            };
            let outcome = original.intervene(&[vec![intervention]], &mode, &job).unwrap().remove(0);
            let after = log_probabilities(&outcome.logits.iter().map(|&l| f64::from(l)).collect::<Vec<_>>());
            before.iter().zip(&after).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
        };
        chosen.iter().map(effect).collect()
    };
    let influence: Vec<f64> = chosen.iter().map(|&i| influence[i]).collect();
    let correlations = (n >= 2).then(|| {
        [Mode::Free, Mode::FrozenAttention].map(|mode| correlation(&ranks(&influence), &ranks(&effects(mode))))
    });
    let meta = &found.graph.meta;
    (meta.replacement_score, meta.completeness_score, correlations)
}

#[test]
fn every_figure_is_that_of_a_literal_twin_in_every_family() {
    for family in FAMILIES {
        let replacement = replacement(family);
        let folder = tempfile::tempdir().unwrap();
        let options = EvaluateOptions {
            text: lines(12, true),
            replaced_tokens: 40,
            layer_tokens: 20,
            prompts: 4,
            prompt_tokens: 9,
            ablation_prompts: 2,
            ablated: 6,
        };
        let inputs = written(&folder, "a.txt", TEXT);
        let found = evaluate(&replacement, &inputs, &options, &Job::default()).unwrap();
        let sequences = sequences(&replacement, TEXT, 12);
        assert_eq!(found.text.n_sequences, sequences.len() as u64, "{family}");
        assert_eq!(found.text.n_tokens, sequences.iter().map(Vec::len).sum::<usize>() as u64, "{family}");
        assert_eq!(found.text.n_documents, 5, "{family}");
        let means = assert_layers(&replacement, &found, &sequences);
        let alone = layer_quality(&replacement, &inputs, &options.text, &Job::default()).unwrap();
        assert_eq!(alone, (found.text.clone(), found.reconstruction.clone()), "{family}");

        // The first sequences, until there are enough tokens.
        let first = |n_tokens: usize| {
            let starts = sequences.iter().scan(0, |sum, s| {
                let start = *sum;
                *sum += s.len();
                Some(start)
            });
            &sequences[..starts.filter(|&start| start < n_tokens).count()]
        };
        let replaced = found.replaced.as_ref().unwrap();
        let n_layers = means.len();
        let puts = |layers: std::ops::Range<usize>| -> [Vec<Put>; 3] {
            let at = |put: &dyn Fn(usize) -> Put| {
                (0..n_layers).map(|l| if layers.contains(&l) { put(l) } else { Put::Nothing }).collect()
            };
            [
                at(&|_| Put::Features),
                at(&|l| Put::Vector(vec![0.0; means[l].len()])),
                at(&|l| Put::Vector(means[l].clone())),
            ]
        };
        let all = puts(0..n_layers).map(|put| divergence(&replacement, first(40), &put));
        assert_eq!(replaced.n_positions, all[0].2 as u64, "{family}");
        near(replaced.cross_entropy, all[0].0, "cross-entropy");
        let name = format!("{family}, all layers");
        assert_substituted(&replaced.all_layers.unwrap(), all[0].0, all.map(|(_, found, _)| found), &name);
        assert_eq!(replaced.one_layer.len(), n_layers, "{family}");
        for (layer, actual) in replaced.one_layer.iter().enumerate() {
            let one = puts(layer..layer + 1).map(|put| divergence(&replacement, first(20), &put));
            assert_eq!(replaced.n_layer_positions, one[0].2 as u64, "{family}");
            near(replaced.layer_cross_entropy, one[0].0, "cross-entropy");
            assert_substituted(actual, one[0].0, one.map(|(_, found, _)| found), &format!("{family}, layer {layer}"));
        }

        // Beginnings of documents of more than four tokens, then of their later sequences; nine tokens of those that
        // are longer.
        let beginnings = TEXT.lines().map(|line| self::sequences(&replacement, line, 12).remove(0));
        let later = TEXT.lines().flat_map(|line| self::sequences(&replacement, line, 12).into_iter().skip(1));
        let prompts = beginnings.chain(later).filter(|tokens| tokens.len() > 4).take(4);
        let prompts: Vec<Vec<u32>> = prompts.map(|tokens| tokens[..prompt_length(&tokens, 9)].to_vec()).collect();
        let graphs = found.graphs.as_ref().unwrap();
        assert_eq!(graphs.prompts.len(), prompts.len(), "{family}");
        let twins: Vec<_> = prompts.iter().map(|tokens| traced(&replacement, tokens, 6)).collect();
        for ((prompt, tokens), twin) in graphs.prompts.iter().zip(&prompts).zip(&twins) {
            assert_eq!(prompt.n_tokens, tokens.len(), "{family}");
            near(prompt.replacement, twin.0, "replacement");
            near(prompt.completeness, twin.1, "completeness");
        }
        near(graphs.replacement.mean, mean(&twins.iter().map(|t| t.0).collect::<Vec<_>>()), "mean replacement");
        let Spread { lower_quartile, median, upper_quartile, .. } = graphs.completeness;
        assert!(lower_quartile <= median && median <= upper_quartile, "{family}");
        let correlations: Vec<[f64; 2]> = twins.iter().take(2).filter_map(|twin| twin.2).collect();
        let ablations = found.ablations.as_ref().unwrap();
        assert_eq!(ablations.prompts.len(), correlations.len(), "{family}");
        for (prompt, [free, frozen]) in ablations.prompts.iter().zip(&correlations) {
            // Ranks of effects that are nearly equal may change places.
            assert!((prompt.free.unwrap() - free).abs() < 0.1, "{family}: {prompt:?}, expected {free}");
            assert!((prompt.frozen_attention.unwrap() - frozen).abs() < 0.1, "{family}: {prompt:?}, expected {frozen}");
        }

        let json = serde_json::to_string(&found).unwrap();
        assert_eq!(serde_json::from_str::<Quality>(&json).unwrap(), found, "{family}");
    }
}

/// Whether a document that begins so is held out: FNV-1a, as docs/training.md has it.
fn is_held_out(text: &str) -> bool {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    (hash >> 32).is_multiple_of(20)
}

#[test]
fn documents_that_training_leaves_out_are_measured_and_no_others() {
    let replacement = replacement("llama_relu");
    let text: String = (0..200).map(|i| format!("The house of number {i} is red.\n")).collect();
    let held_out: String = text.lines().filter(|line| is_held_out(line)).map(|line| line.to_owned() + "\n").collect();
    let n = held_out.lines().count();
    assert!((3..25).contains(&n), "{n}");
    let folder = tempfile::tempdir().unwrap();
    let (all, part) = (written(&folder, "all.txt", &text), written(&folder, "part.txt", &held_out));
    let of = |inputs: &[Input], all_text| {
        layer_quality(&replacement, inputs, &lines(32, all_text), &Job::default()).unwrap()
    };
    let (of_all, of_part) = (of(&all, false), of(&part, true));
    assert_eq!(of_all.1, of_part.1);
    assert_eq!((of_all.0.hash, of_all.0.n_documents), (of_part.0.hash, n as u64));
    assert_ne!(of(&all, true).1, of_part.1);
}

/// Sentences that the embedded model was made for.
fn sentences(folder: &TempDir, n: usize) -> PathBuf {
    let text: String = std::fs::read_to_string(fixture("atlas/sentences.txt")).unwrap();
    let path = folder.path().join("sentences.txt");
    std::fs::write(&path, text.lines().take(n).map(|line| line.to_owned() + "\n").collect::<String>()).unwrap();
    path
}

#[test]
fn the_same_bytes_for_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    sentences(&folder, 600);
    let written = ["1", "2", "3"].map(|threads| {
        let file = format!("quality{threads}.json");
        let picture = format!("quality{threads}.svg");
        let args =
            ["evaluate", "--text", "sentences.txt", "--split", "lines", "--prompts", "4", "--ablation-prompts", "2"];
        let args = [&args[..], &["--threads", threads, "-o", &file, "--picture", &picture]].concat();
        let output = circuitscope(folder.path(), &args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
        (stdout(&output), read(&file), read(&picture))
    });
    assert!(written[0] == written[1] && written[1] == written[2]);
    let quality: Quality = serde_json::from_slice(&written[0].1).unwrap();
    assert_eq!(quality.graphs.unwrap().prompts.len(), 4);
    assert!(written[0].0.lines().all(|line| line.chars().count() <= 80), "{}", written[0].0);
}

#[test]
fn parts_that_are_not_asked_for_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    sentences(&folder, 100);
    let args = ["evaluate", "--text", "sentences.txt", "--split", "lines", "--all-text", "--format", "json"];
    let none = ["--prompts", "0", "--replaced-tokens", "0", "--layer-tokens", "0"];
    let output = circuitscope(folder.path(), &[&args[..], &none].concat());
    let quality: Quality = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(quality.replaced.is_none() && quality.graphs.is_none() && quality.ablations.is_none());
    let one = ["--prompts", "1", "--ablation-prompts", "0", "--replaced-tokens", "50", "--layer-tokens", "0"];
    let output = circuitscope(folder.path(), &[&args[..], &one].concat());
    let quality: Quality = serde_json::from_str(&stdout(&output)).unwrap();
    let replaced = quality.replaced.unwrap();
    assert!(replaced.all_layers.is_some() && replaced.one_layer.is_empty());
    assert!(quality.graphs.is_some() && quality.ablations.is_none());
}

#[test]
fn a_cancelled_evaluation_ends_in_every_phase() {
    let replacement = replacement("qwen3_relu");
    let folder = tempfile::tempdir().unwrap();
    let inputs = written(&folder, "a.txt", TEXT);
    let options = EvaluateOptions { text: lines(12, true), prompts: 3, prompt_tokens: 9, ..Default::default() };
    for phase in [TOKENS_PHASE, REPLACED_PHASE, PROMPTS_PHASE] {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (told, cancel) = (seen.clone(), CancelToken::default());
        let token = cancel.clone();
        let job = Job::default().with_cancel(cancel).with_progress(move |progress| {
            told.lock().unwrap().push(progress);
            if progress.phase == phase {
                token.cancel();
            }
        });
        let found = evaluate(&replacement, &inputs, &options, &job);
        assert!(matches!(found.as_ref().map_err(Error::root), Err(Error::Cancelled)), "{phase}");
        assert_eq!(seen.lock().unwrap().iter().filter(|progress| progress.phase == phase).count(), 1, "{phase}");
    }
}

#[test]
fn what_cannot_be_measured_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    sentences(&folder, 30);
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("empty.txt", "");
    write("one.txt", "a");
    write("not.txt", "\u{0}");
    let qwen = root().join("fixtures/reference/qwen3_relu/transcoders");
    let model = root().join("fixtures/reference/qwen3_relu/model");
    for (args, parts) in [
        (
            &["--text", "sentences.txt"][..],
            &["no document of `sentences.txt` is held out", "--split", "--all-text"][..],
        ),
        (&["--text", "empty.txt"], &["empty.txt", "no text"]),
        (&["--text", "one.txt", "--all-text"], &["one.txt", "fewer than two tokens"]),
        (&["--text", "not.txt"], &["not.txt", "zero byte"]),
        (&["--text", "missing.txt"], &["missing.txt"]),
        (
            &["--model", model.to_str().unwrap(), "--transcoders", qwen.to_str().unwrap()],
            &["--text", "no file is named"],
        ),
        (&["--text", "sentences.txt", "--context", "1"], &["`context` is 1", "2.."]),
        (&["--text", "sentences.txt", "--context", "99999"], &["99999"]),
        (&["--text", "sentences.txt", "--prompt-tokens", "999"], &["`prompt_tokens` is 999", "--prompt-tokens"]),
        (&["--text", "sentences.txt", "--tokens", "many"], &["many"]),
        (&["--text", "sentences.txt", "-o", "sentences.txt"], &["sentences.txt"]),
        (&["--text", "sentences.txt", "-o", "no/quality.json"], &["no folder `no`"]),
        (&["--text", "sentences.txt", "--picture", "a.pdf"], &["a.pdf", ".svg"]),
        (&["--text", "sentences.txt", "--all-text", "--held-out"], &["--all-text", "--held-out"]),
        (&["--transcoders", qwen.to_str().unwrap()], &["transcoders"]),
    ] {
        refused_with(folder.path(), &[&["evaluate"], args].concat(), parts);
    }
    assert_eq!(folder.path().read_dir().unwrap().count(), 4, "nothing is written");
}
