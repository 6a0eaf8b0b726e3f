//! Device strings: `cpu`, `ndarray`, `cuda:0`, `wgpu`, `vulkan:1`, ….
//!
//! The only place of the workspace that names Burn backends.

use std::{fmt, str::FromStr};

use burn::tensor::Device;

use crate::ModelError;

/// Kind of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// The processor, by the `flex` backend.
    Cpu,
    /// The processor, by the `ndarray` backend.
    NdArray,
    /// The best graphics API of the platform.
    Wgpu,
    /// Vulkan.
    Vulkan,
    /// Metal.
    Metal,
    /// NVIDIA CUDA.
    Cuda,
    /// AMD ROCm.
    Rocm,
}

impl DeviceKind {
    const ALL: [(&'static str, Self); 7] = [
        ("cpu", Self::Cpu),
        ("ndarray", Self::NdArray),
        ("wgpu", Self::Wgpu),
        ("vulkan", Self::Vulkan),
        ("metal", Self::Metal),
        ("cuda", Self::Cuda),
        ("rocm", Self::Rocm),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

/// A parsed device string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceSpec {
    kind: DeviceKind,
    index: Option<usize>,
}

impl DeviceSpec {
    /// The processor.
    pub const CPU: Self = Self { kind: DeviceKind::Cpu, index: None };

    /// Kind of the device.
    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// Whether tensors of the device live in ordinary memory.
    pub fn is_host(&self) -> bool {
        matches!(self.kind, DeviceKind::Cpu | DeviceKind::NdArray)
    }

    /// The same device, number `index` if it has none.
    pub fn or_index(&self, index: usize) -> Self {
        Self { kind: self.kind, index: self.index.or(Some(index)) }
    }

    /// Opens the device, without autodiff.
    ///
    /// Fails with the Cargo feature to enable when the backend was not compiled in, and with the
    /// backend's own message when the machine has no such device.
    pub fn open(&self) -> Result<Device, ModelError> {
        let device = self.backend()?;
        // GPU backends panic on first use of a device that does not exist.
        let probe = std::panic::AssertUnwindSafe(|| {
            let one = burn::tensor::Tensor::<1>::ones([1], &device);
            one.into_data().iter::<f32>().next()
        });
        if self.is_host() {
            return Ok(device);
        }
        match std::panic::catch_unwind(probe) {
            Ok(Some(1.0)) => Ok(device),
            Ok(_) => Err(self.error("the device computes wrong results")),
            Err(_) => Err(self.error("no such device on this machine, or its driver is missing")),
        }
    }

    fn error(&self, reason: impl Into<String>) -> ModelError {
        ModelError::Device { spec: self.to_string(), reason: reason.into() }
    }

    fn backend(&self) -> Result<Device, ModelError> {
        match self.kind {
            #[cfg(feature = "flex")]
            DeviceKind::Cpu => Ok(Device::flex()),
            #[cfg(all(feature = "ndarray", not(feature = "flex")))]
            DeviceKind::Cpu => Ok(ndarray()),
            #[cfg(feature = "ndarray")]
            DeviceKind::NdArray => Ok(ndarray()),
            #[cfg(feature = "wgpu")]
            DeviceKind::Wgpu => Ok(Device::wgpu(self.graphics())),
            #[cfg(feature = "vulkan")]
            DeviceKind::Vulkan => Ok(Device::vulkan(self.graphics())),
            #[cfg(feature = "metal")]
            DeviceKind::Metal => Ok(Device::metal(self.graphics())),
            #[cfg(feature = "cuda")]
            DeviceKind::Cuda => Ok(Device::cuda(self.index.unwrap_or(0))),
            #[cfg(feature = "rocm")]
            DeviceKind::Rocm => Ok(Device::rocm(self.index.unwrap_or(0))),
            #[allow(unreachable_patterns)]
            _ => {
                let feature = if self.kind == DeviceKind::Cpu { "flex" } else { self.kind.name() };
                Err(self.error(format!(
                    "not in this build: compile with `--features {feature}` (compiled in: {})",
                    compiled().join(", ")
                )))
            }
        }
    }

    #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
    fn graphics(&self) -> burn::tensor::DeviceKind {
        match self.index {
            Some(index) => burn::tensor::DeviceKind::DiscreteGpu(index),
            None => burn::tensor::DeviceKind::DefaultDevice,
        }
    }
}

#[cfg(feature = "ndarray")]
#[allow(deprecated)] // Offered for comparison with `flex` for as long as Burn ships it.
fn ndarray() -> Device {
    Device::ndarray()
}

/// Whether tensors of an open device live in ordinary memory.
pub fn is_host(device: &Device) -> bool {
    let kinds = [DeviceKind::Cpu, DeviceKind::NdArray].into_iter();
    let mut hosts = kinds.filter_map(|kind| DeviceSpec { kind, index: None }.backend().ok());
    hosts.any(|host| host == *device)
}

/// Device kinds of this build.
pub fn compiled() -> Vec<&'static str> {
    [
        ("cpu", cfg!(any(feature = "flex", feature = "ndarray"))),
        ("ndarray", cfg!(feature = "ndarray")),
        ("wgpu", cfg!(feature = "wgpu")),
        ("vulkan", cfg!(feature = "vulkan")),
        ("metal", cfg!(feature = "metal")),
        ("cuda", cfg!(feature = "cuda")),
        ("rocm", cfg!(feature = "rocm")),
    ]
    .into_iter()
    .filter_map(|(name, present)| present.then_some(name))
    .collect()
}

impl FromStr for DeviceSpec {
    type Err = ModelError;

    fn from_str(spec: &str) -> Result<Self, ModelError> {
        let failed = |reason: String| ModelError::Device { spec: spec.to_string(), reason };
        let (name, index) = match spec.split_once(':') {
            None => (spec, None),
            Some((name, index)) => {
                let index = index
                    .parse()
                    .map_err(|_| failed("the part after `:` must be a number".to_string()))?;
                (name, Some(index))
            }
        };
        let Some((_, kind)) = DeviceKind::ALL.into_iter().find(|(known, _)| *known == name) else {
            let names: Vec<&str> = DeviceKind::ALL.iter().map(|(name, _)| *name).collect();
            return Err(failed(format!("use one of {}, optionally with :N", names.join(", "))));
        };
        if matches!(kind, DeviceKind::Cpu | DeviceKind::NdArray) && index.is_some_and(|n| n > 0) {
            return Err(failed("there is one processor: use it without a number".to_string()));
        }
        Ok(Self { kind, index })
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        self.index.map_or(Ok(()), |index| write!(f, ":{index}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_round_trip() {
        for text in ["cpu", "ndarray", "wgpu", "vulkan:1", "metal", "cuda:7", "rocm:0"] {
            assert_eq!(text.parse::<DeviceSpec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn bad_specs_say_what_is_possible() {
        for (text, hint) in [("gpu", "cuda"), ("cuda:x", "number"), ("cpu:1", "one processor")] {
            let error = text.parse::<DeviceSpec>().unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
        }
    }

    #[test]
    fn the_processor_is_the_host_with_and_without_autodiff() {
        let device = DeviceSpec::CPU.open().unwrap();
        assert!(is_host(&device) && is_host(&device.autodiff()));
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_backend_that_is_not_compiled_in_names_its_feature() {
        let error = "cuda:0".parse::<DeviceSpec>().unwrap().open().unwrap_err().to_string();
        assert!(error.contains("--features cuda"), "{error}");
    }
}
