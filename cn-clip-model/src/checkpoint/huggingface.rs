//! Keys and folders of `ChineseCLIPModel` of the `transformers` library.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::Path,
};

use serde_json::Value;

use super::{
    huggingface_config::HubConfig,
    names::StateDict,
    state_dict::{Checkpoint, Progress},
    tensor::LazyTensor,
};
use crate::ModelError;

/// How a tensor there is made from the official one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The same.
    Whole,
    /// Rows and columns exchanged.
    Transposed,
    /// A third of the rows: queries, keys or values.
    Third(usize),
}

/// Official keys, or the beginning of them, and the keys there.
const OUTER: &[(&str, &str)] = &[
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.conv1.", "vision_model.embeddings.patch_embedding."),
    // So spelt there.
    ("visual.ln_pre.", "vision_model.pre_layrnorm."),
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("visual.proj", "visual_projection.weight"),
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("text_projection", "text_projection.weight"),
    ("bert.", "text_model."),
];
/// The same inside a block of the image tower.
const INNER: &[(&str, &str)] = &[
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
];
const THIRDS: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

/// The keys there of an official key of a ViT or BERT.
pub fn keys_of(official: &str) -> Vec<(String, Part)> {
    if let Some((block, kind)) = official.split_once(".attn.in_proj_") {
        let block = replace_outer(block, |pair| (pair.0, pair.1));
        let third =
            |(index, name)| (format!("{block}.self_attn.{name}.{kind}"), Part::Third(index));
        return THIRDS.into_iter().enumerate().map(third).collect();
    }
    let mut key = replace_outer(official, |pair| (pair.0, pair.1));
    if key.starts_with("vision_model.encoder.") {
        INNER.iter().for_each(|(from, to)| key = key.replace(from, to));
    }
    let transposed = matches!(official, "visual.proj" | "text_projection");
    vec![(key, if transposed { Part::Transposed } else { Part::Whole })]
}

/// The official key of a key there.
fn official_key(key: &str) -> (String, Part) {
    let mut official = replace_outer(key, |pair| (pair.1, pair.0));
    let transposed = matches!(&*official, "visual.proj" | "text_projection");
    if key.starts_with("vision_model.encoder.") {
        INNER.iter().for_each(|(to, from)| official = official.replace(from, to));
        for (index, name) in THIRDS.iter().enumerate() {
            if let Some((block, kind)) = official.split_once(&format!(".self_attn.{name}.")) {
                return (format!("{block}.attn.in_proj_{kind}"), Part::Third(index));
            }
        }
    }
    (official, if transposed { Part::Transposed } else { Part::Whole })
}

fn replace_outer<'a>(
    key: &str,
    pair: impl Fn(&'a (&'a str, &'a str)) -> (&'a str, &'a str),
) -> String {
    for (from, to) in OUTER.iter().map(pair) {
        let prefix = from.ends_with('.') || to.ends_with('.');
        match key.strip_prefix(from) {
            Some(rest) if prefix || rest.is_empty() => return format!("{to}{rest}"),
            _ => {}
        }
    }
    key.to_string()
}

/// Whether the keys are of this layout.
pub(super) fn is_layout(state_dict: &StateDict) -> bool {
    state_dict.iter().any(|(key, _)| key.starts_with("vision_model.embeddings."))
}

/// The weights under official keys.
pub(super) fn import(state_dict: StateDict) -> StateDict {
    let mut found: StateDict = Vec::with_capacity(state_dict.len());
    // Where the first of three parts stood.
    let mut thirds: HashMap<String, [Option<LazyTensor>; 3]> = HashMap::new();
    for (key, tensor) in state_dict {
        let (official, part) = official_key(&key);
        match part {
            Part::Whole => found.push((official, tensor)),
            Part::Transposed => found.push((official, tensor.transposed())),
            Part::Third(index) => {
                let parts = thirds.entry(official.clone()).or_default();
                if parts.iter().all(Option::is_none) {
                    found.push((official, tensor.clone()));
                }
                parts[index] = Some(tensor);
            }
        }
    }
    for (key, tensor) in &mut found {
        if let Some(parts) = thirds.remove(key) {
            let parts: Option<Vec<LazyTensor>> = parts.into_iter().collect();
            if let Some(joined) = parts.and_then(LazyTensor::join) {
                *tensor = joined;
            }
        }
    }
    found
}

