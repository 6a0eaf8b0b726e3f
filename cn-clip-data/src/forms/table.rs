//! Tables that name picture files: csv, tsv with a header, jsonl.

use std::{
    collections::HashSet,
    fs::File,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    columns::{PATH_COLUMNS, TEXT_COLUMNS, captions, find, listed, read_picture},
    rows::Rows,
};
use crate::{
    error::DataError,
    format::Lines,
    record::{Id, Pair},
    source::PairSource,
};

/// A table of picture paths and captions. Paths are relative to its folder; the path is the
/// identity of the picture, the number of the pair that of the text.
pub struct Table {
    rows: Rows,
    form: Form,
    folder: PathBuf,
    images: usize,
}

enum Form {
    Csv { delimiter: u8, image: usize, text: usize },
    Jsonl,
}

impl Table {
    /// Opens a table: jsonl by its extension, with tabs for `.tsv`, with commas otherwise.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let extension = path.extension().and_then(|text| text.to_str()).unwrap_or_default();
        let (rows, form, images) = match extension.to_ascii_lowercase().as_str() {
            "jsonl" => index_jsonl(path)?,
            "tsv" => index_csv(path, b'\t')?,
            _ => index_csv(path, b',')?,
        };
        if rows.len() == 0 {
            return Err(DataError::Empty { path: path.into(), reason: "holds no rows".into() });
        }
        let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
        Ok(Self { rows, form, folder, images })
    }

    fn parse(&self, index: usize) -> Result<(String, String), DataError> {
        let row = self.rows.read(index)?;
        let changed =
            || DataError::line(self.rows.path(), row.line, "has changed since it was opened");
        match self.form {
            Form::Csv { delimiter, image, text } => {
                let mut reader = csv::ReaderBuilder::new()
                    .has_headers(false)
                    .delimiter(delimiter)
                    .from_reader(row.bytes.as_slice());
                let record = reader.records().next().ok_or_else(changed)?.map_err(|_| changed())?;
                let cell = |column| record.get(column).map(str::to_owned).ok_or_else(changed);
                Ok((cell(image)?, cell(text)?))
            }
            Form::Jsonl => {
                let line = std::str::from_utf8(&row.bytes).map_err(|_| changed())?;
                let (image, texts) = jsonl_row(line).map_err(|_| changed())?;
                Ok((image, texts.into_iter().nth(row.which).ok_or_else(changed)?))
            }
        }
    }
}

impl PairSource for Table {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn num_images(&self) -> usize {
        self.images
    }

    fn pair(&self, index: usize) -> Result<Pair, DataError> {
        let (image, text) = self.parse(index)?;
        let text_id = Id::Int(i64::try_from(index).unwrap_or(i64::MAX));
        Ok(Pair { image_id: Id::from(image.as_str()), text_id, text })
    }

    fn image(&self, index: usize, pair: &Pair) -> Result<Vec<u8>, DataError> {
        read_picture(&self.folder, &pair.image_id.to_string())
            .map_err(|reason| self.rows.error(index, reason))
    }
}

/// Counts pictures by the hash of their path.
#[derive(Default)]
struct Distinct(HashSet<u64, rustc_hash::FxBuildHasher>);

impl Distinct {
    fn add(&mut self, path: &str) {
        let mut hasher = DefaultHasher::new();
        path.hash(&mut hasher);
        self.0.insert(hasher.finish());
    }
}

fn index_csv(path: &Path, delimiter: u8) -> Result<(Rows, Form, usize), DataError> {
    let file = File::open(path).map_err(DataError::io(path))?;
    let mut reader =
        csv::ReaderBuilder::new().delimiter(delimiter).buffer_capacity(1 << 20).from_reader(file);
    let failed = |error: csv::Error| match error.position() {
        Some(at) => DataError::line(path, at.line(), describe(&error)),
        None => DataError::file(path, describe(&error)),
    };
    let header = reader.headers().map_err(failed)?.clone();
    let column = |wanted: &[&str]| {
        find(header.iter(), wanted).ok_or_else(|| {
            let reason = format!("the header has none of the columns {}: name one", listed(wanted));
            DataError::line(path, 1, reason)
        })
    };
    let (image, text) = (column(&PATH_COLUMNS)?, column(&TEXT_COLUMNS)?);
    let mut rows = Rows::new(path)?;
    let (mut record, mut images) = (csv::StringRecord::new(), Distinct::default());
    loop {
        let start = reader.position().byte();
        if !reader.read_record(&mut record).map_err(failed)? {
            return Ok((rows, Form::Csv { delimiter, image, text }, images.0.len()));
        }
        let line = record.position().map_or(0, csv::Position::line);
        let name = record.get(image).unwrap_or_default();
        if name.is_empty() {
            return Err(DataError::line(path, line, "names no picture: remove the row"));
        }
        images.add(name);
        rows.push(start, reader.position().byte(), line, 1)?;
    }
}

fn describe(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("has {len} fields instead of {expected_len}: quote fields that hold separators")
        }
        csv::ErrorKind::Utf8 { .. } => "is not UTF-8: save the file as UTF-8".to_string(),
        _ => error.to_string(),
    }
}

fn index_jsonl(path: &Path) -> Result<(Rows, Form, usize), DataError> {
    let mut lines = Lines::open(path)?;
    let mut rows = Rows::new(path)?;
    let (mut line, mut start, mut images) = (String::new(), 0, Distinct::default());
    while lines.next_into(&mut line)? {
        let (image, texts) = jsonl_row(&line).map_err(|reason| lines.error(reason))?;
        images.add(&image);
        rows.push(start, lines.bytes(), lines.number(), texts.len())?;
        start = lines.bytes();
    }
    Ok((rows, Form::Jsonl, images.0.len()))
}

/// Picture and captions of a line.
fn jsonl_row(line: &str) -> Result<(String, Vec<String>), String> {
    let line = line.trim_start_matches('\u{feff}').trim();
    if line.is_empty() {
        return Err("is empty: remove the line".to_string());
    }
    let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let object = value.as_object().ok_or("is not a JSON object")?;
    let image = PATH_COLUMNS.iter().find_map(|name| object.get(*name)?.as_str());
    let image = image.filter(|image| !image.is_empty()).ok_or_else(|| {
        format!("has no picture path: one of {} must be a string", listed(&PATH_COLUMNS))
    })?;
    let texts = captions(object)?;
    if texts.is_empty() {
        return Err(format!("has no caption: expected one of {}", listed(&TEXT_COLUMNS)));
    }
    Ok((image.to_string(), texts))
}
