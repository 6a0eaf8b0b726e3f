//! The one training step: encode, gather, loss, surrogate backward.
//!
//! The towers use autodiff; the loss does not need it. With one micro-batch its graph is kept;
//! with several each is encoded without a graph first and again when its gradient is known
//! (arXiv 2101.06983), by the same masks, so that the gradient is that of the whole batch.

use std::ops::Range;

use burn::{
    module::Module,
    optim::{GradientsAccumulator, GradientsParams},
    tensor::{Device, Int, Tensor, TensorData},
};
use cn_clip_data::loader::Batch;
use cn_clip_model::{Clip, Pass, SampleRng, normalize, token_tensor};

use crate::loss::{Gathered, LocalGradient, TILE};

/// Pairs that are encoded at once.
#[derive(Debug, Clone)]
pub struct MicroBatch {
    /// `[batch, 3, R, R]`, row-major.
    pub pixels: Vec<f32>,
    /// `[batch, context_length]`, row-major, zero-padded.
    pub tokens: Vec<i32>,
    /// Number of pairs.
    pub size: usize,
    /// Height and width of the pictures.
    pub resolution: usize,
    /// Tokens per text.
    pub context_length: usize,
}

/// What a step does besides the default.
#[derive(Debug, Clone, Copy, Default)]
pub struct StepOptions {
    /// Share of patches that FLIP masks.
    pub mask_ratio: f64,
    /// Whether the image tower is used but not trained.
    pub freeze_vision: bool,
    /// Whether the towers are computed at the same time, on threads of rayon. Worth it where the
    /// device is the processor: one tower computes in the gaps between the kernels of the other.
    pub concurrent_towers: bool,
}

/// Result of a step.
#[derive(Debug)]
pub struct StepOutput {
    /// Gradients of the mean loss over all pairs.
    pub gradients: GradientsParams,
    /// Mean loss over all pairs.
    pub loss: f32,
    /// Share of pictures whose own text is the best of the batch.
    pub image_accuracy: f32,
    /// Share of texts whose own picture is the best of the batch.
    pub text_accuracy: f32,
}

/// Loss and gradients of a batch given as micro-batches.
///
/// `model` lies on an autodiff device. `seed` and `step` choose dropout and FLIP masks, which
/// belong to the sample: however the batch is cut, they are the same.
pub fn step(
    model: &Clip,
    batches: &[MicroBatch],
    options: StepOptions,
    seed: u64,
    step: u64,
) -> StepOutput {
    let mut first = 0;
    let streams: Vec<SampleRng> = batches
        .iter()
        .map(|batch| {
            let rng = SampleRng::for_step(seed, step, first, batch.size);
            first += batch.size;
            rng
        })
        .collect();
    let keep_graph = batches.len() == 1;
    let plain = (!keep_graph || options.freeze_vision).then(|| model.valid());
    let tracked = Encoder { model, options, plain: plain.as_ref() };
    let untracked =
        plain.as_ref().filter(|_| !keep_graph).map(|plain| Encoder { model: plain, ..tracked });

    let encoded: Vec<(Tensor<2>, Tensor<2>)> = batches
        .iter()
        .zip(&streams)
        .map(|(batch, rng)| untracked.as_ref().unwrap_or(&tracked).encode(batch, rng, true))
        .collect();
    let join = |part: fn(&(Tensor<2>, Tensor<2>)) -> Tensor<2>| {
        Tensor::cat(encoded.iter().map(|pair| plain_tensor(part(pair))).collect(), 0)
    };
    let gathered = Gathered::local(join(|pair| pair.0.clone()), join(|pair| pair.1.clone()));
    let scale: f32 = model.logit_scale.val().inner().exp().into_scalar();
    let local = gathered.statistics(scale, TILE);
    let gradient = gathered.gradient(&local, &local.image_rows, &local.text_rows, scale, TILE);

    let mut graphs = keep_graph.then_some(encoded).into_iter().flatten();
    let mut accumulator = GradientsAccumulator::<Clip>::new();
    let mut start = 0;
    for (batch, rng) in batches.iter().zip(&streams) {
        let features = graphs.next().unwrap_or_else(|| tracked.encode(batch, rng, false));
        let range = start..start + batch.size;
        start += batch.size;
        let (image, text) = backward(model, features, &gradient, range, options);
        image.into_iter().chain([text]).for_each(|part| accumulator.accumulate(model, part));
    }
    let mut gradients = accumulator.grads();
    gradients.register(model.logit_scale.id, gradient.logit_scale);
    let count = gathered.count.max(1) as f32;
    StepOutput {
        gradients,
        loss: local.loss_sum() / (2.0 * count),
        image_accuracy: local.image_correct as f32 / count,
        text_accuracy: local.text_correct as f32 / count,
    }
}

