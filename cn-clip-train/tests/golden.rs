//! Gradients and optimizer steps against the recordings of the Python program.

#![allow(clippy::unwrap_used)]

#[path = "../../tests/support/golden.rs"]
mod golden;

#[path = "../../tests/support/steps.rs"]
mod steps;
#[path = "../../tests/support/towers.rs"]
mod towers;

use burn::tensor::{Device, Tensor, TensorData};
use cn_clip_model::{Clip, Precision, SampleRng};
use cn_clip_train::{
    distill::Teacher,
    step::{MicroBatch, Step, StepOptions, Training},
};
use golden::{Errors, Golden, has_zero_gradient, relative_error};
use steps::{compare_gradients, gradients, recorded_batch, run_step, values};

const GRADIENT_TOLERANCE: f32 = 1e-3;
const LOSS_TOLERANCE: f32 = 1e-4;

/// The recorded model on the processor, dropout as given.
fn load(variant: &str, dropout: f64) -> Clip {
    let config = towers::config_with(variant, dropout);
    towers::load_with(&config, variant, &Device::default().autodiff())
}

/// Gradients to their tolerance, all else to that of the loss.
fn check(errors: &Errors) {
    for (name, error) in &errors.found {
        let gradient = name.starts_with("grad.");
        let tolerance = if gradient { GRADIENT_TOLERANCE } else { LOSS_TOLERANCE };
        assert!(*error <= tolerance, "{name}: {error:e}");
    }
}

#[test]
fn vit_gradients() {
    let device = Device::default();
    check(&steps::step("vit_tiny", &device, StepOptions::default()));
    let checkpointing = StepOptions { checkpointing: true, ..StepOptions::default() };
    check(&steps::step("vit_tiny", &device, checkpointing));
}

#[test]
fn resnet_gradients_and_running_statistics() {
    let device = Device::default();
    check(&steps::step("rn_tiny", &device, StepOptions::default()));
    let checkpointing = StepOptions { checkpointing: true, ..StepOptions::default() };
    check(&steps::step("rn_tiny", &device, checkpointing));
}

#[test]
fn the_autodiff_loss_has_the_same_gradients() {
    for variant in ["vit_tiny", "rn_tiny"] {
        check(&steps::autodiff_loss(variant, &Device::default(), Precision::Fp32, false));
    }
}

#[test]
fn masked_patches_give_the_recorded_gradients() {
    check(&steps::autodiff_loss("vit_tiny", &Device::default(), Precision::Fp32, true));
}

#[test]
fn recorded_adamw_steps_of_the_vit() {
    steps::adamw("vit_tiny", &Device::default(), true).check(1e-4);
    steps::adamw("vit_tiny", &Device::default(), false).check(1e-4);
}

#[test]
fn recorded_adamw_steps_of_the_resnet() {
    steps::adamw("rn_tiny", &Device::default(), true).check(1e-4);
}

#[test]
fn a_batch_may_be_cut_into_micro_batches() {
    let model = load("vit_tiny", 0.1);
    let whole = recorded_batch("vit_tiny");
    let cut = |from: usize, to: usize| MicroBatch {
        pixels: whole.pixels[from * 3 * 32 * 32..to * 3 * 32 * 32].to_vec(),
        tokens: whole.tokens[from * 52..to * 52].to_vec(),
        size: to - from,
        ..whole.clone()
    };
    let options = StepOptions { mask_ratio: 0.5, ..Default::default() };
    let expected = run_step(&model, std::slice::from_ref(&whole), options);
    let expected_gradients = gradients(&model, &expected.gradients);
    for cuts in [vec![0, 2, 5], vec![0, 1, 2, 3, 4, 5]] {
        let parts: Vec<MicroBatch> = cuts.windows(2).map(|c| cut(c[0], c[1])).collect();
        let output = run_step(&model, &parts, options);
        assert!((output.figures.loss - expected.figures.loss).abs() < 1e-6 * expected.figures.loss);
        for (key, values) in gradients(&model, &output.gradients) {
            let error = relative_error(&values, &expected_gradients[&key]);
            assert!(error < 1e-5 || has_zero_gradient(&key), "{key}: {error}");
        }
    }
}

