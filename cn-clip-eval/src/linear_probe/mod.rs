//! Linear probe: a classifier trained on frozen features, the usual second figure beside zero-shot.
//!
//! Multinomial logistic regression by L-BFGS, the strength of its L2 term chosen on a validation
//! split, as in section 3.2 and appendix A.3 of the CLIP paper (arXiv 2103.00020); with few
//! pictures of each class as in CoOp (arXiv 2109.01134).

mod data;
mod few_shot;
mod labels;
mod lbfgs;
mod logistic;
mod probe;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

pub use data::{LabelledFeatures, Split, Splits};
pub use few_shot::{FewShot, Trial, few_shot};
pub use labels::read_labels;
pub use logistic::Logistic;
pub use probe::{Probe, Sweep, probe};

use crate::zeroshot::ZeroShotError;

/// Why no probe can be trained.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A line of a label file is bad.
    #[error("{path}:{line}: {reason}; a line is an id, a tab and the name of its class")]
    LabelLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// An id has a feature and no label, or the other way round.
    #[error(
        "{path}: id {id} has {has} but no {lacks}; labels and features must be of the same split"
    )]
    Unpaired {
        /// The label file.
        path: PathBuf,
        /// The id.
        id: String,
        /// `a label` or `a feature`.
        has: &'static str,
        /// `feature` or `label`.
        lacks: &'static str,
    },
    /// Features of the splits have come from different models.
    #[error(
        "the features of the {split} split have {found} values, those of the training split {expected}; extract both with the same model"
    )]
    Dimension {
        /// `validation` or `test`.
        split: &'static str,
        /// Values there.
        found: usize,
        /// Values of the training split.
        expected: usize,
    },
    /// A class has nothing to train on.
    #[error("class {class:?} of the {split} split has no picture in the training split")]
    UnknownClass {
        /// `validation` or `test`.
        split: &'static str,
        /// The class.
        class: String,
    },
    /// There is nothing to tell apart.
    #[error("the training split has {0} classes; a probe needs at least two")]
    TooFewClasses(usize),
    /// A class has fewer pictures than are asked for.
    #[error(
        "class {class:?} has {found} pictures for training and validation, fewer than the {needed} that {shots} shots need; use fewer shots or give --val-data"
    )]
    TooFewPictures {
        /// The class.
        class: String,
        /// Pictures it has.
        found: usize,
        /// Pictures it should have.
        needed: usize,
        /// Shots asked for.
        shots: usize,
    },
    /// No class has a picture to spare for validation.
    #[error(
        "no class has two pictures, so none can be held out to choose the L2 strength; give --val-data"
    )]
    NothingToHoldOut,
    /// The numbers have overflowed.
    #[error("training gives numbers that are not finite; are the features normalised?")]
    NotFinite,
    /// Accuracy cannot be computed.
    #[error(transparent)]
    Accuracy(#[from] ZeroShotError),
}
