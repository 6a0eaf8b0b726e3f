//! The one training step: encode, gather, loss, surrogate backward.
//!
//! The towers use autodiff, a block at a time; the loss does not need it. With one micro-batch the
//! graphs of its blocks are kept, or with checkpointing their inputs; with several each is encoded
//! without a graph first and again when its gradient is known (arXiv 2101.06983), by the same masks,
//! so that the gradient is that of the whole batch.

use std::sync::{Mutex, PoisonError};

use burn::{
    module::Module,
    optim::{GradientsAccumulator, GradientsParams},
    tensor::{Device, Int, Tensor, TensorData},
};
use cn_clip_data::loader::Batch;
use cn_clip_model::{Clip, ImageTower, Precision, SampleRng, token_tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::{
    TrainError,
    both::{both, in_order},
    communicator::{Communicator, Local},
    depth::Side,
    distill::{Teacher, distill},
    encoder::{Encoder, Input},
    loss::{Gathered, tile_columns},
    reduce::{Reducer, average_statistics, gather_rows, widen},
    sync_norm::SyncNorm,
};

/// Pixels that a thread rounds at a time.
const ROUNDED_AT_ONCE: usize = 1 << 16;

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
    /// What of the image tower is trained.
    pub vision: Training,
    /// What of the text tower is trained.
    pub text: Training,
    /// Whether only the inputs of blocks are kept, and each block is run again in the backward pass:
    /// less memory for one more forward pass.
    pub checkpointing: bool,
    /// Whether batch norms of a ResNet are over the same micro-batch of all ranks. Its image tower
    /// is checkpointed then.
    pub sync_norm: bool,
    /// Numbers that the towers compute with; the loss, the parameters and their gradients are
    /// 32-bit floats.
    pub precision: Precision,
    /// Factor of the gradients inside the towers, which is taken out of the result: against
    /// underflow in fp16.
    pub loss_scale: Option<f64>,
    /// Whether the towers are computed at the same time, on threads of rayon. Worth it where the
    /// device is the processor: one tower computes in the gaps between the kernels of the other.
    pub concurrent_towers: bool,
}

/// What of a tower is trained; the rest is used as in evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Training {
    /// All of it.
    #[default]
    Whole,
    /// The last blocks, as many as this, and what follows them (LiT, arXiv 2111.07991, and partial
    /// tuning). A block of a transformer is a layer, one of a ResNet a stage.
    Last(usize),
    /// Nothing.
    Frozen,
}

/// Result of a step.
#[derive(Debug)]
pub struct StepOutput {
    /// Gradients of the mean loss over all pairs.
    pub gradients: GradientsParams,
    /// What a step tells.
    pub figures: Figures,
}

/// What a step tells.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// Mean loss over all pairs, that of distillation included.
    pub loss: f32,
    /// Distillation loss by its weight, if there is a teacher.
    pub distillation: Option<f32>,
    /// Share of pictures whose own text is the best of the batch.
    pub image_accuracy: f32,
    /// Share of texts whose own picture is the best of the batch.
    pub text_accuracy: f32,
}

/// Is given gradients as they come.
type Give<'a> = &'a mut dyn FnMut(GradientsParams);

/// How steps are made.
#[derive(Clone, Copy)]
pub struct Step<'a> {
    /// What they do besides the default.
    pub options: StepOptions,
    /// The other ranks.
    pub communicator: &'a dyn Communicator,
    /// What image features follow besides their texts.
    pub teacher: Option<&'a dyn Teacher>,
    /// Seed of dropout and FLIP masks.
    pub seed: u64,
}

impl Step<'static> {
    /// Steps on one device.
    pub fn local(options: StepOptions, seed: u64) -> Self {
        Self { options, communicator: &Local, teacher: None, seed }
    }
}

