//! What the commands share that encode pictures and texts.

use std::fmt;

use anyhow::bail;
use clap::Args;
use cn_clip_model::{Clip, ClipConfig, Precision};
use indicatif::{ProgressBar, ProgressStyle};

/// `--precision` of inference.
#[derive(Debug, Clone, Args)]
pub struct PrecisionArg {
    /// Numbers to compute with: fp32, bf16, fp16, int16 (faster on x86-64 processors), or amp,
    /// which is fp32 as in the Python program
    #[arg(long, default_value = "amp", value_name = "PRECISION", value_parser = parse)]
    precision: Precision,
}

fn parse(name: &str) -> Result<Precision, cn_clip_model::ModelError> {
    if name == "amp" { Ok(Precision::Fp32) } else { name.parse() }
}

impl fmt::Display for PrecisionArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.precision.fmt(f)
    }
}

impl PrecisionArg {
    /// The model in this precision.
    ///
    /// # Errors
    /// If its device has not that kind of number.
    pub fn apply(&self, model: Clip) -> anyhow::Result<Clip> {
        let device = model.device();
        if !self.precision.is_supported(&device) {
            let known = Precision::supported_names(&device).join(", ");
            bail!("--precision {self}: this device has only {known}");
        }
        match self.precision {
            Precision::Fp32 => Ok(model),
            reduced => Ok(reduced.copy(&model)),
        }
    }
}

/// Refuses a `--context-length` that the text tower has no positions for.
pub fn context_length(length: usize, config: &ClipConfig) -> anyhow::Result<()> {
    let positions = config.text.max_positions;
    if !(2..=positions).contains(&length) {
        bail!(
            "--context-length must be between 2 and {positions}, the positions of the text tower"
        );
    }
    Ok(())
}

/// A bar on a terminal, with the time left.
pub fn progress(total: usize, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(total as u64).with_message(what);
    let style = "{bar:30} {pos}/{len} {msg} | {per_sec} | {eta} left";
    match ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
