//! Chinese-CLIP on Burn: configurations, towers, checkpoints and device choice.
//!
//! Everything is written against [`burn::tensor`] and takes a [`Device`](burn::tensor::Device):
//! only [`device`] names backends.

mod attention;
pub mod checkpoint;
pub mod clip;
pub mod config;
pub mod device;
mod error;
mod host;
pub mod hub;
mod init;
pub mod pos_embed;
pub mod precision;
mod random;
pub mod text;
pub mod vision;
mod workarounds;

pub use clip::{Clip, ImageTower, Pass, normalize, token_tensor};
pub use config::{ClipConfig, TextConfig, VisionConfig};
pub use device::DeviceSpec;
pub use error::ModelError;
pub use precision::Precision;
pub use random::{SampleRng, kept_patches};