#[test]
fn a_frozen_image_tower_gets_no_gradients() {
    for variant in ["vit_tiny", "rn_tiny"] {
        let golden = Golden::open(&format!("model/{variant}/grads_train.safetensors"));
        let model = load(variant, 0.0);
        let before = values(&model);
        let options = StepOptions { vision: Training::Frozen, ..Default::default() };
        let output = run_step(&model, &[recorded_batch(variant)], options);
        let found = gradients(&model, &output.gradients);
        assert!(found.keys().all(|key| !key.starts_with("visual.")));
        if variant == "vit_tiny" {
            check(&compare_gradients(&golden, "grad.bert", &found));
        }
        let after = values(&model);
        assert!(before.iter().all(|(key, value)| after[key] == *value), "batch norm stays");
    }
}

#[test]
fn towers_at_the_same_time_give_the_same_gradients() {
    for variant in ["vit_tiny", "rn_tiny"] {
        let (model, batch) = (load(variant, 0.1), [recorded_batch(variant)]);
        let values = |concurrent_towers| {
            let options = StepOptions { concurrent_towers, ..Default::default() };
            let output = run_step(&model, &batch, options);
            (output.figures.loss, gradients(&model, &output.gradients))
        };
        assert_eq!(values(true), values(false));
    }
}

#[test]
fn masks_repeat_with_the_seed() {
    let model = load("vit_tiny", 0.3);
    let batch = [recorded_batch("vit_tiny")];
    let loss = |seed, at| {
        Step::local(StepOptions::default(), seed).run(&model, &batch, at).unwrap().figures.loss
    };
    assert_eq!(loss(1, 5), loss(1, 5));
    assert_ne!(loss(1, 5), loss(1, 6));
    assert_ne!(loss(1, 5), loss(2, 5));
    let rng = SampleRng::for_step(1, 5, 0..3);
    assert_eq!(rng.len(), 3);
}

/// Features that were recorded of a teacher.
struct Recording {
    features: Vec<f32>,
    width: usize,
    weight: f64,
    /// Rows handed out.
    given: std::cell::Cell<usize>,
}

impl Teacher for Recording {
    fn features(&self, batch: &MicroBatch) -> Tensor<2> {
        let first = self.given.replace(self.given.get() + batch.size) * self.width;
        let rows = self.features[first..first + batch.size * self.width].to_vec();
        let data = TensorData::new(rows, [batch.size, self.width]);
        Tensor::from_data(data, &Device::default())
    }

    fn weight(&self) -> f64 {
        self.weight
    }
}

#[test]
fn distillation_gives_the_recorded_losses_and_gradients() {
    for variant in ["vit_tiny", "rn_tiny"] {
        let golden = Golden::open(&format!("model/{variant}/distillation.safetensors"));
        let features = golden.get("teacher_features");
        let weight = f64::from(golden.get("kd_loss_weight").values[0]);
        let model = load(variant, 0.0);
        let whole = recorded_batch(variant);
        let size = whole.pixels.len() / whole.size;
        let cut = |from: usize, to: usize| MicroBatch {
            pixels: whole.pixels[from * size..to * size].to_vec(),
            tokens: whole.tokens[from * 52..to * 52].to_vec(),
            size: to - from,
            ..whole.clone()
        };
        // Batch norm sees a difference between a batch and its parts.
        let cuts =
            if variant == "vit_tiny" { vec![vec![0, 5], vec![0, 2, 5]] } else { vec![vec![0, 5]] };
        for cuts in cuts {
            let teacher = Recording {
                features: features.values.clone(),
                width: features.shape[1],
                weight,
                given: 0.into(),
            };
            let parts: Vec<MicroBatch> = cuts.windows(2).map(|c| cut(c[0], c[1])).collect();
            let local = Step::local(StepOptions::default(), 1);
            let output = Step { teacher: Some(&teacher), ..local }.run(&model, &parts, 0).unwrap();
            let weighted = output.figures.distillation.unwrap();
            golden.check("kd_loss", &[weighted / weight as f32], 1e-4);
            golden.check("total_loss", &[output.figures.loss], 1e-4);
            check(&compare_gradients(&golden, "grad.", &gradients(&model, &output.gradients)));
        }
    }
}
