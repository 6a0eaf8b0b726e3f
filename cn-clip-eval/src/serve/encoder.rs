//! Batches of texts and pictures through the towers.

use burn::tensor::{DType, Tensor, TensorData};
use cn_clip_data::{
    image::{ImageError, ImageTransform, Picture, SizeLimit},
    tokenizer::{Tokenizer, dataset_text},
};
use cn_clip_model::{Clip, Pass, normalize, token_tensor};

use super::batcher::Compute;

/// Lane of texts in the encoder's queue.
pub(super) const TEXT: usize = 0;
/// Lane of pictures.
pub(super) const IMAGE: usize = 1;

/// What a tower takes in.
pub(super) enum Input {
    /// Token ids, `[context_length]`.
    Text(Vec<i32>),
    /// Pixels, `[3, R, R]`.
    Image(Vec<f32>),
}

/// A normalised feature, `[embed_dim]`.
pub(super) type Embedding = Vec<f32>;

/// How texts and pictures become inputs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Preparation {
    pub context_length: usize,
    pub resolution: usize,
    pub limit: SizeLimit,
}

impl Preparation {
    /// Tokenises in the form in which data sets are.
    pub fn text(&self, text: &str) -> Input {
        Input::Text(Tokenizer::chinese().encode(&dataset_text(text), self.context_length))
    }

    /// Decodes a picture file.
    pub fn image(&self, file: &[u8]) -> Result<Input, ImageError> {
        let picture = Picture::decode_within(file, self.limit)?;
        let pixels = ImageTransform::new(self.resolution).picture_pixels(&picture)?;
        Ok(Input::Image(pixels))
    }
}

/// What computes a batch by `model`.
pub(super) fn encode(model: Clip, preparation: Preparation) -> Compute<Input, Embedding> {
    Box::new(move |lane, inputs| {
        let count = inputs.len();
        let device = model.device();
        let features = if lane == TEXT {
            let length = preparation.context_length;
            let tokens: Vec<i32> = inputs.into_iter().flat_map(Input::tokens).collect();
            model.encode_text(token_tensor(&tokens, length, &device), Pass::Eval)
        } else {
            let side = preparation.resolution;
            let pixels: Vec<f32> = inputs.into_iter().flat_map(Input::pixels).collect();
            let data = TensorData::new(pixels, [count, 3, side, side]);
            model.encode_image(Tensor::from_data(data, &device), None, Pass::Eval)
        };
        rows(normalize(features), count)
    })
}

impl Input {
    fn tokens(self) -> Vec<i32> {
        match self {
            Self::Text(tokens) => tokens,
            Self::Image(_) => Vec::new(),
        }
    }

    fn pixels(self) -> Vec<f32> {
        match self {
            Self::Text(_) => Vec::new(),
            Self::Image(pixels) => pixels,
        }
    }
}

fn rows(features: Tensor<2>, count: usize) -> Vec<Result<Embedding, String>> {
    let [_, dim] = features.dims();
    let data = features.cast(DType::F32).try_into_data().map_err(|error| error.to_string());
    let values = data.and_then(|data| data.try_into_vec::<f32>().map_err(|e| e.to_string()));
    let values = match values {
        Ok(values) => values,
        Err(error) => return vec![Err(format!("the device failed: {error}")); count],
    };
    let row = |row: &[f32]| match row.iter().all(|value| value.is_finite()) {
        true => Ok(row.to_vec()),
        false => Err("the model gives features that are NaN or infinite".to_string()),
    };
    values.chunks(dim).map(row).collect()
}
