//! Building of LMDB data sets from tsv and jsonl files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use heed::{
    CompactionOption, Database, Env, EnvFlags, EnvOpenOptions, MdbError, PutFlags, types::Bytes,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{NUM_IMAGES, NUM_SAMPLES, pickle};
use crate::{
    error::DataError,
    format::{Lines, image_line, text_line},
    record::Pair,
};

/// First size of the map, in bytes; doubled whenever it is full.
const FIRST_MAP: usize = 64 << 20;
/// Bytes written in one transaction.
const BATCH: usize = 32 << 20;

/// What to build and where.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// Directory of `<split>_imgs.tsv` and `<split>_texts.jsonl`.
    pub data_dir: PathBuf,
    /// Splits.
    pub splits: Vec<String>,
    /// Directory of the result; `None` = `<data_dir>/lmdb`.
    pub lmdb_dir: Option<PathBuf>,
    /// Show a progress bar if standard error is a terminal.
    pub progress: bool,
}

/// What was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitSummary {
    /// Name of the split.
    pub split: String,
    /// Number of pictures.
    pub images: usize,
    /// Number of texts.
    pub texts: usize,
    /// Number of pairs of a text and a picture.
    pub pairs: usize,
    /// Directory of the split.
    pub path: PathBuf,
}

/// Builds every split. A split appears under its name when it is whole; what was there before is
/// replaced, and stays untouched when the build fails.
///
/// Unlike the Python program this refuses an image id that appears twice, a pair without its
/// picture, a text that is not a string and an empty split, ignores a byte-order mark, and leaves
/// no keys of an earlier build.
pub fn build_lmdb_dataset(options: &BuildOptions) -> Result<Vec<SplitSummary>, DataError> {
    if !options.data_dir.is_dir() {
        return Err(DataError::Config(format!(
            "--data-dir {} is not a directory",
            options.data_dir.display()
        )));
    }
    let target = options.lmdb_dir.clone().unwrap_or_else(|| options.data_dir.join("lmdb"));
    // All must be there before anything is done.
    for split in &options.splits {
        if split.is_empty() || split.contains(['/', '\\']) || split.starts_with('.') {
            return Err(DataError::Config(format!(
                "--splits: `{split}` is not the name of a split"
            )));
        }
        let (tsv, jsonl) = files(options, split);
        Lines::open(&tsv)?;
        Lines::open(&jsonl)?;
    }
    fs::create_dir_all(&target).map_err(DataError::io(&target))?;
    options.splits.iter().map(|split| build_split(options, &target, split)).collect()
}

/// The text files of a split.
fn files(options: &BuildOptions, split: &str) -> (PathBuf, PathBuf) {
    let file = |suffix: &str| options.data_dir.join(format!("{split}_{suffix}"));
    (file("imgs.tsv"), file("texts.jsonl"))
}

fn build_split(
    options: &BuildOptions,
    target: &Path,
    split: &str,
) -> Result<SplitSummary, DataError> {
    let (tsv, jsonl) = files(options, split);
    let (images, texts) = (Lines::open(&tsv)?, Lines::open(&jsonl)?);
    let work = tempfile::Builder::new()
        .prefix(&format!(".{split}-"))
        .tempdir_in(target)
        .map_err(DataError::io(target))?;
    let bar = progress_bar(options.progress, &[&tsv, &jsonl], split);
    let mut image_store = Store::create(&work.path().join("work-imgs"))?;
    let count = write_images(images, &tsv, &mut image_store, &bar)?;
    let mut pair_store = Store::create(&work.path().join("work-pairs"))?;
    let (text_count, pairs) = write_pairs(texts, &jsonl, &image_store, &mut pair_store, &bar)?;
    bar.finish_and_clear();
    let whole = work.path().join("whole");
    image_store.compact_into(&whole.join("imgs"))?;
    pair_store.compact_into(&whole.join("pairs"))?;
    let path = target.join(split);
    replace(&whole, &path, &work.path().join("old"))?;
    Ok(SplitSummary { split: split.to_string(), images: count, texts: text_count, pairs, path })
}

