//! Operations of training that work on rows, forwards and backwards, each in one pass over memory
//! on all threads.

use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use super::math::{Activation, exponentials, sum};

/// Values of a task.
const CHUNK: usize = 1 << 14;

/// A function of each row (or, for activations, of each value).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowFunction {
    Activation(Activation),
    /// `e^x` divided by their sum.
    Softmax,
}

impl RowFunction {
    /// Its values for rows of this width.
    pub fn forward(self, x: &[f32], width: usize) -> Vec<f32> {
        let mut out = x.to_vec();
        let width = width.max(1);
        out.par_chunks_mut(chunk(width)).for_each(|out| {
            Arch::new().dispatch(Forward { function: self, width, out });
        });
        out
    }

    /// The gradient of `x` by that of the values.
    pub fn backward(self, x: &[f32], gradient: &[f32], width: usize) -> Vec<f32> {
        let width = width.max(1);
        let mut out = x.to_vec();
        let chunks = out.par_chunks_mut(chunk(width)).zip(gradient.par_chunks(chunk(width)));
        chunks.for_each(|(out, gradient)| {
            Arch::new().dispatch(Backward { function: self, width, out, gradient });
        });
        out
    }
}

fn chunk(width: usize) -> usize {
    (CHUNK / width).max(1) * width
}

struct Forward<'a> {
    function: RowFunction,
    width: usize,
    out: &'a mut [f32],
}

impl NullaryFnOnce for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        match self.function {
            RowFunction::Activation(activation) => activation.apply(self.out),
            RowFunction::Softmax => self.out.chunks_exact_mut(self.width).for_each(softmax),
        }
    }
}

#[inline(always)]
fn softmax(row: &mut [f32]) {
    let factor = 1.0 / exponentials(row);
    row.iter_mut().for_each(|x| *x *= factor);
}

struct Backward<'a> {
    function: RowFunction,
    width: usize,
    /// Holds the input, and then its gradient.
    out: &'a mut [f32],
    gradient: &'a [f32],
}

impl NullaryFnOnce for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        match self.function {
            RowFunction::Activation(activation) => activation.backward(self.out, self.gradient),
            RowFunction::Softmax => {
                let gradients = self.gradient.chunks_exact(self.width);
                for (row, gradient) in self.out.chunks_exact_mut(self.width).zip(gradients) {
                    softmax(row);
                    let mean = sum(row, gradient, |p, gradient| p * gradient);
                    for (p, gradient) in row.iter_mut().zip(gradient) {
                        *p *= gradient - mean;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, seed: f32) -> Vec<f32> {
        (0..count).map(|index| (index as f32 * seed).sin() * 2.0).collect()
    }

    /// Against differences in the direction of each value, for a weighted sum of the output.
    fn check(x: &[f32], gradient: &[f32], found: &[f32], f: impl Fn(&[f32]) -> Vec<f32>) {
        let total = |x: &[f32]| -> f64 {
            f(x).iter().zip(gradient).map(|(y, g)| f64::from(*y) * f64::from(*g)).sum()
        };
        const STEP: f32 = 1e-2;
        for index in 0..x.len() {
            let (mut above, mut below) = (x.to_vec(), x.to_vec());
            above[index] += STEP;
            below[index] -= STEP;
            let expected = (total(&above) - total(&below)) / f64::from(2.0 * STEP);
            let error = (expected - f64::from(found[index])).abs();
            assert!(error < 1e-3, "{index}: {expected} {}", found[index]);
        }
    }

    #[test]
    fn gradients_are_the_slopes() {
        let (width, rows) = (21, 3);
        let (x, gradient) = (values(width * rows, 0.7), values(width * rows, 1.3));
        for function in [
            RowFunction::Activation(Activation::QuickGelu),
            RowFunction::Activation(Activation::Gelu),
            RowFunction::Softmax,
        ] {
            let found = function.backward(&x, &gradient, width);
            check(&x, &gradient, &found, |x| function.forward(x, width));
        }
    }

    #[test]
    fn rows_longer_than_a_task_and_no_rows() {
        let width = CHUNK + 5;
        let row = RowFunction::Softmax.forward(&values(2 * width, 0.1), width);
        for row in row.chunks(width) {
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-4);
        }
        assert!(RowFunction::Softmax.forward(&[], 0).is_empty());
    }
}
