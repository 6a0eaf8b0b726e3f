//! The feature file of an extraction, and what was left out of it.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

use cn_clip_data::{DataError, Id, atomic::write_atomically};

use super::{
    Encoded,
    input::{Entries, Entry},
};
use crate::features::{FeatureError, FeatureFormat, FeatureWriter, Modality, Settings};

/// A feature file that is being written from an input, and beside it `<file>.skipped.txt` with the
/// pictures that were left out: the id as JSON, a tab, and why.
pub struct Output {
    writer: FeatureWriter,
    skipped: SkipList,
    /// Rows at the beginning of the next batch that are in the file.
    stored: usize,
    /// Pictures at the beginning of the next batch that are in the list.
    listed: usize,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Rows of the file.
    pub rows: usize,
    /// Pictures left out.
    pub skipped: usize,
    /// The list of them, if there are any.
    pub list: Option<PathBuf>,
}

impl Output {
    /// Starts a file of features of `dim` values, or continues it where `resume` says so and an
    /// earlier run with the same `settings` did not finish it.
    ///
    /// # Errors
    /// [`FeatureError`] if it cannot be written, or was begun with other settings.
    pub fn open(
        path: &Path,
        format: FeatureFormat,
        modality: Modality,
        dim: usize,
        settings: &Settings,
        resume: bool,
    ) -> Result<Self, FeatureError> {
        let writer = match resume {
            true => FeatureWriter::resume(path, format, modality, dim, settings)?,
            false => FeatureWriter::create_as(path, format, modality, dim)?.keep(settings)?,
        };
        let skipped = SkipList::new(&writer, resume)?;
        Ok(Self { writer, skipped, stored: 0, listed: 0 })
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.writer.rows()
    }

    /// Whether a later run can continue after these rows if this one ends now.
    pub fn is_kept(&self) -> bool {
        self.writer.is_kept()
    }

    /// Pictures left out so far.
    pub fn skipped(&self) -> usize {
        self.skipped.count
    }

    /// Passes over the entries whose features are in the file and returns the others, after those of
    /// the batch in which the file ends: batches are cut as in a run that was not interrupted, so
    /// that their features are the same to the bit. `passed` is called with the cost of each entry
    /// that is passed over.
    ///
    /// # Errors
    /// [`OutputError::Changed`] if the input has other entries than the file.
    pub fn remaining<T: Send + 'static>(
        &mut self,
        mut entries: Entries<T>,
        batch_size: usize,
        mut passed: impl FnMut(u64),
    ) -> Result<Entries<T>, OutputError> {
        let mut stored = self.writer.stored_ids()?;
        let mut batch: Vec<Entry<T>> = Vec::new();
        let mut cost = 0;
        let mut next = stored.next().transpose()?;
        while let Some(id) = &next {
            let changed = |found: Option<&Id>| OutputError::Changed {
                path: self.writer.target().to_owned(),
                expected: id.clone(),
                found: found.map_or_else(|| "the end".to_owned(), ToString::to_string),
            };
            let entry = entries.next().ok_or_else(|| changed(None))??;
            if entry.id == *id {
                next = stored.next().transpose()?;
                self.stored += 1;
            } else if self.skipped.keep(&entry.id) {
                self.listed += 1;
            } else {
                return Err(changed(Some(&entry.id)));
            }
            cost += entry.cost;
            batch.push(entry);
            if batch.len() == batch_size {
                batch.clear();
                (self.stored, self.listed) = (0, 0);
                passed(std::mem::take(&mut cost));
            }
        }
        self.skipped.drop_others().map_err(OutputError::from)?;
        Ok(Box::new(batch.into_iter().map(Ok).chain(entries)))
    }

    /// Writes a batch.
    ///
    /// # Errors
    /// [`FeatureError`] for features that cannot be used, or if the disk is full.
    pub fn write(&mut self, batch: &Encoded) -> Result<(), FeatureError> {
        let stored = std::mem::take(&mut self.stored);
        let listed = std::mem::take(&mut self.listed);
        let width = batch.features.len() / batch.ids.len().max(1);
        // First, so that no row is in the file whose predecessors are not accounted for.
        self.skipped.add(batch.skipped.get(listed..).unwrap_or_default())?;
        let ids = batch.ids.get(stored..).unwrap_or_default();
        self.writer.write_all(ids, batch.features.get(stored * width..).unwrap_or_default())
    }

    /// Puts the file and the list in place.
    ///
    /// # Errors
    /// As [`FeatureWriter::finish`].
    pub fn finish(self) -> Result<Summary, FeatureError> {
        let Self { writer, skipped, .. } = self;
        let count = skipped.count;
        let list = skipped.finish()?;
        let rows = writer.finish()?;
        Ok(Summary { rows, skipped: count, list })
    }
}

