//! What can be wrong with features.

use std::{
    io,
    path::{Path, PathBuf},
};

use cn_clip_data::Id;
use thiserror::Error;

/// Why a feature file, or features in memory, cannot be used.
#[derive(Debug, Error)]
pub enum FeatureError {
    /// The file cannot be opened or read.
    #[error("cannot read features from {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file cannot be written; nothing is left under its name.
    #[error("cannot write features to {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A line of a file is bad.
    #[error("{path}:{line}: {problem}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: RowProblem,
    },
    /// The file has no line at all.
    #[error("{path}: no features in this file; did the extraction finish?")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A file as a whole is damaged, or of a form that is not read.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A row of a binary file is bad.
    #[error("{path}: row {row} (id {id}): {problem}")]
    FileRow {
        /// The file.
        path: PathBuf,
        /// The row, from 0.
        row: usize,
        /// Its id.
        id: Id,
        /// What is wrong with it.
        problem: RowProblem,
    },
    /// A row in memory is bad.
    #[error("row {row} (id {id}): {problem}")]
    Row {
        /// The row, from 0.
        row: usize,
        /// Its id.
        id: Id,
        /// What is wrong with it.
        problem: RowProblem,
    },
    /// The numbers of ids and values do not fit together, or there are none.
    #[error("{values} values are not {rows} rows of {dim}, or there is nothing")]
    Shape {
        /// Number of ids.
        rows: usize,
        /// Values of a row.
        dim: usize,
        /// Values in all.
        values: usize,
    },
}

/// What is wrong with one feature.
#[derive(Debug, PartialEq, Error)]
pub enum RowProblem {
    /// Not a JSON object of the right form.
    #[error("malformed JSON: {0}")]
    Json(String),
    /// The id or the feature is not there.
    #[error("no \"{0}\"; is this a file of the other modality, or no feature file?")]
    MissingKey(&'static str),
    /// The feature has no value.
    #[error("the feature is empty")]
    EmptyFeature,
    /// Another size than the rows before.
    #[error("the feature has {found} values, those before have {expected}")]
    Dimension {
        /// Values of this row.
        found: usize,
        /// Values of the first row.
        expected: usize,
    },
    /// NaN or infinity (also: too large for single precision).
    #[error("value {position} of the feature is NaN or infinite; extract the features again")]
    NotFinite {
        /// Position in the row, from 0.
        position: usize,
    },
    /// A vector of zeros has no direction.
    #[error("all values of the feature are zero")]
    Zero,
    /// The id has been there before.
    #[error("id {id} has been seen before, as entry {}", .first + 1)]
    Duplicate {
        /// The id.
        id: Id,
        /// Where it was first, from 0.
        first: usize,
    },
}

impl FeatureError {
    /// Attaches `path` to an error of reading.
    pub(crate) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self + Copy {
        move |source| Self::Read { path: path.to_owned(), source }
    }

    /// Attaches `path` to an error of writing.
    pub(crate) fn write(path: &Path) -> impl FnOnce(io::Error) -> Self + Copy {
        move |source| Self::Write { path: path.to_owned(), source }
    }

    /// A file that cannot be used.
    pub(crate) fn file(path: &Path, reason: impl ToString) -> Self {
        Self::File { path: path.to_owned(), reason: reason.to_string() }
    }
}
