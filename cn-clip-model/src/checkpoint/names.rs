//! Keys of every layout that is read, brought to the official ones.
//!
//! A layout is told by the keys: that of Hugging Face by `vision_model.`, the fused projections of
//! flash attention by `Wqkv`, the models of OpenAI by their text tower, whose weights are left out.

use super::{huggingface, tensor::LazyTensor};

/// Weights by key.
pub(super) type StateDict = Vec<(String, LazyTensor)>;

/// The weights under official keys; keys that mean nothing here stay as they are.
pub(super) fn normalise(mut state_dict: StateDict) -> StateDict {
    for (key, _) in &mut state_dict {
        if let Some(stripped) = key.strip_prefix("module.") {
            *key = stripped.to_string();
        }
    }
    if huggingface::is_layout(&state_dict) {
        state_dict = huggingface::import(state_dict);
    }
    let has = |name: &str| state_dict.iter().any(|(key, _)| key == name);
    if has("visual.conv1.weight") && has("token_embedding.weight") {
        state_dict.retain(|(key, _)| is_image_tower(key));
    }
    // A BERT alone, and the names of its norms in files of TensorFlow's time.
    let alone = !state_dict.iter().any(|(key, _)| key.starts_with("bert."))
        && state_dict.iter().any(|(key, _)| key == "embeddings.word_embeddings.weight");
    for (key, _) in &mut state_dict {
        if alone && (key.starts_with("embeddings.") || key.starts_with("encoder.")) {
            *key = format!("bert.{key}");
        }
        if key.starts_with("bert.") {
            *key = key
                .replace("LayerNorm.gamma", "LayerNorm.weight")
                .replace("LayerNorm.beta", "LayerNorm.bias");
        }
    }
    state_dict = state_dict.into_iter().flat_map(|(key, tensor)| unfuse(key, tensor)).collect();
    state_dict
        .retain(|(key, _)| !key.starts_with("bert.pooler") && !key.ends_with(".position_ids"));
    state_dict
}

/// Whether a key is of the image tower, as files with that tower alone have them.
pub(super) fn is_image_tower(key: &str) -> bool {
    key.starts_with("visual.") || key == "logit_scale"
}

/// The fused projections of flash attention, taken apart where the official model has them apart.
fn unfuse(key: String, tensor: LazyTensor) -> StateDict {
    if let Some((block, kind)) = key.split_once(".attn.Wqkv.") {
        return vec![(format!("{block}.attn.in_proj_{kind}"), tensor)];
    }
    if let Some((layer, kind)) = key.split_once(".attention.self.out_proj.") {
        return vec![(format!("{layer}.attention.output.dense.{kind}"), tensor)];
    }
    if let Some((layer, kind)) = key.split_once(".attention.self.Wqkv.") {
        let rows = tensor.shape.first().copied().unwrap_or(0);
        let part = |(index, name): (usize, &str)| {
            let part = tensor.rows(index * rows / 3..(index + 1) * rows / 3)?;
            Some((format!("{layer}.attention.self.{name}.{kind}"), part))
        };
        let parts = ["query", "key", "value"].into_iter().enumerate().map(part).collect();
        if let Some(parts) = Some(parts).filter(|_| rows % 3 == 0).flatten() {
            return parts;
        }
    }
    vec![(key, tensor)]
}