/// Why a file cannot be continued.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The input.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The file.
    #[error(transparent)]
    Feature(#[from] FeatureError),
    /// The input is not what the file was begun with.
    #[error(
        "{path}: the features so far have {expected} where the input has {found}: it has changed, \
         start anew without --resume-extraction"
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// The id in the file.
        expected: Id,
        /// What is in its place.
        found: String,
    },
}

/// The list of pictures that were left out.
struct SkipList {
    /// Its name at last.
    target: PathBuf,
    part: PathBuf,
    file: Option<File>,
    count: usize,
    /// Lines of an earlier run that have not been met yet.
    earlier: HashMap<Id, String>,
    /// Those that have.
    kept: Vec<String>,
}

impl SkipList {
    fn new(writer: &FeatureWriter, resume: bool) -> Result<Self, FeatureError> {
        let with = |suffix: &str| {
            let mut name = writer.target().as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        let (target, part) = (with(".skipped.txt"), with(".part.skipped"));
        let mut earlier = HashMap::new();
        match File::open(&part) {
            Ok(file) if resume => {
                for line in BufReader::new(file).split(b'\n') {
                    let line = line.map_err(FeatureError::read(&part))?;
                    let line = String::from_utf8_lossy(&line).into_owned();
                    // A line cut off in its id counts as none.
                    let id = line.split_once('\t').map(|(id, _)| serde_json::from_str(id));
                    if let Some(Ok(id)) = id {
                        earlier.insert(id, line);
                    }
                }
            }
            Ok(_) => remove(&part).map_err(FeatureError::write(&part))?,
            Err(_) => {}
        }
        Ok(Self { target, part, file: None, count: 0, earlier, kept: Vec::new() })
    }

    /// Whether an earlier run has left a picture out; then it stays in the list.
    fn keep(&mut self, id: &Id) -> bool {
        let Some(line) = self.earlier.remove(id) else { return false };
        self.kept.push(line);
        self.count += 1;
        true
    }

    fn drop_others(&mut self) -> Result<(), FeatureError> {
        self.earlier.clear();
        let lines: String = self.kept.drain(..).map(|line| line + "\n").collect();
        let changed = match lines.is_empty() {
            false => write_atomically(&self.part, lines.as_bytes()),
            true => remove(&self.part),
        };
        changed.map_err(FeatureError::write(&self.part))
    }

    fn add(&mut self, skipped: &[(Id, String)]) -> Result<(), FeatureError> {
        if skipped.is_empty() {
            return Ok(());
        }
        let failed = FeatureError::write(&self.part);
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let file = File::options().create(true).append(true).open(&self.part);
                self.file.insert(file.map_err(failed)?)
            }
        };
        let mut text = String::new();
        for (id, reason) in skipped {
            let id = serde_json::to_string(id).map_err(io::Error::from).map_err(failed)?;
            text.push_str(&format!("{id}\t{}\n", reason.replace(['\n', '\r'], " ")));
        }
        self.count += skipped.len();
        file.write_all(text.as_bytes()).map_err(failed)
    }

    /// Gives the list its name; an older one goes where nothing was left out.
    fn finish(self) -> Result<Option<PathBuf>, FeatureError> {
        if self.count == 0 {
            remove(&self.target).map_err(FeatureError::write(&self.target))?;
            return Ok(None);
        }
        fs::rename(&self.part, &self.target).map_err(FeatureError::write(&self.target))?;
        Ok(Some(self.target))
    }
}

/// Removes a file that may be there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
