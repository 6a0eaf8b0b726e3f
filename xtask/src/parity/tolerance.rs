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

/// The largest error allowed. On fp32 it is that of the worst tensor, by its largest value; on 16
/// bits that of all tensors together, by Euclidean norms.
///
/// | | fp32 | fp32 on CUDA | fp16, int16 | bf16 |
/// |---|---|---|---|---|
/// | features, layers, losses | 1e-4 | 5e-3 | 5e-3 | 3e-2 |
/// | gradients | 1e-3 | 2e-2 | 2e-2 | 1e-1 |
/// | rough gradients, not on `cpu` | 2e-3 | 2e-2 | 2e-2 | 1e-1 |
/// | parameters after AdamW | 1e-4 | 1e-3 | - | - |
/// | rankings, masks | 0 | 0 | 0 | 0 |
///
/// CUDA multiplies 32-bit matrices in TF32, with 10 bits of mantissa.
pub fn tolerance(kind: Kind, precision: Precision, device: DeviceKind) -> f32 {
    let tf32 = device == DeviceKind::Cuda;
    match (kind, precision) {
        (Kind::Exact, _) => 0.0,
        (Kind::Forward, Precision::Fp32) if tf32 => 5e-3,
        (Kind::Forward, Precision::Fp32) => 1e-4,
        (Kind::Forward, Precision::Fp16 | Precision::Int16) => 5e-3,
        (Kind::Forward, Precision::Bf16) => 3e-2,
        (Kind::RoughGradient, Precision::Fp32) if !tf32 && device != DeviceKind::Cpu => 2e-3,
        (Kind::RoughGradient, _) => tolerance(Kind::Gradient, precision, device),
        (Kind::Gradient, Precision::Fp32) if tf32 => 2e-2,
        (Kind::Gradient, Precision::Fp32) => 1e-3,
        (Kind::Gradient, Precision::Fp16 | Precision::Int16) => 2e-2,
        (Kind::Gradient, Precision::Bf16) => 1e-1,
        (Kind::Parameters, _) if tf32 => 1e-3,
        (Kind::Parameters, _) => 1e-4,
    }
}
