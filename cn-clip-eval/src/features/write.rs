//! Writing feature files row by row.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::{FeatureError, Features, Modality, RowChecks};
use crate::python_json;
use cn_clip_data::Id;
use cn_clip_data::atomic::AtomicFile;

/// Writes features as they come; the file appears under its name only after
/// [`FeatureWriter::finish`].
///
/// Bytes are those of the reference: Python's printing of the values widened to doubles.
pub struct FeatureWriter {
    path: PathBuf,
    modality: Modality,
    file: AtomicFile,
    checks: RowChecks,
    rows: usize,
}

impl FeatureWriter {
    /// Starts a file of `modality` at `path`, whose folder must exist.
    ///
    /// # Errors
    /// [`FeatureError::Write`] if the folder cannot be written to.
    pub fn create(path: &Path, modality: Modality) -> Result<Self, FeatureError> {
        let file = AtomicFile::create(path)
            .map_err(|source| FeatureError::Write { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), modality, file, checks: RowChecks::default(), rows: 0 })
    }

    /// Appends one feature.
    ///
    /// # Errors
    /// [`FeatureError::Row`] for a value that is not finite, a vector of zeros, another size than
    /// before, or an id for the second time; [`FeatureError::Write`] if the disk is full.
    pub fn write(&mut self, id: &Id, feature: &[f32]) -> Result<(), FeatureError> {
        let row = self.rows;
        self.checks.check(row, id, feature).map_err(|problem| FeatureError::Row {
            row,
            id: id.clone(),
            problem,
        })?;
        let line = Line { key: self.modality.id_key(), id, feature };
        python_json::write(&mut self.file, &line)
            .map_err(Into::into)
            .and_then(|()| self.file.write_all(b"\n"))
            .map_err(|source| FeatureError::Write { path: self.path.clone(), source })?;
        self.rows += 1;
        Ok(())
    }

    /// Puts the file in place and returns its number of rows.
    ///
    /// # Errors
    /// [`FeatureError::Empty`] if nothing was written, [`FeatureError::Write`] if the disk is full.
    pub fn finish(self) -> Result<usize, FeatureError> {
        if self.rows == 0 {
            return Err(FeatureError::Empty { path: self.path });
        }
        self.file.finish().map_err(|source| FeatureError::Write { path: self.path, source })?;
        Ok(self.rows)
    }
}

impl Features {
    /// Writes all rows to a feature file, as [`FeatureWriter`] does.
    ///
    /// # Errors
    /// [`FeatureError::Write`] if the file cannot be written.
    pub fn write(&self, path: &Path, modality: Modality) -> Result<(), FeatureError> {
        let mut writer = FeatureWriter::create(path, modality)?;
        for (row, id) in self.ids().iter().enumerate() {
            writer.write(id, self.row(row))?;
        }
        writer.finish().map(drop)
    }
}

struct Line<'a> {
    key: &'static str,
    id: &'a Id,
    feature: &'a [f32],
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry(self.key, self.id)?;
        map.serialize_entry("feature", self.feature)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::RowProblem;
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
    }

    #[test]
    fn reference_files_come_back_byte_for_byte() {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy.jsonl");
        for (name, modality) in [
            ("extract/valid_imgs.img_feat.jsonl", Modality::Image),
            ("extract/valid_texts.txt_feat.jsonl", Modality::Text),
        ] {
            Features::read(&fixture(name), modality).unwrap().write(&copy, modality).unwrap();
            let (written, original) = (fs::read(&copy).unwrap(), fs::read(fixture(name)).unwrap());
            assert!(written == original, "{name}");
        }
    }

    /// These files hold decimals of six digits, not widened singles: the values survive, not the text.
    #[test]
    fn values_survive_the_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy.jsonl");
        let features =
            Features::read(&fixture("eval/valid_imgs.img_feat.jsonl"), Modality::Image).unwrap();
        features.write(&copy, Modality::Image).unwrap();
        assert_eq!(Features::read(&copy, Modality::Image).unwrap(), features);
    }

    #[test]
    fn small_values_and_text_ids_print_as_in_python() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("feats.jsonl");
        let mut writer = FeatureWriter::create(&path, Modality::Text).unwrap();
        writer.write(&Id::Text("图1".to_owned()), &[1e-5, 0.0, -1.0, 1.0 / 3.0]).unwrap();
        assert!(!path.exists());
        assert_eq!(writer.finish().unwrap(), 1);
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "{\"text_id\": \"\\u56fe1\", \"feature\": [9.999999747378752e-06, 0.0, -1.0, 0.3333333432674408]}\n"
        );
    }

    #[test]
    fn bad_rows_are_refused_and_leave_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("feats.jsonl");
        fs::write(&path, "old").unwrap();
        let mut writer = FeatureWriter::create(&path, Modality::Image).unwrap();
        writer.write(&Id::Int(1), &[1.0, 2.0]).unwrap();
        let mut problem = |id, row: &[f32]| match writer.write(&Id::Int(id), row) {
            Err(FeatureError::Row { problem, .. }) => problem,
            other => panic!("{other:?}"),
        };
        assert_eq!(problem(2, &[1.0, f32::NAN]), RowProblem::NotFinite { position: 1 });
        assert_eq!(problem(2, &[0.0, 0.0]), RowProblem::Zero);
        assert_eq!(problem(2, &[1.0]), RowProblem::Dimension { found: 1, expected: 2 });
        assert_eq!(problem(1, &[1.0, 1.0]), RowProblem::Duplicate { id: Id::Int(1), first: 0 });
        drop(writer);
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn nothing_written_and_missing_folders_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("feats.jsonl");
        let writer = FeatureWriter::create(&path, Modality::Image).unwrap();
        assert!(matches!(writer.finish(), Err(FeatureError::Empty { .. })));
        assert!(!path.exists());
        let missing = FeatureWriter::create(&folder.path().join("none/f"), Modality::Image);
        assert!(matches!(missing, Err(FeatureError::Write { .. })));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn full_disk_is_reported() {
        let mut writer = FeatureWriter::create(Path::new("/dev/full"), Modality::Image).unwrap();
        writer.write(&Id::Int(1), &[1.0]).unwrap();
        assert!(matches!(writer.finish(), Err(FeatureError::Write { .. })));
    }
}
