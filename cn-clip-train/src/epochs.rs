//! Which pairs an epoch has, and their order over all ranks.

use cn_clip_data::{
    forms::Source,
    sampler::{epoch_order, exclusive_order, one_caption_groups, one_caption_order},
    source::PairSource,
};

use crate::{TrainConfig, TrainError};

/// The pairs of the epochs of a run.
#[derive(Debug)]
pub(crate) struct Epochs {
    /// Pairs of the data set.
    pairs: usize,
    /// Pairs of each picture, where a picture is seen once in an epoch.
    groups: Option<Vec<Vec<u32>>>,
}

impl Epochs {
    /// Fails where the settings need random access and the data set has none.
    pub fn new(config: &TrainConfig, source: &Source) -> Result<Self, TrainError> {
        let pairs = source.len();
        let groups = match source {
            Source::Pairs(source) if config.one_caption_per_image => {
                Some(one_caption_groups(&**source)?)
            }
            Source::Stream(_) if config.exclusive_batches => {
                return Err(TrainError::Config(format!(
                    "--exclusive-batches must see all pairs, but {} is read as a stream: build an \
                     LMDB of it, or leave the flag out",
                    config.train_data
                )));
            }
            // A sample of a stream is a picture with all its captions.
            _ => None,
        };
        Ok(Self { pairs, groups })
    }

    /// Pairs of an epoch before it is filled up to whole batches.
    pub fn len(&self) -> usize {
        self.groups.as_ref().map_or(self.pairs, Vec::len)
    }

    /// Pairs of an epoch (counted from 0) in the order of the batches of `world` ranks together.
    pub fn order(
        &self,
        config: &TrainConfig,
        source: &dyn PairSource,
        world: usize,
        epoch: u64,
    ) -> Result<Vec<usize>, TrainError> {
        let batch = config.batch_size * world;
        let order = match &self.groups {
            Some(groups) => one_caption_order(groups, batch, config.seed, epoch),
            None => epoch_order(self.pairs, batch, config.seed, epoch, 0, 1),
        };
        if !config.exclusive_batches {
            return Ok(order);
        }
        let keys = (0..self.pairs)
            .map(|index| Ok(source.pair(index)?.keys()))
            .collect::<Result<Vec<_>, TrainError>>()?;
        Ok(exclusive_order(&order, batch * config.accum_freq, |pair| &keys[pair]))
    }
}
