//! A tile of a product of whole numbers, by the widest instructions that the processor has.

use super::{
    integer::DEPTH,
    kernel::{Line, MOST_COLUMNS, Pair},
    rows::BLOCK,
};

/// Pairs of places of a block.
const PAIRS: usize = BLOCK / 2;

/// Sums of products over the depth of the first `COUNT` rows of a group
/// ([`Rows`](super::rows::Rows)) and a panel of `width` columns; the rest are of no meaning.
#[inline(always)]
pub(super) fn tile<const MR: usize, const COUNT: usize>(
    pair: &Pair<i16, i16>,
    width: usize,
) -> [Line; MR] {
    #[cfg(target_arch = "x86_64")]
    {
        use pulp::x86::{V3, V4};

        const WIDE: usize = 32;
        const NARROW: usize = 16;
        const NARROW_ROWS: usize = 6;
        // Where vectors are wide a tile has more rows, so the code for the others is left out.
        if MR > NARROW_ROWS && width == WIDE {
            if let Some(simd) = vectors::Vnni::try_new() {
                return vectors::vnni::<MR, COUNT>(simd, pair);
            }
            if let Some(simd) = V4::try_new() {
                return vectors::pairwise::<MR, COUNT>(simd, pair);
            }
        }
        if MR <= NARROW_ROWS
            && let (NARROW, Some(simd)) = (width, V3::try_new())
        {
            return vectors::narrow::<MR, COUNT>(simd, pair);
        }
    }
    portable(pair.rows, pair.weights, width)
}

