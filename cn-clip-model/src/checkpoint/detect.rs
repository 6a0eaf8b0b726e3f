//! The architecture of a checkpoint, by the shapes of its weights.

use super::state_dict::Checkpoint;
use crate::{
    ClipConfig, ModelError, TextConfig, VisionConfig,
    config::{TextActivation, VisionLayers, text_models, vision_models},
};

/// Width of an attention head of every published tower but the image tower of ViT-H-14.
const HEAD_WIDTH: usize = 64;

/// The configuration of a whole model: that which the file carries, or else by its shapes.
///
/// Shapes do not tell the number of attention heads, the activation and the dropout of a text
/// tower: towers that have the shapes of official ones are taken for these, others for towers with
/// heads of width 64, GELU and dropout 0.1.
///
/// # Errors
/// When a tower is missing or has a form of its own, or its width is no multiple of 64.
pub fn detect_config(checkpoint: &Checkpoint) -> Result<ClipConfig, ModelError> {
    if let Some(config) = &checkpoint.config {
        return Ok(config.clone());
    }
    let fail = |reason: String| Err(ModelError::format(&checkpoint.name, reason));
    let Some(mut vision) = vision(checkpoint) else {
        return fail("holds no whole image tower: its architecture cannot be told".into());
    };
    let Some(mut text) = text(checkpoint) else {
        return fail("holds no whole text tower: its architecture cannot be told".into());
    };
    if let Some((_, official)) = official_vision(&vision) {
        vision = official;
    }
    if let Some((_, official)) = official_text(&text) {
        text = official;
    }
    for (tower, flag, width) in
        [("image", "vision", vision.width), ("text", "text", text.hidden_size)]
    {
        let resnet = tower == "image" && vision.patch_size.is_none();
        if !width.is_multiple_of(HEAD_WIDTH) && !resnet {
            return fail(format!(
                "the {tower} tower has width {width}, which does not tell its attention heads: \
                 give a configuration by --{flag}-model"
            ));
        }
    }
    let config = ClipConfig { vision, text };
    config.validate()?;
    Ok(config)
}

/// What a whole model looks like, in words; `None` if it is none.
pub(super) fn describe(checkpoint: &Checkpoint) -> Option<String> {
    let image = vision(checkpoint).map(|config| match official_vision(&config) {
        Some((name, _)) => format!("--vision-model {name}"),
        None => format!(
            "an image tower with embed_dim {}, image_resolution {}, vision_layers {}, \
             vision_width {}{}",
            config.embed_dim,
            config.image_resolution,
            match config.layers {
                VisionLayers::Transformer(depth) => depth.to_string(),
                VisionLayers::ResNet(stages) => format!("{stages:?}"),
            },
            config.width,
            config.patch_size.map_or(String::new(), |size| format!(", vision_patch_size {size}")),
        ),
    });
    let text = text(checkpoint).map(|config| match official_text(&config) {
        Some((name, _)) => format!("--text-model {name}"),
        None => format!(
            "a text tower with vocab_size {}, text_hidden_size {}, text_num_hidden_layers {}, \
             text_intermediate_size {}, text_max_position_embeddings {}",
            config.vocab_size,
            config.hidden_size,
            config.layers,
            config.intermediate_size,
            config.max_positions
        ),
    });
    let found: Vec<String> = image.into_iter().chain(text).collect();
    (!found.is_empty()).then(|| found.join(" and "))
}

fn official_vision(found: &VisionConfig) -> Option<(&'static str, VisionConfig)> {
    vision_models().into_iter().find_map(|name| {
        let config = VisionConfig::load(name).ok()?;
        let same = VisionConfig { head_width: found.head_width, ..config.clone() } == *found;
        same.then_some((name, config))
    })
}

fn official_text(found: &TextConfig) -> Option<(&'static str, TextConfig)> {
    text_models().into_iter().find_map(|name| {
        let config = TextConfig::load(name).ok()?;
        let same = TextConfig { heads: found.heads, ..config.clone() } == *found;
        same.then_some((name, config))
    })
}

fn vision(checkpoint: &Checkpoint) -> Option<VisionConfig> {
    let shape = |key: &str| checkpoint.get(key).map(|tensor| &tensor.shape[..]);
    let side = |tokens: usize| crate::pos_embed::grid_of(tokens);
    if let Some(&[width, 3, patch, _]) = shape("visual.conv1.weight")
        && let Some(&[tokens, _]) = shape("visual.positional_embedding")
        && let Some(&[_, embed_dim]) = shape("visual.proj")
    {
        return Some(VisionConfig {
            embed_dim,
            image_resolution: side(tokens)?.checked_mul(patch)?,
            layers: VisionLayers::Transformer(count(checkpoint, "visual.transformer.resblocks.")),
            width,
            patch_size: Some(patch),
            head_width: HEAD_WIDTH,
        });
    }
    let &[width, ..] = shape("visual.conv3.weight")? else { return None };
    let &[tokens, _] = shape("visual.attnpool.positional_embedding")? else { return None };
    let &[embed_dim, _] = shape("visual.attnpool.c_proj.weight")? else { return None };
    let stages = [1, 2, 3, 4].map(|stage| count(checkpoint, &format!("visual.layer{stage}.")));
    Some(VisionConfig {
        embed_dim,
        image_resolution: side(tokens)?.checked_mul(32)?,
        layers: VisionLayers::ResNet(stages),
        width,
        patch_size: None,
        head_width: HEAD_WIDTH,
    })
}

fn text(checkpoint: &Checkpoint) -> Option<TextConfig> {
    let size = |key: &str| match checkpoint.get(key)?.shape[..] {
        [rows, columns] => Some((rows, columns)),
        _ => None,
    };
    let (vocab_size, hidden_size) = size("bert.embeddings.word_embeddings.weight")?;
    let (max_positions, _) = size("bert.embeddings.position_embeddings.weight")?;
    let (type_vocab_size, _) = size("bert.embeddings.token_type_embeddings.weight")?;
    let (intermediate_size, _) = size("bert.encoder.layer.0.intermediate.dense.weight")?;
    Some(TextConfig {
        vocab_size,
        hidden_size,
        layers: count(checkpoint, "bert.encoder.layer."),
        heads: hidden_size / HEAD_WIDTH,
        intermediate_size,
        activation: TextActivation::Gelu,
        hidden_dropout: 0.1,
        attention_dropout: 0.1,
        max_positions,
        type_vocab_size,
        initializer_range: 0.02,
    })
}

/// One more than the largest number that follows `prefix` in a key.
fn count(checkpoint: &Checkpoint, prefix: &str) -> usize {
    let number = |(key, _): &(String, _)| {
        let number: usize = key.strip_prefix(prefix)?.split('.').next()?.parse().ok()?;
        // No file has as many tensors as that.
        (number < checkpoint.state_dict.len()).then_some(number + 1)
    };
    checkpoint.state_dict.iter().filter_map(number).max().unwrap_or(0)
}
