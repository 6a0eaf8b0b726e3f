use std::{fmt, sync::mpsc::sync_channel, thread};

use burn::{
    module::Module,
    tensor::{Device, Int, Tensor, TensorData},
};
use cn_clip_data::{
    image::ImageTransform,
    tokenizer::{CONTEXT_LENGTH, Tokenizer},
};
use cn_clip_model::{Clip, ClipConfig, Pass, Precision, normalize, token_tensor};
use rayon::prelude::*;

use super::{AsImage, Error, Features};

/// Pictures or texts that go through a tower at a time.
const BATCH_SIZE: usize = 32;
/// Batches of pictures decoded ahead.
const PREFETCH: usize = 1;

/// A model for inference, with what turns pictures and texts into its input.
///
/// A clone shares the weights. One model may be used by many threads at a time.
#[derive(Clone)]
pub struct Model {
    clip: Clip,
    config: ClipConfig,
    device: Device,
    batch_size: usize,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("config", &self.config)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

impl Model {
    /// A model of one's own: without dropout and gradients, on the device of its weights.
    pub fn new(clip: Clip, config: ClipConfig) -> Self {
        let clip = clip.valid();
        let device = clip.device();
        Self { clip, config, device, batch_size: BATCH_SIZE }
    }

    /// A copy that computes in another precision; its features are still in 32 bits.
    pub fn with_precision(&self, precision: Precision) -> Self {
        Self { clip: precision.copy(&self.clip), ..self.clone() }
    }

    /// Sets how many pictures or texts go through a tower at a time: 32 if this is not called.
    pub fn with_batch_size(mut self, batch_size: usize) -> Self {
        self.batch_size = batch_size.max(1);
        self
    }

    /// The architecture.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// The towers.
    pub fn clip(&self) -> &Clip {
        &self.clip
    }

    /// The device of the weights and of all tensors that come out.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What turns a picture into pixels for [`encode_image`](Self::encode_image).
    pub fn image_transform(&self) -> ImageTransform {
        image_transform(self.config.vision.image_resolution)
    }

    /// Texts to token ids for [`encode_text`](Self::encode_text), see [`tokenize`].
    pub fn tokenize<T: AsRef<str> + Sync>(&self, texts: &[T]) -> Tensor<2, Int> {
        tokenize(texts, CONTEXT_LENGTH.min(self.config.text.max_positions), &self.device)
    }

    /// Pixels `[batch, 3, R, R]` to image features `[batch, embed_dim]`, not normalised.
    pub fn encode_image(&self, pixels: Tensor<4>) -> Tensor<2> {
        self.clip.encode_image(pixels, None, Pass::Eval)
    }

    /// Token ids `[batch, tokens]` to text features `[batch, embed_dim]`, not normalised.
    pub fn encode_text(&self, tokens: Tensor<2, Int>) -> Tensor<2> {
        self.clip.encode_text(tokens, Pass::Eval)
    }

    /// Similarities `[images, texts]` of normalised features: cosines times the learnt scale. Their
    /// softmax over a row are the probabilities of the texts.
    pub fn similarity(&self, image_features: Tensor<2>, text_features: Tensor<2>) -> Tensor<2> {
        self.clip.similarity(image_features, text_features)
    }

    /// Pixels and token ids to the similarities `[images, texts]` and `[texts, images]`.
    pub fn get_similarity(
        &self,
        pixels: Tensor<4>,
        tokens: Tensor<2, Int>,
    ) -> (Tensor<2>, Tensor<2>) {
        let (image, text) = (self.encode_image(pixels), self.encode_text(tokens));
        let per_image = self.similarity(normalize(image), normalize(text));
        (per_image.clone(), per_image.transpose())
    }

    /// Normalised features of pictures, `[pictures, embed_dim]`: files, bytes of files or decoded
    /// pictures. They are decoded on all cores while the device computes.
    ///
    /// # Errors
    /// [`Error::Image`] names a picture that cannot be read.
    pub fn image_features<T: AsImage>(&self, images: &[T]) -> Result<Tensor<2>, Error> {
        let mut parts = Vec::new();
        self.each_image_batch(images, |features| {
            parts.push(features);
            Ok(())
        })?;
        Ok(self.join(parts))
    }

