//! The loop over epochs and steps.

use std::time::{Duration, Instant};

use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use cn_clip_data::{
    loader::{Loader, LoaderOptions, mix},
    sampler::{epoch_order, exclusive_order, padded_len},
};
use cn_clip_model::{
    Clip,
    checkpoint::{AdamWSettings, Progress},
};

use crate::{
    RunLength, TrainConfig, TrainError,
    log::RunLog,
    optimizer::{AdamW, gradient_norm},
    schedule::Schedule,
    state::{self, LATEST, Start},
    step::{MicroBatch, StepOptions, StepOutput, step},
    validate::{Dataset, Validation, validate},
};

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

/// Trains `model`, which lies on an autodiff device, as `config` says.
///
/// `observe` is told of every step and validation. When it returns `false` after a step the state is
/// saved and the run ends; it can be resumed there.
pub fn train(
    config: &TrainConfig,
    model: Clip,
    max_positions: usize,
    data: &Dataset,
    validation: Option<&Dataset>,
    observe: &mut dyn FnMut(Event) -> bool,
) -> Result<Outcome, TrainError> {
    config.validate(data.source.len(), max_positions)?;
    if validation.is_some_and(|validation| validation.source.len() == 0) {
        let path = config.val_data.as_deref().unwrap_or_default();
        return Err(TrainError::Config(format!(
            "--val-data {path} holds no pairs: its texts name no pictures; build it again, or \
             leave the flag out"
        )));
    }
    let log = RunLog::open(config)?;
    let pairs = data.source.len();
    let describe = |split: &str, data: &Dataset| {
        let (images, pairs) = (data.source.num_images(), data.source.len());
        log.info(&format!("{split} LMDB file contains {images} images and {pairs} pairs."));
    };
    describe("train", data);
    if let Some(validation) = validation {
        describe("val", validation);
    }
    let batches = (padded_len(pairs, config.batch_size) / config.batch_size) as u64;
    let steps_per_epoch = batches / config.accum_freq as u64;
    let (epochs, total) = match config.length {
        RunLength::Epochs(epochs) => (epochs, steps_per_epoch * epochs),
        RunLength::Steps(steps) => (steps.div_ceil(steps_per_epoch.max(1)), steps),
    };
    log.params(&config.describe(epochs, total))?;
    log.info(&format!("Use {} for training", config.device));
    let settings = AdamWSettings {
        learning_rate: config.optimizer.lr,
        beta1: config.optimizer.beta1,
        beta2: config.optimizer.beta2,
        epsilon: config.optimizer.eps,
        weight_decay: config.optimizer.wd,
    };
    let mut optimizer = AdamW::new(&model, settings, config.optimizer.decay_groups, config.host);
    let (model, start) = match state::find(config, &log) {
        Some(path) => state::resume(&path, config, model, &mut optimizer, &log)?,
        None => (model, Start::default()),
    };
    if config.freeze_vision {
        log.info("The visual encoder is freezed during training.");
    }
    if config.freeze_text {
        log.info("The text encoder is freezed during training.");
    }
    if start.step >= total {
        log.warning(&format!(
            "nothing to do: the checkpoint stands at step {} and the run ends at step {total}; \
             raise --max-epochs or --max-steps, or add --reset-data-offset",
            start.step
        ));
    }
    let mut run = Run {
        config,
        data,
        validation,
        log,
        optimizer,
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

struct Run<'a> {
    config: &'a TrainConfig,
    data: &'a Dataset,
    validation: Option<&'a Dataset>,
    log: RunLog,
    optimizer: AdamW,
    /// Absent only while the optimizer holds it.
    model: Option<Clip>,
    schedule: Schedule,
    total: u64,
    epochs: u64,
    step: u64,
    /// Steps of the current epoch done.
    in_epoch: u64,
    steps_per_epoch: u64,
    skipped: usize,
    observe: &'a mut dyn FnMut(Event) -> bool,
}

/// Whether to go on.
#[derive(PartialEq)]
enum Flow {
    Continue,
    Stop,
}

impl Run<'_> {
    fn take(&mut self) -> Result<Clip, TrainError> {
        self.model.take().ok_or_else(|| TrainError::Config("the model was lost".to_string()))
    }

    fn epochs(&mut self, start: Start) -> Result<(), TrainError> {
        // Where exclusive batches leave pairs out, a number of steps takes more epochs.
        let end = match self.config.length {
            RunLength::Epochs(epochs) => epochs,
            RunLength::Steps(_) => u64::MAX,
        };
        for epoch in start.epoch..end {
            let done = if epoch == start.epoch { start.batches } else { 0 };
            self.in_epoch = done / self.config.accum_freq as u64;
            let flow = self.epoch(epoch, done)?;
            if self.in_epoch == 0 {
                return Err(TrainError::Config(format!(
                    "no step of {} pairs is possible without pairs that share a picture or a \
                     caption: lower --batch-size or leave --exclusive-batches out",
                    self.config.batch_size * self.config.accum_freq
                )));
            }
            let due = |every: Option<u64>| every.is_some_and(|n| (epoch + 1).is_multiple_of(n));
            let mut names = Vec::new();
            let last = epoch + 1 == end || self.step >= self.total;
            if last || due(self.config.save_epoch_frequency) {
                names.push(format!("epoch{}.pt", epoch + 1));
            }
            names.push(LATEST.to_string());
            // Before the validation, which may fail.
            self.save(&names, epoch + 1)?;
            let stopped = flow == Flow::Stop && !last;
            if due(self.config.valid_epoch_interval) && !self.validated_at_end() && !stopped {
                self.validate(epoch + 1)?;
            }
            if flow == Flow::Stop {
                break;
            }
        }
        Ok(())
    }

    /// Whether the validation by steps has just seen the state at the end of this epoch.
    fn validated_at_end(&self) -> bool {
        self.config.valid_step_interval.is_some_and(|every| self.step.is_multiple_of(every))
    }

    fn order(&self, epoch: u64) -> Vec<usize> {
        let config = self.config;
        epoch_order(self.data.source.len(), config.batch_size, config.seed, epoch, 0, 1)
    }

    fn epoch(&mut self, epoch: u64, done: u64) -> Result<Flow, TrainError> {
        let config = self.config;
        let accum = config.accum_freq;
        let mut order = self.order(epoch);
        let padded = order.len();
        if config.exclusive_batches {
            order = self.exclusive(&order)?;
        }
        let first = (done as usize * config.batch_size).min(order.len());
        order.drain(..first);
        let options = LoaderOptions {
            batch_size: config.batch_size,
            context_length: config.context_length,
            workers: config.num_workers,
            prefetch: 2 * accum,
            seed: mix(config.seed, epoch),
            first,
            skip_bad_images: config.skip_bad_images,
        };
        let mut loader =
            Loader::new(self.data.source.clone(), self.data.transform.clone(), order, options)?;
        let mut seen = done * config.batch_size as u64;
        let mut began = Instant::now();
        while self.step < self.total && self.in_epoch < self.steps_per_epoch {
            let mut batches = Vec::with_capacity(accum);
            for batch in loader.by_ref().take(accum) {
                batches.push(MicroBatch::from(batch.map_err(TrainError::from_loader)?));
            }
            if batches.len() < accum {
                break;
            }
            let data_time = began.elapsed();
            let output = self.one_step(&batches, epoch)?;
            self.in_epoch += 1;
            seen += batches.iter().map(|batch| batch.size as u64).sum::<u64>();
            let times = (data_time, began.elapsed());
            let flow = self.after_step(epoch, seen, padded, &output, times)?;
            self.skipped += loader.take_skipped();
            if flow == Flow::Stop {
                return Ok(Flow::Stop);
            }
            began = Instant::now();
        }
        Ok(if self.step >= self.total { Flow::Stop } else { Flow::Continue })
    }

    fn exclusive(&self, order: &[usize]) -> Result<Vec<usize>, TrainError> {
        let mut keys = Vec::with_capacity(self.data.source.len());
        for index in 0..self.data.source.len() {
            keys.push(self.data.source.pair(index)?.keys());
        }
        let global = self.config.batch_size * self.config.accum_freq;
        Ok(exclusive_order(order, global, |pair| &keys[pair]))
    }

    fn one_step(&mut self, batches: &[MicroBatch], epoch: u64) -> Result<StepSummary, TrainError> {
        let masked = epoch + self.config.flip_unmask_epochs < self.epochs;
        let options = StepOptions {
            mask_ratio: if masked { self.config.mask_ratio } else { 0.0 },
            freeze_vision: self.config.freeze_vision,
            freeze_text: self.config.freeze_text,
            checkpointing: self.config.grad_checkpointing,
            concurrent_towers: self.config.host,
        };
        let model = self.take()?;
        let output = step(&model, batches, options, self.config.seed, self.step);
        if !output.loss.is_finite() {
            return Err(TrainError::Diverged { step: self.step + 1, loss: output.loss });
        }
        let rate = self.schedule.rate(self.step);
        let summary = StepSummary::new(&output, rate);
        let factor = match self.config.clip_grad_norm {
            Some(most) => (most / (gradient_norm(&model, &output.gradients) + 1e-6)).min(1.0),
            None => 1.0,
        };
        let mut model = self.optimizer.step(model, output.gradients, rate, factor);
        model.logit_scale = clamp(model.logit_scale, self.config.logit_scale_max.ln());
        self.model = Some(model);
        self.step += 1;
        Ok(summary)
    }

    fn after_step(
        &mut self,
        epoch: u64,
        seen: u64,
        padded: usize,
        output: &StepSummary,
        (data_time, batch_time): (Duration, Duration),
    ) -> Result<Flow, TrainError> {
        let config = self.config;
        let scale = self.logit_scale();
        self.log.advance(self.step, output.loss);
        let (step, total, loss, rate) = (self.step, self.total, output.loss, output.rate);
        if step.is_multiple_of(config.log_interval)
            || self.in_epoch == self.steps_per_epoch
            || step == total
        {
            let accuracy = match config.report_training_batch_acc {
                true => format!(
                    "Image2Text Acc: {:.2} | Text2Image Acc: {:.2} | ",
                    output.image_accuracy * 100.0,
                    output.text_accuracy * 100.0
                ),
                false => String::new(),
            };
            self.log.info(&format!(
                "Global Steps: {step}/{total} | Train Epoch: {} [{seen}/{padded} ({:.0}%)] | Loss: \
                 {loss:.6} | {accuracy}Data Time: {:.3}s | Batch Time: {:.3}s | LR: {rate:.6} | \
                 logit_scale: {scale:.3} | Global Batch Size: {}",
                epoch + 1,
                100.0 * seen as f64 / padded as f64,
                data_time.as_secs_f64(),
                batch_time.as_secs_f64(),
                config.batch_size * config.accum_freq,
            ));
        }
        let go_on = (self.observe)(Event::Step { step, loss, rate, logit_scale: scale });
        let due = |every: Option<u64>| every.is_some_and(|n| step.is_multiple_of(n));
        if due(config.valid_step_interval) {
            self.validate(epoch + 1)?;
        }
        if due(config.save_step_frequency) {
            let names = [format!("epoch_{}_{step}.pt", epoch + 1), LATEST.to_string()];
            self.save(&names, epoch + 1)?;
        }
        if step >= total {
            self.log.info(&format!(
                "Stopping training due to step {step} has reached max_steps {total}"
            ));
        }
        Ok(if go_on && step < total { Flow::Continue } else { Flow::Stop })
    }

    fn logit_scale(&self) -> f32 {
        self.model.as_ref().map_or(0.0, |model| model.logit_scale.val().inner().into_scalar())
    }

    fn validate(&mut self, epoch: u64) -> Result<(), TrainError> {
        let (Some(data), Some(model)) = (self.validation, &self.model) else { return Ok(()) };
        let step = self.step;
        self.log
            .info(&format!("Begin to eval on validation set (epoch {epoch} @ {step} steps)..."));
        let result = validate(model, data, self.config, &self.log)?;
        self.log.info(&format!(
            "Validation Result (epoch {epoch} @ {step} steps) | Valid Loss: {:.6} | Image2Text \
             Acc: {:.2} | Text2Image Acc: {:.2} | logit_scale: {:.3} | Valid Batch Size: {}",
            result.loss,
            result.image_accuracy * 100.0,
            result.text_accuracy * 100.0,
            self.logit_scale(),
            result.last_batch
        ));
        (self.observe)(Event::Validation { step, result });
        Ok(())
    }

    /// Saves the state; an epoch that is not finished is continued on resume.
    fn save(&self, names: &[String], epoch: u64) -> Result<(), TrainError> {
        let Some(model) = &self.model else { return Ok(()) };
        let batches = self.in_epoch * self.config.accum_freq as u64;
        let epoch_batches = (self.in_epoch < self.steps_per_epoch).then_some(batches);
        let progress =
            Progress { epoch, step: self.step, name: self.config.name.clone(), epoch_batches };
        state::save(names, self.config, model, &self.optimizer, &progress, &self.log)
    }
}

/// What is reported of a step once its gradients are used up.
struct StepSummary {
    loss: f32,
    image_accuracy: f32,
    text_accuracy: f32,
    rate: f64,
}

impl StepSummary {
    fn new(output: &StepOutput, rate: f64) -> Self {
        Self {
            loss: output.loss,
            image_accuracy: output.image_accuracy,
            text_accuracy: output.text_accuracy,
            rate,
        }
    }
}

/// The reference's clamp, to `[0, ln 100]` by default.
fn clamp(scale: Param<Tensor<1>>, most: f64) -> Param<Tensor<1>> {
    scale.map(|scale| Tensor::from_inner(scale.inner().clamp(0.0, most)).require_grad())
}

impl Outcome {
    /// The model for inference.
    pub fn inference_model(&self) -> Clip {
        self.model.valid()
    }
}
