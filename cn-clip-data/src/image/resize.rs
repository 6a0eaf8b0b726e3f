//! Pillow's separable bicubic resize (a = -0.5, the support widened when shrinking): horizontal
//! pass first unless the picture loses far more height than width, results rounded to the sample
//! type between the passes. The order was found by trial of Pillow 13.

use pulp::{Arch, NullaryFnOnce};

/// Fraction bits of the integer weights: 32 minus the 8 of a sample and 2 for overshoot.
const PRECISION_BITS: u32 = 32 - 8 - 2;
/// Rows that the horizontal pass works on together.
const BAND: usize = 16;
/// Samples of a row that the vertical pass works on together.
const CHUNK: usize = 64;

/// Width and height.
type Size = (usize, usize);

/// The weights of every output position of one axis.
struct Weights<T> {
    /// First input position, and the range of its weights in `values`.
    spans: Vec<(usize, std::ops::Range<usize>)>,
    values: Vec<T>,
}

impl<T> Weights<T> {
    fn iter(&self) -> impl Iterator<Item = (usize, &[T])> {
        self.spans.iter().map(|(first, range)| (*first, &self.values[range.clone()]))
    }

    fn inputs_of(&self, output: usize) -> std::ops::Range<usize> {
        let (first, range) = &self.spans[output];
        *first..first + range.len()
    }
}

impl Weights<f64> {
    fn bicubic(from: usize, to: usize) -> Self {
        let scale = from as f64 / to as f64;
        let filter_scale = scale.max(1.0);
        let support = 2.0 * filter_scale;
        let mut weights = Self { spans: Vec::with_capacity(to), values: Vec::new() };
        for output in 0..to {
            let center = (output as f64 + 0.5) * scale;
            let first = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            let start = weights.values.len();
            weights.values.extend(
                (first..end)
                    .map(|input| cubic((input as f64 - center + 0.5) * (1.0 / filter_scale))),
            );
            let sum: f64 = weights.values[start..].iter().sum();
            if sum != 0.0 {
                weights.values[start..].iter_mut().for_each(|value| *value /= sum);
            }
            weights.spans.push((first, start..weights.values.len()));
        }
        weights
    }

    fn quantise(self) -> Weights<i32> {
        let one = f64::from(1 << PRECISION_BITS);
        let quantise = |value: f64| (value * one + 0.5f64.copysign(value)) as i32;
        Weights { spans: self.spans, values: self.values.into_iter().map(quantise).collect() }
    }
}

/// Cubic convolution kernel with a = -0.5.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Bicubic resize of interleaved 8-bit samples of 1 to 4 channels.
pub(super) fn resample_u8(samples: &[u8], channels: usize, from: Size, to: Size) -> Vec<u8> {
    match channels {
        1 => resample_channels::<1>(samples, from, to),
        2 => resample_channels::<2>(samples, from, to),
        3 => resample_channels::<3>(samples, from, to),
        _ => resample_channels::<4>(samples, from, to),
    }
}

/// Whether Pillow does the vertical pass first.
fn vertical_first(from: Size, to: Size) -> bool {
    let lost = |from: usize, to: usize| from as i64 - to as i64;
    from.0 != to.0 && from.1 > to.1 && lost(from.1, to.1) > 2 * lost(from.0, to.0)
}

fn resample_channels<const C: usize>(samples: &[u8], from: Size, to: Size) -> Vec<u8> {
    if vertical_first(from, to) {
        let between = (from.0, to.1);
        return resample_channels::<C>(
            &resample_channels::<C>(samples, from, between),
            between,
            to,
        );
    }
    let arch = Arch::new();
    let vertical = (from.1 != to.1).then(|| Weights::bicubic(from.1, to.1).quantise());
    let rows = match &vertical {
        Some(weights) => weights.inputs_of(0).start..weights.inputs_of(to.1 - 1).end,
        None => 0..from.1,
    };
    let used = &samples[rows.start * from.0 * C..rows.end * from.0 * C];
    let narrowed = (from.0 != to.0).then(|| {
        let weights = Weights::bicubic(from.0, to.0).quantise();
        arch.dispatch(Horizontal::<C> { samples: used, width: from.0, weights: &weights })
    });
    let used = narrowed.as_deref().unwrap_or(used);
    match &vertical {
        Some(weights) => arch.dispatch(Vertical {
            samples: used,
            stride: to.0 * C,
            first_row: rows.start,
            weights,
        }),
        None => used.to_vec(),
    }
}

/// Resizes rows of `width` pixels. Bands of rows are transposed so that one weight meets a whole
/// vector of samples.
struct Horizontal<'a, const C: usize> {
    samples: &'a [u8],
    width: usize,
    weights: &'a Weights<i32>,
}

