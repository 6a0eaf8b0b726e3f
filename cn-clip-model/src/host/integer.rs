//! Matrix products of whole numbers, two of which are multiplied and added by one instruction where
//! a float is multiplied by the other.
//!
//! A weight is divided by the largest value of its column, a row by its own, and both are rounded
//! to 13 bits with the sign; that is finer than a bf16 float of at least a sixteenth of the largest
//! value. Sums of [`DEPTH`] products are exact, those of longer rows are added as floats.

use std::ops::Range;

use pulp::Simd;
use rayon::prelude::*;

use super::{
    epilogue::{Epilogue, Sums},
    integer_tile::tile,
    kernel::{Height, Line, MOST_COLUMNS, each_pair, tile_columns},
    packed::{View, side_by_side},
    rows::{BLOCK, Rows, each_group},
};

/// Largest whole number.
const LARGEST: f32 = 4095.0;
/// Products whose sum fits 32 bits.
pub(super) const DEPTH: usize = 128;

/// Whether the processor has instructions for these products: AVX2, or AVX-512 with or without VNNI.
/// They take half the time of floats, without VNNI more: where one unit both multiplies and adds
/// vectors of 64 bytes, the same.
pub(super) fn is_available() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        pulp::x86::V3::is_available()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// A matrix `[depth, columns]` in panels of [`tile_columns`] columns, each `[depth / 2][panel][2]`.
/// What is missing at its ends is zero.
#[derive(Debug)]
pub(super) struct Integers {
    data: Vec<i16>,
    /// What one is worth in each column.
    scales: Vec<f32>,
    pub depth: usize,
    pub columns: usize,
    panel: usize,
}

impl Integers {
    /// Rounds matrices of the same depth, side by side. Columns with a value that is not finite
    /// have only products that are not.
    pub fn new(parts: &[View]) -> Self {
        let depth = parts.first().map_or(0, View::rows);
        let columns = parts.iter().map(|part| part.columns).sum::<usize>();
        let panel = tile_columns();
        let size = depth.div_ceil(2) * 2 * panel;
        let panels = columns.div_ceil(panel);
        let mut data = vec![0; panels * size];
        let mut scales = vec![0.0; panels * panel];
        let fill = side_by_side(parts);
        let panels = data.par_chunks_mut(size.max(1)).zip(scales.par_chunks_mut(panel));
        panels.enumerate().for_each(|(index, (values, scales))| {
            let range = index * panel..((index + 1) * panel).min(columns);
            let mut line = [0.0; MOST_COLUMNS];
            let line = &mut line[..range.len()];
            let mut largest = [0; MOST_COLUMNS];
            for row in 0..depth {
                fill(row, range.clone(), line);
                largest.iter_mut().zip(&*line).for_each(|(bits, x)| *bits = larger(*bits, *x));
            }
            let factors = largest.map(factor);
            for row in 0..depth {
                fill(row, range.clone(), line);
                let places = values[row / 2 * 2 * panel + row % 2..].iter_mut().step_by(2);
                for (place, (x, factor)) in places.zip(line.iter().zip(&factors)) {
                    *place = round(x * factor);
                }
            }
            scales.iter_mut().zip(largest).for_each(|(scale, bits)| *scale = worth(bits));
        });
        Self { data, scales, depth, columns, panel }
    }

