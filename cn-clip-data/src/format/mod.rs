//! The text files of a split: `<split>_imgs.tsv` and `<split>_texts.jsonl`.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{error::DataError, record::Id};

/// A line of `<split>_texts.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TextRecord {
    /// Identity of the text.
    pub text_id: Id,
    /// The text.
    pub text: String,
    /// Pictures it belongs to; may be empty in a test split.
    pub image_ids: Vec<Id>,
}

/// Lines of a text file one at a time, however long the file, with their numbers.
pub struct Lines {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    number: u64,
    bytes: u64,
}

impl Lines {
    /// Opens a file.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(DataError::io(path))?;
        Ok(Self::new(path, file))
    }

    /// Lines of anything that can be read; `name` stands for it in errors.
    pub fn new(name: impl Into<PathBuf>, reader: impl Read + Send + 'static) -> Self {
        let reader = Box::new(BufReader::with_capacity(1 << 20, reader));
        Self { path: name.into(), reader, number: 0, bytes: 0 }
    }

    /// Bytes read so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of the line read last, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// An error at the line read last.
    pub fn error(&self, reason: impl Into<String>) -> DataError {
        DataError::Line { path: self.path.clone(), line: self.number, reason: reason.into() }
    }

    /// Reads the next line into `line`, without its end and without a byte-order mark; `false` at
    /// the end of the file.
    pub fn next_into(&mut self, line: &mut String) -> Result<bool, DataError> {
        let mut bytes = std::mem::take(line).into_bytes();
        bytes.clear();
        let read = self.reader.read_until(b'\n', &mut bytes).map_err(DataError::io(&self.path))?;
        if read == 0 {
            return Ok(false);
        }
        self.number += 1;
        self.bytes += read as u64;
        while bytes.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
            bytes.pop();
        }
        if self.number == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
            bytes.drain(..3);
        }
        *line = String::from_utf8(bytes)
            .map_err(|_| self.error("is not UTF-8: save the file as UTF-8"))?;
        Ok(true)
    }
}

/// Splits a line of `<split>_imgs.tsv` into image id and base64 text.
pub fn image_line(line: &str) -> Result<(&str, &str), String> {
    let mut parts = line.trim().split('\t');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(""), None, _) => Err("is empty: remove the line".to_string()),
        (Some(id), Some(image), None) if !id.is_empty() && !image.is_empty() => Ok((id, image)),
        (_, None, _) => Err("has no tab: expected `<image id>\\t<base64 of the picture>`".into()),
        (_, _, Some(_)) => Err("has more than one tab: expected `<image id>\\t<base64>`".into()),
        _ => Err("lacks the image id or the picture".to_string()),
    }
}

/// Parses a line of `<split>_texts.jsonl`.
pub fn text_line(line: &str) -> Result<TextRecord, String> {
    parse(line, r#"{"text_id": number, "text": string, "image_ids": [ids]}"#)
}

/// Parses identity and text of a line of `<split>_texts.jsonl`, which need not name pictures.
pub fn query_line(line: &str) -> Result<(Id, String), String> {
    #[derive(Deserialize)]
    struct Query {
        text_id: Id,
        text: String,
    }
    let Query { text_id, text } = parse(line, r#"{"text_id": number, "text": string}"#)?;
    Ok((text_id, text))
}

fn parse<T: serde::de::DeserializeOwned>(line: &str, form: &str) -> Result<T, String> {
    if line.trim().is_empty() {
        return Err("is empty: remove the line".to_string());
    }
    // Records would also be made of lists.
    if !line.trim_start().starts_with('{') {
        return Err(format!("is no JSON object: expected {form}"));
    }
    serde_json::from_str(line).map_err(|error| {
        let error = error.to_string();
        let reason = error.split(" at line ").next().unwrap_or_default();
        format!("{reason}: expected {form}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_an_object() {
        let object = r#" {"text_id": 41, "text": "a", "image_ids": []}"#;
        assert!(text_line(object).is_ok() && query_line(object).is_ok());
        for list in [r#"[41, "a", []]"#, r#"[41, "a"]"#] {
            for error in [text_line(list).map(|_| ()), query_line(list).map(|_| ())] {
                assert!(error.unwrap_err().starts_with("is no JSON object: expected {"));
            }
        }
    }
}
