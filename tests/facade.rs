//! The library as others embed it: models by path, features of everything that is a picture or a
//! text, threads.

#![allow(clippy::unwrap_used)]

#[path = "support/golden.rs"]
mod golden;

use std::{path::PathBuf, thread};

use cn_clip::{
    DynamicImage, Error, ImageInput, LoadOptions, Model,
    burn::tensor::{Device, Tensor, TensorData},
    load_clip, load_from_name, load_from_path,
    model::{Clip, ClipConfig, DeviceSpec, Precision, normalize},
};
use golden::{Golden, fixture, relative_error};

fn device() -> Device {
    DeviceSpec::CPU.open().unwrap()
}

fn tiny() -> Model {
    let path = fixture("tiny.safetensors");
    load_from_name(path.to_str().unwrap(), &device(), &LoadOptions::default()).unwrap()
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

fn pictures() -> Vec<PathBuf> {
    ["01_gradient_rgb.png", "03_scene.jpg", "04_rgba.png", "19_webp_lossless.webp", "21_bmp.bmp"]
        .map(|name| fixture("preprocess").join(name))
        .to_vec()
}

#[test]
fn encoders_give_the_recorded_features() {
    let file = fixture("model/vit_tiny/config.json");
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let config: ClipConfig = serde_json::from_value(json["model_config"].clone()).unwrap();
    let options = LoadOptions { config: Some(config), ..LoadOptions::default() };
    let path = fixture("model/vit_tiny/checkpoint_fp16.pt");
    let model = load_from_path(&path, &device(), &options).unwrap();
    let golden = Golden::open("model/vit_tiny/forward_eval.safetensors");
    let (image, text) = (golden.get("pixels"), golden.get("tokens"));
    let shape: [usize; 4] = image.shape.clone().try_into().unwrap();
    let pixels = Tensor::<4>::from_data(TensorData::new(image.values.clone(), shape), &device());
    let shape: [usize; 2] = text.shape.clone().try_into().unwrap();
    let tokens = Tensor::from_data(TensorData::new(text.ints(), shape), &device());
    let images = model.encode_image(pixels.clone());
    let texts = model.encode_text(tokens.clone());
    golden.check("image_features", &values(images.clone()), 1e-4);
    golden.check("text_features", &values(texts.clone()), 1e-4);
    let (per_image, per_text) = model.get_similarity(pixels, tokens);
    golden.check("logits_per_image", &values(per_image.clone()), 1e-4);
    golden.check("logits_per_text", &values(per_text), 1e-4);
    let features = model.similarity(normalize(images), normalize(texts));
    assert_eq!(values(features), values(per_image));
}

#[test]
fn a_picture_is_the_same_as_path_bytes_and_image() {
    let model = tiny();
    let paths = pictures();
    let features = model.embed_images(&paths).unwrap();
    assert_eq!((features.len(), features.dim()), (paths.len(), model.config().vision.embed_dim));
    for row in features.rows() {
        let norm: f32 = row.iter().map(|value| value * value).sum();
        assert!((norm - 1.0).abs() < 1e-5, "{norm}");
    }
    let bytes: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert_eq!(model.embed_images(&bytes).unwrap(), features);
    let slices: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
    assert_eq!(model.embed_images(&slices).unwrap(), features);
    let names: Vec<&str> = paths.iter().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(model.embed_images(&names).unwrap(), features);
    assert_eq!(values(model.image_features(&names).unwrap()), features.as_slice());
    assert_eq!(values(features.to_tensor(&device())), features.as_slice());
    // The first is an ordinary RGB picture, which another decoder decodes to the same bytes.
    let decoded = DynamicImage::ImageRgb8(rgb_of(&bytes[0]));
    let mixed = [ImageInput::Image(&decoded), ImageInput::Bytes(&bytes[1])];
    let mixed = model.embed_images(&mixed).unwrap();
    assert_eq!(mixed.get(0), features.get(0));
    assert_eq!(mixed.get(1), features.get(1));
    assert_eq!(mixed.get(2), None);
}

fn rgb_of(png: &[u8]) -> image::RgbImage {
    let picture = cn_clip::data::image::Picture::decode(png).unwrap();
    let (width, height) = (picture.width() as u32, picture.height() as u32);
    image::RgbImage::from_raw(width, height, picture.into_rgb().pixels).unwrap()
}

#[test]
fn batches_give_what_single_items_give() {
    let model = tiny();
    let texts: Vec<String> = (0..7).map(|index| "一只猫".repeat(index)).collect();
    let paths = pictures();
    let (all_texts, all_images) =
        (model.embed_texts(&texts).unwrap(), model.embed_images(&paths).unwrap());
    assert_eq!(values(model.text_features(&texts)), all_texts.as_slice());
    for size in [0, 1, 3] {
        let model = model.clone().with_batch_size(size);
        let single = model.embed_texts(&texts).unwrap();
        assert!(relative_error(single.as_slice(), all_texts.as_slice()) < 1e-5);
        let single = model.embed_images(&paths).unwrap();
        assert!(relative_error(single.as_slice(), all_images.as_slice()) < 1e-5);
    }
}

#[test]
fn nothing_gives_no_features() {
    let model = tiny();
    assert!(model.embed_images::<PathBuf>(&[]).unwrap().is_empty());
    assert_eq!(model.embed_texts::<&str>(&[]).unwrap().len(), 0);
    let dim = model.config().vision.embed_dim;
    assert_eq!(model.image_features::<PathBuf>(&[]).unwrap().dims(), [0, dim]);
    assert_eq!(model.text_features::<&str>(&[]).dims(), [0, dim]);
}

#[test]
fn bad_pictures_are_named() {
    let model = tiny().with_batch_size(2);
    let mut paths = pictures();
    paths.insert(3, "none.png".into());
    let Err(Error::Image { index, path, .. }) = model.embed_images(&paths) else { panic!() };
    assert_eq!((index, path), (3, Some("none.png".into())));
    let error = model.image_features(&paths).unwrap_err();
    assert!(error.to_string().contains("none.png"), "{error}");
    let error = model.embed_images(&[&b"no picture"[..]]).unwrap_err().to_string();
    assert!(error.contains("picture 0"), "{error}");
}

#[test]
fn threads_share_a_model() {
    fn is_shared<T: Send + Sync + Clone + 'static>() {}
    is_shared::<Model>();
    is_shared::<Clip>();
    is_shared::<cn_clip::Features>();
    let model = tiny();
    let expected =
        (model.embed_images(&pictures()).unwrap(), model.embed_texts(&["猫", "狗"]).unwrap());
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..3 {
                        let images = model.embed_images(&pictures()).unwrap();
                        let texts = model.embed_texts(&["猫", "狗"]).unwrap();
                        assert_eq!((images, texts), expected);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    // And one that outlives the first.
    let clone = model.clone();
    drop(model);
    let moved = thread::spawn(move || clone.embed_texts(&["猫", "狗"]).unwrap());
    assert_eq!(moved.join().unwrap(), expected.1);
}

#[test]
fn names_and_files_that_do_not_exist_are_errors() {
    let options = LoadOptions::default();
    let error = load_from_name("ViT-B-61", &device(), &options).unwrap_err();
    assert!(matches!(error, Error::UnknownName { .. }));
    let error = error.to_string();
    assert!(error.contains("ViT-B-61") && error.contains("ViT-B-16"), "{error}");
    let error = load_from_path("none.pt", &device(), &options).unwrap_err().to_string();
    assert!(error.contains("none.pt"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let options = LoadOptions {
        download_root: Some(dir.path().to_path_buf()),
        offline: true,
        ..LoadOptions::default()
    };
    // Where the model is not in a folder that is searched anyway.
    if let Err(error) = load_clip("ViT-H-14", &device(), &options) {
        let place = dir.path().join("clip_cn_vit-h-14.pt").display().to_string();
        assert!(error.to_string().contains(&place), "{error}");
    }
}

#[test]
fn other_precisions_stay_near() {
    let model = tiny();
    let expected = model.embed_images(&pictures()).unwrap();
    for precision in Precision::supported(&device()) {
        let features = model.with_precision(precision).embed_images(&pictures()).unwrap();
        let error = relative_error(features.as_slice(), expected.as_slice());
        assert!(error < 0.05, "{precision}: {error}");
    }
}

#[test]
fn a_clip_on_an_autodiff_device_can_be_trained_and_then_used() {
    let path = fixture("tiny.safetensors");
    let path = path.to_str().unwrap();
    let autodiff = device().autodiff();
    let (clip, config) = load_clip(path, &autodiff, &LoadOptions::default()).unwrap();
    let model = Model::new(clip.clone(), config);
    let tokens = model.tokenize(&["猫"]);
    let text =
        clip.encode_text(cn_clip::tokenize(&["猫"], 52, &autodiff), cn_clip::model::Pass::Eval);
    let gradients = text.sum().backward();
    assert!(clip.text_projection.val().grad(&gradients).is_some());
    // Without gradients, and the same.
    assert!(!model.encode_text(tokens).is_autodiff());
    assert_eq!(model.embed_texts(&["猫"]).unwrap(), tiny().embed_texts(&["猫"]).unwrap());
}

#[test]
fn another_resolution_resizes_the_positional_embedding() {
    let path = fixture("tiny.safetensors");
    let mut config = tiny().config().clone();
    config.vision.image_resolution = 48;
    let options = LoadOptions { config: Some(config), ..LoadOptions::default() };
    let model = load_from_path(path, &device(), &options).unwrap();
    let features = model.embed_images(&pictures()).unwrap();
    assert_eq!(features.len(), pictures().len());
    let expected = tiny().embed_images(&pictures()).unwrap();
    assert_ne!(features, expected);
}
