//! Batch norm of rows of channels.

use rayon::prelude::*;

use super::{kernel::vectorized, norm::each_row};

/// Rows that are summed at a time.
const ROWS: usize = 256;

/// Parameters of a batch norm.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChannelNorm<'a> {
    pub scale: &'a [f32],
    pub shift: &'a [f32],
}

/// Of each channel.
#[derive(Debug, Clone)]
pub(super) struct Moments {
    pub mean: Vec<f32>,
    /// Biased.
    pub variance: Vec<f32>,
    /// Inverse of the standard deviation.
    inverse: Vec<f32>,
}

impl Moments {
    /// Those given.
    pub fn new(mean: Vec<f32>, variance: Vec<f32>, epsilon: f64) -> Self {
        let inverse = |variance: &f32| (1.0 / (f64::from(*variance) + epsilon).sqrt()) as f32;
        Self { inverse: variance.iter().map(inverse).collect(), mean, variance }
    }

    /// Those of `values`.
    pub fn of(values: &[f32], channels: usize, epsilon: f64) -> Self {
        let count = (values.len() / channels.max(1)).max(1) as f64;
        let mean = |sums: Vec<f64>| sums.into_iter().map(|sum| (sum / count) as f32).collect();
        let means: Vec<f32> = mean(sums(
            values,
            channels,
            channels,
            #[inline(always)]
            |_, row, sums| {
                for (sum, x) in sums.iter_mut().zip(row) {
                    *sum += f64::from(*x);
                }
            },
        ));
        let variance = mean(sums(
            values,
            channels,
            channels,
            #[inline(always)]
            |_, row, sums| {
                for ((sum, x), mean) in sums.iter_mut().zip(row).zip(&means) {
                    let x = x - mean;
                    *sum += f64::from(x * x);
                }
            },
        ));
        Self::new(means, variance, epsilon)
    }
}

impl ChannelNorm<'_> {
    /// Shows `set` each normalised value of a row beside that of `out`.
    #[inline(always)]
    pub fn each(
        &self,
        row: &[f32],
        moments: &Moments,
        out: &mut [f32],
        set: impl Fn(&mut f32, f32),
    ) {
        let moments = moments.mean.iter().zip(&moments.inverse);
        let parameters = self.scale.iter().zip(self.shift);
        for (((out, x), (mean, inverse)), (scale, shift)) in
            out.iter_mut().zip(row).zip(moments).zip(parameters)
        {
            set(out, ((x - mean) * inverse).mul_add(*scale, *shift));
        }
    }

    /// All rows, normalised, zero instead of what is below.
    pub fn relu(&self, values: &[f32], moments: &Moments) -> Vec<f32> {
        let channels = self.scale.len();
        let mut out = vec![0.0; values.len()];
        each_row(
            &mut out,
            channels,
            #[inline(always)]
            |row, out| {
                self.each(
                    &values[row * channels..][..channels],
                    moments,
                    out,
                    #[inline(always)]
                    |out, value| *out = value.max(0.0),
                );
            },
        );
        out
    }

    /// Takes the gradient of [`relu`](Self::relu) back to that of the normalised rows.
    pub fn relu_backward(&self, values: &[f32], moments: &Moments, gradient: &mut [f32]) {
        let channels = self.scale.len();
        each_row(
            gradient,
            channels,
            #[inline(always)]
            |row, gradient| {
                self.each(
                    &values[row * channels..][..channels],
                    moments,
                    gradient,
                    #[inline(always)]
                    |gradient, value| *gradient = if value > 0.0 { *gradient } else { 0.0 },
                );
            },
        );
    }

    /// Gradient of `values`, whose own moments these are, in place of that of the normalised rows;
    /// returns those of scale and shift.
    pub fn backward(
        &self,
        values: &[f32],
        moments: &Moments,
        gradient: &mut [f32],
    ) -> [Vec<f32>; 2] {
        let channels = self.scale.len();
        let count = (values.len() / channels.max(1)).max(1) as f64;
        let totals = sums(
            gradient,
            channels,
            2 * channels,
            #[inline(always)]
            |row, gradient, sums| {
                let values = &values[row * channels..][..channels];
                let (shift, scale) = sums.split_at_mut(channels);
                for (sum, g) in shift.iter_mut().zip(gradient) {
                    *sum += f64::from(*g);
                }
                let moments = moments.mean.iter().zip(&moments.inverse);
                for (((sum, g), x), (mean, inverse)) in
                    scale.iter_mut().zip(gradient).zip(values).zip(moments)
                {
                    *sum += f64::from(g * ((x - mean) * inverse));
                }
            },
        );
        let mean: Vec<f32> = totals.iter().map(|total| (total / count) as f32).collect();
        let (by_shift, by_scale) = mean.split_at(channels);
        each_row(
            gradient,
            channels,
            #[inline(always)]
            |row, gradient| {
                let values = &values[row * channels..][..channels];
                let moments = moments.mean.iter().zip(&moments.inverse);
                let parts = moments.zip(by_shift.iter().zip(by_scale)).zip(self.scale);
                for ((g, x), (((mean, inverse), (by_shift, by_scale)), scale)) in
                    gradient.iter_mut().zip(values).zip(parts)
                {
                    let normalised = (x - mean) * inverse;
                    *g = (*g - by_shift - normalised * by_scale) * (scale * inverse);
                }
            },
        );
        let totals: Vec<f32> = totals.into_iter().map(|total| total as f32).collect();
        let (shift, scale) = totals.split_at(channels);
        [scale.to_vec(), shift.to_vec()]
    }
}

/// Sums over rows, `width` of them; `add` adds a row. The same however many threads there are.
fn sums(
    values: &[f32],
    channels: usize,
    width: usize,
    add: impl Fn(usize, &[f32], &mut [f64]) + Sync,
) -> Vec<f64> {
    let channels = channels.max(1);
    let parts: Vec<Vec<f64>> = values
        .par_chunks(ROWS * channels)
        .enumerate()
        .map(|(index, rows)| {
            let mut sums = vec![0.0; width];
            vectorized(
                #[inline(always)]
                || {
                    for (row, values) in rows.chunks_exact(channels).enumerate() {
                        add(index * ROWS + row, values, &mut sums);
                    }
                },
            );
            sums
        })
        .collect();
    let mut total = vec![0.0; width];
    for part in parts {
        total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
    }
    total
}
