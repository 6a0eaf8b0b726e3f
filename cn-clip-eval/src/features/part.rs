//! Feature files while they are written.
//!
//! A file `X` is written as `X.part`, one row after the other, so that it can be continued after
//! whatever has ended the process: JSON lines as they will be; for the other forms the values after
//! room for a header, and the ids, one JSON value per line, in `X.part.ids`.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, BufWriter, Seek, Write},
    path::{Path, PathBuf},
};

use cn_clip_data::Id;
use rayon::prelude::*;

use super::{FeatureFormat, Modality, npy, safetensors};
use crate::python_json;

/// The part of a file, open for appending.
pub(super) struct Part {
    target: PathBuf,
    modality: Modality,
    dim: usize,
    rows: usize,
    only_integers: bool,
    /// Values, or lines.
    body: BufWriter<File>,
    /// Ids, where the body has none.
    ids: Option<BufWriter<File>>,
}

impl Part {
    /// Where the part of `target` is.
    pub fn path(target: &Path, suffix: &str) -> PathBuf {
        let mut name = target.as_os_str().to_owned();
        name.push(".part");
        name.push(suffix);
        PathBuf::from(name)
    }

    /// Opens the part of `target`, keeping what whole rows it holds if `resume` says so.
    ///
    /// `seen` is called with the id of each row that is kept.
    pub fn open(
        target: &Path,
        format: FeatureFormat,
        modality: Modality,
        dim: usize,
        resume: bool,
        seen: impl FnMut(&Id),
    ) -> io::Result<Self> {
        let body = open_locked(&Self::path(target, ""))?;
        let ids = match format {
            FeatureFormat::Jsonl => None,
            _ => Some(BufWriter::new(open(&Self::path(target, ".ids"))?)),
        };
        let body = BufWriter::with_capacity(1 << 18, body);
        let target = target.to_owned();
        let mut part = Self { target, modality, dim, rows: 0, only_integers: true, body, ids };
        let header = header(format);
        let (rows, end, ids_end) = match resume {
            true => part.whole_rows(header, seen)?,
            false => (0, header, 0),
        };
        part.rows = rows;
        part.body.get_ref().set_len(end)?;
        part.body.seek(io::SeekFrom::Start(end))?;
        if let Some(ids) = &mut part.ids {
            ids.get_ref().set_len(ids_end)?;
            ids.seek(io::SeekFrom::Start(ids_end))?;
        }
        Ok(part)
    }

    /// Number of whole rows, and where they end in the body and the list of ids.
    fn whole_rows(
        &mut self,
        header: u64,
        mut seen: impl FnMut(&Id),
    ) -> io::Result<(usize, u64, u64)> {
        let width = (self.dim * 4) as u64;
        let length = self.body.get_ref().metadata()?.len();
        let possible = match self.ids {
            Some(_) => length.saturating_sub(header) / width,
            None => u64::MAX,
        };
        let mut stored = self.stored_ids()?;
        let (mut rows, mut lines) = (0, 0);
        while rows < possible
            && let Some((line, id)) = stored.next_line()?
        {
            rows += 1;
            lines += line.len() as u64;
            self.only_integers &= matches!(id, Id::Int(_));
            seen(&id);
        }
        Ok(match self.ids {
            Some(_) => (rows as usize, header + rows * width, lines),
            None => (rows as usize, lines, 0),
        })
    }

    /// Values per row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Whether every id is a number.
    pub fn only_integers(&self) -> bool {
        self.only_integers
    }

    /// The values of the rows, after a flush.
    pub fn values(&mut self) -> io::Result<&File> {
        self.body.flush()?;
        Ok(self.body.get_ref())
    }

    /// The ids of the rows, read from the disk one after the other.
    pub fn stored_ids(&mut self) -> io::Result<StoredIds> {
        self.flush()?;
        let (suffix, key) = match self.ids {
            Some(_) => (".ids", None),
            None => ("", Some(self.modality.id_key())),
        };
        let file = File::open(Self::path(&self.target, suffix))?;
        Ok(StoredIds { reader: BufReader::with_capacity(1 << 18, file), line: Vec::new(), key })
    }

