//! Matrix products of whole numbers, two of which are multiplied and added by one instruction where
//! a float is multiplied by the other.
//!
//! A weight is divided by the largest value of its column, a row by its own, and both are rounded
//! to 13 bits with the sign; that is finer than a bf16 float of at least a sixteenth of the largest
//! value. Sums of [`DEPTH`] products are exact, those of longer rows are added as floats.

use std::ops::Range;

use pulp::bytemuck::cast_slice;
use rayon::prelude::*;

use super::{
    kernel::Rows,
    packed::{View, side_by_side},
};

/// Largest whole number.
const LARGEST: f32 = 4095.0;
/// Products whose sum fits 32 bits.
const DEPTH: usize = 128;
/// Columns of a tile.
const COLUMNS: usize = 16;
/// Rows of a tile.
const ROWS: usize = 6;
/// Values of a panel for two rows of a matrix: `[COLUMNS][2]`.
const PAIR: usize = 2 * COLUMNS;
/// The same for a group of rows: `[ROWS][2]`.
const ROW_PAIR: usize = 2 * ROWS;

/// Whether these products are faster than those of floats on this processor.
pub(super) fn is_fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        pulp::x86::V3::is_available()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// A matrix `[depth, columns]` in panels of [`COLUMNS`] columns, each `[depth / 2][COLUMNS][2]`.
/// What is missing at its ends is zero.
#[derive(Debug)]
pub(super) struct Integers {
    data: Vec<i16>,
    /// What one is worth in each column.
    scales: Vec<f32>,
    pub depth: usize,
    pub columns: usize,
}

impl Integers {
    /// Rounds matrices of the same depth, side by side. Columns with a value that is not finite
    /// have only products that are not.
    pub fn new(parts: &[View]) -> Self {
        let depth = parts.first().map_or(0, View::rows);
        let columns = parts.iter().map(|part| part.columns).sum::<usize>();
        let size = depth.div_ceil(2) * PAIR;
        let panels = columns.div_ceil(COLUMNS);
        let mut data = vec![0; panels * size];
        let mut scales = vec![0.0; panels * COLUMNS];
        let fill = side_by_side(parts);
        let panels = data.par_chunks_mut(size.max(1)).zip(scales.par_chunks_mut(COLUMNS));
        panels.enumerate().for_each(|(index, (panel, scales))| {
            let range = index * COLUMNS..((index + 1) * COLUMNS).min(columns);
            let mut line = [0.0; COLUMNS];
            let line = &mut line[..range.len()];
            let mut largest = [0; COLUMNS];
            for row in 0..depth {
                fill(row, range.clone(), line);
                largest.iter_mut().zip(&*line).for_each(|(bits, x)| *bits = larger(*bits, *x));
            }
            let factors = largest.map(factor);
            for row in 0..depth {
                fill(row, range.clone(), line);
                let places = panel[row / 2 * PAIR + row % 2..].iter_mut().step_by(2);
                for (place, (x, factor)) in places.zip(line.iter().zip(&factors)) {
                    *place = round(x * factor);
                }
            }
            scales.iter_mut().zip(largest).for_each(|(scale, bits)| *scale = worth(bits));
        });
        Self { data, scales, depth, columns }
    }

    /// Hands `each` the product of `rows` and a part of the matrix (`columns`, whose ends lie
    /// between panels, and `depth`, which begins at an even row), a row of a tile at a time: row,
    /// first column, values.
    #[inline(always)]
    pub fn product(
        &self,
        rows: &IntegerRows,
        columns: Range<usize>,
        depth: Range<usize>,
        mut each: impl FnMut(usize, usize, &[f32]),
    ) {
        let size = self.depth.div_ceil(2) * PAIR;
        for index in columns.start / COLUMNS..columns.end.div_ceil(COLUMNS) {
            let panel = &self.data[index * size..][depth.start / 2 * PAIR..];
            let panel = &panel[..depth.len().div_ceil(2) * PAIR];
            let first = index * COLUMNS;
            let columns = COLUMNS.min(self.columns - first);
            let scales = &self.scales[first..][..COLUMNS];
            let groups = rows.data.chunks_exact((depth.len().div_ceil(2) * ROW_PAIR).max(1));
            for (group, values) in groups.enumerate() {
                let sums = tile(values, panel);
                let scales_of_rows = rows.scales[group * ROWS..].iter().take(ROWS);
                for (row, (mut sums, scale)) in sums.into_iter().zip(scales_of_rows).enumerate() {
                    let pairs = sums.iter_mut().zip(scales);
                    pairs.for_each(|(sum, column)| *sum *= scale * column);
                    each(group * ROWS + row, first, &sums[..columns]);
                }
            }
        }
    }
}

