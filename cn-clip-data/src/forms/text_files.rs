//! `<split>_imgs.tsv` and `<split>_texts.jsonl`, read without an LMDB build.

use std::{
    fs::File,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
};

use super::rows::Rows;
use crate::{
    error::DataError,
    format::{Lines, image_line, text_line},
    image::decode_base64,
    pread::read_at,
    record::{Id, Pair},
    source::PairSource,
};

/// The text files of a split, indexed at opening. Pictures are decoded from base64 when they are
/// asked for.
pub struct TextFiles {
    texts: Rows,
    images: TsvImages,
}

impl TextFiles {
    /// Opens the files of a split.
    pub fn open(tsv: &Path, jsonl: &Path) -> Result<Self, DataError> {
        let images = TsvImages::open(tsv)?;
        let mut lines = Lines::open(jsonl)?;
        let mut texts = Rows::new(jsonl)?;
        let mut line = String::new();
        let mut start = 0;
        while lines.next_into(&mut line)? {
            let record = text_line(&line).map_err(|reason| lines.error(reason))?;
            for id in &record.image_ids {
                if images.candidates(&id.to_string()).next().is_none() {
                    return Err(lines.error(format!(
                        "image {id} of text {} has no picture in {}",
                        record.text_id,
                        tsv.display()
                    )));
                }
            }
            texts.push(start, lines.bytes(), lines.number(), record.image_ids.len())?;
            start = lines.bytes();
        }
        if texts.len() == 0 {
            let reason = "holds no pairs of a text and a picture".to_string();
            return Err(DataError::Empty { path: jsonl.into(), reason });
        }
        Ok(Self { texts, images })
    }
}

impl PairSource for TextFiles {
    fn len(&self) -> usize {
        self.texts.len()
    }

    fn num_images(&self) -> usize {
        self.images.entries.len()
    }

    fn pair(&self, index: usize) -> Result<Pair, DataError> {
        let row = self.texts.read(index)?;
        let changed = || self.texts.error(index, "has changed since the file was opened");
        let text = std::str::from_utf8(&row.bytes).map_err(|_| changed())?;
        let record = text_line(text.trim_start_matches('\u{feff}')).map_err(|_| changed())?;
        let image_id = record.image_ids.into_iter().nth(row.which).ok_or_else(changed)?;
        Ok(Pair { image_id, text_id: record.text_id, text: record.text })
    }

    fn image(&self, _index: usize, pair: &Pair) -> Result<Vec<u8>, DataError> {
        self.images.image(&pair.image_id)
    }
}

/// Where the line of a picture lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    /// Hash of the id.
    hash: u64,
    offset: u64,
    length: u32,
    line: u32,
}

/// The pictures of `<split>_imgs.tsv`, indexed at opening: 24 bytes of memory for each.
pub struct TsvImages {
    path: PathBuf,
    file: File,
    /// Ordered by the hash of the id.
    entries: Vec<Entry>,
}

impl TsvImages {
    /// Opens a file.
    ///
    /// # Errors
    /// [`DataError::Line`] for a line of another form or an id that appears twice,
    /// [`DataError::Empty`] without pictures, [`DataError::Io`] if it cannot be read.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(DataError::io(path))?;
        let mut lines = Lines::open(path)?;
        let mut entries = Vec::new();
        let (mut line, mut offset) = (String::new(), 0);
        while lines.next_into(&mut line)? {
            let (id, _) = image_line(&line).map_err(|reason| lines.error(reason))?;
            let length = u32::try_from(lines.bytes() - offset)
                .map_err(|_| lines.error("is longer than 4 GiB"))?;
            let number = u32::try_from(lines.number()).unwrap_or(u32::MAX);
            entries.push(Entry { hash: hash(id), offset, length, line: number });
            offset = lines.bytes();
        }
        if entries.is_empty() {
            return Err(DataError::Empty { path: path.into(), reason: "holds no pictures".into() });
        }
        entries.sort_unstable();
        let images = Self { path: path.to_path_buf(), file, entries };
        images.check_distinct()?;
        Ok(images)
    }

    fn check_distinct(&self) -> Result<(), DataError> {
        for group in self.entries.chunk_by(|a, b| a.hash == b.hash).filter(|group| group.len() > 1)
        {
            let mut seen: Vec<(String, u32)> = Vec::new();
            for entry in group {
                let line = self.line(entry)?;
                let id = self.split(entry, &line)?.0.to_string();
                if let Some((_, first)) = seen.iter().find(|(other, _)| *other == id) {
                    let reason = format!("image id {id} is already in line {first}: keep one");
                    return Err(DataError::line(&self.path, entry.line.into(), reason));
                }
                seen.push((id, entry.line));
            }
        }
        Ok(())
    }

    /// The entries with the hash of an id: nearly always those of the id.
    fn candidates(&self, id: &str) -> impl Iterator<Item = &Entry> {
        let hash = hash(id);
        let first = self.entries.partition_point(|entry| entry.hash < hash);
        let rest = self.entries.get(first..).unwrap_or_default();
        rest.iter().take_while(move |entry| entry.hash == hash)
    }

    /// The bytes of a picture file.
    ///
    /// # Errors
    /// [`DataError::MissingImage`] if there is no such id, [`DataError::Image`] if it is no base64.
    pub fn image(&self, id: &Id) -> Result<Vec<u8>, DataError> {
        let name = id.to_string();
        for entry in self.candidates(&name) {
            let line = self.line(entry)?;
            let (found, image) = self.split(entry, &line)?;
            if found == name {
                return decode_base64(image.as_bytes()).map_err(|error| DataError::Image {
                    id: id.clone(),
                    reason: format!("{}:{}: {error}", self.path.display(), entry.line),
                });
            }
        }
        Err(DataError::MissingImage { id: id.clone(), path: self.path.clone() })
    }

    fn line(&self, entry: &Entry) -> Result<Vec<u8>, DataError> {
        let mut bytes = vec![0; entry.length as usize];
        read_at(&self.file, &mut bytes, entry.offset).map_err(DataError::io(&self.path))?;
        Ok(bytes)
    }

    fn split<'a>(&self, entry: &Entry, line: &'a [u8]) -> Result<(&'a str, &'a str), DataError> {
        let wrong = |reason: String| DataError::line(&self.path, entry.line.into(), reason);
        let line = std::str::from_utf8(line).map_err(|_| wrong("is not UTF-8".to_string()))?;
        image_line(line.trim_start_matches('\u{feff}')).map_err(wrong)
    }
}

fn hash(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}
