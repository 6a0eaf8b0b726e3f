//! Validation during training: loss and in-batch accuracies (`cn_clip/training/train.py`), and
//! recall over the whole set.

use std::sync::Arc;

use burn::{module::Module, tensor::Tensor};
use cn_clip_data::{
    image::PixelTransform,
    loader::{Loader, LoaderOptions},
    sampler::epoch_order,
    source::PairSource,
};
use cn_clip_model::{Clip, Pass, normalize};

use crate::{
    TrainConfig, TrainError,
    communicator::Communicator,
    log::RunLog,
    loss::{Gathered, TILE},
    recall::{Recall, recall},
    reduce::gather_rows,
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
    /// Recall over the whole set, if it was asked for.
    pub recall: Option<Recall>,
}

/// Runs the model over a validation set, in evaluation mode. Each rank sees its part.
pub fn validate(
    model: &Clip,
    data: &Dataset,
    config: &TrainConfig,
    communicator: &dyn Communicator,
    log: &RunLog,
) -> Result<Validation, TrainError> {
    let model = model.valid();
    let device = model.device();
    // A batch larger than the set would repeat its pairs.
    let (rank, world) = (communicator.rank(), communicator.world_size());
    let size = config.valid_batch_size.min(data.source.len().div_ceil(world));
    let order = epoch_order(data.source.len(), size * world, config.seed, 0, 0, 1);
    let rows: Vec<usize> = order.iter().copied().skip(rank).step_by(world).collect();
    let batches = rows.len().div_ceil(size.max(1));
    let options = LoaderOptions {
        batch_size: size,
        context_length: config.context_length,
        workers: config.num_workers,
        skip_bad_images: config.skip_bad_images,
        ..Default::default()
    };
    let loader = Loader::new(data.source.clone(), data.transform.clone(), rows, options)?;
    let scale: f32 = model.logit_scale.val().exp().into_scalar();
    let (mut loss, mut image, mut text, mut last_batch) = (0.0, 0, 0, 0);
    let (mut image_features, mut text_features) = (Vec::new(), Vec::new());
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
        if config.valid_recall {
            image_features.push(gathered.image);
            text_features.push(gathered.text);
        }
        if (index + 1) % 100 == 0 {
            log.info(&format!("Evaluated {}/{batches} batches...", index + 1));
        }
    }
    let sums = communicator.all_reduce_sum(vec![loss, image as f32, text as f32])?;
    let mean = |sum: usize| sums[sum] / order.len() as f32;
    let recall = match config.valid_recall {
        true => {
            let image = gather_rows(Tensor::cat(image_features, 0), communicator)?;
            let text = gather_rows(Tensor::cat(text_features, 0), communicator)?;
            Some(whole_recall(data, &order, world, image, text)?)
        }
        false => None,
    };
    Ok(Validation {
        loss: mean(0),
        image_accuracy: mean(1),
        text_accuracy: mean(2),
        last_batch,
        recall,
    })
}

/// Recall, given the features of all ranks, one after the other; `order` is what all of them saw.
fn whole_recall(
    data: &Dataset,
    order: &[usize],
    world: usize,
    image: Tensor<2>,
    text: Tensor<2>,
) -> Result<Recall, TrainError> {
    let by_rank = (0..world).flat_map(|rank| order.iter().skip(rank).step_by(world));
    // Pairs that only fill the last batch come twice, and count once by their ids.
    let pairs = by_rank.map(|index| data.source.pair(*index)).collect::<Result<Vec<_>, _>>()?;
    Ok(recall(&pairs, &image, &text))
}
