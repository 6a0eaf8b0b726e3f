//! Telling the forms apart.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;

use super::{Concat, Source, Table, TextFiles, open_parquet, open_tar, spec::expand};
use crate::{error::DataError, format::Lines, lmdb::LmdbDataset, source::PairSource};

/// What the forms are called in messages.
const FORMS: &str = "an LMDB split (a folder with imgs/ and pairs/), the prefix of \
    <split>_texts.jsonl, a .csv, .tsv or .jsonl table, .tar shards or .parquet files";

/// Opens the data set that `spec` names: a path, a glob, braces, or a comma-separated list of them.
///
/// Parts with random access may be of different forms; shards are all tar or all parquet.
pub fn open(spec: &str) -> Result<Source, DataError> {
    let paths = expand(spec)?;
    let mut pairs: Vec<Arc<dyn PairSource>> = Vec::new();
    let (mut tar, mut parquet) = (Vec::new(), Vec::new());
    let forms = paths.into_iter().map(Form::of).collect::<Result<Vec<Form>, DataError>>()?;
    for form in &forms {
        match form {
            Form::Tar(path) => tar.push(path.clone()),
            Form::Parquet(path) => parquet.push(path.clone()),
            _ => {}
        }
    }
    match (tar.len(), parquet.len()) {
        (0, 0) => {}
        (count, 0) if count == forms.len() => return Ok(Source::Stream(open_tar(&tar)?)),
        (0, count) if count == forms.len() => return Ok(Source::Stream(open_parquet(&parquet)?)),
        _ => {
            return Err(DataError::Config(format!(
                "the data `{spec}` mixes tar or parquet shards with another form: convert one of \
                 them, or train on one form"
            )));
        }
    }
    for form in forms {
        match form {
            Form::Lmdb(path) => pairs.push(Arc::new(LmdbDataset::open(path)?)),
            Form::TextFiles { tsv, jsonl } => {
                pairs.push(Arc::new(TextFiles::open(&tsv, &jsonl)?));
            }
            Form::Table(path) => pairs.push(Arc::new(Table::open(&path)?)),
            Form::Tar(_) | Form::Parquet(_) => {}
        }
    }
    match (pairs.len(), pairs.pop()) {
        (1, Some(only)) => Ok(Source::Pairs(only)),
        (_, Some(last)) => {
            pairs.push(last);
            Ok(Source::Pairs(Arc::new(Concat::new(pairs))))
        }
        (_, None) => Err(DataError::Config(format!("the data `{spec}` names nothing"))),
    }
}

enum Form {
    Lmdb(PathBuf),
    TextFiles { tsv: PathBuf, jsonl: PathBuf },
    Table(PathBuf),
    Tar(PathBuf),
    Parquet(PathBuf),
}

impl Form {
    fn of(path: PathBuf) -> Result<Self, DataError> {
        if path.is_dir() && path.join("pairs").is_dir() && path.join("imgs").is_dir() {
            return Ok(Self::Lmdb(path));
        }
        if let Some(files) = text_files(&path, "") {
            return Ok(files);
        }
        if path.is_dir() {
            let shards = path.join("*.tar");
            let reason = format!(
                "is a folder without imgs/ and pairs/: name {FORMS}, such as `{}`",
                shards.display()
            );
            return Err(DataError::file(path, reason));
        }
        if !path.is_file() {
            return Err(DataError::file(path, format!("does not exist: name {FORMS}")));
        }
        let extension = path.extension().and_then(|text| text.to_str()).unwrap_or_default();
        match extension.to_ascii_lowercase().as_str() {
            "tar" => Ok(Self::Tar(path)),
            "parquet" => Ok(Self::Parquet(path)),
            "csv" => Ok(Self::Table(path)),
            "tsv" => Ok(text_files(&path, "_imgs.tsv").unwrap_or(Self::Table(path))),
            "jsonl" if names_images(&path)? => text_files(&path, "_texts.jsonl").ok_or_else(|| {
                let reason = "holds `image_ids` and must be named <split>_texts.jsonl";
                DataError::file(path, reason)
            }),
            "jsonl" => Ok(Self::Table(path)),
            "gz" | "tgz" | "zst" => {
                Err(DataError::file(path, "is compressed: unpack it to .tar first"))
            }
            _ => Err(DataError::file(path, format!("has an unknown form: name {FORMS}"))),
        }
    }
}

/// The text files of a split, of whose name `suffix` is to be cut off.
fn text_files(path: &Path, suffix: &str) -> Option<Form> {
    let prefix = path.to_str()?.strip_suffix(suffix)?;
    let tsv = PathBuf::from(format!("{prefix}_imgs.tsv"));
    let jsonl = PathBuf::from(format!("{prefix}_texts.jsonl"));
    // A missing tsv is an error of its own.
    (jsonl.is_file() && !prefix.is_empty()).then_some(Form::TextFiles { tsv, jsonl })
}

/// Whether the first line is one of `<split>_texts.jsonl`.
fn names_images(path: &Path) -> Result<bool, DataError> {
    let (mut lines, mut line) = (Lines::open(path)?, String::new());
    lines.next_into(&mut line)?;
    let first: Option<Value> = serde_json::from_str(&line).ok();
    Ok(first.is_some_and(|object| object.get("image_ids").is_some()))
}
