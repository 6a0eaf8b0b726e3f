//! What the demonstration trains, and for how long.

use std::path::Path;

use cn_clip_data::augment::AffineJitterConfig;
use cn_clip_train::{OptimizerConfig, RunLength, TrainConfig, optimizer::DecayGroups};

/// Image tower of the demonstration, in the official form.
pub const VISION: &str = include_str!("../../../assets/demo/vision.json");
/// Text tower of the demonstration, in the official form.
pub const TEXT: &str = include_str!("../../../assets/demo/text.json");
/// Tokens per text: the longest caption of the data has fewer.
pub const CONTEXT_LENGTH: usize = 24;
/// Name of the run.
pub const RUN: &str = "emoji";

/// Steps of the whole demonstration.
pub const FULL_STEPS: u64 = 2800;
/// Steps of `--quick`.
pub const QUICK_STEPS: u64 = 300;

/// Hyper-parameters of the run whose files go to `<directory>/logs/emoji`.
pub fn training(directory: &Path, steps: u64) -> TrainConfig {
    TrainConfig {
        logs: Some(directory.join("logs")),
        name: RUN.to_string(),
        batch_size: 128,
        valid_batch_size: 256,
        length: RunLength::Steps(steps),
        valid_step_interval: Some((steps / 5).max(1)),
        valid_epoch_interval: None,
        context_length: CONTEXT_LENGTH,
        optimizer: OptimizerConfig {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.98,
            eps: 1e-6,
            wd: 0.1,
            decay_groups: DecayGroups::Correct,
            layer_decay: 1.0,
        },
        warmup: steps / 20,
        save_epoch_frequency: None,
        auto_resume: false,
        exclusive_batches: true,
        ..TrainConfig::default()
    }
}

/// Augmentation of the training pictures: drawings of one thing differ in place, size, tilt and
/// colours.
pub fn jitter() -> AffineJitterConfig {
    AffineJitterConfig {
        max_shift: 0.1,
        scale: (0.7, 1.15),
        max_degrees: 15.0,
        brightness: 0.3,
        contrast: 0.3,
        saturation: 0.3,
        hue: 0.05,
        grayscale: 0.1,
        horizontal_flip: 0.5,
        erasing: None,
        ..AffineJitterConfig::default()
    }
}
