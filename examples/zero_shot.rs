//! Zero-shot classification: which of these labels fits the picture?
//!
//!     cargo run --release --example zero_shot -- ViT-B-16 cat.jpg 猫 狗 鸟

use std::{env, error::Error};

use cn_clip::{LoadOptions, burn::tensor::activation::softmax, load_from_name, model::DeviceSpec};

/// Prints and returns the probability of each label.
pub fn run(model: &str, picture: &str, labels: &[String]) -> Result<Vec<f32>, Box<dyn Error>> {
    let device = DeviceSpec::CPU.open()?;
    let model = load_from_name(model, &device, &LoadOptions::default())?;
    let prompts: Vec<String> = labels.iter().map(|label| format!("一张{label}的照片")).collect();
    let (image, texts) = (model.image_features(&[picture])?, model.text_features(&prompts));
    let probabilities = softmax(model.similarity(image, texts), 1).into_data().try_into_vec()?;
    for (label, probability) in labels.iter().zip(&probabilities) {
        println!("{probability:.4}  {label}");
    }
    Ok(probabilities)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [model, picture, labels @ ..] = &args[..] else {
        return Err("MODEL PICTURE LABEL...".into());
    };
    run(model, picture, labels).map(drop)
}
