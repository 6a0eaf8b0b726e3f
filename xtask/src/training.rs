//! A training step as `cn-clip train` does it, without the files.

use anyhow::Context;
use burn::module::Module;
use cn_clip_model::{Clip, ClipConfig, checkpoint::AdamWSettings};
use cn_clip_train::{
    optimizer::{AdamW, DecayGroups},
    step::{MicroBatch, Step, StepOptions},
};

const SETTINGS: AdamWSettings = AdamWSettings {
    learning_rate: 1e-5,
    beta1: 0.9,
    beta2: 0.98,
    epsilon: 1e-6,
    weight_decay: 0.2,
};

/// A model in training.
pub struct Trainer {
    /// Not there after a step that failed.
    model: Option<Clip>,
    optimizer: AdamW,
    options: StepOptions,
    steps: u64,
}

impl Trainer {
    /// `model` lies on an autodiff device; `host` tells whether that is the processor.
    pub fn new(model: Clip, options: StepOptions, host: bool) -> Self {
        let optimizer = AdamW::new(&model, SETTINGS, DecayGroups::default(), host);
        Self { model: Some(model), optimizer, options, steps: 0 }
    }

    /// Forward, backward and AdamW; returns the loss.
    pub fn step(&mut self, batch: &MicroBatch) -> anyhow::Result<f32> {
        let model = self.model.take().context("an earlier step failed")?;
        let step = Step::local(self.options, 0);
        let absorb = |part| self.optimizer.absorb(&model, part, 1.0, false);
        let figures = step.run_into(&model, std::slice::from_ref(batch), self.steps, &absorb)?;
        let model = self.optimizer.apply(model, SETTINGS.learning_rate);
        // Waits for the device.
        model.valid().logit_scale.val().into_data();
        self.model = Some(model);
        self.steps += 1;
        Ok(figures.loss)
    }
}

/// Uniform pixels and token ids, none of which is padding.
pub fn random_batch(config: &ClipConfig, size: usize, context_length: usize) -> MicroBatch {
    let resolution = config.vision.image_resolution;
    let words = (config.text.vocab_size as u32 - 1).clamp(1, 20_000);
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    let (values, ids) = (size * 3 * resolution * resolution, size * context_length);
    MicroBatch {
        pixels: (0..values).map(|_| next() as f32 / (1 << 23) as f32 - 1.0).collect(),
        tokens: (0..ids).map(|_| 1 + (next() % words) as i32).collect(),
        size,
        resolution,
        context_length,
    }
}

/// The options of a step that trains both towers whole.
pub fn options(mask_ratio: f64, checkpointing: bool, concurrent_towers: bool) -> StepOptions {
    StepOptions { mask_ratio, checkpointing, concurrent_towers, ..StepOptions::default() }
}
