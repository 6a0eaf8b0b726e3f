//! The most that the processor can multiply and add: what kernels are measured by.

use std::{array, hint::black_box, time::Instant};

use pulp::{Arch, Simd, WithSimd};

/// Sums that are under way at the same time: more than fit into the time of one multiply-add on any
/// processor, and few enough for 16 registers.
const SUMS: usize = 12;
/// Multiply-adds of each.
const STEPS: usize = 1 << 16;
/// Tasks of a thread in a round.
const TASKS: usize = 1_000;
/// Rounds, of which the best counts.
const ROUNDS: usize = 5;

/// Multiply-adds of vectors in registers; gives the number of operations on floats.
struct MultiplyAdds;

impl WithSimd for MultiplyAdds {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let factor = simd.splat_f32s(black_box(0.5));
        let mut sums: [S::f32s; SUMS] =
            array::from_fn(|index| simd.splat_f32s(black_box(index as f32)));
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = simd.mul_add_e_f32s(*sum, factor, factor);
            }
        }
        black_box(sums.map(|sum| simd.reduce_sum_f32s(sum)));
        (2 * SUMS * STEPS * S::F32_LANES) as f64
    }
}

/// Billions of operations on 32-bit floats in a second, by all threads together.
pub fn gflops() -> f64 {
    let round = |_| {
        let clock = Instant::now();
        let thread = |_: rayon::BroadcastContext<'_>| -> f64 {
            (0..TASKS).map(|_| Arch::new().dispatch(MultiplyAdds)).sum()
        };
        let operations: f64 = rayon::broadcast(thread).into_iter().sum();
        operations / clock.elapsed().as_secs_f64() / 1e9
    };
    (0..ROUNDS).map(round).fold(0.0, f64::max)
}
