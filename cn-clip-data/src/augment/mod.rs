//! Random changes of training pictures. Each is a [`PixelTransform`](crate::image::PixelTransform)
//! whose result depends on the picture and the seed only.

mod affine_jitter;
mod colour;
mod draw;

pub use affine_jitter::{AffineJitter, AffineJitterConfig, RandomErasing};
