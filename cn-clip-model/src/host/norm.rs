//! Layer norm of training: its rows are computed again wherever they are needed, from their
//! moments.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    kernel::vectorized,
    math::{Norm, layer_norm, moments, normalised, sum},
};

/// Rows of a task.
const ROWS: usize = 16;
/// Columns of a task.
const COLUMNS: usize = 64;

/// Shows `change` every row, on all threads.
pub(super) fn each_row(
    values: &mut [f32],
    width: usize,
    change: impl Fn(usize, &mut [f32]) + Sync,
) {
    values.par_chunks_mut(ROWS * width.max(1)).enumerate().for_each(|(index, rows)| {
        vectorized(
            #[inline(always)]
            || {
                for (row, values) in rows.chunks_exact_mut(width).enumerate() {
                    change(index * ROWS + row, values);
                }
            },
        );
    });
}

/// Adds each row of `values` to the one at `place`.
pub(super) fn add_rows(
    out: &mut [f32],
    values: &[f32],
    width: usize,
    place: impl Fn(usize) -> usize,
) {
    for (index, row) in values.chunks_exact(width.max(1)).enumerate() {
        let out = &mut out[place(index) * width..][..width];
        out.iter_mut().zip(row).for_each(|(out, value)| *out += value);
    }
}

impl Norm<&[f32]> {
    /// Mean, and inverse of the standard deviation, of each row.
    pub fn moments(&self, x: &[f32]) -> Vec<(f32, f32)> {
        let width = self.scale.len().max(1);
        let chunks = x.par_chunks(ROWS * width);
        chunks
            .flat_map_iter(|rows| {
                let mut found = [(0.0, 0.0); ROWS];
                vectorized(
                    #[inline(always)]
                    || {
                        for (found, row) in found.iter_mut().zip(rows.chunks_exact(width)) {
                            *found = moments(row, self.epsilon);
                        }
                    },
                );
                found.into_iter().take(rows.len() / width)
            })
            .collect()
    }

    /// Columns of a normalised row.
    #[inline(always)]
    pub fn apply(&self, row: &[f32], moments: (f32, f32), columns: Range<usize>, out: &mut [f32]) {
        self.each(
            row,
            moments,
            columns,
            out,
            #[inline(always)]
            |out, value| *out = value,
        );
    }

    /// Adds columns of a normalised row to `out`.
    #[inline(always)]
    pub fn add(&self, row: &[f32], moments: (f32, f32), columns: Range<usize>, out: &mut [f32]) {
        self.each(
            row,
            moments,
            columns,
            out,
            #[inline(always)]
            |out, value| *out += value,
        );
    }

    #[inline(always)]
    fn each(
        &self,
        row: &[f32],
        moments: (f32, f32),
        columns: Range<usize>,
        out: &mut [f32],
        set: impl Fn(&mut f32, f32),
    ) {
        let parameters = self.scale[columns.clone()].iter().zip(&self.shift[columns.clone()]);
        for ((out, x), (scale, shift)) in out.iter_mut().zip(&row[columns]).zip(parameters) {
            set(out, normalised(*x, moments, *scale, *shift));
        }
    }

    /// All rows, normalised.
    pub fn of_rows(&self, x: &[f32]) -> Vec<f32> {
        let width = self.scale.len();
        let mut out = vec![0.0; x.len()];
        each_row(
            &mut out,
            width,
            #[inline(always)]
            |index, out| {
                layer_norm(&x[index * width..][..width], self, out);
            },
        );
        out
    }

    /// Gradients by rows, to which `residual` is added, and by scale and shift, given the moments of
    /// `x` and the gradient of the normalised rows.
    pub fn backward(
        &self,
        x: &[f32],
        moments: &[(f32, f32)],
        gradient: &[f32],
        residual: Option<&[f32]>,
    ) -> (Vec<f32>, [Vec<f32>; 2]) {
        let width = self.scale.len();
        let mut by_rows = vec![0.0; x.len()];
        each_row(
            &mut by_rows,
            width,
            #[inline(always)]
            |index, out| {
                let row = |values| part(values, index, width);
                let (x, (mean, factor)) = (row(x), moments[index]);
                let items = out.iter_mut().zip(row(gradient)).zip(self.scale);
                items.for_each(|((out, gradient), scale)| *out = gradient * scale);
                let constant = sum(out, out, |value, _| value) / width as f32;
                let along = sum(out, x, |value, x| value * ((x - mean) * factor)) / width as f32;
                for (out, x) in out.iter_mut().zip(x) {
                    *out = factor * (*out - constant - (x - mean) * factor * along);
                }
                if let Some(residual) = residual {
                    out.iter_mut().zip(row(residual)).for_each(|(out, value)| *out += value);
                }
            },
        );
        (by_rows, self.backward_of_parameters(x, moments, gradient))
    }

    /// Sums over the rows, in double precision.
    fn backward_of_parameters(
        &self,
        x: &[f32],
        moments: &[(f32, f32)],
        gradient: &[f32],
    ) -> [Vec<f32>; 2] {
        let width = self.scale.len();
        let (mut scale, mut shift) = (vec![0.0; width], vec![0.0; width]);
        let chunks = scale.par_chunks_mut(COLUMNS).zip(shift.par_chunks_mut(COLUMNS)).enumerate();
        chunks.for_each(|(index, (scale, shift))| {
            vectorized(
                #[inline(always)]
                || {
                    let columns = index * COLUMNS..index * COLUMNS + scale.len();
                    let mut totals = [[0.0f64; COLUMNS]; 2];
                    let [of_scale, of_shift] = &mut totals;
                    for (row, (mean, factor)) in moments.iter().enumerate() {
                        let x = &part(x, row, width)[columns.clone()];
                        let gradient = &part(gradient, row, width)[columns.clone()];
                        let totals = of_scale.iter_mut().zip(&mut *of_shift);
                        for ((scale, shift), (x, gradient)) in totals.zip(x.iter().zip(gradient)) {
                            *scale += f64::from(gradient * ((x - mean) * factor));
                            *shift += f64::from(*gradient);
                        }
                    }
                    let totals = of_scale.iter().zip(&*of_shift);
                    for ((scale, shift), totals) in scale.iter_mut().zip(&mut *shift).zip(totals) {
                        (*scale, *shift) = (*totals.0 as f32, *totals.1 as f32);
                    }
                },
            );
        });
        [scale, shift]
    }
}

#[inline(always)]
fn part(values: &[f32], row: usize, width: usize) -> &[f32] {
    &values[row * width..][..width]
}
