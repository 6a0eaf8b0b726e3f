//! A training run: what it needs, and what comes out.

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, Tensor},
};
use cn_clip_data::inspect::{InspectOptions, inspect};
use cn_clip_model::{Clip, ImageTower, Precision, checkpoint::AdamWSettings, kept_patches};

use crate::{
    TrainConfig, TrainError,
    communicator::{Communicator, Local},
    distill::Teacher,
    epochs::{Epochs, Plan},
    log::RunLog,
    metrics::Metrics,
    optimizer::AdamW,
    preflight::{self, Setup},
    run::Run,
    schedule::Schedule,
    state::{self, Start},
    validate::{Dataset, Validation},
};

/// What is looked at before every run.
const SHORT_LOOK: InspectOptions = InspectOptions { pairs: 2000, pictures: 32, context_length: 0 };

/// A number that a run reports, for curves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// A training step is done.
    Step {
        /// Steps done, this one included.
        step: u64,
        /// Mean loss of its pairs.
        loss: f32,
        /// Learning rate it used.
        rate: f64,
        /// Logit scale after it.
        logit_scale: f32,
    },
    /// A validation is done.
    Validation {
        /// Steps done before it.
        step: u64,
        /// Its result.
        result: Validation,
    },
}

/// What is left of a finished run.
#[derive(Debug)]
pub struct Outcome {
    /// The trained model, on the autodiff device.
    pub model: Clip,
    /// Steps done in all, also before a resume.
    pub steps: u64,
    /// Pictures that were replaced because they could not be decoded.
    pub skipped_images: usize,
}

/// A run: what is trained on, and how.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// Its settings.
    pub config: &'a TrainConfig,
    /// Positions of the text tower.
    pub max_positions: usize,
    /// Pairs to train on.
    pub data: &'a Dataset,
    /// Pairs to validate with.
    pub validation: Option<&'a Dataset>,
}

/// What one rank brings to a job.
pub struct Rank<'a> {
    /// Its line to the others.
    pub communicator: &'a dyn Communicator,
    /// The model, on an autodiff device, with the same weights on every rank.
    pub model: Clip,
    /// What image features follow besides their texts.
    pub teacher: Option<&'a dyn Teacher>,
}

impl Rank<'static> {
    /// A run on one device.
    pub fn only(model: Clip) -> Self {
        Self { communicator: &Local, model, teacher: None }
    }
}

/// Trains a model as one of the ranks that were given the same job.
///
/// `observe` is told of every step and validation. When it returns `false` after a step, on any
/// rank, the state is saved and the run ends; it can be resumed there.
pub fn train(
    job: Job<'_>,
    rank: Rank<'_>,
    observe: &mut dyn FnMut(Event) -> bool,
) -> Result<Outcome, TrainError> {
    let Rank { communicator, model, teacher } = rank;
    let Job { config, data, validation, .. } = job;
    let world = communicator.world_size();
    let order = Epochs::new(config, &data.source)?;
    config.validate(order.len(), world, job.max_positions)?;
    if validation.is_some_and(|validation| validation.source.len() == 0) {
        let path = config.val_data.as_deref().unwrap_or_default();
        return Err(TrainError::Config(format!(
            "--val-data {path} holds no pairs: its texts name no pictures; build it again, or \
             leave the flag out"
        )));
    }
    if let (ImageTower::Vit(tower), true) = (&model.visual, config.mask_ratio > 0.0)
        && kept_patches(tower.patches(), config.mask_ratio) == 0
    {
        return Err(TrainError::Config(format!(
            "--mask-ratio {} leaves none of the {} patches of a picture: lower it",
            config.mask_ratio,
            tower.patches()
        )));
    }
    let log = RunLog::open(config, communicator.rank())?;
    let describe = |split: &str, data: &Dataset| {
        let images = data.source.num_images().map_or("unknown".to_string(), |n| n.to_string());
        let pairs = data.source.len();
        log.info(&format!("{split} LMDB file contains {images} images and {pairs} pairs."));
    };
    describe("train", data);
    if let Some(validation) = validation {
        describe("val", validation);
    }
    let plan = Plan::of(config, order.len(), world);
    let Plan { steps_per_epoch, epochs, steps: total, .. } = plan;
    log.params(&config.describe(epochs, total, world))?;
    log.info(&format!("Use {} for training", config.device));
    let precision = precision(config, &model.device())?;
    if config.precision.is_none() {
        log.info(&format!("Precision amp is {precision} on {}", config.device));
    }
    let settings = AdamWSettings {
        learning_rate: config.optimizer.lr,
        beta1: config.optimizer.beta1,
        beta2: config.optimizer.beta2,
        epsilon: config.optimizer.eps,
        weight_decay: config.optimizer.wd,
    };
    let mut optimizer = AdamW::new(&model, settings, config.optimizer.decay_groups, config.host)
        .with_layer_decay(&model, config.optimizer.layer_decay);
    let (model, start) = match state::find(config, &log) {
        Some(path) => state::resume(&path, config, model, &mut optimizer, &log)?,
        None => (model, Start::default()),
    };
    check_same_start(&model, start, communicator)?;
    log.towers(config);
    if start.step >= total {
        log.warning(&format!(
            "nothing to do: the checkpoint stands at step {} and the run ends at step {total}; \
             raise --max-epochs or --max-steps, or add --reset-data-offset",
            start.step
        ));
    }
    if communicator.rank() == 0 && start.step < total {
        let setup = Setup {
            plan,
            world,
            logit_scale: model.logit_scale.val().inner().into_scalar(),
            resnet: matches!(model.visual, ImageTower::ResNet(_)),
        };
        preflight(config, data, &setup, start, &log)?;
    }
    let metrics = Metrics::open(config, communicator.rank(), start.step)?;
    let mut run = Run {
        config,
        communicator,
        teacher,
        data,
        order,
        validation,
        log,
        metrics,
        optimizer,
        precision,
        loss_scale: (precision == Precision::Fp16).then_some(start.loss_scale),
        model: Some(model),
        schedule: Schedule {
            base: config.optimizer.lr,
            warmup: config.warmup,
            total,
            decay: config.decay,
        },
        total,
        epochs,
        step: start.step,
        in_epoch: 0,
        steps_per_epoch,
        skipped: 0,
        observe,
    };
    run.log.start(start.step, total);
    let outcome = if start.step < total { run.epochs(start) } else { Ok(()) };
    run.log.finish();
    outcome?;
    Ok(Outcome { model: run.take()?, steps: run.step, skipped_images: run.skipped })
}

