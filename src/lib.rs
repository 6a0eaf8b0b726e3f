//! Chinese-CLIP (arXiv 2211.01335) on Burn: the crates of this workspace under one name.
//!
//! ```no_run
//! use cn_clip::{
//!     data::{image::ImageTransform, tokenizer::Tokenizer},
//!     model::{Clip, ClipConfig, DeviceSpec, Pass, checkpoint, normalize, token_tensor},
//! };
//! use burn::{module::Module, tensor::{Tensor, TensorData}};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = ClipConfig::published("ViT-B-16")?;
//! let device = "cpu".parse::<DeviceSpec>()?.open()?;
//! let weights = checkpoint::Checkpoint::open("clip_cn_vit-b-16.pt")?;
//! let model = checkpoint::load(Clip::init(&config, &device, 0), &weights)?.valid();
//!
//! let side = config.vision.image_resolution;
//! let pixels = ImageTransform::new(side).path_pixels(std::path::Path::new("cat.jpg"))?;
//! let pixels = Tensor::from_data(TensorData::new(pixels, [1, 3, side, side]), &device);
//! let image = normalize(model.encode_image(pixels, None, Pass::Eval));
//!
//! let tokens = Tokenizer::chinese().encode_batch(&["猫", "狗"], 52);
//! let text = normalize(model.encode_text(token_tensor(&tokens, 52, &device), Pass::Eval));
//! println!("{}", model.similarity(image, text));
//! # Ok(())
//! # }
//! ```

pub use cn_clip_data as data;
pub use cn_clip_eval as eval;
pub use cn_clip_model as model;
pub use cn_clip_train as train;
