//! The one error type of this crate.

use std::path::PathBuf;

use cn_clip_data::DataError;
use cn_clip_model::ModelError;

/// What can go wrong in training.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Models and checkpoints.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Data sets and pictures.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A picture that cannot be decoded.
    #[error("{0}, or go on without such pictures by --skip-bad-images")]
    Picture(DataError),
    /// A setting that makes no sense.
    #[error("{0}")]
    Config(String),
    /// A checkpoint that cannot be resumed from.
    #[error("cannot resume: {0}")]
    Resume(String),
    /// Another rank has ended with an error.
    #[error("rank {rank} failed: {reason}")]
    Rank {
        /// The rank.
        rank: usize,
        /// Its error.
        reason: String,
    },
    /// The loss is not a number.
    #[error("the loss is {loss} at step {step}: lower --lr, raise --warmup, or look at the data")]
    Diverged {
        /// The step.
        step: u64,
        /// The loss.
        loss: f32,
    },
    /// A log or directory could not be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

impl TrainError {
    /// What a loader reports while training.
    pub fn from_loader(error: DataError) -> Self {
        match error {
            DataError::Image { .. } => Self::Picture(error),
            other => Self::Data(other),
        }
    }

    /// Attaches `path` to an I/O error.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
