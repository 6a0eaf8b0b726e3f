//! `cn-clip train`.

mod args;
mod ranks;
mod report;
mod weights;

use std::sync::Arc;

use anyhow::Context;
pub use args::TrainArgs;
use args::{DecayGroupsArg, LrScheduler, PrecisionArg};
use cn_clip_data::{
    augment::TrainAugment,
    forms,
    image::{ImageTransform, PixelTransform},
};
use cn_clip_model::{DeviceSpec, Precision};
use cn_clip_train::{
    Dataset, Job, OptimizerConfig, Rank, RunLength, TrainConfig, distill::Teacher,
    optimizer::DecayGroups, schedule::Decay, train,
};
use ranks::Ranks;
pub use weights::initial as initial_weights;

use super::{interrupt, note};

/// Trains.
pub fn run(args: &TrainArgs) -> anyhow::Result<()> {
    let model_config = args.towers.config()?;
    let resolution = model_config.vision.image_resolution;
    let ranks = Ranks::new(args)?;
    let config = config(args, &ranks);
    let open = |spec: &str, flag: &str, transform: Arc<dyn PixelTransform>| {
        let source = forms::open(spec).with_context(|| flag.to_string())?;
        anyhow::Ok(Dataset { source, transform })
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
    let positions = model_config.text.max_positions;
    let (data, validation) = (&data, validation.as_ref());
    let job = Job { config: &config, max_positions: positions, data, validation };
    interrupt::listen()?;
    let skipped = ranks.run(|communicator, device| {
        let device = device.open()?.autodiff();
        let model = weights::initial(args, &model_config, &device)?;
        let teacher = weights::teacher(args, &model_config, &device)?;
        let teacher = teacher.as_ref().map(|teacher| teacher as &dyn Teacher);
        let rank = Rank { communicator, model, teacher };
        let outcome = train(job, rank, &mut |_| !interrupt::asked())?;
        Ok(outcome.skipped_images)
    })?;
    if ranks.is_first() {
        match report::write(&config) {
            Ok(Some(page)) => note(&format!("curves: {}", page.display())),
            Ok(None) => {}
            // The run is done, and its checkpoints are whole.
            Err(error) => {
                note(&format!("the page with the curves could not be written: {error:#}"))
            }
        }
    }
    if skipped > 0 {
        note(&format!("{skipped} pictures could not be decoded and were skipped"));
    }
    Ok(())
}

/// The settings that flags make, and the number of ranks of this process.
pub fn config_of(args: &TrainArgs) -> anyhow::Result<(TrainConfig, usize)> {
    let ranks = Ranks::new(args)?;
    Ok((config(args, &ranks), ranks.devices().len()))
}

fn config(args: &TrainArgs, ranks: &Ranks) -> TrainConfig {
    let devices = ranks.devices();
    let every = |interval: i64| u64::try_from(interval).ok().filter(|interval| *interval > 0);
    let defaults = OptimizerConfig::for_model(&args.towers.vision_model);
    let workers = |asked: usize| if asked == 0 { ranks.workers() } else { asked };
    TrainConfig {
        logs: (!matches!(args.logs.as_str(), "" | "none" | "None"))
            .then(|| args.logs.clone().into()),
        name: args.name.clone(),
        vision_model: args.towers.vision_model.clone(),
        text_model: args.towers.text_model.clone(),
        train_data: args.train_data.clone(),
        val_data: args.val_data.clone(),
        device: devices.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        host: devices.iter().all(DeviceSpec::is_host),
        precision: match args.precision {
            PrecisionArg::Amp => None,
            PrecisionArg::Fp32 => Some(Precision::Fp32),
            PrecisionArg::Bf16 => Some(Precision::Bf16),
            PrecisionArg::Fp16 => Some(Precision::Fp16),
        },
        log_interval: args.log_interval,
        report_training_batch_acc: args.report_training_batch_acc,
        batch_size: args.batch_size,
        valid_batch_size: args.valid_batch_size,
        accum_freq: args.accum_freq,
        length: args.max_steps.map_or(RunLength::Epochs(args.max_epochs), RunLength::Steps),
        valid_step_interval: args.valid_step_interval.and_then(every),
        valid_epoch_interval: every(args.valid_epoch_interval),
        valid_recall: args.valid_recall,
        context_length: args.context_length,
        optimizer: OptimizerConfig {
            lr: args.lr.unwrap_or(defaults.lr),
            beta1: args.beta1.unwrap_or(defaults.beta1),
            beta2: args.beta2.unwrap_or(defaults.beta2),
            eps: args.eps.unwrap_or(defaults.eps),
            wd: args.wd,
            layer_decay: args.layer_decay,
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
        keep_checkpoints: args.keep_checkpoints,
        resume: args.resume.clone(),
        auto_resume: !args.no_auto_resume,
        reset_optimizer: args.reset_optimizer,
        reset_data_offset: args.reset_data_offset,
        mask_ratio: args.mask_ratio,
        flip_unmask_epochs: args.flip_unmask_epochs,
        freeze_vision: args.freeze_vision,
        freeze_text: args.freeze_text,
        unlocked_vision_blocks: args.unlocked_vision_blocks,
        unlocked_text_blocks: args.unlocked_text_blocks,
        use_bn_sync: args.use_bn_sync,
        grad_checkpointing: args.grad_checkpointing,
        teacher: args.teacher_model.clone(),
        kd_loss_weight: args.kd_loss_weight,
        clip_weight_path: args.clip_weight_path.clone(),
        bert_weight_path: args.bert_weight_path.clone(),
        use_augment: args.use_augment,
        seed: args.seed,
        num_workers: workers(args.num_workers),
        valid_num_workers: args.valid_num_workers.map(workers),
        skip_bad_images: args.skip_bad_images,
        exclusive_batches: args.exclusive_batches,
        one_caption_per_image: args.one_caption_per_image,
        shuffle_buffer: args.shuffle_buffer,
        progress: true,
        console: true,
    }
}
