//! Matrix products of a block of rows with a weight, both laid out in the order in which they are
//! read (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008).

use std::{
    ops::Range,
    slice::{Chunks, ChunksExact},
};

use pulp::{Arch, Simd, WithSimd, bytemuck::cast_slice};

use super::{
    epilogue::{Epilogue, Sums},
    packed::Packed,
    rows::{BLOCK, Rows, each_group},
};

/// Vectors of a tile's row.
const VECTORS: usize = 2;
/// Fewest floats of a vector with which the kernels are worth it.
const LEAST_LANES: usize = 4;
/// Most columns of a tile.
pub(super) const MOST_COLUMNS: usize = 32;
/// Bytes of a cache line.
const LINE: usize = 64;

/// A row of a tile.
pub(super) type Line = [f32; MOST_COLUMNS];

/// Work of one thread, in the widest vectors that the processor has; `MR` are the rows of a tile.
pub(super) trait Task {
    /// Does it.
    fn run<S: Simd, const MR: usize>(self, simd: S);
}

/// Runs a task. To be called only where there are vectors ([`has_vectors`]): without them it would be
/// slow, and its code, which no one runs, as large again.
///
/// # Panics
///
/// Without vectors.
pub(super) fn run(task: impl Task) {
    struct Chosen<T>(T);
    impl<T: Task> WithSimd for Chosen<T> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            // A tile's sums, the vectors of the weight and one of the rows must fit the registers.
            if S::F32_LANES < LEAST_LANES {
                unreachable!("a kernel on a processor without vectors");
            } else if S::REGISTER_COUNT >= 32 {
                self.0.run::<S, 12>(simd);
            } else {
                self.0.run::<S, 6>(simd);
            }
        }
    }
    Arch::new().dispatch(Chosen(task));
}

/// Runs work compiled for the widest vectors that the processor has. `Arch::dispatch` would take it by
/// itself, but calls a closure as `FnOnce`, by a function that is not always inlined, and then is
/// compiled for any processor.
pub(super) fn vectorized(work: impl FnMut()) {
    struct Work<F>(F);
    impl<F: FnMut()> WithSimd for Work<F> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(mut self, _: S) {
            (self.0)();
        }
    }
    Arch::new().dispatch(Work(work));
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

/// Whether the kernels are worth it: the processor has vectors of at least [`LEAST_LANES`].
pub(super) fn has_vectors() -> bool {
    tile_columns() >= LEAST_LANES * VECTORS
}

/// Hands `epilogue` the product of `rows` and a part of `weight` (`depth` of its rows, `panels` of its
/// columns), a tile at a time.
#[inline(always)]
pub(super) fn product<S: Simd, const MR: usize, const ACROSS: bool>(
    simd: S,
    rows: &Rows<ACROSS>,
    weight: &Packed,
    panels: Range<usize>,
    depth: Range<usize>,
    mut epilogue: impl Epilogue,
) {
    let width = weight.panel_columns();
    let mut sums = [[0.0; MOST_COLUMNS]; MR];
    let part = |index: usize| &weight.panel(index)[depth.start * width..][..depth.len() * width];
    each_pair::<MR, _, _>(
        rows.count(),
        rows.groups::<MR>(),
        panels,
        part,
        weight.is_far(),
        #[inline(always)]
        |pair| {
            let column = pair.panel * width;
            let columns = width.min(weight.columns - column);
            let out = sums.as_flattened_mut();
            match pair.height::<MR>() {
                Height::Four => simd.vectorize(Tile::<MR, 4, ACROSS>(&pair, out)),
                Height::Five => simd.vectorize(Tile::<MR, 5, ACROSS>(&pair, out)),
                Height::Eight => simd.vectorize(Tile::<MR, 8, ACROSS>(&pair, out)),
                Height::Nine => simd.vectorize(Tile::<MR, 9, ACROSS>(&pair, out)),
                Height::Ten => simd.vectorize(Tile::<MR, 10, ACROSS>(&pair, out)),
                Height::Eleven => simd.vectorize(Tile::<MR, 11, ACROSS>(&pair, out)),
                Height::Full => simd.vectorize(Tile::<MR, MR, ACROSS>(&pair, out)),
            }
            let values = &mut out[..pair.count * width];
            let row = pair.first_row;
            epilogue.finish(simd, Sums { row, column, columns, values, stride: width });
        },
    );
}

/// A group of rows and a panel of a weight, whose product is a tile.
pub(super) struct Pair<'a, R, W> {
    /// First row of the group.
    pub first_row: usize,
    /// Rows of the group that are there.
    pub count: usize,
    pub panel: usize,
    pub rows: &'a [R],
    pub weights: &'a [W],
    /// What is needed later, to be fetched meanwhile.
    pub ahead: &'a [W],
}

/// Rows of a tile. Fewer than four take as long: their sums are as many as the processor has
/// multiply-adds under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Height {
    Four,
    Five,
    Eight,
    Nine,
    Ten,
    Eleven,
    /// As many as a group can have.
    Full,
}

impl<R, W> Pair<'_, R, W> {
    /// The smallest tile that has the rows that are there.
    #[inline(always)]
    pub fn height<const MR: usize>(&self) -> Height {
        match self.count {
            ..=4 if MR > 4 => Height::Four,
            5 if MR == 6 => Height::Five,
            ..=8 if MR > 8 => Height::Eight,
            9 if MR > 9 => Height::Nine,
            10 if MR > 10 => Height::Ten,
            11 if MR > 11 => Height::Eleven,
            _ => Height::Full,
        }
    }
}

