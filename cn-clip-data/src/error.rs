//! The error type of data sets and loaders.

use std::path::PathBuf;

use crate::record::Id;

/// What can go wrong with data sets.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A line of a text file that does not have the right form.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A file that holds nothing to work with.
    #[error("{}: {reason}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// A file that cannot be used.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the member or row, and what to do.
        reason: String,
    },
    /// An LMDB directory that cannot be used.
    #[error("{}: {reason}", path.display())]
    Lmdb {
        /// The directory.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A pair refers to a picture that is not there.
    #[error("image {id} is not in {}: build the data set again", path.display())]
    MissingImage {
        /// The picture.
        id: Id,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A picture that cannot be decoded.
    #[error("image {id}: {reason}")]
    Image {
        /// The picture.
        id: Id,
        /// What is wrong.
        reason: String,
    },
    /// A setting that makes no sense.
    #[error("{0}")]
    Config(String),
}

impl DataError {
    /// Attaches `path` to an I/O error.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// A file that cannot be used.
    pub fn file(path: impl Into<PathBuf>, reason: impl ToString) -> Self {
        Self::File { path: path.into(), reason: reason.to_string() }
    }

    /// A line of a text file that does not have the right form.
    pub fn line(path: impl Into<PathBuf>, line: u64, reason: impl ToString) -> Self {
        Self::Line { path: path.into(), line, reason: reason.to_string() }
    }

    /// An LMDB directory that cannot be used.
    pub fn lmdb(path: impl Into<PathBuf>, reason: impl ToString) -> Self {
        Self::Lmdb { path: path.into(), reason: reason.to_string() }
    }
}
