//! Inner products in doubles, and how far one in single precision can be from them.

use rayon::prelude::*;

/// Inner product in doubles; the same two vectors give the same bits everywhere.
///
/// A negative zero comes out as a positive one, so that equal scores compare equal.
pub(crate) fn exact(left: &[f32], right: &[f32]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0_f64; LANES];
    let (left_chunks, right_chunks) = (left.chunks_exact(LANES), right.chunks_exact(LANES));
    let tail: f64 = left_chunks
        .remainder()
        .iter()
        .zip(right_chunks.remainder())
        .map(|(&a, &b)| f64::from(a) * f64::from(b))
        .sum();
    for (a, b) in left_chunks.zip(right_chunks) {
        for lane in 0..LANES {
            sums[lane] += f64::from(a[lane]) * f64::from(b[lane]);
        }
    }
    sums.iter().sum::<f64>() + tail + 0.0
}

/// Length of the longest row of `[rows, dim]`.
pub(super) fn longest(values: &[f32], dim: usize) -> f64 {
    values.chunks_exact(dim).map(|row| exact(row, row)).fold(0.0, f64::max).sqrt()
}

/// Lengths of all rows of `[rows, dim]`.
pub(super) fn lengths(values: &[f32], dim: usize) -> Vec<f64> {
    values.par_chunks_exact(dim).map(|row| exact(row, row).sqrt()).collect()
}

/// Where products in single precision come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    /// IEEE single precision, summed in any order.
    Single,
    /// A device, which may cut the operands to TF32.
    Device,
}

impl Arithmetic {
    /// How far a product of two vectors of `dim` values, whose lengths multiply to `lengths`, can be
    /// from [`exact`].
    ///
    /// Summation in single precision adds at most `dim` units of 2^-24, taken twice here; operands
    /// cut to TF32 (10 bits of fraction) err by 2^-10 each; both relative to the product of the
    /// lengths. The last term covers results flushed to zero. Infinite, so that everything is
    /// settled exactly, where single precision may overflow.
    pub(super) fn error_bound(self, dim: usize, lengths: f64) -> f64 {
        if lengths >= 1e37 || lengths.is_nan() {
            return f64::INFINITY;
        }
        let dim = dim as f64;
        let operands = match self {
            Self::Single => 0.0,
            Self::Device => 2.0_f64.powi(-9),
        };
        (operands + dim * 2.0_f64.powi(-23)) * lengths + dim * f64::from(f32::MIN_POSITIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_products_keep_what_single_precision_loses() {
        let left: Vec<f32> = (0..19).map(|i| if i == 3 { 1e8 } else { 1.0 }).collect();
        let right: Vec<f32> = (0..19).map(|i| if i == 4 { -1e8 } else { 1.0 }).collect();
        assert_eq!(exact(&left, &right), 17.0);
        assert_eq!(exact(&[-1.0], &[0.0]).to_bits(), 0.0_f64.to_bits());
    }

    #[test]
    fn lengths_are_euclidean() {
        let rows = [3.0, 4.0, 0.0, 1e-30, -8.0, 6.0];
        assert_eq!(longest(&rows, 2), 10.0);
        let found = lengths(&rows, 2);
        assert_eq!((found[0], found[2]), (5.0, 10.0));
        assert!((found[1] - 1e-30).abs() < 1e-36);
    }

    #[test]
    fn bounds_grow_with_size_and_are_infinite_where_overflow_is_possible() {
        let (single, device) = (Arithmetic::Single, Arithmetic::Device);
        assert!(single.error_bound(512, 1.0) < 1e-4);
        assert!(device.error_bound(512, 1.0) > 1e-3);
        assert!(single.error_bound(512, 2.0) > single.error_bound(512, 1.0));
        assert!(single.error_bound(4, 0.0) > 0.0);
        assert_eq!(single.error_bound(1, 1e38), f64::INFINITY);
        assert_eq!(device.error_bound(1, f64::NAN), f64::INFINITY);
    }
}
