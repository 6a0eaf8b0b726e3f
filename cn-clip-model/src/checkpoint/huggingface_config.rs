//! `config.json` and its neighbours in a folder of `ChineseCLIPModel`.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    ClipConfig, TextConfig, VisionConfig,
    config::{TextActivation, VisionLayers},
};

/// What `config.json` says; what it leaves out has the defaults of `transformers`.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct HubConfig {
    model_type: String,
    projection_dim: usize,
    text_config: Text,
    vision_config: Vision,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Text {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: String,
    hidden_dropout_prob: f64,
    attention_probs_dropout_prob: f64,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    initializer_range: f64,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Vision {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    image_size: usize,
    patch_size: usize,
    hidden_act: String,
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            model_type: "chinese_clip".into(),
            projection_dim: 512,
            text_config: Text::default(),
            vision_config: Vision::default(),
        }
    }
}

impl Default for Text {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: "gelu".into(),
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            initializer_range: 0.02,
        }
    }
}

impl Default for Vision {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            patch_size: 32,
            hidden_act: "quick_gelu".into(),
        }
    }
}

impl HubConfig {
    /// The configuration of a model of this kind.
    pub(super) fn parse(text: &str) -> Result<ClipConfig, String> {
        let config: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let Self { model_type, projection_dim, text_config: text, vision_config: vision } = config;
        if model_type != "chinese_clip" {
            return Err(format!("a model of type `{model_type}`, expected `chinese_clip`"));
        }
        if vision.hidden_act != "quick_gelu" {
            return Err(format!("image tower with activation `{}`", vision.hidden_act));
        }
        let activation = match text.hidden_act.as_str() {
            "gelu" => TextActivation::Gelu,
            "gelu_new" => TextActivation::GeluNew,
            "relu" => TextActivation::Relu,
            "swish" | "silu" => TextActivation::Swish,
            other => return Err(format!("text tower with activation `{other}`")),
        };
        let head_width = vision.hidden_size.checked_div(vision.num_attention_heads);
        let config = ClipConfig {
            vision: VisionConfig {
                embed_dim: projection_dim,
                image_resolution: vision.image_size,
                layers: VisionLayers::Transformer(vision.num_hidden_layers),
                width: vision.hidden_size,
                patch_size: Some(vision.patch_size),
                head_width: head_width.ok_or("an image tower without attention heads")?,
            },
            text: TextConfig {
                vocab_size: text.vocab_size,
                hidden_size: text.hidden_size,
                layers: text.num_hidden_layers,
                heads: text.num_attention_heads,
                intermediate_size: text.intermediate_size,
                activation,
                hidden_dropout: text.hidden_dropout_prob,
                attention_dropout: text.attention_probs_dropout_prob,
                max_positions: text.max_position_embeddings,
                type_vocab_size: text.type_vocab_size,
                initializer_range: text.initializer_range,
            },
        };
        config.validate().map_err(|error| error.to_string())?;
        Ok(config)
    }
}

/// Name and text of the files beside the weights; `None` for a ResNet, which has no form there.
pub(super) fn files(
    config: &ClipConfig,
    dtype: &str,
    vocabulary: Option<&str>,
) -> Option<Vec<(&'static str, String)>> {
    let ClipConfig { vision, text } = config;
    let (VisionLayers::Transformer(depth), Some(patch)) = (&vision.layers, vision.patch_size)
    else {
        return None;
    };
    let activation = match text.activation {
        TextActivation::Gelu => "gelu",
        TextActivation::GeluNew => "gelu_new",
        TextActivation::Relu => "relu",
        TextActivation::Swish => "swish",
    };
    let model = json!({
        "architectures": ["ChineseCLIPModel"],
        "model_type": "chinese_clip",
        "torch_dtype": dtype,
        "projection_dim": vision.embed_dim,
        "logit_scale_init_value": 2.6592,
        "initializer_factor": 1.0,
        "text_config": {
            "model_type": "chinese_clip_text_model",
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "intermediate_size": text.intermediate_size,
            "hidden_act": activation,
            "hidden_dropout_prob": text.hidden_dropout,
            "attention_probs_dropout_prob": text.attention_dropout,
            "max_position_embeddings": text.max_positions,
            "type_vocab_size": text.type_vocab_size,
            "initializer_range": text.initializer_range,
            "layer_norm_eps": 1e-12,
            "pad_token_id": 0,
        },
        "vision_config": {
            "model_type": "chinese_clip_vision_model",
            "hidden_size": vision.width,
            "intermediate_size": 4 * vision.width,
            "num_hidden_layers": depth,
            "num_attention_heads": vision.heads(),
            "num_channels": 3,
            "image_size": vision.image_resolution,
            "patch_size": patch,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "attention_dropout": 0.0,
            "projection_dim": vision.embed_dim,
        },
    });
    let side = vision.image_resolution;
    let pictures = json!({
        "image_processor_type": "ChineseCLIPImageProcessor",
        "processor_class": "ChineseCLIPProcessor",
        "do_resize": true,
        "size": {"height": side, "width": side},
        // Bicubic.
        "resample": 3,
        "do_center_crop": false,
        "crop_size": {"height": side, "width": side},
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "do_convert_rgb": true,
    });
    let mut files = vec![("config.json", model), ("preprocessor_config.json", pictures)];
    if vocabulary.is_some() {
        files.push(("tokenizer_config.json", tokenizer(text.max_positions)));
    }
    let mut files: Vec<(&str, String)> =
        files.into_iter().map(|(name, json)| (name, format!("{json:#}\n"))).collect();
    files.extend(vocabulary.map(|text| ("vocab.txt", text.to_string())));
    Some(files)
}

fn tokenizer(length: usize) -> Value {
    json!({
        "tokenizer_class": "BertTokenizer",
        "processor_class": "ChineseCLIPProcessor",
        "do_lower_case": true,
        "do_basic_tokenize": true,
        "tokenize_chinese_chars": true,
        "strip_accents": null,
        "model_max_length": length,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_go_there_and_back() {
        for name in ["ViT-B-16", "ViT-L-14-336", "ViT-H-14"] {
            let config = ClipConfig::published(name).unwrap();
            let files = files(&config, "float32", Some("[PAD]\n")).unwrap();
            assert_eq!(HubConfig::parse(&files[0].1), Ok(config), "{name}");
            let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
            let expected =
                ["config.json", "preprocessor_config.json", "tokenizer_config.json", "vocab.txt"];
            assert_eq!(names, expected);
        }
        assert!(files(&ClipConfig::published("RN50").unwrap(), "float32", None).is_none());
    }

    #[test]
    fn other_models_are_refused_by_name() {
        for (text, part) in [
            (r#"{"model_type": "clip"}"#, "`clip`"),
            (r#"{"vision_config": {"hidden_act": "gelu"}}"#, "`gelu`"),
            (r#"{"text_config": {"hidden_act": "mish"}}"#, "`mish`"),
            (r#"{"vision_config": {"num_attention_heads": 0}}"#, "heads"),
            (r#"{"vision_config": {"num_hidden_layers": 1000000000000}}"#, "layers"),
            (r#"{"text_config": {"hidden_size": 1152921504606846976}}"#, "no model"),
            ("[", "EOF"),
        ] {
            let error = HubConfig::parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
