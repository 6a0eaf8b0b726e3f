//! Blocks of a ResNet over rows of channels, with their gradients.
//!
//! Kept for the backward pass are the outputs of the convolutions; norms and ReLUs are computed
//! again.

use std::borrow::Cow;

use super::{
    channel_norm::{ChannelNorm, Moments},
    maps::{Conv, Size, pool, pool_backward},
    norm::each_row,
};
use crate::vision::batch_norm::EPSILON;

/// A convolution and the batch norm after it.
#[derive(Debug)]
pub(super) struct Step<'a> {
    pub conv: Conv<'a>,
    pub norm: ChannelNorm<'a>,
    /// Moments to normalise by instead of those of the batch.
    pub given: Option<Moments>,
}

/// Output of a convolution, and its moments.
#[derive(Debug, Clone)]
pub(super) struct Convolved {
    values: Vec<f32>,
    pub moments: Moments,
}

impl Convolved {
    /// Values of a channel.
    pub fn count(&self) -> usize {
        self.values.len() / self.moments.mean.len().max(1)
    }
}

impl Step<'_> {
    fn forward(&self, x: &[f32], size: Size) -> Convolved {
        let values = self.conv.forward(x, size);
        let moments = match &self.given {
            Some(moments) => moments.clone(),
            None => Moments::of(&values, self.conv.outputs, EPSILON),
        };
        Convolved { values, moments }
    }

    /// The norm of what was convolved, through a ReLU.
    fn relu(&self, Convolved { values, moments }: &Convolved) -> Vec<f32> {
        self.norm.relu(values, moments)
    }

    /// Takes a gradient back through that ReLU.
    fn relu_backward(&self, Convolved { values, moments }: &Convolved, gradient: &mut [f32]) {
        self.norm.relu_backward(values, moments, gradient);
    }

    /// Gradients of weight, scale and shift, and of what was convolved in place of that of the norm.
    fn backward(
        &self,
        x: &[f32],
        size: Size,
        Convolved { values, moments }: &Convolved,
        gradient: &mut [f32],
    ) -> [Vec<f32>; 3] {
        let [scale, shift] = self.norm.backward(values, moments, gradient);
        [self.conv.weight_gradient(x, size, gradient), scale, shift]
    }
}

/// Three convolutions with norms and ReLUs, then pooling.
#[derive(Debug)]
pub(super) struct Stem<'a> {
    pub steps: [Step<'a>; 3],
    pub stride: usize,
}

impl Stem<'_> {
    /// Size of the output.
    pub fn output(&self, size: Size) -> Size {
        let size = self.steps.iter().fold(size, |size, step| step.conv.output(size));
        size.pooled(self.stride)
    }

    pub fn forward(&self, x: &[f32], size: Size) -> (Vec<f32>, Vec<Convolved>) {
        let mut kept = Vec::new();
        let (mut x, mut size) = (Cow::Borrowed(x), size);
        for step in &self.steps {
            let convolved = step.forward(&x, size);
            size = step.conv.output(size);
            x = Cow::Owned(step.relu(&convolved));
            kept.push(convolved);
        }
        (pool(&x, size, self.steps[2].conv.outputs, self.stride), kept)
    }

    /// Gradients of the input, if it is asked for, and of the parameters.
    pub fn backward(
        &self,
        x: &[f32],
        size: Size,
        kept: &[Convolved],
        gradient: &[f32],
        asked: bool,
    ) -> Vec<Vec<f32>> {
        let [first, second, third] = &self.steps;
        let sizes = [size, first.conv.output(size), second.conv.output(first.conv.output(size))];
        let last = third.conv.output(sizes[2]);
        let mut gradient = pool_backward(gradient, last, third.conv.outputs, self.stride);
        let mut parameters = Vec::new();
        let mut input = Vec::new();
        for (index, step) in self.steps.iter().enumerate().rev() {
            step.relu_backward(&kept[index], &mut gradient);
            let x = match index {
                0 => Cow::Borrowed(x),
                _ => Cow::Owned(self.steps[index - 1].relu(&kept[index - 1])),
            };
            parameters.push(step.backward(&x, sizes[index], &kept[index], &mut gradient));
            match index {
                0 if asked => input = step.conv.input_gradient(&gradient, size),
                0 => {}
                _ => gradient = step.conv.input_gradient(&gradient, sizes[index]),
            }
        }
        std::iter::once(input).chain(parameters.into_iter().rev().flatten()).collect()
    }
}

/// A bottleneck.
#[derive(Debug)]
pub(super) struct Bottleneck<'a> {
    pub branch: [Step<'a>; 3],
    pub shortcut: Option<Step<'a>>,
    pub stride: usize,
}

