//! Dropout factors computed on the device that needs them. Those of a step are gigabytes for large
//! batches: on devices with memory of their own the transfer would take longer than the step.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::{Dropout, FACTORS, POSITION_STRIDE, SHIFTS};
use crate::workarounds::count;

/// Numbers of elements and what is made of them are of 32 bits without sign.
type Words<const D: usize> = Tensor<D, Int>;

/// Counters of the elements of hidden states, `[1, positions, width]`.
pub(super) fn hidden_counters([positions, width]: [usize; 2], device: &Device) -> Words<3> {
    count(positions * width, device).reshape([1, positions, width])
}

/// Counters of attention probabilities, `[1, heads, queries, keys]`.
pub(super) fn attention_counters([heads, queries, keys]: [usize; 3], device: &Device) -> Words<4> {
    let heads = count(heads, device).reshape([1, heads, 1, 1]);
    let queries = count(queries, device).reshape([1, 1, queries, 1]);
    let rows = heads.mul_scalar(POSITION_STRIDE) + queries;
    rows.mul_scalar(POSITION_STRIDE) + count(keys, device).reshape([1, 1, 1, keys])
}

impl Dropout {
    /// Factors of all samples, `[batch, …]`, by the counters of one, `[1, …]`.
    pub(super) fn factors<const D: usize>(&self, counters: Words<D>) -> Tensor<D> {
        let device = counters.device();
        let words = |shift: u32| -> Words<D> {
            let words: Vec<u32> = self.keys.iter().map(|key| (key >> shift) as u32).collect();
            let mut shape = [1; D];
            shape[0] = words.len();
            Tensor::from_data(TensorData::new(words, shape), (&device, DType::U32))
        };
        let hash = round(round(counters.bitwise_xor(words(0))) + words(32));
        hash.greater_equal_scalar(self.threshold).float().mul_scalar(self.kept)
    }
}

/// The same as of [`hash32`](super::hash32).
fn round<const D: usize>(value: Words<D>) -> Words<D> {
    let mixed = |value: Words<D>, shift: u32| {
        value.clone().bitwise_xor(value.bitwise_right_shift_scalar(shift))
    };
    let value = mixed(value, SHIFTS[0]).mul_scalar(FACTORS[0]);
    let value = mixed(value, SHIFTS[1]).mul_scalar(FACTORS[1]);
    mixed(value, SHIFTS[2])
}