/// Rows in groups of [`ROWS`], each `[depth / 2][ROWS][2]`. What is missing at the ends is zero.
#[derive(Default)]
pub(super) struct IntegerRows {
    data: Vec<i16>,
    /// What one is worth in each row.
    scales: Vec<f32>,
}

impl IntegerRows {
    /// Rounds rows, reusing memory.
    #[inline(always)]
    pub fn set<const MR: usize>(&mut self, rows: &Rows) {
        const { assert!(MR.is_multiple_of(ROWS)) };
        let depth = rows.depth();
        let size = depth.div_ceil(2) * ROW_PAIR;
        self.data.clear();
        self.data.resize(rows.count().div_ceil(MR) * (MR / ROWS) * size, 0);
        self.scales.clear();
        for (group, values) in rows.groups::<MR>().enumerate() {
            let values = values.as_chunks::<MR>().0;
            let mut largest = [0; MR];
            for values in values {
                largest.iter_mut().zip(values).for_each(|(bits, x)| *bits = larger(*bits, *x));
            }
            let factors = largest.map(factor);
            self.scales.extend(largest.map(worth));
            for part in 0..MR / ROWS {
                let data = &mut self.data[(group * (MR / ROWS) + part) * size..][..size];
                let factors = &factors[part * ROWS..][..ROWS];
                for (pair, values) in
                    data.as_chunks_mut::<ROW_PAIR>().0.iter_mut().zip(values.chunks(2))
                {
                    for (second, values) in values.iter().enumerate() {
                        for row in 0..ROWS {
                            pair[2 * row + second] =
                                round(values[part * ROWS + row] * factors[row]);
                        }
                    }
                }
            }
        }
        self.scales.truncate(rows.count());
    }
}

/// The larger absolute value, as bits; what is not a number is larger than all.
#[inline(always)]
fn larger(bits: u32, x: f32) -> u32 {
    bits.max(x.abs().to_bits())
}

/// What values are multiplied by before they are rounded.
#[inline(always)]
fn factor(largest: u32) -> f32 {
    // Below, the quotient would be infinite.
    let largest = f32::from_bits(largest);
    if largest > LARGEST / f32::MAX { LARGEST / largest } else { 0.0 }
}

/// What one is worth.
#[inline(always)]
fn worth(largest: u32) -> f32 {
    f32::from_bits(largest) / LARGEST
}

/// The nearest whole number of one of less than 15 bits.
#[inline(always)]
fn round(x: f32) -> i16 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23: the last bits of the sum are the number
    (x + SHIFT).to_bits() as i16
}

/// Sums of products over the depth of a group of rows (`[depth / 2][ROWS][2]`) and a panel.
#[inline(always)]
fn tile(rows: &[i16], panel: &[i16]) -> [[f32; COLUMNS]; ROWS] {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return vectors::tile(simd, rows, panel);
    }
    portable(rows, panel)
}

/// The same on every processor.
fn portable(rows: &[i16], panel: &[i16]) -> [[f32; COLUMNS]; ROWS] {
    let mut totals = [[0.0; COLUMNS]; ROWS];
    let parts = rows.chunks(DEPTH / 2 * ROW_PAIR).zip(panel.chunks(DEPTH / 2 * PAIR));
    for (rows, panel) in parts {
        let mut sums = [[0i32; COLUMNS]; ROWS];
        for (rows, weights) in rows.chunks_exact(ROW_PAIR).zip(panel.chunks_exact(PAIR)) {
            for (row, sums) in rows.as_chunks::<2>().0.iter().zip(&mut sums) {
                for (weight, sum) in weights.as_chunks::<2>().0.iter().zip(sums) {
                    let product = |at: usize| i32::from(row[at]) * i32::from(weight[at]);
                    *sum += product(0) + product(1);
                }
            }
        }
        let pairs = totals.as_flattened_mut().iter_mut().zip(sums.as_flattened());
        pairs.for_each(|(total, sum)| *total += *sum as f32);
    }
    totals
}

