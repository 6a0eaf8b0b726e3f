//! Pictures as rows of channels: each pixel of `[batch, height, width]` is a row. So a convolution is
//! a matrix product of the rows of its inputs.

use std::ops::Range;

use super::{
    norm::each_row,
    packed::Packed,
    product::{Columns, across, rows},
};

/// Number and size of pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub batch: usize,
    pub height: usize,
    pub width: usize,
}

impl Size {
    /// Number of pixels.
    pub fn rows(self) -> usize {
        self.batch * self.height * self.width
    }

    /// After pooling of squares.
    pub fn pooled(self, stride: usize) -> Self {
        Self { height: self.height / stride, width: self.width / stride, ..self }
    }

    /// Picture, line and column of a row.
    #[inline(always)]
    fn place(self, row: usize) -> [usize; 3] {
        let line = row / self.width;
        [line / self.height, line % self.height, row % self.width]
    }

    /// The row of a pixel, if it is inside.
    #[inline(always)]
    fn row(self, picture: usize, line: usize, column: usize) -> Option<usize> {
        let inside = line < self.height && column < self.width;
        inside.then(|| (picture * self.height + line) * self.width + column)
    }
}

/// Means of squares of pixels.
pub(super) fn pool(values: &[f32], size: Size, channels: usize, stride: usize) -> Vec<f32> {
    let pooled = size.pooled(stride);
    let share = 1.0 / (stride * stride) as f32;
    let mut out = vec![0.0; pooled.rows() * channels];
    each_row(
        &mut out,
        channels,
        #[inline(always)]
        |row, out| {
            let [picture, line, column] = pooled.place(row);
            for place in 0..stride * stride {
                let (line, column) =
                    (line * stride + place / stride, column * stride + place % stride);
                if let Some(row) = size.row(picture, line, column) {
                    let values = &values[row * channels..][..channels];
                    for (out, value) in out.iter_mut().zip(values) {
                        *out += share * value;
                    }
                }
            }
        },
    );
    out
}

/// Gradient of the input of [`pool`].
pub(super) fn pool_backward(
    gradient: &[f32],
    size: Size,
    channels: usize,
    stride: usize,
) -> Vec<f32> {
    let pooled = size.pooled(stride);
    let share = 1.0 / (stride * stride) as f32;
    let mut out = vec![0.0; size.rows() * channels];
    each_row(
        &mut out,
        channels,
        #[inline(always)]
        |row, out| {
            let [picture, line, column] = size.place(row);
            if let Some(row) = pooled.row(picture, line / stride, column / stride) {
                let gradient = &gradient[row * channels..][..channels];
                for (out, value) in out.iter_mut().zip(gradient) {
                    *out = share * value;
                }
            }
        },
    );
    out
}

/// A convolution of odd kernel without bias, that keeps the size but for its stride.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conv<'a> {
    /// `[outputs, inputs, kernel, kernel]`.
    pub weight: &'a [f32],
    pub outputs: usize,
    pub inputs: usize,
    pub kernel: usize,
    pub stride: usize,
}

