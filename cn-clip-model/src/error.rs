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
    #[error("{name} does not fit the model:{}", mismatch_list(.problems, .looks_like.as_deref()))]
    Mismatch {
        /// The checkpoint.
        name: String,
        /// Every wrongly shaped, missing or unexpected key.
        problems: Vec<String>,
        /// The flags that choose the architecture it has, or a description.
        looks_like: Option<String>,
    },
    /// The output is there already.
    #[error("{} exists: give --force to replace it, or another output", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// A weight that the type of the output cannot hold.
    #[error("{reason}: choose fp32 or bf16")]
    Unrepresentable {
        /// The weight and its value.
        reason: String,
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

/// The first few of each kind, and what would fit.
fn mismatch_list(problems: &[String], looks_like: Option<&str>) -> String {
    const SHOWN: usize = 10;
    let mut text = String::new();
    for kind in ["wrong shape", "missing", "unexpected"] {
        let of_kind = || problems.iter().filter(|problem| problem.starts_with(kind));
        of_kind().take(SHOWN).for_each(|problem| text.push_str(&format!("\n  {problem}")));
        let more = of_kind().count().saturating_sub(SHOWN);
        if more > 0 {
            text.push_str(&format!("\n  {kind}: {more} more"));
        }
    }
    if let Some(looks_like) = looks_like {
        text.push_str(&format!("\nit looks like {looks_like}"));
    }
    text
}