    /// Hands `epilogue` the product of `rows` and a part of the matrix (`columns`, whose ends lie
    /// between panels, and `depth`, which begins at an even row), a tile at a time.
    #[inline(always)]
    pub fn product<S: Simd, const MR: usize>(
        &self,
        simd: S,
        rows: &IntegerRows,
        columns: Range<usize>,
        depth: Range<usize>,
        mut epilogue: impl Epilogue,
    ) {
        let (width, pairs) = (self.panel, depth.len().div_ceil(2));
        let size = self.depth.div_ceil(2) * 2 * width;
        let part = |index: usize| {
            let panel = &self.data[index * size..][depth.start * width..];
            &panel[..pairs * 2 * width]
        };
        each_pair::<MR, _, _>(
            rows.scales.len(),
            rows.data.chunks_exact(rows.group_size.max(1)),
            columns.start / width..columns.end.div_ceil(width),
            part,
            true,
            #[inline(always)]
            |pair| {
                let column = pair.panel * width;
                let columns = width.min(self.columns - column);
                let scales = &self.scales[column..][..width];
                let of_rows = &rows.scales[pair.first_row..][..pair.count];
                let mut sums: [Line; MR] = match pair.height::<MR>() {
                    Height::Four => tile::<MR, 4>(&pair, width),
                    Height::Five => tile::<MR, 5>(&pair, width),
                    Height::Eight => tile::<MR, 8>(&pair, width),
                    Height::Nine => tile::<MR, 9>(&pair, width),
                    Height::Ten => tile::<MR, 10>(&pair, width),
                    Height::Eleven => tile::<MR, 11>(&pair, width),
                    Height::Full => tile::<MR, MR>(&pair, width),
                };
                for (sums, scale) in sums.iter_mut().zip(of_rows) {
                    let pairs = sums.iter_mut().zip(scales);
                    pairs.for_each(|(sum, column)| *sum *= scale * column);
                }
                let values = sums[..pair.count].as_flattened_mut();
                let (row, stride) = (pair.first_row, MOST_COLUMNS);
                epilogue.finish(simd, Sums { row, column, columns, values, stride });
            },
        );
    }
}

/// Rows in the order of [`Rows`].
#[derive(Default)]
pub(super) struct IntegerRows {
    data: Vec<i16>,
    /// Values of a group.
    group_size: usize,
    /// What one is worth in each row.
    scales: Vec<f32>,
}

impl IntegerRows {
    /// Rounds rows, reusing memory.
    #[inline(always)]
    pub fn set<const MR: usize>(&mut self, rows: &Rows) {
        let size = rows.group_size::<MR>();
        self.group_size = size;
        self.data.clear();
        self.data.resize(rows.count().div_ceil(MR) * size, 0);
        self.scales.clear();
        let groups = self.data.chunks_exact_mut(size.max(1)).zip(rows.groups::<MR>());
        for ((data, values), range) in groups.zip(each_group::<MR>(rows.count())) {
            let values = values.as_chunks::<BLOCK>().0.as_chunks::<MR>().0;
            // Place by place, so that blocks are whole vectors.
            let mut largest = [[0; BLOCK]; MR];
            for block in values {
                let pairs = largest.as_flattened_mut().iter_mut().zip(block.as_flattened());
                pairs.for_each(|(bits, x)| *bits = larger(*bits, *x));
            }
            let mut factors = [[0.0; BLOCK]; MR];
            for (factors, places) in factors.iter_mut().zip(&largest).take(range.len()) {
                let largest = places.iter().copied().fold(0, u32::max);
                self.scales.push(worth(largest));
                *factors = [factor(largest); BLOCK];
            }
            let data = data.as_chunks_mut::<BLOCK>().0.as_chunks_mut::<MR>().0;
            for (block, values) in data.iter_mut().zip(values) {
                let factors = factors.as_flattened().iter();
                let pairs = block.as_flattened_mut().iter_mut().zip(values.as_flattened());
                pairs.zip(factors).for_each(|((place, x), factor)| *place = round(x * factor));
            }
        }
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

#[cfg(test)]
mod tests {
    use super::{
        super::{
            epilogue::Set,
            kernel::{Task, run},
        },
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
        fn run<S: Simd, const MR: usize>(self, simd: S) {
            let mut rows = Rows::default();
            let depth = self.depth.len();
            rows.reset::<MR>(self.rows.len() / depth, depth);
            for (index, row) in self.rows.chunks(depth).enumerate() {
                rows.set::<MR>(index, 0, row);
            }
            let mut rounded = IntegerRows::default();
            rounded.set::<MR>(&rows);
            let columns = self.weight.columns;
            self.weight.product::<S, MR>(
                simd,
                &rounded,
                self.columns,
                self.depth,
                Set { out: self.out, width: columns },
            );
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
            [(1, 1, 1), (5, 3, 17), (13, 128, 64), (20, 131, 33), (6, 400, 95), (22, 6, 16)]
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
