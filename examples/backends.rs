//! One model on every backend of the build, chosen at run time, and how far their features differ.
//!
//!     cargo run --release --features ndarray,vulkan --example backends -- ViT-B-16 cat.jpg 猫

use std::{env, error::Error};

use cn_clip::{
    LoadOptions, load_from_name,
    model::{DeviceSpec, device::compiled},
};

/// Prints and returns, for each backend that this machine has, its largest difference to the first.
pub fn run(model: &str, picture: &str, text: &str) -> Result<Vec<f32>, Box<dyn Error>> {
    let mut first: Option<Vec<f32>> = None;
    let mut differences = Vec::new();
    for name in compiled() {
        let device = match name.parse::<DeviceSpec>()?.open() {
            Ok(device) => device,
            Err(error) => {
                println!("{error}");
                continue;
            }
        };
        let model = load_from_name(model, &device, &LoadOptions::default())?;
        let mut values = model.embed_images(&[picture])?.into_vec();
        values.extend(model.embed_texts(&[text])?.into_vec());
        let first = first.get_or_insert_with(|| values.clone());
        let difference = first.iter().zip(&values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{name}: largest difference {difference:e}");
        differences.push(difference);
    }
    if compiled().len() == 1 {
        println!("no other backend is in this build: add for example `--features ndarray`");
    }
    Ok(differences)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [model, picture, text] = &args[..] else { return Err("MODEL PICTURE TEXT".into()) };
    run(model, picture, text).map(drop)
}
