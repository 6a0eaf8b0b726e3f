//! Who trains: one device, a thread for each of several, or processes under MPI.

use std::{env, num::NonZero, thread};

use anyhow::bail;
use cn_clip_model::DeviceSpec;
use cn_clip_train::{
    TrainError,
    communicator::{Communicator, Local, on_threads},
};

use super::args::TrainArgs;

/// Variables by which launchers tell a process how many there are.
const WORLD: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"];
/// Variables by which they tell a process its number.
#[cfg(feature = "mpi")]
const RANK: [&str; 3] = ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"];
/// Variables by which they tell it its number on its machine.
#[cfg(feature = "mpi")]
const LOCAL_RANK: [&str; 4] =
    ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"];

/// The ranks of a training run that this process holds.
pub enum Ranks {
    /// One thread for each device.
    Devices(Vec<DeviceSpec>),
    /// One, among those of other processes.
    #[cfg(feature = "mpi")]
    Process([DeviceSpec; 1]),
}

impl Ranks {
    /// By the flags and the launcher, if there is one.
    pub fn new(args: &TrainArgs) -> anyhow::Result<Self> {
        let one = [args.device.device];
        let devices = if args.devices.is_empty() { &one[..] } else { &args.devices };
        if number(&WORLD).is_none_or(|world| world < 2) {
            return Ok(Self::Devices(devices.to_vec()));
        }
        Self::under_launcher(devices)
    }

    #[cfg(feature = "mpi")]
    fn under_launcher(devices: &[DeviceSpec]) -> anyhow::Result<Self> {
        let rank = number(&LOCAL_RANK).unwrap_or(0);
        let device = match devices {
            // The graphics processor of its own for each rank of a machine.
            [device] if !device.is_host() => device.or_index(rank),
            [] => bail!("no device to train on: add --device"),
            devices => devices[rank % devices.len()],
        };
        Ok(Self::Process([device]))
    }

    #[cfg(not(feature = "mpi"))]
    fn under_launcher(_: &[DeviceSpec]) -> anyhow::Result<Self> {
        bail!(
            "started by an MPI launcher, but this build has no MPI and each process would train \
             for itself: compile with `--features mpi`"
        )
    }

    /// Devices of this process.
    pub fn devices(&self) -> &[DeviceSpec] {
        match self {
            Self::Devices(devices) => devices,
            #[cfg(feature = "mpi")]
            Self::Process(device) => device,
        }
    }

    /// Whether this process holds rank 0.
    pub fn is_first(&self) -> bool {
        match self {
            Self::Devices(_) => true,
            #[cfg(feature = "mpi")]
            Self::Process(_) => number(&RANK) == Some(0),
        }
    }

    /// Decoding threads of each rank of this process where the user does not say.
    pub fn workers(&self) -> usize {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        cores.div_ceil(self.devices().len().max(1))
    }

    /// Runs `work` as every rank of this process, and returns what the first of them returns.
    pub fn run<T: Send>(
        &self,
        work: impl Fn(&dyn Communicator, &DeviceSpec) -> Result<T, TrainError> + Sync,
    ) -> anyhow::Result<T> {
        match self {
            Self::Devices(devices) => match &devices[..] {
                [device] => Ok(work(&Local, device)?),
                devices => {
                    let mut results =
                        on_threads(devices.len(), |rank| work(rank, &devices[rank.rank()]))?;
                    if results.is_empty() {
                        bail!("no device to train on: add --device");
                    }
                    Ok(results.swap_remove(0))
                }
            },
            #[cfg(feature = "mpi")]
            Self::Process([device]) => process(device, work),
        }
    }
}

/// Runs one rank. When it fails all ranks end, which otherwise would wait for it for ever.
#[cfg(feature = "mpi")]
fn process<T>(
    device: &DeviceSpec,
    work: impl Fn(&dyn Communicator, &DeviceSpec) -> Result<T, TrainError>,
) -> anyhow::Result<T> {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use cn_clip_train::communicator::Mpi;

    let mpi = Mpi::start()?;
    let result = catch_unwind(AssertUnwindSafe(|| work(&mpi, device)));
    let reason = match result {
        Ok(Ok(output)) => return Ok(output),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it panicked".to_string(),
    };
    crate::cli::note(&format!("Error: rank {} failed: {reason}", mpi.rank()));
    mpi.abort()
}

fn number(variables: &[&str]) -> Option<usize> {
    variables.iter().find_map(|name| env::var(name).ok()?.parse().ok())
}
