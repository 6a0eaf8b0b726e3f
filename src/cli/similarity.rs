//! `cn-clip similarity`: how well texts fit pictures, as in the example of the Python program.

use std::path::PathBuf;

use anyhow::{Context, bail};
use burn::tensor::{Tensor, TensorData, activation::softmax};
use clap::Args;
use cn_clip_data::{
    image::ImageTransform,
    tokenizer::{CONTEXT_LENGTH, Tokenizer},
};
use cn_clip_model::{ClipConfig, Pass, hub, normalize, token_tensor};

use super::{
    device::DeviceArg,
    model::{self, TowerArgs},
    print,
};

/// Flags of `cn-clip similarity`.
#[derive(Debug, Args)]
pub struct SimilarityArgs {
    /// Picture files
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// A text to compare with; repeat for more
    #[arg(long, required = true)]
    text: Vec<String>,
    /// Weights; if not given, those of --model in --download-root
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// A published model: ViT-B-16, ViT-L-14, ViT-L-14-336, ViT-H-14 or RN50
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Directory of the published weights [default: ~/.cache/clip]
    #[arg(long, alias = "download_root", value_name = "DIR")]
    download_root: Option<PathBuf>,
    #[command(flatten)]
    towers: TowerArgs,
    #[command(flatten)]
    device: DeviceArg,
}

/// Prints, for each picture, the probability of each text.
pub fn run(args: &SimilarityArgs) -> anyhow::Result<()> {
    let config = match &args.model {
        Some(name) => ClipConfig::published(name)?,
        None => args.towers.config()?,
    };
    let path = match (&args.checkpoint, &args.model) {
        (Some(path), _) => path.clone(),
        (None, name) => {
            hub::find(name.as_deref().unwrap_or("ViT-B-16"), args.download_root.as_deref())?
        }
    };
    let device = args.device.open()?;
    let model = model::load(&config, &path, &device)?;
    let transform = ImageTransform::new(config.vision.image_resolution);
    let mut pixels = Vec::new();
    for path in &args.images {
        let picture = transform.path_pixels(path);
        pixels.extend(picture.with_context(|| format!("picture {}", path.display()))?);
    }
    let side = config.vision.image_resolution;
    let shape = [args.images.len(), 3, side, side];
    let pixels = Tensor::from_data(TensorData::new(pixels, shape), &device);
    let length = CONTEXT_LENGTH.min(config.text.max_positions);
    let tokens = Tokenizer::chinese().encode_batch(&args.text, length);
    let images = normalize(model.encode_image(pixels, None, Pass::Eval));
    let texts = normalize(model.encode_text(token_tensor(&tokens, length, &device), Pass::Eval));
    let probabilities: Vec<f32> =
        softmax(model.similarity(images, texts), 1).into_data().try_into_vec()?;
    if probabilities.iter().any(|probability| !probability.is_finite()) {
        bail!("{}: the weights give features that are NaN or infinite", path.display());
    }
    let mut lines = String::new();
    for (image, row) in args.images.iter().zip(probabilities.chunks(args.text.len())) {
        lines.push_str(&format!("{}\n", image.display()));
        for (text, probability) in args.text.iter().zip(row) {
            lines.push_str(&format!("  {probability:.6}  {text}\n"));
        }
    }
    print(&lines)
}
