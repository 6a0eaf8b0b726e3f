//! Pictures to normalised pixels, byte for byte as Pillow and torchvision do it.
//!
//! A picture is decoded into its Pillow mode ([`Picture`]), resized in that mode, turned into RGB
//! and normalised ([`ImageTransform`]). Lossless formats give the reference's pixels exactly; JPEG
//! and lossy WebP differ by what their decoders differ.

mod base64;
mod decode;
mod error;
#[cfg(test)]
mod golden;
mod limit;
mod picture;
mod resize;
mod save;
mod transform;

pub use base64::decode_base64;
pub use error::{Format, ImageError};
pub use limit::{MAX_PIXELS, SizeLimit};
pub use picture::{Mode, Picture, RgbPicture};
pub use save::save_pixels;
pub(crate) use transform::check_output;
pub use transform::{IMAGE_MEAN, IMAGE_STD, ImageTransform, PixelTransform, normalise_rgb};
