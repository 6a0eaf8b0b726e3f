//! Matrix products of a block of rows with a weight, both laid out in the order in which they are
//! read (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008).

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd, bytemuck::cast_slice};

use super::packed::Packed;

/// Vectors of a tile's row.
const VECTORS: usize = 2;

/// Work of one thread, in the widest vectors that the processor has; `MR` are the rows of a tile.
pub(super) trait Task {
    /// Does it.
    fn run<S: Simd, const MR: usize>(self, simd: S);
}

/// Runs a task.
pub(super) fn run(task: impl Task) {
    struct Chosen<T>(T);
    impl<T: Task> WithSimd for Chosen<T> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            // A tile's sums, the vectors of the weight and one of the rows must fit the registers.
            match S::REGISTER_COUNT >= 32 {
                true => self.0.run::<S, 12>(simd),
                false => self.0.run::<S, 6>(simd),
            }
        }
    }
    Arch::new().dispatch(Chosen(task));
}

/// Columns of a tile on this processor; 2 where it has no vectors.
pub(super) fn tile_columns() -> usize {
    struct Columns;
    impl WithSimd for Columns {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            VECTORS * S::F32_LANES
        }
    }
    Arch::new().dispatch(Columns)
}

/// Rows of a tile on this processor.
pub(super) fn tile_rows() -> usize {
    struct Count<'a>(&'a mut usize);
    impl Task for Count<'_> {
        #[inline(always)]
        fn run<S: Simd, const MR: usize>(self, _: S) {
            *self.0 = MR;
        }
    }
    let mut rows = 1;
    run(Count(&mut rows));
    rows
}

/// Whether the kernels are worth it: the processor has vectors of at least four floats.
pub(super) fn has_vectors() -> bool {
    tile_columns() >= 4 * VECTORS
}

/// Rows in groups of `MR`, each `[depth][MR]`; the last group is filled with zeros.
#[derive(Default)]
pub(super) struct Rows {
    data: Vec<f32>,
    count: usize,
    depth: usize,
}

impl Rows {
    /// Prepares for rows of `depth` values, reusing memory.
    #[inline(always)]
    pub fn reset<const MR: usize>(&mut self, count: usize, depth: usize) {
        (self.count, self.depth) = (count, depth);
        let size = count.div_ceil(MR) * MR * depth;
        self.data.clear();
        self.data.resize(size, 0.0);
    }

    /// Number of rows.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Values of a row.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// The groups.
    #[inline(always)]
    pub fn groups<const MR: usize>(&self) -> impl Iterator<Item = &[f32]> {
        self.data.chunks_exact((MR * self.depth).max(1))
    }

    /// Sets, of all rows, the values at a place of the depth.
    #[inline(always)]
    pub fn set_across<const MR: usize>(&mut self, place: usize, values: &[f32]) {
        for (group, values) in values.chunks(MR).enumerate() {
            let start = (group * self.depth + place) * MR;
            self.data[start..][..values.len()].copy_from_slice(values);
        }
    }

    /// Sets values of a row from `first` on.
    #[inline(always)]
    pub fn set<const MR: usize>(&mut self, row: usize, first: usize, values: &[f32]) {
        let start = row / MR * MR * self.depth + first * MR + row % MR;
        let places = self.data[start..].iter_mut().step_by(MR);
        places.zip(values).for_each(|(place, value)| *place = *value);
    }
}

/// Hands `each` the product of `rows` and a part of `weight` (`depth` of its rows, `panels` of its
/// columns), a row of a tile at a time: row, first column, values.
#[inline(always)]
pub(super) fn product<S: Simd, const MR: usize>(
    simd: S,
    rows: &Rows,
    weight: &Packed,
    panels: Range<usize>,
    depth: Range<usize>,
    mut each: impl FnMut(usize, usize, &[f32]),
) {
    let width = weight.panel_columns();
    for index in panels {
        let first = index * width;
        let panel = &weight.panel(index)[depth.start * width..][..depth.len() * width];
        let columns = width.min(weight.columns - first);
        for (group, rows_of_group) in rows.data.chunks_exact(MR * depth.len()).enumerate() {
            let tile = tile::<S, MR>(simd, rows_of_group, panel);
            let count = MR.min(rows.count - group * MR);
            for (row, sums) in tile.iter().enumerate().take(count) {
                each(group * MR + row, first, &cast_slice(sums)[..columns]);
            }
        }
    }
}