#[cfg(target_arch = "x86_64")]
mod vectors {
    use pulp::{i16x16, x86::V3};

    use super::{COLUMNS, DEPTH, PAIR, ROW_PAIR, ROWS, cast_slice};

    const VECTORS: usize = COLUMNS / 8;

    #[inline(always)]
    pub fn tile(simd: V3, rows: &[i16], panel: &[i16]) -> [[f32; COLUMNS]; ROWS] {
        let mut totals = [[simd.splat_f32x8(0.0); VECTORS]; ROWS];
        let parts = rows.chunks(DEPTH / 2 * ROW_PAIR).zip(panel.chunks(DEPTH / 2 * PAIR));
        for (rows, panel) in parts {
            let mut sums = [[simd.splat_i32x8(0); VECTORS]; ROWS];
            let panel = cast_slice::<_, [i16x16; VECTORS]>(panel);
            for (rows, weights) in rows.as_chunks::<ROW_PAIR>().0.iter().zip(panel) {
                for (row, sums) in rows.as_chunks::<2>().0.iter().zip(&mut sums) {
                    let row = pulp::cast(simd.splat_i32x8(pulp::cast(*row)));
                    for (weight, sum) in weights.iter().zip(sums) {
                        let products = simd.multiply_wrapping_add_adjacent_i16x16(row, *weight);
                        *sum = simd.wrapping_add_i32x8(*sum, products);
                    }
                }
            }
            let pairs = totals.as_flattened_mut().iter_mut().zip(sums.as_flattened());
            pairs.for_each(|(total, sum)| {
                *total = simd.add_f32x8(*total, simd.convert_i32x8_to_f32x8(*sum));
            });
        }
        pulp::cast(totals)
    }
}

#[cfg(test)]
mod tests {
    use pulp::Simd;

    use super::{
        super::kernel::{Task, run},
        *,
    };

