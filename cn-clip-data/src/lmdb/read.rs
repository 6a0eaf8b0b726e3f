//! Reading of LMDB data sets, ours and those of the Python program.

use std::path::{Path, PathBuf};

use super::{NUM_IMAGES, NUM_SAMPLES, environment::Environment, pickle};
use crate::{
    error::DataError,
    image::decode_base64,
    record::{Id, Pair},
    source::PairSource,
};

/// The pictures of a split: its `imgs` directory.
#[derive(Clone)]
pub struct LmdbImages {
    environment: Environment,
    count: usize,
}

impl LmdbImages {
    /// Opens an `imgs` directory.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DataError> {
        let environment = Environment::open(path.as_ref())?;
        let count = environment.count(NUM_IMAGES)?;
        Ok(Self { environment, count })
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Ids of the pictures in the order of the database, which is that of their bytes (`10` comes
    /// before `2`).
    pub fn ids(&self) -> Result<Vec<Id>, DataError> {
        self.iter_ids().collect()
    }

    /// As [`ids`](Self::ids), read as they are asked for.
    pub fn iter_ids(&self) -> impl Iterator<Item = Result<Id, DataError>> + Send + use<> {
        let keys = self.environment.keys();
        let keys = keys.filter(|key| !key.as_ref().is_ok_and(|key| key == NUM_IMAGES));
        keys.map(|key| key.map(|key| Id::from(key.as_str())))
    }

    /// The bytes of a picture file.
    pub fn image(&self, id: &Id) -> Result<Vec<u8>, DataError> {
        let decoded = self.environment.get(&id.to_string(), decode_base64)?;
        let missing =
            || DataError::MissingImage { id: id.clone(), path: self.environment.path.clone() };
        decoded
            .ok_or_else(missing)?
            .map_err(|error| DataError::Image { id: id.clone(), reason: error.to_string() })
    }
}

/// A split: the directory that holds `imgs` and `pairs`.
#[derive(Clone)]
pub struct LmdbDataset {
    path: PathBuf,
    pairs: Environment,
    images: LmdbImages,
    count: usize,
}

impl LmdbDataset {
    /// Opens a split.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DataError> {
        let path = path.as_ref();
        let pairs = Environment::open(&path.join("pairs"))?;
        let images = LmdbImages::open(path.join("imgs"))?;
        let count = pairs.count(NUM_SAMPLES)?;
        Ok(Self { path: path.to_path_buf(), pairs, images, count })
    }

    /// The directory of the split.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The pictures.
    pub fn images(&self) -> &LmdbImages {
        &self.images
    }
}

impl PairSource for LmdbDataset {
    fn len(&self) -> usize {
        self.count
    }

    fn num_images(&self) -> usize {
        self.images.count
    }

    fn pair(&self, index: usize) -> Result<Pair, DataError> {
        let damaged = |reason: String| DataError::lmdb(&self.pairs.path, reason);
        let pair = self.pairs.get(&index.to_string(), pickle::decode)?;
        pair.ok_or_else(|| damaged(format!("pair {index} is missing")))?
            .map_err(|reason| damaged(format!("pair {index} {reason}")))
    }

    fn image(&self, _index: usize, pair: &Pair) -> Result<Vec<u8>, DataError> {
        self.images.image(&pair.image_id)
    }
}
