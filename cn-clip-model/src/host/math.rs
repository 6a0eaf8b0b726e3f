//! Functions of single rows, written so that they compile to vector instructions.

use std::ops::Deref;

use super::rows::BLOCK;

/// Sums kept side by side, so that additions need not wait for each other: a block of rows.
const LANES: usize = BLOCK;

/// What a feed-forward part does to its hidden values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
    /// `x * Phi(x)`, by the error function.
    Gelu,
}

impl Activation {
    /// Applies it to every value.
    #[inline(always)]
    pub fn apply(self, values: &mut [f32]) {
        match self {
            Self::QuickGelu => values.iter_mut().for_each(|x| *x /= 1.0 + exp(-1.702 * *x)),
            Self::Gelu => values.iter_mut().for_each(|x| *x = gelu(*x)),
        }
    }

    /// Replaces every value by its gradient, given that of the result.
    #[inline(always)]
    pub fn backward(self, values: &mut [f32], gradient: &[f32]) {
        let pairs = values.iter_mut().zip(gradient);
        match self {
            Self::QuickGelu => pairs.for_each(|(x, gradient)| {
                let gate = 1.0 / (1.0 + exp(-1.702 * *x));
                *x = gradient * gate * (1.702 * *x).mul_add(1.0 - gate, 1.0);
            }),
            Self::Gelu => pairs.for_each(|(x, gradient)| {
                const DENSITY: f32 = 0.398_942_3; // 1 / sqrt(2 pi)
                let integral = 0.5 * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2));
                *x = gradient * (*x * DENSITY).mul_add(exp(-0.5 * *x * *x), integral);
            }),
        }
    }
}

