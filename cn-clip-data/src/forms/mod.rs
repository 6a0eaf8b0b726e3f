//! The forms a data set may have, from one LMDB split to thousands of tar shards.
//!
//! | Form | Access |
//! |---|---|
//! | LMDB split | random |
//! | `<split>_imgs.tsv` and `<split>_texts.jsonl` | random |
//! | csv, tsv or jsonl table of picture paths | random |
//! | webdataset tar shards | streamed |
//! | parquet files | streamed |
//!
//! [`open`] tells them apart.

mod checked;
mod columns;
mod concat;
mod open;
mod parquet;
mod places;
mod rows;
mod spec;
mod stream;
mod table;
mod tar;
mod tar_header;
mod text_files;
mod write;

use std::sync::Arc;

pub use self::{
    checked::{CheckedFile, catch_panic},
    concat::Concat,
    open::open,
    parquet::open_parquet,
    spec::expand,
    table::Table,
    tar::open_tar,
    text_files::{TextFiles, TsvImages},
    write::{ShardOptions, ShardSummary, TargetForm, write_shards},
};
use crate::{error::DataError, record::Pair, source::PairSource};

/// Samples in the shuffle buffer of a stream unless told otherwise.
pub const DEFAULT_BUFFER: usize = 10_000;

/// An opened data set.
#[derive(Clone)]
pub enum Source {
    /// Random access.
    Pairs(Arc<dyn PairSource>),
    /// Shards that are read from beginning to end.
    Stream(Arc<dyn SampleStream>),
}

#[allow(clippy::len_without_is_empty)] // An opened data set is not empty.
impl Source {
    /// Number of pairs; for a stream the number of samples.
    pub fn len(&self) -> usize {
        match self {
            Self::Pairs(pairs) => pairs.len(),
            Self::Stream(stream) => stream.len(),
        }
    }

    /// Number of pictures, where it is known.
    pub fn num_images(&self) -> Option<usize> {
        match self {
            Self::Pairs(pairs) => Some(pairs.num_images()),
            Self::Stream(stream) => stream.num_images(),
        }
    }
}

/// A pair with its picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The pair.
    pub pair: Pair,
    /// The bytes of the picture file.
    pub image: Vec<u8>,
}

/// The part of a stream that one rank reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Seed of the order and of the choice among several captions.
    pub seed: u64,
    /// Epoch, from 0.
    pub epoch: u64,
    /// Rank of this process.
    pub rank: usize,
    /// Number of processes.
    pub world: usize,
    /// Samples of the rank's sequence that are passed over.
    pub skip: usize,
    /// Samples that are read after those.
    pub take: usize,
    /// Whether shards and samples are shuffled.
    pub shuffle: bool,
    /// Samples in the shuffle buffer.
    pub buffer: usize,
}

impl Default for Part {
    /// The whole endless sequence of a single process, shuffled.
    fn default() -> Self {
        Self {
            seed: 0,
            epoch: 0,
            rank: 0,
            world: 1,
            skip: 0,
            take: usize::MAX,
            shuffle: true,
            buffer: DEFAULT_BUFFER,
        }
    }
}

/// An iterator over samples.
///
/// After an error of a single picture ([`DataError::Image`]) it goes on; any other error ends it.
pub type Samples = Box<dyn Iterator<Item = Result<Sample, DataError>> + Send>;

/// Samples in shards, read in the order in which they lie there or shuffled within a buffer.
///
/// A rank reads every `world`-th shard, or, where there are fewer shards than ranks, every
/// `world`-th sample of all. Its sequence has no end: when its shards are used up they are gone
/// through again in a new order. The same [`Part`] always gives the same samples.
#[allow(clippy::len_without_is_empty)] // An opened stream is not empty.
pub trait SampleStream: Send + Sync {
    /// Number of samples of all shards.
    fn len(&self) -> usize;

    /// Number of pictures, where it is known.
    fn num_images(&self) -> Option<usize>;

    /// Samples `skip..skip + take` of the sequence of a rank. Of several captions of a sample one
    /// is chosen by seed, epoch and picture.
    fn samples(&self, part: &Part) -> Samples;

    /// Every sample once in the order of the shards, as many times as it has captions.
    fn pairs(&self) -> Samples;
}
