//! Random masks that depend on the sample and on nothing else.
//!
//! Dropout and patch masking draw from a counter-based hash of (sample seed, site, element), so a
//! sample gets the same masks whatever micro-batch, rank or device it is computed in, and again
//! when a block is recomputed. That is what makes accumulation, data parallelism and
//! checkpointing equal to one large batch.

mod on_device;

use burn::tensor::{Device, Int, Tensor, TensorData};
use rayon::prelude::*;

use crate::device::has_own_memory;

/// Positions are hashed with this stride, so that masks do not depend on trimmed padding.
const POSITION_STRIDE: u32 = 4096;

/// Random streams of the samples of one batch.
#[derive(Debug, Clone)]
pub struct SampleRng {
    seeds: Vec<u64>,
}

impl SampleRng {
    /// One seed per sample, in batch order.
    pub fn new(seeds: Vec<u64>) -> Self {
        Self { seeds }
    }

    /// Seeds of these samples of the global batch of one step.
    pub fn for_step(seed: u64, step: u64, samples: impl IntoIterator<Item = usize>) -> Self {
        let base = mix64(seed ^ mix64(step));
        let seed = |sample: usize| mix64(base ^ mix64(sample as u64));
        Self::new(samples.into_iter().map(seed).collect())
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.seeds.len()
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.seeds.is_empty()
    }

    /// Dropout factors `[batch, positions, width]`: 0 with this probability, else its inverse.
    pub fn hidden_mask(
        &self,
        site: u32,
        [positions, width]: [usize; 2],
        probability: f64,
        device: &Device,
    ) -> Tensor<3> {
        if has_own_memory(device) {
            let counters = on_device::hidden_counters([positions, width], device);
            return self.dropout(site, probability).factors(counters);
        }
        let values = self.mask(site, positions * width, probability, |element| {
            hidden_counter(width, element / width, element % width)
        });
        Tensor::from_data(TensorData::new(values, [self.len(), positions, width]), device)
    }

    /// Dropout factors `[batch, heads, queries, keys]` of attention probabilities.
    pub fn attention_mask(
        &self,
        site: u32,
        [heads, queries, keys]: [usize; 3],
        probability: f64,
        device: &Device,
    ) -> Tensor<4> {
        if has_own_memory(device) {
            let counters = on_device::attention_counters([heads, queries, keys], device);
            return self.dropout(site, probability).factors(counters);
        }
        let values = self.mask(site, heads * queries * keys, probability, |element| {
            let row = element / keys;
            attention_counter(row / queries, row % queries, element % keys)
        });
        Tensor::from_data(TensorData::new(values, [self.len(), heads, queries, keys]), device)
    }

    fn mask(
        &self,
        site: u32,
        per_sample: usize,
        probability: f64,
        counter: impl Fn(usize) -> u32 + Sync,
    ) -> Vec<f32> {
        let dropout = self.dropout(site, probability);
        let mut values = vec![0.0; self.len() * per_sample];
        values.par_chunks_mut(per_sample.max(1)).enumerate().for_each(|(sample, chunk)| {
            for (element, value) in chunk.iter_mut().enumerate() {
                *value = dropout.factor(sample, counter(element));
            }
        });
        values
    }

    /// The factors of a site, one at a time.
    pub(crate) fn dropout(&self, site: u32, probability: f64) -> Dropout {
        let key = |seed: &u64| mix64(seed ^ (u64::from(site) << 32 | 0xd0));
        Dropout {
            keys: self.seeds.iter().map(key).collect(),
            threshold: (probability * f64::from(u32::MAX)) as u32,
            kept: (1.0 / (1.0 - probability)) as f32,
        }
    }

    /// Patches kept by FLIP, in shuffled order: `[batch, kept]` indices into `0..patches`
    /// (arXiv 2212.00794).
    pub fn keep_patches(&self, patches: usize, ratio: f64, device: &Device) -> Tensor<2, Int> {
        let kept = kept_patches(patches, ratio);
        let mut indices = Vec::with_capacity(self.len() * kept);
        for seed in &self.seeds {
            let key = mix64(seed ^ 0xf11b);
            let mut noise: Vec<(u32, i32)> =
                (0..patches as u32).map(|patch| (hash32(key, patch), patch as i32)).collect();
            noise.sort_unstable();
            indices.extend(noise[..kept].iter().map(|(_, patch)| *patch));
        }
        Tensor::from_data(TensorData::new(indices, [self.len(), kept]), device)
    }
}

