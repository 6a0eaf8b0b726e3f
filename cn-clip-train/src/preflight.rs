//! What people ask for help with most is a fine-tuning whose loss does not fall. This says before
//! the first step, in plain words, what is likely to go wrong and what to do.

use std::path::Path;

use cn_clip_data::inspect::Inspection;
use cn_clip_model::clip::INITIAL_LOGIT_SCALE;

use crate::{Plan, TrainConfig};

/// Share of other pairs of a batch that may be positives before it is worth a warning.
const FALSE_NEGATIVES: f64 = 0.005;
/// Share of texts that may be cut.
const CUT: f64 = 0.05;
/// Share of word pieces that may be unknown.
const UNKNOWN: f64 = 0.02;
/// The published recipes fine-tune with this learning rate…
const RECIPE_RATE: f64 = 5e-5;
/// … and this global batch.
const RECIPE_BATCH: f64 = 1024.0;

/// Something worth knowing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whether something should be done.
    pub warning: bool,
    /// What, and what to do.
    pub message: String,
}

fn note(message: String) -> Finding {
    Finding { warning: false, message }
}

fn warn(message: String) -> Finding {
    Finding { warning: true, message }
}

/// How a run is set up, beside its flags.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Its pairs and steps.
    pub plan: Plan,
    /// Ranks.
    pub world: usize,
    /// Logit scale of the model that training begins with.
    pub logit_scale: f32,
    /// Whether the image tower is a ResNet.
    pub resnet: bool,
}

/// What is said of a run that goes on with a checkpoint because its name is in use.
pub fn continued(config: &TrainConfig, checkpoint: &Path) -> Finding {
    warn(format!(
        "this run continues `{}` because the name `{}` is in use: give another --name, or \
         --no-auto-resume, to begin anew",
        checkpoint.display(),
        config.name
    ))
}

/// Looks at the settings of a run.
pub fn settings(config: &TrainConfig, setup: &Setup) -> Vec<Finding> {
    let mut found = Vec::new();
    let global = config.batch_size * config.accum_freq * setup.world;
    let Plan { pairs, steps_per_epoch, steps, .. } = setup.plan;
    found.push(note(format!(
        "{pairs} pairs, {global} in a step: {steps_per_epoch} steps in an epoch, {steps} in all"
    )));
    if steps_per_epoch < 10 {
        found.push(warn(format!(
            "a step takes {:.0} % of the data set: lower --batch-size, or train many epochs",
            100.0 * global as f64 / pairs.max(1) as f64
        )));
    }
    if global < 64 {
        found.push(warn(format!(
            "{global} pairs in a step give each pair only {} negatives, and contrastive learning \
             lives on them: raise --accum-freq, which costs time but no memory",
            global.saturating_sub(1)
        )));
    }
    let pretrained = (setup.logit_scale - INITIAL_LOGIT_SCALE).abs() > 1e-3;
    found.push(match pretrained {
        true => note(format!(
            "weights are loaded: the logit scale is {:.2} (4.61 in the published models)",
            setup.logit_scale
        )),
        false => warn(format!(
            "no trained weights: the logit scale is {:.2}, that of a new model; to fine-tune, name \
             a checkpoint by --resume with --reset-optimizer and --reset-data-offset",
            setup.logit_scale
        )),
    });
    let rate = config.optimizer.lr;
    let usual = RECIPE_RATE * (global as f64 / RECIPE_BATCH).sqrt();
    if pretrained && rate > 8.0 * usual {
        found.push(warn(format!(
            "--lr {rate:e} is high for fine-tuning with {global} pairs in a step, and may undo \
             what the model knows: the published recipes take {RECIPE_RATE:e} with {RECIPE_BATCH:.0} \
             pairs, which here is about {usual:.0e}"
        )));
    }
    if !pretrained && rate < 5e-5 {
        found.push(warn(format!(
            "--lr {rate:e} is low for a model that begins from nothing: 5e-4 is usual"
        )));
    }
    if config.warmup >= steps {
        found.push(warn(format!(
            "--warmup {} is as long as the run of {} steps, so the learning rate never reaches \
             --lr: lower it, to about a tenth of the steps",
            config.warmup, steps
        )));
    }
    if config.mask_ratio > 0.0 && setup.resnet {
        found.push(warn("--mask-ratio does nothing to a ResNet: leave it out".to_string()));
    }
    if config.mask_ratio > 0.0 && config.flip_unmask_epochs == 0 {
        found.push(note(
            "pictures are masked to the end: --flip-unmask-epochs 1 closes the gap to whole \
             pictures"
                .to_string(),
        ));
    }
    found
}

