//! Names of columns and captions, the same for csv, jsonl, parquet and tar.

use std::path::Path;

use serde_json::{Map, Value};

/// Columns of picture paths.
pub(super) const PATH_COLUMNS: [&str; 5] = ["image", "image_path", "filepath", "file_name", "path"];
/// Columns of picture files in parquet.
pub(super) const BYTES_COLUMNS: [&str; 4] = ["image", "image_bytes", "bytes", "jpg"];
/// Columns of captions.
pub(super) const TEXT_COLUMNS: [&str; 4] = ["text", "caption", "title", "captions"];
/// Columns of the identity of a picture in parquet.
pub(super) const ID_COLUMNS: [&str; 3] = ["image_id", "id", "key"];
/// Column of the identity of a text in parquet.
pub(super) const TEXT_ID_COLUMN: &str = "text_id";

/// The first of `wanted` among `names`, whatever the case.
pub(super) fn find<'a>(
    names: impl Iterator<Item = &'a str> + Clone,
    wanted: &[&str],
) -> Option<usize> {
    let position =
        |wanted: &&str| names.clone().position(|name| name.trim().eq_ignore_ascii_case(wanted));
    wanted.iter().find_map(position)
}

/// `image`, `image_path` or …
pub(super) fn listed(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// The captions of an object, in order; none when it has no such key.
pub(super) fn captions(object: &Map<String, Value>) -> Result<Vec<String>, String> {
    let found = TEXT_COLUMNS.iter().find_map(|name| {
        object.get(*name).filter(|value| !value.is_null()).map(|value| (name, value))
    });
    let Some((name, value)) = found else { return Ok(Vec::new()) };
    let wrong = || format!("`{name}` is neither a string nor a list of strings");
    match value {
        Value::String(text) => Ok(vec![text.clone()]),
        Value::Array(values) => {
            values.iter().map(|value| value.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
        }
        _ => Err(wrong()),
    }
}

/// Reads a picture file that a table names.
pub(super) fn read_picture(folder: &Path, name: &str) -> Result<Vec<u8>, String> {
    let path = folder.join(name);
    std::fs::read(&path).map_err(|error| {
        format!(
            "picture {}: {error}: paths are relative to the folder of the table",
            path.display()
        )
    })
}
