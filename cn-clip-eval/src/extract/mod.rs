//! Features of pictures and texts: decoding on all cores while the device computes.
//!
//! [`input`] lists what there is as a stream, [`encode_pictures`] and [`encode_texts`] turn it into
//! features batch by batch, an [`Output`] writes them so that a run can be continued. None of them
//! holds more than a few batches.

pub mod input;
mod output;
mod pipeline;
#[cfg(test)]
mod tests;

use burn::tensor::{FloatDType, Tensor, TensorData};
use cn_clip_data::{
    DataError, Id,
    image::PixelTransform,
    tokenizer::{Tokenizer, dataset_text},
};
use cn_clip_model::{Clip, Pass, normalize, token_tensor};
use rayon::prelude::*;

pub use self::output::{Output, OutputError, Summary};
use self::{
    input::{Entry, Picture},
    pipeline::run_ahead,
};

/// Why features could not be extracted.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError<E> {
    /// Pictures or texts.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The device returned something that cannot be read.
    #[error("the features cannot be read back from the device: {0}")]
    Device(String),
    /// What the caller did with a batch.
    #[error(transparent)]
    Sink(E),
}

/// A batch with its features.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// Ids, in the order of the input.
    pub ids: Vec<Id>,
    /// Normalised features `[ids.len(), embed_dim]`, row by row.
    pub features: Vec<f32>,
    /// Pictures that could not be decoded, and why.
    pub skipped: Vec<(Id, String)>,
    /// The batch's share of the size of the input.
    pub cost: u64,
}

/// Encodes pictures in batches and hands `sink` the batches in order.
///
/// A picture that cannot be decoded is an error, or left out of its batch where `skip_bad` says so.
///
/// # Errors
/// [`ExtractError::Data`] names the picture, [`ExtractError::Sink`] is what `sink` returned.
pub fn encode_pictures<E>(
    model: &Clip,
    entries: impl Iterator<Item = Result<Entry<Picture>, DataError>> + Send,
    transform: &dyn PixelTransform,
    batch_size: usize,
    skip_bad: bool,
    sink: impl FnMut(Encoded) -> Result<(), E>,
) -> Result<(), ExtractError<E>> {
    let read = |entry: &Entry<Picture>| entry.content.read(&entry.id);
    encode_images(model, entries, read, transform, batch_size, skip_bad, sink)
}

/// Encodes pictures in batches and hands `sink` their ids and normalised features
/// (`[batch, embed_dim]`, row-major), in order.
///
/// `picture` returns the bytes of a picture file. Memory is bounded by a few batches.
///
/// # Errors
/// As [`encode_pictures`].
pub fn image_features<E>(
    model: &Clip,
    ids: &[Id],
    picture: impl Fn(&Id) -> Result<Vec<u8>, DataError> + Sync,
    transform: &dyn PixelTransform,
    batch_size: usize,
    mut sink: impl FnMut(&[Id], &[f32]) -> Result<(), E>,
) -> Result<(), ExtractError<E>> {
    let entries = ids.iter().map(|id| Ok(Entry { id: id.clone(), content: (), cost: 1 }));
    let read = |entry: &Entry<()>| picture(&entry.id);
    encode_images(model, entries, read, transform, batch_size, false, |batch: Encoded| {
        sink(&batch.ids, &batch.features)
    })
}

fn encode_images<T: Send + Sync, E>(
    model: &Clip,
    entries: impl Iterator<Item = Result<Entry<T>, DataError>> + Send,
    read: impl Fn(&Entry<T>) -> Result<Vec<u8>, DataError> + Sync,
    transform: &dyn PixelTransform,
    batch_size: usize,
    skip_bad: bool,
    mut sink: impl FnMut(Encoded) -> Result<(), E>,
) -> Result<(), ExtractError<E>> {
    let device = model.device();
    let side = transform.resolution();
    let decode = |batch: Vec<Entry<T>>| decode(batch, &read, transform, skip_bad);
    run_ahead(entries, batch_size, decode, |Decoded { pixels, mut batch }| {
        if !batch.ids.is_empty() {
            let data = TensorData::new(pixels, [batch.ids.len(), 3, side, side]);
            let pixels = Tensor::from_data(data, &device);
            batch.features = values(normalize(model.encode_image(pixels, None, Pass::Eval)))?;
        }
        sink(batch).map_err(ExtractError::Sink)
    })
}

