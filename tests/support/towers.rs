//! The recorded tiny models on a device, and their towers beside the recordings.

#![allow(dead_code)] // Every test binary uses a part of it.

use burn::tensor::{Device, Int, Tensor, TensorData};
use cn_clip_model::{
    Clip, ClipConfig, ImageTower, Pass, Precision,
    checkpoint::{self, Checkpoint},
    normalize,
    precision::to_fp32,
    text::bert::Bert,
    token_tensor,
    vision::resnet::ModifiedResNet,
};

use super::golden::{Errors, Golden, fixture};

pub fn json(path: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(fixture(path)).unwrap()).unwrap()
}

/// The recorded configuration, dropout as given.
pub fn config_with(variant: &str, dropout: f64) -> ClipConfig {
    let mut model = json(&format!("model/{variant}/config.json"))["model_config"].take();
    model.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    let mut config: ClipConfig = serde_json::from_value(model).unwrap();
    (config.text.hidden_dropout, config.text.attention_dropout) = (dropout, dropout);
    config
}

/// A model of that configuration with the recorded weights.
pub fn load_with(config: &ClipConfig, variant: &str, device: &Device) -> Clip {
    let file = fixture(&format!("model/{variant}/checkpoint_fp16.pt"));
    checkpoint::load(Clip::init(config, device, 0), &Checkpoint::open(file).unwrap()).unwrap()
}

/// The recorded model without dropout.
pub fn load_on(variant: &str, device: &Device) -> Clip {
    load_with(&config_with(variant, 0.0), variant, device)
}

/// Values as 32-bit floats.
pub fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    to_fp32(tensor).into_data().try_into_vec().unwrap()
}

pub fn input_on<const D: usize>(golden: &Golden, name: &str, device: &Device) -> Tensor<D> {
    let recorded = golden.get(name);
    let data = TensorData::new(recorded.values.clone(), recorded.shape.clone());
    Tensor::from_data(data, device)
}

pub fn tokens_on(golden: &Golden, name: &str, device: &Device) -> Tensor<2, Int> {
    let recorded = golden.get(name);
    Tensor::from_data(TensorData::new(recorded.ints(), recorded.shape.clone()), device)
}

fn evaluation(variant: &str) -> Golden {
    Golden::open(&format!("model/{variant}/forward_eval.safetensors"))
}

/// Both towers, normalisation and similarities.
pub fn forward(variant: &str, device: &Device, precision: Precision) -> Errors {
    let golden = evaluation(variant);
    let model = precision.copy(&load_on(variant, device));
    let image = model.encode_image(input_on(&golden, "pixels", device), None, Pass::Eval);
    let text = model.encode_text(tokens_on(&golden, "tokens", device), Pass::Eval);
    let short = model.encode_text(tokens_on(&golden, "tokens_ctx24", device), Pass::Eval);
    let mut errors = Errors::default();
    let mut check = |name, values: Vec<f32>| errors.add_recorded(&golden, name, &values);
    check("image_features", floats(image.clone()));
    check("text_features", floats(text.clone()));
    check("text_features_ctx24", floats(short));
    let (image, text) = (normalize(image), normalize(text));
    check("image_features_norm", floats(image.clone()));
    check("text_features_norm", floats(text.clone()));
    check("logit_scale_exp", floats(model.logit_scale.val().exp()));
    check("logits_per_image", floats(model.similarity(image.clone(), text.clone())));
    check("logits_per_text", floats(model.similarity(image, text).transpose()));
    let trimmed = token_tensor(&golden.get("tokens").ints(), 52, device);
    assert!(trimmed.dims()[1] <= 52);
    check("text_features", floats(model.encode_text(trimmed, Pass::Eval)));
    errors
}

