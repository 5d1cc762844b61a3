//! The transcoder of one layer while it is trained: in scaled units, where inputs and outputs have a mean length of
//! √d_model, in f32, with what the optimiser remembers.

/// What the optimiser remembers of a parameter: running means of its gradient and of the gradient's square.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Moments {
    pub first: Vec<f32>,
    pub second: Vec<f32>,
}

impl Moments {
    pub(super) fn new(n: usize) -> Self {
        Self { first: vec![0.0; n], second: vec![0.0; n] }
    }
}

/// A parameter and its moments.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct LayerMoments {
    pub w_enc: Moments,
    pub b_enc: Moments,
    pub w_dec: Moments,
    pub b_dec: Moments,
    pub w_skip: Moments,
}

/// One layer's dictionary.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Layer {
    pub d_model: usize,
    pub n_features: usize,
    /// Layers that a feature writes to: its own, or its own and all above.
    pub n_written: usize,
    /// What inputs and outputs of this layer are multiplied by.
    pub scale_in: f32,
    pub scale_out: f32,
    /// `[n_features, d_model]`
    pub w_enc: Vec<f32>,
    /// `[n_features]`
    pub b_enc: Vec<f32>,
    /// `[n_features, n_written, d_model]`
    pub w_dec: Vec<f32>,
    /// `[d_model]`
    pub b_dec: Vec<f32>,
    /// `[d_model, d_model]`, applied as `x · W_skipᵀ`; empty without a skip connection.
    pub w_skip: Vec<f32>,
    pub moments: LayerMoments,
    /// Lengths of the decoder rows. `[n_features]`
    pub dec_norms: Vec<f32>,
    /// The step at which a feature's row last moved. `[n_features]`
    pub last_moved: Vec<u32>,
    /// Tokens read when it was last active. `[n_features]`
    pub last_active: Vec<i64>,
    /// The smallest effect that the last batch kept.
    pub floor: f32,
    /// A running mean of it, over the steps that learn thresholds.
    pub mean_floor: f32,
    /// A running mean of each feature's smallest kept activation in the same steps, and in how many it was active.
    /// `[n_features]`
    pub least_kept: Vec<f32>,
    pub n_least_kept: Vec<u32>,
    /// What activations are multiplied by where features are chosen by thresholds of a set that training goes on from: one
    /// over each. Empty: by what they add to the output. `[n_features]`
    pub over_threshold: Vec<f32>,
    /// Whether the encoder's product is in bf16, where the processor has such.
    pub rounds: bool,
    /// Weight of the lengths of activations in the loss, where features are chosen by it (ReLU).
    pub sparsity: f32,
}

impl Layer {
    /// All zero.
    pub(super) fn new(d_model: usize, n_features: usize, n_written: usize, has_skip: bool) -> Self {
        let (n_enc, n_dec) = (n_features * d_model, n_features * n_written * d_model);
        let n_skip = if has_skip { d_model * d_model } else { 0 };
        Self {
            d_model,
            n_features,
            n_written,
            scale_in: 1.0,
            scale_out: 1.0,
            w_enc: vec![0.0; n_enc],
            b_enc: vec![0.0; n_features],
            w_dec: vec![0.0; n_dec],
            b_dec: vec![0.0; d_model],
            w_skip: vec![0.0; n_skip],
            moments: LayerMoments {
                w_enc: Moments::new(n_enc),
                b_enc: Moments::new(n_features),
                w_dec: Moments::new(n_dec),
                b_dec: Moments::new(d_model),
                w_skip: Moments::new(n_skip),
            },
            dec_norms: vec![0.0; n_features],
            last_moved: vec![0; n_features],
            last_active: vec![0; n_features],
            floor: 0.0,
            mean_floor: 0.0,
            least_kept: vec![0.0; n_features],
            n_least_kept: vec![0; n_features],
            over_threshold: Vec::new(),
            rounds: false,
            sparsity: 0.0,
        }
    }

    /// Gives back the moments, which a layer without steps before it needs no more.
    pub(super) fn forget_moments(&mut self) {
        self.moments = LayerMoments::default();
    }

    /// Bytes of a layer of such sizes.
    pub(super) fn bytes(d_model: usize, n_features: usize, n_written: usize, has_skip: bool) -> u64 {
        let rows = (d_model as u64).saturating_mul(1 + n_written as u64);
        let of_features = (n_features as u64).saturating_mul(rows.saturating_mul(12) + 36);
        let of_skip = if has_skip { (d_model as u64).saturating_mul(d_model as u64).saturating_mul(12) } else { 0 };
        of_features.saturating_add(of_skip)
    }

    /// What activations are multiplied by to choose the active features of a batch. `[n_features]`
    pub(super) fn importance(&self) -> &[f32] {
        if self.over_threshold.is_empty() { &self.dec_norms } else { &self.over_threshold }
    }

    /// The decoder row of a feature at the `written`-th of the layers that it writes to. `[d_model]`
    #[inline(always)]
    pub(super) fn dec_row(&self, feature: usize, written: usize) -> &[f32] {
        &self.w_dec[(feature * self.n_written + written) * self.d_model..][..self.d_model]
    }

    /// Sets the lengths of the decoder rows.
    pub(super) fn measure_decoder(&mut self) {
        let rows = self.w_dec.chunks(self.n_written * self.d_model);
        self.dec_norms =
            rows.map(|row| row.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>()).map(root).collect();
    }

    /// Features that were active on none of the last `window` tokens, `n_tokens` being read.
    pub(super) fn dead(&self, n_tokens: i64, window: i64) -> Vec<usize> {
        let is_dead = |&feature: &usize| n_tokens - self.last_active[feature] > window;
        (0..self.n_features).filter(is_dead).collect()
    }
}

fn root(square: f64) -> f32 {
    square.sqrt() as f32
}
