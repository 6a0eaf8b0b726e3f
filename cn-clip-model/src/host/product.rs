//! Matrix products over all threads, with what stands beside them done on the way.

use std::ops::Range;

use pulp::Simd;
use rayon::prelude::*;

use super::{
    epilogue::by_row,
    kernel::{Task, product, run},
    packed::Packed,
    rows::Rows,
};

/// Most rows of a task.
const BLOCK_ROWS: usize = 108;
/// Values of a row that are multiplied before the next: those of a task fit the second-level cache.
const BLOCK_DEPTH: usize = 768;
/// Rows that [`across`] multiplies at a time.
const BLOCK_ACROSS: usize = 640;

/// Rows of a task: all threads get about equally many.
pub(super) fn block_rows(rows: usize) -> usize {
    let tasks = rows.div_ceil(BLOCK_ROWS).max(1).next_multiple_of(rayon::current_num_threads());
    rows.div_ceil(tasks).clamp(1, BLOCK_ROWS)
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
    across: Rows<true>,
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
        let Self { start, weight, fill, each, out, scratch: Scratch { parts, line, .. } } = self;
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
            product::<S, MR, _>(
                simd,
                rows,
                weight,
                panels,
                range,
                by_row(
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
                ),
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

/// `X^T Y` of `count` rows, `[left_columns, right_columns]`, into `out`; returns the sums of the
/// columns of Y. `left` and `right` write columns of a row of X and Y.
pub(super) fn across(
    count: usize,
    [left_columns, right_columns]: [usize; 2],
    left: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
    right: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
    out: Columns,
) -> Vec<f32> {
    let Columns { values, stride, first } = out;
    let block = block_rows(left_columns.max(1));
    let step = part(count, BLOCK_ACROSS);
    let mut sums = vec![0.0; right_columns];
    let mut weight = Packed::default();
    for from in (0..count).step_by(step) {
        weight.gather(
            step.min(count - from),
            right_columns,
            #[inline(always)]
            |row, range, out| right(from + row, range, out),
        );
        weight.add_column_sums(&mut sums);
        let blocks = values.par_chunks_mut(block * stride).enumerate();
        blocks.for_each_init(Scratch::default, |scratch, (index, out)| {
            let start = index * block;
            let columns = start..(start + block).min(left_columns);
            let (weight, left) = (&weight, &left);
            run(AcrossTask { from, columns, weight, left, out, stride, first, scratch });
        });
    }
    sums.into_iter().map(|sum| sum as f32).collect()
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
        let Scratch { across: rows, line, .. } = scratch;
        rows.reset::<MR>(count, weight.depth);
        line.resize(count, 0.0);
        for row in 0..weight.depth {
            (*left)(from + row, columns.clone(), &mut line[..count]);
            rows.set_across::<MR>(row, &line[..count]);
        }
        let panels = 0..weight.panels();
        let depth = 0..weight.depth;
        product::<S, MR, _>(
            simd,
            rows,
            weight,
            panels,
            depth,
            by_row(
                #[inline(always)]
                |row, column, sums| {
                    let out = &mut out[row * stride + first + column..][..sums.len()];
                    match from > 0 {
                        true => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
                        false => out.copy_from_slice(sums),
                    }
                },
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(row: usize, column: usize, seed: usize) -> f32 {
        ((row * 7919 + column * 31 + seed) % 23) as f32 - 11.0
    }

    fn fill(seed: usize) -> impl Fn(usize, Range<usize>, &mut [f32]) + Sync {
        move |row, columns, out| {
            out.iter_mut().zip(columns).for_each(|(out, column)| *out = value(row, column, seed));
        }
    }

    /// Small whole numbers, so the result is exact.
    #[test]
    fn many_rows_are_multiplied_in_parts() {
        for (count, left, right) in [(0, 3, 5), (1, 13, 33), (641, 5, 7), (1300, 25, 40)] {
            let stride = right + 9;
            let mut values = vec![0.0; left * stride];
            let out = Columns { values: &mut values, stride, first: 4 };
            let sums = across(count, [left, right], fill(1), fill(2), out);
            for (index, found) in values.iter().enumerate() {
                let (row, column) = (index / stride, index % stride);
                let inside = (4..4 + right).contains(&column);
                let product = |k: usize| value(k, row, 1) * value(k, column - 4, 2);
                let expected: f32 = if inside { (0..count).map(product).sum() } else { 0.0 };
                assert_eq!(*found, expected, "{count} {row} {column}");
            }
            for (column, sum) in sums.iter().enumerate() {
                assert_eq!(*sum, (0..count).map(|row| value(row, column, 2)).sum::<f32>());
            }
        }
    }

    #[test]
    fn tasks_have_rows_and_are_no_larger_than_the_cache() {
        for rows in [0, 1, 2, 107, 108, 109, 197, 1576, 6304] {
            let block = block_rows(rows);
            assert!((1..=BLOCK_ROWS).contains(&block), "{rows}: {block}");
        }
    }

    #[test]
    fn long_rows_are_multiplied_in_parts() {
        for (count, depth, columns) in [(0, 4, 3), (1, 767, 5), (7, 1600, 33), (150, 2305, 17)] {
            let weight = Packed::gathered(depth, columns, fill(3));
            let row = |row: usize, out: &mut [f32]| fill(4)(row, 0..depth, out);
            let set = |_: usize, _: usize, sums: &[f32], out: &mut [f32]| {
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum + 1.0);
            };
            for (index, found) in rows(count, &weight, row, set).iter().enumerate() {
                let (row, column) = (index / columns, index % columns);
                let product = |k: usize| value(row, k, 4) * value(k, column, 3);
                assert_eq!(*found, (0..depth).map(product).sum::<f32>() + 1.0);
            }
        }
    }
}
