//! Operations of training that work on rows, forwards and backwards, each in one pass over memory
//! on all threads.

use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use super::math::{Activation, Norm, exponentials, layer_norm, moments, sum};

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

/// Layer norm of every row.
pub(super) fn norm_forward(x: &[f32], norm: &Norm) -> Vec<f32> {
    let width = norm.scale.len().max(1);
    let mut out = vec![0.0; x.len()];
    let chunks = out.par_chunks_mut(chunk(width)).zip(x.par_chunks(chunk(width)));
    chunks.for_each(|(out, x)| Arch::new().dispatch(NormForward { norm, x, out }));
    out
}

struct NormForward<'a> {
    norm: &'a Norm,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl NullaryFnOnce for NormForward<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let width = self.norm.scale.len().max(1);
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            layer_norm(x, self.norm, out);
        }
    }
}

/// Gradients of the rows, the scale and the shift of a layer norm by that of its output.
pub(super) fn norm_backward(x: &[f32], gradient: &[f32], norm: &Norm) -> [Vec<f32>; 3] {
    let width = norm.scale.len().max(1);
    let mut out = vec![0.0; x.len()];
    let inputs = x.par_chunks(chunk(width)).zip(gradient.par_chunks(chunk(width)));
    let parts: Vec<[Vec<f32>; 2]> = out
        .par_chunks_mut(chunk(width))
        .zip(inputs)
        .map(|(out, (x, gradient))| Arch::new().dispatch(NormBackward { norm, x, gradient, out }))
        .collect();
    // In the order of the rows, so that the sums do not depend on the number of threads.
    let mut sums = [vec![0.0; width], vec![0.0; width]];
    for part in &parts {
        for (sums, part) in sums.iter_mut().zip(part) {
            sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
    }
    let [scale, shift] = sums;
    [out, scale, shift]
}

struct NormBackward<'a> {
    norm: &'a Norm,
    x: &'a [f32],
    gradient: &'a [f32],
    out: &'a mut [f32],
}

impl NullaryFnOnce for NormBackward<'_> {
    /// Gradients of scale and shift.
    type Output = [Vec<f32>; 2];

    #[inline(always)]
    fn call(self) -> [Vec<f32>; 2] {
        let scale = &self.norm.scale[..];
        let width = scale.len().max(1);
        let (mut of_scale, mut of_shift) = (vec![0.0; width], vec![0.0; width]);
        let (mut normal, mut scaled) = (vec![0.0; width], vec![0.0; width]);
        let rows = self.x.chunks_exact(width).zip(self.gradient.chunks_exact(width));
        for ((x, gradient), out) in rows.zip(self.out.chunks_exact_mut(width)) {
            let (mean, factor) = moments(x, self.norm.epsilon);
            // The row normalised, and the gradient by it.
            for (((normal, scaled), (x, gradient)), scale) in
                normal.iter_mut().zip(&mut scaled).zip(x.iter().zip(gradient)).zip(scale)
            {
                *normal = (x - mean) * factor;
                *scaled = gradient * scale;
            }
            let average = sum(&scaled, &scaled, |x, _| x) / width as f32;
            let slope = sum(&scaled, &normal, |x, y| x * y) / width as f32;
            for ((out, scaled), normal) in out.iter_mut().zip(&scaled).zip(&normal) {
                *out = factor * (scaled - average - normal * slope);
            }
            for ((of_scale, gradient), normal) in of_scale.iter_mut().zip(gradient).zip(&normal) {
                *of_scale += gradient * normal;
            }
            of_shift.iter_mut().zip(gradient).for_each(|(sum, gradient)| *sum += gradient);
        }
        [of_scale, of_shift]
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
        let (scale, shift) = (values(width, 0.4), values(width, 0.9));
        let norm = |scale: &[f32], shift: &[f32]| Norm {
            scale: scale.to_vec(),
            shift: shift.to_vec(),
            epsilon: 1e-5,
        };
        let [of_x, of_scale, of_shift] = norm_backward(&x, &gradient, &norm(&scale, &shift));
        check(&x, &gradient, &of_x, |x| norm_forward(x, &norm(&scale, &shift)));
        check(&scale, &gradient, &of_scale, |scale| norm_forward(&x, &norm(scale, &shift)));
        check(&shift, &gradient, &of_shift, |shift| norm_forward(&x, &norm(&scale, shift)));
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
