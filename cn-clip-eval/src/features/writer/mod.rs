//! Writing feature files row by row.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use cn_clip_data::{Id, atomic::write_atomically};
use rustc_hash::FxHashSet;

use super::{
    FeatureError, FeatureFormat, Features, Modality, RowProblem,
    checks::check_values,
    ids, npy, parquet,
    part::{self, Part, write_lines},
    safetensors,
};

/// What a file's rows were made from and how, by name: a file is only continued with the same.
pub type Settings = BTreeMap<String, String>;

/// Writes features as they come; the file appears under its name only after
/// [`FeatureWriter::finish`].
///
/// Until then the rows are in `<file>.part`. They are removed when the writer is dropped, unless
/// [`FeatureWriter::keep`] was called. JSON lines have the bytes of the reference: Python's printing
/// of the values widened to doubles. Memory does not grow with the rows but for 16 bytes each, to
/// find ids that come twice.
pub struct FeatureWriter {
    target: PathBuf,
    format: FeatureFormat,
    modality: Modality,
    dim: usize,
    rows: usize,
    body: Body,
    /// Hashes of the ids.
    seen: FxHashSet<u64>,
    /// Whether a part that holds rows stays when the writer is dropped.
    keep: bool,
}

enum Body {
    Part(Part),
    /// A pipe or a device, which cannot be replaced or continued.
    Direct(BufWriter<File>),
    Finished,
}

impl FeatureWriter {
    /// Starts a file of features of `dim` values at `path`, whose folder must exist. The form is
    /// that of its name, JSON lines if it tells none.
    ///
    /// # Errors
    /// [`FeatureError::Write`] if the folder cannot be written to.
    pub fn create(path: &Path, modality: Modality, dim: usize) -> Result<Self, FeatureError> {
        let format = FeatureFormat::of_name(path).unwrap_or_default();
        Self::create_as(path, format, modality, dim)
    }

    /// Starts a file of a given form.
    ///
    /// # Errors
    /// As [`FeatureWriter::create`].
    pub fn create_as(
        path: &Path,
        format: FeatureFormat,
        modality: Modality,
        dim: usize,
    ) -> Result<Self, FeatureError> {
        let target = match fs::metadata(path) {
            Ok(found) if found.is_dir() => {
                let error = io::ErrorKind::IsADirectory.into();
                return Err(FeatureError::write(path)(error));
            }
            Ok(found) if !found.is_file() => return Self::direct(path, format, modality, dim),
            Ok(_) => fs::canonicalize(path).map_err(FeatureError::write(path))?,
            Err(_) => path.to_owned(),
        };
        Self::open(target, format, modality, dim, false)
    }

