//! Validation during training: loss and in-batch accuracies (`cn_clip/training/train.py`), and
//! recall over the whole set.

use std::sync::Arc;

use burn::{module::Module, tensor::Tensor};
use cn_clip_data::{
    Pair,
    forms::{Part, Source},
    image::PixelTransform,
    loader::{Loader, LoaderOptions},
    sampler::{epoch_order, padded_len},
};
use cn_clip_model::{Clip, Pass, normalize};

use crate::{
    TrainConfig, TrainError,
    communicator::Communicator,
    log::RunLog,
    loss::{Gathered, tile_columns},
    recall::{Recall, recall},
    reduce::gather_rows,
    step::MicroBatch,
};

/// Pairs to train on or to validate with.
#[derive(Clone)]
pub struct Dataset {
    /// Where pairs come from.
    pub source: Source,
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
    let (rank, world) = (communicator.rank(), communicator.world_size());
    // A batch larger than the set would repeat its pairs.
    let size = config.valid_batch_size.min(data.source.len().div_ceil(world));
    let padded = padded_len(data.source.len(), size * world);
    let batches = (padded / world).div_ceil(size.max(1));
    let options = LoaderOptions {
        batch_size: size,
        context_length: config.context_length,
        workers: config.valid_num_workers.unwrap_or(config.num_workers),
        skip_bad_images: config.skip_bad_images,
        ..Default::default()
    };
    let transform = data.transform.clone();
    let loader = match &data.source {
        Source::Pairs(source) => {
            let order = epoch_order(source.len(), size * world, config.seed, 0, rank, world);
            Loader::new(source.clone(), transform, order, options)?
        }
        Source::Stream(stream) => {
            // Without end: what is skipped is made up for, so that all ranks have as many pairs.
            let part = Part { rank, world, take: usize::MAX, shuffle: false, ..Part::default() };
            Loader::stream(stream.samples(&part), transform, options)?
        }
    };
    let scale: f32 = model.logit_scale.val().exp().into_scalar();
    let (mut loss, mut image, mut text, mut last_batch) = (0.0, 0, 0, 0);
    let (mut image_features, mut text_features) = (Vec::new(), Vec::new());
    let mut keys = Vec::new();
    for (index, batch) in loader.take(batches).enumerate() {
        let batch = batch.map_err(TrainError::from_loader)?;
        if config.valid_recall {
            keys.extend(batch.pairs.iter().flat_map(keys_of));
        }
        let batch = MicroBatch::from(batch);
        let pixels = batch.pixels(&device);
        let gathered = Gathered::local(
            normalize(model.encode_image(pixels, None, Pass::Eval)),
            normalize(model.encode_text(batch.tokens(&device), Pass::Eval)),
        );
        let statistics = gathered.statistics(scale, tile_columns(batch.size));
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
    // The weights will change, and training wants the memory.
    model.release_prepared();
    let sums = communicator.all_reduce_sum(vec![loss, image as f32, text as f32])?;
    let mean = |sum: usize| sums[sum] / padded as f32;
    let recall = match config.valid_recall {
        true => {
            let image = gather_rows(Tensor::cat(image_features, 0), communicator)?;
            let text = gather_rows(Tensor::cat(text_features, 0), communicator)?;
            let keys = communicator.all_gather(keys)?;
            // Pairs that only fill the last batch come twice, and count once by their keys.
            let (pairs, _) = keys.as_chunks::<{ 2 * PARTS }>();
            let pairs: Vec<(Key, Key)> = pairs.iter().map(|pair| split(*pair)).collect();
            Some(recall(&pairs, &image, &text))
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

/// Numbers that make up a key.
const PARTS: usize = 3;

/// Identity of a picture or a text as numbers that ranks can exchange.
type Key = [u32; PARTS];

/// The keys of a pair's picture and text, in parts that are exact as floats.
fn keys_of(pair: &Pair) -> impl Iterator<Item = f32> {
    let part = |key: u64, part: usize| (key >> (22 * part) & 0x3f_ffff) as f32;
    let keys = pair.keys();
    keys.into_iter().take(2).flat_map(move |key| (0..PARTS).map(move |index| part(key, index)))
}

fn split(pair: [f32; 2 * PARTS]) -> (Key, Key) {
    let key = |first: usize| std::array::from_fn(|part| pair[first + part] as u32);
    (key(0), key(PARTS))
}
