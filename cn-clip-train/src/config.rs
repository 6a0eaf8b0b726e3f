//! All hyper-parameters of a run, with the reference's defaults.

use std::path::PathBuf;

use cn_clip_data::forms::DEFAULT_BUFFER;
use cn_clip_model::Precision;

use crate::{
    TrainError,
    optimizer::DecayGroups,
    schedule::Decay,
    step::{StepOptions, Training},
};

/// Settings of a training run. Names follow the reference's flags.
#[derive(Debug, Clone)]
pub struct TrainConfig {
    /// Directory of all runs; `None` writes nothing.
    pub logs: Option<PathBuf>,
    /// Name of the run: its files are in `<logs>/<name>/`.
    pub name: String,
    /// Image tower: name or JSON path, for the log.
    pub vision_model: String,
    /// Text tower: name or JSON path, for the log.
    pub text_model: String,
    /// Training data, for the log.
    pub train_data: String,
    /// Validation data, for the log.
    pub val_data: Option<String>,
    /// Device, for the log.
    pub device: String,
    /// Whether the device computes in ordinary memory.
    pub host: bool,
    /// Numbers that the towers compute with; `None` chooses by the device.
    pub precision: Option<Precision>,
    /// Steps between training log lines.
    pub log_interval: u64,
    /// Whether log lines show in-batch accuracies.
    pub report_training_batch_acc: bool,
    /// Pairs of a micro-batch, on each rank.
    pub batch_size: usize,
    /// Pairs of a validation batch.
    pub valid_batch_size: usize,
    /// Micro-batches of a step.
    pub accum_freq: usize,
    /// Length of the run.
    pub length: RunLength,
    /// Optimizer steps between validations.
    pub valid_step_interval: Option<u64>,
    /// Epochs between validations.
    pub valid_epoch_interval: Option<u64>,
    /// Whether validation also tells recall over the whole set.
    pub valid_recall: bool,
    /// Tokens per text.
    pub context_length: usize,
    /// Optimizer settings.
    pub optimizer: OptimizerConfig,
    /// Steps of warm-up.
    pub warmup: u64,
    /// Learning rate after the warm-up.
    pub decay: Decay,
    /// Largest Euclidean norm of the gradient of all parameters; a longer one is scaled to it.
    pub clip_grad_norm: Option<f64>,
    /// Largest factor of the similarities, `exp` of the logit scale.
    pub logit_scale_max: f64,
    /// Epochs between `epochN.pt`; `None` keeps only the last.
    pub save_epoch_frequency: Option<u64>,
    /// Steps between `epoch_E_S.pt`.
    pub save_step_frequency: Option<u64>,
    /// How many of `epochN.pt` and `epoch_E_S.pt` are kept, the newest; `None` keeps all.
    pub keep_checkpoints: Option<usize>,
    /// Checkpoint to begin from.
    pub resume: Option<PathBuf>,
    /// Whether a run of the same name is continued when `resume` is not given.
    pub auto_resume: bool,
    /// Do not take over the optimizer state.
    pub reset_optimizer: bool,
    /// Begin at epoch 0, step 0.
    pub reset_data_offset: bool,
    /// Share of patches that FLIP masks.
    pub mask_ratio: f64,
    /// Epochs at the end of the run without masking (unmasked tuning of arXiv 2212.00794).
    pub flip_unmask_epochs: u64,
    /// Use the image tower, do not train it.
    pub freeze_vision: bool,
    /// Use the text tower and its projection, do not train them.
    pub freeze_text: bool,
    /// Last blocks of a frozen image tower that are trained all the same, with what follows them.
    pub unlocked_vision_blocks: usize,
    /// Last blocks of a frozen text tower that are trained all the same, with what follows them.
    pub unlocked_text_blocks: usize,
    /// Normalise the batch norms of a ResNet over the same micro-batch of all ranks.
    pub use_bn_sync: bool,
    /// Keep only the inputs of blocks and run each again in the backward pass.
    pub grad_checkpointing: bool,
    /// Teacher of the image tower, for the log.
    pub teacher: Option<String>,
    /// Weight of the distillation loss beside the contrastive one.
    pub kd_loss_weight: f64,
    /// Weights of the image tower to begin with, for the log.
    pub clip_weight_path: Option<PathBuf>,
    /// Weights of the text tower to begin with, for the log.
    pub bert_weight_path: Option<PathBuf>,
    /// Whether training pictures are augmented, for the log.
    pub use_augment: bool,
    /// Seed of sample order, masks and augmentation.
    pub seed: u64,
    /// Decoding threads; 0 = one per core.
    pub num_workers: usize,
    /// Decoding threads of validation; `None` = as many.
    pub valid_num_workers: Option<usize>,
    /// Replace pictures that cannot be decoded.
    pub skip_bad_images: bool,
    /// Keep pairs that share a picture or a caption out of each other's batches.
    pub exclusive_batches: bool,
    /// See each picture once in an epoch, with one of its captions.
    pub one_caption_per_image: bool,
    /// Samples of a stream among which the next is drawn.
    pub shuffle_buffer: usize,
    /// Show a progress bar if standard error is a terminal.
    pub progress: bool,
    /// Write log lines to standard error too.
    pub console: bool,
}

