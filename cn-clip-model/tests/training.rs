//! Layers of training on the processor by kernels, against Burn in double precision: features and
//! the gradients of all parameters.
#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used)]

mod small;

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, FloatDType, Gradients, Int, Tensor, TensorData},
};
use cn_clip_model::{Clip, Pass, Precision, SampleRng};
use small::{config, double, pixels, tokens};

/// Features of both towers, and the gradients of all parameters, by name.
struct Found(Vec<(String, Vec<f64>)>);

struct Visitor<'a> {
    gradients: &'a Gradients,
    path: Vec<String>,
    found: Vec<(String, Vec<f64>)>,
}

impl ModuleVisitor for Visitor<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.val().grad(self.gradients) {
            self.found.push((self.path.join("."), gradient.into_data().iter::<f64>().collect()));
        }
    }
}

/// A sum of features whose factors differ.
fn weighted_sum(features: Tensor<2>) -> Tensor<1> {
    let shape = features.dims();
    let values = (0..shape[0] * shape[1]).map(|index| (index as f32 * 0.61).cos()).collect();
    let data = TensorData::new::<f32, _>(values, shape);
    let factors: Tensor<2> = Tensor::from_data(data, &features.device().inner());
    let factors = Tensor::from_inner(factors.cast(FloatDType::from(features.dtype())));
    let strategy = features.gradient_checkpointing_strategy().unwrap();
    (features * factors.with_gradient_checkpointing_strategy(strategy)).sum()
}

fn run(
    model: &Clip,
    pixels: Tensor<4>,
    keep: Option<Tensor<2, Int>>,
    tokens: Tensor<2, Int>,
    rng: &SampleRng,
) -> Found {
    let pass = Pass::Train { rng, update_statistics: false };
    let image = model.encode_image(pixels, keep, pass);
    let text = model.encode_text(tokens, pass);
    let mut found = Vec::new();
    let mut sum = None;
    for (name, features) in [("image features", image), ("text features", text)] {
        found.push((name.to_string(), features.clone().into_data().iter::<f64>().collect()));
        let part = weighted_sum(features);
        sum = Some(match sum {
            Some(sum) => sum + part,
            None => part,
        });
    }
    let gradients = sum.unwrap().backward();
    let mut visitor = Visitor { gradients: &gradients, path: Vec::new(), found };
    model.visit(&mut visitor);
    Found(visitor.found)
}

/// Errors beside the largest value, or a hundredth of that of all gradients where these are smaller:
/// those of biases of keys would be none but for rounding.
fn compare(ours: &Found, expected: &Found) {
    assert_eq!(ours.0.len(), expected.0.len());
    let size = |values: &[f64]| values.iter().fold(0.0f64, |most, value| most.max(value.abs()));
    let overall = expected.0.iter().map(|(_, values)| size(values)).fold(0.0, f64::max);
    for ((name, ours), (other, expected)) in ours.0.iter().zip(&expected.0) {
        assert_eq!(name, other);
        assert_eq!(ours.len(), expected.len(), "{name}");
        let difference: Vec<f64> = ours.iter().zip(expected).map(|(a, b)| a - b).collect();
        let error = size(&difference) / size(expected).max(1e-2 * overall);
        assert!(error < 3e-5, "{name}: {error:e}");
    }
}

#[test]
fn gradients_are_those_of_burn() {
    let device = Device::flex().autodiff();
    for (head_width, heads, layers) in [(64, 1, 1), (20, 3, 2), (5, 2, 3), (32, 4, 2)] {
        let model = Clip::init(&config(head_width, heads, layers), &device, 3);
        for lengths in [&[3][..], &[1, 9, 4], &[16; 8], &[2, 3, 5, 7, 11, 13, 1, 1, 2, 3, 5, 8, 13]]
        {
            let batch = lengths.len();
            let rng = SampleRng::for_step(1, 2, 0..batch);
            for ratio in [0.0, 0.5] {
                let run = |model: &Clip| {
                    let keep = model.keep_patches(ratio, &rng, &device);
                    run(model, pixels(batch, &device), keep, tokens(lengths, &device), &rng)
                };
                compare(&run(&model), &run(&double(&model)));
            }
        }
    }
}

/// With either way in which Burn keeps what the backward pass needs.
#[test]
fn both_strategies_give_the_same() {
    let device = Device::flex().autodiff();
    let model = Clip::init(&config(16, 2, 2), &device, 3);
    let rng = SampleRng::for_step(1, 2, 0..3);
    let run = |model: &Clip| {
        let device = model.device();
        run(model, pixels(3, &device), None, tokens(&[4, 2, 7], &device), &rng)
    };
    assert_eq!(run(&model).0, run(&Precision::Fp32.copy(&model)).0);
}

/// Padding in the middle of a text goes by Burn.
#[test]
fn zeros_inside_a_text_are_masked() {
    let device = Device::flex().autodiff();
    let model = Clip::init(&config(16, 2, 2), &device, 3);
    let rng = SampleRng::for_step(1, 2, 0..2);
    let run = |model: &Clip| {
        let tokens = Tensor::<2, Int>::from_data([[1, 0, 3, 0], [2, 4, 1, 1]], &device);
        run(model, pixels(2, &device), None, tokens, &rng)
    };
    compare(&run(&model), &run(&double(&model)));
}
