//! Lists of ids: one JSON number or string per line.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cn_clip_data::Id;

use super::{FeatureError, RowProblem};

/// Where the ids of an array file are: `X.ids.jsonl` for `X.npy`.
pub(super) fn beside(path: &Path) -> PathBuf {
    path.with_extension("ids.jsonl")
}

/// Reads the ids beside an array file: `X.ids.jsonl`, or the plain lines of `X.ids.txt`.
pub(super) fn read_beside(path: &Path) -> Result<(Vec<Id>, PathBuf), FeatureError> {
    let (json, plain) = (beside(path), path.with_extension("ids.txt"));
    if json.exists() {
        let bytes = fs::read(&json).map_err(FeatureError::read(&json))?;
        return Ok((parse(&bytes, &json)?, json));
    }
    if plain.exists() {
        let text = fs::read_to_string(&plain).map_err(FeatureError::read(&plain))?;
        return Ok((text.lines().map(Id::from).collect(), plain));
    }
    let reason = format!(
        "has no ids: expected {}, one JSON number or string per line, or {}, one id per line",
        json.display(),
        plain.display()
    );
    Err(FeatureError::file(path, reason))
}

/// Parses lines of ids; `path` is where they are from.
pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Vec<Id>, FeatureError> {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let id = |(number, line): (usize, &[u8])| {
        serde_json::from_slice(line).map_err(|error| FeatureError::Line {
            path: path.to_owned(),
            line: number + 1,
            problem: RowProblem::Json(error.to_string()),
        })
    };
    bytes.split(|&byte| byte == b'\n').enumerate().map(id).collect()
}
