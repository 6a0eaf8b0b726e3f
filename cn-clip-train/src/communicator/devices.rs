//! Ranks that are threads of one process, each with a device of its own.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use rayon::prelude::*;

use super::Communicator;
use crate::TrainError;

/// Values of a sum that one thread computes at a time.
const CHUNK: usize = 1 << 14;

/// One of several ranks of this process.
#[derive(Debug)]
pub struct Devices {
    rank: usize,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    world: usize,
    meeting: Mutex<Meeting>,
    changed: Condvar,
}

/// Where ranks bring a buffer each and wait for the result.
#[derive(Debug, Default)]
struct Meeting {
    /// Exchanges completed.
    round: u64,
    brought: Vec<Option<Vec<f32>>>,
    arrived: usize,
    result: Arc<Vec<f32>>,
    /// The first rank that ended with an error, and the error.
    failed: Option<(usize, String)>,
}

/// Runs `work` on `world` threads, each with its rank, and returns what they return in rank order.
///
/// When a rank fails or panics, the others fail at their next exchange, and the error is that of
/// the rank that failed first.
pub fn on_threads<T: Send>(
    world: usize,
    work: impl Fn(&Devices) -> Result<T, TrainError> + Sync,
) -> Result<Vec<T>, TrainError> {
    let brought = (0..world).map(|_| None).collect();
    let shared = Arc::new(Shared {
        world,
        meeting: Mutex::new(Meeting { brought, ..Meeting::default() }),
        changed: Condvar::new(),
    });
    let results: Vec<Result<T, TrainError>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..world)
            .map(|rank| {
                let (own, work) = (Devices { rank, shared: shared.clone() }, &work);
                scope.spawn(move || {
                    let result = catch_unwind(AssertUnwindSafe(|| work(&own)))
                        .unwrap_or_else(|panic| Err(own.error(&text(&*panic))));
                    if let Err(error) = &result {
                        own.fail(error);
                    }
                    result
                })
            })
            .collect();
        let lost = || TrainError::Rank { rank: 0, reason: "its thread was lost".to_string() };
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(lost()))).collect()
    });
    let first = shared.lock().failed.as_ref().map(|(rank, _)| *rank);
    let mut outputs = Vec::with_capacity(world);
    let mut failure = None;
    for (rank, result) in results.into_iter().enumerate() {
        match result {
            Ok(output) => outputs.push(output),
            Err(error) if Some(rank) == first || failure.is_none() => failure = Some(error),
            Err(_) => {}
        }
    }
    failure.map_or(Ok(outputs), Err)
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_string()
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Meeting> {
        // Nothing that holds the lock can leave the meeting half changed.
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Devices {
    fn error(&self, reason: &str) -> TrainError {
        TrainError::Rank { rank: self.rank, reason: reason.to_string() }
    }

    fn fail(&self, error: &TrainError) {
        self.shared.lock().failed.get_or_insert_with(|| (self.rank, error.to_string()));
        self.shared.changed.notify_all();
    }

    /// Brings a buffer; the rank that comes last joins all of them by `join` for everybody.
    fn exchange(
        &self,
        own: Vec<f32>,
        join: impl FnOnce(Vec<Vec<f32>>) -> Vec<f32>,
    ) -> Result<Arc<Vec<f32>>, TrainError> {
        let shared = &*self.shared;
        let mut meeting = shared.lock();
        let round = meeting.round;
        meeting.brought[self.rank] = Some(own);
        meeting.arrived += 1;
        if meeting.arrived == shared.world {
            meeting.arrived = 0;
            let brought = meeting.brought.iter_mut().filter_map(Option::take).collect();
            meeting.result = Arc::new(join(brought));
            meeting.round += 1;
            shared.changed.notify_all();
        }
        loop {
            if meeting.round != round {
                return Ok(meeting.result.clone());
            }
            if let Some((rank, reason)) = &meeting.failed {
                return Err(TrainError::Rank { rank: *rank, reason: reason.clone() });
            }
            meeting = shared.changed.wait(meeting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Communicator for Devices {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.shared.world
    }

    fn all_gather(&self, own: Vec<f32>) -> Result<Vec<f32>, TrainError> {
        Ok(self.exchange(own, |all| all.concat())?.to_vec())
    }

    fn all_reduce_sum(&self, own: Vec<f32>) -> Result<Vec<f32>, TrainError> {
        let sum = self.exchange(own, |mut all| {
            let mut sum = all.swap_remove(0);
            sum.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, sum)| {
                let range = chunk * CHUNK..chunk * CHUNK + sum.len();
                for other in &all {
                    let other = other.get(range.clone()).unwrap_or_default();
                    sum.iter_mut().zip(other).for_each(|(sum, value)| *sum += value);
                }
            });
            sum
        })?;
        Ok(sum.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_gets_the_same_sum_and_all_buffers() {
        for world in [1, 2, 3, 5] {
            let outputs = on_threads(world, |ranks| {
                let own: Vec<f32> = (0..40_000).map(|i| (i * (ranks.rank() + 1)) as f32).collect();
                let sum = ranks.all_reduce_sum(own)?;
                // Many rounds, so that a fast rank meets slow ones.
                for round in 0..200 {
                    let all = ranks.all_gather(vec![ranks.rank() as f32, round as f32])?;
                    let expected: Vec<f32> =
                        (0..world).flat_map(|rank| [rank as f32, round as f32]).collect();
                    assert_eq!(all, expected);
                }
                Ok(sum)
            });
            for sum in outputs.unwrap() {
                let factor = world * (world + 1) / 2;
                assert!(sum.iter().enumerate().all(|(i, value)| *value == (i * factor) as f32));
            }
        }
    }

    #[test]
    fn a_rank_that_fails_or_panics_ends_all_and_is_named() {
        for panics in [false, true] {
            let outcome = on_threads(3, |ranks| {
                ranks.all_gather(vec![0.0])?;
                if ranks.rank() == 2 {
                    assert!(!panics, "no device");
                    return Err(TrainError::Config("no device".to_string()));
                }
                ranks.all_gather(vec![0.0])?;
                Ok(())
            });
            let message = outcome.unwrap_err().to_string();
            assert!(message.contains("no device"), "{message}");
            assert!(!panics || message.contains("rank 2"), "{message}");
        }
    }
}
