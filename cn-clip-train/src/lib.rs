//! Contrastive training of Chinese-CLIP: one exact step for every way of training.

pub mod communicator;
mod config;
mod depth;
pub mod distill;
mod encoder;
mod epochs;
mod error;
mod log;
pub mod loss;
mod loss_scale;
pub mod metrics;
mod moments;
pub mod optimizer;
mod params;
pub mod preflight;
mod recall;
mod reduce;
mod report;
mod run;
pub mod schedule;
mod state;
pub mod step;
mod sync_norm;
mod tensorboard;
mod tower;
mod trainer;
mod validate;

pub use config::{OptimizerConfig, RunLength, TrainConfig};
pub use epochs::Plan;
pub use error::TrainError;
pub use loss::contrastive_loss;
pub use recall::Recall;
pub use state::begins_from;
pub use trainer::{Event, Job, Outcome, Rank, train};
pub use validate::{Dataset, Validation};
