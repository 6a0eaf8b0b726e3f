//! Saving and resuming of a run.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use cn_clip_model::{
    Clip,
    checkpoint::{self, Checkpoint, Progress},
};

use crate::{
    TrainConfig, TrainError, log::RunLog, loss_scale::LossScale, optimizer::AdamW, preflight,
};

/// Name of the checkpoint that a run of the same name continues from.
pub const LATEST: &str = "epoch_latest.pt";

/// Where a run begins.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Start {
    /// First epoch, counted from 0.
    pub epoch: u64,
    /// Pairs of that epoch already trained on, over all ranks.
    pub pairs: u64,
    /// Steps done.
    pub step: u64,
    /// Loss scale in fp16.
    pub loss_scale: LossScale,
}

/// The checkpoint a run begins from, if any: that of `--resume`, or the last of a run of the same
/// name.
pub fn begins_from(config: &TrainConfig) -> Option<PathBuf> {
    if config.resume.is_some() {
        return config.resume.clone();
    }
    let latest = config.checkpoints()?.join(LATEST);
    (config.auto_resume && latest.is_file()).then_some(latest)
}

/// As [`begins_from`], and says so where nobody has asked for it.
pub fn find(config: &TrainConfig, log: &RunLog) -> Option<PathBuf> {
    let path = begins_from(config)?;
    if config.resume.is_none() {
        log.warning(&preflight::continued(config, &path).message);
    }
    Some(path)
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
    if let Some((old, new)) = checkpoint::resized_grid(&model, &checkpoint) {
        log.info(&format!(
            "Resizing position embedding grid-size from ({old}, {old}) to ({new}, {new})"
        ));
    }
    let model = checkpoint::load(model, &checkpoint)?;
    let progress = &checkpoint.progress;
    let scale = progress.loss_scale.map(|(factor, steps)| LossScale::new(factor, steps));
    let loss_scale = scale.filter(|_| !config.reset_optimizer).unwrap_or_default();
    let start = match (config.reset_data_offset, progress.epoch_pairs) {
        (true, _) => Start { loss_scale, ..Start::default() },
        // Written in mid-epoch: that epoch is not finished.
        (false, Some(pairs)) => Start {
            epoch: progress.epoch.saturating_sub(1),
            pairs,
            step: progress.step,
            loss_scale,
        },
        (false, None) => Start { epoch: progress.epoch, pairs: 0, step: progress.step, loss_scale },
    };
    if !config.reset_optimizer {
        optimizer.restore(&model, &checkpoint, &config.step_options())?;
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
    fs::create_dir_all(&directory).map_err(TrainError::io(&directory))?;
    let mut written: Option<PathBuf> = None;
    for name in names {
        let path = directory.join(name);
        let start = Instant::now();
        match &written {
            // The same content: copied, beside the name first.
            Some(first) => {
                let partial = directory.join(format!(".{name}.partial"));
                fs::copy(first, &partial)
                    .and_then(|_| fs::File::open(&partial)?.sync_all())
                    .and_then(|()| fs::rename(&partial, &path))
                    .map_err(TrainError::io(&path))
                    .inspect_err(|_| drop(fs::remove_file(&partial)))?;
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
    config.keep_checkpoints.map_or(Ok(()), |keep| remove_old(&directory, keep.max(1), log))
}

/// Removes all but the newest `keep` of the checkpoints `epochN.pt` and `epoch_E_S.pt`.
fn remove_old(directory: &Path, keep: usize, log: &RunLog) -> Result<(), TrainError> {
    let failed = || TrainError::io(directory);
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        if is_numbered(&entry.file_name().to_string_lossy()) {
            let time = entry.metadata().and_then(|data| data.modified()).map_err(failed())?;
            found.push((time, entry.path()));
        }
    }
    found.sort();
    let old = found.len().saturating_sub(keep);
    for (_, path) in found.drain(..old) {
        fs::remove_file(&path).map_err(TrainError::io(&path))?;
        log.info(&format!("Removed checkpoint {}", path.display()));
    }
    Ok(())
}

/// Whether a file name is one that training gives, other than [`LATEST`].
fn is_numbered(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("epoch").and_then(|rest| rest.strip_suffix(".pt")) else {
        return false;
    };
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    match rest.strip_prefix('_') {
        None => number(rest),
        Some(rest) => rest.split_once('_').is_some_and(|(a, b)| number(a) && number(b)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbered_checkpoints_are_old_ones() {
        for name in ["epoch1.pt", "epoch12.pt", "epoch_3_1500.pt"] {
            assert!(is_numbered(name), "{name}");
        }
        for name in ["epoch_latest.pt", "epoch.pt", "best.pt", "epoch1.pt.bak", "epoch_1_x.pt"] {
            assert!(!is_numbered(name), "{name}");
        }
    }
}
