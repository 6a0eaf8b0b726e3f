//! Which pairs an epoch has, their order over all ranks, and how many steps they make.

use cn_clip_data::{
    forms::Source,
    sampler::{epoch_order, exclusive_order, one_caption_groups, one_caption_order, padded_len},
    source::PairSource,
};

use crate::{RunLength, TrainConfig, TrainError};

/// How long a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Pairs of an epoch, before it is filled up to whole batches.
    pub pairs: usize,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Epochs begun.
    pub epochs: u64,
    /// Steps in all.
    pub steps: u64,
}

impl Plan {
    /// The plan of a run with `world` ranks.
    ///
    /// # Errors
    /// Where the settings need random access and the data set has none, and where it cannot be read.
    pub fn new(config: &TrainConfig, source: &Source, world: usize) -> Result<Self, TrainError> {
        Ok(Self::of(config, Epochs::new(config, source)?.len(), world))
    }

    pub(crate) fn of(config: &TrainConfig, pairs: usize, world: usize) -> Self {
        let global = config.batch_size.saturating_mul(world).max(1);
        let batches = (padded_len(pairs, global) / global) as u64;
        let steps_per_epoch = batches / (config.accum_freq as u64).max(1);
        let (epochs, steps) = match config.length {
            RunLength::Epochs(epochs) => (epochs, steps_per_epoch * epochs),
            RunLength::Steps(steps) => (steps.div_ceil(steps_per_epoch.max(1)), steps),
        };
        Self { pairs, steps_per_epoch, epochs, steps }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_that_fill_no_step_are_left_out() {
        let config = TrainConfig {
            batch_size: 4,
            accum_freq: 3,
            length: RunLength::Epochs(2),
            ..TrainConfig::default()
        };
        // 13 pairs are filled up to 16: four batches, of which three make a step.
        let plan = Plan::of(&config, 13, 1);
        assert_eq!(plan, Plan { pairs: 13, steps_per_epoch: 1, epochs: 2, steps: 2 });
        let config = TrainConfig { length: RunLength::Steps(5), accum_freq: 1, ..config };
        // Two ranks take eight pairs at a time.
        let plan = Plan::of(&config, 13, 2);
        assert_eq!(plan, Plan { pairs: 13, steps_per_epoch: 2, epochs: 3, steps: 5 });
    }
}