/// `e^x` within 2 units in the last place; 0 and infinity are left out at the ends.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, SHIFT);
    let power = shifted - SHIFT;
    let rest = power.mul_add(-LN2_LOW, power.mul_add(-LN2_HIGH, x));
    // Taylor series; the remainder is at most ln(2) / 2.
    let mut sum = 1.0 / 5040.0;
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = rest.mul_add(sum, factor);
    }
    f32::from_bits(sum.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// `x * Phi(x)`, the normal distribution's integral by a rational approximation of the error
/// function: off by at most a few units in the last place of the larger of `|x|` and 1.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// Error function, `x * P(x^2) / Q(x^2)` fitted on [-4, 4], beyond which it is 1 in single
/// precision.
#[inline(always)]
fn erf(x: f32) -> f32 {
    const P: [f32; 7] = [
        -2.726_142_4e-10,
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_4e-5,
        -7.349_906e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ];
    const Q: [f32; 5] =
        [-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2];
    let x = x.clamp(-4.0, 4.0);
    let square = x * x;
    let (mut p, mut q) = (P[0], Q[0]);
    P[1..].iter().for_each(|factor| p = p.mul_add(square, *factor));
    Q[1..].iter().for_each(|factor| q = q.mul_add(square, *factor));
    x * p / q
}

/// Layer norm of a row: `(x - mean) / sqrt(variance + epsilon) * scale + shift`.
#[inline(always)]
pub(super) fn layer_norm<V: Deref<Target = [f32]>>(row: &[f32], norm: &Norm<V>, out: &mut [f32]) {
    let moments = moments(row, norm.epsilon);
    let parameters = norm.scale.iter().zip(&*norm.shift);
    for ((out, x), (scale, shift)) in out.iter_mut().zip(row).zip(parameters) {
        *out = normalised(*x, moments, *scale, *shift);
    }
}

/// The same in place.
#[inline(always)]
pub(super) fn normalise<V: Deref<Target = [f32]>>(row: &mut [f32], norm: &Norm<V>) {
    let moments = moments(row, norm.epsilon);
    let parameters = norm.scale.iter().zip(&*norm.shift);
    for (x, (scale, shift)) in row.iter_mut().zip(parameters) {
        *x = normalised(*x, moments, *scale, *shift);
    }
}

/// A value of a row with these [`moments`].
#[inline(always)]
pub(super) fn normalised(x: f32, (mean, factor): (f32, f32), scale: f32, shift: f32) -> f32 {
    ((x - mean) * factor).mul_add(scale, shift)
}

/// Mean of a row, and the inverse of its standard deviation.
#[inline(always)]
pub(super) fn moments(row: &[f32], epsilon: f32) -> (f32, f32) {
    let count = row.len() as f32;
    let mean = sum(row, row, |x, _| x) / count;
    let variance = sum(row, row, |x, _| (x - mean) * (x - mean)) / count;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

/// Parameters of a layer norm, owned or borrowed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Norm<V = Vec<f32>> {
    pub scale: V,
    pub shift: V,
    pub epsilon: f32,
}

/// Turns the first `count` scores of rows into `e^(score - largest of the row)` and returns their
/// sums; `blocks` hold as many scores of each row, what fills the last one is not kept.
#[inline(always)]
pub(super) fn exponentials<const ROWS: usize>(
    blocks: &mut [[[f32; LANES]; ROWS]],
    count: usize,
) -> [f32; ROWS] {
    let used = count % LANES;
    if let Some(block) = blocks.last_mut().filter(|_| used > 0) {
        block.iter_mut().for_each(|row| row[used..].fill(f32::NEG_INFINITY));
    }
    let mut largest = [[f32::NEG_INFINITY; LANES]; ROWS];
    for block in &*blocks {
        for (largest, row) in largest.iter_mut().zip(block) {
            for (largest, x) in largest.iter_mut().zip(row) {
                *largest = if *x > *largest { *x } else { *largest };
            }
        }
    }
    let mut largest_of_rows = [f32::NEG_INFINITY; ROWS];
    for (of_row, largest) in largest_of_rows.iter_mut().zip(&largest) {
        for x in largest {
            *of_row = if *x > *of_row { *x } else { *of_row };
        }
    }
    let mut sums = [[0.0; LANES]; ROWS];
    for block in blocks {
        for ((row, sums), largest) in block.iter_mut().zip(&mut sums).zip(&largest_of_rows) {
            for (x, sum) in row.iter_mut().zip(sums) {
                *x = exp(*x - largest);
                *sum += *x;
            }
        }
    }
    let mut totals = [0.0; ROWS];
    for (total, sums) in totals.iter_mut().zip(&sums) {
        for sum in sums {
            *total += sum;
        }
    }
    totals
}

/// Sum of a function of two rows of the same length.
#[inline(always)]
pub(super) fn sum(a: &[f32], b: &[f32], of: impl Fn(f32, f32) -> f32) -> f32 {
    let ((a, rest_of_a), (b, rest_of_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += of(*a, *b);
        }
    }
    let rest = rest_of_a.iter().zip(rest_of_b).map(|(a, b)| of(*a, *b));
    sums.iter().copied().chain(rest).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(from: f32, to: f32) -> impl Iterator<Item = f32> {
        (0..=200_000).map(move |step| from + (to - from) * step as f32 / 200_000.0)
    }

    #[test]
    fn exp_is_within_rounding() {
        for x in steps(-86.0, 87.0) {
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 2.5e-7, "{x}: {error}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e9) < 1e-37 && exp(1e9) > 1e38 && exp(f32::NAN).is_nan());
    }

    /// Against the integral, by Simpson's rule in double precision.
    #[test]
    fn gelu_is_within_rounding() {
        let (mut phi, mut at) = (0.5, 0.0f64);
        let density = |x: f64| (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
        for x in steps(0.0, 8.0).map(f64::from) {
            phi += (x - at) / 6.0 * (density(at) + 4.0 * density((at + x) / 2.0) + density(x));
            at = x;
            for (x, phi) in [(x, phi), (-x, 1.0 - phi)] {
                let error = (f64::from(gelu(x as f32)) - x * phi).abs();
                assert!(error < 3e-7 * x.abs().max(1.0), "{x}: {error}");
            }
        }
    }

    #[test]
    fn quick_gelu_is_within_rounding() {
        for x in steps(-40.0, 40.0) {
            let mut values = [x];
            Activation::QuickGelu.apply(&mut values);
            let expected = f64::from(x) / (1.0 + (-1.702 * f64::from(x)).exp());
            let error = (f64::from(values[0]) - expected).abs();
            assert!(error <= 3e-7 * f64::from(x.abs()).max(1.0), "{x}: {error}");
        }
    }

    #[test]
    fn softmax_and_layer_norm_of_odd_lengths() {
        for count in [1usize, 15, 16, 17, 50] {
            let row: Vec<f32> = (0..count).map(|i| ((i * 37 % 19) as f32 - 9.0) / 3.0).collect();
            // A row and the same, turned; what fills the last block would be the largest.
            let mut blocks = vec![[[f32::MAX; LANES]; 2]; count.div_ceil(LANES)];
            for (index, x) in row.iter().enumerate() {
                blocks[index / LANES][0][index % LANES] = *x;
                blocks[index / LANES][1][index % LANES] = -x;
            }
            let sums = exponentials(&mut blocks, count);
            for (index, sign) in [1.0, -1.0].into_iter().enumerate() {
                let largest = row.iter().map(|x| sign * x).fold(f32::MIN, f32::max);
                let exact = |x: &f32| f64::from(sign * x - largest).exp();
                let total: f64 = row.iter().map(exact).sum();
                assert!((f64::from(sums[index]) - total).abs() < 1e-6 * total);
                for (place, x) in row.iter().enumerate() {
                    let found = f64::from(blocks[place / LANES][index][place % LANES]);
                    assert!((found - exact(x)).abs() < 1e-6);
                }
            }
            let norm = Norm { scale: vec![2.0; count], shift: vec![1.0; count], epsilon: 1e-5 };
            let mut out = vec![0.0; count];
            layer_norm(&row, &norm, &mut out);
            let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / count as f64;
            let square = |x: &f32| (f64::from(*x) - mean).powi(2);
            let variance = row.iter().map(square).sum::<f64>() / count as f64;
            for (x, y) in row.iter().zip(&out) {
                let expected = (f64::from(*x) - mean) / (variance + 1e-5).sqrt() * 2.0 + 1.0;
                assert!((f64::from(*y) - expected).abs() < 1e-5, "{count}: {y} {expected}");
            }
            let mut in_place = row.clone();
            normalise(&mut in_place, &norm);
            assert_eq!(in_place, out);
        }
    }
}
