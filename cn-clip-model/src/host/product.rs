//! Matrix products over all threads, with what stands beside them done on the way.

use std::ops::Range;

use pulp::Simd;
use rayon::prelude::*;

use super::kernel::{Packed, Rows, Task, product, run, tile_rows};

/// Most rows of a task.
const BLOCK_ROWS: usize = 72;
/// Values of a row that are multiplied before the next: those of a task fit the second-level cache.
const BLOCK_DEPTH: usize = 768;
/// The same of [`across`], whose rows are fewer.
const BLOCK_ACROSS: usize = 640;
/// Columns that [`column_sums`] adds at once.
const SUM_COLUMNS: usize = 64;

/// Rows of a task: all threads get equally many.
pub(super) fn block_rows(rows: usize) -> usize {
    let tasks = rows.div_ceil(BLOCK_ROWS).next_multiple_of(rayon::current_num_threads());
    rows.div_ceil(tasks).next_multiple_of(tile_rows()).clamp(1, BLOCK_ROWS)
}

/// Length of equal parts, none longer than `most`.
fn part(length: usize, most: usize) -> usize {
    length.div_ceil(length.div_ceil(most).max(1)).max(1)
}

/// `X W`, `[count, columns]`. `fill` writes row by row of X; `each` gets the row, the first column,
/// products and their place in the result, and should set it.
pub(super) fn rows(
    count: usize,
    weight: &Packed,
    fill: impl Fn(usize, &mut [f32]) + Sync,
    each: impl Fn(usize, usize, &[f32], &mut [f32]) + Sync,
) -> Vec<f32> {
    let mut out = vec![0.0; count * weight.columns];
    if out.is_empty() {
        return out;
    }
    let block = block_rows(count);
    let blocks = out.par_chunks_mut(block * weight.columns).enumerate();
    blocks.for_each_init(Scratch::default, |scratch, (index, out)| {
        run(RowTask { start: index * block, weight, fill: &fill, each: &each, out, scratch });
    });
    out
}

#[derive(Default)]
struct Scratch {
    parts: Vec<Rows>,
    line: Vec<f32>,
}

struct RowTask<'a, F, E> {
    start: usize,
    weight: &'a Packed,
    fill: &'a F,
    each: &'a E,
    out: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl<F: Fn(usize, &mut [f32]), E: Fn(usize, usize, &[f32], &mut [f32])> Task for RowTask<'_, F, E> {
    #[inline(always)]
    fn run<S: Simd, const MR: usize>(self, simd: S) {
        let Self { start, weight, fill, each, out, scratch: Scratch { parts, line } } = self;
        let (depth, columns) = (weight.depth, weight.columns);
        let count = out.len() / columns;
        let step = part(depth, BLOCK_DEPTH);
        let ranges = || (0..depth).step_by(step).map(|from| from..(from + step).min(depth));
        parts.resize_with(ranges().len(), Rows::default);
        for (rows, range) in parts.iter_mut().zip(ranges()) {
            rows.reset::<MR>(count, range.len());
        }
        line.resize(depth, 0.0);
        for row in 0..count {
            (*fill)(start + row, &mut line[..depth]);
            for (rows, range) in parts.iter_mut().zip(ranges()) {
                rows.set::<MR>(row, 0, &line[range]);
            }
        }
        for (rows, range) in parts.iter().zip(ranges()) {
            let (first_part, last_part) = (range.start == 0, range.end == depth);
            let panels = 0..weight.panels();
            product::<S, MR>(
                simd,
                rows,
                weight,
                panels,
                range,
                #[inline(always)]
                |row, first, sums| {
                    let out = &mut out[row * columns + first..][..sums.len()];
                    let sums = match first_part {
                        true => sums,
                        false => {
                            let line = &mut line[..sums.len()];
                            let items = line.iter_mut().zip(sums).zip(out.iter());
                            items.for_each(|((line, sum), out)| *line = sum + out);
                            line
                        }
                    };
                    match last_part {
                        true => (*each)(start + row, first, sums, out),
                        false => out.copy_from_slice(sums),
                    }
                },
            );
        }
    }
}

