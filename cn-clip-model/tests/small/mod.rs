//! Small models, their inputs, and the same in double precision.

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Device, FloatDType, Int, Tensor, TensorData},
};
use cn_clip_model::{
    Clip, ClipConfig, TextConfig, VisionConfig,
    config::{TextActivation, VisionLayers},
};

/// A model of sizes that fill neither tiles nor vectors.
pub fn config(head_width: usize, heads: usize, layers: usize) -> ClipConfig {
    ClipConfig {
        vision: VisionConfig {
            embed_dim: 24,
            image_resolution: 40,
            layers: VisionLayers::Transformer(layers),
            width: head_width * heads,
            patch_size: Some(8),
            head_width,
        },
        text: TextConfig {
            vocab_size: 120,
            hidden_size: head_width * heads,
            layers,
            heads,
            intermediate_size: 900,
            activation: TextActivation::Gelu,
            hidden_dropout: 0.2,
            attention_dropout: 0.3,
            max_positions: 16,
            type_vocab_size: 2,
            initializer_range: 0.2,
        },
    }
}

pub fn pixels(batch: usize, device: &Device) -> Tensor<4> {
    let values: Vec<f32> =
        (0..batch * 3 * 40 * 40).map(|index| (index as f32 * 0.37).sin()).collect();
    Tensor::from_data(TensorData::new(values, [batch, 3, 40, 40]), device)
}

/// Texts of these lengths, padded to the longest.
pub fn tokens(lengths: &[usize], device: &Device) -> Tensor<2, Int> {
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let id =
        |text: usize, at: usize| if at < lengths[text] { 1 + (text * 7 + at) as i32 } else { 0 };
    let ids: Vec<i32> =
        (0..lengths.len()).flat_map(|text| (0..longest).map(move |at| id(text, at))).collect();
    Tensor::from_data(TensorData::new(ids, [lengths.len(), longest]), device)
}

/// The same model in double precision, which only Burn computes in.
pub fn double(model: &Clip) -> Clip {
    struct Double;
    impl ModuleMapper for Double {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (id, value, mapper) = param.consume();
            let tracked = value.is_require_grad();
            let value = match tracked {
                true => Tensor::from_inner(value.inner().cast(FloatDType::F64)).require_grad(),
                false => value.cast(FloatDType::F64),
            };
            Param::from_mapped_value(id, value, mapper)
        }
    }
    model.clone().map(&mut Double)
}
