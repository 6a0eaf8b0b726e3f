//! The settings of a run as the Python program writes them down: `params_<time>.txt`.

use std::path::PathBuf;

use crate::{TrainConfig, optimizer::DecayGroups};

impl TrainConfig {
    /// `name: value` of every parameter under the reference's names, sorted, in Python's notation.
    pub fn describe(&self, epochs: u64, steps: u64, world: usize) -> Vec<(&'static str, String)> {
        let flag = |value: bool| if value { "True" } else { "False" }.to_string();
        let every = |value: Option<u64>| value.map_or("None".to_string(), |n| n.to_string());
        let path = |path: &Option<PathBuf>| {
            path.as_ref().map_or("None".to_string(), |path| path.display().to_string())
        };
        let mut lines = vec![
            ("accum_freq", self.accum_freq.to_string()),
            ("batch_size", self.batch_size.to_string()),
            ("bert_weight_path", path(&self.bert_weight_path)),
            ("beta1", python_float(self.optimizer.beta1)),
            ("beta2", python_float(self.optimizer.beta2)),
            ("checkpoint_path", path(&self.checkpoints())),
            ("clip_grad_norm", self.clip_grad_norm.map_or("None".to_string(), python_float)),
            ("clip_weight_path", path(&self.clip_weight_path)),
            ("context_length", self.context_length.to_string()),
            (
                "decay_groups",
                match self.optimizer.decay_groups {
                    DecayGroups::Reference => "reference".to_string(),
                    DecayGroups::Correct => "correct".to_string(),
                },
            ),
            ("device", self.device.clone()),
            ("distillation", flag(self.teacher.is_some())),
            ("eps", python_float(self.optimizer.eps)),
            ("exclusive_batches", flag(self.exclusive_batches)),
            ("flip_unmask_epochs", self.flip_unmask_epochs.to_string()),
            ("freeze_text", flag(self.freeze_text)),
            ("freeze_vision", flag(self.freeze_vision)),
            ("grad_checkpointing", flag(self.grad_checkpointing)),
            ("kd_loss_weight", python_float(self.kd_loss_weight)),
            ("keep_checkpoints", every(self.keep_checkpoints.map(|keep| keep as u64))),
            ("layer_decay", python_float(self.optimizer.layer_decay)),
            ("log_interval", self.log_interval.to_string()),
            ("logit_scale_max", python_float(self.logit_scale_max)),
            ("logs", path(&self.logs)),
            ("lr_scheduler", format!("{:?}", self.decay).to_lowercase()),
            ("lr", python_float(self.optimizer.lr)),
            ("mask_ratio", python_float(self.mask_ratio)),
            ("max_epochs", epochs.to_string()),
            ("max_steps", steps.to_string()),
            ("name", self.name.clone()),
            ("num_workers", self.num_workers.to_string()),
            ("one_caption_per_image", flag(self.one_caption_per_image)),
            (
                "precision",
                self.precision.map_or("amp".to_string(), |precision| precision.to_string()),
            ),
            ("rank", "0".to_string()),
            ("report_training_batch_acc", flag(self.report_training_batch_acc)),
            ("reset_data_offset", flag(self.reset_data_offset)),
            ("reset_optimizer", flag(self.reset_optimizer)),
            ("resume", path(&self.resume)),
            ("save_epoch_frequency", every(self.save_epoch_frequency)),
            ("save_step_frequency", every(self.save_step_frequency)),
            ("seed", self.seed.to_string()),
            ("shuffle_buffer", self.shuffle_buffer.to_string()),
            ("skip_bad_images", flag(self.skip_bad_images)),
            ("teacher", self.teacher.clone().unwrap_or("None".to_string())),
            ("text_model", self.text_model.clone()),
            ("train_data", self.train_data.clone()),
            ("val_data", self.val_data.clone().unwrap_or("None".to_string())),
            ("use_augment", flag(self.use_augment)),
            ("use_bn_sync", flag(self.use_bn_sync)),
            ("unlocked_text_blocks", self.unlocked_text_blocks.to_string()),
            ("unlocked_vision_blocks", self.unlocked_vision_blocks.to_string()),
            ("valid_recall", flag(self.valid_recall)),
            ("valid_batch_size", self.valid_batch_size.to_string()),
            ("valid_num_workers", self.valid_num_workers.unwrap_or(self.num_workers).to_string()),
            ("valid_epoch_interval", every(self.valid_epoch_interval)),
            ("valid_step_interval", every(self.valid_step_interval)),
            ("vision_model", self.vision_model.clone()),
            ("warmup", self.warmup.to_string()),
            ("wd", python_float(self.optimizer.wd)),
            ("world_size", world.to_string()),
        ];
        lines.sort_unstable_by_key(|(name, _)| *name);
        lines
    }
}

/// A float as Python prints it.
fn python_float(value: f64) -> String {
    if value == 0.0 || (1e-4..1e16).contains(&value.abs()) {
        return format!("{value:?}");
    }
    let text = format!("{value:e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let (sign, digits) = match exponent.strip_prefix('-') {
                Some(digits) => ('-', digits),
                None => ('+', exponent),
            };
            format!("{mantissa}e{sign}{digits:0>2}")
        }
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_in_python() {
        for (value, expected) in [
            (1e-6, "1e-06"),
            (0.001, "0.001"),
            (0.2, "0.2"),
            (0.0, "0.0"),
            (5e-5, "5e-05"),
            (1.0, "1.0"),
        ] {
            assert_eq!(python_float(value), expected);
        }
    }
}
