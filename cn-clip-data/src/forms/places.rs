//! The order in which a rank reads the samples of shards.
//!
//! It is made of numbers of shards and samples alone, so that a part of it can be passed over
//! without opening a file.

use std::sync::Arc;

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustc_hash::FxHashMap;

use super::Part;
use crate::loader::mix;

/// Where a sample lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Number of the shard.
    pub shard: usize,
    /// Number of the sample in the shard.
    pub number: usize,
    /// Whether the rank needs nothing more of this shard in this pass.
    pub last: bool,
}

/// The endless sequence of places of a rank.
///
/// The samples of all shards must not be zero; where there are as many shards as ranks, none may
/// be empty.
pub(super) struct Places {
    counts: Arc<[usize]>,
    part: Part,
    /// The rank takes every `step`-th sample of its shards.
    step: usize,
    /// Samples of its shards before the next of its own.
    until: usize,
    /// Passes over the shards begun.
    passes: u64,
    /// Shards of the pass not begun, last first.
    shards: Vec<usize>,
    /// Shard at hand and the numbers of its samples not taken.
    current: Option<(usize, std::iter::StepBy<std::ops::Range<usize>>)>,
    /// Samples not handed out of the shards begun.
    open: FxHashMap<usize, usize>,
    buffer: Vec<(usize, usize)>,
    rng: ChaCha8Rng,
}

impl Places {
    /// The sequence after `part.skip` places.
    pub fn new(counts: Arc<[usize]>, part: Part) -> Self {
        let (step, until) =
            if counts.len() < part.world { (part.world, part.rank) } else { (1, 0) };
        let mut places = Self {
            counts,
            part,
            step,
            until,
            passes: 0,
            shards: Vec::new(),
            current: None,
            open: FxHashMap::default(),
            buffer: Vec::new(),
            rng: ChaCha8Rng::seed_from_u64(0),
        };
        let mut skip = part.skip;
        loop {
            places.begin_pass();
            let length = places.pass_len();
            if skip < length {
                break;
            }
            skip -= length;
            places.pass_over();
        }
        for _ in 0..skip {
            places.next();
        }
        places
    }

    /// The shard whose samples enter the buffer, and the one after it if the rank surely reads it.
    pub fn upcoming(&self) -> [Option<usize>; 2] {
        let next = self.shards.last().copied().filter(|_| self.step == 1);
        [self.current.as_ref().map(|(shard, _)| *shard), next]
    }

    /// The next place.
    pub fn next(&mut self) -> Place {
        loop {
            while self.buffer.len() < self.part.buffer.max(1) {
                let Some(place) = self.next_in_order() else { break };
                self.buffer.push(place);
            }
            if !self.buffer.is_empty() {
                break;
            }
            self.begin_pass();
        }
        let at = match self.part.shuffle {
            true => below(&mut self.rng, self.buffer.len()),
            // A single entry waits where nothing is shuffled.
            false => 0,
        };
        let (shard, number) = self.buffer.swap_remove(at);
        let open = self.open.entry(shard).or_insert(1);
        *open -= 1;
        let last = *open == 0;
        if last {
            self.open.remove(&shard);
        }
        Place { shard, number, last }
    }

    fn begin_pass(&mut self) {
        let seed = mix(mix(self.part.seed, self.part.epoch), self.passes);
        self.passes += 1;
        let mut shards: Vec<usize> = (0..self.counts.len()).collect();
        if self.part.shuffle {
            // The same for every rank.
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            for end in (1..shards.len()).rev() {
                shards.swap(end, below(&mut rng, end + 1));
            }
        }
        if self.step == 1 {
            shards = shards.into_iter().skip(self.part.rank).step_by(self.part.world).collect();
        }
        shards.reverse();
        self.shards = shards;
        self.rng = ChaCha8Rng::seed_from_u64(mix(seed, self.part.rank as u64 + 1));
        if !self.part.shuffle {
            self.part.buffer = 1;
        }
    }

