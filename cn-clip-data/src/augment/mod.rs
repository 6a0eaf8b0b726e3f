//! Random changes of training pictures. Each is a [`PixelTransform`](crate::image::PixelTransform)
//! whose result depends on the picture and the seed only.

mod affine_jitter;
mod auto_augment;
mod colour;
mod draw;
mod ops;
mod random_resized_crop;
mod train_augment;

pub use affine_jitter::{AffineJitter, AffineJitterConfig, RandomErasing};
pub use auto_augment::auto_augment;
pub use ops::{FILL, Operation};
pub use random_resized_crop::{Crop, RandomResizedCrop};
pub use train_augment::TrainAugment;
