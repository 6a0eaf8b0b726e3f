//! The one error type of this crate.

use std::path::PathBuf;

/// What can go wrong with configurations, devices and checkpoints.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A model name that is neither known nor a readable configuration file.
    #[error("unknown {kind} model `{name}`: use one of {known}, or the path of a JSON file")]
    UnknownModel {
        /// `vision` or `text`.
        kind: &'static str,
        /// What was asked for.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// A configuration file that does not hold a usable configuration.
    #[error("configuration {name}: {reason}")]
    Config {
        /// File or model name.
        name: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A device string that cannot be used in this build or on this machine.
    #[error("device `{spec}`: {reason}")]
    Device {
        /// What was asked for.
        spec: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file that is not a checkpoint, or a damaged one.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Published weights that are neither on this machine nor to be had.
    #[error(
        "the weights of {name} are not on this machine ({reason}): get {} from {source_url} and put \
         it at {}",
        path.file_name().unwrap_or_default().display(),
        path.display()
    )]
    Weights {
        /// The model.
        name: &'static str,
        /// Why they could not be downloaded.
        reason: String,
        /// Where a browser finds them.
        source_url: String,
        /// The file to put there.
        path: PathBuf,
    },
    /// The checkpoint does not fit the model.
    #[error("{name} does not fit the model:{}", mismatch_list(.problems))]
    Mismatch {
        /// The checkpoint.
        name: String,
        /// Every missing, unexpected or wrongly shaped key.
        problems: Vec<String>,
    },
}

impl ModelError {
    /// Attaches `path` to an I/O error.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// A damaged or foreign file.
    pub fn format(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Format { path: path.into(), reason: reason.into() }
    }
}

fn mismatch_list(problems: &[String]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}