impl<const C: usize> NullaryFnOnce for Horizontal<'_, C> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn call(self) -> Vec<u8> {
        let stride = self.width * C;
        let out_stride = self.weights.spans.len() * C;
        let mut out = vec![0; self.samples.len() / stride * out_stride];
        let mut columns = vec![[0u8; BAND]; stride];
        let bands = self.samples.chunks(BAND * stride);
        for (band, out) in bands.zip(out.chunks_mut(BAND * out_stride)) {
            for (lane, row) in band.chunks_exact(stride).enumerate() {
                for (column, &sample) in columns.iter_mut().zip(row) {
                    column[lane] = sample;
                }
            }
            for (position, (first, weights)) in self.weights.iter().enumerate() {
                for channel in 0..C {
                    let mut sums = [1 << (PRECISION_BITS - 1); BAND];
                    let window = columns[first * C + channel..].iter().step_by(C);
                    for (column, &weight) in window.zip(weights) {
                        add_weighted(&mut sums, column, weight);
                    }
                    let bytes = sums.map(round);
                    for (row, &byte) in out.chunks_exact_mut(out_stride).zip(&bytes) {
                        row[position * C + channel] = byte;
                    }
                }
            }
        }
        out
    }
}

/// Resizes columns of rows of `stride` samples; row 0 of `samples` is input row `first_row`.
struct Vertical<'a> {
    samples: &'a [u8],
    stride: usize,
    first_row: usize,
    weights: &'a Weights<i32>,
}

impl NullaryFnOnce for Vertical<'_> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn call(self) -> Vec<u8> {
        let mut out = vec![0; self.weights.spans.len() * self.stride];
        for (out, (first, weights)) in out.chunks_exact_mut(self.stride).zip(self.weights.iter()) {
            let rows = &self.samples[(first - self.first_row) * self.stride..];
            for (chunk, out) in out.chunks_mut(CHUNK).enumerate() {
                let mut sums = [1 << (PRECISION_BITS - 1); CHUNK];
                for (row, &weight) in rows.chunks_exact(self.stride).zip(weights) {
                    let row = &row[chunk * CHUNK..];
                    match row.first_chunk::<CHUNK>() {
                        Some(row) => add_weighted(&mut sums, row, weight),
                        None => add_weighted(&mut sums, row, weight),
                    }
                }
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = round(sum);
                }
            }
        }
        out
    }
}

#[inline(always)]
fn add_weighted(sums: &mut [i32], samples: &[u8], weight: i32) {
    for (sum, &sample) in sums.iter_mut().zip(samples) {
        *sum += weight * i32::from(sample);
    }
}

#[inline(always)]
fn round(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Bicubic resize of 16-bit gray samples, in double precision as Pillow does it.
pub(super) fn resample_u16(samples: &[u16], from: Size, to: Size) -> Vec<u16> {
    if vertical_first(from, to) {
        let between = (from.0, to.1);
        return resample_u16(&resample_u16(samples, from, between), between, to);
    }
    let round = |sum: f64| (sum + 0.5f64.copysign(sum)) as i64;
    let clip = |sum: f64| round(sum).clamp(0, 65_535) as u16;
    let mut narrowed = samples.to_vec();
    if from.0 != to.0 {
        let weights = Weights::bicubic(from.0, to.0);
        narrowed.clear();
        for row in samples.chunks_exact(from.0) {
            narrowed.extend(weights.iter().map(|(first, weights)| {
                let window = row[first..].iter().zip(weights);
                clip(window.map(|(&sample, weight)| f64::from(sample) * weight).sum())
            }));
        }
    }
    if from.1 == to.1 {
        return narrowed;
    }
    let weights = Weights::bicubic(from.1, to.1);
    let mut out = Vec::with_capacity(to.0 * to.1);
    for (first, weights) in weights.iter() {
        out.extend((0..to.0).map(|column| {
            let window = narrowed[first * to.0 + column..].iter().step_by(to.0).zip(weights);
            clip(window.map(|(&sample, weight)| f64::from(sample) * weight).sum())
        }));
    }
    out
}

/// Nearest-pixel resize of interleaved samples.
pub(super) fn nearest_u8(samples: &[u8], channels: usize, from: Size, to: Size) -> Vec<u8> {
    let columns = nearest_positions(from.0, to.0);
    let stride = from.0 * channels;
    let mut out = Vec::with_capacity(to.0 * to.1 * channels);
    for row in nearest_positions(from.1, to.1) {
        let row = &samples[row * stride..(row + 1) * stride];
        for &column in &columns {
            out.extend_from_slice(&row[column * channels..(column + 1) * channels]);
        }
    }
    out
}

/// Input position of every output position; summed up step by step, as Pillow does.
fn nearest_positions(from: usize, to: usize) -> Vec<usize> {
    let scale = from as f64 / to as f64;
    let centres = std::iter::successors(Some(scale * 0.5), |centre| Some(centre + scale));
    centres.take(to).map(|centre| (centre as usize).min(from - 1)).collect()
}
