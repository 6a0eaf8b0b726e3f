//! Validation during training: loss and in-batch accuracies (`cn_clip/training/train.py`).

use std::sync::Arc;

use burn::module::Module;
use cn_clip_data::{
    image::PixelTransform,
    loader::{Loader, LoaderOptions},
    sampler::epoch_order,
    source::PairSource,
};
use cn_clip_model::{Clip, Pass, normalize};

use crate::{
    TrainConfig, TrainError,
    log::RunLog,
    loss::{Gathered, TILE},
    step::MicroBatch,
};

/// Pairs to train on or to validate with.
#[derive(Clone)]
pub struct Dataset {
    /// Where pairs come from.
    pub source: Arc<dyn PairSource>,
    /// How pictures become pixels.
    pub transform: Arc<dyn PixelTransform>,
}

/// Means over the validation set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Validation {
    /// Contrastive loss within batches.
    pub loss: f32,
    /// Share of pictures whose own text is the best of the batch.
    pub image_accuracy: f32,
    /// Share of texts whose own picture is the best of the batch.
    pub text_accuracy: f32,
    /// Size of the last batch.
    pub last_batch: usize,
}

/// Runs the model over a validation set, in evaluation mode.
pub fn validate(
    model: &Clip,
    data: &Dataset,
    config: &TrainConfig,
    log: &RunLog,
) -> Result<Validation, TrainError> {
    let model = model.valid();
    let device = model.device();
    // A batch larger than the set would repeat its pairs.
    let size = config.valid_batch_size.min(data.source.len());
    let order = epoch_order(data.source.len(), size, config.seed, 0, 0, 1);
    let (total, batches) = (order.len() as f32, order.len().div_ceil(size.max(1)));
    let options = LoaderOptions {
        batch_size: size,
        context_length: config.context_length,
        workers: config.num_workers,
        skip_bad_images: config.skip_bad_images,
        ..Default::default()
    };
    let loader = Loader::new(data.source.clone(), data.transform.clone(), order, options)?;
    let scale: f32 = model.logit_scale.val().exp().into_scalar();
    let (mut loss, mut image, mut text, mut last_batch) = (0.0, 0, 0, 0);
    for (index, batch) in loader.enumerate() {
        let batch = MicroBatch::from(batch.map_err(TrainError::from_loader)?);
        let pixels = batch.pixels(&device);
        let gathered = Gathered::local(
            normalize(model.encode_image(pixels, None, Pass::Eval)),
            normalize(model.encode_text(batch.tokens(&device), Pass::Eval)),
        );
        let statistics = gathered.statistics(scale, TILE);
        loss += statistics.loss_sum() / 2.0;
        image += statistics.image_correct;
        text += statistics.text_correct;
        last_batch = batch.size;
        if (index + 1) % 100 == 0 {
            log.info(&format!("Evaluated {}/{batches} batches...", index + 1));
        }
    }
    Ok(Validation {
        loss: loss / total,
        image_accuracy: image as f32 / total,
        text_accuracy: text as f32 / total,
        last_batch,
    })
}
