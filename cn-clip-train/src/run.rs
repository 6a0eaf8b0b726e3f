//! The loop over epochs and steps.

use std::time::Instant;

use burn::{module::Param, tensor::Tensor};
use cn_clip_data::{
    forms::{Part, Source},
    loader::{Loader, LoaderOptions, mix},
    sampler::padded_len,
};
use cn_clip_model::{Clip, Precision, checkpoint::Progress};

use crate::{
    RunLength, TrainConfig, TrainError,
    communicator::Communicator,
    distill::Teacher,
    epochs::Epochs,
    log::RunLog,
    loss_scale::LossScale,
    metrics::Metrics,
    optimizer::{AdamW, gradient_norm},
    report::StepSummary,
    schedule::Schedule,
    state::{self, LATEST, Start},
    step::{Figures, MicroBatch, Step, StepOptions, StepOutput},
    trainer::Event,
    validate::Dataset,
};

/// A run on the way.
pub(crate) struct Run<'a> {
    pub config: &'a TrainConfig,
    pub communicator: &'a dyn Communicator,
    pub teacher: Option<&'a dyn Teacher>,
    pub data: &'a Dataset,
    pub order: Epochs,
    pub validation: Option<&'a Dataset>,
    pub log: RunLog,
    pub metrics: Metrics,
    pub optimizer: AdamW,
    /// Numbers that the towers compute with.
    pub precision: Precision,
    /// In fp16.
    pub loss_scale: Option<LossScale>,
    /// Absent only while the optimizer holds it.
    pub model: Option<Clip>,
    pub schedule: Schedule,
    pub total: u64,
    pub epochs: u64,
    pub step: u64,
    /// Steps of the current epoch done.
    pub in_epoch: u64,
    pub steps_per_epoch: u64,
    pub skipped: usize,
    pub observe: &'a mut dyn FnMut(Event) -> bool,
}

/// Whether to go on.
#[derive(PartialEq)]
pub(crate) enum Flow {
    Continue,
    Stop,
}

