//! `cargo xtask features`: features of recorded inputs, for comparison with another program.

use std::{fs, path::PathBuf};

use anyhow::{Context, ensure};
use burn::tensor::{Device, Int, Tensor, TensorData};
use clap::Args;
use cn_clip_model::{
    Clip, Pass,
    checkpoint::{self, Checkpoint, detect_config},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::convert::ModelArgs;

/// Flags of `cargo xtask features`.
#[derive(Debug, Args)]
pub struct FeaturesArgs {
    /// Weights of any form
    #[arg(long, value_name = "PATH")]
    checkpoint: PathBuf,
    /// Safetensors file with `pixels` [batch, 3, R, R], fp32, and `tokens` [batch, length], int64
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// Safetensors file for `image_features` and `text_features`
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
}

/// Computes and writes them, not normalised.
pub fn run(args: &FeaturesArgs) -> anyhow::Result<()> {
    let weights = Checkpoint::open(&args.checkpoint)?;
    let config = match args.model.config(&args.checkpoint)? {
        Some(config) => config,
        None => detect_config(&weights)?,
    };
    let device = Device::default();
    let model = checkpoint::load(Clip::init(&config, &device, 0), &weights)?;
    let bytes = fs::read(&args.inputs).with_context(|| args.inputs.display().to_string())?;
    let inputs = SafeTensors::deserialize(&bytes)?;
    let (pixels, tokens) = (inputs.tensor("pixels")?, inputs.tensor("tokens")?);
    ensure!(pixels.dtype() == Dtype::F32 && tokens.dtype() == Dtype::I64, "types of the inputs");
    let values: Vec<f32> =
        pixels.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let ids: Vec<i64> =
        tokens.data().as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect();
    let pixels = Tensor::<4>::from_data(TensorData::new(values, pixels.shape().to_vec()), &device);
    let tokens =
        Tensor::<2, Int>::from_data(TensorData::new(ids, tokens.shape().to_vec()), &device);
    let features = [
        ("image_features", model.encode_image(pixels, None, Pass::Eval)),
        ("text_features", model.encode_text(tokens, Pass::Eval)),
    ];
    let mut found = Vec::new();
    for (name, tensor) in features {
        let shape = tensor.dims().to_vec();
        let values: Vec<f32> = tensor.into_data().try_into_vec()?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        found.push((name, shape, bytes));
    }
    let views = found
        .iter()
        .map(|(name, shape, bytes)| Ok((*name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    safetensors::serialize_to_file(views, None, &args.output)?;
    Ok(())
}
