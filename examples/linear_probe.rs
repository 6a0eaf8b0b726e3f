//! A linear classifier on frozen image features: one folder of pictures per class.
//!
//!     cargo run --release --example linear_probe -- ViT-B-16 train_folder test_folder

use std::{env, error::Error, path::Path};

use cn_clip::{
    LoadOptions, Model,
    burn::{
        nn::{Linear, LinearConfig, loss::CrossEntropyLossConfig},
        optim::{AdamWConfig, GradientsParams},
        tensor::{Int, Tensor, TensorData},
    },
    eval::zeroshot::ImageFolder,
    load_from_name,
    model::DeviceSpec,
};

const STEPS: usize = 200;
const LEARNING_RATE: f64 = 0.05;

/// Prints and returns the accuracy on the pictures of `test`.
pub fn run(model: &str, train: &Path, test: &Path) -> Result<f64, Box<dyn Error>> {
    let device = DeviceSpec::CPU.open()?;
    let model = load_from_name(model, &device, &LoadOptions::default())?;
    let (train, test) = (ImageFolder::open(train)?, ImageFolder::open(test)?);
    if train.classes != test.classes {
        return Err("the two folders have different classes".into());
    }

    let (features, labels) = (features(&model, &train)?, labels(&train));
    let autodiff = device.clone().autodiff();
    let features = Tensor::<2>::from_inner(features);
    let targets =
        Tensor::<1, Int>::from_data(TensorData::new(labels.clone(), [labels.len()]), &autodiff);
    let loss = CrossEntropyLossConfig::new().init(&autodiff);
    let mut layer =
        LinearConfig::new(model.config().vision.embed_dim, train.classes.len()).init(&autodiff);
    let mut optimizer = AdamWConfig::new().init();
    for _ in 0..STEPS {
        let loss = loss.forward(layer.forward(features.clone()), targets.clone());
        let gradients = GradientsParams::from_grads(loss.backward(), &layer);
        layer = optimizer.step(LEARNING_RATE, layer, gradients);
    }

    let accuracy = accuracy(&layer, self::features(&model, &test)?, &self::labels(&test))?;
    println!("{:.2} % of {} pictures", 100.0 * accuracy, test.images.len());
    Ok(accuracy)
}

fn features(model: &Model, folder: &ImageFolder) -> Result<Tensor<2>, cn_clip::Error> {
    let paths: Vec<&Path> = folder.images.iter().map(|(path, _)| path.as_path()).collect();
    model.image_features(&paths)
}

fn labels(folder: &ImageFolder) -> Vec<i64> {
    folder.targets().into_iter().map(|class| class as i64).collect()
}

fn accuracy(layer: &Linear, features: Tensor<2>, labels: &[i64]) -> Result<f64, Box<dyn Error>> {
    let best = layer.forward(Tensor::from_inner(features)).argmax(1);
    let best: Vec<i64> = best.into_data().iter::<i64>().collect();
    let right = best.iter().zip(labels).filter(|(best, label)| best == label).count();
    Ok(right as f64 / labels.len() as f64)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [model, train, test] = &args[..] else {
        return Err("MODEL TRAIN_FOLDER TEST_FOLDER".into());
    };
    run(model, Path::new(train), Path::new(test)).map(drop)
}