impl Bottleneck<'_> {
    /// Size of the output.
    pub fn output(&self, size: Size) -> Size {
        size.pooled(self.stride)
    }

    /// Output, and what was convolved: the branch, then the shortcut.
    pub fn forward(&self, x: &[f32], size: Size) -> (Vec<f32>, Vec<Convolved>) {
        let [first, second, third] = &self.branch;
        let output = self.output(size);
        let a = first.forward(x, size);
        let b = second.forward(&first.relu(&a), size);
        let c = third.forward(&self.pooled(&second.relu(&b), size, second.conv.outputs), output);
        let shortcut = self
            .shortcut
            .as_ref()
            .map(|step| step.forward(&self.pooled(x, size, step.conv.inputs), output));
        let mut y = self.sum(x, &c, shortcut.as_ref());
        each_row(
            &mut y,
            third.conv.outputs,
            #[inline(always)]
            |_, y| {
                for y in y {
                    *y = y.max(0.0);
                }
            },
        );
        (y, [a, b, c].into_iter().chain(shortcut).collect())
    }

    /// Gradients of the input and of the parameters.
    pub fn backward(
        &self,
        x: &[f32],
        size: Size,
        kept: &[Convolved],
        gradient: &[f32],
    ) -> Vec<Vec<f32>> {
        let [first, second, third] = &self.branch;
        let output = self.output(size);
        let (a, b, c, shortcut) = (&kept[0], &kept[1], &kept[2], kept.get(3));
        let mut sum = self.sum(x, c, shortcut);
        let channels = third.conv.outputs;
        each_row(
            &mut sum,
            channels,
            #[inline(always)]
            |row, sum| {
                for (sum, gradient) in sum.iter_mut().zip(&gradient[row * channels..][..channels]) {
                    *sum = if *sum > 0.0 { *gradient } else { 0.0 };
                }
            },
        );

        let mut gradient = sum.clone();
        let activated = second.relu(b);
        let pooled = self.pooled(&activated, size, second.conv.outputs);
        let third_parameters = third.backward(&pooled, output, c, &mut gradient);
        drop(activated);
        gradient = third.conv.input_gradient(&gradient, output);
        gradient = self.pooled_backward(gradient, size, second.conv.outputs);
        second.relu_backward(b, &mut gradient);
        let second_parameters = second.backward(&first.relu(a), size, b, &mut gradient);
        gradient = second.conv.input_gradient(&gradient, size);
        first.relu_backward(a, &mut gradient);
        let first_parameters = first.backward(x, size, a, &mut gradient);
        let mut input = first.conv.input_gradient(&gradient, size);

        let mut parameters = [first_parameters, second_parameters, third_parameters].to_vec();
        let straight = match (&self.shortcut, shortcut) {
            (Some(step), Some(convolved)) => {
                let pooled = self.pooled(x, size, step.conv.inputs);
                parameters.push(step.backward(&pooled, output, convolved, &mut sum));
                let gradient = step.conv.input_gradient(&sum, output);
                self.pooled_backward(gradient, size, step.conv.inputs)
            }
            _ => sum,
        };
        let channels = first.conv.inputs;
        each_row(
            &mut input,
            channels,
            #[inline(always)]
            |row, out| {
                let straight = &straight[row * channels..][..channels];
                for (out, value) in out.iter_mut().zip(straight) {
                    *out += value;
                }
            },
        );
        std::iter::once(input).chain(parameters.into_iter().flatten()).collect()
    }

    /// Sums of branch and shortcut.
    fn sum(&self, x: &[f32], branch: &Convolved, shortcut: Option<&Convolved>) -> Vec<f32> {
        let norm = self.branch[2].norm;
        let channels = self.branch[2].conv.outputs;
        let straight = self.shortcut.as_ref().zip(shortcut);
        let mut sum = vec![0.0; branch.values.len()];
        each_row(
            &mut sum,
            channels,
            #[inline(always)]
            |row, sum| {
                let range = row * channels..(row + 1) * channels;
                match straight {
                    Some((step, Convolved { values, moments })) => step.norm.each(
                        &values[range.clone()],
                        moments,
                        sum,
                        #[inline(always)]
                        |sum, value| *sum = value,
                    ),
                    None => sum.copy_from_slice(&x[range.clone()]),
                }
                norm.each(
                    &branch.values[range],
                    &branch.moments,
                    sum,
                    #[inline(always)]
                    |sum, value| *sum += value,
                );
            },
        );
        sum
    }

    fn pooled<'x>(&self, values: &'x [f32], size: Size, channels: usize) -> Cow<'x, [f32]> {
        match self.stride {
            1 => Cow::Borrowed(values),
            stride => Cow::Owned(pool(values, size, channels, stride)),
        }
    }

    fn pooled_backward(&self, gradient: Vec<f32>, size: Size, channels: usize) -> Vec<f32> {
        match self.stride {
            1 => gradient,
            stride => pool_backward(&gradient, size, channels, stride),
        }
    }
}
