//! Prediction files: `{"text_id": 1, "image_ids": […]}` or `{"image_id": 1, "text_ids": […]}`.

use std::io::{self, Write};
use std::path::Path;

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::features::Modality;
use crate::knn::Neighbour;
use crate::python_json;
use cn_clip_data::Id;
use cn_clip_data::atomic::AtomicFile;

/// Which side asks and which is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Texts search pictures.
    TextToImage,
    /// Pictures search texts.
    ImageToText,
}

impl Direction {
    /// The side that asks.
    pub fn query(self) -> Modality {
        match self {
            Self::TextToImage => Modality::Text,
            Self::ImageToText => Modality::Image,
        }
    }

    /// The side that is searched.
    pub fn candidate(self) -> Modality {
        match self {
            Self::TextToImage => Modality::Image,
            Self::ImageToText => Modality::Text,
        }
    }
}

/// Writes rankings as they are found, one line per query in their order, as
/// `make_topk_predictions.py` does.
///
/// The file appears under its name only after [`PredictionWriter::finish`].
#[derive(Debug)]
pub struct PredictionWriter<'a> {
    file: AtomicFile,
    direction: Direction,
    queries: std::slice::Iter<'a, Id>,
    candidates: &'a [Id],
}

impl<'a> PredictionWriter<'a> {
    /// Starts a file at `path`, for the ids of all queries and candidates.
    ///
    /// # Errors
    /// When the folder of `path` is missing or not writable.
    pub fn create(
        path: &Path,
        direction: Direction,
        queries: &'a [Id],
        candidates: &'a [Id],
    ) -> io::Result<Self> {
        Ok(Self { file: AtomicFile::create(path)?, direction, queries: queries.iter(), candidates })
    }

    /// Appends the rankings of the queries that come next, as [`crate::knn::top_k`] gives them.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn append(&mut self, ranked: &[Vec<Neighbour>]) -> io::Result<()> {
        for (found, query) in ranked.iter().zip(&mut self.queries) {
            let found = found.iter().map(|hit| &self.candidates[hit.index]).collect();
            let direction = self.direction;
            python_json::write(&mut self.file, &IdLists { direction, query, found })?;
            self.file.write_all(b"\n")?;
        }
        Ok(())
    }

    /// Puts the file in place.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn finish(self) -> io::Result<()> {
        self.file.finish()
    }
}

/// A line that names, for one id of the asking side, ids of the other.
pub(crate) struct IdLists<'a> {
    pub(crate) direction: Direction,
    pub(crate) query: &'a Id,
    pub(crate) found: Vec<&'a Id>,
}

impl Serialize for IdLists<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry(self.direction.query().id_key(), self.query)?;
        map.serialize_entry(self.direction.candidate().ids_key(), &self.found)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use burn::tensor::Device;

    use super::*;
    use crate::features::Features;
    use crate::knn::top_k;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/eval").join(name)
    }

    /// No two different scores of these fixtures are so near that rounding could swap them, so bytes
    /// compare. (Not for `valid_predictions.k5_bs7`, where the reference swaps duplicates.)
    #[test]
    fn files_are_the_references_byte_for_byte() {
        let images = Features::read(&fixture("valid_imgs.img_feat.jsonl"), Modality::Image);
        let texts = Features::read(&fixture("valid_texts.txt_feat.jsonl"), Modality::Text);
        let (images, texts) = (images.unwrap(), texts.unwrap());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("predictions.jsonl");
        let (to_image, to_text) = (Direction::TextToImage, Direction::ImageToText);
        for (name, direction, queries, candidates, k, block) in [
            ("valid_predictions", to_image, &texts, &images, 10, 32_768),
            ("valid_tr_predictions", to_text, &images, &texts, 10, 32_768),
            ("valid_tr_predictions.k5_bs7", to_text, &images, &texts, 5, 7),
        ] {
            let ranked = top_k(queries, candidates, k, block, &Device::default()).unwrap();
            let mut writer =
                PredictionWriter::create(&path, direction, queries.ids(), candidates.ids())
                    .unwrap();
            ranked.chunks(33).for_each(|part| writer.append(part).unwrap());
            writer.finish().unwrap();
            let expected = fs::read(fixture(&format!("{name}.jsonl"))).unwrap();
            assert!(fs::read(&path).unwrap() == expected, "{name}");
        }
    }

    #[test]
    fn missing_folders_are_errors_and_unfinished_files_leave_nothing() {
        let ids = [Id::Int(1)];
        let path = Path::new("/nonexistent/predictions.jsonl");
        assert!(PredictionWriter::create(path, Direction::TextToImage, &ids, &ids).is_err());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("predictions.jsonl");
        let mut writer =
            PredictionWriter::create(&path, Direction::TextToImage, &ids, &ids).unwrap();
        writer.append(&[vec![Neighbour { index: 0, score: 1.0 }]]).unwrap();
        drop(writer);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