    struct Product<'a> {
        rows: &'a [f32],
        weight: &'a Integers,
        columns: Range<usize>,
        depth: Range<usize>,
        out: &'a mut [f32],
    }

    impl Task for Product<'_> {
        #[inline(always)]
        fn run<S: Simd, const MR: usize>(self, _: S) {
            let mut rows = Rows::default();
            let depth = self.depth.len();
            rows.reset::<MR>(self.rows.len() / depth, depth);
            for (index, row) in self.rows.chunks(depth).enumerate() {
                rows.set::<MR>(index, 0, row);
            }
            let mut rounded = IntegerRows::default();
            rounded.set::<MR>(&rows);
            let columns = self.weight.columns;
            self.weight.product(&rounded, self.columns, self.depth, |row, column, sums| {
                self.out[row * columns + column..][..sums.len()].copy_from_slice(sums);
            });
        }
    }

    fn product(rows: &[f32], b: &[f32], columns: usize) -> Vec<f32> {
        let weight = Integers::new(&[View::whole(b, columns)]);
        let mut out = vec![f32::NAN; rows.len() / weight.depth * columns];
        let (depth, columns) = (0..weight.depth, 0..columns);
        run(Product { rows, weight: &weight, columns, depth, out: &mut out });
        out
    }

    fn matrix(rows: usize, columns: usize, seed: usize, largest: f32) -> Vec<f32> {
        let value = |index: usize| ((index * 7919 + seed * 31) % 2003) as f32 / 1001.0 - 1.0;
        (0..rows * columns).map(|index| value(index) * largest).collect()
    }

    /// Every product is off by no more than the roundings of its factors allow.
    #[test]
    fn products_of_every_size() {
        for (rows, depth, columns) in
            [(1, 1, 1), (5, 3, 17), (13, 128, 64), (25, 131, 33), (6, 400, 95)]
        {
            let (a, b) = (matrix(rows, depth, 1, 3e-3), matrix(depth, columns, 2, 7e4));
            let column = |column: usize| b.iter().skip(column).step_by(columns);
            let step = |largest: f32| f64::from(largest) / f64::from(LARGEST) * 0.501;
            let found = product(&a, &b, columns);
            for (index, found) in found.iter().enumerate() {
                let (row, at) = (&a[index / columns * depth..][..depth], index % columns);
                let largest = |values: &mut dyn Iterator<Item = &f32>| {
                    values.fold(0.0f32, |largest, x| largest.max(x.abs()))
                };
                let of_row = step(largest(&mut row.iter()));
                let of_column = step(largest(&mut column(at)));
                let (mut expected, mut allowed) = (0.0, 0.0);
                for (x, y) in
                    row.iter().zip(column(at)).map(|(x, y)| (f64::from(*x), f64::from(*y)))
                {
                    expected += x * y;
                    allowed += x.abs() * of_column + y.abs() * of_row + of_row * of_column;
                }
                let error = (f64::from(*found) - expected).abs();
                assert!(error <= allowed, "{rows} {depth} {columns}: {found} {expected} {allowed}");
            }
        }
    }

    #[test]
    fn every_processor_adds_the_same() {
        let value = |index: usize| ((index * 7919) % 8191) as i16 - 4095;
        for pairs in [1, 64, 65, 200] {
            let rows: Vec<i16> = (0..pairs * ROW_PAIR).map(value).collect();
            let panel: Vec<i16> = (0..pairs * PAIR).map(|index| value(index + 5)).collect();
            assert_eq!(tile(&rows, &panel), portable(&rows, &panel), "{pairs}");
        }
    }

    /// Where all factors are the largest, sums of [`DEPTH`] products are near the end of 32 bits.
    #[test]
    fn the_largest_sums_fit() {
        for sign in [1.0, -1.0] {
            let (a, b) = ([LARGEST; 3 * DEPTH], [sign * LARGEST; 3 * DEPTH]);
            let expected = sign * LARGEST * LARGEST * (3 * DEPTH) as f32;
            assert_eq!(product(&a, &b, 1), [expected]);
        }
    }

    #[test]
    fn parts_of_a_matrix() {
        let (rows, depth, columns) = (7, 40, 70);
        let (a, b) = (matrix(rows, 16, 1, 1.0), matrix(depth, columns, 2, 1.0));
        let whole = View::whole(&b, columns);
        let parts =
            [View { columns: 20, ..whole }, View { first: 20, columns: columns - 20, ..whole }];
        let weight = Integers::new(&parts);
        let mut out = vec![f32::NAN; rows * columns];
        run(Product {
            rows: &a,
            weight: &weight,
            columns: 32..columns,
            depth: 24..40,
            out: &mut out,
        });
        for (index, found) in out.iter().enumerate() {
            let (row, column) = (index / columns, index % columns);
            match column < 32 {
                true => assert!(found.is_nan()),
                false => {
                    let product = |k: usize| a[row * 16 + k] * b[(24 + k) * columns + column];
                    let expected: f32 = (0..16).map(product).sum();
                    assert!((found - expected).abs() < 4e-3, "{found} {expected}");
                }
            }
        }
    }

    #[test]
    fn zeros_and_extremes() {
        let weight = [2.0; 8];
        assert_eq!(product(&[0.0; 8], &weight, 1), [0.0]);
        let largest = product(&[1e37; 8], &weight, 1)[0];
        assert!((largest / 1.6e38 - 1.0).abs() < 1e-6, "{largest}");
        // Too small to be told from nothing.
        assert_eq!(product(&[1e-40; 8], &weight, 1), [0.0]);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut row = [1.0; 16];
            row[3] = bad;
            let found = product(&row, &weight, 1);
            assert!(!found[0].is_finite(), "{found:?}");
            assert!((found[1] - 16.0).abs() < 1e-4, "the other row: {found:?}");
            let found = product(&weight, &row, 2);
            assert!(found[0].is_finite() && !found[1].is_finite(), "{found:?}");
        }
    }
}
