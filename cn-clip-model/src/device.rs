//! Device strings: `cpu`, `ndarray`, `cuda:0`, `wgpu`, `vulkan:1`, ….
//!
//! The only place of the workspace that names Burn backends.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    str::FromStr,
};

use burn::tensor::Device;

use crate::ModelError;

const MISSING: &str = "no such device on this machine, or its driver is missing";
/// Kernels with an exponential or error function take it from there.
const TOOLKIT: &str = "; nvvm/libdevice/libdevice.10.bc of the CUDA toolkit must be below CUDA_PATH \
                       or /usr/local/cuda";

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
///
/// Without a number it is the default device of its kind: the first one of CUDA and ROCm, what the
/// driver prefers (a graphics card before a software device) of Wgpu, Vulkan and Metal, where
/// `CUBECL_WGPU_DEFAULT_DEVICE` overrides it. With a number it is that one of
/// [`available`](Self::available), from 0. For CUDA and ROCm this is the number that the driver
/// gives; Vulkan and Metal list discrete cards first, then integrated, virtual and software ones;
/// Wgpu lists in the order of the graphics API.
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

    /// The devices of this build that this machine has, each with its number.
    pub fn available() -> Vec<Self> {
        let kinds = compiled().into_iter().filter_map(|name| name.parse::<Self>().ok());
        let devices = |spec: Self| match spec.is_host() {
            true => vec![spec],
            false => {
                // A backend without its driver may panic.
                let found = catch_unwind(AssertUnwindSafe(|| spec.enumerate().len()));
                (0..found.unwrap_or(0)).map(|index| spec.or_index(index)).collect()
            }
        };
        kinds.flat_map(devices).collect()
    }

    /// Opens the device, without autodiff.
    ///
    /// Fails with the Cargo feature to enable when the backend was not compiled in, and with what
    /// the machine has when it has no such device.
    pub fn open(&self) -> Result<Device, ModelError> {
        if self.is_host() {
            return self.backend();
        }
        // GPU backends panic on first use of a device that does not exist.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let device = self.backend()?;
            let one = burn::tensor::Tensor::<1>::zeros([1], &device).exp();
            match one.into_data().iter::<f32>().next() {
                Some(1.0) => Ok(device),
                _ => Err(self.error("the device computes wrong results")),
            }
        }));
        opened.unwrap_or_else(|_| Err(self.missing()))
    }

    fn missing(&self) -> ModelError {
        let toolkit = if self.kind == DeviceKind::Cuda { TOOLKIT } else { "" };
        self.error(format!("{MISSING}{toolkit}"))
    }

    fn error(&self, reason: impl Into<String>) -> ModelError {
        ModelError::Device { spec: self.to_string(), reason: reason.into() }
    }

    fn backend(&self) -> Result<Device, ModelError> {
        let name = self.kind.name();
        if let Some(index) = self.index.filter(|_| !self.is_host() && compiled().contains(&name)) {
            let mut devices = self.enumerate();
            return match devices.len() {
                0 => Err(self.missing()),
                count if index < count => Ok(devices.swap_remove(index)),
                count => Err(self.error(format!("this machine has {name}:0 to :{}", count - 1))),
            };
        }
        match self.kind {
            #[cfg(feature = "flex")]
            DeviceKind::Cpu => Ok(Device::flex()),
            #[cfg(all(feature = "ndarray", not(feature = "flex")))]
            DeviceKind::Cpu => Ok(ndarray()),
            #[cfg(feature = "ndarray")]
            DeviceKind::NdArray => Ok(ndarray()),
            #[cfg(feature = "untuned-wgpu")]
            DeviceKind::Wgpu => Ok(Device::wgpu(Default::default())),
            #[cfg(feature = "vulkan")]
            DeviceKind::Vulkan => Ok(Device::vulkan(Default::default())),
            #[cfg(feature = "metal")]
            DeviceKind::Metal => Ok(Device::metal(Default::default())),
            #[cfg(feature = "cuda")]
            DeviceKind::Cuda => Ok(Device::cuda(0)),
            #[cfg(feature = "rocm")]
            DeviceKind::Rocm => Ok(Device::rocm(0)),
            #[allow(unreachable_patterns)]
            _ => {
                let feature = if self.kind == DeviceKind::Cpu { "flex" } else { name };
                Err(self.error(format!(
                    "not in this build: compile with `--features {feature}` (compiled in: {})",
                    compiled().join(", ")
                )))
            }
        }
    }

    /// The devices of this kind, in the order of their numbers.
    fn enumerate(&self) -> Vec<Device> {
        #[allow(unused_imports)]
        use burn::tensor::DeviceType;
        match self.kind {
            #[cfg(feature = "untuned-wgpu")]
            DeviceKind::Wgpu => Device::enumerate(DeviceType::Wgpu).into_vec(),
            #[cfg(feature = "vulkan")]
            DeviceKind::Vulkan => Device::enumerate(DeviceType::Vulkan).into_vec(),
            #[cfg(feature = "metal")]
            DeviceKind::Metal => Device::enumerate(DeviceType::Metal).into_vec(),
            #[cfg(feature = "cuda")]
            DeviceKind::Cuda => Device::enumerate(DeviceType::Cuda).into_vec(),
            #[cfg(feature = "rocm")]
            DeviceKind::Rocm => Device::enumerate(DeviceType::Rocm).into_vec(),
            _ => Vec::new(),
        }
    }
}

/// Name of a device and its memory in bytes, as far as its backend tells them. Opens the device.
pub fn identity(device: &Device) -> (Option<String>, Option<u64>) {
    #[cfg(feature = "own-memory")]
    if let burn_dispatch::DispatchDevice::Cube(cube) = device.as_dispatch() {
        let memory = cube.client().properties().memory.max_memory();
        return (device.identity().map(|identity| identity.name), memory);
    }
    let _ = device;
    (None, None)
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

/// Whether an open device has memory of its own; false at once, and what hangs on it left out, in
/// builds of the library without such a device.
pub(crate) fn has_own_memory(device: &Device) -> bool {
    cfg!(feature = "own-memory") && !is_host(device)
}

/// Device kinds of this build.
pub fn compiled() -> Vec<&'static str> {
    [
        ("cpu", cfg!(any(feature = "flex", feature = "ndarray"))),
        ("ndarray", cfg!(feature = "ndarray")),
        ("wgpu", cfg!(feature = "untuned-wgpu")),
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
    fn what_is_available_opens() {
        let available = DeviceSpec::available();
        assert!(available.contains(&DeviceSpec::CPU));
        for spec in available {
            let device = spec.open().unwrap();
            assert!(spec.is_host() || identity(&device).0.is_some(), "{spec}");
        }
    }

    #[test]
    #[cfg(feature = "vulkan")]
    fn a_number_that_no_device_has_says_which_there_are() {
        let error = "vulkan:99".parse::<DeviceSpec>().unwrap().open().unwrap_err().to_string();
        assert!(error.contains("this machine has vulkan:0") || error.contains(MISSING), "{error}");
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_backend_that_is_not_compiled_in_names_its_feature() {
        let error = "cuda:0".parse::<DeviceSpec>().unwrap().open().unwrap_err().to_string();
        assert!(error.contains("--features cuda"), "{error}");
    }
}