/// When a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunLength {
    /// After this many epochs.
    Epochs(u64),
    /// After this many steps.
    Steps(u64),
}

/// AdamW settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerConfig {
    /// Highest learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Weight decay.
    pub wd: f64,
    /// What decays.
    pub decay_groups: DecayGroups,
    /// Factor of the learning rate for every block between a parameter and the output of its
    /// tower; 1 = the same everywhere.
    pub layer_decay: f64,
}

impl OptimizerConfig {
    /// The reference's defaults for an image tower, by its name.
    pub fn for_model(vision_model: &str) -> Self {
        let (lr, beta2, eps) = match vision_model {
            "RN50" => (5e-4, 0.999, 1e-8),
            name if name.starts_with("ViT-L") => (4e-4, 0.98, 1e-6),
            _ => (5e-4, 0.98, 1e-6),
        };
        let decay_groups = DecayGroups::default();
        Self { lr, beta1: 0.9, beta2, eps, wd: 0.2, decay_groups, layer_decay: 1.0 }
    }
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            logs: Some(PathBuf::from("./logs")),
            name: "train_clip".to_string(),
            vision_model: "ViT-B-16".to_string(),
            text_model: "RoBERTa-wwm-ext-base-chinese".to_string(),
            train_data: String::new(),
            val_data: None,
            device: "cpu".to_string(),
            host: true,
            precision: Some(Precision::Fp32),
            log_interval: 10,
            report_training_batch_acc: false,
            batch_size: 64,
            valid_batch_size: 64,
            accum_freq: 1,
            length: RunLength::Epochs(32),
            valid_step_interval: None,
            valid_epoch_interval: Some(1),
            valid_recall: false,
            context_length: 52,
            optimizer: OptimizerConfig::for_model("ViT-B-16"),
            warmup: 500,
            decay: Decay::default(),
            clip_grad_norm: None,
            logit_scale_max: 100.0,
            save_epoch_frequency: Some(1),
            save_step_frequency: None,
            keep_checkpoints: None,
            resume: None,
            auto_resume: true,
            reset_optimizer: false,
            reset_data_offset: false,
            mask_ratio: 0.0,
            flip_unmask_epochs: 0,
            freeze_vision: false,
            freeze_text: false,
            unlocked_vision_blocks: 0,
            unlocked_text_blocks: 0,
            use_bn_sync: false,
            grad_checkpointing: false,
            teacher: None,
            kd_loss_weight: 0.5,
            clip_weight_path: None,
            bert_weight_path: None,
            use_augment: false,
            seed: 123,
            num_workers: 0,
            valid_num_workers: None,
            skip_bad_images: false,
            exclusive_batches: false,
            one_caption_per_image: false,
            shuffle_buffer: DEFAULT_BUFFER,
            progress: false,
            console: true,
        }
    }
}

impl TrainConfig {
    /// Refuses settings that make no sense, by the flag that sets them.
    pub fn validate(
        &self,
        pairs: usize,
        world: usize,
        max_positions: usize,
    ) -> Result<(), TrainError> {
        let fail = |reason: String| Err(TrainError::Config(reason));
        let positive = [
            (self.batch_size as u64, "--batch-size"),
            (self.valid_batch_size as u64, "--valid-batch-size"),
            (self.accum_freq as u64, "--accum-freq"),
            (self.log_interval, "--log-interval"),
            (self.shuffle_buffer as u64, "--shuffle-buffer"),
        ];
        if let Some((_, flag)) = positive.iter().find(|(value, _)| *value == 0) {
            return fail(format!("{flag} must be at least 1"));
        }
        if pairs == 0 {
            return fail(format!(
                "--train-data {} holds no pairs: its texts name no pictures; build it again",
                self.train_data
            ));
        }
        let global = self.batch_size.saturating_mul(self.accum_freq).saturating_mul(world);
        let ranks = if world > 1 { " times ranks" } else { "" };
        if global > pairs {
            return fail(format!(
                "a step takes {global} pairs (--batch-size times --accum-freq{ranks}) but {} holds only \
                 {pairs}: the same pairs would be each other's negatives; lower --batch-size",
                self.train_data
            ));
        }
        if self.context_length < 2 || self.context_length > max_positions {
            return fail(format!(
                "--context-length must be between 2 and {max_positions}, the positions of the \
                 text tower"
            ));
        }
        if !(0.0..1.0).contains(&self.mask_ratio) {
            return fail("--mask-ratio must be at least 0 and below 1".to_string());
        }
        for (frozen, blocks, name) in [
            (self.freeze_vision, self.unlocked_vision_blocks, "vision"),
            (self.freeze_text, self.unlocked_text_blocks, "text"),
        ] {
            if blocks > 0 && !frozen {
                return fail(format!(
                    "--unlocked-{name}-blocks says what is trained of a frozen tower: add \
                     --freeze-{name}"
                ));
            }
        }
        let options = self.step_options();
        if options.vision == Training::Frozen && options.text == Training::Frozen {
            return fail("--freeze-vision and --freeze-text leave nothing to train".to_string());
        }
        if !(self.logit_scale_max.is_finite() && self.logit_scale_max >= 1.0) {
            return fail("--logit-scale-max must be a number of at least 1".to_string());
        }
        if !(self.kd_loss_weight.is_finite() && self.kd_loss_weight >= 0.0) {
            return fail("--kd-loss-weight must be a number that is not negative".to_string());
        }
        if !(self.optimizer.layer_decay > 0.0 && self.optimizer.layer_decay <= 1.0) {
            return fail("--layer-decay must be above 0 and at most 1".to_string());
        }
        if self.clip_grad_norm.is_some_and(|norm| !norm.is_finite() || norm <= 0.0) {
            return fail("--clip-grad-norm must be a number above 0".to_string());
        }
        let rates = [
            (self.optimizer.lr, "--lr"),
            (self.optimizer.eps, "--eps"),
            (self.optimizer.wd, "--wd"),
        ];
        if let Some((_, flag)) = rates.iter().find(|(value, _)| !value.is_finite() || *value < 0.0)
        {
            return fail(format!("{flag} must be a number that is not negative"));
        }
        if [self.optimizer.beta1, self.optimizer.beta2].iter().any(|b| !(0.0..1.0).contains(b)) {
            return fail("--beta1 and --beta2 must be at least 0 and below 1".to_string());
        }
        Ok(())
    }

