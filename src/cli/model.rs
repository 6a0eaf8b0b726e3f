//! Flags that choose a model and its weights.

use std::path::PathBuf;

use burn::{module::Module, tensor::Device};
use clap::Args;
use cn_clip_model::{
    Clip, ClipConfig,
    checkpoint::{self, Checkpoint},
};

/// The two towers.
#[derive(Debug, Clone, Args)]
pub struct TowerArgs {
    /// Image tower: ViT-B-32, ViT-B-16, ViT-L-14, ViT-L-14-336, ViT-H-14, RN50, or a JSON file
    #[arg(long, alias = "vision_model", value_name = "NAME|JSON", default_value = "ViT-B-16")]
    pub vision_model: String,
    /// Text tower: RoBERTa-wwm-ext-base-chinese, RoBERTa-wwm-ext-large-chinese, RBT3-chinese, or a
    /// JSON file
    #[arg(
        long,
        alias = "text_model",
        value_name = "NAME|JSON",
        default_value = "RoBERTa-wwm-ext-base-chinese"
    )]
    pub text_model: String,
}

impl TowerArgs {
    /// The configuration they name.
    pub fn config(&self) -> anyhow::Result<ClipConfig> {
        Ok(ClipConfig::load(&self.vision_model, &self.text_model)?)
    }
}

/// Loads a checkpoint for inference.
pub fn load(config: &ClipConfig, path: &PathBuf, device: &Device) -> anyhow::Result<Clip> {
    let loaded = Checkpoint::open(path)
        .and_then(|checkpoint| checkpoint::load(Clip::init(config, device, 0), &checkpoint));
    Ok(loaded?.valid())
}