/// What every layer of the text tower gives.
pub fn text_layers(variant: &str, device: &Device, precision: Precision) -> Errors {
    let golden = evaluation(variant);
    let model = precision.copy(&load_on(variant, device));
    let ids = tokens_on(&golden, "tokens", device);
    let used: Vec<i64> = ids.clone().into_data().iter::<i64>().collect();
    let padding = Bert::padding(ids.clone(), device);
    let mut x = model.bert.embed(ids, Pass::Eval);
    let width = x.dims()[2];
    // Layers may give anything for padding.
    let used: Vec<f32> =
        used.iter().flat_map(|id| vec![if *id == 0 { 0.0 } else { 1.0 }; width]).collect();
    let mut errors = Errors::default();
    errors.add_recorded(&golden, "trace.bert.embeddings", &floats(x.clone()));
    for index in 0..model.bert.encoder.layer.len() {
        x = model.bert.layer(index, x, &padding, Pass::Eval, false);
        let name = format!("trace.bert.encoder.layer.{index}");
        let compared = golden.cut(&name, &floats(x.clone())).zip(golden.cut(&name, &used));
        let ((got, expected), (used, _)) =
            compared.unwrap_or_else(|| panic!("no `{name}` recorded"));
        let select = |values: Vec<f32>| -> Vec<f32> {
            let values = values.iter().zip(&used);
            values.filter(|(_, used)| **used > 0.0).map(|(value, _)| *value).collect()
        };
        errors.add(&name, &select(got), &select(expected));
    }
    errors
}

/// What every layer of the image tower gives.
pub fn image_layers(variant: &str, device: &Device, precision: Precision) -> Errors {
    let golden = evaluation(variant);
    let model = precision.copy(&load_on(variant, device));
    let pixels: Tensor<4> = input_on(&golden, "pixels", device);
    let pixels = match precision {
        Precision::Fp32 => pixels,
        _ => pixels.cast(precision.dtype()),
    };
    let mut errors = Errors::default();
    let mut check = |name: &str, values: Vec<f32>| errors.add_recorded(&golden, name, &values);
    match &model.visual {
        ImageTower::Vit(tower) => {
            let patches = tower.conv1.forward(pixels.clone()).swap_dims(1, 2);
            check("trace.visual.conv1", floats(patches));
            let mut x = tower.embed(pixels, None);
            check("trace.visual.ln_pre", floats(x.clone()));
            for (index, block) in tower.transformer.resblocks.iter().enumerate() {
                x = block.forward(x);
                // Recorded as [tokens, batch, width].
                let name = format!("trace.visual.transformer.resblocks.{index}");
                check(&name, floats(x.clone().swap_dims(0, 1)));
            }
            check("image_features", floats(tower.head(x)));
        }
        ImageTower::ResNet(tower) => {
            check("trace.visual.conv1", floats(tower.conv1.forward(pixels.clone())));
            let mut x = tower.stem(pixels, Pass::Eval);
            check("trace.visual.avgpool", floats(x.clone()));
            for (index, blocks) in tower.stages().into_iter().enumerate() {
                x = ModifiedResNet::stage(blocks, x, Pass::Eval);
                check(&format!("trace.visual.layer{}", index + 1), floats(x.clone()));
            }
            check("trace.visual.attnpool", floats(tower.attnpool.forward(x)));
        }
    }
    errors
}

/// Patches that the recording keeps, `[batch, kept]`.
pub fn recorded_patches(device: &Device) -> Tensor<2, Int> {
    // Recorded as token positions, where the class token is 0.
    tokens_on(&Golden::open("model/vit_tiny/flip_mask05.safetensors"), "ids_keep", device) - 1
}

/// The image tower on half of the patches.
pub fn masked_forward(device: &Device, precision: Precision) -> Errors {
    let golden = Golden::open("model/vit_tiny/flip_mask05.safetensors");
    let model = precision.copy(&load_on("vit_tiny", device));
    let pixels = input_on(&evaluation("vit_tiny"), "pixels", device);
    let features = model.encode_image(pixels, Some(recorded_patches(device)), Pass::Eval);
    let mut errors = Errors::default();
    errors.add_recorded(&golden, "image_features", &floats(features));
    errors
}
