//! Flags that choose a model and its weights.

use std::path::PathBuf;

use burn::{module::Module, tensor::Device};
use clap::Args;
use cn_clip::{LoadOptions, Model, load_from_name, load_from_path};
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

/// A model by name or by its weights.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// A published model, downloaded if it is not on this machine: ViT-B-16, ViT-L-14,
    /// ViT-L-14-336, ViT-H-14 or RN50 [default: ViT-B-16]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Folder of the published weights and of what is downloaded [default: $CN_CLIP_HOME or
    /// ~/.cache/clip]
    #[arg(long, alias = "download_root", value_name = "DIR")]
    pub download_root: Option<PathBuf>,
    /// Weights instead of the published ones
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// Image tower, a name or a JSON file [default: that of --model, or as the shapes in
    /// --checkpoint tell]
    #[arg(long, alias = "vision_model", value_name = "NAME|JSON")]
    pub vision_model: Option<String>,
    /// Text tower, a name or a JSON file [default: that of --model, or as the shapes in
    /// --checkpoint tell]
    #[arg(long, alias = "text_model", value_name = "NAME|JSON")]
    pub text_model: Option<String>,
}

impl ModelArgs {
    /// Loads it for inference.
    pub fn load(&self, device: &Device) -> anyhow::Result<Model> {
        let options = LoadOptions {
            download_root: self.download_root.clone(),
            config: self.config()?,
            offline: false,
            progress: true,
        };
        Ok(match &self.checkpoint {
            Some(path) => load_from_path(path, device, &options)?,
            None => load_from_name(self.published(), device, &options)?,
        })
    }

    /// What it is called in messages.
    pub fn name(&self) -> String {
        let path = self.checkpoint.as_ref().map(|path| path.display().to_string());
        path.unwrap_or_else(|| self.published().to_string())
    }

    fn published(&self) -> &str {
        self.model.as_deref().unwrap_or("ViT-B-16")
    }

    /// The architecture that the flags name.
    fn config(&self) -> anyhow::Result<Option<ClipConfig>> {
        let towers = (&self.vision_model, &self.text_model);
        if let ((None, None), Some(model)) = (towers, &self.model) {
            return Ok(Some(ClipConfig::published(model)?));
        }
        let or = |name: &Option<String>, default: &str| {
            name.clone().unwrap_or_else(|| default.to_string())
        };
        Ok(match towers {
            (None, None) => None,
            (vision, text) => Some(ClipConfig::load(
                &or(vision, "ViT-B-16"),
                &or(text, "RoBERTa-wwm-ext-base-chinese"),
            )?),
        })
    }
}

/// Loads a checkpoint for inference.
pub fn load(config: &ClipConfig, path: &PathBuf, device: &Device) -> anyhow::Result<Clip> {
    let loaded = Checkpoint::open(path)
        .and_then(|checkpoint| checkpoint::load(Clip::init(config, device, 0), &checkpoint));
    Ok(loaded?.valid())
}