    /// Appends rows that have been checked.
    pub fn append(&mut self, ids: &[Id], values: &[f32]) -> io::Result<()> {
        match &mut self.ids {
            None => write_lines(&mut self.body, self.modality, ids, values)?,
            Some(list) => {
                match cfg!(target_endian = "little") {
                    true => self.body.write_all(bytemuck::cast_slice(values))?,
                    false => values
                        .iter()
                        .try_for_each(|value| self.body.write_all(&value.to_le_bytes()))?,
                }
                for id in ids {
                    python_json::write(&mut *list, id)?;
                    list.write_all(b"\n")?;
                }
            }
        }
        self.only_integers &= ids.iter().all(|id| matches!(id, Id::Int(_)));
        self.rows += ids.len();
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.body.flush()?;
        self.ids.as_mut().map_or(Ok(()), Write::flush)
    }

    /// Puts the body under the name of the target and the ids, if there are any, under `ids`; without
    /// a name for them they are removed.
    pub fn rename(&mut self, ids: Option<&Path>) -> io::Result<()> {
        self.flush()?;
        self.body.get_ref().sync_all()?;
        let list = Self::path(&self.target, ".ids");
        if let (Some(file), Some(ids)) = (&self.ids, ids) {
            file.get_ref().sync_all()?;
            fs::rename(&list, ids)?;
        }
        fs::rename(Self::path(&self.target, ""), &self.target)?;
        if self.ids.is_some() && ids.is_none() {
            fs::remove_file(list)?;
        }
        Ok(())
    }
}

/// Removes every file of the part of `target`.
pub(super) fn remove(target: &Path) {
    for suffix in ["", ".ids", ".json", ".skipped"] {
        // It is not there, or the next run writes over it.
        let _ = fs::remove_file(Part::path(target, suffix));
    }
}

/// Bytes before the values.
fn header(format: FeatureFormat) -> u64 {
    match format {
        FeatureFormat::Npy => npy::HEADER as u64,
        FeatureFormat::Safetensors => safetensors::HEADER as u64,
        FeatureFormat::Jsonl | FeatureFormat::Parquet => 0,
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

/// Opens a file that no other process may write while it is open.
fn open_locked(path: &Path) -> io::Result<File> {
    let file = open(path)?;
    match file.try_lock() {
        Err(fs::TryLockError::WouldBlock) => Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!("{} is being written by another process", path.display()),
        )),
        // Not every file system has locks.
        Err(fs::TryLockError::Error(_)) | Ok(()) => Ok(file),
    }
}

/// Writes rows as JSON lines, made by all cores.
pub(super) fn write_lines(
    file: &mut impl Write,
    modality: Modality,
    ids: &[Id],
    values: &[f32],
) -> io::Result<()> {
    let dim = values.len() / ids.len().max(1);
    let line = |(id, row): (&Id, &[f32])| -> io::Result<Vec<u8>> {
        let mut line = format!("{{\"{}\": ", modality.id_key()).into_bytes();
        python_json::write(&mut line, id)?;
        line.extend_from_slice(FEATURE_KEY);
        python_json::write(&mut line, row)?;
        line.extend_from_slice(b"}\n");
        Ok(line)
    };
    let lines = ids.par_iter().zip(values.par_chunks(dim.max(1))).map(line);
    let lines: Vec<Vec<u8>> = lines.collect::<io::Result<_>>()?;
    lines.iter().try_for_each(|line| file.write_all(line))
}

const FEATURE_KEY: &[u8] = b", \"feature\": ";

/// The ids of a part, up to the first line that is not whole.
pub(super) struct StoredIds {
    reader: BufReader<File>,
    line: Vec<u8>,
    /// The key of the id in JSON lines.
    key: Option<&'static str>,
}

impl StoredIds {
    /// The next line, its end included, and the id in it.
    pub fn next_line(&mut self) -> io::Result<Option<(&[u8], Id)>> {
        self.line.clear();
        self.reader.read_until(b'\n', &mut self.line)?;
        Ok(self.id().map(|id| (self.line.as_slice(), id)))
    }

    fn id(&self) -> Option<Id> {
        let line = self.line.strip_suffix(b"\n")?;
        let id = match self.key {
            None => line,
            Some(key) => {
                let rest = line.strip_prefix(b"{\"")?.strip_prefix(key.as_bytes())?;
                let rest = rest.strip_prefix(b"\": ")?.strip_suffix(b"]}")?;
                let feature = memchr::memmem::find(rest, FEATURE_KEY)?;
                &rest[..feature]
            }
        };
        serde_json::from_slice(id).ok()
    }
}

impl Iterator for StoredIds {
    type Item = io::Result<Id>;

    fn next(&mut self) -> Option<io::Result<Id>> {
        self.next_line().map(|line| line.map(|(_, id)| id)).transpose()
    }
}
