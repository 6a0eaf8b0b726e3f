//! `cn-clip preprocess`: the pixels the image tower sees, as a safetensors file.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, value_parser};
use cn_clip_data::image::{ImageTransform, save_pixels};

/// Flags of `cn-clip preprocess`.
#[derive(Args, Debug)]
pub struct PreprocessArgs {
    /// Picture file (PNG, JPEG, WebP, GIF or BMP)
    pub image: PathBuf,
    /// Side of the output in pixels
    #[arg(long, default_value_t = 224, value_parser = value_parser!(u16).range(1..=8192))]
    pub resolution: u16,
    /// safetensors file to write: tensor `pixels`, f32, [3, R, R]
    #[arg(long)]
    pub output: PathBuf,
}

/// Writes the normalised pixels of one picture.
///
/// # Errors
/// When the picture cannot be read or decoded, or the output cannot be written.
pub fn run(args: &PreprocessArgs) -> anyhow::Result<()> {
    let resolution = usize::from(args.resolution);
    let pixels = ImageTransform::new(resolution)
        .path_pixels(&args.image)
        .with_context(|| format!("preprocessing {}", args.image.display()))?;
    save_pixels(&args.output, &pixels, resolution)
        .with_context(|| format!("writing {}", args.output.display()))
}
