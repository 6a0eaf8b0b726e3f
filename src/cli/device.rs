//! `--device`, on every command that computes.

use clap::Args;
use cn_clip_model::{DeviceSpec, device::compiled};

/// The device to compute on.
#[derive(Debug, Clone, Args)]
pub struct DeviceArg {
    /// cpu, ndarray, wgpu[:n], vulkan[:n], metal[:n], cuda[:n] or rocm[:n]
    #[arg(long, value_name = "DEVICE", default_value = "cpu", help = help())]
    pub device: DeviceSpec,
}

fn help() -> String {
    format!(
        "cpu, ndarray, wgpu[:n], vulkan[:n], metal[:n], cuda[:n] or rocm[:n] (in this build: {})",
        compiled().join(", ")
    )
}

impl DeviceArg {
    /// Opens the device, without autodiff.
    pub fn open(&self) -> anyhow::Result<burn::tensor::Device> {
        Ok(self.device.open()?)
    }
}
