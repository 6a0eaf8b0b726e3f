//! Published weights by name.

use std::path::{Path, PathBuf};

use crate::{ModelError, config::published_models};

/// The file of a published model in `root`, or in the cache folder that the Python program uses,
/// `~/.cache/clip`.
pub fn find(name: &str, root: Option<&Path>) -> Result<PathBuf, ModelError> {
    if !published_models().contains(&name) {
        return Err(ModelError::UnknownModel {
            kind: "published",
            name: name.to_string(),
            known: published_models().join(", "),
        });
    }
    let root = match root {
        Some(root) => root.to_path_buf(),
        None => std::env::home_dir().unwrap_or_default().join(".cache").join("clip"),
    };
    let path = root.join(format!("clip_cn_{}.pt", name.to_lowercase()));
    match path.is_file() {
        true => Ok(path),
        false => Err(ModelError::format(
            &path,
            format!(
                "the weights of {name} are not here: put the official file there, or name a file by --checkpoint"
            ),
        )),
    }
}
