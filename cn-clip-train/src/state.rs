//! Saving and resuming of a run.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use cn_clip_model::{
    Clip,
    checkpoint::{self, Checkpoint, Progress},
};

use crate::{TrainConfig, TrainError, log::RunLog, optimizer::AdamW};

/// Name of the checkpoint that a run of the same name continues from.
pub const LATEST: &str = "epoch_latest.pt";

/// Where a run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Start {
    /// First epoch, counted from 0.
    pub epoch: u64,
    /// Batches of that epoch already trained on.
    pub batches: u64,
    /// Steps done.
    pub step: u64,
}

/// The checkpoint a run should begin from, if any.
pub fn find(config: &TrainConfig, log: &RunLog) -> Option<PathBuf> {
    if config.resume.is_some() {
        return config.resume.clone();
    }
    let latest = config.checkpoints()?.join(LATEST);
    if !config.auto_resume || !latest.is_file() {
        return None;
    }
    log.warning(&format!(
        "this run continues `{}` because the name `{}` is in use: give another --name, or \
         --no-auto-resume, to begin anew",
        latest.display(),
        config.name
    ));
    Some(latest)
}

/// Loads weights, and optimizer state and position unless they are reset.
pub fn resume(
    path: &Path,
    config: &TrainConfig,
    model: Clip,
    optimizer: &mut AdamW,
    log: &RunLog,
) -> Result<(Clip, Start), TrainError> {
    let shown = path.display();
    log.info(&format!("=> begin to load checkpoint '{shown}'"));
    let checkpoint = Checkpoint::open(path)?;
    let model = checkpoint::load(model, &checkpoint)?;
    let progress = &checkpoint.progress;
    let start = match (config.reset_data_offset, progress.epoch_batches) {
        (true, _) => Start::default(),
        // Written in mid-epoch: that epoch is not finished.
        (false, Some(batches)) => {
            Start { epoch: progress.epoch.saturating_sub(1), batches, step: progress.step }
        }
        (false, None) => Start { epoch: progress.epoch, batches: 0, step: progress.step },
    };
    if !config.reset_optimizer {
        optimizer.restore(&model, &checkpoint)?;
        log.info("=> optimizer state is restored from the checkpoint");
    }
    log.info(&format!(
        "=> loaded checkpoint '{shown}' (epoch {} @ {} steps)",
        progress.epoch, start.step
    ));
    Ok((model, start))
}

/// Saves under each of `names` in the run's checkpoint directory.
pub fn save(
    names: &[String],
    config: &TrainConfig,
    model: &Clip,
    optimizer: &AdamW,
    progress: &Progress,
    log: &RunLog,
) -> Result<(), TrainError> {
    let Some(directory) = config.checkpoints() else { return Ok(()) };
    std::fs::create_dir_all(&directory).map_err(TrainError::io(&directory))?;
    let mut written: Option<PathBuf> = None;
    for name in names {
        let path = directory.join(name);
        let start = Instant::now();
        match &written {
            // The same content: copied, beside the name first.
            Some(first) => {
                let partial = directory.join(format!(".{name}.partial"));
                std::fs::copy(first, &partial)
                    .and_then(|_| std::fs::File::open(&partial)?.sync_all())
                    .and_then(|()| std::fs::rename(&partial, &path))
                    .map_err(TrainError::io(&path))
                    .inspect_err(|_| drop(std::fs::remove_file(&partial)))?;
            }
            None => checkpoint::save(&path, model, progress, Some(optimizer))?,
        }
        log.info(&format!(
            "Saved checkpoint {} (epoch {} @ {} steps) (writing took {} seconds)",
            path.display(),
            progress.epoch,
            progress.step,
            start.elapsed().as_secs_f64()
        ));
        written.get_or_insert(path);
    }
    Ok(())
}
