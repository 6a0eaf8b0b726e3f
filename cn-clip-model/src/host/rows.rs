//! Rows in the order in which products read them.

use std::{ops::Range, slice::ChunksExact};

use super::epilogue::Sums;

/// Places of the depth of a block: a cache line, which is the widest vector, so that rows are set by
/// whole ones.
pub(super) const BLOCK: usize = 16;

/// Rows in groups of at most `MR`, the depth of each group in blocks: `[groups][blocks][MR][BLOCK]`, so
/// that values of a row are set as they lie; `ACROSS`, `[groups][blocks][BLOCK][MR]`, so that values of
/// all rows at a place of the depth are. What is missing at the ends is zero.
#[derive(Default)]
pub(super) struct Rows<const ACROSS: bool = false> {
    data: Vec<f32>,
    /// Where each row begins.
    starts: Vec<usize>,
    count: usize,
    depth: usize,
}

/// The rows of each group of at most `MR`: all have as many, or the first ones one more.
#[inline(always)]
pub(super) fn each_group<const MR: usize>(
    count: usize,
) -> impl Iterator<Item = Range<usize>> + Clone {
    let groups = count.div_ceil(MR);
    let (rows, more) = (count / groups.max(1), count % groups.max(1));
    let start = move |group: usize| group * rows + group.min(more);
    (0..groups).map(move |group| start(group)..start(group + 1))
}

impl<const ACROSS: bool> Rows<ACROSS> {
    /// Prepares for rows of `depth` values, all of which are to be set, reusing memory. `MR` must be
    /// that of the call before.
    #[inline(always)]
    pub fn reset<const MR: usize>(&mut self, count: usize, depth: usize) {
        // In rows of the same size, what fills the ends is zero already.
        if (self.count, self.depth) != (count, depth) {
            (self.count, self.depth) = (count, depth);
            let size = count.div_ceil(MR) * self.group_size::<MR>();
            self.data.clear();
            self.data.resize(size, 0.0);
            self.starts.clear();
            for (group, rows) in each_group::<MR>(count).enumerate() {
                let first = group * self.group_size::<MR>();
                self.starts.extend((0..rows.len()).map(|row| first + row * BLOCK));
            }
        }
    }

    /// Number of rows.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The groups.
    #[inline(always)]
    pub fn groups<const MR: usize>(&self) -> ChunksExact<'_, f32> {
        self.data.chunks_exact(self.group_size::<MR>().max(1))
    }

    /// Values of a group.
    #[inline(always)]
    pub fn group_size<const MR: usize>(&self) -> usize {
        MR * self.depth.next_multiple_of(BLOCK)
    }
}

impl Rows {
    /// The values, `[blocks][MR][BLOCK]` of the first group, then of the next.
    #[inline(always)]
    pub fn blocks<const MR: usize>(&mut self) -> &mut [[[f32; BLOCK]; MR]] {
        self.data.as_chunks_mut::<BLOCK>().0.as_chunks_mut::<MR>().0
    }

    /// Sets values of a row from `first` on.
    #[inline(always)]
    pub fn set<const MR: usize>(&mut self, row: usize, first: usize, values: &[f32]) {
        let start = self.starts[row];
        let (mut rest, within) = (values, first % BLOCK);
        if within > 0 {
            let (values, after) = values.split_at(values.len().min(BLOCK - within));
            let block = start + first / BLOCK * (MR * BLOCK) + within;
            self.data[block..][..values.len()].copy_from_slice(values);
            rest = after;
        }
        let mut blocks = self.data[start..].chunks_mut(MR * BLOCK).skip(first.div_ceil(BLOCK));
        let (values, last) = rest.as_chunks::<BLOCK>();
        for (values, block) in values.iter().zip(&mut blocks) {
            block[..BLOCK].copy_from_slice(values);
        }
        if let Some(block) = blocks.next() {
            block.iter_mut().zip(last).for_each(|(place, x)| *place = *x);
        }
    }

    /// Sets a tile's rows, which must be those of a group, from `first` on.
    #[inline(always)]
    pub fn set_tile<const MR: usize>(&mut self, sums: &Sums, first: usize) {
        if !sums.stride.is_multiple_of(BLOCK) || !first.is_multiple_of(BLOCK) {
            return sums.rows().for_each(|(row, values)| self.set::<MR>(row, first, values));
        }
        let start = self.starts[sums.row] + first / BLOCK * (MR * BLOCK);
        let blocks = self.data[start..].chunks_mut(MR * BLOCK);
        for (block, from) in blocks.zip((0..sums.columns).step_by(BLOCK)) {
            let rows = sums.values.chunks_exact(sums.stride);
            for (place, row) in block.as_chunks_mut::<BLOCK>().0.iter_mut().zip(rows) {
                place.copy_from_slice(&row[from..from + BLOCK]);
            }
        }
    }

