//! Contrastive training of Chinese-CLIP: one exact step for every way of training.

mod error;
pub mod loss;
pub mod optimizer;
pub mod schedule;
pub mod step;

pub use error::TrainError;
pub use loss::contrastive_loss;
