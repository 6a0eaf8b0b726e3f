//! `cn-clip train`, with the flags of `cn_clip/training/params.py`.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use clap::{Args, ValueEnum};
use cn_clip_data::{
    augment::TrainAugment,
    image::{ImageTransform, PixelTransform},
    lmdb::LmdbDataset,
};
use cn_clip_model::Clip;
use cn_clip_train::{
    Dataset, OptimizerConfig, RunLength, TrainConfig, optimizer::DecayGroups, schedule::Decay,
    train,
};

use super::{device::DeviceArg, interrupt, model::TowerArgs, note};

/// Flags of `cn-clip train`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Data")]
pub struct TrainArgs {
    /// LMDB directory of the training split, which holds imgs/ and pairs/
    #[arg(long, alias = "train_data", value_name = "DIR")]
    train_data: PathBuf,
    /// LMDB directory of the validation split; none = no validation
    #[arg(long, alias = "val_data", value_name = "DIR")]
    val_data: Option<PathBuf>,
    /// Decoding threads; 0 = one per core
    #[arg(long, alias = "num_workers", default_value_t = 0)]
    num_workers: usize,
    /// Tokens per text, [CLS] and [SEP] included
    #[arg(long, alias = "context_length", default_value_t = 52)]
    context_length: usize,
    /// Augment pictures: random resized crop, flip, AutoAugment
    #[arg(long, alias = "use_augment")]
    use_augment: bool,
    /// Replace pictures that cannot be decoded, with a warning, instead of stopping
    #[arg(long, alias = "skip_bad_images")]
    skip_bad_images: bool,
    /// Keep pairs that share a picture or a caption out of each other's batches, where they would
    /// count as negatives
    #[arg(long, alias = "exclusive_batches")]
    exclusive_batches: bool,

    #[command(flatten, next_help_heading = "Model")]
    towers: TowerArgs,
    #[command(flatten)]
    device: DeviceArg,
    /// Share of patches that FLIP masks
    #[arg(long, alias = "mask_ratio", default_value_t = 0.0, help_heading = "Model")]
    mask_ratio: f64,
    /// Epochs at the end of the run without masking
    #[arg(long, alias = "flip_unmask_epochs", default_value_t = 0, help_heading = "Model")]
    flip_unmask_epochs: u64,
    /// Use the image tower, do not train it
    #[arg(long, alias = "freeze_vision", help_heading = "Model")]
    freeze_vision: bool,
    /// Use the text tower and its projection, do not train them
    #[arg(long, alias = "freeze_text", help_heading = "Model")]
    freeze_text: bool,
    /// Compute activations twice instead of keeping them: far less memory, a third more time
    #[arg(long, alias = "grad_checkpointing", help_heading = "Model")]
    grad_checkpointing: bool,

