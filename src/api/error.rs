use std::path::PathBuf;

use cn_clip_data::image::ImageError;
use cn_clip_model::ModelError;

/// What can go wrong when a model is loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a published model nor a file.
    #[error("`{name}` is neither a published model ({known}) nor a file or folder")]
    UnknownName {
        /// What was asked for.
        name: String,
        /// The published models.
        known: String,
    },
    /// A configuration, a checkpoint or a device that cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A picture that cannot be turned into pixels.
    #[error("picture {}", picture_name(*.index, .path.as_ref()))]
    Image {
        /// Its position among the pictures given.
        index: usize,
        /// Its file, if it was given as one.
        path: Option<PathBuf>,
        /// What is wrong.
        source: ImageError,
    },
    /// Weights that give features which are no numbers.
    #[error("the weights give features that are NaN or infinite")]
    NotFinite,
    /// The device failed.
    #[error("the features cannot be read back from the device: {0}")]
    Device(String),
}

fn picture_name(index: usize, path: Option<&PathBuf>) -> String {
    path.map_or_else(|| index.to_string(), |path| path.display().to_string())
}