/// Some columns of a matrix in row order.
pub(super) struct Columns<'a> {
    /// The whole matrix.
    pub values: &'a mut [f32],
    /// Columns of the whole matrix.
    pub stride: usize,
    /// First column.
    pub first: usize,
}

/// `X^T Y` of `count` rows, `[left_columns, right_columns]`, into `out`. `left` and `right` write
/// columns of a row of X and Y.
pub(super) fn across(
    count: usize,
    [left_columns, right_columns]: [usize; 2],
    left: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
    right: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
    out: Columns,
) {
    let Columns { values, stride, first } = out;
    let block = block_rows(left_columns.max(1));
    let step = part(count, BLOCK_ACROSS);
    for from in (0..count).step_by(step) {
        let depth = step.min(count - from);
        let weight = Packed::gathered(
            depth,
            right_columns,
            #[inline(always)]
            |row, range, out| {
                right(from + row, range, out);
            },
        );
        let blocks = values.par_chunks_mut(block * stride).enumerate();
        blocks.for_each_init(Scratch::default, |scratch, (index, out)| {
            let start = index * block;
            let columns = start..(start + block).min(left_columns);
            let (weight, left) = (&weight, &left);
            run(AcrossTask { from, columns, weight, left, out, stride, first, scratch });
        });
    }
}

struct AcrossTask<'a, F> {
    /// First row; from the second part on, products are added to what is there.
    from: usize,
    /// Of X.
    columns: Range<usize>,
    weight: &'a Packed,
    left: &'a F,
    out: &'a mut [f32],
    stride: usize,
    first: usize,
    scratch: &'a mut Scratch,
}

impl<F: Fn(usize, Range<usize>, &mut [f32])> Task for AcrossTask<'_, F> {
    #[inline(always)]
    fn run<S: Simd, const MR: usize>(self, simd: S) {
        let Self { from, columns, weight, left, out, stride, first, scratch } = self;
        let count = columns.len();
        let Scratch { parts, line } = scratch;
        parts.resize_with(1, Rows::default);
        let rows = &mut parts[0];
        rows.reset::<MR>(count, weight.depth);
        line.resize(count, 0.0);
        for row in 0..weight.depth {
            (*left)(from + row, columns.clone(), &mut line[..count]);
            rows.set_across::<MR>(row, &line[..count]);
        }
        let panels = 0..weight.panels();
        let depth = 0..weight.depth;
        product::<S, MR>(
            simd,
            rows,
            weight,
            panels,
            depth,
            #[inline(always)]
            |row, column, sums| {
                let out = &mut out[row * stride + first + column..][..sums.len()];
                match from > 0 {
                    true => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
                    false => out.copy_from_slice(sums),
                }
            },
        );
    }
}

/// Sums, in double precision, of the columns of `count` rows, which `fill` writes: row, columns, values.
pub(super) fn column_sums(
    count: usize,
    columns: usize,
    fill: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
) -> Vec<f32> {
    let mut sums = vec![0.0; columns];
    sums.par_chunks_mut(SUM_COLUMNS).enumerate().for_each(|(index, sums)| {
        let first = index * SUM_COLUMNS;
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || {
                let range = first..first + sums.len();
                let mut totals = [0.0f64; SUM_COLUMNS];
                let mut line = [0.0f32; SUM_COLUMNS];
                for row in 0..count {
                    fill(row, range.clone(), &mut line[..sums.len()]);
                    let items = totals.iter_mut().zip(&line);
                    items.for_each(|(total, value)| *total += f64::from(*value));
                }
                sums.iter_mut().zip(&totals).for_each(|(sum, total)| *sum = *total as f32);
            },
        );
    });
    sums
}