impl Step<'_> {
    /// Loss and gradients of the global batch, of which `batches` are this rank's micro-batches:
    /// on every rank as many, of the same sizes. Sample `i` of rank `r` of `W` is sample
    /// `i * W + r` of the global batch.
    ///
    /// `model` lies on an autodiff device and is the same on every rank. Dropout and FLIP masks
    /// belong to the sample of step number `index`: however the batch is cut, they are the same.
    pub fn run(
        &self,
        model: &Clip,
        batches: &[MicroBatch],
        index: u64,
    ) -> Result<StepOutput, TrainError> {
        let parts = Mutex::new(Vec::new());
        let take = |part| parts.lock().unwrap_or_else(PoisonError::into_inner).push(part);
        let figures = self.run_into(model, batches, index, &take)?;
        let mut all = GradientsAccumulator::new();
        let parts = parts.into_inner().unwrap_or_else(PoisonError::into_inner);
        parts.into_iter().for_each(|part| all.accumulate(model, part));
        Ok(StepOutput { gradients: all.grads(), figures })
    }

    /// As [`run`](Self::run), but hands the gradients to `take`, in parts, each parameter once. With
    /// one micro-batch that is as soon as a block has them, from the threads of both towers; with
    /// several ranks a bucket at a time, summed while the towers go on; with several micro-batches
    /// at the end.
    pub fn run_into(
        &self,
        model: &Clip,
        batches: &[MicroBatch],
        index: u64,
        take: &(dyn Fn(GradientsParams) + Sync),
    ) -> Result<Figures, TrainError> {
        let (options, communicator) = (self.options, self.communicator);
        let streams = self.streams(batches, index);
        // Its parameters have the identities of those of the model.
        let copy = options.precision.copy(model);
        let single = batches.len() == 1;
        let resnet = matches!(model.visual, ImageTower::ResNet(_));
        let sync = options.sync_norm && resnet && communicator.world_size() > 1;
        let sync = sync.then(|| SyncNorm::new(communicator));
        let plain = &copy.valid();
        let encoder = Encoder { model: &copy, plain, options, single, sync: sync.is_some() };
        let inputs = || {
            batches.iter().zip(&streams).map(|(batch, rng)| {
                let image = Input { side: Side::Image, batch, rng };
                (image, Input { side: Side::Text, ..image })
            })
        };
        let encode = |(image, text)| {
            let text = || encoder.encode(text, None);
            let ((image, kept_image), (text, kept_text)) = match &sync {
                // Ranks exchange norms in one order, from the thread that may.
                Some(_) => (encoder.encode(image, sync.as_ref()), text()),
                None => both(options.concurrent_towers, || encoder.encode(image, None), text),
            };
            ((image, text), (kept_image, kept_text))
        };
        let (encoded, kept): (Vec<_>, Vec<_>) = inputs().map(encode).unzip();
        sync.as_ref().map_or(Ok(()), SyncNorm::check)?;
        let seen = if encoder.keeps_graphs(Side::Image) { &copy } else { encoder.plain };
        model.adopt_statistics(seen);
        let (image, text): (Vec<_>, Vec<_>) = encoded.into_iter().unzip();
        let (image, text) = (Tensor::cat(image, 0), Tensor::cat(text, 0));
        let count = image.dims()[0];
        let gathered = Gathered {
            first: communicator.rank() * count,
            count,
            image: gather_rows(image, communicator)?,
            text: gather_rows(text, communicator)?,
        };
        let scale: f32 = model.logit_scale.val().inner().exp().into_scalar();
        let tile = tile_columns(count);
        let local = gathered.statistics(scale, tile);
        let image_rows = gather_rows(local.image_rows.clone(), communicator)?;
        let text_rows = gather_rows(local.text_rows.clone(), communicator)?;
        let mut gradient = gathered.gradient(&local, &image_rows, &text_rows, scale, tile);
        let distilled = self.distill(batches, gathered.own_image(), &mut gradient.image);

        let upscale = options.loss_scale.unwrap_or(1.0);
        let mut reducer = Reducer::new(model, communicator, take);
        let mut accumulator = GradientsAccumulator::<Clip>::new();
        let mut start = 0;
        for ((image, text), (kept_image, kept_text)) in inputs().zip(kept) {
            let range = start..start + image.batch.size;
            start = range.end;
            let backward = |input, sync, kept, gradient: &Tensor<2>, give: Give<'_>| {
                let part = gradient.clone().slice_dim(0, range.clone());
                let part = if upscale == 1.0 { part } else { part * upscale };
                encoder.backward(input, sync, kept, part, &mut |part| {
                    give(match options.precision {
                        Precision::Fp32 => part,
                        _ => widen(model, part, 1.0 / upscale),
                    });
                });
            };
            let image =
                |sync, give: Give<'_>| backward(image, sync, kept_image, &gradient.image, give);
            let text = |give: Give<'_>| backward(text, None, kept_text, &gradient.text, give);
            let mut receive = |part| match single {
                true => reducer.add(part),
                false => accumulator.accumulate(model, part),
            };
            if let Some(sync) = &sync {
                text(&mut receive);
                image(Some(sync), &mut receive);
            } else if single && communicator.world_size() == 1 {
                let (image, text) =
                    (|| image(None, &mut |part| take(part)), || text(&mut |part| take(part)));
                both(options.concurrent_towers, image, text);
            } else {
                // The text tower is done sooner: its gradients need not wait.
                let image = |give: Give<'_>| image(None, give);
                in_order(options.concurrent_towers, text, image, &mut receive);
            }
        }
        sync.as_ref().map_or(Ok(()), SyncNorm::check)?;
        let mut gradients = accumulator.grads();
        gradients.register(model.logit_scale.id, gradient.logit_scale);
        reducer.add(gradients);
        reducer.finish()?;
        average_statistics(model, communicator)?;

        let counts = [local.image_correct as f32, local.text_correct as f32];
        let sums = vec![local.loss_sum() / 2.0, counts[0], counts[1], distilled];
        let sums = communicator.all_reduce_sum(sums)?;
        let mean = |index: usize| sums[index] / (count * communicator.world_size()).max(1) as f32;
        Ok(Figures {
            loss: mean(0) + mean(3),
            distillation: self.teacher.map(|_| mean(3)),
            image_accuracy: mean(1),
            text_accuracy: mean(2),
        })
    }

    /// Adds the gradient of distillation to that of the image features of this rank; returns the
    /// sum of its loss over them, by its weight.
    fn distill(&self, batches: &[MicroBatch], student: Tensor<2>, gradient: &mut Tensor<2>) -> f32 {
        let Some(teacher) = self.teacher else { return 0.0 };
        let features = batches.iter().map(|batch| teacher.features(batch)).collect();
        let distillation = distill(&student, Tensor::cat(features, 0));
        let count = student.dims()[0] * self.communicator.world_size();
        let share = distillation.gradient * (teacher.weight() / count as f64);
        *gradient = gradient.clone() + share;
        distillation.loss_sum * teacher.weight() as f32
    }

    /// Random streams of this rank's samples.
    fn streams(&self, batches: &[MicroBatch], index: u64) -> Vec<SampleRng> {
        let (rank, world) = (self.communicator.rank(), self.communicator.world_size());
        let mut first = 0;
        let stream = |batch: &MicroBatch| {
            let samples = (first..first + batch.size).map(|sample| sample * world + rank);
            first += batch.size;
            SampleRng::for_step(self.seed, index, samples)
        };
        batches.iter().map(stream).collect()
    }
}

impl MicroBatch {
    /// `[batch, 3, R, R]` on a device.
    pub fn pixels(&self, device: &Device) -> Tensor<4> {
        self.pixels_in(Precision::Fp32, device)
    }

    /// The same in the numbers that a tower of this precision rounds them to first of all: in 16
    /// bits half as much is transferred.
    pub fn pixels_in(&self, precision: Precision, device: &Device) -> Tensor<4> {
        let shape = [self.size, 3, self.resolution, self.resolution];
        let data = match precision {
            Precision::Fp32 | Precision::Int16 => TensorData::new(self.pixels.clone(), shape),
            Precision::Bf16 => TensorData::new(self.rounded(bf16::from_f32), shape),
            Precision::Fp16 => TensorData::new(self.rounded(f16::from_f32), shape),
        };
        let dtype = data.dtype();
        Tensor::from_data(data, (device, dtype))
    }

    fn rounded<T: Send>(&self, round: fn(f32) -> T) -> Vec<T> {
        let pixels = self.pixels.par_iter().with_min_len(ROUNDED_AT_ONCE);
        pixels.map(|pixel| round(*pixel)).collect()
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
