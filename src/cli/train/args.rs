//! Flags of `cn-clip train`: those of `cn_clip/training/params.py`, and more.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use cn_clip_data::forms::DEFAULT_BUFFER;
use cn_clip_model::DeviceSpec;

use crate::cli::{device::DeviceArg, model::TowerArgs};

/// Flags of `cn-clip train`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Data")]
pub struct TrainArgs {
    /// Training pairs: the LMDB directory of a split, the path of <split>_texts.jsonl, a csv or jsonl
    /// table of picture paths, tar shards or parquet files; also several with commas, globs or
    /// ranges such as shard-{000..099}.tar
    #[arg(long, alias = "train_data", value_name = "DATA")]
    pub train_data: String,
    /// Validation pairs, likewise; none = no validation
    #[arg(long, alias = "val_data", value_name = "DATA")]
    pub val_data: Option<String>,
    /// Decoding threads; 0 = one per core
    #[arg(long, alias = "num_workers", default_value_t = 0)]
    pub num_workers: usize,
    /// Decoding threads of validation [default: --num-workers]
    #[arg(long, alias = "valid_num_workers", value_name = "N")]
    pub valid_num_workers: Option<usize>,
    /// Tokens per text, [CLS] and [SEP] included
    #[arg(long, alias = "context_length", default_value_t = 52)]
    pub context_length: usize,
    /// Augment pictures: random resized crop, flip, AutoAugment
    #[arg(long, alias = "use_augment")]
    pub use_augment: bool,
    /// Leave out pictures that cannot be decoded, with a warning, instead of stopping
    #[arg(long, alias = "skip_bad_images")]
    pub skip_bad_images: bool,
    /// Keep pairs that share a picture or a caption out of each other's batches, where they would
    /// count as negatives
    #[arg(long, alias = "exclusive_batches", alias = "dedup-batch", alias = "dedup_batch")]
    pub exclusive_batches: bool,
    /// See each picture once in an epoch, with one of its captions
    #[arg(long, alias = "one_caption_per_image")]
    pub one_caption_per_image: bool,
    /// Samples of tar or parquet shards among which the next is drawn
    #[arg(long, alias = "shuffle_buffer", value_name = "N", default_value_t = DEFAULT_BUFFER)]
    pub shuffle_buffer: usize,