/// Sums of products over the depth of a group of rows (`[depth][MR]`) and a panel.
#[inline(always)]
fn tile<S: Simd, const MR: usize>(
    simd: S,
    rows: &[f32],
    panel: &[f32],
) -> [[S::f32s; VECTORS]; MR] {
    let panel = S::as_simd_f32s(panel).0.as_chunks::<VECTORS>().0;
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; MR];
    for (row, weights) in rows.as_chunks::<MR>().0.iter().zip(panel) {
        for (value, sums) in row.iter().zip(&mut sums) {
            let value = simd.splat_f32s(*value);
            for (weight, sum) in weights.iter().zip(sums) {
                *sum = simd.mul_add_e_f32s(value, *weight, *sum);
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::{super::packed::View, *};

    struct Product<'a> {
        rows: &'a [f32],
        weight: &'a Packed,
        out: &'a mut [f32],
    }

    impl Task for Product<'_> {
        #[inline(always)]
        fn run<S: Simd, const MR: usize>(self, simd: S) {
            let (depth, columns) = (self.weight.depth, self.weight.columns);
            let mut rows = Rows::default();
            rows.reset::<MR>(self.rows.len() / depth, depth);
            for (index, row) in self.rows.chunks(depth).enumerate() {
                rows.set::<MR>(index, 0, row);
            }
            let panels = 0..self.weight.panels();
            product::<S, MR>(simd, &rows, self.weight, panels, 0..depth, |row, column, sums| {
                self.out[row * columns + column..][..sums.len()].copy_from_slice(sums);
            });
        }
    }

    fn matrix(rows: usize, columns: usize, seed: usize) -> Vec<f32> {
        let value = |index: usize| ((index * 7919 + seed * 31) % 23) as f32 - 11.0;
        (0..rows * columns).map(value).collect()
    }

    /// Small whole numbers, so the result is exact.
    #[test]
    fn products_of_every_size() {
        for (rows, depth, columns) in [(1, 1, 1), (5, 3, 17), (13, 40, 64), (25, 7, 33), (6, 9, 95)]
        {
            let (a, b) = (matrix(rows, depth, 1), matrix(depth, columns, 2));
            let left = columns / 3;
            let part = |from: usize, to: usize| -> Vec<f32> {
                b.chunks(columns).flat_map(|row| row[from..to].to_vec()).collect()
            };
            let (first, second) = (part(0, left), part(left, columns));
            let whole = View::whole(&b, columns);
            let turned: Vec<f32> = (0..columns)
                .flat_map(|column| b.iter().skip(column).step_by(columns).copied())
                .collect();
            let mut weights = vec![
                Packed::new(&[whole]),
                Packed::transposed(&[View::whole(&turned, depth)]),
                Packed::new(&[
                    View { columns: left, ..whole },
                    View { first: left, columns: columns - left, ..whole },
                ]),
            ];
            if left > 0 {
                weights.push(Packed::new(&[
                    View::whole(&first, left),
                    View::whole(&second, columns - left),
                ]));
            }
            for weight in weights {
                let mut out = vec![f32::NAN; rows * columns];
                run(Product { rows: &a, weight: &weight, out: &mut out });
                for row in 0..rows {
                    for column in 0..columns {
                        let sum = |k: usize| a[row * depth + k] * b[k * columns + column];
                        let expected: f32 = (0..depth).map(sum).sum();
                        assert_eq!(out[row * columns + column], expected, "{row} {column}");
                    }
                }
            }
        }
    }
}
