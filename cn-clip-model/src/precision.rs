//! Numbers that a model computes with.
//!
//! In a reduced precision matrix products, convolutions and what lies between them are in 16 bits,
//! norms, softmax and the loss in 32. A copy of the model in that precision computes; the model
//! itself stays in 32 bits and takes the gradients (arXiv 1710.03740).

use std::{fmt, str::FromStr};

use burn::{
    module::{Module, ModuleMapper, Param},
    nn::LayerNorm,
    tensor::{DType, Device, FloatDType, GradientCheckpointingStrategy, Tensor},
};

use crate::{
    Clip, ModelError,
    host::{self, Numbers},
};

/// Numbers of matrix products and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    Fp32,
    /// 16-bit floats with the range of 32-bit ones.
    Bf16,
    /// 16-bit floats of the IEEE; training in them scales the loss.
    Fp16,
    /// Whole numbers of 13 bits in the linear layers of transformers, 32-bit floats in the rest. For
    /// evaluation on processors that multiply them faster than floats: x86-64 with AVX2.
    Int16,
}

impl Precision {
    const ALL: [(&'static str, Self); 4] =
        [("fp32", Self::Fp32), ("bf16", Self::Bf16), ("fp16", Self::Fp16), ("int16", Self::Int16)];

    /// Burn's type of tensors.
    pub fn dtype(self) -> FloatDType {
        match self {
            Self::Fp32 | Self::Int16 => FloatDType::F32,
            Self::Bf16 => FloatDType::BF16,
            Self::Fp16 => FloatDType::F16,
        }
    }

    /// Whether a device can compute in it.
    pub fn is_supported(self, device: &Device) -> bool {
        match self {
            Self::Int16 => host::has_integers(device),
            _ => device.supports_dtype(self.dtype()),
        }
    }

    /// Whether models can be trained in it, and not only evaluated.
    pub fn trains(self) -> bool {
        self != Self::Int16
    }

    /// Those a device can compute in.
    pub fn supported(device: &Device) -> Vec<Self> {
        let all = Self::ALL.into_iter().map(|(_, precision)| precision);
        all.filter(|precision| precision.is_supported(device)).collect()
    }

    /// Names of those a device can compute in.
    pub fn supported_names(device: &Device) -> Vec<String> {
        Self::supported(device).iter().map(Self::to_string).collect()
    }

    /// The fastest that is safe for training on a device: on a graphics processor bf16 where it has
    /// it, else fp16; on an ordinary processor, where neither is faster, fp32.
    pub fn automatic(device: &Device, host: bool) -> Self {
        let faster = [Self::Bf16, Self::Fp16];
        let found = faster.into_iter().find(|precision| !host && precision.is_supported(device));
        found.unwrap_or(Self::Fp32)
    }

    /// A copy of a model that computes in this precision, with the same parameter identities.
    ///
    /// On an autodiff device its backward pass computes cheap operations, such as activations,
    /// again instead of keeping their results (see [`track`]).
    pub fn copy(self, model: &Clip) -> Clip {
        let copy = model.clone().map(&mut Caster { dtype: self.dtype(), kept: 0 });
        copy.with_numbers(match self {
            Self::Int16 => Numbers::Integers,
            _ => Numbers::Floats,
        })
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(_, precision)| precision == self);
        f.write_str(name.map_or("", |(name, _)| name))
    }
}

impl FromStr for Precision {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, ModelError> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, precision)| *precision).ok_or_else(|| ModelError::Config {
            name: name.to_string(),
            reason: "a precision is one of fp32, bf16, fp16 and int16".to_string(),
        })
    }
}

struct Caster {
    dtype: FloatDType,
    /// Depth inside modules that stay in 32 bits.
    kept: usize,
}

impl Caster {
    fn keeps(container: &str) -> bool {
        matches!(container, "Struct:LayerNorm" | "Struct:BatchNorm2d")
    }
}

impl ModuleMapper for Caster {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.kept += usize::from(Self::keeps(container) || name == "logit_scale");
    }

    fn exit_module(&mut self, name: &str, container: &str) {
        self.kept -= usize::from(Self::keeps(container) || name == "logit_scale");
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let dtype = if self.kept > 0 { FloatDType::F32 } else { self.dtype };
        let cast = |value: Tensor<D>| match value.dtype() == DType::from(dtype) {
            true => value,
            false => value.cast(dtype),
        };
        let (id, value, mapper) = param.consume();
        let value = match (value.is_autodiff(), value.is_require_grad()) {
            (true, true) => track(cast(value.inner())).require_grad(),
            (true, false) => track(cast(value.inner())),
            (false, _) => cast(value),
        };
        Param::from_mapped_value(id, value, mapper)
    }
}

/// A tensor without a graph on the autodiff device whose backward pass computes memory-bound
/// operations again. That is a fifth less memory and, as large new buffers cost time too, no
/// slower. Tensors of one operation must agree on it.
pub fn track<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_inner(x)
        .with_gradient_checkpointing_strategy(GradientCheckpointingStrategy::Balanced)
}

/// A tensor as constant beside `other`, with a graph where that has one.
pub(crate) fn beside<const D: usize, const E: usize>(x: Tensor<D>, other: &Tensor<E>) -> Tensor<D> {
    match other.gradient_checkpointing_strategy() {
        None => without_graph(x),
        Some(strategy) => {
            Tensor::from_inner(without_graph(x)).with_gradient_checkpointing_strategy(strategy)
        }
    }
}

/// The values of a tensor.
pub fn without_graph<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if x.is_autodiff() { x.inner() } else { x }
}

/// A layer norm, in at least 32 bits whatever its input is.
pub(crate) fn layer_norm<const D: usize>(norm: &LayerNorm, x: Tensor<D>) -> Tensor<D> {
    in_fp32(x, |x| norm.forward(x))
}

/// What `compute` makes of `x` in at least 32 bits, in the type of `x`.
pub(crate) fn in_fp32<const D: usize>(
    x: Tensor<D>,
    compute: impl FnOnce(Tensor<D>) -> Tensor<D>,
) -> Tensor<D> {
    match x.dtype() {
        DType::F32 | DType::F64 => compute(x),
        dtype => compute(x.cast(FloatDType::F32)).cast(FloatDType::from(dtype)),
    }
}

/// `x` in the type of `other`.
pub fn as_type_of<const D: usize, const E: usize>(x: Tensor<D>, other: &Tensor<E>) -> Tensor<D> {
    match x.dtype() == other.dtype() {
        true => x,
        false => x.cast(FloatDType::from(other.dtype())),
    }
}

/// Features in 32 bits.
pub fn to_fp32<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::F32 => x,
        _ => x.cast(FloatDType::F32),
    }
}