    #[command(flatten, next_help_heading = "Model")]
    pub towers: TowerArgs,
    #[command(flatten)]
    pub device: DeviceArg,
    /// Devices to train on together, one rank each, such as cuda:0,cuda:1; under mpirun, the
    /// devices of the ranks of a machine
    #[arg(long, value_name = "DEVICES", value_delimiter = ',', help_heading = "Model")]
    pub devices: Vec<DeviceSpec>,
    /// Numbers to compute with; parameters, their gradients and the loss stay fp32
    #[arg(long, value_enum, default_value = "amp", help_heading = "Model")]
    pub precision: PrecisionArg,
    /// Share of patches that FLIP masks
    #[arg(long, alias = "mask_ratio", default_value_t = 0.0, help_heading = "Model")]
    pub mask_ratio: f64,
    /// Epochs at the end of the run without masking
    #[arg(long, alias = "flip_unmask_epochs", default_value_t = 0, help_heading = "Model")]
    pub flip_unmask_epochs: u64,
    /// Use the image tower, do not train it
    #[arg(long, alias = "freeze_vision", help_heading = "Model")]
    pub freeze_vision: bool,
    /// Use the text tower and its projection, do not train them
    #[arg(long, alias = "freeze_text", help_heading = "Model")]
    pub freeze_text: bool,
    /// Train the last N blocks of a frozen image tower all the same, and what follows them
    #[arg(
        long,
        alias = "unlocked_vision_blocks",
        value_name = "N",
        default_value_t = 0,
        help_heading = "Model"
    )]
    pub unlocked_vision_blocks: usize,
    /// Train the last N blocks of a frozen text tower all the same, and what follows them
    #[arg(
        long,
        alias = "unlocked_text_blocks",
        value_name = "N",
        default_value_t = 0,
        help_heading = "Model"
    )]
    pub unlocked_text_blocks: usize,
    /// Compute activations twice instead of keeping them, one tower after the other: less memory,
    /// more time
    #[arg(long, alias = "grad_checkpointing", help_heading = "Model")]
    pub grad_checkpointing: bool,
    /// Batch norms of a ResNet over the same micro-batch of all ranks; its image tower is
    /// checkpointed then
    #[arg(long, alias = "use_bn_sync", help_heading = "Model")]
    pub use_bn_sync: bool,

    /// Image tower whose features the image tower follows, with its weights from
    /// --teacher-checkpoint or, for a published name, from the cache folder
    #[arg(
        long,
        alias = "teacher-model-name",
        alias = "teacher_model_name",
        value_name = "NAME|JSON",
        help_heading = "Distillation"
    )]
    pub teacher_model: Option<String>,
    /// Checkpoint that holds the teacher
    #[arg(
        long,
        alias = "teacher_checkpoint",
        value_name = "FILE",
        requires = "teacher_model",
        help_heading = "Distillation"
    )]
    pub teacher_checkpoint: Option<PathBuf>,
    /// Weight of the distillation loss
    #[arg(long, alias = "kd_loss_weight", default_value_t = 0.5, help_heading = "Distillation")]
    pub kd_loss_weight: f64,

    /// Weights of the image tower and the logit scale to begin with, without a run to resume
    #[arg(long, alias = "clip_weight_path", value_name = "FILE", help_heading = "Initial weights")]
    pub clip_weight_path: Option<PathBuf>,
    /// Weights of the text tower to begin with: a BERT
    #[arg(long, alias = "bert_weight_path", value_name = "FILE", help_heading = "Initial weights")]
    pub bert_weight_path: Option<PathBuf>,

    /// Pairs of a batch, on each device
    #[arg(long, alias = "batch_size", default_value_t = 64, help_heading = "Optimisation")]
    pub batch_size: usize,
    /// Batches of a step: the gradient is that of one batch of all their pairs
    #[arg(long, alias = "accum_freq", default_value_t = 1, help_heading = "Optimisation")]
    pub accum_freq: usize,
    /// Steps; overrides --max-epochs
    #[arg(long, alias = "max_steps", help_heading = "Optimisation")]
    pub max_steps: Option<u64>,
    /// Epochs
    #[arg(long, alias = "max_epochs", default_value_t = 32, help_heading = "Optimisation")]
    pub max_epochs: u64,
    /// Highest learning rate [default: by image tower]
    #[arg(long, help_heading = "Optimisation")]
    pub lr: Option<f64>,
    /// AdamW's first beta [default: by image tower]
    #[arg(long, help_heading = "Optimisation")]
    pub beta1: Option<f64>,
    /// AdamW's second beta [default: by image tower]
    #[arg(long, help_heading = "Optimisation")]
    pub beta2: Option<f64>,
    /// AdamW's epsilon [default: by image tower]
    #[arg(long, help_heading = "Optimisation")]
    pub eps: Option<f64>,
    /// Weight decay
    #[arg(long, default_value_t = 0.2, help_heading = "Optimisation")]
    pub wd: f64,
    /// What weight decay leaves alone
    #[arg(
        long,
        alias = "decay_groups",
        value_enum,
        default_value = "correct",
        help_heading = "Optimisation"
    )]
    pub decay_groups: DecayGroupsArg,
    /// Factor of the learning rate for every block between a parameter and the output of its tower
    #[arg(long, alias = "layer_decay", default_value_t = 1.0, help_heading = "Optimisation")]
    pub layer_decay: f64,
    /// Steps of warm-up
    #[arg(long, default_value_t = 500, help_heading = "Optimisation")]
    pub warmup: u64,
    /// Learning rate after the warm-up
    #[arg(
        long,
        alias = "lr_scheduler",
        value_enum,
        default_value = "cosine",
        help_heading = "Optimisation"
    )]
    pub lr_scheduler: LrScheduler,
    /// Train with --lr from the first step to the last, without warm-up
    #[arg(long, alias = "skip_scheduler", help_heading = "Optimisation")]
    pub skip_scheduler: bool,
    /// Scale gradients whose norm over all parameters is larger to this norm
    #[arg(long, alias = "clip_grad_norm", value_name = "NORM", help_heading = "Optimisation")]
    pub clip_grad_norm: Option<f64>,
    /// Largest factor of the similarities
    #[arg(long, alias = "logit_scale_max", default_value_t = 100.0, help_heading = "Optimisation")]
    pub logit_scale_max: f64,
    /// Seed of initial weights, sample order, masks and augmentation
    #[arg(long, default_value_t = 123, help_heading = "Optimisation")]
    pub seed: u64,

    /// Pairs of a validation batch
    #[arg(long, alias = "valid_batch_size", default_value_t = 64, help_heading = "Validation")]
    pub valid_batch_size: usize,
    /// Steps between validations; 0 or less = never
    #[arg(
        long,
        alias = "valid_step_interval",
        allow_negative_numbers = true,
        help_heading = "Validation"
    )]
    pub valid_step_interval: Option<i64>,
    /// Epochs between validations; 0 or less = never
    #[arg(
        long,
        alias = "valid_epoch_interval",
        default_value_t = 1,
        allow_negative_numbers = true,
        help_heading = "Validation"
    )]
    pub valid_epoch_interval: i64,

    /// Also tell recall over the whole validation split
    #[arg(long, alias = "valid_recall", help_heading = "Validation")]
    pub valid_recall: bool,

    /// Directory of all runs; "none" saves nothing
    #[arg(long, default_value = "./logs", help_heading = "Logging and saving")]
    pub logs: String,
    /// Name of the run: its files are in <LOGS>/<NAME>/
    #[arg(long, default_value = "train_clip", help_heading = "Logging and saving")]
    pub name: String,
    /// Steps between training log lines
    #[arg(long, alias = "log_interval", default_value_t = 10, help_heading = "Logging and saving")]
    pub log_interval: u64,
    /// Show in-batch accuracies in training log lines
    #[arg(long, alias = "report_training_batch_acc", help_heading = "Logging and saving")]
    pub report_training_batch_acc: bool,
    /// Epochs between epochN.pt; 0 or less = only the last
    #[arg(
        long,
        alias = "save_epoch_frequency",
        default_value_t = 1,
        allow_negative_numbers = true,
        help_heading = "Logging and saving"
    )]
    pub save_epoch_frequency: i64,
    /// Steps between epoch_E_S.pt; 0 or less = never
    #[arg(
        long,
        alias = "save_step_frequency",
        default_value_t = -1,
        allow_negative_numbers = true,
        help_heading = "Logging and saving"
    )]
    pub save_step_frequency: i64,
    /// Keep only the newest N of epochN.pt and epoch_E_S.pt
    #[arg(long, alias = "keep_checkpoints", value_name = "N", help_heading = "Logging and saving")]
    pub keep_checkpoints: Option<usize>,
    /// Checkpoint to begin from; a run of the same name is continued when this is not given
    #[arg(long, value_name = "FILE", help_heading = "Logging and saving")]
    pub resume: Option<PathBuf>,
    /// Begin anew even if a run of the same name exists
    #[arg(long, alias = "no_auto_resume", help_heading = "Logging and saving")]
    pub no_auto_resume: bool,
    /// On resume, do not take over the optimizer state
    #[arg(long, alias = "reset_optimizer", help_heading = "Logging and saving")]
    pub reset_optimizer: bool,
    /// On resume, begin at epoch 0, step 0
    #[arg(long, alias = "reset_data_offset", help_heading = "Logging and saving")]
    pub reset_data_offset: bool,

    /// Accepted for the Python program's scripts: attention is fused wherever the device can
    #[arg(long, alias = "use_flash_attention", help_heading = "Compatibility")]
    pub use_flash_attention: bool,
    /// Accepted for the Python program's scripts: --teacher-model alone switches it on
    #[arg(long, requires = "teacher_model", help_heading = "Compatibility")]
    pub distillation: bool,
    /// Accepted for the Python program's scripts: gradients always go through all ranks
    #[arg(long, alias = "gather_with_grad", help_heading = "Compatibility")]
    pub gather_with_grad: bool,
    /// Accepted for the Python program's scripts: the loss is always that of all ranks
    #[arg(long, alias = "skip_aggregate", help_heading = "Compatibility")]
    pub skip_aggregate: bool,
}

/// Numbers to compute with.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum PrecisionArg {
    /// bf16 on a GPU that has it, else fp16 with a scaled loss; fp32 on a CPU
    Amp,
    /// 32-bit floats
    Fp32,
    /// 16-bit floats with the range of 32-bit ones
    Bf16,
    /// 16-bit floats, the loss scaled
    Fp16,
}

/// What weight decay leaves alone.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum DecayGroupsArg {
    /// Norms, biases, class and position embeddings, logit scale
    Correct,
    /// By substrings of names, as the Python program does
    Reference,
}

/// Learning rate after the warm-up.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LrScheduler {
    /// Half a cosine to zero
    Cosine,
    /// A straight line to zero
    Linear,
    /// The same to the end
    Constant,
}
