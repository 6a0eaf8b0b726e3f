//! Initial weights: drawn on the host from a seed, the same on every device.
//!
//! Every parameter has a random stream of its own, keyed by the model's seed and the parameter's
//! official name, and is drawn when first used: a model that is loaded from a checkpoint never
//! draws anything.

use std::hash::{DefaultHasher, Hash, Hasher};

use burn::{
    module::{Param, ParamId},
    nn::{Embedding, LayerNorm, LayerNormConfig, Linear},
    tensor::{Device, Shape, Tensor, TensorData},
};
use rand::{Rng, SeedableRng, distr::Uniform};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

/// Distribution of initial values.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Values {
    /// All the same.
    Constant(f32),
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// Uniform in `[-bound, bound]`.
    Uniform(f64),
}

/// Where parameters are made: a device, a seed and the official name so far.
#[derive(Clone)]
pub(crate) struct Init<'a> {
    device: &'a Device,
    seed: u64,
    path: String,
}

impl<'a> Init<'a> {
    pub(crate) fn new(device: &'a Device, seed: u64) -> Self {
        Self { device, seed, path: String::new() }
    }

    pub(crate) fn device(&self) -> &Device {
        self.device
    }

    /// The same, one name deeper.
    pub(crate) fn at(&self, name: impl std::fmt::Display) -> Self {
        let path = format!("{}{name}.", self.path);
        Self { device: self.device, seed: self.seed, path }
    }

    /// A parameter of this shape.
    pub(crate) fn param<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        values: Values,
    ) -> Param<Tensor<D>> {
        let mut hasher = DefaultHasher::new();
        (self.seed, &self.path, name).hash(&mut hasher);
        let seed = hasher.finish();
        Param::uninitialized(
            ParamId::new(),
            move |device, require_grad| {
                let values = draw(values, shape.iter().product(), seed);
                Tensor::from_data(TensorData::new(values, shape), device)
                    .set_require_grad(require_grad)
            },
            self.device.clone(),
            true,
            Shape::from(shape),
        )
    }

    /// A linear layer; torch's default initialisation where `weight` and `bias` are `None`.
    pub(crate) fn linear(
        &self,
        input: usize,
        output: usize,
        weight: Option<Values>,
        bias: Option<Values>,
    ) -> Linear {
        let torch = Values::Uniform(1.0 / (input as f64).sqrt());
        Linear {
            weight: self.param("weight", [input, output], weight.unwrap_or(torch)),
            bias: Some(self.param("bias", [output], bias.unwrap_or(torch))),
        }
    }

    /// An embedding table.
    pub(crate) fn embedding(&self, rows: usize, width: usize, std: f64) -> Embedding {
        Embedding { weight: self.param("weight", [rows, width], Values::Normal(std)) }
    }

    /// A layer norm: ones and zeros.
    pub(crate) fn layer_norm(&self, width: usize, epsilon: f64) -> LayerNorm {
        LayerNormConfig::new(width).with_epsilon(epsilon).init(self.device)
    }
}

fn draw(values: Values, count: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    match values {
        Values::Constant(value) => vec![value; count],
        Values::Normal(std) => match Normal::new(0.0, std as f32) {
            Ok(normal) => normal.sample_iter(rng).take(count).collect(),
            Err(_) => vec![0.0; count],
        },
        Values::Uniform(bound) => match Uniform::new(-bound as f32, bound as f32) {
            Ok(uniform) => (0..count).map(|_| rng.sample(uniform)).collect(),
            Err(_) => vec![0.0; count],
        },
    }
}