    /// Samples of the pass just begun.
    fn pass_len(&self) -> usize {
        self.total().saturating_sub(self.until).div_ceil(self.step)
    }

    /// Samples of the rank's shards, its own and others'.
    fn total(&self) -> usize {
        self.shards.iter().filter_map(|shard| self.counts.get(*shard)).sum()
    }

    /// Ends the pass just begun.
    fn pass_over(&mut self) {
        self.until = (self.until + self.pass_len() * self.step).saturating_sub(self.total());
        self.shards.clear();
    }

    fn next_in_order(&mut self) -> Option<(usize, usize)> {
        loop {
            if let Some((shard, numbers)) = &mut self.current
                && let Some(number) = numbers.next()
            {
                return Some((*shard, number));
            }
            self.current = None;
            let shard = self.shards.pop()?;
            let count = self.counts.get(shard).copied().unwrap_or(0);
            let numbers = (self.until..count.max(self.until)).step_by(self.step);
            let taken = numbers.len();
            self.until = (self.until + taken * self.step).saturating_sub(count);
            if taken > 0 {
                self.open.insert(shard, taken);
                self.current = Some((shard, numbers));
            }
        }
    }
}

/// A number below `count`.
fn below(rng: &mut ChaCha8Rng, count: usize) -> usize {
    ((u128::from(rng.next_u64()) * count as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn places(counts: &[usize], part: Part, take: usize) -> Vec<(usize, usize)> {
        let mut places = Places::new(counts.into(), part);
        (0..take).map(|_| places.next()).map(|place| (place.shard, place.number)).collect()
    }

    #[test]
    fn ranks_together_see_everything_once() {
        let counts = [5, 5, 5, 5];
        for (world, shuffle) in [(1, false), (1, true), (2, true), (4, false), (4, true), (5, true)]
        {
            let mut seen = HashSet::new();
            for rank in 0..world {
                let part = Part { seed: 3, rank, world, shuffle, buffer: 7, ..Part::default() };
                seen.extend(places(&counts, part, 20 / world));
            }
            assert_eq!(seen.len(), 20, "{world} {shuffle}");
        }
    }

    #[test]
    fn passing_over_gives_what_follows() {
        for (counts, world) in [(&[4, 1, 9, 3][..], 2), (&[4, 1, 3], 5), (&[3], 8), (&[10], 1)] {
            for rank in 0..world {
                for buffer in [1, 3, 100] {
                    let part = Part { rank, world, buffer, ..Part::default() };
                    let whole = places(counts, part, 60);
                    for skip in [0, 1, 2, 7, 8, 9, 17, 18, 33] {
                        let rest = places(counts, Part { skip, ..part }, 60 - skip);
                        assert_eq!(rest, whole[skip..], "{counts:?} {rank}/{world} {skip}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_order_depends_on_epoch_pass_and_seed() {
        let order = |seed, epoch, skip| {
            places(&[50, 50, 50], Part { seed, epoch, skip, ..Part::default() }, 150)
        };
        let first = order(1, 0, 0);
        assert_eq!(first, order(1, 0, 0));
        for other in [order(2, 0, 0), order(1, 1, 0), order(1, 0, 150)] {
            assert_ne!(first, other);
            let set = |order: &[(usize, usize)]| order.iter().copied().collect::<HashSet<_>>();
            assert_eq!(set(&first), set(&other));
        }
    }

    #[test]
    fn every_shard_is_let_go_once_in_a_pass() {
        let part = Part { buffer: 4, skip: 3, ..Part::default() };
        let mut places = Places::new([6, 2, 5].as_slice().into(), part);
        let last: Vec<usize> = (0..10)
            .filter_map(|_| {
                let place = places.next();
                place.last.then_some(place.shard)
            })
            .collect();
        assert_eq!(last.iter().collect::<HashSet<_>>().len(), last.len());
        assert!(last.len() >= 2);
        assert!(places.open.is_empty());
    }
}
