//! Zero-shot classification: pictures against the prompts of class names
//! (`zeroshot_evaluation.py`).

mod accuracy;
mod classifier;
mod confusion;
mod images;
mod metrics;
mod prompts;
mod report;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::extract::ExtractError;

pub use accuracy::{Accuracy, ClassAccuracy};
pub use classifier::{Classifier, LOGIT_SCALE};
pub use confusion::Confusion;
pub use images::{ImageFolder, read_labels};
pub use metrics::Metrics;
pub use prompts::{PromptCache, PromptEncoder};
pub use report::{ElevaterReport, read_index, reorder};

/// Why pictures cannot be classified.
#[derive(Debug, Error)]
pub enum ZeroShotError {
    /// A file or folder cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The report cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The folder of pictures has no sub-folders.
    #[error("{path} has no sub-folders; need one folder of pictures per class")]
    NoClasses {
        /// The folder.
        path: PathBuf,
    },
    /// A class folder has no picture.
    #[error("class folder {path} has no pictures ({extensions})")]
    EmptyClass {
        /// The folder.
        path: PathBuf,
        /// Names of files that count as pictures.
        extensions: String,
    },
    /// The name of a class folder or picture is not UTF-8.
    #[error("the name of {path} is not UTF-8; rename it")]
    Name {
        /// The folder or file.
        path: PathBuf,
    },
    /// A line of the label file is blank.
    #[error("{path}:{line}: the label is blank; need one class name per line, without gaps")]
    BlankLabel {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// The label file is no UTF-8 text.
    #[error("{path}:{line}: the label is not UTF-8; save the file as UTF-8")]
    LabelEncoding {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A line of a file of templates has not one place for the label.
    #[error("{path}:{line}: a template holds {{}} once, where the label goes, in UTF-8")]
    Template {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// Labels and class folders do not match.
    #[error(
        "{path} has {labels} labels, but there are {classes} class folders; line n is the name of the n-th folder in sorted order"
    )]
    LabelCount {
        /// The label file.
        path: PathBuf,
        /// Its lines.
        labels: usize,
        /// Class folders.
        classes: usize,
    },
    /// The index file is no JSON list of positions.
    #[error("{path}: {reason}; need a JSON list of picture numbers from 0")]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The name of a data set cannot be the name of a file.
    #[error("data set name {name:?} cannot be a file name")]
    DatasetName {
        /// The name.
        name: String,
    },
    /// Sizes do not fit together.
    #[error("{what}")]
    Shape {
        /// Which, with the sizes.
        what: String,
    },
    /// A probability or a class vector is NaN.
    #[error("{what} is not finite; the checkpoint or a picture gives NaN or zero features")]
    NotFinite {
        /// Which.
        what: String,
    },
    /// A picture cannot be read.
    #[error(transparent)]
    Data(#[from] cn_clip_data::DataError),
    /// The device failed.
    #[error("the device cannot compute probabilities: {0}")]
    Device(String),
}

impl From<ExtractError<ZeroShotError>> for ZeroShotError {
    fn from(error: ExtractError<ZeroShotError>) -> Self {
        match error {
            ExtractError::Data(error) => error.into(),
            ExtractError::Device(reason) => Self::Device(reason),
            ExtractError::Sink(error) => error,
        }
    }
}
