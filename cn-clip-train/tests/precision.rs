//! Steps in 16 bits come near those in 32, and fit the rest of the machinery.

#![allow(clippy::unwrap_used)]

#[path = "../../tests/support/golden.rs"]
mod golden;

use std::collections::HashMap;

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId},
    tensor::{DType, Device, Tensor, TensorData},
};
use cn_clip_model::{
    Clip, ClipConfig, Precision,
    checkpoint::{self, Checkpoint, parameters},
};
use cn_clip_train::{
    optimizer::gradient_norm,
    step::{MicroBatch, Step, StepOptions, StepOutput},
};
use golden::{Golden, fixture};

/// The ResNet sees 4 x 4 cells at its end: with one cell batch norm has five numbers to go by, and
/// makes much of rounding.
const RESNET_RESOLUTION: usize = 128;

fn load(variant: &str) -> Clip {
    let text = std::fs::read(fixture(&format!("model/{variant}/config.json"))).unwrap();
    let mut model: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let mut model = model["model_config"].take();
    model.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    let mut config: ClipConfig = serde_json::from_value(model).unwrap();
    if variant == "rn_tiny" {
        config.vision.image_resolution = RESNET_RESOLUTION;
    }
    let file = fixture(&format!("model/{variant}/checkpoint_fp16.pt"));
    let model = Clip::init(&config, &Device::default().autodiff(), 0);
    checkpoint::load(model, &Checkpoint::open(file).unwrap()).unwrap()
}

fn batch(variant: &str, from: usize, to: usize) -> MicroBatch {
    let golden = Golden::open(&format!("model/{variant}/forward_eval.safetensors"));
    let (pixels, tokens) = (golden.get("pixels"), golden.get("tokens"));
    let side = pixels.shape[2];
    let resolution = if variant == "rn_tiny" { RESNET_RESOLUTION } else { side };
    let planes = pixels.values[from * 3 * side * side..to * 3 * side * side].chunks(side * side);
    // Larger by repetition, so that every cell sees other pixels.
    let pixels = planes.flat_map(|plane| {
        (0..resolution * resolution).map(|at| {
            let (row, column) = (at / resolution, at % resolution);
            plane[(row + column / side * 7) % side * side + (column + row / side * 5) % side]
        })
    });
    MicroBatch {
        pixels: pixels.collect(),
        tokens: tokens.ints()[from * 52..to * 52].to_vec(),
        size: to - from,
        resolution,
        context_length: 52,
    }
}

fn gradients(model: &Clip, output: &StepOutput) -> HashMap<String, Vec<f32>> {
    struct Reader<'a>(&'a StepOutput, HashMap<ParamId, Vec<f32>>);
    impl ModuleVisitor for Reader<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.0.gradients.get::<D>(param.id) {
                assert_eq!(gradient.dtype(), DType::F32);
                self.1.insert(param.id, gradient.into_data().try_into_vec().unwrap());
            }
        }
    }
    let mut reader = Reader(output, HashMap::new());
    model.visit(&mut reader);
    let named = |spec: &checkpoint::ParamSpec| Some((spec.key.clone(), reader.1.remove(&spec.id)?));
    parameters(model).iter().filter_map(named).collect()
}

/// Norm of the difference of all gradients over that of the expected ones.
fn distance(ours: &HashMap<String, Vec<f32>>, expected: &HashMap<String, Vec<f32>>) -> f64 {
    assert_eq!(ours.len(), expected.len());
    let square = |x: f32| f64::from(x).powi(2);
    let (mut difference, mut norm) = (0.0, 0.0);
    for (key, expected) in expected {
        let pairs = ours[key].iter().zip(expected);
        difference += pairs.map(|(a, b)| square(a - b)).sum::<f64>();
        norm += expected.iter().map(|b| square(*b)).sum::<f64>();
    }
    (difference / norm).sqrt()
}

fn run(model: &Clip, batches: &[MicroBatch], options: StepOptions) -> StepOutput {
    Step::local(options, 3).run(model, batches, 0).unwrap()
}