/// Puts `new` in the place of `path`.
fn replace(new: &Path, path: &Path, aside: &Path) -> Result<(), DataError> {
    let failed = || DataError::io(path);
    if !path.exists() {
        return fs::rename(new, path).map_err(failed());
    }
    fs::rename(path, aside).map_err(failed())?;
    fs::rename(new, path).map_err(|error| {
        // Put back what was there.
        let _ = fs::rename(aside, path);
        failed()(error)
    })
}

fn write_images(
    mut lines: Lines,
    path: &Path,
    store: &mut Store,
    bar: &ProgressBar,
) -> Result<usize, DataError> {
    let (mut line, mut count) = (String::new(), 0);
    let start = bar.position();
    while lines.next_into(&mut line)? {
        let (id, image) = image_line(&line).map_err(|reason| lines.error(reason))?;
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"+/-_=".contains(&byte);
        if !image.bytes().all(known) {
            return Err(lines.error(format!("the picture of image {id} is not base64")));
        }
        if id.len() > 511 {
            return Err(lines.error("has an image id of more than 511 bytes"));
        }
        if id == NUM_IMAGES {
            return Err(lines.error(format!("has the image id `{id}`, which is reserved")));
        }
        store
            .put(id.as_bytes(), image.as_bytes(), lines.number())?
            .map_err(|line| lines.error(format!("image id {id} is already in line {line}")))?;
        count += 1;
        bar.set_position(start + lines.bytes());
    }
    if count == 0 {
        return Err(DataError::Empty { path: path.into(), reason: "holds no pictures".into() });
    }
    store.flush()?.map_err(|(line, id)| DataError::Line {
        path: path.to_path_buf(),
        line,
        reason: format!("image id {id} appears twice: keep one of them"),
    })?;
    store.put_count(NUM_IMAGES, count)?;
    Ok(count)
}

fn write_pairs(
    mut lines: Lines,
    path: &Path,
    images: &Store,
    store: &mut Store,
    bar: &ProgressBar,
) -> Result<(usize, usize), DataError> {
    let (mut line, mut texts, mut pairs) = (String::new(), 0, 0);
    let start = bar.position();
    while lines.next_into(&mut line)? {
        let record = text_line(&line).map_err(|reason| lines.error(reason))?;
        for image_id in record.image_ids {
            if !images.contains(image_id.to_string().as_bytes())? {
                return Err(lines.error(format!(
                    "image {image_id} of text {} has no picture in the tsv file",
                    record.text_id
                )));
            }
            let pair =
                Pair { image_id, text_id: record.text_id.clone(), text: record.text.clone() };
            let key = pairs.to_string();
            let put = store.put(key.as_bytes(), &pickle::encode(&pair), lines.number())?;
            put.map_err(|_| lines.error("a pair was written twice"))?;
            pairs += 1;
        }
        texts += 1;
        bar.set_position(start + lines.bytes());
    }
    if texts == 0 {
        return Err(DataError::Empty { path: path.into(), reason: "holds no texts".into() });
    }
    store.flush()?.map_err(|(line, _)| DataError::Line {
        path: path.to_path_buf(),
        line,
        reason: "a pair was written twice".to_string(),
    })?;
    store.put_count(NUM_SAMPLES, pairs)?;
    Ok((texts, pairs))
}

/// An environment that is being filled, in a private directory.
struct Store {
    path: PathBuf,
    env: Env,
    database: Database<Bytes, Bytes>,
    /// Key, value and line of what is not written yet.
    batch: Vec<(Vec<u8>, Vec<u8>, u64)>,
    batch_bytes: usize,
}

impl Store {
    fn create(path: &Path) -> Result<Self, DataError> {
        fs::create_dir_all(path).map_err(DataError::io(path))?;
        let failed = |error: heed::Error| DataError::lmdb(path, error);
        let mut options = EnvOpenOptions::new();
        options.map_size(FIRST_MAP);
        // SAFETY: the directory was made for this process, and nobody else knows it. Skipping
        // fsync is safe because the result is a synced copy.
        let env = unsafe {
            options.flags(EnvFlags::NO_SYNC | EnvFlags::NO_META_SYNC);
            options.open(path).map_err(failed)?
        };
        let mut txn = env.write_txn().map_err(failed)?;
        let database = env.create_database(&mut txn, None).map_err(failed)?;
        txn.commit().map_err(failed)?;
        Ok(Self { path: path.to_path_buf(), env, database, batch: Vec::new(), batch_bytes: 0 })
    }

