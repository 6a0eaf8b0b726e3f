//! The official model configurations, and reading of one's own in the same JSON form.

use serde::{Deserialize, Serialize};

use crate::ModelError;

macro_rules! configs {
    ($($name:literal),+ $(,)?) => {
        &[$(($name, include_str!(concat!("../configs/", $name, ".json")))),+]
    };
}

/// Official image towers: name and configuration.
const VISION: &[(&str, &str)] =
    configs!["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "RN50"];
/// Official text towers: name and configuration.
const TEXT: &[(&str, &str)] =
    configs!["RoBERTa-wwm-ext-base-chinese", "RoBERTa-wwm-ext-large-chinese", "RBT3-chinese"];
/// Published pairs: model name, vision model, text model.
const PUBLISHED: &[(&str, &str, &str)] = &[
    ("ViT-B-16", "ViT-B-16", "RoBERTa-wwm-ext-base-chinese"),
    ("ViT-L-14", "ViT-L-14", "RoBERTa-wwm-ext-base-chinese"),
    ("ViT-L-14-336", "ViT-L-14-336", "RoBERTa-wwm-ext-base-chinese"),
    ("ViT-H-14", "ViT-H-14", "RoBERTa-wwm-ext-large-chinese"),
    ("RN50", "RN50", "RBT3-chinese"),
];

/// Depth of an image tower, which also tells its kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum VisionLayers {
    /// Number of transformer blocks of a ViT.
    Transformer(usize),
    /// Bottleneck blocks in each of the four stages of a ModifiedResNet.
    ResNet([usize; 4]),
}

impl<'de> Deserialize<'de> for VisionLayers {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Depth(usize),
            Stages([usize; 4]),
            Text(String),
        }
        let message = "vision_layers must be a number or a list of four numbers";
        match Raw::deserialize(deserializer).map_err(|_| serde::de::Error::custom(message))? {
            Raw::Depth(depth) => Ok(Self::Transformer(depth)),
            Raw::Stages(stages) => Ok(Self::ResNet(stages)),
            // The official RN50 file holds its stages as a string.
            Raw::Text(text) => serde_json::from_str(&text)
                .map(Self::ResNet)
                .map_err(|_| serde::de::Error::custom(message)),
        }
    }
}

/// Configuration of an image tower, with the official JSON keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VisionConfig {
    /// Dimensions of the joint embedding.
    pub embed_dim: usize,
    /// Input height and width in pixels.
    pub image_resolution: usize,
    /// Depth and kind.
    #[serde(rename = "vision_layers")]
    pub layers: VisionLayers,
    /// Transformer width, or channels of the first ResNet stage.
    #[serde(rename = "vision_width")]
    pub width: usize,
    /// Patch height and width in pixels; `None` for a ResNet.
    #[serde(rename = "vision_patch_size", default)]
    pub patch_size: Option<usize>,
    /// Width of one attention head of the ViT.
    #[serde(rename = "vision_head_width", default = "default_head_width")]
    pub head_width: usize,
}

/// Largest size and depth of a tower: a file that says more is no model.
const MAX_SIZE: usize = 1 << 24;
const MAX_DEPTH: usize = 1 << 12;

fn default_head_width() -> usize {
    64
}

impl VisionConfig {
    /// Reads an official name (`ViT-B-16`) or the path of a JSON file.
    pub fn load(name: &str) -> Result<Self, ModelError> {
        let config: Self = parse(name, "vision", VISION)?;
        config.validate(name)?;
        Ok(config)
    }

    /// Number of attention heads: of every ViT block, or of the attention pool.
    pub fn heads(&self) -> usize {
        match self.layers {
            VisionLayers::Transformer(_) => self.width / self.head_width,
            VisionLayers::ResNet(_) => self.width * 32 / self.head_width,
        }
    }

    /// Side of the grid of patches (ViT) or of final feature cells (ResNet).
    pub fn grid(&self) -> usize {
        self.image_resolution / self.patch_size.unwrap_or(32)
    }