/// Opens a folder of `save_pretrained`.
pub(super) fn open_folder(folder: &Path) -> Result<Checkpoint, ModelError> {
    let config = folder.join("config.json");
    if !config.is_file() {
        return Err(ModelError::format(
            folder,
            "not a file, and not a folder of a Hugging Face model: it has no config.json",
        ));
    }
    let text = fs::read_to_string(&config).map_err(ModelError::io(&config))?;
    let config = HubConfig::parse(&text).map_err(|reason| ModelError::format(&config, reason))?;
    let mut checkpoint = None;
    for name in ["model.safetensors", "pytorch_model.bin"] {
        let whole = folder.join(name);
        let index = folder.join(format!("{name}.index.json"));
        if whole.is_file() {
            checkpoint = Some(Checkpoint::open_raw(&whole)?);
            break;
        }
        if index.is_file() {
            checkpoint = Some(open_shards(folder, &index)?);
            break;
        }
    }
    let mut checkpoint = checkpoint.ok_or_else(|| {
        ModelError::format(folder, "has neither model.safetensors nor pytorch_model.bin")
    })?;
    checkpoint.name = folder.display().to_string();
    checkpoint.config.get_or_insert(config);
    Ok(checkpoint)
}

/// The files that an index names, joined.
fn open_shards(folder: &Path, index: &Path) -> Result<Checkpoint, ModelError> {
    let damaged = |reason: &str| ModelError::format(index, reason);
    let text = fs::read_to_string(index).map_err(ModelError::io(index))?;
    let json: Value = serde_json::from_str(&text).map_err(|error| damaged(&error.to_string()))?;
    let map = json["weight_map"].as_object().ok_or_else(|| damaged("has no weight_map"))?;
    let files: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    let mut state_dict = Vec::new();
    for file in files {
        if Path::new(file).file_name() != Some(file.as_ref()) {
            return Err(damaged(&format!("names `{file}`, which is not in this folder")));
        }
        state_dict.extend(Checkpoint::open_raw(&folder.join(file))?.state_dict);
    }
    let name = folder.display().to_string();
    let progress = Progress::default();
    Ok(Checkpoint { name, state_dict, progress, optimizer: None, config: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_there_and_back() {
        for (official, there) in [
            ("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
            ("visual.proj", "visual_projection.weight"),
            ("visual.ln_pre.bias", "vision_model.pre_layrnorm.bias"),
            ("text_projection", "text_projection.weight"),
            ("logit_scale", "logit_scale"),
            (
                "visual.transformer.resblocks.3.mlp.c_fc.bias",
                "vision_model.encoder.layers.3.mlp.fc1.bias",
            ),
            (
                "bert.encoder.layer.0.attention.self.query.weight",
                "text_model.encoder.layer.0.attention.self.query.weight",
            ),
        ] {
            let keys = keys_of(official);
            assert_eq!(keys[0].0, there);
            assert_eq!(official_key(there), (official.to_string(), keys[0].1));
        }
        let packed = "visual.transformer.resblocks.11.attn.in_proj_weight";
        let keys = keys_of(packed);
        assert_eq!(keys[1].0, "vision_model.encoder.layers.11.self_attn.k_proj.weight");
        for (index, (key, part)) in keys.iter().enumerate() {
            assert_eq!(*part, Part::Third(index));
            assert_eq!(official_key(key), (packed.to_string(), *part));
        }
    }
}
