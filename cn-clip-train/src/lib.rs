//! Contrastive training of Chinese-CLIP: one exact step for every way of training.

mod config;
mod error;
mod log;
pub mod loss;
pub mod optimizer;
pub mod schedule;
mod state;
pub mod step;
mod tower;
mod trainer;
mod validate;

pub use config::{OptimizerConfig, RunLength, TrainConfig};
pub use error::TrainError;
pub use loss::contrastive_loss;
pub use trainer::{Event, Outcome, train};
pub use validate::{Dataset, Validation};
