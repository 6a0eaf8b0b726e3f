//! Chinese-CLIP (arXiv 2211.01335) on Burn: load a model by name, compare pictures with Chinese
//! texts, train.
//!
//! ```
//! use cn_clip::{LoadOptions, burn::tensor::activation::softmax, load_from_name, model::DeviceSpec};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (name, cat) = ("tests/fixtures/tiny.safetensors", "tests/fixtures/preprocess/03_scene.jpg");
//! # /*
//! let (name, cat) = ("ViT-B-16", "cat.jpg");
//! # */
//! let device = DeviceSpec::CPU.open()?;
//! let model = load_from_name(name, &device, &LoadOptions::default())?;
//! let images = model.image_features(&[cat])?;
//! let texts = model.text_features(&["一只猫", "一只狗"]);
//! let probabilities = softmax(model.similarity(images, texts), 1);
//! assert_eq!(probabilities.dims(), [1, 2]);
//! # Ok(())
//! # }
//! ```
//!
//! The names are those of the Python program, where there are any:
//!
//! | Python | here |
//! |---|---|
//! | `available_models()` | [`available_models`] |
//! | `load_from_name(name, device, download_root)` | [`load_from_name`], [`LoadOptions`] |
//! | `preprocess(image)` | [`Model::image_transform`] |
//! | `clip.tokenize(texts)` | [`tokenize`], [`Model::tokenize`] |
//! | `model.encode_image`, `model.encode_text` | [`Model::encode_image`], [`Model::encode_text`] |
//! | `model.get_similarity(image, text)` | [`Model::get_similarity`] |
//!
//! The crates of this workspace are [`model`], [`data`], [`train`] and [`eval`]; the features
//! `train` and `eval` of this crate switch the last two on. The guide is `docs/embedding.md`.

mod api;

pub use api::{
    AsImage, Error, Features, ImageInput, LoadOptions, Model, available_models, image_transform,
    load_clip, load_from_name, load_from_path, tokenize,
};
pub use burn;
pub use cn_clip_data as data;
#[cfg(feature = "eval")]
pub use cn_clip_eval as eval;
pub use cn_clip_model as model;
#[cfg(feature = "train")]
pub use cn_clip_train as train;
pub use data::tokenizer::CONTEXT_LENGTH;
pub use image::DynamicImage;

/// The code of the guide.
#[cfg(doctest)]
#[doc = include_str!("../docs/embedding.md")]
struct Guide;