    fn validate(&self, name: &str) -> Result<(), ModelError> {
        let fail = |reason: String| Err(ModelError::Config { name: name.to_string(), reason });
        let stride = match (&self.layers, self.patch_size) {
            (VisionLayers::Transformer(_), None) => {
                return fail("a transformer needs vision_patch_size".to_string());
            }
            (VisionLayers::Transformer(_), Some(patch)) => patch,
            (VisionLayers::ResNet(_), _) => 32,
        };
        let depth = match self.layers {
            VisionLayers::Transformer(depth) => depth,
            VisionLayers::ResNet(stages) => stages.into_iter().max().unwrap_or(0),
        };
        let sizes = [self.embed_dim, self.width, self.head_width, self.image_resolution, stride];
        if depth > MAX_DEPTH || sizes.iter().any(|size| *size > MAX_SIZE) {
            return fail(format!("sizes above {MAX_SIZE} or more than {MAX_DEPTH} layers"));
        }
        if self.embed_dim == 0 || self.width == 0 || self.head_width == 0 || stride == 0 {
            return fail("embed_dim, width, head width and patch size must be positive".into());
        }
        if self.grid() == 0 || !self.image_resolution.is_multiple_of(stride) {
            return fail(format!(
                "image_resolution {} must be a positive multiple of {stride}",
                self.image_resolution
            ));
        }
        let pool = if self.patch_size.is_some() { self.width } else { self.width * 32 };
        if self.heads() == 0 || !pool.is_multiple_of(self.heads()) {
            return fail(format!(
                "width {pool} cannot be divided into heads of width {}",
                self.head_width
            ));
        }
        Ok(())
    }
}

/// Activation in the feed-forward part of the text tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextActivation {
    /// Exact GELU, by the error function.
    Gelu,
    /// GELU by the tanh approximation.
    GeluNew,
    /// Rectifier.
    Relu,
    /// `x * sigmoid(x)`.
    Swish,
}

/// Configuration of a text tower, with the official JSON keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextConfig {
    /// Number of word pieces.
    pub vocab_size: usize,
    /// Width of the hidden states.
    #[serde(rename = "text_hidden_size")]
    pub hidden_size: usize,
    /// Number of transformer layers.
    #[serde(rename = "text_num_hidden_layers")]
    pub layers: usize,
    /// Attention heads of a layer.
    #[serde(rename = "text_num_attention_heads")]
    pub heads: usize,
    /// Width inside the feed-forward part.
    #[serde(rename = "text_intermediate_size")]
    pub intermediate_size: usize,
    /// Activation inside the feed-forward part.
    #[serde(rename = "text_hidden_act")]
    pub activation: TextActivation,
    /// Dropout after embeddings, attention output and feed-forward part.
    #[serde(rename = "text_hidden_dropout_prob")]
    pub hidden_dropout: f64,
    /// Dropout on attention probabilities.
    #[serde(rename = "text_attention_probs_dropout_prob")]
    pub attention_dropout: f64,
    /// Number of positions, the longest possible context length.
    #[serde(rename = "text_max_position_embeddings")]
    pub max_positions: usize,
    /// Number of token types.
    #[serde(rename = "text_type_vocab_size")]
    pub type_vocab_size: usize,
    /// Standard deviation of initial weights.
    #[serde(rename = "text_initializer_range")]
    pub initializer_range: f64,
}

impl TextConfig {
    /// Reads an official name (`RBT3-chinese`) or the path of a JSON file.
    pub fn load(name: &str) -> Result<Self, ModelError> {
        let config: Self = parse(name, "text", TEXT)?;
        config.validate(name)?;
        Ok(config)
    }

    fn validate(&self, name: &str) -> Result<(), ModelError> {
        let fail = |reason: &str| {
            Err(ModelError::Config { name: name.to_string(), reason: reason.into() })
        };
        let sizes = [
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.max_positions,
            self.type_vocab_size,
        ];
        if self.layers > MAX_DEPTH || sizes.iter().any(|size| *size > MAX_SIZE) {
            return fail("it has sizes or a number of layers that no model has");
        }
        if self.hidden_size == 0 || self.vocab_size == 0 || self.max_positions < 2 {
            return fail("sizes of vocabulary, hidden states and positions must be positive");
        }
        if self.heads == 0 || !self.hidden_size.is_multiple_of(self.heads) {
            return fail("text_hidden_size must be a multiple of text_num_attention_heads");
        }
        if self.type_vocab_size == 0 || self.intermediate_size == 0 {
            return fail("text_type_vocab_size and text_intermediate_size must be positive");
        }
        let probabilities = [self.hidden_dropout, self.attention_dropout];
        if probabilities.iter().any(|p| !(0.0..1.0).contains(p)) {
            return fail("dropout probabilities must be at least 0 and below 1");
        }
        Ok(())
    }
}