impl Conv<'_> {
    fn taps(&self) -> usize {
        self.kernel * self.kernel
    }

    /// Size of the output for that of the input.
    pub fn output(&self, size: Size) -> Size {
        let strided = |length: usize| length.div_ceil(self.stride);
        Size { height: strided(size.height), width: strided(size.width), ..size }
    }

    #[inline(always)]
    fn value(&self, output: usize, input: usize, tap: usize) -> f32 {
        self.weight[(output * self.inputs + input) * self.taps() + tap]
    }

    /// Output `[pixels, outputs]` of `x` (`[pixels, inputs]`).
    pub fn forward(&self, x: &[f32], size: Size) -> Vec<f32> {
        let depth = self.taps() * self.inputs;
        let weight = Packed::gathered(depth, self.outputs, |row, outputs, out| {
            let (tap, input) = (row / self.inputs, row % self.inputs);
            out.iter_mut().zip(outputs).for_each(|(out, o)| *out = self.value(o, input, tap));
        });
        let output = self.output(size);
        rows(
            output.rows(),
            &weight,
            #[inline(always)]
            |row, out| self.fill(x, size, output, row, 0..depth, out),
            #[inline(always)]
            |_, _, sums, out| out.copy_from_slice(sums),
        )
    }

    /// Gradient of `x` by that of the output.
    pub fn input_gradient(&self, gradient: &[f32], size: Size) -> Vec<f32> {
        let weight =
            Packed::gathered(self.taps() * self.outputs, self.inputs, |row, inputs, out| {
                let (tap, output) = (row / self.outputs, row % self.outputs);
                out.iter_mut().zip(inputs).for_each(|(out, i)| *out = self.value(output, i, tap));
            });
        let output = self.output(size);
        rows(
            size.rows(),
            &weight,
            #[inline(always)]
            |row, out| self.fill_back(gradient, size, output, row, out),
            #[inline(always)]
            |_, _, sums, out| out.copy_from_slice(sums),
        )
    }

    /// Gradient of the weight, in its layout.
    pub fn weight_gradient(&self, x: &[f32], size: Size, gradient: &[f32]) -> Vec<f32> {
        let (output, taps) = (self.output(size), self.taps());
        let columns = [taps * self.inputs, self.outputs];
        let mut values = vec![0.0; self.weight.len()];
        across(
            output.rows(),
            columns,
            #[inline(always)]
            |row, range, out| self.fill(x, size, output, row, range, out),
            #[inline(always)]
            |row, range, out| out.copy_from_slice(&gradient[row * self.outputs..][range]),
            Columns { values: &mut values, stride: self.outputs, first: 0 },
        );
        let place = |index: usize| {
            let (row, tap) = (index / taps, index % taps);
            let (output, input) = (row / self.inputs, row % self.inputs);
            values[(tap * self.inputs + input) * self.outputs + output]
        };
        (0..self.weight.len()).map(place).collect()
    }

    /// Writes inputs of a row of the output, a tap after the other.
    #[inline(always)]
    fn fill(
        &self,
        x: &[f32],
        size: Size,
        output: Size,
        row: usize,
        columns: Range<usize>,
        out: &mut [f32],
    ) {
        if self.kernel == 1 && self.stride == 1 {
            out.copy_from_slice(&x[row * self.inputs..][columns]);
            return;
        }
        let [picture, line, column] = output.place(row);
        let pad = self.kernel / 2;
        let source = |tap: usize| {
            // Above and left of the picture they wrap around, and are outside as well.
            let line = (line * self.stride + tap / self.kernel).wrapping_sub(pad);
            let column = (column * self.stride + tap % self.kernel).wrapping_sub(pad);
            size.row(picture, line, column)
        };
        gather(x, self.inputs, columns, out, source);
    }

    /// Writes gradients of the outputs that a row of the input is part of, a tap after the other.
    #[inline(always)]
    fn fill_back(&self, gradient: &[f32], size: Size, output: Size, row: usize, out: &mut [f32]) {
        if self.kernel == 1 && self.stride == 1 {
            out.copy_from_slice(&gradient[row * self.outputs..][..self.outputs]);
            return;
        }
        let [picture, line, column] = size.place(row);
        let pad = self.kernel / 2;
        let back = |place: usize, tap: usize| {
            let place = (place + pad).checked_sub(tap)?;
            (place % self.stride == 0).then_some(place / self.stride)
        };
        let source = |tap: usize| {
            let (line, column) = (back(line, tap / self.kernel), back(column, tap % self.kernel));
            output.row(picture, line?, column?)
        };
        let columns = 0..self.taps() * self.outputs;
        gather(gradient, self.outputs, columns, out, source);
    }
}

/// Writes `columns` of rows side by side, which `source` tells; zeros where there is none.
#[inline(always)]
fn gather(
    values: &[f32],
    channels: usize,
    columns: Range<usize>,
    mut out: &mut [f32],
    source: impl Fn(usize) -> Option<usize>,
) {
    let mut column = columns.start;
    while column < columns.end {
        let (tap, first) = (column / channels, column % channels);
        let count = (channels - first).min(columns.end - column);
        let (part, rest) = out.split_at_mut(count);
        match source(tap) {
            Some(row) => copy(part, &values[row * channels + first..][..count]),
            None => part.fill(0.0),
        }
        (out, column) = (rest, column + count);
    }
}

/// Copies a few values, without the call that copies many.
#[inline(always)]
fn copy(to: &mut [f32], from: &[f32]) {
    let ((to, end), (from, from_end)) = (to.as_chunks_mut::<8>(), from.as_chunks::<8>());
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
    for (to, from) in end.iter_mut().zip(from_end) {
        *to = *from;
    }
}
