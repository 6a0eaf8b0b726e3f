//! Annotations of retrieval: which texts belong to which pictures.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use crate::predictions::{Direction, IdLists};
use crate::python_json;
use cn_clip_data::Id;
use cn_clip_data::atomic::AtomicFile;

/// Why annotations cannot be used.
#[derive(Debug, Error)]
pub enum AnnotationError {
    /// The file cannot be opened or read.
    #[error("cannot read annotations from {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file cannot be written; what stood under its name is untouched.
    #[error("cannot write annotations to {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A line is no JSON object with a `text_id` and a list `image_ids`.
    #[error("{path}:{line}: {source}; need {{\"text_id\": …, \"image_ids\": […]}}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A text comes twice.
    #[error("{path}:{line}: text_id {id} has been seen before, at line {first}")]
    Duplicate {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The id.
        id: Id,
        /// The line where it was first.
        first: usize,
    },
    /// No line names a picture.
    #[error("{path}: no text has a picture (image_ids are empty, as in a test split)")]
    NoPictures {
        /// The file.
        path: PathBuf,
    },
}

#[derive(Deserialize)]
struct Line {
    text_id: Id,
    image_ids: Vec<Id>,
}

/// Reads `{"text_id": …, "image_ids": […]}` lines in file order; other keys are ignored.
///
/// # Errors
/// [`AnnotationError`] naming the file and the line of what is wrong.
pub fn read(path: &Path) -> Result<Vec<(Id, Vec<Id>)>, AnnotationError> {
    let failed = |source| AnnotationError::Read { path: path.to_owned(), source };
    let mut seen = HashMap::new();
    let mut records = Vec::new();
    let reader = BufReader::new(File::open(path).map_err(failed)?);
    for (index, line) in reader.split(b'\n').enumerate() {
        let number = index + 1;
        let line = line.map_err(failed)?;
        let Line { text_id, image_ids } = serde_json::from_slice(&line).map_err(|source| {
            AnnotationError::Line { path: path.to_owned(), line: number, source }
        })?;
        if let Some(first) = seen.insert(text_id.clone(), number) {
            let path = path.to_owned();
            return Err(AnnotationError::Duplicate { path, line: number, id: text_id, first });
        }
        records.push((text_id, image_ids));
    }
    Ok(records)
}

/// Turns text-to-image annotations around: each picture with its texts, in first-seen order.
pub fn transpose(annotations: &[(Id, Vec<Id>)]) -> Vec<(&Id, Vec<&Id>)> {
    let mut rows: HashMap<&Id, usize> = HashMap::new();
    let mut records: Vec<(&Id, Vec<&Id>)> = Vec::new();
    for (text_id, image_ids) in annotations {
        for image_id in image_ids {
            let row = *rows.entry(image_id).or_insert_with(|| {
                records.push((image_id, Vec::new()));
                records.len() - 1
            });
            records[row].1.push(text_id);
        }
    }
    records
}

/// Writes the image-to-text form of `input` beside it and returns its path: a final `.jsonl` becomes
/// `.tr.jsonl`, otherwise `.tr.jsonl` is appended.
///
/// Content as by the reference's `transform_ir_annotation_to_tr.py`, which however drops `.jsonl`
/// anywhere in the path.
///
/// # Errors
/// [`AnnotationError`]; on any, no file is written.
pub fn transform_ir_to_tr(input: &Path) -> Result<PathBuf, AnnotationError> {
    let annotations = read(input)?;
    let records = transpose(&annotations);
    if records.is_empty() {
        return Err(AnnotationError::NoPictures { path: input.to_owned() });
    }
    let output = match input.extension() {
        Some(extension) if extension == "jsonl" => input.with_extension("tr.jsonl"),
        _ => {
            let mut name = input.as_os_str().to_owned();
            name.push(".tr.jsonl");
            name.into()
        }
    };
    write(&output, records)
        .map_err(|source| AnnotationError::Write { path: output.clone(), source })?;
    Ok(output)
}

fn write(path: &Path, records: Vec<(&Id, Vec<&Id>)>) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    for (query, found) in records {
        let direction = Direction::ImageToText;
        python_json::write(&mut file, &IdLists { direction, query, found })?;
        file.write_all(b"\n")?;
    }
    file.finish()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/eval").join(name)
    }

    #[test]
    fn transformed_annotations_are_the_references() {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("valid_texts.jsonl");
        fs::copy(fixture("valid_texts.jsonl"), &input).unwrap();
        let output = transform_ir_to_tr(&input).unwrap();
        assert_eq!(output, folder.path().join("valid_texts.tr.jsonl"));
        let expected = fs::read(fixture("valid_texts.tr.jsonl")).unwrap();
        assert!(fs::read(output).unwrap() == expected);
    }

    #[test]
    fn only_the_last_suffix_changes() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a.jsonl.d");
        fs::create_dir(&inner).unwrap();
        for (name, expected) in [
            ("b.jsonl.jsonl", "b.jsonl.tr.jsonl"),
            ("b.txt", "b.txt.tr.jsonl"),
            ("b", "b.tr.jsonl"),
        ] {
            let input = inner.join(name);
            fs::write(&input, "{\"text_id\": \"a\", \"image_ids\": [1, \"é\", 1]}").unwrap();
            let output = transform_ir_to_tr(&input).unwrap();
            assert_eq!(output, inner.join(expected));
            assert_eq!(
                fs::read_to_string(output).unwrap(),
                "{\"image_id\": 1, \"text_ids\": [\"a\", \"a\"]}\n{\"image_id\": \"\\u00e9\", \"text_ids\": [\"a\"]}\n"
            );
        }
    }

    #[test]
    fn bad_lines_are_named_and_nothing_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("t.jsonl");
        let good = "{\"text_id\": 1, \"image_ids\": [2]}\n";
        for bad in [
            "oops",
            "",
            "{\"text_id\": 2}",
            "{\"image_ids\": [1]}",
            "{\"text_id\": 2, \"image_ids\": 1}",
            "{\"text_id\": 2.5, \"image_ids\": [1]}",
            "{\"text_id\": 1, \"image_ids\": [3]}",
        ] {
            fs::write(&input, format!("{good}{bad}\n")).unwrap();
            let error = transform_ir_to_tr(&input).unwrap_err().to_string();
            assert!(error.contains("t.jsonl:2: "), "{bad}: {error}");
        }
        for empty in ["", "{\"text_id\": 1, \"image_ids\": []}\n"] {
            fs::write(&input, empty).unwrap();
            let error = transform_ir_to_tr(&input).unwrap_err();
            assert!(matches!(error, AnnotationError::NoPictures { .. }), "{error}");
        }
        assert!(!folder.path().join("t.tr.jsonl").exists());
        let missing = transform_ir_to_tr(&folder.path().join("none.jsonl")).unwrap_err();
        assert!(matches!(missing, AnnotationError::Read { .. }));
    }
}