/// Warns of what is likely to go wrong, after a short look.
fn preflight(
    config: &TrainConfig,
    data: &Dataset,
    setup: &Setup,
    start: Start,
    log: &RunLog,
) -> Result<(), TrainError> {
    let options = InspectOptions { context_length: config.context_length, ..SHORT_LOOK };
    let inspection = inspect(&data.source, &options)?;
    let global = config.batch_size * config.accum_freq * setup.world;
    let mut found = preflight::data(config, &inspection, global);
    if start.step == 0 {
        found.extend(preflight::settings(config, setup));
    }
    found.iter().filter(|finding| finding.warning).for_each(|found| log.warning(&found.message));
    Ok(())
}

/// The precision that was asked for, or the best of the device.
fn precision(config: &TrainConfig, device: &Device) -> Result<Precision, TrainError> {
    let Some(precision) = config.precision else {
        return Ok(Precision::automatic(device, config.host));
    };
    if precision.trains() && precision.is_supported(device) {
        return Ok(precision);
    }
    let others = Precision::supported(device).into_iter().filter(|precision| precision.trains());
    let others: Vec<String> = others.map(|precision| precision.to_string()).collect();
    Err(TrainError::Config(format!(
        "--precision {precision}: {} cannot compute in it; use amp or {}",
        config.device,
        others.join(" or ")
    )))
}

/// Fails where a rank begins elsewhere or with other weights than the first.
fn check_same_start(
    model: &Clip,
    start: Start,
    communicator: &dyn Communicator,
) -> Result<(), TrainError> {
    if communicator.world_size() == 1 {
        return Ok(());
    }
    let own = vec![start.step as f32, start.epoch as f32, start.pairs as f32, checksum(model)];
    let all = communicator.all_gather(own)?;
    let ranks: Vec<&[f32]> = all.chunks(4).collect();
    let differs =
        |rank: &&[f32]| rank.iter().zip(ranks[0]).any(|(a, b)| a.to_bits() != b.to_bits());
    match ranks.iter().position(differs) {
        None => Ok(()),
        Some(rank) => Err(TrainError::Resume(format!(
            "rank {rank} begins at step {} and rank 0 at step {}, or their weights differ: every \
             rank must reach the same checkpoints and be started with the same flags",
            ranks[rank][0], ranks[0][0]
        ))),
    }
}

/// Sum of all parameters.
fn checksum(model: &Clip) -> f32 {
    struct Sum(f32);
    impl ModuleVisitor for Sum {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0 += param.val().inner().sum().into_scalar::<f32>();
        }
    }
    let mut sum = Sum(0.0);
    model.visit(&mut sum);
    sum.0
}

impl Outcome {
    /// The model for inference.
    pub fn inference_model(&self) -> Clip {
        self.model.valid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_precision_that_cannot_be_trained_in_is_refused() {
        let device = Device::default();
        for (asked, names) in [(Precision::Bf16, None), (Precision::Int16, Some("use amp or fp32"))]
        {
            let config = TrainConfig { precision: Some(asked), ..TrainConfig::default() };
            match (precision(&config, &device), names) {
                (Ok(found), None) => assert_eq!(found, asked),
                (Err(error), Some(names)) => {
                    let error = error.to_string();
                    assert!(error.contains("int16") && error.contains(names), "{error}");
                }
                (found, _) => panic!("{asked}: {found:?}"),
            }
        }
    }
}
