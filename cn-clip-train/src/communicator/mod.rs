//! Ranks that train one model together, and what they exchange.
//!
//! Every rank calls the same operations in the same order, with buffers of the same length.
//! Buffers lie in ordinary memory, so ranks may be of any device. Results are the same bits on
//! every rank: that keeps their models equal without ever sending weights.

mod devices;
#[cfg(feature = "mpi")]
mod mpi;

pub use devices::{Devices, on_threads};
#[cfg(feature = "mpi")]
pub use mpi::Mpi;

use crate::TrainError;

/// One rank's end of the line to the others.
pub trait Communicator {
    /// Number of this rank, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world_size(&self) -> usize;

    /// The buffers of all ranks, one after the other in rank order.
    fn all_gather(&self, own: Vec<f32>) -> Result<Vec<f32>, TrainError>;

    /// The sum of the buffers of all ranks.
    fn all_reduce_sum(&self, own: Vec<f32>) -> Result<Vec<f32>, TrainError>;
}

/// A run on one device.
#[derive(Debug, Clone, Copy, Default)]
pub struct Local;

impl Communicator for Local {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn all_gather(&self, own: Vec<f32>) -> Result<Vec<f32>, TrainError> {
        Ok(own)
    }

    fn all_reduce_sum(&self, own: Vec<f32>) -> Result<Vec<f32>, TrainError> {
        Ok(own)
    }
}