    fn failed(&self, error: heed::Error) -> DataError {
        DataError::lmdb(&self.path, error)
    }

    /// Queues an entry; the inner error is the line of an earlier entry of the same key.
    fn put(&mut self, key: &[u8], value: &[u8], line: u64) -> Result<Result<(), u64>, DataError> {
        self.batch_bytes += key.len() + value.len();
        self.batch.push((key.to_vec(), value.to_vec(), line));
        if self.batch_bytes < BATCH {
            return Ok(Ok(()));
        }
        Ok(self.flush()?.map_err(|(line, _)| line))
    }

    /// Writes what is queued, enlarging the map as needed; the inner error is line and key of an
    /// entry whose key is there already.
    fn flush(&mut self) -> Result<Result<(), (u64, String)>, DataError> {
        loop {
            let mut txn = self.env.write_txn().map_err(|error| self.failed(error))?;
            let mut result = Ok(());
            for (key, value, line) in &self.batch {
                let flags = PutFlags::NO_OVERWRITE;
                result = self.database.put_with_flags(&mut txn, flags, key, value);
                if matches!(result, Err(heed::Error::Mdb(MdbError::KeyExist))) {
                    return Ok(Err((*line, String::from_utf8_lossy(key).into_owned())));
                }
                if result.is_err() {
                    break;
                }
            }
            match result.and_then(|()| txn.commit()) {
                Ok(()) => {
                    self.batch.clear();
                    self.batch_bytes = 0;
                    return Ok(Ok(()));
                }
                Err(heed::Error::Mdb(MdbError::MapFull)) => self.grow()?,
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    fn grow(&self) -> Result<(), DataError> {
        let size = self.env.info().map_size * 2;
        // SAFETY: this store is used by one thread, and no transaction is open here.
        unsafe { self.env.resize(size) }.map_err(|error| self.failed(error))
    }

    fn put_count(&mut self, key: &str, count: usize) -> Result<(), DataError> {
        let put = self.put(key.as_bytes(), count.to_string().as_bytes(), 0)?;
        let flushed = self.flush()?;
        match (put, flushed) {
            (Ok(()), Ok(())) => Ok(()),
            _ => Err(DataError::lmdb(&self.path, format!("has an entry named `{key}`"))),
        }
    }

    fn contains(&self, key: &[u8]) -> Result<bool, DataError> {
        if key.is_empty() || key.len() > 511 {
            return Ok(false);
        }
        let txn = self.env.read_txn().map_err(|error| self.failed(error))?;
        Ok(self.database.get(&txn, key).map_err(|error| self.failed(error))?.is_some())
    }

    /// Writes a compact copy, synced, into a new directory, and forgets the environment.
    fn compact_into(self, directory: &Path) -> Result<(), DataError> {
        fs::create_dir_all(directory).map_err(DataError::io(directory))?;
        let file = directory.join("data.mdb");
        let copied = self.env.copy_to_path(&file, CompactionOption::Enabled);
        let copied = copied.map_err(|error| DataError::lmdb(directory, error))?;
        copied.sync_all().map_err(DataError::io(&file))?;
        self.env.prepare_for_closing().wait();
        fs::remove_dir_all(&self.path).map_err(DataError::io(&self.path))
    }
}

fn progress_bar(shown: bool, files: &[&Path], split: &str) -> ProgressBar {
    let bar = match shown {
        true => ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()),
        false => ProgressBar::hidden(),
    };
    let size = |path: &&Path| fs::metadata(path).map_or(0, |meta| meta.len());
    bar.set_length(files.iter().map(size).sum());
    let style = "{msg} {bar:30} {bytes}/{total_bytes} | {bytes_per_sec} | {eta} left";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar.set_message(split.to_string());
    bar
}