    /// Continues a file after the last whole row of its part, or starts it where there is none.
    ///
    /// # Errors
    /// [`FeatureError::File`] if its rows were made with other settings, else as
    /// [`FeatureWriter::create`].
    pub fn resume(
        path: &Path,
        format: FeatureFormat,
        modality: Modality,
        dim: usize,
        settings: &Settings,
    ) -> Result<Self, FeatureError> {
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let described = Part::path(&target, ".json");
        let there = match fs::read(&described) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(FeatureError::read(&described)(error)),
        };
        let Some(bytes) = there else {
            return Self::create_as(path, format, modality, dim)?.keep(settings);
        };
        let before: Settings = serde_json::from_slice(&bytes)
            .map_err(|error| FeatureError::file(&described, format!("is damaged: {error}")))?;
        let now = described_settings(settings, format, modality, dim);
        let keys = before.keys().chain(now.keys());
        if let Some(key) = keys.into_iter().find(|key| before.get(*key) != now.get(*key)) {
            let value = |map: &Settings| map.get(key).cloned().unwrap_or_default();
            let reason = format!(
                "was begun with {key} `{}`, and this run has `{}`: start it anew without \
                 --resume-extraction",
                value(&before),
                value(&now)
            );
            return Err(FeatureError::file(&Part::path(&target, ""), reason));
        }
        Self::open(target, format, modality, dim, true)
    }

    fn open(
        target: PathBuf,
        format: FeatureFormat,
        modality: Modality,
        dim: usize,
        resume: bool,
    ) -> Result<Self, FeatureError> {
        let mut seen = FxHashSet::default();
        let part = Part::open(&target, format, modality, dim, resume, |id| {
            seen.insert(fingerprint(id));
        })
        .map_err(FeatureError::write(&target))?;
        let (rows, body) = (part.rows(), Body::Part(part));
        Ok(Self { target, format, modality, dim, rows, body, seen, keep: resume })
    }

    fn direct(
        path: &Path,
        format: FeatureFormat,
        modality: Modality,
        dim: usize,
    ) -> Result<Self, FeatureError> {
        if format != FeatureFormat::Jsonl {
            let reason = format!("is no regular file: {format} cannot be written to it");
            return Err(FeatureError::file(path, reason));
        }
        let file = File::options().write(true).open(path).map_err(FeatureError::write(path))?;
        let body = Body::Direct(BufWriter::new(file));
        let (target, seen) = (path.to_owned(), FxHashSet::default());
        Ok(Self { target, format, modality, dim, rows: 0, body, seen, keep: false })
    }

    /// Keeps the rows where the process or this writer ends before [`FeatureWriter::finish`], to be
    /// continued by [`FeatureWriter::resume`] with the same `settings`.
    ///
    /// # Errors
    /// [`FeatureError::Write`] if the settings cannot be written.
    pub fn keep(mut self, settings: &Settings) -> Result<Self, FeatureError> {
        if let Body::Part(_) = self.body {
            let settings = described_settings(settings, self.format, self.modality, self.dim);
            let path = Part::path(&self.target, ".json");
            serde_json::to_vec(&settings)
                .map_err(io::Error::from)
                .and_then(|bytes| write_atomically(&path, &bytes))
                .map_err(FeatureError::write(&self.target))?;
            self.keep = true;
        }
        Ok(self)
    }

    /// Rows so far, those of the part that is continued included.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Whether the rows stay for [`FeatureWriter::resume`] when the writer is dropped now.
    pub fn is_kept(&self) -> bool {
        self.keep && self.rows > 0
    }

    /// Where the file will be, links resolved.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The ids of the rows of the part that is continued, one after the other.
    ///
    /// # Errors
    /// [`FeatureError::Read`] if the part cannot be read.
    pub fn stored_ids(
        &mut self,
    ) -> Result<impl Iterator<Item = Result<Id, FeatureError>> + use<>, FeatureError> {
        let path = Part::path(&self.target, "");
        let ids = match &mut self.body {
            Body::Part(part) => Some(part.stored_ids().map_err(FeatureError::read(&path))?),
            Body::Direct(_) | Body::Finished => None,
        };
        let ids = ids.into_iter().flatten().take(self.rows);
        Ok(ids.map(move |id| id.map_err(FeatureError::read(&path))))
    }

    /// Appends one feature.
    ///
    /// # Errors
    /// [`FeatureError::Row`] for a value that is not finite, a vector of zeros, another size than
    /// `dim`, or an id for the second time; [`FeatureError::Write`] if the disk is full.
    pub fn write(&mut self, id: &Id, feature: &[f32]) -> Result<(), FeatureError> {
        if feature.len() != self.dim {
            let problem = RowProblem::Dimension { found: feature.len(), expected: self.dim };
            return Err(FeatureError::Row { row: self.rows, id: id.clone(), problem });
        }
        self.write_all(std::slice::from_ref(id), feature)
    }

    /// Appends features, `[ids.len(), dim]` row by row: all or none.
    ///
    /// # Errors
    /// As [`FeatureWriter::write`].
    pub fn write_all(&mut self, ids: &[Id], features: &[f32]) -> Result<(), FeatureError> {
        for (index, (id, feature)) in ids.iter().zip(features.chunks(self.dim)).enumerate() {
            let row = self.rows + index;
            check_values(feature, self.dim).map_err(|problem| FeatureError::Row {
                row,
                id: id.clone(),
                problem,
            })?;
            if !matches!(self.body, Body::Direct(_)) && !self.seen.insert(fingerprint(id)) {
                self.refuse_again(id, &ids[..index], row)?;
            }
        }
        let written = match &mut self.body {
            Body::Part(part) => part.append(ids, features),
            Body::Direct(file) => write_lines(file, self.modality, ids, features),
            Body::Finished => Ok(()),
        };
        written.map_err(FeatureError::write(&self.target))?;
        self.rows += ids.len();
        Ok(())
    }

    /// Looks whether an id whose hash has been seen really is there already.
    fn refuse_again(&mut self, id: &Id, batch: &[Id], row: usize) -> Result<(), FeatureError> {
        let stored = self.stored_ids()?.chain(batch.iter().cloned().map(Ok));
        for (first, other) in stored.enumerate() {
            if other? == *id {
                let problem = RowProblem::Duplicate { id: id.clone(), first };
                return Err(FeatureError::Row { row, id: id.clone(), problem });
            }
        }
        Ok(())
    }

    /// Puts the file in place and returns its number of rows.
    ///
    /// # Errors
    /// [`FeatureError::Empty`] if nothing was written, [`FeatureError::Write`] if the disk is full.
    pub fn finish(mut self) -> Result<usize, FeatureError> {
        if self.rows == 0 {
            return Err(FeatureError::Empty { path: self.target.clone() });
        }
        self.complete().map_err(FeatureError::write(&self.target))?;
        if let Body::Part(_) = self.body {
            part::remove(&self.target);
        }
        self.body = Body::Finished;
        Ok(self.rows)
    }

    fn complete(&mut self) -> io::Result<()> {
        let part = match &mut self.body {
            Body::Part(part) => part,
            Body::Direct(file) => return file.flush(),
            Body::Finished => return Ok(()),
        };
        match self.format {
            FeatureFormat::Jsonl => part.rename(None),
            FeatureFormat::Npy => {
                npy::complete(part)?;
                part.rename(Some(&ids::beside(&self.target)))
            }
            FeatureFormat::Safetensors => {
                safetensors::complete(part, self.modality)?;
                part.rename(None)
            }
            FeatureFormat::Parquet => parquet::write(part, &self.target, self.modality),
        }
    }
}

impl Drop for FeatureWriter {
    fn drop(&mut self) {
        if let Body::Part(_) = self.body
            && !self.is_kept()
        {
            part::remove(&self.target);
        }
    }
}

fn described_settings(
    settings: &Settings,
    format: FeatureFormat,
    modality: Modality,
    dim: usize,
) -> Settings {
    let more = [
        ("form", format.to_string()),
        ("features of", format!("{modality}s")),
        ("values per feature", dim.to_string()),
    ];
    let more = more.map(|(name, value)| (name.to_owned(), value));
    settings.clone().into_iter().chain(more).collect()
}

fn fingerprint(id: &Id) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}

impl Features {
    /// Writes all rows to a feature file, in the form of its name (see [`FeatureWriter::create`]).
    ///
    /// # Errors
    /// [`FeatureError::Write`] if the file cannot be written.
    pub fn write(&self, path: &Path, modality: Modality) -> Result<(), FeatureError> {
        let mut writer = FeatureWriter::create(path, modality, self.dim())?;
        writer.write_all(self.ids(), self.data())?;
        writer.finish().map(drop)
    }
}