impl Run<'_> {
    pub fn take(&mut self) -> Result<Clip, TrainError> {
        self.model.take().ok_or_else(|| TrainError::Config("the model was lost".to_string()))
    }

    pub fn epochs(&mut self, start: Start) -> Result<(), TrainError> {
        // Where exclusive batches leave pairs out, a number of steps takes more epochs.
        let end = match self.config.length {
            RunLength::Epochs(epochs) => epochs,
            RunLength::Steps(_) => u64::MAX,
        };
        for epoch in start.epoch..end {
            let done = if epoch == start.epoch { start.pairs } else { 0 };
            self.in_epoch = done / self.pairs_per_step();
            self.log.info(&format!("Start epoch {}", epoch + 1));
            let flow = self.epoch(epoch, done)?;
            if self.in_epoch == 0 {
                return Err(TrainError::Config(format!(
                    "no step of {} pairs is possible without pairs that share a picture or a \
                     caption: lower --batch-size or leave --exclusive-batches out",
                    self.pairs_per_step()
                )));
            }
            let due = |every: Option<u64>| every.is_some_and(|n| (epoch + 1).is_multiple_of(n));
            let mut names = Vec::new();
            let last = epoch + 1 == end || self.step >= self.total;
            let stopped = flow == Flow::Stop && self.step < self.total;
            // One that was stopped in its midst is not done.
            let done = !stopped || self.in_epoch == self.steps_per_epoch;
            if done && (last || due(self.config.save_epoch_frequency)) {
                names.push(format!("epoch{}.pt", epoch + 1));
            }
            names.push(LATEST.to_string());
            // Before the validation, which may fail.
            self.save(&names, epoch + 1)?;
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

    /// Pairs of a step, over all ranks.
    pub fn pairs_per_step(&self) -> u64 {
        let config = self.config;
        (config.batch_size * config.accum_freq * self.communicator.world_size()) as u64
    }

    /// This rank's batches of what is left of an epoch after `done` pairs, and the pairs of the
    /// whole epoch.
    fn loader(&self, epoch: u64, done: u64) -> Result<(Loader, usize), TrainError> {
        let config = self.config;
        let (rank, world) = (self.communicator.rank(), self.communicator.world_size());
        let options = LoaderOptions {
            batch_size: config.batch_size,
            context_length: config.context_length,
            workers: config.num_workers,
            prefetch: 2 * config.accum_freq,
            seed: mix(config.seed, epoch),
            first: done as usize + rank,
            stride: world,
            skip_bad_images: config.skip_bad_images,
        };
        let padded = padded_len(self.order.len(), config.batch_size * world);
        let transform = self.data.transform.clone();
        let loader = match &self.data.source {
            Source::Pairs(source) => {
                let order = self.order.order(config, &**source, world, epoch)?;
                let left = order.into_iter().skip(done as usize).skip(rank).step_by(world);
                Loader::new(source.clone(), transform, left.collect(), options)?
            }
            Source::Stream(stream) => {
                let part = Part {
                    seed: config.seed,
                    epoch,
                    rank,
                    world,
                    skip: done as usize / world,
                    take: usize::MAX,
                    shuffle: true,
                    buffer: config.shuffle_buffer,
                };
                Loader::stream(stream.samples(&part), transform, options)?
            }
        };
        Ok((loader, padded))
    }

    fn epoch(&mut self, epoch: u64, done: u64) -> Result<Flow, TrainError> {
        let accum = self.config.accum_freq;
        let (mut loader, padded) = self.loader(epoch, done)?;
        let mut seen = done;
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
            seen += self.pairs_per_step();
            let times = (data_time, began.elapsed());
            self.skipped += loader.take_skipped();
            let flow = self.after_step(epoch, (seen, padded), &output, times)?;
            if flow == Flow::Stop {
                return Ok(Flow::Stop);
            }
            began = Instant::now();
        }
        Ok(if self.step >= self.total { Flow::Stop } else { Flow::Continue })
    }

    fn one_step(&mut self, batches: &[MicroBatch], epoch: u64) -> Result<StepSummary, TrainError> {
        let config = self.config;
        let masked = epoch + config.flip_unmask_epochs < self.epochs;
        let options = StepOptions {
            mask_ratio: if masked { config.mask_ratio } else { 0.0 },
            precision: self.precision,
            loss_scale: self.loss_scale.map(|scale| scale.factor()),
            ..config.step_options()
        };
        let step = Step {
            options,
            communicator: self.communicator,
            teacher: self.teacher,
            seed: config.seed,
        };
        let model = self.take()?;
        let rate = self.schedule.rate(self.step);
        let logged = self.is_logged(self.step + 1);
        // What needs the norm of the whole gradient must wait for it; else no gradient is kept.
        let waits = config.clip_grad_norm.is_some() || self.loss_scale.is_some();
        let (figures, norm, mut model) = if waits {
            let StepOutput { gradients, figures } = step.run(&model, batches, self.step)?;
            self.check(figures)?;
            let norm = gradient_norm(&model, &gradients);
            let most = config.clip_grad_norm.unwrap_or(f64::INFINITY);
            let factor = (most / (norm + 1e-6)).min(1.0);
            // Every rank has the same gradients, and so the same scale.
            let model = match self.loss_scale.as_mut().is_none_or(|scale| scale.update(norm)) {
                true => self.optimizer.step(model, gradients, rate, factor),
                false => {
                    self.log.info(&format!(
                        "Gradients overflow fp16 at step {}: it is left out, and the loss scale \
                         halved",
                        self.step + 1
                    ));
                    model
                }
            };
            (figures, Some(norm), model)
        } else {
            let absorb = |part| self.optimizer.absorb(&model, part, 1.0, logged);
            let figures = step.run_into(&model, batches, self.step, &absorb)?;
            self.check(figures)?;
            let norm = logged.then(|| self.optimizer.norm(&model));
            (figures, norm, self.optimizer.apply(model, rate))
        };
        let Figures { loss, distillation, image_accuracy, text_accuracy } = figures;
        let summary = StepSummary { loss, distillation, image_accuracy, text_accuracy, rate, norm };
        model.logit_scale = clamp(model.logit_scale, config.logit_scale_max.ln());
        self.model = Some(model);
        self.step += 1;
        Ok(summary)
    }

    /// Fails where the loss is not a number any more.
    fn check(&self, figures: Figures) -> Result<(), TrainError> {
        match figures.loss.is_finite() {
            true => Ok(()),
            false => Err(TrainError::Diverged { step: self.step + 1, loss: figures.loss }),
        }
    }

    /// Whether there is a log line after this step.
    pub fn is_logged(&self, step: u64) -> bool {
        step.is_multiple_of(self.config.log_interval) || step == self.total
    }

    /// Saves the state; an epoch that is not finished is continued on resume.
    pub fn save(&self, names: &[String], epoch: u64) -> Result<(), TrainError> {
        let Some(model) = self.model.as_ref().filter(|_| self.communicator.rank() == 0) else {
            return Ok(());
        };
        let pairs = self.in_epoch * self.pairs_per_step();
        let epoch_pairs = (self.in_epoch < self.steps_per_epoch).then_some(pairs);
        let progress = Progress {
            epoch,
            step: self.step,
            name: self.config.name.clone(),
            epoch_pairs,
            loss_scale: self.loss_scale.map(|scale| (scale.factor() as u64, scale.steps())),
        };
        state::save(names, self.config, model, &self.optimizer, &progress, &self.log)
    }
}

/// The reference's clamp, to `[0, ln 100]` by default.
fn clamp(scale: Param<Tensor<1>>, most: f64) -> Param<Tensor<1>> {
    scale.map(|scale| Tensor::from_inner(scale.inner().clamp(0.0, most)).require_grad())
}
