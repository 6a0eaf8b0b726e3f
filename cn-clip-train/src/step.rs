//! The one training step: encode, gather, loss, surrogate backward.
//!
//! The towers use autodiff; the loss does not need it. With one micro-batch its graph is kept, or
//! with checkpointing the inputs of its blocks; with several each is encoded without a graph first
//! and again when its gradient is known (arXiv 2101.06983), by the same masks, so that the gradient
//! is that of the whole batch.

use burn::{
    module::Module,
    optim::{GradientsAccumulator, GradientsParams},
    tensor::{Device, Int, Tensor, TensorData},
};
use cn_clip_data::loader::Batch;
use cn_clip_model::{Clip, Pass, SampleRng, token_tensor};

use crate::{
    loss::{Gathered, TILE},
    tower::{Activations, Tower, surrogate},
};

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
    /// Whether the text tower is used but not trained.
    pub freeze_text: bool,
    /// Whether only the inputs of blocks are kept, and each block is run again in the backward pass:
    /// less memory for one more forward pass.
    pub checkpointing: bool,
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
    let encoder = Encoder { model, plain: &model.valid(), options, single: batches.len() == 1 };
    let (encoded, kept): (Vec<_>, Vec<_>) = batches
        .iter()
        .zip(&streams)
        .map(|(batch, rng)| {
            let (image, text) = both(
                options.concurrent_towers,
                || encoder.encode(Side::Image, batch, rng),
                || encoder.encode(Side::Text, batch, rng),
            );
            ((image.0, text.0), (image.1, text.1))
        })
        .unzip();
    if !encoder.keeps_graph() {
        model.adopt_statistics(encoder.plain);
    }
    let (image, text): (Vec<_>, Vec<_>) = encoded.into_iter().unzip();
    let gathered = Gathered::local(Tensor::cat(image, 0), Tensor::cat(text, 0));
    let scale: f32 = model.logit_scale.val().inner().exp().into_scalar();
    let local = gathered.statistics(scale, TILE);
    let gradient = gathered.gradient(&local, &local.image_rows, &local.text_rows, scale, TILE);

    let mut accumulator = GradientsAccumulator::<Clip>::new();
    let mut start = 0;
    for ((batch, rng), (image, text)) in batches.iter().zip(&streams).zip(kept) {
        let range = start..start + batch.size;
        start += batch.size;
        let part = |gradient: &Tensor<2>| gradient.clone().slice_dim(0, range.clone());
        let (image, text) = both(
            options.concurrent_towers,
            || encoder.backward(Side::Image, batch, rng, image, part(&gradient.image)),
            || encoder.backward(Side::Text, batch, rng, text, part(&gradient.text)),
        );
        image.into_iter().chain(text).for_each(|part| accumulator.accumulate(model, part));
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

/// Which tower.
#[derive(Debug, Clone, Copy)]
enum Side {
    Image,
    Text,
}

/// What is kept of a tower between encoding and backward.
#[allow(clippy::large_enum_variant)] // Two per micro-batch.
enum Kept {
    /// The features, with their graph.
    Graph(Tensor<2>),
    /// Inputs of the blocks.
    Activations(Activations),
    /// Nothing: it is encoded again.
    Nothing,
    /// Nothing: it is not trained.
    Frozen,
}

/// Encodes micro-batches, and takes gradients back.
struct Encoder<'a> {
    model: &'a Clip,
    /// The model without autodiff.
    plain: &'a Clip,
    options: StepOptions,
    /// Whether there is only one micro-batch, of which everything can be kept.
    single: bool,
}

impl Encoder<'_> {
    /// Whether the first pass is that of the model itself, with its graph.
    fn keeps_graph(&self) -> bool {
        self.single && !self.options.checkpointing
    }

    fn tower<'a>(
        &self,
        side: Side,
        model: &'a Clip,
        batch: &MicroBatch,
        rng: &SampleRng,
        pass: Pass<'a>,
    ) -> Tower<'a> {
        let device = model.device();
        match side {
            Side::Image => {
                let keep = model.keep_patches(self.options.mask_ratio, rng, &device);
                Tower::image(model, batch.pixels(&device), keep, pass)
            }
            Side::Text => Tower::text(model, batch.tokens(&device), pass),
        }
    }

    /// Normalised features without a graph, and what is kept for the backward pass.
    fn encode(&self, side: Side, batch: &MicroBatch, rng: &SampleRng) -> (Tensor<2>, Kept) {
        let tower = |model, pass| self.tower(side, model, batch, rng, pass);
        let frozen = match side {
            Side::Image => self.options.freeze_vision,
            Side::Text => self.options.freeze_text,
        };
        if frozen {
            return (tower(self.plain, Pass::Eval).features(), Kept::Frozen);
        }
        let pass = Pass::Train { rng, update_statistics: true };
        match self.single {
            true if self.keeps_graph() => {
                let features = tower(self.model, pass).features();
                (features.clone().inner(), Kept::Graph(features))
            }
            true => {
                let (features, kept) = tower(self.plain, pass).checkpoint();
                (features, Kept::Activations(kept))
            }
            false => (tower(self.plain, pass).features(), Kept::Nothing),
        }
    }

    /// Gradients of the parameters, in parts, by those of the normalised features.
    fn backward(
        &self,
        side: Side,
        batch: &MicroBatch,
        rng: &SampleRng,
        kept: Kept,
        gradient: Tensor<2>,
    ) -> Vec<GradientsParams> {
        let pass = Pass::Train { rng, update_statistics: false };
        let tower = |model| self.tower(side, model, batch, rng, pass);
        let activations = match kept {
            Kept::Frozen => return Vec::new(),
            Kept::Graph(features) => return vec![self.whole(features, gradient)],
            Kept::Nothing if !self.options.checkpointing => {
                let features = tower(self.model).features();
                return vec![self.whole(features, gradient)];
            }
            Kept::Nothing => tower(self.plain).checkpoint().1,
            Kept::Activations(kept) => kept,
        };
        let mut parts = Vec::new();
        tower(self.model).backward(activations, gradient, &mut |gradients| {
            parts.push(GradientsParams::from_grads(gradients, self.model));
        });
        parts
    }

    fn whole(&self, features: Tensor<2>, gradient: Tensor<2>) -> GradientsParams {
        GradientsParams::from_grads(surrogate(features, gradient).backward(), self.model)
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
