//! Where pairs come from.

use std::{collections::HashMap, path::PathBuf};

use crate::{
    error::DataError,
    record::{Id, Pair},
};

/// Random access to pairs and pictures, from many threads.
#[allow(clippy::len_without_is_empty)] // Nothing here is ever asked whether it is empty.
pub trait PairSource: Send + Sync {
    /// Number of pairs.
    fn len(&self) -> usize;

    /// Number of pictures.
    fn num_images(&self) -> usize;

    /// A pair.
    fn pair(&self, index: usize) -> Result<Pair, DataError>;

    /// The bytes of the picture file of `pair`, which is the pair of this index.
    fn image(&self, index: usize, pair: &Pair) -> Result<Vec<u8>, DataError>;

    /// The part of a joined source that a pair comes from: pictures of different parts are
    /// different ones even where their ids agree.
    fn part(&self, _index: usize) -> usize {
        0
    }
}

/// Pairs and picture files in memory.
#[derive(Debug, Clone, Default)]
pub struct MemoryDataset {
    /// Pairs in order.
    pub pairs: Vec<Pair>,
    /// Picture files.
    pub images: HashMap<Id, Vec<u8>>,
}

impl PairSource for MemoryDataset {
    fn len(&self) -> usize {
        self.pairs.len()
    }

    fn num_images(&self) -> usize {
        self.images.len()
    }

    fn pair(&self, index: usize) -> Result<Pair, DataError> {
        self.pairs.get(index).cloned().ok_or_else(|| {
            DataError::Config(format!("pair {index} of {} does not exist", self.pairs.len()))
        })
    }

    fn image(&self, _index: usize, pair: &Pair) -> Result<Vec<u8>, DataError> {
        let id = &pair.image_id;
        let missing = || DataError::MissingImage { id: id.clone(), path: PathBuf::from("memory") };
        self.images.get(id).cloned().ok_or_else(missing)
    }
}
