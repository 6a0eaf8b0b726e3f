//! `cn-clip similarity`: how well texts fit pictures, as in the example of the Python program.

use std::path::PathBuf;

use anyhow::bail;
use burn::tensor::activation::softmax;
use clap::Args;

use super::{device::DeviceArg, model::ModelArgs, print};

/// Flags of `cn-clip similarity`.
#[derive(Debug, Args)]
pub struct SimilarityArgs {
    /// Picture files
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// A text to compare with; repeat for more
    #[arg(long, required = true)]
    text: Vec<String>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArg,
}

/// Prints, for each picture, the probability of each text.
pub fn run(args: &SimilarityArgs) -> anyhow::Result<()> {
    let model = args.model.load(&args.device.open()?)?;
    let images = model.image_features(&args.images)?;
    let texts = model.text_features(&args.text);
    let probabilities: Vec<f32> =
        softmax(model.similarity(images, texts), 1).into_data().try_into_vec()?;
    if probabilities.iter().any(|probability| !probability.is_finite()) {
        bail!("{}: the weights give features that are NaN or infinite", args.model.name());
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
