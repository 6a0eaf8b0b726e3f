//! Matrix products of a block of rows with a weight, both laid out in the order in which they are
//! read (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008).

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd, bytemuck::cast_slice};
use rayon::prelude::*;

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

/// Some columns of a row-major matrix.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    /// The whole matrix.
    pub values: &'a [f32],
    /// Columns of the whole matrix.
    pub stride: usize,
    /// First column.
    pub first: usize,
    /// Number of columns.
    pub columns: usize,
}

impl<'a> View<'a> {
    /// All columns.
    pub fn whole(values: &'a [f32], columns: usize) -> Self {
        Self { values, stride: columns, first: 0, columns }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.values.len() / self.stride.max(1)
    }

    #[inline(always)]
    fn row(&self, row: usize) -> &'a [f32] {
        &self.values[row * self.stride + self.first..][..self.columns]
    }
}

/// A matrix `[depth, columns]` in panels of [`tile_columns`] columns, each `[depth][panel]`; the
/// last one is filled with zeros.
#[derive(Debug, Default)]
pub(super) struct Packed {
    data: Vec<f32>,
    pub depth: usize,
    pub columns: usize,
    panel: usize,
}

impl Packed {
    /// Packs matrices of the same depth, side by side.
    pub fn new(parts: &[View]) -> Self {
        let depth = parts.first().map_or(0, View::rows);
        let columns = parts.iter().map(|part| part.columns).sum();
        Self::gathered(depth, columns, |row, range, out| {
            let mut first = 0;
            for part in parts {
                let (from, to) = (range.start.max(first), range.end.min(first + part.columns));
                if from < to {
                    out[from - range.start..to - range.start]
                        .copy_from_slice(&part.row(row)[from - first..to - first]);
                }
                first += part.columns;
            }
        })
    }

    /// Packs the transposes of matrices of as many rows, one below the other.
    pub fn transposed(parts: &[View]) -> Self {
        let depth = parts.iter().map(|part| part.columns).sum();
        let columns = parts.first().map_or(0, View::rows);
        let mut packed = Self::empty(depth, columns);
        packed.each_panel(|range, width, panel| {
            for (place, column) in range.enumerate() {
                let values = parts.iter().flat_map(|part| part.row(column));
                let places = panel[place..].iter_mut().step_by(width);
                places.zip(values).for_each(|(place, value)| *place = *value);
            }
        });
        packed
    }

    /// Packs the rows that `fill` writes: row, columns, values.
    pub fn gathered(
        depth: usize,
        columns: usize,
        fill: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
    ) -> Self {
        let mut packed = Self::default();
        packed.gather(depth, columns, fill);
        packed
    }

    /// As [`gathered`](Self::gathered), reusing memory. What fills the last panel is not read.
    pub fn gather(
        &mut self,
        depth: usize,
        columns: usize,
        fill: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
    ) {
        (self.depth, self.columns, self.panel) = (depth, columns, tile_columns());
        self.data.resize(self.panels() * self.panel * depth, 0.0);
        self.each_panel(|range, width, panel| {
            Arch::new().dispatch(
                #[inline(always)]
                || {
                    for (row, values) in panel.chunks_exact_mut(width).enumerate() {
                        fill(row, range.clone(), &mut values[..range.len()]);
                    }
                },
            );
        });
    }

    /// Adds the sum of each column.
    pub fn add_column_sums(&self, totals: &mut [f64]) {
        let (width, size) = (self.panel.max(1), (self.panel * self.depth).max(1));
        totals.par_chunks_mut(width).zip(self.data.par_chunks(size)).for_each(|(totals, panel)| {
            Arch::new().dispatch(
                #[inline(always)]
                || {
                    for row in panel.chunks_exact(width) {
                        totals.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
                    }
                },
            );
        });
    }

    fn empty(depth: usize, columns: usize) -> Self {
        let mut packed = Self::default();
        packed.reset(depth, columns, tile_columns());
        packed
    }

    /// Shows `write` the columns of each panel, its width and its values.
    fn each_panel(&mut self, write: impl Fn(Range<usize>, usize, &mut [f32]) + Sync) {
        let (width, columns) = (self.panel, self.columns);
        let size = (width * self.depth).max(1);
        self.data.par_chunks_mut(size).enumerate().for_each(|(index, panel)| {
            write(index * width..((index + 1) * width).min(columns), width, panel);
        });
    }

    /// Prepares for [`set`](Self::set), reusing memory.
    #[inline(always)]
    pub fn reset(&mut self, depth: usize, columns: usize, panel: usize) {
        (self.depth, self.columns, self.panel) = (depth, columns, panel);
        self.data.clear();
        self.data.resize(self.panels() * panel * depth, 0.0);
    }

    /// Sets a row.
    #[inline(always)]
    pub fn set_row(&mut self, row: usize, values: &[f32]) {
        let (panel, size) = (self.panel, self.panel * self.depth);
        for (index, values) in values.chunks(panel).enumerate() {
            self.data[index * size + row * panel..][..values.len()].copy_from_slice(values);
        }
    }

    /// Sets a column.
    #[inline(always)]
    pub fn set_column(&mut self, column: usize, values: &[f32]) {
        let (panel, size) = (self.panel, self.panel * self.depth);
        let start = column / panel * size + column % panel;
        let places = self.data[start..].iter_mut().step_by(panel);
        places.zip(values).for_each(|(place, value)| *place = *value);
    }

    /// Number of panels.
    pub fn panels(&self) -> usize {
        self.columns.div_ceil(self.panel.max(1))
    }

    /// Panels that hold these columns, whose ends lie between panels.
    #[inline(always)]
    pub fn panels_of(&self, columns: Range<usize>) -> Range<usize> {
        columns.start / self.panel..columns.end.div_ceil(self.panel)
    }
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
    let size = weight.panel * weight.depth;
    for index in panels {
        let first = index * weight.panel;
        let panel = &weight.data[index * size..][depth.start * weight.panel..];
        let panel = &panel[..depth.len() * weight.panel];
        let columns = weight.panel.min(weight.columns - first);
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
    use super::*;

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

    #[test]
    fn rows_and_columns_make_the_same_matrix() {
        let (depth, columns) = (5, 37);
        let b = matrix(depth, columns, 3);
        let expected = Packed::new(&[View::whole(&b, columns)]);
        let (mut by_rows, mut by_columns) = (Packed::default(), Packed::default());
        by_rows.reset(depth, columns, tile_columns());
        by_columns.reset(depth, columns, tile_columns());
        b.chunks(columns).enumerate().for_each(|(index, row)| by_rows.set_row(index, row));
        for column in 0..columns {
            let values: Vec<f32> = b.iter().skip(column).step_by(columns).copied().collect();
            by_columns.set_column(column, &values);
        }
        assert_eq!(by_rows.data, expected.data);
        assert_eq!(by_columns.data, expected.data);
    }
}