/// The model with every weight off by up to the rounding error of a precision.
fn shaken(model: &Clip, precision: Precision) -> Clip {
    struct Shaker(f32);
    impl ModuleMapper for Shaker {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|value| {
                let shape = value.shape();
                let values = value.into_data().iter::<f32>().collect::<Vec<_>>().into_iter();
                let noise = |index: usize| (index as u32).wrapping_mul(2_654_435_761) as f32;
                let shaken = values.enumerate().map(|(index, value)| {
                    value * (1.0 + self.0 * (noise(index) / u32::MAX as f32 * 2.0 - 1.0))
                });
                let data = TensorData::new(shaken.collect(), shape);
                Tensor::from_data(data, &Device::default().autodiff()).require_grad()
            })
        }
    }
    let bits = if precision == Precision::Bf16 { 8 } else { 11 };
    model.clone().map(&mut Shaker(0.5f32.powi(bits)))
}

#[test]
fn sixteen_bits_come_near_thirty_two() {
    for variant in ["vit_tiny", "rn_tiny"] {
        let whole = [batch(variant, 0, 5)];
        let options = StepOptions::default();
        let model = load(variant);
        let expected = run(&model, &whole, options);
        let expected_gradients = gradients(&model, &expected);
        let statistics = model.running_statistics();
        // fp16 rounds eight times finer than bf16.
        for precision in [Precision::Bf16, Precision::Fp16] {
            // The measure is what errors of that size in the weights alone do: through the batch
            // norms of the ResNet a small difference becomes a large one.
            let model = shaken(&load(variant), precision);
            let allowed = gradients(&model, &run(&model, &whole, options));
            let allowed = 5.0 * distance(&allowed, &expected_gradients);
            let model = load(variant);
            let scale = (precision == Precision::Fp16).then_some(1024.0);
            let options = StepOptions { precision, loss_scale: scale, ..options };
            let output = run(&model, &whole, options);
            let error = distance(&gradients(&model, &output), &expected_gradients);
            assert!(error > 1e-5, "{variant} {precision}: {error:e}");
            assert!(error < allowed, "{variant} {precision}: {error:e} {allowed:e}");
            if variant == "vit_tiny" {
                let tolerance = if precision == Precision::Bf16 { 8e-2 } else { 1e-2 };
                assert!(error < tolerance, "{precision}: {error:e}");
            }
            assert!(
                (output.figures.loss - expected.figures.loss).abs() < 2e-2 * expected.figures.loss,
                "{precision}"
            );
            // Batch norm has moved on the model itself, in 32 bits.
            let moved = model.running_statistics();
            let near = |(a, b): (&f32, &f32)| (a - b).abs() < 2e-2 * b.abs().max(1.0);
            assert!(moved.iter().zip(&statistics).all(near), "{variant} {precision}");
        }
    }
}

#[test]
fn micro_batches_and_checkpointing_agree_in_sixteen_bits() {
    let model = load("vit_tiny");
    let precision = Precision::Bf16;
    let options = StepOptions { precision, mask_ratio: 0.25, ..StepOptions::default() };
    let expected = run(&model, &[batch("vit_tiny", 0, 4)], options);
    let expected = gradients(&model, &expected);
    let halves = [batch("vit_tiny", 0, 2), batch("vit_tiny", 2, 4)];
    let checkpointing = StepOptions { checkpointing: true, ..options };
    for (batches, options) in [(&halves[..], options), (&halves, checkpointing)] {
        let error = distance(&gradients(&model, &run(&model, batches, options)), &expected);
        assert!(error < 2e-2, "{error:e}");
    }
}

#[test]
fn a_loss_scale_is_taken_out_again_and_overflow_shows() {
    let model = load("vit_tiny");
    let with = |scale: f64| {
        let precision = Precision::Fp16;
        let options = StepOptions { precision, loss_scale: Some(scale), ..StepOptions::default() };
        run(&model, &[batch("vit_tiny", 0, 5)], options)
    };
    let error = distance(&gradients(&model, &with(256.0)), &gradients(&model, &with(4096.0)));
    assert!(error < 5e-3, "{error:e}");
    assert!(!gradient_norm(&model, &with(1e9).gradients).is_finite());
}
