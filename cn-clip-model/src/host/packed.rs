//! Matrices in the order in which products read them.

use std::ops::Range;

use rayon::prelude::*;

use super::kernel::{tile_columns, vectorized};

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

    /// Values of a row.
    #[inline(always)]
    pub fn row(&self, row: usize) -> &'a [f32] {
        &self.values[row * self.stride + self.first..][..self.columns]
    }
}

/// Writes columns of a row of matrices of the same depth, side by side.
pub(super) fn side_by_side(parts: &[View]) -> impl Fn(usize, Range<usize>, &mut [f32]) + Sync {
    move |row, range, out| {
        let mut first = 0;
        for part in parts {
            let (from, to) = (range.start.max(first), range.end.min(first + part.columns));
            if from < to {
                out[from - range.start..to - range.start]
                    .copy_from_slice(&part.row(row)[from - first..to - first]);
            }
            first += part.columns;
        }
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
    /// Whether the thread that multiplies by it has just written it and has it in its cache.
    fresh: bool,
}

impl Packed {
    /// Packs matrices of the same depth, side by side.
    pub fn new(parts: &[View]) -> Self {
        let depth = parts.first().map_or(0, View::rows);
        let columns = parts.iter().map(|part| part.columns).sum();
        Self::gathered(depth, columns, side_by_side(parts))
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
            vectorized(
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
            vectorized(
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
        Self { fresh: false, ..packed }
    }

    /// Shows `write` the columns of each panel, its width and its values.
    fn each_panel(&mut self, write: impl Fn(Range<usize>, usize, &mut [f32]) + Sync) {
        let (width, columns) = (self.panel, self.columns);
        let size = (width * self.depth).max(1);
        self.data.par_chunks_mut(size).enumerate().for_each(|(index, panel)| {
            write(index * width..((index + 1) * width).min(columns), width, panel);
        });
    }

    /// Prepares for [`set_row`](Self::set_row) or [`set_column`](Self::set_column) of all rows or columns
    /// by the thread that will multiply by it, reusing memory.
    #[inline(always)]
    pub fn reset(&mut self, depth: usize, columns: usize, panel: usize) {
        self.fresh = true;
        // In a matrix of the same size, what fills the last panel is zero already.
        if (self.depth, self.columns, self.panel) != (depth, columns, panel) {
            (self.depth, self.columns, self.panel) = (depth, columns, panel);
            self.data.clear();
            self.data.resize(self.panels() * panel * depth, 0.0);
        }
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

    /// Whether its values have to be fetched from far.
    pub fn is_far(&self) -> bool {
        !self.fresh
    }

    /// Columns of a panel.
    pub fn panel_columns(&self) -> usize {
        self.panel
    }

    /// A panel's values.
    #[inline(always)]
    pub fn panel(&self, index: usize) -> &[f32] {
        let size = self.panel * self.depth;
        &self.data[index * size..][..size]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_make_the_same_matrix() {
        let (depth, columns) = (5, 37);
        let b: Vec<f32> = (0..depth * columns).map(|index| index as f32).collect();
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
