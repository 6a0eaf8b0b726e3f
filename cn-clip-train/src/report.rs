//! What a run tells of its steps and validations.

use std::time::Duration;

use crate::{
    TrainError,
    metrics::memory_mib,
    run::{Flow, Run},
    state::LATEST,
    trainer::Event,
    validate::validate,
};

/// What is reported of a step once its gradients are used up.
pub(crate) struct StepSummary {
    pub loss: f32,
    pub distillation: Option<f32>,
    pub image_accuracy: f32,
    pub text_accuracy: f32,
    pub rate: f64,
    /// Norm of the gradient, where it was needed.
    pub norm: Option<f64>,
}

impl Run<'_> {
    pub fn after_step(
        &mut self,
        epoch: u64,
        (seen, padded): (u64, usize),
        output: &StepSummary,
        (data_time, batch_time): (Duration, Duration),
    ) -> Result<Flow, TrainError> {
        let config = self.config;
        let scale = self.logit_scale();
        self.log.advance(self.step, output.loss);
        let (step, total, loss, rate) = (self.step, self.total, output.loss, output.rate);
        if self.is_logged(step) || self.in_epoch == self.steps_per_epoch {
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
                self.pairs_per_step(),
            ));
            let seconds = batch_time.as_secs_f64();
            self.metrics.write(
                "train",
                step,
                epoch + 1,
                &[
                    ("loss", f64::from(loss)),
                    ("image_accuracy", f64::from(output.image_accuracy)),
                    ("text_accuracy", f64::from(output.text_accuracy)),
                    ("distillation_loss", output.distillation.map_or(f64::NAN, f64::from)),
                    ("lr", rate),
                    ("logit_scale", f64::from(scale)),
                    ("gradient_norm", output.norm.unwrap_or(f64::NAN)),
                    ("pairs_per_second", self.pairs_per_step() as f64 / seconds),
                    ("data_seconds", data_time.as_secs_f64()),
                    ("batch_seconds", seconds),
                    ("memory_mib", memory_mib().unwrap_or(f64::NAN)),
                ],
            )?;
        }
        let go_on = (self.observe)(Event::Step { step, loss, rate, logit_scale: scale });
        let stops = self.communicator.all_reduce_sum(vec![if go_on { 0.0 } else { 1.0 }])?;
        let go_on = stops.iter().all(|stops| *stops == 0.0);
        let due = |every: Option<u64>| every.is_some_and(|n| step.is_multiple_of(n));
        if due(config.save_step_frequency) {
            let names = [format!("epoch_{}_{step}.pt", epoch + 1), LATEST.to_string()];
            self.save(&names, epoch + 1)?;
        }
        if due(config.valid_step_interval) {
            self.validate(epoch + 1)?;
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

    pub fn validate(&mut self, epoch: u64) -> Result<(), TrainError> {
        let (Some(data), Some(model)) = (self.validation, &self.model) else { return Ok(()) };
        let step = self.step;
        self.log
            .info(&format!("Begin to eval on validation set (epoch {epoch} @ {step} steps)..."));
        let result = validate(model, data, self.config, self.communicator, &self.log)?;
        self.log.info(&format!(
            "Validation Result (epoch {epoch} @ {step} steps) | Valid Loss: {:.6} | Image2Text \
             Acc: {:.2} | Text2Image Acc: {:.2} | logit_scale: {:.3} | Valid Batch Size: {}",
            result.loss,
            result.image_accuracy * 100.0,
            result.text_accuracy * 100.0,
            self.logit_scale(),
            result.last_batch
        ));
        let mut numbers = vec![
            ("loss", f64::from(result.loss)),
            ("image_accuracy", f64::from(result.image_accuracy)),
            ("text_accuracy", f64::from(result.text_accuracy)),
        ];
        if let Some(recall) = result.recall {
            let [text_to_image, image_to_text] = [recall.text_to_image, recall.image_to_text]
                .map(|recall| recall.map(|share| f64::from(share) * 100.0));
            let line = |[r1, r5, r10]: [f64; 3]| format!("{r1:.2}/{r5:.2}/{r10:.2}");
            self.log.info(&format!(
                "Validation Recall (epoch {epoch} @ {step} steps) | Text2Image R@1/5/10: {} | \
                 Image2Text R@1/5/10: {}",
                line(text_to_image),
                line(image_to_text)
            ));
            let names = ["text_to_image_r1", "text_to_image_r5", "text_to_image_r10"];
            numbers.extend(names.into_iter().zip(text_to_image));
            let names = ["image_to_text_r1", "image_to_text_r5", "image_to_text_r10"];
            numbers.extend(names.into_iter().zip(image_to_text));
        }
        self.metrics.write("valid", step, epoch, &numbers)?;
        (self.observe)(Event::Validation { step, result });
        Ok(())
    }
}
