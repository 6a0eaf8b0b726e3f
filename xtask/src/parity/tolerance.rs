//! How far results may be from the recordings.

use cn_clip_model::{Precision, device::DeviceKind};

/// Kind of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Features, outputs of layers and losses.
    Forward,
    /// Gradients.
    Gradient,
    /// Gradients that make much of rounding: weights off by theirs move those of the recorded ResNet
    /// by up to 7e-4 on one and the same device, those of the ViT by 1e-5.
    RoughGradient,
    /// Parameters after steps of the optimizer.
    Parameters,
    /// Rankings and random masks, which are the same on every device.
    Exact,
}

/// Whether matrices of 32-bit floats are multiplied as such. On the tensor cores of CUDA they are in
/// TF32, whose mantissa is that of fp16.
pub fn multiplies_fp32(precision: Precision, device: DeviceKind) -> bool {
    precision == Precision::Fp32 && device != DeviceKind::Cuda
}

/// The largest error allowed. On fp32 it is that of the worst tensor, by its largest value; on fewer
/// bits that of all tensors together, by Euclidean norms.
///
/// | | fp32 | TF32, fp16, int16 | bf16 |
/// |---|---|---|---|
/// | features, layers, losses | 1e-4 | 5e-3 | 3e-2 |
/// | gradients | 1e-3 | 2e-2 | 1e-1 |
/// | rough gradients, not on `cpu` | 2e-3 | 2e-2 | 1e-1 |
/// | parameters after AdamW | 1e-4 | 1e-3 | - |
/// | rankings, masks | 0 | 0 | 0 |
pub fn tolerance(kind: Kind, precision: Precision, device: DeviceKind) -> f32 {
    let whole = multiplies_fp32(precision, device);
    match (kind, precision) {
        (Kind::Exact, _) => 0.0,
        (Kind::Forward, _) if whole => 1e-4,
        (Kind::Forward, Precision::Bf16) => 3e-2,
        (Kind::Forward, _) => 5e-3,
        (Kind::RoughGradient, _) if whole && device != DeviceKind::Cpu => 2e-3,
        (Kind::RoughGradient, _) => tolerance(Kind::Gradient, precision, device),
        (Kind::Gradient, _) if whole => 1e-3,
        (Kind::Gradient, Precision::Bf16) => 1e-1,
        (Kind::Gradient, _) => 2e-2,
        (Kind::Parameters, _) if whole => 1e-4,
        (Kind::Parameters, _) => 1e-3,
    }
}