/// The same on every processor.
fn portable<const MR: usize>(rows: &[i16], panel: &[i16], width: usize) -> [Line; MR] {
    let mut totals = [[0.0; MOST_COLUMNS]; MR];
    for (rows, panel) in rows.chunks(DEPTH * MR).zip(panel.chunks(DEPTH * width)) {
        let mut sums = [[0i32; MOST_COLUMNS]; MR];
        for (step, weights) in panel.chunks_exact(2 * width).enumerate() {
            for (row, sums) in pairs_of_rows::<MR>(rows, step).iter().zip(&mut sums) {
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

/// Values of the rows at two places of the depth.
#[inline(always)]
fn pairs_of_rows<const MR: usize>(rows: &[i16], step: usize) -> [[i16; 2]; MR] {
    let start = step / PAIRS * (MR * BLOCK) + step % PAIRS * 2;
    let rows = &rows[start..][..(MR - 1) * BLOCK + 2];
    std::array::from_fn(|row| [rows[row * BLOCK], rows[row * BLOCK + 1]])
}

#[cfg(target_arch = "x86_64")]
mod vectors {
    use std::arch::x86_64::_mm512_dpwssd_epi32;

    use pulp::{
        bytemuck::{Pod, cast_slice},
        f32x8, i16x16, i16x32, i32x16,
        x86::{V3, V4},
    };

    use super::{
        super::kernel::{Pair, prefetch, shares},
        DEPTH, Line, MOST_COLUMNS, PAIRS, pairs_of_rows,
    };

    /// Vectors of a row.
    const VECTORS: usize = 2;

    pulp::simd_type! {
        /// AVX-512 with an instruction that multiplies and adds whole numbers.
        pub struct Vnni {
            avx512f: "avx512f",
            avx512bw: "avx512bw",
            avx512cd: "avx512cd",
            avx512dq: "avx512dq",
            avx512vl: "avx512vl",
            avx512vnni: "avx512vnni",
        }
    }

    /// Tiles of 16 columns.
    #[inline(always)]
    pub fn narrow<const MR: usize, const COUNT: usize>(
        simd: V3,
        pair: &Pair<i16, i16>,
    ) -> [Line; MR] {
        let add = |sum, row, weight: i16x16| {
            let row = pulp::cast(simd.splat_i32x8(row));
            let products = simd.multiply_wrapping_add_adjacent_i16x16(row, weight);
            simd.wrapping_add_i32x8(sum, products)
        };
        let finish = |total, sum| simd.add_f32x8(total, simd.convert_i32x8_to_f32x8(sum));
        let zeros = (simd.splat_i32x8(0), simd.splat_f32x8(0.0));
        let totals = totals::<MR, COUNT, _, _, _>(pair, zeros, add, finish);
        totals.map(|totals| {
            let mut line = [0.0; MOST_COLUMNS];
            line[..VECTORS * 8].copy_from_slice(cast_slice::<f32x8, f32>(&totals));
            line
        })
    }

    /// Tiles of 32 columns; `add` adds the products of pairs to sums.
    #[inline(always)]
    fn wide<const MR: usize, const COUNT: usize>(
        simd: V4,
        pair: &Pair<i16, i16>,
        add: impl Fn(i32x16, i16x32, i16x32) -> i32x16,
    ) -> [Line; MR] {
        let add = |sum, row, weight| add(sum, pulp::cast(simd.splat_i32x16(row)), weight);
        let finish = |total, sum| simd.add_f32x16(total, simd.convert_i32x16_to_f32x16(sum));
        let zeros = (simd.splat_i32x16(0), simd.splat_f32x16(0.0));
        totals::<MR, COUNT, _, _, _>(pair, zeros, add, finish).map(pulp::cast)
    }

    /// Sums of [`DEPTH`] products each, from which `finish` makes totals.
    #[inline(always)]
    fn totals<const MR: usize, const COUNT: usize, Sum: Copy, Total: Copy, Weights: Pod>(
        pair: &Pair<i16, i16>,
        (no_sum, no_total): (Sum, Total),
        add: impl Fn(Sum, i32, Weights) -> Sum,
        finish: impl Fn(Total, Sum) -> Total,
    ) -> [[Total; VECTORS]; MR] {
        let mut totals = [[no_total; VECTORS]; MR];
        let panel = cast_slice::<i16, Weights>(pair.weights).as_chunks::<VECTORS>().0;
        let mut ahead = shares(pair.ahead, panel.len().div_ceil(PAIRS));
        for (rows, panel) in pair.rows.chunks(DEPTH * MR).zip(panel.chunks(DEPTH / 2)) {
            let mut sums = [[no_sum; VECTORS]; MR];
            // One step at a time: where the compiler sees several additions to the same sum, it
            // takes `vpdpwssd` apart to shorten the chain.
            for (step, weights) in panel.iter().enumerate() {
                if step.is_multiple_of(PAIRS) {
                    prefetch(ahead.next().unwrap_or_default());
                }
                let pairs = pairs_of_rows::<MR>(rows, step);
                for (pair, sums) in pairs.into_iter().zip(&mut sums).take(COUNT) {
                    for (weight, sum) in weights.iter().zip(sums) {
                        *sum = add(*sum, pulp::cast(pair), *weight);
                    }
                }
            }
            let pairs = totals.as_flattened_mut().iter_mut().zip(sums.as_flattened());
            pairs.take(COUNT * VECTORS).for_each(|(total, sum)| *total = finish(*total, *sum));
        }
        totals
    }

    /// Tiles of 32 columns by an instruction for products and one for sums.
    #[inline(always)]
    pub fn pairwise<const MR: usize, const COUNT: usize>(
        simd: V4,
        pair: &Pair<i16, i16>,
    ) -> [Line; MR] {
        let add = |sum, row, weight| {
            let products = simd.multiply_wrapping_add_adjacent_i16x32(row, weight);
            simd.wrapping_add_i32x16(sum, products)
        };
        wide::<MR, COUNT>(simd, pair, add)
    }

    /// The same by one instruction for products and sums.
    #[inline(always)]
    pub fn vnni<const MR: usize, const COUNT: usize>(
        simd: Vnni,
        pair: &Pair<i16, i16>,
    ) -> [Line; MR] {
        let Some(vectors) = V4::try_new() else {
            return super::portable(pair.rows, pair.weights, MOST_COLUMNS);
        };
        let add = |sum, row, weight| {
            // SAFETY: `simd` is only made where the processor has the instruction.
            let sum = unsafe {
                _mm512_dpwssd_epi32(pulp::cast(sum), pulp::cast(row), pulp::cast(weight))
            };
            pulp::cast(sum)
        };
        simd.vectorize(
            #[inline(always)]
            || wide::<MR, COUNT>(vectors, pair, add),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_processor_adds_the_same() {
        fn check<const MR: usize>(width: usize) {
            let value = |index: usize| ((index * 7919) % 8191) as i16 - 4095;
            for pairs in [1usize, 7, 64, 65, 200] {
                let size = (2 * pairs).next_multiple_of(BLOCK) * MR;
                let rows: Vec<i16> = (0..size).map(value).collect();
                let weights: Vec<i16> =
                    (0..pairs * 2 * width).map(|index| value(index + 5)).collect();
                let expected = portable::<MR>(&rows, &weights, width);
                let (rows, weights) = (&rows, &weights);
                let pair =
                    Pair { first_row: 0, count: MR, panel: 0, rows, weights, ahead: weights };
                assert_eq!(tile::<MR, MR>(&pair, width), expected, "{pairs}");
                let few = tile::<MR, 4>(&pair, width);
                assert_eq!(few[..4], expected[..4], "some rows: {pairs}");
                #[cfg(target_arch = "x86_64")]
                if let (32, Some(simd)) = (width, pulp::x86::V4::try_new()) {
                    let found = vectors::pairwise::<MR, MR>(simd, &pair);
                    assert_eq!(found, expected, "without VNNI: {pairs}");
                }
            }
        }
        check::<6>(16);
        check::<12>(32);
        check::<6>(8);
    }
}
