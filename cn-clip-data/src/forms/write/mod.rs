//! Writing of a data set in another form.

mod parquet;
mod tar;
mod text_files;

use std::{
    collections::{HashMap, hash_map::Entry},
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
};

use self::{parquet::ParquetWriter, tar::TarWriter, text_files::TextFilesWriter};
use super::{Sample, Source};
use crate::{
    error::DataError,
    lmdb::{BuildOptions, build_lmdb_dataset},
    record::Id,
};

/// A form that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetForm {
    /// `<prefix>-000000.tar`, … and `sizes.json`.
    Tar,
    /// `<prefix>_imgs.tsv` and `<prefix>_texts.jsonl`.
    TextFiles,
    /// `<prefix>-000000.parquet`, …
    Parquet,
    /// The LMDB split `<prefix>`.
    Lmdb,
}

/// How a data set is written.
#[derive(Debug, Clone)]
pub struct ShardOptions {
    /// Beginning of the file names; the name of the split for LMDB and text files.
    pub prefix: String,
    /// Samples of a shard at most.
    pub samples: usize,
    /// Bytes of pictures and captions after which a shard is closed.
    pub bytes: u64,
    /// Whether parquet is compressed with zstd; picture files hardly get smaller.
    pub compress: bool,
}

impl Default for ShardOptions {
    fn default() -> Self {
        Self { prefix: "shard".into(), samples: 10_000, bytes: 1 << 30, compress: false }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardSummary {
    /// Pairs written.
    pub samples: u64,
    /// Files or, for LMDB, the directory of the split.
    pub paths: Vec<PathBuf>,
}

/// Writes every pair of `source` to `directory`, in order. `progress` is called with the number of
/// pairs written so far.
///
/// Files appear under their names when they are whole. Files of an earlier run are not replaced.
///
/// # Errors
/// When the directory already holds such files, and where reading or writing fails.
pub fn write_shards(
    source: &Source,
    target: TargetForm,
    directory: &Path,
    options: &ShardOptions,
    progress: &mut dyn FnMut(u64),
) -> Result<ShardSummary, DataError> {
    let prefix = &options.prefix;
    if prefix.is_empty() || prefix.starts_with('.') || prefix.contains(['/', '\\']) {
        return Err(DataError::Config(format!("`{prefix}` cannot begin the name of a file")));
    }
    if options.samples == 0 || options.bytes == 0 {
        return Err(DataError::Config("a shard must hold at least one sample".to_string()));
    }
    fs::create_dir_all(directory).map_err(DataError::io(directory))?;
    match target {
        TargetForm::Tar => {
            let mut writer = TarWriter::new(directory, options)?;
            let samples = feed(source, progress, |sample| writer.add(&sample))?;
            Ok(ShardSummary { samples, paths: writer.finish()? })
        }
        TargetForm::Parquet => {
            let mut writer = ParquetWriter::new(directory, options)?;
            let samples = feed(source, progress, |sample| writer.add(sample))?;
            Ok(ShardSummary { samples, paths: writer.finish()? })
        }
        TargetForm::TextFiles => {
            let mut writer = TextFilesWriter::new(directory, prefix)?;
            let samples = feed(source, progress, |sample| writer.add(sample))?;
            Ok(ShardSummary { samples, paths: writer.finish()? })
        }
        TargetForm::Lmdb => write_lmdb(source, directory, prefix, progress),
    }
}

fn write_lmdb(
    source: &Source,
    directory: &Path,
    split: &str,
    progress: &mut dyn FnMut(u64),
) -> Result<ShardSummary, DataError> {
    refuse(&directory.join(split))?;
    let work = tempfile::Builder::new().prefix(".text-").tempdir_in(directory);
    let work = work.map_err(DataError::io(directory))?;
    let mut writer = TextFilesWriter::new(work.path(), split)?;
    let samples = feed(source, progress, |sample| writer.add(sample))?;
    writer.finish()?;
    let built = build_lmdb_dataset(&BuildOptions {
        data_dir: work.path().to_path_buf(),
        splits: vec![split.to_string()],
        lmdb_dir: Some(directory.to_path_buf()),
        progress: false,
    })?;
    Ok(ShardSummary { samples, paths: built.into_iter().map(|split| split.path).collect() })
}

/// Hands every pair of a source to `add`.
fn feed(
    source: &Source,
    progress: &mut dyn FnMut(u64),
    mut add: impl FnMut(Sample) -> Result<(), DataError>,
) -> Result<u64, DataError> {
    let mut done = 0;
    let mut add = |sample: Result<Sample, DataError>| {
        add(sample?)?;
        done += 1;
        progress(done);
        Ok::<(), DataError>(())
    };
    match source {
        Source::Stream(stream) => stream.pairs().try_for_each(&mut add)?,
        Source::Pairs(pairs) => (0..pairs.len()).try_for_each(|index| {
            let pair = pairs.pair(index)?;
            let image = pairs.image(index, &pair)?;
            add(Ok(Sample { pair, image }))
        })?,
    }
    Ok(done)
}

/// Refuses a target that is there already.
fn refuse(path: &Path) -> Result<(), DataError> {
    match path.exists() {
        true => Err(DataError::file(path, "is there already: choose an empty directory")),
        false => Ok(()),
    }
}

/// Refuses a directory that holds numbered shards already.
fn refuse_shards(directory: &Path, prefix: &str, extension: &str) -> Result<(), DataError> {
    let entries = fs::read_dir(directory).map_err(DataError::io(directory))?;
    for entry in entries {
        let entry = entry.map_err(DataError::io(directory))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&format!("{prefix}-")) && name.ends_with(extension) {
            refuse(&entry.path())?;
        }
    }
    Ok(())
}

/// Ids of pictures that are written once. A picture whose id is already that of another one gets a
/// new id.
#[derive(Default)]
struct Pictures(HashMap<Id, u64>);

impl Pictures {
    /// The id to write and whether the picture is new.
    fn id(&mut self, id: &Id, image: &[u8]) -> (Id, bool) {
        let mut hasher = DefaultHasher::new();
        image.hash(&mut hasher);
        let hash = hasher.finish();
        let mut chosen = id.clone();
        for number in 2_u64.. {
            match self.0.entry(chosen.clone()) {
                Entry::Vacant(place) => {
                    place.insert(hash);
                    return (chosen, true);
                }
                Entry::Occupied(place) if *place.get() == hash => return (chosen, false),
                Entry::Occupied(_) => chosen = Id::Text(format!("{id}#{number}")),
            }
        }
        (chosen, true)
    }
}
