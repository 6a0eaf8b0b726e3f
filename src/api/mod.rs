//! Models by name or file, and their features: what most programs need, in few words.

mod error;
mod features;
mod input;
mod load;
mod model;

pub use error::Error;
pub use features::Features;
pub use input::{AsImage, ImageInput};
pub use load::{LoadOptions, available_models, load_clip, load_from_name, load_from_path};
pub use model::{Model, image_transform, tokenize};