/// Configuration of a whole model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClipConfig {
    /// Image tower.
    #[serde(flatten)]
    pub vision: VisionConfig,
    /// Text tower.
    #[serde(flatten)]
    pub text: TextConfig,
}

impl ClipConfig {
    /// Joins an image tower and a text tower, each given by name or JSON path.
    pub fn load(vision: &str, text: &str) -> Result<Self, ModelError> {
        Ok(Self { vision: VisionConfig::load(vision)?, text: TextConfig::load(text)? })
    }

    /// Whether both towers are possible ones.
    pub(crate) fn validate(&self) -> Result<(), ModelError> {
        self.vision.validate("vision").and_then(|()| self.text.validate("text"))
    }

    /// The configuration of a published model such as `ViT-B-16` or `RN50`.
    pub fn published(name: &str) -> Result<Self, ModelError> {
        match PUBLISHED.iter().find(|(model, _, _)| *model == name) {
            Some((_, vision, text)) => Self::load(vision, text),
            None => Err(ModelError::UnknownModel {
                kind: "published",
                name: name.to_string(),
                known: published_models().join(", "),
            }),
        }
    }
}

/// Names of the published models.
pub fn published_models() -> Vec<&'static str> {
    PUBLISHED.iter().map(|(name, _, _)| *name).collect()
}

/// Names of the official image towers.
pub fn vision_models() -> Vec<&'static str> {
    VISION.iter().map(|(name, _)| *name).collect()
}

/// Names of the official text towers.
pub fn text_models() -> Vec<&'static str> {
    TEXT.iter().map(|(name, _)| *name).collect()
}

fn parse<T: serde::de::DeserializeOwned>(
    name: &str,
    kind: &'static str,
    known: &[(&str, &str)],
) -> Result<T, ModelError> {
    let failed = |reason: String| ModelError::Config { name: name.to_string(), reason };
    if let Some((_, json)) = known.iter().find(|(model, _)| *model == name) {
        return serde_json::from_str(json).map_err(|error| failed(error.to_string()));
    }
    let path = std::path::Path::new(name);
    if !path.is_file() {
        let known: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        if name.ends_with(".json") {
            let names = known.join(", ");
            return Err(failed(format!("no such file; the names without a file are {names}")));
        }
        return Err(ModelError::UnknownModel {
            kind,
            name: name.to_string(),
            known: known.join(", "),
        });
    }
    let text = std::fs::read_to_string(path).map_err(ModelError::io(path))?;
    serde_json::from_str(&text).map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn official_names_load() {
        for name in vision_models() {
            VisionConfig::load(name).unwrap();
        }
        for name in text_models() {
            TextConfig::load(name).unwrap();
        }
        let rn50 = VisionConfig::load("RN50").unwrap();
        assert_eq!(rn50.layers, VisionLayers::ResNet([3, 4, 6, 3]));
        assert_eq!(rn50.heads(), 32);
        assert_eq!(VisionConfig::load("ViT-H-14").unwrap().heads(), 16);
    }

    #[test]
    fn unknown_name_lists_the_known_ones() {
        let error = VisionConfig::load("ViT-X").unwrap_err().to_string();
        assert!(error.contains("ViT-B-16") && error.contains("ViT-X"), "{error}");
    }

    #[test]
    fn bad_files_name_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.json");
        std::fs::write(
            &path,
            r#"{"embed_dim": 8, "image_resolution": 30, "vision_layers": 2, "vision_width": 64}"#,
        )
        .unwrap();
        let error = VisionConfig::load(path.to_str().unwrap()).unwrap_err().to_string();
        assert!(error.contains("vision_patch_size"), "{error}");
        std::fs::write(&path, r#"{"embed_dim": 8}"#).unwrap();
        let error = VisionConfig::load(path.to_str().unwrap()).unwrap_err().to_string();
        assert!(error.contains("image_resolution"), "{error}");
    }
}