    /// Copies a row.
    #[inline(always)]
    pub fn copy<const MR: usize>(&self, row: usize, out: &mut [f32]) {
        let start = self.starts[row];
        let blocks = self.data[start..].chunks(MR * BLOCK);
        for (out, block) in out.chunks_mut(BLOCK).zip(blocks) {
            out.copy_from_slice(&block[..out.len()]);
        }
    }
}

impl Rows<true> {
    /// Sets, of all rows, the values at a place of the depth.
    #[inline(always)]
    pub fn set_across<const MR: usize>(&mut self, place: usize, values: &[f32]) {
        let size = self.group_size::<MR>().max(1);
        let groups = each_group::<MR>(self.count);
        for (group, rows) in self.data.chunks_exact_mut(size).zip(groups) {
            group[place * MR..][..rows.len()].copy_from_slice(&values[rows]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_equally_large() {
        for count in 0..60 {
            let groups: Vec<_> = each_group::<12>(count).collect();
            assert_eq!(groups.len(), count.div_ceil(12));
            assert_eq!(
                groups.iter().cloned().flatten().collect::<Vec<_>>(),
                Vec::from_iter(0..count)
            );
            let sizes = groups.iter().map(Range::len);
            let (least, most) = (sizes.clone().min().unwrap_or(0), sizes.max().unwrap_or(0));
            assert!(most <= 12 && most - least <= 1, "{count}");
        }
    }

    /// Tiles as wide as two blocks, as one and as half of one; the second group is of three rows.
    #[test]
    fn tiles_are_set_as_rows_are() {
        const MR: usize = 4;
        let (count, depth) = (7, 40);
        for stride in [32, 16, 8] {
            let (mut by_row, mut by_tile) = (Rows::default(), Rows::default());
            by_row.reset::<MR>(count, depth);
            by_tile.reset::<MR>(count, depth);
            for range in each_group::<MR>(count) {
                for column in (0..depth).step_by(stride) {
                    let columns = stride.min(depth - column);
                    let inside = |at: usize| at % stride < columns;
                    let mut values: Vec<f32> = (0..range.len() * stride)
                        .map(|at| if inside(at) { (column * 100 + at + 1) as f32 } else { 0.0 })
                        .collect();
                    let row = range.start;
                    let sums = Sums { row, column, columns, values: &mut values, stride };
                    for (row, values) in sums.rows() {
                        by_row.set::<MR>(row, column, values);
                    }
                    by_tile.set_tile::<MR>(&sums, column);
                }
            }
            assert_eq!(by_tile.data, by_row.data, "{stride}");
        }
    }

    #[test]
    fn both_orders_hold_the_same_rows() {
        const MR: usize = 6;
        let (count, depth) = (8usize, 37usize);
        let value = |row: usize, place: usize| (row * depth + place + 1) as f32;
        let (mut by_row, mut across) = (Rows::default(), Rows::<true>::default());
        by_row.reset::<MR>(count, depth);
        across.reset::<MR>(count, depth);
        for row in 0..count {
            let line: Vec<f32> = (0..depth).map(|place| value(row, place)).collect();
            // Parts that begin and end within blocks, and at their ends.
            for part in [0..1, 1..3, 3..8, 8..9, 9..30, 30..37] {
                by_row.set::<MR>(row, part.start, &line[part]);
            }
        }
        for row in 0..count {
            let mut line = vec![0.0; depth];
            by_row.copy::<MR>(row, &mut line);
            assert!(line.iter().enumerate().all(|(place, x)| *x == value(row, place)));
        }
        for place in 0..depth {
            let line: Vec<f32> = (0..count).map(|row| value(row, place)).collect();
            across.set_across::<MR>(place, &line);
        }
        for (group, (by_row, across)) in
            by_row.groups::<MR>().zip(across.groups::<MR>()).enumerate()
        {
            let rows = [0..4, 4..8][group].clone();
            for (index, across) in across.iter().enumerate() {
                let (row, place) = (index % MR, index / MR);
                let inside = row < rows.len() && place < depth;
                let expected = if inside { value(rows.start + row, place) } else { 0.0 };
                assert_eq!(*across, expected);
                let (block, place) = (place / BLOCK, place % BLOCK);
                assert_eq!(by_row[(block * MR + row) * BLOCK + place], expected);
            }
        }
    }
}
