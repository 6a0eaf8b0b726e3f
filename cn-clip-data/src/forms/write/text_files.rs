//! `<split>_imgs.tsv` and `<split>_texts.jsonl`.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Serialize;

use super::{Pictures, refuse};
use crate::{atomic::AtomicFile, error::DataError, forms::Sample, record::Id};

/// A line of `<split>_texts.jsonl`.
#[derive(Serialize)]
struct Text {
    text_id: Id,
    text: String,
    image_ids: Vec<Id>,
}

pub(super) struct TextFilesWriter {
    tsv: (PathBuf, AtomicFile),
    jsonl: (PathBuf, AtomicFile),
    pictures: Pictures,
    /// The text at hand: pairs of one text that follow each other become one line.
    text: Option<Text>,
}

impl TextFilesWriter {
    pub fn new(directory: &Path, split: &str) -> Result<Self, DataError> {
        let create = |suffix: &str| {
            let path = directory.join(format!("{split}{suffix}"));
            refuse(&path)?;
            let file = AtomicFile::create(&path).map_err(DataError::io(&path))?;
            Ok::<_, DataError>((path, file))
        };
        let (tsv, jsonl) = (create("_imgs.tsv")?, create("_texts.jsonl")?);
        Ok(Self { tsv, jsonl, pictures: Pictures::default(), text: None })
    }

    pub fn add(&mut self, sample: Sample) -> Result<(), DataError> {
        let Sample { pair, image } = sample;
        let id = pair.image_id.to_string();
        if id.is_empty() || id.trim() != id || id.contains(['\t', '\n', '\r']) {
            let reason = "cannot be written to a tsv file: it is empty or holds white space";
            return Err(DataError::Image { id: pair.image_id, reason: reason.to_string() });
        }
        if image.is_empty() {
            return Err(DataError::Image { id: pair.image_id, reason: "is empty".to_string() });
        }
        let (id, fresh) = self.pictures.id(&pair.image_id, &image);
        if fresh {
            let (path, file) = &mut self.tsv;
            writeln!(file, "{id}\t{}", STANDARD.encode(&image)).map_err(DataError::io(&*path))?;
        }
        match &mut self.text {
            Some(text) if text.text_id == pair.text_id && text.text == pair.text => {
                text.image_ids.push(id);
            }
            _ => {
                self.flush()?;
                let (text_id, text) = (pair.text_id, pair.text);
                self.text = Some(Text { text_id, text, image_ids: vec![id] });
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), DataError> {
        let Some(text) = self.text.take() else { return Ok(()) };
        let (path, file) = &mut self.jsonl;
        serde_json::to_writer(&mut *file, &text)
            .map_err(std::io::Error::from)
            .and_then(|()| file.write_all(b"\n"))
            .map_err(DataError::io(&*path))
    }

    pub fn finish(mut self) -> Result<Vec<PathBuf>, DataError> {
        self.flush()?;
        let mut paths = Vec::new();
        for (path, file) in [self.tsv, self.jsonl] {
            file.finish().map_err(DataError::io(&path))?;
            paths.push(path);
        }
        Ok(paths)
    }
}