/// Dropout factors of a site.
#[derive(Debug, Clone)]
pub(crate) struct Dropout {
    /// One per sample.
    keys: Vec<u64>,
    threshold: u32,
    kept: f32,
}

impl Dropout {
    /// Factor of an element, by its counter.
    #[inline(always)]
    pub(crate) fn factor(&self, sample: usize, counter: u32) -> f32 {
        if hash32(self.keys[sample], counter) >= self.threshold { self.kept } else { 0.0 }
    }
}

/// Counter of an element of a hidden state `[positions, width]`.
#[inline(always)]
pub(crate) fn hidden_counter(width: usize, position: usize, column: usize) -> u32 {
    (position * width + column) as u32
}

/// Counter of an attention probability.
#[inline(always)]
pub(crate) fn attention_counter(head: usize, query: usize, key: usize) -> u32 {
    let row = (head as u32).wrapping_mul(POSITION_STRIDE).wrapping_add(query as u32);
    row.wrapping_mul(POSITION_STRIDE).wrapping_add(key as u32)
}

/// Number of patches that FLIP keeps: `int(patches * (1 - ratio))`.
pub fn kept_patches(patches: usize, ratio: f64) -> usize {
    (patches as f64 * (1.0 - ratio)) as usize
}

/// Finaliser of splitmix64.
fn mix64(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Of the rounds of [`hash32`].
const SHIFTS: [u32; 3] = [16, 15, 16];
const FACTORS: [u32; 2] = [0x7feb_352d, 0x846c_a68b];

/// Two keyed rounds of a 32-bit integer hash; vectorises.
#[inline(always)]
fn hash32(key: u64, counter: u32) -> u32 {
    let round = |value: u32| {
        let value = (value ^ (value >> SHIFTS[0])).wrapping_mul(FACTORS[0]);
        let value = (value ^ (value >> SHIFTS[1])).wrapping_mul(FACTORS[1]);
        value ^ (value >> SHIFTS[2])
    };
    round(round(counter ^ key as u32).wrapping_add((key >> 32) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().try_into_vec().unwrap()
    }

    #[test]
    fn masks_belong_to_the_sample() {
        let device = Device::default();
        let whole = SampleRng::for_step(7, 3, 0..4);
        let half = SampleRng::for_step(7, 3, 2..4);
        let (a, b) = (
            values(whole.hidden_mask(1, [5, 8], 0.3, &device)),
            values(half.hidden_mask(1, [5, 8], 0.3, &device)),
        );
        assert_eq!(a[80..], b[..]);
        let c = values(whole.hidden_mask(2, [5, 8], 0.3, &device));
        assert_ne!(a, c, "sites are independent");
    }

    #[test]
    fn trimming_padding_keeps_the_masks() {
        let device = Device::default();
        let rng = SampleRng::for_step(7, 3, 0..2);
        let long = rng.attention_mask(0, [2, 6, 6], 0.5, &device).slice([0..2, 0..2, 0..4, 0..4]);
        let short = rng.attention_mask(0, [2, 4, 4], 0.5, &device);
        assert_eq!(values(long), values(short));
    }

    #[test]
    fn rate_and_scale_are_right() {
        let rng = SampleRng::for_step(1, 1, 0..8);
        let mask = values(rng.hidden_mask(0, [64, 64], 0.1, &Device::default()));
        let dropped = mask.iter().filter(|value| **value == 0.0).count() as f64 / mask.len() as f64;
        assert!((dropped - 0.1).abs() < 0.01, "{dropped}");
        let mean = mask.iter().sum::<f32>() / mask.len() as f32;
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
    }

    #[test]
    fn kept_patches_are_distinct() {
        let rng = SampleRng::for_step(1, 1, 0..3);
        let keep: Vec<i32> =
            rng.keep_patches(49, 0.5, &Device::default()).into_data().iter::<i32>().collect();
        assert_eq!(keep.len(), 3 * 24);
        for row in keep.chunks(24) {
            let mut row = row.to_vec();
            row.sort_unstable();
            row.dedup();
            assert_eq!(row.len(), 24);
            assert!(row.iter().all(|patch| (0..49).contains(patch)));
        }
    }
}