    /// Normalised features of texts, `[texts, embed_dim]`. What is longer than 52 tokens is cut.
    pub fn text_features<T: AsRef<str> + Sync>(&self, texts: &[T]) -> Tensor<2> {
        self.join(texts.chunks(self.batch_size).map(|batch| self.text_batch(batch)).collect())
    }

    /// As [`image_features`](Self::image_features), in ordinary memory.
    ///
    /// # Errors
    /// [`Error::Image`] names a picture that cannot be read, [`Error::NotFinite`] means that the
    /// weights are unusable.
    pub fn embed_images<T: AsImage>(&self, images: &[T]) -> Result<Features, Error> {
        let mut features = Features::with_capacity(images.len(), self.config.vision.embed_dim);
        self.each_image_batch(images, |batch| features.append(batch))?;
        Ok(features)
    }

    /// As [`text_features`](Self::text_features), in ordinary memory.
    ///
    /// # Errors
    /// [`Error::NotFinite`] means that the weights are unusable.
    pub fn embed_texts<T: AsRef<str> + Sync>(&self, texts: &[T]) -> Result<Features, Error> {
        let mut features = Features::with_capacity(texts.len(), self.config.vision.embed_dim);
        for batch in texts.chunks(self.batch_size) {
            features.append(self.text_batch(batch))?;
        }
        Ok(features)
    }

    fn text_batch<T: AsRef<str> + Sync>(&self, texts: &[T]) -> Tensor<2> {
        normalize(self.encode_text(self.tokenize(texts)))
    }

    fn each_image_batch<T: AsImage>(
        &self,
        images: &[T],
        mut sink: impl FnMut(Tensor<2>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let transform = self.image_transform();
        let (side, size) = (self.config.vision.image_resolution, self.batch_size);
        thread::scope(|scope| {
            let (sender, receiver) = sync_channel(PREFETCH);
            scope.spawn(move || {
                for (number, batch) in images.chunks(size).enumerate() {
                    let pixels = decode(batch, number * size, &transform);
                    let failed = pixels.is_err();
                    if sender.send(pixels).is_err() || failed {
                        return;
                    }
                }
            });
            for pixels in receiver {
                let pixels = pixels?;
                let shape = [pixels.len() / (3 * side * side), 3, side, side];
                let pixels = Tensor::from_data(TensorData::new(pixels, shape), &self.device);
                sink(normalize(self.encode_image(pixels)))?;
            }
            Ok(())
        })
    }

    fn join(&self, parts: Vec<Tensor<2>>) -> Tensor<2> {
        match parts.is_empty() {
            true => Tensor::zeros([0, self.config.vision.embed_dim], &self.device),
            false => Tensor::cat(parts, 0),
        }
    }
}

/// Pixels of pictures, one after the other; `first` is the position of the first.
fn decode<T: AsImage>(
    images: &[T],
    first: usize,
    transform: &ImageTransform,
) -> Result<Vec<f32>, Error> {
    let pixels: Result<Vec<Vec<f32>>, Error> = images
        .par_iter()
        .enumerate()
        .map(|(index, image)| {
            let input = image.as_image();
            input.pixels(transform).map_err(|source| Error::Image {
                index: first + index,
                path: input.path(),
                source,
            })
        })
        .collect();
    Ok(pixels?.concat())
}

/// What turns pictures into the pixels `[3, R, R]` of an image tower of this resolution.
pub fn image_transform(resolution: usize) -> ImageTransform {
    ImageTransform::new(resolution)
}

/// Texts to token ids on a device: `[CLS]`, at most `context_length - 2` word pieces, `[SEP]`, then
/// zeros; `[texts, tokens]`, as many tokens as the longest of these texts has. The models were
/// trained with a context length of 52 ([`CONTEXT_LENGTH`]).
///
/// ```
/// use cn_clip::{CONTEXT_LENGTH, model::DeviceSpec, tokenize};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = DeviceSpec::CPU.open()?;
/// let tokens = tokenize(&["杰尼龟", "妙蛙种子"], CONTEXT_LENGTH, &device);
/// assert_eq!(tokens.dims(), [2, 6]);
/// # Ok(())
/// # }
/// ```
pub fn tokenize<T: AsRef<str> + Sync>(
    texts: &[T],
    context_length: usize,
    device: &Device,
) -> Tensor<2, Int> {
    let length = context_length.max(2);
    token_tensor(&Tokenizer::chinese().encode_batch(texts, length), length, device)
}
