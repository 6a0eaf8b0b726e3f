//! The towers and the loss inside a Burn application: a module, a loop and an optimizer of its own.
//!
//!     cargo run --release --example own_training_loop -- ViT-B-16 photos 20
//!
//! fine-tunes on the pictures of a folder, whose captions are their file names.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use burn::{
    module::{Initializer, Module},
    nn::{Linear, LinearConfig},
    optim::{AdamWConfig, GradientsParams},
    tensor::{Device, Int, Tensor, TensorData},
};
use cn_clip::{
    CONTEXT_LENGTH, LoadOptions, image_transform, load_clip,
    model::{Clip, DeviceSpec, Pass, SampleRng},
    tokenize,
    train::contrastive_loss,
};

/// The application's own module: Chinese-CLIP, and a layer behind the image tower.
#[derive(Module, Debug)]
pub struct AdaptedClip {
    clip: Clip,
    adapter: Linear,
}

impl AdaptedClip {
    fn init(clip: Clip, embed_dim: usize, device: &Device) -> Self {
        // Adds nothing at first.
        let zeros = LinearConfig::new(embed_dim, embed_dim).with_initializer(Initializer::Zeros);
        Self { clip, adapter: zeros.init(device) }
    }

    fn loss(&self, pixels: Tensor<4>, tokens: Tensor<2, Int>, pass: Pass<'_>) -> Tensor<1> {
        let image = self.clip.encode_image(pixels, None, pass);
        let image = self.adapter.forward(image.clone()) + image;
        let text = self.clip.encode_text(tokens, pass);
        contrastive_loss(image, text, self.clip.logit_scale.val())
    }
}

/// Prints and returns the loss of each step.
pub fn run(model: &str, folder: &Path, steps: u64) -> Result<Vec<f32>, Box<dyn Error>> {
    let device = DeviceSpec::CPU.open()?.autodiff();
    let (clip, config) = load_clip(model, &device, &LoadOptions::default())?;
    let mut model = AdaptedClip::init(clip, config.vision.embed_dim, &device);

    let (pictures, captions) = captioned(folder)?;
    let side = config.vision.image_resolution;
    let transform = image_transform(side);
    let mut pixels = Vec::new();
    for picture in &pictures {
        pixels.extend(transform.path_pixels(picture)?);
    }
    let shape = [pictures.len(), 3, side, side];
    let pixels = Tensor::<4>::from_data(TensorData::new(pixels, shape), &device);
    let tokens = tokenize(&captions, CONTEXT_LENGTH.min(config.text.max_positions), &device);

    let mut optimizer = AdamWConfig::new().with_weight_decay(0.001).init();
    let mut losses = Vec::new();
    for step in 0..steps {
        // Dropout depends on the seed, the step and the sample.
        let rng = SampleRng::for_step(123, step, 0..pictures.len());
        let pass = Pass::Train { rng: &rng, update_statistics: true };
        let loss = model.loss(pixels.clone(), tokens.clone(), pass);
        losses.push(loss.clone().into_scalar());
        println!("step {step}: loss {:.4}", losses[losses.len() - 1]);
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(1e-3, model, gradients);
    }
    Ok(losses)
}

fn captioned(folder: &Path) -> Result<(Vec<PathBuf>, Vec<String>), Box<dyn Error>> {
    let mut pictures: Vec<PathBuf> = fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_, std::io::Error>>()?;
    pictures.sort();
    let caption = |path: &PathBuf| path.file_stem().unwrap_or_default().to_string_lossy().into();
    let captions = pictures.iter().map(caption).collect();
    Ok((pictures, captions))
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [model, folder, steps] = &args[..] else { return Err("MODEL FOLDER STEPS".into()) };
    run(model, Path::new(folder), steps.parse()?).map(drop)
}
