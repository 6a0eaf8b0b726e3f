//! The recorded models, converted and compared.

#![allow(dead_code)] // Every test binary uses a part of it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, Tensor, TensorData};
use cn_clip_model::{
    Clip, ClipConfig, Pass,
    checkpoint::{self, Checkpoint, ConvertOptions, Converted, Format, convert},
    token_tensor,
};

use crate::golden::{Golden, fixture};

pub fn config(variant: &str) -> ClipConfig {
    let path = fixture(&format!("model/{variant}/config.json"));
    let json: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let mut model = json["model_config"].clone();
    model.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    serde_json::from_value(model).unwrap()
}

pub fn official(variant: &str) -> PathBuf {
    fixture(&format!("model/{variant}/checkpoint_fp16.pt"))
}

pub fn options(variant: &str, format: Format) -> ConvertOptions {
    ConvertOptions { config: Some(config(variant)), ..ConvertOptions::new(format) }
}

pub fn to(variant: &str, format: Format, input: &Path, output: &Path) -> Converted {
    convert(input, output, &options(variant, format)).unwrap()
}

/// Features of a loaded model against the recorded ones.
pub fn check_features(variant: &str, model: &Clip, tolerance: f32) {
    let golden = Golden::open(&format!("model/{variant}/forward_eval.safetensors"));
    let device = Device::default();
    let pixels = golden.get("pixels");
    let pixels = TensorData::new(pixels.values.clone(), pixels.shape.clone());
    let image = model.encode_image(Tensor::<4>::from_data(pixels, &device), None, Pass::Eval);
    let tokens = token_tensor(&golden.get("tokens").ints(), 52, &device);
    let text = model.encode_text(tokens, Pass::Eval);
    let floats = |features: Tensor<2>| features.into_data().try_into_vec::<f32>().unwrap();
    golden.check("image_features", &floats(image), tolerance);
    golden.check("text_features", &floats(text), tolerance);
}

pub fn load(variant: &str, path: &Path) -> Clip {
    let model = Clip::init(&config(variant), &Device::default(), 0);
    checkpoint::load(model, &Checkpoint::open(path).unwrap()).unwrap()
}

/// The same keys in the same order with the same values.
pub fn check_same(one: &Path, other: &Path) {
    let (one, other) = (Checkpoint::open(one).unwrap(), Checkpoint::open(other).unwrap());
    assert_eq!(one.state_dict.len(), other.state_dict.len());
    for (key, tensor) in &one.state_dict {
        let found = other.get(key).unwrap_or_else(|| panic!("no {key}"));
        assert_eq!(found.count(), tensor.count(), "{key}");
        assert_eq!(found.read().unwrap(), tensor.read().unwrap(), "{key}");
    }
}
