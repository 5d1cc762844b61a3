//! What heads do on text that means nothing: random tokens, twice. A head that looks back at what came after the same
//! token is an induction head (Olsson et al. 2022), whatever the model has learned about language.

use candle_core::{DType, Tensor};

use super::eigenvalues::eigenvalues;
use crate::error::{Error, ErrorContext, Result};
use crate::graph::Head;
use crate::job::Job;
use crate::model::{HookPoint, Hooks, Layer, Model, Norm};
use crate::weights::Tokenizer;

/// The random tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadScoreOptions {
    /// Sequences, over which scores are means.
    pub n_sequences: usize,
    /// Random tokens of each, which then come again.
    pub length: usize,
    /// Of the random numbers.
    pub seed: u64,
}

impl Default for HeadScoreOptions {
    fn default() -> Self {
        Self { n_sequences: 8, length: 50, seed: 0 }
    }
}

/// What one head does. All but `copying` are mean attention, in 0..=1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadScore {
    /// The head.
    pub head: Head,
    /// From a token that came before to what followed it then (prefix matching).
    pub induction: f32,
    /// From a token that came before to its earlier occurrence.
    pub duplicate: f32,
    /// To the token before.
    pub previous: f32,
    /// To the first position.
    pub first: f32,
    /// `Σ Re λ / Σ |λ|` over the eigenvalues of `W_E W_V W_O W_U` (Elhage et al. 2021), in -1..=1: near 1 where the head
    /// writes what it reads. Without position embeddings and norm scales, which are of a prompt.
    pub copying: f32,
}

/// The kinds of [`HeadScore`], as tables name them.
pub const HEAD_SCORES: [&str; 5] = ["induction", "duplicate", "previous", "first", "copying"];

impl HeadScore {
    /// The scores in the order of [`HEAD_SCORES`].
    pub fn all(&self) -> [f32; 5] {
        [self.induction, self.duplicate, self.previous, self.first, self.copying]
    }
}

/// What a layer's heads write of what they read: the norm before them, `W_V`, `W_O`, and the norm after them, where there
/// is one.
type Written = (Norm, Tensor, Tensor, Option<Norm>);

/// Sums attention of each head, one sequence a pass.
struct Watch {
    length: usize,
    /// Where the random tokens begin: after a BOS token, where there is one.
    start: usize,
    /// By layer. `[n_layers][n_heads][4]`
    sums: Vec<Vec<[f64; 4]>>,
    /// Weights that copying is found from, kept in the first pass. `[n_layers]`
    weights: Option<Vec<Written>>,
}

impl Hooks for Watch {
    fn wants(&self, point: HookPoint) -> bool {
        matches!(point, HookPoint::AttnPattern(_))
    }

    fn see(&mut self, point: HookPoint, tensor: &Tensor) -> Result<Option<Tensor>> {
        let Some(layer) = point.layer() else { return Ok(None) };
        let pattern: Vec<Vec<Vec<f32>>> =
            tensor.squeeze(0)?.to_dtype(DType::F32)?.to_device(&candle_core::Device::Cpu)?.to_vec3()?;
        let (t, start) = (self.length, self.start);
        // Second occurrences; of the first token's what follows has come too.
        let again = start + t..start + 2 * t;
        for (sums, pattern) in self.sums[layer].iter_mut().zip(&pattern) {
            let mean = |keys: &dyn Fn(usize) -> usize, queries: std::ops::Range<usize>| -> f64 {
                let n = queries.len() as f64;
                queries.map(|q| f64::from(pattern[q][keys(q)])).sum::<f64>() / n
            };
            sums[0] += mean(&|q| q + 1 - t, again.clone());
            sums[1] += mean(&|q| q - t, again.clone());
            sums[2] += mean(&|q| q - 1, start.max(1)..start + 2 * t);
            sums[3] += mean(&|_| 0, start.max(1)..start + 2 * t);
        }
        Ok(None)
    }

    fn weights(&mut self, layer: usize, weights: &Layer) {
        if let Some(all) = &mut self.weights
            && all.len() == layer
        {
            let (v, o) = (weights.vo.v.weight.clone(), weights.vo.o.weight.clone());
            all.push((weights.attn_norm.clone(), v, o, weights.post_attn_norm.clone()));
        }
    }
}