/// Gradients of the parameters of both towers by those of the features: the derivative of
/// `features · gradient`. A frozen image tower has none.
fn backward(
    model: &Clip,
    (image, text): (Tensor<2>, Tensor<2>),
    gradient: &LocalGradient,
    range: Range<usize>,
    options: StepOptions,
) -> (Option<GradientsParams>, GradientsParams) {
    let part = |features: Tensor<2>, gradient: &Tensor<2>| {
        let gradient = gradient.clone().slice_dim(0, range.clone());
        let surrogate = (features * Tensor::from_inner(gradient)).sum();
        GradientsParams::from_grads(surrogate.backward(), model)
    };
    both(
        options.concurrent_towers,
        || image.is_autodiff().then(|| part(image, &gradient.image)),
        || part(text, &gradient.text),
    )
}

/// Runs both, at the same time if `concurrently`.
fn both<A: Send, B: Send>(
    concurrently: bool,
    image: impl FnOnce() -> A + Send,
    text: impl FnOnce() -> B + Send,
) -> (A, B) {
    match concurrently {
        true => rayon::join(image, text),
        false => (image(), text()),
    }
}

/// The same values without a graph.
fn plain_tensor(tensor: Tensor<2>) -> Tensor<2> {
    match tensor.is_autodiff() {
        true => tensor.inner(),
        false => tensor,
    }
}

/// Encodes micro-batches to normalised features.
#[derive(Clone, Copy)]
struct Encoder<'a> {
    model: &'a Clip,
    options: StepOptions,
    /// The model without autodiff, for what is not trained.
    plain: Option<&'a Clip>,
}

impl Encoder<'_> {
    fn encode(&self, batch: &MicroBatch, rng: &SampleRng, first: bool) -> (Tensor<2>, Tensor<2>) {
        let (vision, pass) = match (self.options.freeze_vision, self.plain) {
            (true, Some(plain)) => (plain, Pass::Eval),
            _ => (self.model, Pass::Train { rng, update_statistics: first }),
        };
        let image = || {
            let device = vision.device();
            let keep = vision.keep_patches(self.options.mask_ratio, rng, &device);
            normalize(vision.encode_image(batch.pixels(&device), keep, pass))
        };
        let text = || {
            let tokens = batch.tokens(&self.model.device());
            normalize(self.model.encode_text(tokens, Pass::Train { rng, update_statistics: first }))
        };
        both(self.options.concurrent_towers, image, text)
    }
}

impl MicroBatch {
    /// `[batch, 3, R, R]` on a device.
    pub fn pixels(&self, device: &Device) -> Tensor<4> {
        let shape = [self.size, 3, self.resolution, self.resolution];
        Tensor::from_data(TensorData::new(self.pixels.clone(), shape), device)
    }

    /// Token ids `[batch, n]` on a device, cut to the longest text.
    pub fn tokens(&self, device: &Device) -> Tensor<2, Int> {
        token_tensor(&self.tokens, self.context_length, device)
    }
}

impl From<Batch> for MicroBatch {
    fn from(batch: Batch) -> Self {
        let Batch { pixels, tokens, size, resolution, context_length, .. } = batch;
        Self { pixels, tokens, size, resolution, context_length }
    }
}