    /// Pairs of a batch
    #[arg(long, alias = "batch_size", default_value_t = 64, help_heading = "Optimisation")]
    batch_size: usize,
    /// Batches of a step: the gradient is that of one batch of all their pairs
    #[arg(long, alias = "accum_freq", default_value_t = 1, help_heading = "Optimisation")]
    accum_freq: usize,
    /// Steps; overrides --max-epochs
    #[arg(long, alias = "max_steps", help_heading = "Optimisation")]
    max_steps: Option<u64>,
    /// Epochs
    #[arg(long, alias = "max_epochs", default_value_t = 32, help_heading = "Optimisation")]
    max_epochs: u64,
    /// Highest learning rate [default: by image tower]
    #[arg(long, help_heading = "Optimisation")]
    lr: Option<f64>,
    /// AdamW's first beta [default: by image tower]
    #[arg(long, help_heading = "Optimisation")]
    beta1: Option<f64>,
    /// AdamW's second beta [default: by image tower]
    #[arg(long, help_heading = "Optimisation")]
    beta2: Option<f64>,
    /// AdamW's epsilon [default: by image tower]
    #[arg(long, help_heading = "Optimisation")]
    eps: Option<f64>,
    /// Weight decay
    #[arg(long, default_value_t = 0.2, help_heading = "Optimisation")]
    wd: f64,
    /// What weight decay leaves alone
    #[arg(
        long,
        alias = "decay_groups",
        value_enum,
        default_value = "correct",
        help_heading = "Optimisation"
    )]
    decay_groups: DecayGroupsArg,
    /// Steps of warm-up
    #[arg(long, default_value_t = 500, help_heading = "Optimisation")]
    warmup: u64,
    /// Learning rate after the warm-up
    #[arg(
        long,
        alias = "lr_scheduler",
        value_enum,
        default_value = "cosine",
        help_heading = "Optimisation"
    )]
    lr_scheduler: LrScheduler,
    /// Train with --lr from the first step to the last, without warm-up
    #[arg(long, alias = "skip_scheduler", help_heading = "Optimisation")]
    skip_scheduler: bool,
    /// Scale gradients whose norm over all parameters is larger to this norm
    #[arg(long, alias = "clip_grad_norm", value_name = "NORM", help_heading = "Optimisation")]
    clip_grad_norm: Option<f64>,
    /// Largest factor of the similarities
    #[arg(long, alias = "logit_scale_max", default_value_t = 100.0, help_heading = "Optimisation")]
    logit_scale_max: f64,
    /// Seed of initial weights, sample order, masks and augmentation
    #[arg(long, default_value_t = 123, help_heading = "Optimisation")]
    seed: u64,

    /// Pairs of a validation batch
    #[arg(long, alias = "valid_batch_size", default_value_t = 64, help_heading = "Validation")]
    valid_batch_size: usize,
    /// Steps between validations; 0 or less = never
    #[arg(
        long,
        alias = "valid_step_interval",
        allow_negative_numbers = true,
        help_heading = "Validation"
    )]
    valid_step_interval: Option<i64>,
    /// Epochs between validations; 0 or less = never
    #[arg(
        long,
        alias = "valid_epoch_interval",
        default_value_t = 1,
        allow_negative_numbers = true,
        help_heading = "Validation"
    )]
    valid_epoch_interval: i64,

    /// Directory of all runs; "none" saves nothing
    #[arg(long, default_value = "./logs", help_heading = "Logging and saving")]
    logs: String,
    /// Name of the run: its files are in <LOGS>/<NAME>/
    #[arg(long, default_value = "train_clip", help_heading = "Logging and saving")]
    name: String,
    /// Steps between training log lines
    #[arg(long, alias = "log_interval", default_value_t = 10, help_heading = "Logging and saving")]
    log_interval: u64,
    /// Show in-batch accuracies in training log lines
    #[arg(long, alias = "report_training_batch_acc", help_heading = "Logging and saving")]
    report_training_batch_acc: bool,
    /// Epochs between epochN.pt; 0 or less = only the last
    #[arg(
        long,
        alias = "save_epoch_frequency",
        default_value_t = 1,
        allow_negative_numbers = true,
        help_heading = "Logging and saving"
    )]
    save_epoch_frequency: i64,
    /// Steps between epoch_E_S.pt; 0 or less = never
    #[arg(
        long,
        alias = "save_step_frequency",
        default_value_t = -1,
        allow_negative_numbers = true,
        help_heading = "Logging and saving"
    )]
    save_step_frequency: i64,
    /// Checkpoint to begin from; a run of the same name is continued when this is not given
    #[arg(long, value_name = "FILE", help_heading = "Logging and saving")]
    resume: Option<PathBuf>,
    /// Begin anew even if a run of the same name exists
    #[arg(long, alias = "no_auto_resume", help_heading = "Logging and saving")]
    no_auto_resume: bool,
    /// On resume, do not take over the optimizer state
    #[arg(long, alias = "reset_optimizer", help_heading = "Logging and saving")]
    reset_optimizer: bool,
    /// On resume, begin at epoch 0, step 0
    #[arg(long, alias = "reset_data_offset", help_heading = "Logging and saving")]
    reset_data_offset: bool,
}

/// What weight decay leaves alone.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum DecayGroupsArg {
    /// Norms, biases, class and position embeddings, logit scale
    Correct,
    /// By substrings of names, as the Python program does
    Reference,
}

/// Learning rate after the warm-up.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum LrScheduler {
    /// Half a cosine to zero
    Cosine,
    /// A straight line to zero
    Linear,
    /// The same to the end
    Constant,
}