/// Scores of every head, by layer and head.
///
/// # Cost
/// A forward pass a sequence; for copying one product of the vocabulary matrices, `2 · d_vocab · d_model²` operations.
///
/// # Errors
/// Sequences that are none or longer than the model's context; those of reading and of the tensor operations;
/// [`Error::Cancelled`].
pub fn head_scores(
    model: &Model,
    tokenizer: &Tokenizer,
    options: &HeadScoreOptions,
    job: &Job,
) -> Result<Vec<HeadScore>> {
    let config = &model.config;
    let bos: Vec<u32> = tokenizer.start().into_iter().collect();
    let n_pos = bos.len().saturating_add(options.length.saturating_mul(2));
    if options.n_sequences == 0 {
        return Err(Error::Setting { name: "sequences", value: 0.0, range: "1.." });
    }
    if n_pos > config.n_ctx {
        return Err(Error::PromptTooLong { n_pos, n_ctx: config.n_ctx })
            .context(|| format!("`length` is {}, and its tokens come twice", options.length));
    }
    if options.length < 2 {
        let value = options.length as f64;
        return Err(Error::Setting { name: "length", value, range: "2 to half of the model's context" });
    }
    let mut watch = Watch {
        length: options.length,
        start: bos.len(),
        sums: vec![vec![[0.0; 4]; config.n_heads]; config.n_layers],
        weights: Some(Vec::new()),
    };
    let mut random = Random(options.seed);
    let ordinary = ordinary_tokens(tokenizer, config.d_vocab);
    for done in 0..options.n_sequences {
        job.check()?;
        let once: Vec<u32> = (0..options.length).map(|_| ordinary[random.below(ordinary.len())]).collect();
        let tokens: Vec<u32> = bos.iter().chain(&once).chain(&once).copied().collect();
        model.forward_through(config.n_layers - 1, &[tokens], &mut watch, job)?;
        job.report("sequences", done + 1, options.n_sequences);
    }
    let copying = copying(model, watch.weights.take().unwrap_or_default(), job)?;
    let n = options.n_sequences as f64;
    let mut scores = Vec::new();
    for (layer, (sums, copying)) in watch.sums.iter().zip(copying).enumerate() {
        for (head, (sums, copying)) in sums.iter().zip(copying).enumerate() {
            let [induction, duplicate, previous, first] = sums.map(|sum| (sum / n) as f32);
            let head = Head { layer: layer as u32, head: head as u32 };
            scores.push(HeadScore { head, induction, duplicate, previous, first, copying });
        }
    }
    Ok(scores)
}

/// Tokens that stand for text: special ones would be looked at for what they are.
fn ordinary_tokens(tokenizer: &Tokenizer, d_vocab: usize) -> Vec<u32> {
    let is_ordinary = |&token: &u32| !tokenizer.is_special(token) && !tokenizer.token(token).is_empty();
    let tokens: Vec<u32> = (0..d_vocab as u32).filter(is_ordinary).collect();
    if tokens.is_empty() { (0..d_vocab as u32).collect() } else { tokens }
}

/// Copying scores. `[n_layers][n_heads]`
///
/// The eigenvalues of the d_vocab × d_vocab matrix other than zero are those of `W_V (W_E W_U) W_O` read the other way
/// round, which is d_head × d_head.
fn copying(model: &Model, weights: Vec<Written>, job: &Job) -> Result<Vec<Vec<f32>>> {
    let config = &model.config;
    let through_vocabulary = model.embedding_by_unembedding()?;
    let (d_head, group) = (config.d_head, config.n_heads / config.n_kv_heads);
    let mut all = Vec::new();
    for (norm, v, o, post) in weights {
        job.check()?;
        let v = norm.fold(&v)?;
        let o = match post {
            Some(post) => o.broadcast_mul(&post.gain.unsqueeze(1)?)?,
            None => o,
        };
        let mut of_layer = Vec::new();
        for head in 0..config.n_heads {
            // [d_head, d_model] · [d_model, d_model] · [d_model, d_head]
            let v = v.narrow(0, head / group * d_head, d_head)?;
            let o = o.narrow(1, head * d_head, d_head)?.contiguous()?;
            let small = v.matmul(&through_vocabulary)?.matmul(&o)?.to_device(&candle_core::Device::Cpu)?;
            let values: Vec<f64> = small.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).collect();
            let found = eigenvalues(values, d_head);
            let (sum, sizes) =
                found.iter().fold((0.0, 0.0), |(sum, sizes), &(re, im)| (sum + re, sizes + re.hypot(im)));
            of_layer.push(if sizes > 0.0 { (sum / sizes) as f32 } else { 0.0 });
        }
        all.push(of_layer);
    }
    Ok(all)
}

/// SplitMix64: the same numbers on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(z ^ (z >> 31)) * n as u128) >> 64) as usize
    }
}