    /// What steps do besides the default.
    pub fn step_options(&self) -> StepOptions {
        let training = |frozen: bool, blocks: usize| match (frozen, blocks) {
            (false, _) => Training::Whole,
            (true, 0) => Training::Frozen,
            (true, blocks) => Training::Last(blocks),
        };
        StepOptions {
            mask_ratio: self.mask_ratio,
            vision: training(self.freeze_vision, self.unlocked_vision_blocks),
            text: training(self.freeze_text, self.unlocked_text_blocks),
            checkpointing: self.grad_checkpointing,
            sync_norm: self.use_bn_sync,
            precision: self.precision.unwrap_or_default(),
            loss_scale: None,
            // Checkpointing saves memory, and two towers at once have two blocks in it.
            concurrent_towers: self.host && !self.grad_checkpointing,
        }
    }

    /// Directory of the run.
    pub fn directory(&self) -> Option<PathBuf> {
        self.logs.as_ref().map(|logs| logs.join(&self.name))
    }

    /// Directory of its checkpoints.
    pub fn checkpoints(&self) -> Option<PathBuf> {
        self.directory().map(|directory| directory.join("checkpoints"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_go_by_model() {
        assert_eq!(OptimizerConfig::for_model("RN50").eps, 1e-8);
        assert_eq!(OptimizerConfig::for_model("ViT-L-14-336").lr, 4e-4);
        assert_eq!(OptimizerConfig::for_model("ViT-H-14").beta2, 0.98);
    }

    #[test]
    fn checkpointed_towers_take_turns() {
        let concurrent = |host, grad_checkpointing| {
            let config = TrainConfig { host, grad_checkpointing, ..Default::default() };
            config.step_options().concurrent_towers
        };
        assert!(concurrent(true, false));
        assert!(!concurrent(true, true) && !concurrent(false, false));
    }

    #[test]
    fn senseless_settings_name_their_flag() {
        let check = |change: fn(&mut TrainConfig)| {
            let mut config = TrainConfig { batch_size: 8, ..Default::default() };
            change(&mut config);
            config.validate(100, 1, 512).unwrap_err().to_string()
        };
        assert!(check(|c| c.batch_size = 0).contains("--batch-size"));
        assert!(check(|c| c.batch_size = 101).contains("only 100"));
        // Their product is a multiple of the numbers that an integer can hold.
        let huge = check(|c| (c.batch_size, c.accum_freq) = (1 << 32, 1 << 32));
        assert!(huge.contains("only 100"), "{huge}");
        assert!(check(|c| c.context_length = 513).contains("--context-length"));
        assert!(check(|c| c.mask_ratio = 1.0).contains("--mask-ratio"));
        assert!(check(|c| c.optimizer.lr = f64::NAN).contains("--lr"));
        assert!(check(|c| c.log_interval = 0).contains("--log-interval"));
        assert!(check(|c| c.shuffle_buffer = 0).contains("--shuffle-buffer"));
        assert!(check(|c| c.unlocked_vision_blocks = 1).contains("--freeze-vision"));
        assert!(check(|c| c.unlocked_text_blocks = 1).contains("--freeze-text"));
        assert!(check(|c| (c.freeze_vision, c.freeze_text) = (true, true)).contains("nothing"));
        assert!(check(|c| c.logit_scale_max = 0.5).contains("--logit-scale-max"));
        assert!(check(|c| c.kd_loss_weight = f64::INFINITY).contains("--kd-loss-weight"));
        assert!(check(|c| c.optimizer.layer_decay = 0.0).contains("--layer-decay"));
        assert!(check(|c| c.clip_grad_norm = Some(0.0)).contains("--clip-grad-norm"));
        assert!(check(|c| c.optimizer.beta2 = 1.0).contains("--beta2"));
    }
}
