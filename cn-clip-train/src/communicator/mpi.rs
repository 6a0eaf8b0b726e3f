//! Ranks that are processes, of one machine or of many, under any MPI.

use ::mpi::{
    Threading,
    collective::SystemOperation,
    environment::Universe,
    topology::SimpleCommunicator,
    traits::{Communicator as _, CommunicatorCollectives},
};

use super::Communicator;
use crate::TrainError;

/// This process among those that the launcher (`mpirun`, `srun`) has started.
pub struct Mpi {
    world: SimpleCommunicator,
    /// Ends MPI when dropped.
    _universe: Universe,
}

impl Mpi {
    /// Joins the other processes. Possible once in the life of a process.
    pub fn start() -> Result<Self, TrainError> {
        let failed = || TrainError::Config("MPI was started before in this process".to_string());
        // Only the thread of the training loop communicates.
        let (universe, _) =
            ::mpi::initialize_with_threading(Threading::Funneled).ok_or_else(failed)?;
        Ok(Self { world: universe.world(), _universe: universe })
    }

    /// Ends all ranks: the launcher names this one.
    pub fn abort(&self) -> ! {
        self.world.abort(1)
    }
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn world_size(&self) -> usize {
        self.world.size() as usize
    }

    fn all_gather(&self, own: Vec<f32>) -> Result<Vec<f32>, TrainError> {
        let mut all = vec![0.0; own.len() * self.world_size()];
        self.world.all_gather_into(&own[..], &mut all[..]);
        Ok(all)
    }

    /// The MPI standard asks implementations for the same result on every rank, and the algorithms
    /// of Open MPI and MPICH give the same bits: floating-point addition commutes.
    fn all_reduce_sum(&self, own: Vec<f32>) -> Result<Vec<f32>, TrainError> {
        let mut sum = vec![0.0; own.len()];
        self.world.all_reduce_into(&own[..], &mut sum[..], SystemOperation::sum());
        Ok(sum)
    }
}
