//! Features of pictures and texts: decoding on all cores while the device computes.

use std::{sync::mpsc::sync_channel, thread};

use burn::tensor::{Tensor, TensorData};
use cn_clip_data::{
    DataError, Id,
    image::PixelTransform,
    tokenizer::{Tokenizer, dataset_text},
};
use cn_clip_model::{Clip, Pass, normalize, token_tensor};
use rayon::prelude::*;

/// Batches decoded ahead.
const PREFETCH: usize = 2;

/// Why features could not be extracted.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError<E> {
    /// Pictures.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The device returned something that cannot be read.
    #[error("the features cannot be read back from the device: {0}")]
    Device(String),
    /// What the caller did with a batch.
    #[error(transparent)]
    Sink(E),
}

/// Encodes pictures in batches and hands `sink` their ids and normalised features
/// (`[batch, embed_dim]`, row-major), in order.
///
/// `picture` returns the bytes of a picture file. Memory is bounded by a few batches.
pub fn image_features<E>(
    model: &Clip,
    ids: &[Id],
    picture: impl Fn(&Id) -> Result<Vec<u8>, DataError> + Sync,
    transform: &dyn PixelTransform,
    batch_size: usize,
    mut sink: impl FnMut(&[Id], &[f32]) -> Result<(), E>,
) -> Result<(), ExtractError<E>> {
    let device = model.device();
    let side = transform.resolution();
    let decode = |ids: &[Id]| -> Result<Vec<f32>, DataError> {
        let mut pixels = vec![0.0; ids.len() * 3 * side * side];
        pixels.par_chunks_mut(3 * side * side).zip(ids).try_for_each(|(pixels, id)| {
            let bytes = picture(id)?;
            let failed = |reason: String| DataError::Image { id: id.clone(), reason };
            transform.apply(&bytes, 0, pixels).map_err(|error| failed(error.to_string()))
        })?;
        Ok(pixels)
    };
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel(PREFETCH);
        scope.spawn(move || {
            for batch in ids.chunks(batch_size.max(1)) {
                let pixels = decode(batch);
                let failed = pixels.is_err();
                if sender.send((batch, pixels)).is_err() || failed {
                    return;
                }
            }
        });
        for (batch, pixels) in receiver {
            let data = TensorData::new(pixels?, [batch.len(), 3, side, side]);
            let features =
                normalize(model.encode_image(Tensor::from_data(data, &device), None, Pass::Eval));
            sink(batch, &values(features)?).map_err(ExtractError::Sink)?;
        }
        Ok(())
    })
}

/// Encodes texts in batches, in the form in which data sets are tokenised, and hands `sink` the
/// index of the first and their normalised features (`[batch, embed_dim]`, row-major), in order.
pub fn text_features<T: AsRef<str> + Sync, E>(
    model: &Clip,
    texts: &[T],
    context_length: usize,
    batch_size: usize,
    mut sink: impl FnMut(usize, &[f32]) -> Result<(), E>,
) -> Result<(), ExtractError<E>> {
    let device = model.device();
    let size = batch_size.max(1);
    for (index, batch) in texts.chunks(size).enumerate() {
        let texts: Vec<_> = batch.iter().map(|text| dataset_text(text.as_ref())).collect();
        let tokens = Tokenizer::chinese().encode_batch(&texts, context_length);
        let tokens = token_tensor(&tokens, context_length, &device);
        let features = normalize(model.encode_text(tokens, Pass::Eval));
        sink(index * size, &values(features)?).map_err(ExtractError::Sink)?;
    }
    Ok(())
}

fn values<E>(features: Tensor<2>) -> Result<Vec<f32>, ExtractError<E>> {
    features
        .cast(burn::tensor::FloatDType::F32)
        .into_data()
        .try_into_vec()
        .map_err(|error| ExtractError::Device(format!("{error:?}")))
}