/// Trains.
pub fn run(args: &TrainArgs) -> anyhow::Result<()> {
    let model_config = args.towers.config()?;
    let resolution = model_config.vision.image_resolution;
    let config = config(args);
    let open = |path: &PathBuf, flag: &str, transform: Arc<dyn PixelTransform>| {
        let source = LmdbDataset::open(path).with_context(|| flag.to_string())?;
        anyhow::Ok(Dataset { source: Arc::new(source), transform })
    };
    let transform: Arc<dyn PixelTransform> = match args.use_augment {
        true => Arc::new(TrainAugment::new(resolution)),
        false => Arc::new(ImageTransform::new(resolution)),
    };
    let data = open(&args.train_data, "--train-data", transform)?;
    let validation = match &args.val_data {
        Some(path) => Some(open(path, "--val-data", Arc::new(ImageTransform::new(resolution)))?),
        None => None,
    };
    let device = args.device.open()?.autodiff();
    let model = Clip::init(&model_config, &device, args.seed);
    let positions = model_config.text.max_positions;
    interrupt::listen()?;
    let outcome =
        train(&config, model, positions, &data, validation.as_ref(), &mut |_| !interrupt::asked())?;
    if outcome.skipped_images > 0 {
        let count = outcome.skipped_images;
        note(&format!("{count} pictures could not be decoded and were skipped"));
    }
    Ok(())
}

fn config(args: &TrainArgs) -> TrainConfig {
    let every = |interval: i64| u64::try_from(interval).ok().filter(|interval| *interval > 0);
    let defaults = OptimizerConfig::for_model(&args.towers.vision_model);
    TrainConfig {
        logs: (!matches!(args.logs.as_str(), "" | "none" | "None"))
            .then(|| args.logs.clone().into()),
        name: args.name.clone(),
        vision_model: args.towers.vision_model.clone(),
        text_model: args.towers.text_model.clone(),
        train_data: args.train_data.display().to_string(),
        val_data: args.val_data.as_ref().map(|path| path.display().to_string()),
        device: args.device.device.to_string(),
        host: args.device.device.is_host(),
        log_interval: args.log_interval,
        report_training_batch_acc: args.report_training_batch_acc,
        batch_size: args.batch_size,
        valid_batch_size: args.valid_batch_size,
        accum_freq: args.accum_freq,
        length: args.max_steps.map_or(RunLength::Epochs(args.max_epochs), RunLength::Steps),
        valid_step_interval: args.valid_step_interval.and_then(every),
        valid_epoch_interval: every(args.valid_epoch_interval),
        context_length: args.context_length,
        optimizer: OptimizerConfig {
            lr: args.lr.unwrap_or(defaults.lr),
            beta1: args.beta1.unwrap_or(defaults.beta1),
            beta2: args.beta2.unwrap_or(defaults.beta2),
            eps: args.eps.unwrap_or(defaults.eps),
            wd: args.wd,
            decay_groups: match args.decay_groups {
                DecayGroupsArg::Correct => DecayGroups::Correct,
                DecayGroupsArg::Reference => DecayGroups::Reference,
            },
        },
        warmup: if args.skip_scheduler { 0 } else { args.warmup },
        decay: match (args.skip_scheduler, args.lr_scheduler) {
            (true, _) | (_, LrScheduler::Constant) => Decay::Constant,
            (_, LrScheduler::Cosine) => Decay::Cosine,
            (_, LrScheduler::Linear) => Decay::Linear,
        },
        clip_grad_norm: args.clip_grad_norm,
        logit_scale_max: args.logit_scale_max,
        save_epoch_frequency: every(args.save_epoch_frequency),
        save_step_frequency: every(args.save_step_frequency),
        resume: args.resume.clone(),
        auto_resume: !args.no_auto_resume,
        reset_optimizer: args.reset_optimizer,
        reset_data_offset: args.reset_data_offset,
        mask_ratio: args.mask_ratio,
        flip_unmask_epochs: args.flip_unmask_epochs,
        freeze_vision: args.freeze_vision,
        freeze_text: args.freeze_text,
        grad_checkpointing: args.grad_checkpointing,
        seed: args.seed,
        num_workers: args.num_workers,
        skip_bad_images: args.skip_bad_images,
        exclusive_batches: args.exclusive_batches,
        progress: true,
        console: true,
    }
}
