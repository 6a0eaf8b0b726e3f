//! `cargo xtask convert`: a checkpoint of any form into any other.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use clap::Args;
use cn_clip_model::{
    ClipConfig, TextConfig, VisionConfig,
    checkpoint::{Checkpoint, ConvertOptions, Dtype, Format, convert, detect_config},
};
use indicatif::{ProgressBar, ProgressStyle};

/// Word pieces of the official models.
const VOCABULARY: &str = include_str!("../../cn-clip-data/assets/vocab.txt");

/// Flags of `cargo xtask convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// Checkpoint: a .pt, .safetensors or .bpk file, a TorchScript archive, or a folder of a
    /// Hugging Face model
    #[arg(long, value_name = "PATH")]
    input: PathBuf,
    /// File, or folder for huggingface
    #[arg(long, value_name = "PATH")]
    output: PathBuf,
    /// burn, safetensors, huggingface or official; if not given, told by the extension of --output
    #[arg(long, value_name = "FORM")]
    to: Option<Format>,
    #[command(flatten)]
    model: ModelArgs,
    /// fp32, fp16 or bf16 [default: as in the input, fp32 for burn]
    #[arg(long)]
    dtype: Option<Dtype>,
    /// Replace an output that exists
    #[arg(long)]
    force: bool,
}

/// Flags that choose an architecture; what is not given is told by the weights.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// A published model: ViT-B-16, ViT-L-14, ViT-L-14-336, ViT-H-14 or RN50
    #[arg(long, value_name = "NAME", conflicts_with_all = ["vision_model", "text_model"])]
    model: Option<String>,
    /// Image tower: an official name or a JSON file
    #[arg(long, alias = "vision_model", value_name = "NAME|JSON")]
    vision_model: Option<String>,
    /// Text tower: an official name or a JSON file
    #[arg(long, alias = "text_model", value_name = "NAME|JSON")]
    text_model: Option<String>,
}

impl ModelArgs {
    /// The architecture they name, as far as they do; `None` if they name nothing.
    pub fn config(&self, input: &Path) -> anyhow::Result<Option<ClipConfig>> {
        Ok(Some(match (&self.model, &self.vision_model, &self.text_model) {
            (Some(name), _, _) => ClipConfig::published(name)?,
            (None, Some(vision), Some(text)) => ClipConfig::load(vision, text)?,
            (None, Some(vision), None) => ClipConfig {
                vision: VisionConfig::load(vision)?,
                ..detect_config(&Checkpoint::open(input)?)?
            },
            (None, None, Some(text)) => ClipConfig {
                text: TextConfig::load(text)?,
                ..detect_config(&Checkpoint::open(input)?)?
            },
            (None, None, None) => return Ok(None),
        }))
    }
}

/// Converts, and tells what was written.
pub fn run(args: &ConvertArgs) -> anyhow::Result<()> {
    let format = match args.to {
        Some(format) => format,
        None => Format::of_path(&args.output)
            .with_context(|| format!("{}: give --to", args.output.display()))?,
    };
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(
        "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
    )?);
    let shown = bar.clone();
    let options = ConvertOptions {
        config: args.model.config(&args.input)?,
        dtype: args.dtype,
        force: args.force,
        vocabulary: Some(VOCABULARY.to_string()),
        progress: Some(Arc::new(move |done, total| {
            shown.set_length(total);
            shown.set_position(done);
        })),
        ..ConvertOptions::new(format)
    };
    let converted = convert(&args.input, &args.output, &options)?;
    bar.finish_and_clear();
    println!(
        "{}: {format}, {} tensors, {:.1} MiB",
        args.output.display(),
        converted.tensors,
        converted.bytes as f64 / f64::from(1 << 20)
    );
    if converted.optimizer_left_out {
        eprintln!("note: the optimizer state of the input was left out");
    }
    Ok(())
}