/// Hands `each` the pairs of all groups of `count` rows with the first panel, then with the next;
/// `part` gives a panel's values, and `far` tells whether they have to be fetched before.
#[inline(always)]
pub(super) fn each_pair<'a, const MR: usize, R: 'a, W: 'a>(
    count: usize,
    groups: ChunksExact<'a, R>,
    panels: Range<usize>,
    part: impl Fn(usize) -> &'a [W],
    far: bool,
    mut each: impl FnMut(Pair<'a, R, W>),
) {
    for panel in panels.clone() {
        let weights = part(panel);
        let next = if far && panel + 1 < panels.end { part(panel + 1) } else { &[] };
        let mut ahead = shares(next, groups.len());
        for (rows, range) in groups.clone().zip(each_group::<MR>(count)) {
            let ahead = ahead.next().unwrap_or_default();
            let (first_row, count) = (range.start, range.len());
            each(Pair { first_row, count, panel, rows, weights, ahead });
        }
    }
}

/// Writes sums of products over the depth of the first `COUNT` rows of a group and a panel, row after
/// row. A function of its own, of which there is one for all products.
struct Tile<'a, const MR: usize, const COUNT: usize, const ACROSS: bool>(
    &'a Pair<'a, f32, f32>,
    &'a mut [f32],
);

impl<const MR: usize, const COUNT: usize, const ACROSS: bool> WithSimd
    for Tile<'_, MR, COUNT, ACROSS>
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Pair { rows, weights, ahead, .. } = *self.0;
        let panel = S::as_simd_f32s(weights).0.as_chunks::<VECTORS>().0;
        let (panel, last) = panel.as_chunks::<BLOCK>();
        let mut ahead = shares(ahead, panel.len());
        let mut blocks = rows.chunks_exact(MR * BLOCK);
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; MR];
        for (weights, rows) in panel.iter().zip(&mut blocks) {
            prefetch(ahead.next().unwrap_or_default());
            add_products::<S, MR, COUNT, ACROSS>(simd, rows, weights, &mut sums);
        }
        if let Some(rows) = blocks.next() {
            add_products::<S, MR, COUNT, ACROSS>(simd, rows, last, &mut sums);
        }
        let sums = cast_slice(sums[..COUNT].as_flattened());
        self.1[..sums.len()].copy_from_slice(sums);
    }
}

/// Adds the products of a block.
#[inline(always)]
fn add_products<S: Simd, const MR: usize, const COUNT: usize, const ACROSS: bool>(
    simd: S,
    rows: &[f32],
    weights: &[[S::f32s; VECTORS]],
    sums: &mut [[S::f32s; VECTORS]; MR],
) {
    let rows = &rows[..MR * BLOCK];
    for (place, weights) in weights.iter().enumerate().take(BLOCK) {
        for (row, sums) in sums.iter_mut().enumerate().take(COUNT) {
            let value = rows[if ACROSS { place * MR + row } else { row * BLOCK + place }];
            let value = simd.splat_f32s(value);
            for (weight, sum) in weights.iter().zip(sums) {
                *sum = simd.mul_add_e_f32s(value, *weight, *sum);
            }
        }
    }
}

/// At most `count` parts, all but the last of equally many whole cache lines.
#[inline(always)]
pub(super) fn shares<T>(values: &[T], count: usize) -> Chunks<'_, T> {
    let line = LINE / size_of::<T>();
    values.chunks(values.len().div_ceil(count.max(1)).next_multiple_of(line).max(line))
}

/// Has the processor bring values to its cache, where it can be told to: main memory is much slower
/// than products, and does not foresee the jump from one tile to the next.
#[inline(always)]
pub(super) fn prefetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in values.chunks(LINE / size_of::<T>()) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: this only asks, and faults with no address; every processor of the architecture
        // has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

#[cfg(test)]
mod tests {
    use super::{
        super::{epilogue::Set, packed::View},
        *,
    };

    #[test]
    fn shares_are_all_of_it_in_whole_lines() {
        for (length, count) in [(0, 3), (1, 1), (16, 4), (100, 3), (1000, 7), (24_576, 9)] {
            let values: Vec<f32> = (0..length).map(|index| index as f32).collect();
            let parts: Vec<&[f32]> = shares(&values, count).collect();
            assert_eq!(parts.concat(), values);
            assert!(parts.len() <= count, "{length} {count}: {}", parts.len());
            assert!(parts.iter().rev().skip(1).all(|part| part.len() % 16 == 0));
            prefetch(&values);
        }
    }

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
            product::<S, MR, _>(
                simd,
                &rows,
                self.weight,
                panels,
                0..depth,
                Set { out: self.out, width: columns },
            );
        }
    }

    fn matrix(rows: usize, columns: usize, seed: usize) -> Vec<f32> {
        let value = |index: usize| ((index * 7919 + seed * 31) % 23) as f32 - 11.0;
        (0..rows * columns).map(value).collect()
    }

    /// Small whole numbers, so the result is exact.
    #[test]
    fn products_of_every_size() {
        for (rows, depth, columns) in [
            (1, 1, 1),
            (5, 3, 17),
            (13, 40, 64),
            (20, 7, 33),
            (6, 9, 95),
            (22, 10, 16),
            (48, 6, 33),
        ] {
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