struct Decoded {
    /// `[ids, 3, side, side]`.
    pixels: Vec<f32>,
    /// Without features yet.
    batch: Encoded,
}

fn decode<T: Sync>(
    entries: Vec<Entry<T>>,
    read: &(impl Fn(&Entry<T>) -> Result<Vec<u8>, DataError> + Sync),
    transform: &dyn PixelTransform,
    skip_bad: bool,
) -> Result<Decoded, DataError> {
    let length = 3 * transform.resolution() * transform.resolution();
    let mut pixels = vec![0.0; entries.len() * length];
    let decoded: Vec<Result<(), DataError>> = pixels
        .par_chunks_mut(length)
        .zip(&entries)
        .map(|(pixels, entry)| {
            let bytes = read(entry)?;
            let failed = |reason: String| DataError::Image { id: entry.id.clone(), reason };
            transform.apply(&bytes, 0, pixels).map_err(|error| failed(error.to_string()))
        })
        .collect();
    let cost = entries.iter().map(|entry| entry.cost).sum();
    let mut batch = Encoded { ids: Vec::new(), features: Vec::new(), skipped: Vec::new(), cost };
    for (index, (entry, decoded)) in entries.into_iter().zip(decoded).enumerate() {
        match decoded {
            Ok(()) => {
                let place = batch.ids.len();
                if place < index {
                    pixels.copy_within(index * length..(index + 1) * length, place * length);
                }
                batch.ids.push(entry.id);
            }
            Err(DataError::Image { id, reason }) if skip_bad => batch.skipped.push((id, reason)),
            Err(error) => return Err(error),
        }
    }
    pixels.truncate(batch.ids.len() * length);
    Ok(Decoded { pixels, batch })
}

/// Encodes texts in batches, in the form in which data sets are tokenised, and hands `sink` the
/// batches in order.
///
/// # Errors
/// As [`encode_pictures`].
pub fn encode_texts<E>(
    model: &Clip,
    entries: impl Iterator<Item = Result<Entry<String>, DataError>> + Send,
    context_length: usize,
    batch_size: usize,
    mut sink: impl FnMut(Encoded) -> Result<(), E>,
) -> Result<(), ExtractError<E>> {
    let device = model.device();
    let tokenize = |entries: Vec<Entry<String>>| {
        let texts: Vec<_> = entries.iter().map(|entry| dataset_text(&entry.content)).collect();
        let tokens = Tokenizer::chinese().encode_batch(&texts, context_length);
        let cost = entries.iter().map(|entry| entry.cost).sum();
        let ids = entries.iter().map(|entry| entry.id.clone()).collect();
        Ok((tokens, Encoded { ids, features: Vec::new(), skipped: Vec::new(), cost }))
    };
    run_ahead(entries, batch_size, tokenize, |(tokens, mut batch)| {
        let tokens = token_tensor(&tokens, context_length, &device);
        batch.features = values(normalize(model.encode_text(tokens, Pass::Eval)))?;
        sink(batch).map_err(ExtractError::Sink)
    })
}

/// Encodes texts in batches, in the form in which data sets are tokenised, and hands `sink` the
/// index of the first and their normalised features (`[batch, embed_dim]`, row-major), in order.
///
/// # Errors
/// As [`encode_pictures`].
pub fn text_features<T: AsRef<str> + Sync, E>(
    model: &Clip,
    texts: &[T],
    context_length: usize,
    batch_size: usize,
    mut sink: impl FnMut(usize, &[f32]) -> Result<(), E>,
) -> Result<(), ExtractError<E>> {
    let entry = |(index, text): (usize, &T)| {
        let id = Id::Int(i64::try_from(index).unwrap_or(i64::MAX));
        Ok(Entry { id, content: text.as_ref().to_owned(), cost: 1 })
    };
    let mut first = 0;
    let entries = texts.iter().enumerate().map(entry);
    encode_texts(model, entries, context_length, batch_size, |batch| {
        let count = batch.ids.len();
        sink(first, &batch.features).map(|()| first += count)
    })
}

fn values<E>(features: Tensor<2>) -> Result<Vec<f32>, ExtractError<E>> {
    features
        .cast(FloatDType::F32)
        .into_data()
        .try_into_vec()
        .map_err(|error| ExtractError::Device(format!("{error:?}")))
}