/// Looks at what was found in the training data.
pub fn data(config: &TrainConfig, inspection: &Inspection, global: usize) -> Vec<Finding> {
    let mut found = Vec::new();
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let Inspection { pairs, images, captions, .. } = *inspection;
    found.push(note(format!(
        "{pairs} of {} pairs looked at: {images} pictures, {captions} different captions",
        inspection.total
    )));
    let share = inspection.false_negatives();
    let expected = share * global.saturating_sub(1) as f64;
    if (share > FALSE_NEGATIVES || expected > 1.0) && !config.exclusive_batches {
        let advice = match inspection.stream {
            true => "make an LMDB of these shards by cn-clip shard, and add --dedup-batch",
            false => "add --dedup-batch",
        };
        found.push(warn(format!(
            "in a step of {global} pairs each shares its picture or caption with {expected:.1} \
             others on average, which are taken for negatives: {advice}"
        )));
    }
    if inspection.cut_share() > CUT {
        found.push(warn(format!(
            "{} of the texts are longer than {} tokens and are cut: raise --context-length",
            percent(inspection.cut_share()),
            config.context_length
        )));
    }
    if inspection.blank > 0 {
        found.push(warn(format!(
            "{} texts hold nothing to read: remove their pairs",
            inspection.blank
        )));
    }
    if inspection.unknown_share() > UNKNOWN {
        found.push(warn(format!(
            "{} of the word pieces are [UNK], which the vocabulary does not know: look for \
             another language, another encoding of the text or rare symbols",
            percent(inspection.unknown_share())
        )));
    }
    match inspection.unreadable {
        0 => found.push(note(format!("{} pictures can be read", inspection.tried))),
        bad => {
            let reasons = inspection.reasons.join("; ");
            let advice = match config.skip_bad_images {
                true => "they are skipped",
                false => "replace them, or add --skip-bad-images",
            };
            let tried = inspection.tried;
            found.push(warn(format!(
                "{bad} of {tried} pictures cannot be read: {advice} ({reasons})"
            )));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan { pairs: 100_000, steps_per_epoch: 1000, epochs: 3, steps: 3000 };
    const SETUP: Setup = Setup { plan: PLAN, world: 1, logit_scale: 4.6, resnet: false };

    fn warnings(found: Vec<Finding>) -> String {
        let warnings: Vec<String> =
            found.into_iter().filter(|f| f.warning).map(|f| f.message).collect();
        warnings.join("\n")
    }

    #[test]
    fn a_sound_set_up_has_no_warning() {
        let mut config = TrainConfig { batch_size: 128, warmup: 100, ..TrainConfig::default() };
        config.optimizer.lr = 5e-5;
        assert_eq!(warnings(settings(&config, &SETUP)), "");
        let inspection = Inspection {
            total: 1000,
            pairs: 1000,
            images: 1000,
            captions: 1000,
            tokens: 10_000,
            tried: 100,
            ..Inspection::default()
        };
        assert_eq!(warnings(data(&config, &inspection, 128)), "");
    }

    #[test]
    fn each_mistake_is_named_with_its_flag() {
        let config = TrainConfig { batch_size: 16, warmup: 100, ..TrainConfig::default() };
        let said = |setup: Setup, change: &dyn Fn(&mut TrainConfig)| {
            let mut config = config.clone();
            change(&mut config);
            warnings(settings(&config, &setup))
        };
        let all = said(SETUP, &|config| config.warmup = 5000);
        for flag in ["--accum-freq", "--lr 5e-4 is high", "--warmup 5000"] {
            assert!(all.contains(flag), "{flag}: {all}");
        }
        let fresh = Setup { logit_scale: INITIAL_LOGIT_SCALE, resnet: true, ..SETUP };
        let all = said(fresh, &|config| {
            config.optimizer.lr = 1e-6;
            config.mask_ratio = 0.5;
        });
        for flag in ["--resume", "is low", "ResNet"] {
            assert!(all.contains(flag), "{flag}: {all}");
        }
        let small = Setup { plan: Plan { pairs: 100, steps_per_epoch: 7, ..PLAN }, ..SETUP };
        assert!(said(small, &|_| ()).contains("% of the data set"));
    }

    #[test]
    fn each_fault_of_the_data_is_named_with_what_to_do() {
        let inspection = Inspection {
            total: 100,
            pairs: 100,
            couples: 500,
            cut: 10,
            blank: 1,
            tokens: 1000,
            unknown: 100,
            tried: 10,
            unreadable: 2,
            reasons: vec!["image 7: truncated".to_string()],
            ..Inspection::default()
        };
        let all = warnings(data(&TrainConfig::default(), &inspection, 64));
        let flags =
            ["--dedup-batch", "--context-length", "nothing to read", "[UNK]", "--skip-bad-images"];
        for flag in flags {
            assert!(all.contains(flag), "{flag}: {all}");
        }
        assert!(all.contains("image 7: truncated"));
        // Batches of a stream cannot be arranged.
        let stream = Inspection { stream: true, ..inspection };
        let all = warnings(data(&TrainConfig::default(), &stream, 64));
        assert!(all.contains("make an LMDB"), "{all}");
    }
}
